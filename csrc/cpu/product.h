// y = W x for groups of 16 rows of W.
#pragma once

#include <cstdint>

#include "cpu/activation.h"
#include "cpu/pack.h"

namespace llama_ext::cpu {

// Groups that a product takes at once, so that what is loaded of x meets more than one weight.
inline constexpr int64_t kGroupsAtOnce = 2;

// Groups group .. group + groups - 1, kGroupsAtOnce of them at the most.
// x: activations in the form that w's format names; rows row .. row + rows - 1 of it.
// out [groups][rows][16]: the groups' outputs; lanes past the last row of W are zero.
using ProductFn = void (*)(const PackedWeight& w, int64_t group, int64_t groups, const Activation& x, int64_t row, int64_t rows,
                           float* out);

}  // namespace llama_ext::cpu
