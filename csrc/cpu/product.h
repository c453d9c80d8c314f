// y = W x for one group of 16 rows of W.
#pragma once

#include <cstdint>

#include "cpu/activation.h"
#include "cpu/pack.h"

namespace llama_ext::cpu {

// x: activations in the form that w's format names; tokens row .. row + rows - 1 of it.
// out [rows][16]: the group's outputs; lanes past the last row of W are zero.
using ProductFn = void (*)(const PackedWeight& w, int64_t group, const Activation& x, int64_t row, int64_t rows, float* out);

}  // namespace llama_ext::cpu
