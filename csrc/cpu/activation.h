// The input of a product in the forms that the weight formats ask for.
#pragma once

#include <cstdint>

namespace llama_ext::cpu {

// A value of q15 is two signed digits, 128 * high + low, each a byte that byte-wise dot products take: high in -127 .. 127,
// low in -64 .. 63.
inline constexpr int kDigitShift = 7;
inline constexpr float kLargestQ15 = 127 * 128 + 63;

// Rows of `cols` values, the product's columns. Only the forms that the weights ask for are filled.
struct Activation {
    const float* f32;      // [rows][cols]
    const int8_t* digits;  // [rows][cols / 32][2][32]: a block's 32 high digits, then its 32 low ones
    const float* scale;    // [rows][cols / 32]: x = scale * q15
    const int32_t* sum16;  // [rows][cols / 16]: sums of 16 q15 values each
};

}  // namespace llama_ext::cpu
