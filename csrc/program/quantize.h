// Floats into weight formats: what `dequantize` (format.h) reads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "program/format.h"

namespace llama_ext {

// The SIMD level that `quantize` may use at most; every level gives the same bytes.
enum class QuantizeLevel : uint8_t { portable, avx2, avx512 };
QuantizeLevel quantize_level(std::string_view simd);  // of a kernel level's name; another name counts as portable

// source [cols] -> out [row_bytes(format, cols)].
//   F32, F16, BF16      rounded to nearest, ties to even
//   Q8_0 to Q5_1        one scale (and minimum) a block, from its extremes: the bytes are those of ggml's reference quantizer.
//   Where
//                       ggml leaves the quants undefined (a scale so small that its reciprocal overflows), the scale is zero in
//                       f16, and they are those of a block of zeros
//   Q4_K, Q5_K, Q6_K    a search of our own for the scales that leave the least weighted squared error; ggml's blocks, not its
//   bytes
//   MXFP8               as the OCP Microscaling Formats Specification (v1.0, 6.3) converts: a scale of
//                       2^(floor(log2(max|x|)) - 8) a block, elements rounded to nearest, ties to even, and at most 448
// Throws std::invalid_argument for columns that do not fill the format's blocks, for a NaN or an infinity, and for weights too
// large for the format; `out` is then undefined. Needs the default floating-point mode: nearest, subnormals kept.
void quantize(Format format, const float* source, int64_t cols, std::byte* out, QuantizeLevel level = QuantizeLevel::avx512);

// Throws std::invalid_argument that names the first column with a NaN or an infinity.
void require_finite(const float* source, int64_t cols);

// Throws the std::invalid_argument about columns that do not fill the format's blocks.
void require_whole_blocks(Format format, int64_t cols);

}  // namespace llama_ext
