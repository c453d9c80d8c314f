// Weights into the layout of cuda/kernels/packed.h, on the host.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/kernels/packed.h"
#include "cuda/plan.h"
#include "program/format.h"

namespace llama_ext::cuda {

// A matrix in device memory, packed.
struct Matrix {
    Format format;
    int64_t rows, cols;
    Address base;  // on 256 bytes
};

// Bytes of a row in each plane.
struct PlaneRows {
    int64_t quants, high, scales, supers;
};
PlaneRows plane_rows(Format format, int64_t cols);

// Throws std::invalid_argument if cols is no multiple of the format's block.
Planes planes(Format format, int64_t rows, int64_t cols);

// One row of a checkpoint's bytes into row `row` of a packed matrix of `rows` rows at `base`.
void pack_row(Format format, int64_t rows, int64_t cols, int64_t row, const std::byte* source, std::byte* base);

}  // namespace llama_ext::cuda
