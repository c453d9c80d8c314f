// Plain C++: sixteen lanes as loops, which a compiler vectorises for the machine's baseline (SSE2, NEON, ...).
#pragma once

#include <cmath>

#include "program/half.h"

namespace llama_ext::cpu::LLAMA_EXT_LEVEL {

inline constexpr int kLargestTile =
    2;  // tokens that a product of floats takes at once: more would cost minutes of compiling and bring nothing

struct F32x16 {
    float v[16];
};
struct I32x16 {
    int32_t v[16];
};

#define LLAMA_EXT_LANES(type, expression)                  \
    type result;                                           \
    for (int i = 0; i < 16; ++i) result.v[i] = expression; \
    return result

// Unsigned arithmetic wraps, signed does not: the lanes are added, multiplied and shifted as unsigned.
LLAMA_EXT_INLINE uint32_t u(int32_t x) { return static_cast<uint32_t>(x); }
LLAMA_EXT_INLINE int32_t s(uint32_t x) { return static_cast<int32_t>(x); }
LLAMA_EXT_INLINE float float_of_bits(int32_t x) {
    float value;
    memcpy(&value, &x, sizeof value);
    return value;
}
LLAMA_EXT_INLINE int32_t bits_of_float(float x) {
    int32_t value;
    memcpy(&value, &x, sizeof value);
    return value;
}

LLAMA_EXT_INLINE F32x16 zero() { return F32x16{}; }
LLAMA_EXT_INLINE F32x16 broadcast(float x) { LLAMA_EXT_LANES(F32x16, x); }
LLAMA_EXT_INLINE F32x16 load(const float* p) { LLAMA_EXT_LANES(F32x16, p[i]); }
LLAMA_EXT_INLINE void store(float* p, F32x16 x) { memcpy(p, x.v, sizeof x.v); }
LLAMA_EXT_INLINE F32x16 load_first(const float* p, int n) {
    F32x16 x{};
    memcpy(x.v, p, static_cast<size_t>(n) * sizeof(float));
    return x;
}
LLAMA_EXT_INLINE void store_first(float* p, int n, F32x16 x) { memcpy(p, x.v, static_cast<size_t>(n) * sizeof(float)); }
LLAMA_EXT_INLINE F32x16 load_f16(const void* p) {
    uint16_t bits[16];
    memcpy(bits, p, sizeof bits);
    LLAMA_EXT_LANES(F32x16, f32_from_f16(bits[i]));
}
LLAMA_EXT_INLINE F32x16 load_bf16(const void* p) {
    uint16_t bits[16];
    memcpy(bits, p, sizeof bits);
    LLAMA_EXT_LANES(F32x16, float_of_bits(s(uint32_t{bits[i]} << 16)));
}
LLAMA_EXT_INLINE F32x16 load_i8(const int8_t* p) { LLAMA_EXT_LANES(F32x16, static_cast<float>(p[i])); }

LLAMA_EXT_INLINE F32x16 operator+(F32x16 x, F32x16 y) { LLAMA_EXT_LANES(F32x16, x.v[i] + y.v[i]); }
LLAMA_EXT_INLINE F32x16 operator-(F32x16 x, F32x16 y) { LLAMA_EXT_LANES(F32x16, x.v[i] - y.v[i]); }
LLAMA_EXT_INLINE F32x16 operator*(F32x16 x, F32x16 y) { LLAMA_EXT_LANES(F32x16, x.v[i] * y.v[i]); }
LLAMA_EXT_INLINE F32x16 operator/(F32x16 x, F32x16 y) { LLAMA_EXT_LANES(F32x16, x.v[i] / y.v[i]); }
// Two roundings: a fused multiplication-addition without hardware for it would cost a library call a lane.
LLAMA_EXT_INLINE F32x16 fma(F32x16 x, F32x16 y, F32x16 z) { LLAMA_EXT_LANES(F32x16, x.v[i] * y.v[i] + z.v[i]); }
LLAMA_EXT_INLINE F32x16 max(F32x16 x, F32x16 y) { LLAMA_EXT_LANES(F32x16, x.v[i] > y.v[i] ? x.v[i] : y.v[i]); }
LLAMA_EXT_INLINE F32x16 min(F32x16 x, F32x16 y) { LLAMA_EXT_LANES(F32x16, x.v[i] < y.v[i] ? x.v[i] : y.v[i]); }
LLAMA_EXT_INLINE F32x16 abs(F32x16 x) { LLAMA_EXT_LANES(F32x16, std::fabs(x.v[i])); }
LLAMA_EXT_INLINE uint32_t less(F32x16 x, F32x16 y) {
    uint32_t mask = 0;
    for (int i = 0; i < 16; ++i) mask |= static_cast<uint32_t>(x.v[i] < y.v[i]) << i;
    return mask;
}
LLAMA_EXT_INLINE F32x16 select(uint32_t mask, F32x16 yes, F32x16 no) {
    LLAMA_EXT_LANES(F32x16, (mask >> i & 1) ? yes.v[i] : no.v[i]);
}
LLAMA_EXT_INLINE float reduce_add(F32x16 x) {
    for (int width = 8; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) x.v[i] += x.v[i + width];
    return x.v[0];
}
LLAMA_EXT_INLINE float reduce_max(F32x16 x) {
    float largest = x.v[0];
    for (int i = 1; i < 16; ++i) largest = x.v[i] > largest ? x.v[i] : largest;
    return largest;
}

LLAMA_EXT_INLINE I32x16 broadcast(int32_t x) { LLAMA_EXT_LANES(I32x16, x); }
LLAMA_EXT_INLINE I32x16 load_words(const void* p) {
    I32x16 x;
    memcpy(x.v, p, sizeof x.v);
    return x;
}
LLAMA_EXT_INLINE I32x16 operator+(I32x16 x, I32x16 y) { LLAMA_EXT_LANES(I32x16, s(u(x.v[i]) + u(y.v[i]))); }
LLAMA_EXT_INLINE I32x16 operator-(I32x16 x, I32x16 y) { LLAMA_EXT_LANES(I32x16, s(u(x.v[i]) - u(y.v[i]))); }
LLAMA_EXT_INLINE I32x16 operator&(I32x16 x, I32x16 y) { LLAMA_EXT_LANES(I32x16, x.v[i] & y.v[i]); }
LLAMA_EXT_INLINE I32x16 operator|(I32x16 x, I32x16 y) { LLAMA_EXT_LANES(I32x16, x.v[i] | y.v[i]); }
template <int n>
LLAMA_EXT_INLINE I32x16 shift_left(I32x16 x) {
    LLAMA_EXT_LANES(I32x16, s(u(x.v[i]) << n));
}
template <int n>
LLAMA_EXT_INLINE I32x16 shift_right(I32x16 x) {
    LLAMA_EXT_LANES(I32x16, s(u(x.v[i]) >> n));
}
template <int n>
LLAMA_EXT_INLINE I32x16 shift_right_signed(I32x16 x) {
    LLAMA_EXT_LANES(I32x16, x.v[i] >> n);
}

LLAMA_EXT_INLINE F32x16 to_f32(I32x16 x) { LLAMA_EXT_LANES(F32x16, static_cast<float>(x.v[i])); }
// To nearest even by pushing the fraction out of the mantissa; exact for |x| < 2^22, which is all that kernels ask for. A NaN
// gives the smallest integer, as in hardware: exp() shifts it to nothing, where a NaN's own bits would make the NaN a number.
LLAMA_EXT_INLINE I32x16 round_to_i32(F32x16 x) {
    LLAMA_EXT_LANES(I32x16, x.v[i] == x.v[i] ? bits_of_float(x.v[i] + 12582912.0f) - 0x4b400000 : INT32_MIN);
}
LLAMA_EXT_INLINE F32x16 bits_to_f32(I32x16 x) { LLAMA_EXT_LANES(F32x16, float_of_bits(x.v[i])); }
LLAMA_EXT_INLINE I32x16 f32_to_bits(F32x16 x) { LLAMA_EXT_LANES(I32x16, bits_of_float(x.v[i])); }
LLAMA_EXT_INLINE I32x16 max(I32x16 x, I32x16 y) { LLAMA_EXT_LANES(I32x16, x.v[i] > y.v[i] ? x.v[i] : y.v[i]); }
LLAMA_EXT_INLINE int32_t reduce_max(I32x16 x) {
    int32_t largest = x.v[0];
    for (int i = 1; i < 16; ++i) largest = x.v[i] > largest ? x.v[i] : largest;
    return largest;
}
LLAMA_EXT_INLINE int32_t reduce_add(I32x16 x) {
    int32_t sum = 0;
    for (int i = 0; i < 16; ++i) sum += x.v[i];
    return sum;
}
LLAMA_EXT_INLINE void store_i8(int8_t* p, I32x16 x) {
    for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(x.v[i]);
}

LLAMA_EXT_INLINE I32x16 dot4_unsigned(I32x16 acc, I32x16 w, int32_t x) {
    for (int i = 0; i < 16; ++i)
        for (int byte = 0; byte < 32; byte += 8) acc.v[i] += s(u(w.v[i]) >> byte & 255) * static_cast<int8_t>(u(x) >> byte & 255);
    return acc;
}
inline constexpr int32_t kSignedBias = 0;
LLAMA_EXT_INLINE I32x16 prepare_signed(I32x16 w) { return w; }
LLAMA_EXT_INLINE I32x16 dot4_signed(I32x16 acc, I32x16 w, int32_t x) {
    for (int i = 0; i < 16; ++i)
        for (int byte = 0; byte < 32; byte += 8)
            acc.v[i] += static_cast<int8_t>(u(w.v[i]) >> byte & 255) * static_cast<int8_t>(u(x) >> byte & 255);
    return acc;
}

#undef LLAMA_EXT_LANES

}  // namespace llama_ext::cpu::LLAMA_EXT_LEVEL
