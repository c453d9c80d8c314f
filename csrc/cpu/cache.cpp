#include "cpu/cache.h"

#include <cstring>

namespace llama_ext::cpu {

Cache::Cache(const Program& program, bool poison, int64_t start) : Sequence(program, start), poison_(poison) {
    for (const CacheLayer& layer : program.caches) {
        CacheView view{layer.format, layer.kv_heads, layer.head_dim, layer.capacity, 0, nullptr, nullptr};
        view.padded = (layer.capacity + kKeyTile - 1) / kKeyTile * kKeyTile;
        const size_t half = static_cast<size_t>(view.padded) * (layer.bytes_per_slot() / 2);
        pages_.emplace_back(2 * half, Pages::Size::normal);
        view.keys = pages_.back().data();
        view.values = view.keys + half;
        views_.push_back(view);
    }
    reset();
}

void Cache::poison_slots(const CacheView& view, int64_t first, int64_t last) const {
    // All bits set is a NaN in f32, f16 and bf16 alike, and in q8_0, whose scales are f16.
    const bool scaled = view.format == CacheFormat::q8_0;
    const size_t head_dim = static_cast<size_t>(view.head_dim);
    const size_t element = scaled ? 1 : cache_row_bytes(view.format, 1), scale = sizeof(uint16_t);
    for (int head = 0; head < view.kv_heads; ++head) {
        for (int64_t slot = first; slot < last; ++slot) {
            const size_t lane = static_cast<size_t>(slot % kKeyTile);
            std::byte* keys = view.keys + tile_offset(view, head, slot);
            std::byte* values = view.values + tile_offset(view, head, slot);
            for (size_t d = 0; d < head_dim; ++d) std::memset(keys + (d * kKeyTile + lane) * element, 0xff, element);
            std::memset(values + lane * head_dim * element, 0xff, head_dim * element);
            for (size_t block = 0; scaled && block < head_dim / kCacheBlock; ++block) {
                const size_t at = head_dim * kKeyTile + (block * kKeyTile + lane) * scale;
                std::memset(keys + at, 0xff, scale);
                std::memset(values + at, 0xff, scale);
            }
        }
    }
}

void Cache::rollback(int64_t n) {
    const auto guard = lock();
    const int64_t before = position();
    take_back(n);
    if (poison_) {
        for (const CacheView& view : views_) {
            for (int64_t p = before - n; p < before; ++p) poison_slots(view, p % view.capacity, p % view.capacity + 1);
        }
    }
}

void Cache::reset() {
    const auto guard = lock();
    begin_again();
    if (poison_) {
        for (const CacheView& view : views_) poison_slots(view, 0, view.padded);
    }
}

size_t Cache::bytes_reserved() const {
    size_t bytes = 0;
    for (const Pages& pages : pages_) bytes += pages.bytes();
    return bytes;
}

}  // namespace llama_ext::cpu
