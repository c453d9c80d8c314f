#include "cpu/packing.h"

#include <algorithm>
#include <new>
#include <stdexcept>

#include "cpu/layout.h"
#include "program/file_map.h"

namespace llama_ext::cpu {
namespace {

constexpr size_t kAddressSpace = size_t{1} << 62;
// Bytes of a weight that lie in memory twice while it is packed, in its file's pages and in their place.
constexpr size_t kPiece = size_t{16} << 20;

PackedWeight unplaced(const Weight& w) {
    return {
        packed_format(w.format), w.rows, w.cols, (w.rows + kGroup - 1) / kGroup, packed_group_bytes(w.format, w.cols), nullptr};
}

}  // namespace

std::vector<std::unique_ptr<BoundInstruction>> Packing::bind_all() {
    std::vector<std::unique_ptr<BoundInstruction>> code;
    for (const Instruction& instruction : program_.code)
        std::visit([&](const auto& i) { code.push_back(bind(i, *this)); }, instruction);
    return code;
}

std::byte* Packing::take(size_t bytes) {
    // Weights that are made on demand can claim to be of any size, as long as nothing is made: the sum must not wrap.
    if (bytes > kAddressSpace - packed_) throw std::bad_alloc();
    const size_t at = packed_;
    packed_ += aligned(bytes);
    return place_ ? place_->pages.data() + at : nullptr;
}

PackedWeight Packing::pack(const Weight& w) {
    if (const auto found = done_.find(&w); found != done_.end()) return found->second;
    PackedWeight packed = unplaced(w);
    std::byte* place = take(static_cast<size_t>(packed.groups) * packed.group_bytes);
    packed.data = place;
    if (place_) {
        const WeightBytes bytes = w.fetch();
        const size_t stride = row_bytes(w.format, w.cols);
        const int64_t piece = std::max<int64_t>(1, static_cast<int64_t>(kPiece / packed.group_bytes));
        for (int64_t first = 0; first < packed.groups; first += piece) {
            const int64_t groups = std::min(piece, packed.groups - first);
            place_->team.run([&](int member) {
                const Share mine = share(groups, member, place_->team.size());
                for (int64_t g = first + mine.begin; g < first + mine.end; ++g) {
                    const int rows = static_cast<int>(std::min<int64_t>(kGroup, w.rows - g * kGroup));
                    pack_group(w.format, w.cols, bytes.data + static_cast<size_t>(g * kGroup) * stride, rows,
                               place + static_cast<size_t>(g) * packed.group_bytes);
                }
            });
            // The file's pages have served: they would be a second copy of the model.
            const int64_t from = first * kGroup, rows = std::min(groups * kGroup, w.rows - from);
            give_back(bytes.data + static_cast<size_t>(from) * stride, static_cast<size_t>(rows) * stride);
        }
        if (place_->progress) place_->progress(packed_, place_->pages.bytes());
    }
    done_.emplace(&w, packed);
    return packed;
}

const float* Packing::vector(const Weight& w) {
    float* place = reinterpret_cast<float*>(take(static_cast<size_t>(w.cols) * sizeof(float)));
    if (place_) {
        const WeightBytes bytes = w.fetch();
        dequantize(w.format, bytes.data, w.cols, place);
        give_back(bytes.data, w.bytes());
    }
    return place;
}

WeightBytes Packing::keep(const Weight& w) {
    kept_ += w.bytes();
    return place_ ? w.fetch() : WeightBytes{};
}

bool Packing::is_head(const Weight& w) const {
    return std::any_of(program_.code.begin(), program_.code.end(), [&](const Instruction& i) {
        const auto* head = std::get_if<Head>(&i);
        return head && head->weight.get() == &w;
    });
}

PackedWeight Packing::expert(const Weight& w, int layer, Residency::Part part, int expert) {
    if (!experts_in_file_) return pack(w);
    if (!w.data || !is_mapped(w.data, w.bytes()) || packed_format(w.format) != w.format)
        throw std::invalid_argument("'" + w.name + "' is not in a file as it is needed, so it cannot stay there");
    PackedWeight mapped = unplaced(w);
    mapped.source = w.data;
    scratch(kGroupsAtOnce * mapped.group_bytes);
    if (residency_) residency_->add(layer, part, expert, w.data, w.bytes());
    return mapped;
}

bool Packing::has_shared_expert(int layer) const {
    return std::any_of(program_.code.begin(), program_.code.end(), [&](const Instruction& i) {
        const auto* experts = std::get_if<ExpertsDown>(&i);
        return experts && experts->layer == layer && experts->shared_down;
    });
}

void Packing::scratch(size_t bytes) { scratch_ = std::max(scratch_, bytes); }

int64_t Packing::rotation(int rope, int64_t chunk) {
    if (rope < 0) return -1;
    int64_t end = 0;
    for (const Rotation& r : rotations_) {
        if (r.rope == rope && r.chunk == chunk) return r.offset;
        end = r.offset + rotation_pairs(program_, r) * program_.max_rows;
    }
    rotations_.push_back({rope, chunk, end});
    return end;
}

}  // namespace llama_ext::cpu
