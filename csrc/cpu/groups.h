// The second half of every product: a member's groups of 16 rows, as many at a time as a kernel takes.
#pragma once

#include <algorithm>
#include <cstddef>

#include "cpu/executor.h"

namespace llama_ext::cpu {

// The product that takes the form in which x is given for weights of w's format.
inline ProductFn product_of(const Kernels& kernels, const PackedWeight& w, const Activation& x) {
    return w.format == Format::bf16 && x.bf16 ? kernels.bf16_product : kernels.products[static_cast<size_t>(w.format)];
}

// Groups group .. group + groups - 1 of w against rows row .. row + rows - 1 of x, to tile [groups][rows][16]. What lies in its
// file is packed on the way.
inline void multiply(const Step& step, int member, const PackedWeight& w, int64_t group, int64_t groups, const Activation& x,
                     int64_t row, int64_t rows, float* tile) {
    const ProductFn product = product_of(step.kernels, w, x);
    if (w.data) return product(w, group, groups, x, row, rows, tile);
    PackedWeight some = w;
    some.data = step.members[static_cast<size_t>(member)].bytes;
    for (int64_t g = 0; g < groups; ++g) {
        const int64_t first = (group + g) * kGroup;
        pack_group(w.format, w.cols, w.source + static_cast<size_t>(first) * row_bytes(w.format, w.cols),
                   static_cast<int>(std::min<int64_t>(kGroup, w.rows - first)),
                   step.members[static_cast<size_t>(member)].bytes + static_cast<size_t>(g) * w.group_bytes);
    }
    product(some, 0, groups, x, row, rows, tile);
}

// use(group, tile) for each of the groups `mine` of w; tile [rows][16].
template <class Use>
void for_each_group(const Step& step, int member, const PackedWeight& w, Share mine, const Activation& x, int64_t row,
                    int64_t rows, Use&& use) {
    float* const tile = step.members[static_cast<size_t>(member)].tile;
    for (int64_t g = mine.begin; g < mine.end; g += kGroupsAtOnce) {
        const int64_t groups = std::min(kGroupsAtOnce, mine.end - g);
        multiply(step, member, w, g, groups, x, row, rows, tile);
        for (int64_t i = 0; i < groups; ++i) use(g + i, tile + i * rows * kGroup);
    }
}

// use(group, tile of gate, tile of up) for each of the groups `mine` of two matrices of one shape.
template <class Use>
void for_each_group(const Step& step, int member, const PackedWeight& gate, const PackedWeight& up, Share mine,
                    const Activation& x, int64_t row, int64_t rows, Use&& use) {
    float* const gate_tile = step.members[static_cast<size_t>(member)].tile;
    float* const up_tile = gate_tile + kGroupsAtOnce * rows * kGroup;
    for (int64_t g = mine.begin; g < mine.end; g += kGroupsAtOnce) {
        const int64_t groups = std::min(kGroupsAtOnce, mine.end - g);
        multiply(step, member, gate, g, groups, x, row, rows, gate_tile);
        multiply(step, member, up, g, groups, x, row, rows, up_tile);
        for (int64_t i = 0; i < groups; ++i) use(g + i, gate_tile + i * rows * kGroup, up_tile + i * rows * kGroup);
    }
}

}  // namespace llama_ext::cpu
