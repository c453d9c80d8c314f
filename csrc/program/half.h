// 16-bit floats as bit patterns: exact widening and round-to-nearest-even narrowing, in plain integer arithmetic so that
// every compiler and machine agrees. `static`, and a builtin for std::bit_cast: kernels of several SIMD levels include this, and
// they may not share a copy.
#pragma once

#include <cstdint>

namespace llama_ext {

static inline float f32_from_bf16(uint16_t bits) { return __builtin_bit_cast(float, uint32_t{bits} << 16); }

static inline uint16_t bf16_from_f32(float value) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);  // keep a NaN a NaN
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static inline float f32_from_f16(uint16_t half) {
    const uint32_t sign = uint32_t{half & 0x8000u} << 16;
    const uint32_t magnitude = half & 0x7fffu;
    if (magnitude >= 0x7c00u) return __builtin_bit_cast(float, sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    // Shifting the 15 bits into place leaves an exponent that is 112 too small; one multiplication by 2^112 mends it
    // and turns half subnormals into normal floats.
    return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, __builtin_bit_cast(float, magnitude << 13) * 0x1p112f) | sign);
}

static inline uint16_t f16_from_f32(float value) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, value);
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and above round to infinity
    if (magnitude < 0x38800000u) {
        // Subnormal result: adding 0.5 puts the half's last bit at the float's last bit, and the addition rounds.
        const float shifted = __builtin_bit_cast(float, magnitude) + 0.5f;
        return static_cast<uint16_t>(sign | (__builtin_bit_cast(uint32_t, shifted) - 0x3f000000u));
    }
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u;
    return static_cast<uint16_t>(sign | (rounded >> 13));
}

// E8M0, a power of two without a sign: 2^(byte - 127), 255 is NaN.
static inline float f32_from_e8m0(uint8_t byte) {
    const uint32_t bits = byte == 0xff ? 0x7fc00000u : byte == 0 ? 0x00400000u : uint32_t{byte} << 23;
    return __builtin_bit_cast(float, bits);
}

// E4M3: sign, 4 bits of exponent (bias 7), 3 of mantissa, subnormals; no infinities, S.1111.111 is NaN, 448 the largest.
static inline float f32_from_e4m3(uint8_t byte) {
    const uint32_t sign = (byte & 0x80u) << 24, magnitude = byte & 0x7fu;
    if (magnitude == 0x7fu) return __builtin_bit_cast(float, sign | 0x7fc00000u);
    // As in f32_from_f16: an exponent that is 120 too small, mended by a multiplication.
    return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, __builtin_bit_cast(float, magnitude << 20) * 0x1p120f) | sign);
}

// Rounded to nearest, ties to even; what is beyond 448, infinities too, becomes 448.
static inline uint8_t e4m3_from_f32(float value) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, value);
    const uint8_t sign = static_cast<uint8_t>((bits >> 24) & 0x80u);
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<uint8_t>(sign | 0x7fu);
    if (magnitude >= 0x43e00000u) return static_cast<uint8_t>(sign | 0x7eu);
    if (magnitude < 0x3c800000u) {
        // Subnormal result, in steps of 2^-9: adding 2^14 puts that step at the float's last bit, and the addition rounds.
        const float shifted = __builtin_bit_cast(float, magnitude) + 0x1p14f;
        return static_cast<uint8_t>(sign | (__builtin_bit_cast(uint32_t, shifted) - 0x46800000u));
    }
    const uint32_t rounded = magnitude + 0x7ffffu + ((magnitude >> 20) & 1u) - 0x3c000000u;
    return static_cast<uint8_t>(sign | (rounded >> 20));
}

}  // namespace llama_ext
