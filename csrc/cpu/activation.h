// The input of a product in the forms that the weight formats ask for.
#pragma once

#include <cstdint>

namespace llama_ext::cpu {

// A value of q15 is two signed digits, 128 * high + low, each a byte that byte-wise dot products take: high in -127 .. 127,
// low in -64 .. 63.
inline constexpr int kDigitShift = 7;
inline constexpr float kLargestQ15 = 127 * 128 + 63;

// 32 values x = scale * q15 of a row, with all that a product asks of them.
struct Q15Block {
    int8_t high[32], low[32];
    float scale;
    float scaled_sum;     // scale * (sum of the 32 q15 values)
    int32_t minus_sum;    // -(sum of the 32 q15 values)
    int32_t minus_of[2];  // the same of the first 16 and of the others
};

// Rows of `cols` values, the product's columns. Only the forms that the weights ask for are filled.
struct Activation {
    const float* f32;     // [rows][cols]
    const Q15Block* q15;  // [cols / 32][rows]: a product goes through all rows with one block of weights, then to the next
    int64_t rows;
};

}  // namespace llama_ext::cpu
