// Floating-point formats on bit patterns: exact widening, and narrowing that rounds once from the exact value.
// Everything up to 32 bits widens exactly to float. Functions named x_to_y are branch-free, for loops that the compiler
// vectorises; encode() knows every format and rounding.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

namespace vgpu::formats {

// nearest: ties to even. away: nearest, ties away from zero (.rna).
enum class Round : uint8_t { nearest, zero, down, up, away };

// ieee: the largest exponent holds infinity and NaN. nan: all ones are NaN, there is no infinity. none: neither.
enum class Specials : uint8_t { ieee, nan, none };

template <int exponent_bits, int mantissa_bits, Specials specials>
struct Format {
    static constexpr int kExponentBits = exponent_bits, kMantissa = mantissa_bits, kBits = 1 + exponent_bits + mantissa_bits;
    static constexpr Specials kSpecials = specials;
    static constexpr int kBias = (1 << (exponent_bits - 1)) - 1;
    static constexpr int kMinExponent = 1 - kBias;  // of the smallest normal number
    static constexpr uint64_t kSign = uint64_t{1} << (kBits - 1);
    // The NaN that the hardware makes: positive, all ones. Without NaN: the largest number, which stands for it.
    static constexpr uint64_t kNan = kSign - 1;
    static constexpr uint64_t kInfinity = ((uint64_t{1} << exponent_bits) - 1) << mantissa_bits;  // ieee only
    static constexpr uint64_t kLargest = specials == Specials::ieee ? kInfinity - 1 : specials == Specials::nan ? kNan - 1 : kNan;
};
using F64 = Format<11, 52, Specials::ieee>;
using F32 = Format<8, 23, Specials::ieee>;
using TF32 = Format<8, 10, Specials::ieee>;  // 19 bits; a register holds them in its upper bits: tf32 << 13
using F16 = Format<5, 10, Specials::ieee>;
using BF16 = Format<8, 7, Specials::ieee>;
using E5M2 = Format<5, 2, Specials::ieee>;
using E4M3 = Format<4, 3, Specials::nan>;
using E3M2 = Format<3, 2, Specials::none>;
using E2M3 = Format<2, 3, Specials::none>;
using E2M1 = Format<2, 1, Specials::none>;

inline uint32_t bits_of(float x) { return std::bit_cast<uint32_t>(x); }
inline uint64_t bits_of(double x) { return std::bit_cast<uint64_t>(x); }
inline float as_float(uint32_t x) { return std::bit_cast<float>(x); }
inline double as_double(uint64_t x) { return std::bit_cast<double>(x); }

// The value of a bit pattern of F, which has at most 32 bits; bits above F's are ignored. A NaN becomes 0x7fffffff.
template <class F>
inline float decode(uint32_t x) {
    if constexpr (F::kBits == 32) {
        return as_float(x);
    } else if constexpr (F::kExponentBits == 8) {
        return as_float(x << (32 - F::kBits));  // a shorter float: NaN keeps its payload, as the hardware's shift does
    } else {
        // The fields moved to float's places are the value but for the bias, also where it is subnormal: a product restores it.
        constexpr float kScale = std::bit_cast<float>(static_cast<uint32_t>(127 + 127 - F::kBias) << 23);
        constexpr auto kInfinity = static_cast<uint32_t>(F::kInfinity), kNan = static_cast<uint32_t>(F::kNan);
        const uint32_t magnitude = x & (static_cast<uint32_t>(F::kSign) - 1);
        uint32_t bits = bits_of(as_float(magnitude << (23 - F::kMantissa)) * kScale);
        const uint32_t sign = (x & static_cast<uint32_t>(F::kSign)) << (32 - F::kBits);
        if constexpr (F::kSpecials == Specials::ieee) bits = magnitude >= kInfinity ? 0x7f800000u : bits;
        bits |= sign;
        if constexpr (F::kSpecials == Specials::ieee) bits = magnitude > kInfinity ? 0x7fffffffu : bits;
        if constexpr (F::kSpecials == Specials::nan) bits = magnitude == kNan ? 0x7fffffffu : bits;
        return as_float(bits);
    }
}

// (-1)^negative * mantissa * 2^exponent rounded to F. finite: what is too large becomes the largest number (.satfinite).
template <class F>
inline uint64_t encode(bool negative, uint64_t mantissa, int exponent, Round round, bool finite = false) {
    const uint64_t sign = negative ? F::kSign : 0;
    if (mantissa == 0) return sign;
    const int top = std::max(63 - std::countl_zero(mantissa) + exponent, F::kMinExponent);  // exponent of the leading bit
    const int dropped = top - F::kMantissa - exponent;                                      // bits below the result's last
    uint64_t kept = 0, rest = 0;  // rest: the dropped bits, moved to the top of the word
    if (dropped <= 0) {
        kept = mantissa << -dropped;
    } else if (dropped < 64) {
        kept = mantissa >> dropped;
        rest = mantissa << (64 - dropped);
    } else {
        rest = dropped == 64 ? mantissa : 1;  // far below half of the last place
    }
    constexpr uint64_t kHalf = uint64_t{1} << 63;
    bool up = false;
    switch (round) {
        case Round::nearest:
            up = rest > kHalf || (rest == kHalf && (kept & 1));
            break;
        case Round::away:
            up = rest >= kHalf;
            break;
        case Round::down:
            up = rest && negative;
            break;
        case Round::up:
            up = rest && !negative;
            break;
        case Round::zero:
            break;
    }
    // The leading bit, where there is one, counts as one step of the exponent, and so does a carry out of the mantissa.
    const uint64_t bits = (static_cast<uint64_t>(top - F::kMinExponent) << F::kMantissa) + kept + up;
    if (bits <= F::kLargest) return sign | bits;
    const bool outward = round == Round::nearest || round == Round::away || round == (negative ? Round::down : Round::up);
    return sign | (F::kSpecials == Specials::ieee && outward && !finite ? F::kInfinity : F::kLargest);
}

// NaN becomes F's own.
template <class F>
inline uint64_t encode(double value, Round round, bool finite = false) {
    const uint64_t bits = bits_of(value), fraction = bits & ((uint64_t{1} << 52) - 1);
    const bool negative = bits >> 63;
    const int field = static_cast<int>(bits >> 52 & 0x7ff);
    if (field == 0x7ff) {
        if (fraction) return F::kNan;
        return (negative ? F::kSign : 0) | (F::kSpecials == Specials::ieee && !finite ? F::kInfinity : F::kLargest);
    }
    const uint64_t leading = field ? uint64_t{1} << 52 : 0;
    return encode<F>(negative, fraction | leading, std::max(field, 1) - 1075, round, finite);
}

inline float f16_to_f32(uint32_t x) { return decode<F16>(x); }
inline float bf16_to_f32(uint32_t x) { return as_float(x << 16); }

// To nearest even.
inline uint32_t f32_to_f16(float value) {
    const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    // Beside 0.5 a float's last place is 2^-24, that of f16's subnormal numbers: the sum rounds there.
    const uint32_t subnormal = bits_of(as_float(magnitude) + 0.5f) - 0x3f000000;
    const uint32_t unbounded = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    const uint32_t normal = unbounded > 0x7c00 ? 0x7c00 : unbounded;
    const uint32_t rounded = (magnitude < 0x38800000 ? subnormal : normal) | sign;
    return magnitude > 0x7f800000 ? 0x7fff : rounded;
}

inline uint32_t f32_to_bf16(float value) {
    const uint32_t bits = bits_of(value);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fff : rounded;
}

// A subnormal float becomes a zero of its sign (.ftz).
inline float flush(float value) {
    const uint32_t bits = bits_of(value);
    return as_float(bits & 0x7f800000 ? bits : bits & 0x80000000);
}

// ue8m0: 2^(x - 127), 0xff is NaN; no sign, no zero. 2^-127 is a subnormal float.
inline float ue8m0_to_f32(uint32_t x) {
    x &= 0xff;
    return as_float(x == 0xff ? 0x7fffffff : x == 0 ? 0x00400000 : x << 23);
}

}  // namespace vgpu::formats
