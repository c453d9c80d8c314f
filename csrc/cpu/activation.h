// The input of a product in the forms that the weight formats ask for.
#pragma once

#include <cstdint>

namespace llama_ext::cpu {

// A value of q15 is two signed digits, 128 * high + low, each a byte that byte-wise dot products take: high in -127 .. 127,
// low in -64 .. 63.
inline constexpr int kDigitShift = 7;
inline constexpr float kLargestQ15 = 127 * 128 + 63;

// 32 values x = scale * q15 of a row, with all that a product asks of them. Of one digit are, in a coarse step (prepare.h),
// blocks whose largest value is not far above the row's others'.
struct Q15Block {
    int8_t high[32], low[32];
    float scale;
    float scaled_sum;     // scale * (sum of the 32 q15 values)
    int32_t minus_sum;    // -(sum of the 32 q15 values)
    int32_t minus_of[2];  // the same of the first 16 and of the others
    int32_t two_digits;   // 0: all of `low` is zero
};

// Rows of which a product of BF16 dot products takes one after the other.
inline constexpr int64_t kBf16Tile = 8;
struct Bf16Pair {
    uint16_t of[2];  // columns 2 i and 2 i + 1; a last one without a partner stands beside a zero
};
inline constexpr int64_t bf16_pairs(int64_t cols) { return (cols + 1) / 2; }
// Where a row's first pair stands; the next ones follow kBf16Tile apart.
inline constexpr int64_t bf16_offset(int64_t row, int64_t cols) {
    return row / kBf16Tile * bf16_pairs(cols) * kBf16Tile + row % kBf16Tile;
}

// Rows of `cols` values, the product's columns. Only the forms that the weights ask for are filled; bf16 is null where it is not.
struct Activation {
    const float* f32;      // [rows][cols]
    const Q15Block* q15;   // [cols / 32][rows]: a product goes through all rows with one block of weights, then to the next
    const Bf16Pair* bf16;  // [ceil(rows / kBf16Tile)][bf16_pairs(cols)][kBf16Tile]; rows past the last: anything
    int64_t rows;
};

}  // namespace llama_ext::cpu
