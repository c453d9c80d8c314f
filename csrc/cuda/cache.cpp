#include "cuda/cache.h"

#include <algorithm>
#include <atomic>

namespace llama_ext::cuda {
namespace {

constexpr int64_t kFirstSlots = 256;

std::atomic<uint64_t> identities{1};

}  // namespace

Cache::Cache(const Program& program, DevicePtr device, Stream& stream, bool poison, int64_t start)
    : Sequence(program, start), identity_(identities++), device_(std::move(device)), stream_(stream), poison_(poison) {
    for (const CacheLayer& layout : program.caches) {
        Layer layer{layout, 0, {}};
        const bool scaled = layout.format == CacheFormat::q8_0;
        const size_t elements = static_cast<size_t>(layout.head_dim);
        for (int half = 0; half < 2; ++half)
            layer.planes.push_back({nullptr, scaled ? elements : cache_row_bytes(layout.format, layout.head_dim)});
        for (int half = 0; scaled && half < 2; ++half) layer.planes.push_back({nullptr, elements / kCacheBlock * 2});
        layers_.push_back(std::move(layer));
    }
    states_.resize(layers_.size());
    reserve(1);
}

bool Cache::reserve(int64_t rows) {
    bool changed = false;
    for (size_t i = 0; i < layers_.size(); ++i) {
        Layer& layer = layers_[i];
        // A ring that has less memory than its capacity has not wrapped: positions are slots. One that begins far from zero has
        // wrapped as it begins.
        const int64_t needed = start() > 0 ? layer.layout.capacity : std::min(layer.layout.capacity, position() + rows);
        if (needed <= layer.capacity) continue;
        const int64_t doubled = std::max({needed, 2 * layer.capacity, kFirstSlots});
        grow(&layer, std::min(layer.layout.capacity, doubled));
        const auto address = [&layer](size_t plane) {
            return plane < layer.planes.size() ? layer.planes[plane].memory->address() : 0;
        };
        states_[i] = {address(0), address(1), address(2), address(3), layer.capacity};
        changed = true;
    }
    return changed;
}

void Cache::grow(Layer* layer, int64_t capacity) {
    const size_t heads = static_cast<size_t>(layer->layout.kv_heads);
    const size_t used = static_cast<size_t>(std::min(layer->capacity, position()));
    for (Plane& plane : layer->planes) {
        const size_t head_bytes = static_cast<size_t>(capacity) * plane.slot_bytes;
        auto memory = std::make_unique<Memory>(device_, heads * head_bytes);
        if (poison_) stream_.fill({memory->address()}, 0xff, memory->bytes());
        for (size_t head = 0; used && head < heads; ++head) {
            const size_t before = head * static_cast<size_t>(layer->capacity) * plane.slot_bytes;
            stream_.copy({memory->address() + head * head_bytes}, {plane.memory->address() + before}, used * plane.slot_bytes);
        }
        stream_.synchronize();  // before the old memory goes
        plane.memory = std::move(memory);
    }
    layer->capacity = capacity;
}

// All bits set is a NaN in f32, f16, bf16 and fp8 alike, and in q8_0, whose scales are f16.
void Cache::poison_slots(const Layer& layer, int64_t first, int64_t last) {
    for (const Plane& plane : layer.planes) {
        for (int head = 0; head < layer.layout.kv_heads; ++head) {
            const size_t at = static_cast<size_t>(head * layer.capacity + first) * plane.slot_bytes;
            stream_.fill({plane.memory->address() + at}, 0xff, static_cast<size_t>(last - first) * plane.slot_bytes);
        }
    }
}

void Cache::rollback(int64_t n) {
    const auto guard = lock();
    const int64_t before = position();
    take_back(n);
    if (!poison_) return;
    for (const Layer& layer : layers_)
        for (int64_t p = before - n; p < before; ++p) poison_slots(layer, p % layer.capacity, p % layer.capacity + 1);
}

void Cache::reset() {
    const auto guard = lock();
    begin_again();
    if (!poison_) return;
    for (const Layer& layer : layers_) poison_slots(layer, 0, layer.capacity);
}

size_t Cache::bytes_reserved() const {
    size_t bytes = 0;
    for (const Layer& layer : layers_)
        for (const Plane& plane : layer.planes) bytes += plane.memory->bytes();
    return bytes;
}

}  // namespace llama_ext::cuda
