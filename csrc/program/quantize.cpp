#include "program/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>

#include "program/half.h"

#if defined(__x86_64__) || defined(__i386__)
#define QUANTIZE_X86
#endif
// Everything between a level's entry and the arithmetic is inlined into the entry and so compiled for its instruction set.
#define QUANTIZE_INLINE static inline __attribute__((always_inline))

namespace llama_ext {
namespace {

// ---- Whole rows ----------------------------------------------------------------------------------------------------------

constexpr uint32_t kMagnitude = 0x7fffffffu, kInfinity = 0x7f800000u;
// f16 rounds what is smaller than this to a finite value.
constexpr float kF16Overflow = 65520.0f;

[[noreturn]] __attribute__((noinline)) void throw_not_finite(const float* source, int64_t cols) {
    int64_t i = 0;
    while (i < cols - 1 && std::isfinite(source[i])) ++i;
    throw std::invalid_argument("column " + std::to_string(i) + " is " + (std::isnan(source[i]) ? "NaN" : "infinite") +
                                "; only finite weights can be quantized");
}

[[noreturn]] __attribute__((noinline)) void throw_too_large(Format format, const float* source, int64_t cols) {
    float largest = 0;
    for (int64_t i = 0; i < cols; ++i) largest = std::max(largest, std::fabs(source[i]));
    char value[32];
    std::snprintf(value, sizeof value, "%g", static_cast<double>(largest));
    const char* why = format == Format::bf16  ? "rounds to infinity there; use F32"
                      : format == Format::f16 ? "holds up to 65504; use BF16 or F32"
                                              : "has scales in f16, which hold up to 65504; use BF16 or F32";
    throw std::invalid_argument("a weight of magnitude " + std::string(value) + " is too large for " +
                                std::string(info(format).name) + ", which " + why);
}

QUANTIZE_INLINE uint32_t bits_of(float x) { return __builtin_bit_cast(uint32_t, x); }

// As integers the magnitudes of floats order as they do, a NaN above all; and integer reductions are vectorised.
QUANTIZE_INLINE uint32_t largest_magnitude_bits(const float* x, int64_t n) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < n; ++i) largest = std::max(largest, bits_of(x[i]) & kMagnitude);
    return largest;
}

QUANTIZE_INLINE void store_u16(std::byte* to, uint16_t value) { std::memcpy(to, &value, sizeof value); }

// f16_from_f32 of a finite value below kF16Overflow, without branches.
QUANTIZE_INLINE uint16_t narrow_f16(float x) {
    const uint32_t magnitude = bits_of(x) & kMagnitude;
    const uint32_t subnormal = bits_of(__builtin_bit_cast(float, magnitude) + 0.5f) - 0x3f000000u;
    const uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
    return static_cast<uint16_t>((bits_of(x) >> 16 & 0x8000u) | (magnitude < 0x38800000u ? subnormal : normal));
}

// ---- Q8_0, Q4_0, Q4_1, Q5_0, Q5_1: blocks of 32 -------------------------------------------------------------------------------
// Each gives the magnitude of the largest number that it keeps in f16.

QUANTIZE_INLINE float reciprocal(float d) {
    const float r = d != 0 ? 1 / d : 0.0f;
    return std::fabs(r) < __builtin_inff() ? r : 0.0f;
}

QUANTIZE_INLINE float block_q8_0(const float* x, std::byte* out) {
    const float d = __builtin_bit_cast(float, largest_magnitude_bits(x, 32)) / 127;
    if (d >= kF16Overflow) return d;
    const float inverse = reciprocal(d);
    int8_t quants[32];
    for (int i = 0; i < 32; ++i) {
        // Halves away from zero; a magnitude's distance from the integer below it is exact.
        const float scaled = x[i] * inverse, magnitude = std::fabs(scaled);
        const int below = static_cast<int>(magnitude);
        const int rounded = below + (magnitude - static_cast<float>(below) >= 0.5f);
        quants[i] = static_cast<int8_t>(scaled < 0 ? -rounded : rounded);
    }
    store_u16(out, f16_from_f32(d));
    std::memcpy(out + 2, quants, sizeof quants);
    return d;
}

// quants [32] of 0 to 31: the low nibbles, element i beside i + 16, and the fifth bits, which only Q5_0 and Q5_1 have.
template <int kBits>
QUANTIZE_INLINE void store_quants(const uint8_t* quants, std::byte* out) {
    uint8_t nibbles[16];
    for (int i = 0; i < 16; ++i) nibbles[i] = static_cast<uint8_t>((quants[i] & 15) | quants[i + 16] << 4);
    if constexpr (kBits == 5) {
        uint32_t high = 0;
        for (int i = 0; i < 32; ++i) high |= static_cast<uint32_t>(quants[i] >> 4) << i;
        std::memcpy(out, &high, sizeof high);
        out += sizeof high;
    }
    std::memcpy(out, nibbles, sizeof nibbles);
}

// Q4_0 and Q5_0: the value of the largest magnitude, the first of several, is quant 0.
template <int kBits>
QUANTIZE_INLINE float block_symmetric(const float* x, std::byte* out) {
    constexpr int kHalf = 1 << (kBits - 1);
    const uint32_t largest = largest_magnitude_bits(x, 32);
    int at = 0;
    while ((bits_of(x[at]) & kMagnitude) != largest) ++at;
    // ggml's largest of a block of zeros is 0, whatever their signs.
    const float d = (largest ? x[at] : 0.0f) / -kHalf;
    if (std::fabs(d) >= kF16Overflow) return std::fabs(d);
    const float inverse = reciprocal(d);
    uint8_t quants[32];
    for (int i = 0; i < 32; ++i)
        quants[i] = static_cast<uint8_t>(std::min(2 * kHalf - 1, static_cast<int>(x[i] * inverse + (kHalf + 0.5f))));
    store_u16(out, f16_from_f32(d));
    store_quants<kBits>(quants, out + 2);
    return std::fabs(d);
}

// Floats as integers that order as they do, -0 below +0.
QUANTIZE_INLINE int32_t order_key(float x) {
    const int32_t bits = __builtin_bit_cast(int32_t, x);
    return bits ^ ((bits >> 31) & 0x7fffffff);
}
QUANTIZE_INLINE float float_of_key(int32_t key) { return __builtin_bit_cast(float, key ^ ((key >> 31) & 0x7fffffff)); }

// Q4_1 and Q5_1: the smallest value is quant 0, the largest the last.
template <int kBits>
QUANTIZE_INLINE float block_affine(const float* x, std::byte* out) {
    constexpr int kLargest = (1 << kBits) - 1;
    int32_t low = order_key(x[0]), high = low;
    for (int i = 1; i < 32; ++i) {
        low = std::min(low, order_key(x[i]));
        high = std::max(high, order_key(x[i]));
    }
    float minimum = float_of_key(low);
    if (minimum == 0) {  // the first zero's sign, as ggml has it
        int at = 0;
        while (x[at] != 0) ++at;
        minimum = x[at];
    }
    const float d = (float_of_key(high) - minimum) / kLargest, largest = std::max(d, std::fabs(minimum));
    if (largest >= kF16Overflow) return largest;
    const float inverse = reciprocal(d);
    uint8_t quants[32];
    for (int i = 0; i < 32; ++i)
        quants[i] = static_cast<uint8_t>(std::min(kLargest, static_cast<int>((x[i] - minimum) * inverse + 0.5f)));
    store_u16(out, f16_from_f32(d));
    store_u16(out + 2, f16_from_f32(minimum));
    store_quants<kBits>(quants, out + 4);
    return largest;
}

// MXFP8: the scale is 2^(floor(log2(max|x|)) - 8), so that the largest element lies in E4M3's last binade, [256, 512); what
// rounds beyond 448 there becomes 448. Below 2^-119 the scale stays at the least there is, 2^-127.
QUANTIZE_INLINE float block_mxfp8(const float* x, std::byte* out) {
    constexpr uint32_t kLastBinade = 8;
    const uint32_t exponent = largest_magnitude_bits(x, 32) >> 23, scale = exponent > kLastBinade ? exponent - kLastBinade : 0;
    out[0] = static_cast<std::byte>(scale);
    const float inverse = __builtin_bit_cast(float, (254 - scale) << 23);
    for (int i = 0; i < 32; ++i) out[1 + i] = static_cast<std::byte>(e4m3_from_f32(x[i] * inverse));
    return 0;
}

// ---- Q4_K, Q5_K, Q6_K: 256 weights under one or two f16 factors ---------------------------------------------------------------
// A lane is a sub-block, so that sums over a sub-block are sums of whole vectors, in the same order at every level.

constexpr int kLanes = 8;
using V = float __attribute__((vector_size(4 * kLanes)));
using I = int32_t __attribute__((vector_size(4 * kLanes)));

QUANTIZE_INLINE V all(float x) { return V{x, x, x, x, x, x, x, x}; }
QUANTIZE_INLINE V min(V a, V b) { return a < b ? a : b; }
QUANTIZE_INLINE V max(V a, V b) { return a > b ? a : b; }
QUANTIZE_INLINE V abs(V a) { return reinterpret_cast<V>(reinterpret_cast<I>(a) & static_cast<int32_t>(kMagnitude)); }
QUANTIZE_INLINE V clamp(V a, float low, float high) { return min(max(a, all(low)), all(high)); }
// To the nearest integer, |a| <= 2^22: at 1.5 x 2^23 a float's last bit is worth 1.
QUANTIZE_INLINE V round(V a) { return (a + 12582912.0f) - 12582912.0f; }
QUANTIZE_INLINE V reciprocal(V a) { return a != 0 ? 1.0f / a : all(0); }

// A block is scaled by a power of two so that its largest magnitude lies in [1, 2) (that of subnormals below it): no square or
// cube of a sub-block that matters leaves the range of float. A sub-block that spans less than this has no scale of its own:
constexpr float kNegligible = 1e-5f;

struct PowerOfTwo {
    float up, down;  // up = 1 / down
};
// Such that largest * down lies in [1, 2).
QUANTIZE_INLINE PowerOfTwo power_of_two(uint32_t largest_bits) {
    const int exponent = std::clamp(static_cast<int>(largest_bits >> 23) - 127, -126, 126);
    return {__builtin_bit_cast(float, static_cast<uint32_t>(127 + exponent) << 23),
            __builtin_bit_cast(float, static_cast<uint32_t>(127 - exponent) << 23)};
}

// A factor of which the largest multiple is `steps`, to f16, such that steps + 1/2 of it reach `largest`: where f16's steps are
// coarse (subnormals), it rounds up, else to nearest.
QUANTIZE_INLINE uint16_t f16_factor(float largest, float steps) {
    uint16_t half = f16_from_f32(largest / steps);
    if (std::fabs(f32_from_f16(half)) * (std::fabs(steps) + 0.5f) < std::fabs(largest)) ++half;
    return half;
}

QUANTIZE_INLINE float largest_lane(V a) {
    float largest = a[0];
    for (int j = 1; j < kLanes; ++j) largest = std::max(largest, a[j]);
    return largest;
}

// Scale and minimum <= 0 of x ~ scale * q + minimum, q an integer of 0 to kLargest, for the least sum of w (x - ...)^2 over a
// lane. For given q they follow from least squares; q is tried from steps around range / kLargest, then from the best so far,
// over and over (Lloyd's method).
template <int kLargest>
QUANTIZE_INLINE void fit_affine(const V* x, const V* w, V* best_scale, V* best_minimum) {
    constexpr int kCandidates = 8;
    constexpr int kRounds = 3;
    V sw = all(0), swx = all(0), swxx = all(0), low = all(0), high = x[0];
    for (int i = 0; i < 32; ++i) {
        const V wx = w[i] * x[i];
        sw += w[i];
        swx += wx;
        swxx += wx * x[i];
        low = min(low, x[i]);
        high = max(high, x[i]);
    }
    const V range = high - low;
    const I spans = range > kNegligible;
    V scale = spans ? range * (1.0f / kLargest) : all(0);
    V minimum = spans ? low : min(swx * reciprocal(sw), all(0));
    V least = spans ? all(__builtin_inff()) : all(-__builtin_inff());
    V from = minimum;
    for (int step = 0; step < kCandidates + kRounds; ++step) {
        const bool grid = step < kCandidates;
        const V inverse =
            grid ? (spans ? (kLargest - 0.9f + 0.27f * static_cast<float>(step)) / range : all(0)) : reciprocal(scale);
        if (!grid) from = minimum;
        V sq = all(0), sqq = all(0), sxq = all(0);
        for (int i = 0; i < 32; ++i) {
            const V q = round(clamp((x[i] - from) * inverse, 0, kLargest));
            const V wq = w[i] * q;
            sq += wq;
            sqq += wq * q;
            sxq += wq * x[i];
        }
        const V determinant = sw * sqq - sq * sq;
        const V over = reciprocal(determinant);
        V s = (sw * sxq - swx * sq) * over, m = (sqq * swx - sq * sxq) * over;
        const I positive = m > 0;
        s = positive ? sxq * reciprocal(sqq) : s;
        m = positive ? all(0) : m;
        const V error = swxx - s * sxq - m * swx;  // of a least squares solution
        const I better = (error < least) & (determinant > 0) & (s > 0);
        least = better ? error : least;
        scale = better ? s : scale;
        minimum = better ? m : minimum;
    }
    *best_scale = scale;
    *best_minimum = minimum;
}

template <int kBits>
QUANTIZE_INLINE float block_affine_k(const float* source, std::byte* out) {
    constexpr int kLargest = (1 << kBits) - 1;
    constexpr int kSteps = 63;
    constexpr size_t kBytes = kBits == 5 ? 176 : 144;
    const uint32_t largest_bits = largest_magnitude_bits(source, 256);
    std::memset(out, 0, kBytes);
    if (!largest_bits) return 0;
    const PowerOfTwo power = power_of_two(largest_bits);

    V x[32], w[32];
    for (int i = 0; i < 32; ++i)
        for (int j = 0; j < kLanes; ++j) x[i][j] = source[32 * j + i] * power.down;
    V squares = all(0);
    for (int i = 0; i < 32; ++i) squares += x[i] * x[i];
    V rms;
    for (int j = 0; j < kLanes; ++j) rms[j] = std::sqrt(squares[j] * (1.0f / 32));
    // An error matters more where the weight is large, and is not free where it is small.
    for (int i = 0; i < 32; ++i) w[i] = rms + abs(x[i]);

    V scale, minimum;
    fit_affine<kLargest>(x, w, &scale, &minimum);
    const float largest_scale = largest_lane(scale) * power.up, largest_minimum = largest_lane(-minimum) * power.up;
    const float largest = std::max(largest_scale, largest_minimum) / kSteps;
    if (largest >= kF16Overflow) return largest;
    const uint16_t d16 = f16_factor(largest_scale, kSteps), dmin16 = f16_factor(largest_minimum, kSteps);
    const float d = f32_from_f16(d16) * power.down, dmin = f32_from_f16(dmin16) * power.down;

    // The integers under d and dmin: those nearest to the fit, or neighbours that leave a smaller error together.
    const V scale0 = round(clamp(scale * (d > 0 ? 1 / d : 0.0f), 0, kSteps));
    const V minimum0 = round(clamp(-minimum * (dmin > 0 ? 1 / dmin : 0.0f), 0, kSteps));
    V least = all(__builtin_inff()), best_scale = scale0, best_minimum = minimum0;
    for (int step = 0; step < 9; ++step) {
        const V s = clamp(scale0 + static_cast<float>(step / 3 - 1), 0, kSteps);
        const V m = clamp(minimum0 + static_cast<float>(step % 3 - 1), 0, kSteps);
        const V ds = d * s, dm = dmin * m, inverse = reciprocal(ds);
        V error = all(0);
        for (int i = 0; i < 32; ++i) {
            const V q = round(clamp((x[i] + dm) * inverse, 0, kLargest));
            const V off = ds * q - dm - x[i];
            error += w[i] * off * off;
        }
        const I better = error < least;
        least = better ? error : least;
        best_scale = better ? s : best_scale;
        best_minimum = better ? m : best_minimum;
    }

    const V dm = dmin * best_minimum, inverse = reciprocal(d * best_scale);
    I quants[32];
    for (int i = 0; i < 32; ++i) quants[i] = __builtin_convertvector(round(clamp((x[i] + dm) * inverse, 0, kLargest)), I);

    uint8_t* p = reinterpret_cast<uint8_t*>(out);
    store_u16(out, d16);
    store_u16(out + 2, dmin16);
    // As unpack_k_scale (format.h) reads them.
    for (int j = 0; j < 4; ++j) {
        const int s = static_cast<int>(best_scale[j]), m = static_cast<int>(best_minimum[j]);
        const int s4 = static_cast<int>(best_scale[j + 4]), m4 = static_cast<int>(best_minimum[j + 4]);
        p[4 + j] = static_cast<uint8_t>(s | (s4 >> 4) << 6);
        p[8 + j] = static_cast<uint8_t>(m | (m4 >> 4) << 6);
        p[12 + j] = static_cast<uint8_t>((s4 & 15) | (m4 & 15) << 4);
    }
    uint8_t* nibbles = p + kBytes - 128;
    for (int i = 0; i < 32; ++i) {
        for (int j = 0; j < 4; ++j)
            nibbles[32 * j + i] = static_cast<uint8_t>((quants[i][2 * j] & 15) | (quants[i][2 * j + 1] & 15) << 4);
        if constexpr (kBits == 5) {
            int high = 0;
            for (int j = 0; j < 8; ++j) high |= (quants[i][j] >> 4) << j;
            p[16 + i] = static_cast<uint8_t>(high);
        }
    }
    return largest;
}

// The scale, of either sign, of x ~ scale * q, q an integer of -32 to 31, for the least sum of w (x - scale q)^2 over a lane. The
// largest magnitude is near quant -32.
QUANTIZE_INLINE V fit_symmetric(const V* x, const V* w) {
    constexpr int kCandidates = 7;
    constexpr int kRounds = 2;
    V low = x[0], high = x[0];
    for (int i = 1; i < 16; ++i) {
        low = min(low, x[i]);
        high = max(high, x[i]);
    }
    const V extreme = high > -low ? high : low;
    const I spans = abs(extreme) > kNegligible;
    V scale = all(0), most = all(0);
    for (int step = 0; step < kCandidates + kRounds; ++step) {
        const V inverse =
            step < kCandidates ? (spans ? (-32.9f + 0.3f * static_cast<float>(step)) / extreme : all(0)) : reciprocal(scale);
        V sqq = all(0), sxq = all(0);
        for (int i = 0; i < 16; ++i) {
            const V q = round(clamp(x[i] * inverse, -32, 31));
            const V wq = w[i] * q;
            sqq += wq * q;
            sxq += wq * x[i];
        }
        // The error is sum w x^2 less this.
        const V s = sxq * reciprocal(sqq), gain = s * sxq;
        const I better = gain > most;
        most = better ? gain : most;
        scale = better ? s : scale;
    }
    return scale;
}

QUANTIZE_INLINE float block_q6_k(const float* source, std::byte* out) {
    const uint32_t largest_bits = largest_magnitude_bits(source, 256);
    std::memset(out, 0, 210);
    if (!largest_bits) return 0;
    const PowerOfTwo power = power_of_two(largest_bits);

    V x[2][16], w[2][16], scale[2];
    for (int half = 0; half < 2; ++half) {
        for (int i = 0; i < 16; ++i) {
            for (int j = 0; j < kLanes; ++j) x[half][i][j] = source[128 * half + 16 * j + i] * power.down;
            w[half][i] = x[half][i] * x[half][i];
        }
        scale[half] = fit_symmetric(x[half], w[half]);
    }
    const V low = min(scale[0], scale[1]), high = max(scale[0], scale[1]);
    const float least_scale = -largest_lane(-low), most_scale = largest_lane(high);
    const float extreme = (most_scale > -least_scale ? most_scale : least_scale) * power.up;
    const float largest = std::fabs(extreme) / 128;
    if (largest >= kF16Overflow) return largest;
    const uint16_t d16 = f16_factor(extreme, -128);
    const float d = f32_from_f16(d16) * power.down;

    uint8_t* p = reinterpret_cast<uint8_t*>(out);
    for (int half = 0; half < 2; ++half) {
        const V scale0 = round(clamp(scale[half] * (d != 0 ? 1 / d : 0.0f), -128, 127));
        V least = all(__builtin_inff()), best = scale0;
        for (int step = -1; step <= 1; ++step) {
            const V s = clamp(scale0 + static_cast<float>(step), -128, 127);
            const V ds = d * s, inverse = reciprocal(ds);
            V error = all(0);
            for (int i = 0; i < 16; ++i) {
                const V off = ds * round(clamp(x[half][i] * inverse, -32, 31)) - x[half][i];
                error += w[half][i] * off * off;
            }
            const I better = error < least;
            least = better ? error : least;
            best = better ? s : best;
        }
        const V inverse = reciprocal(d * best);
        int32_t quants[128];
        for (int i = 0; i < 16; ++i) {
            const I q = __builtin_convertvector(round(clamp(x[half][i] * inverse, -32, 31)), I) + 32;
            for (int j = 0; j < kLanes; ++j) quants[16 * j + i] = q[j];
        }
        for (int j = 0; j < kLanes; ++j) p[192 + 8 * half + j] = static_cast<uint8_t>(static_cast<int8_t>(best[j]));
        for (int i = 0; i < 32; ++i) {
            const int q[4] = {quants[i], quants[32 + i], quants[64 + i], quants[96 + i]};
            p[64 * half + i] = static_cast<uint8_t>((q[0] & 15) | (q[2] & 15) << 4);
            p[64 * half + 32 + i] = static_cast<uint8_t>((q[1] & 15) | (q[3] & 15) << 4);
            p[128 + 32 * half + i] = static_cast<uint8_t>(q[0] >> 4 | q[1] >> 4 << 2 | q[2] >> 4 << 4 | q[3] >> 4 << 6);
        }
    }
    store_u16(out + 208, d16);
    return largest;
}

// ---- Dispatch ------------------------------------------------------------------------------------------------------------

// The magnitude of the largest number that is kept in f16.
template <float (*kBlock)(const float*, std::byte*), int kBlockBytes, int kBlockSize = 32>
QUANTIZE_INLINE float blocks(const float* x, int64_t cols, std::byte* out) {
    float largest = 0;
    for (int64_t i = 0; i < cols; i += kBlockSize, out += kBlockBytes) largest = std::max(largest, kBlock(x + i, out));
    return largest;
}

struct Outcome {
    bool finite, fits;
};

QUANTIZE_INLINE Outcome quantize_row(Format format, const float* x, int64_t cols, std::byte* out) {
    const uint32_t largest_bits = largest_magnitude_bits(x, cols);
    if (largest_bits >= kInfinity) return {false, false};
    float kept = 0;
    switch (format) {
        case Format::f32:
            std::memcpy(out, x, static_cast<size_t>(cols) * 4);
            break;
        case Format::f16:
            kept = __builtin_bit_cast(float, largest_bits);
            for (int64_t i = 0; i < cols; ++i) store_u16(out + 2 * i, narrow_f16(x[i]));
            break;
        case Format::bf16:
            if (largest_bits >= 0x7f7f8000u) return {true, false};  // rounds to infinity
            for (int64_t i = 0; i < cols; ++i) {
                const uint32_t bits = bits_of(x[i]);
                store_u16(out + 2 * i, static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16));
            }
            break;
        case Format::q8_0:
            kept = blocks<block_q8_0, 34>(x, cols, out);
            break;
        case Format::q4_0:
            kept = blocks<block_symmetric<4>, 18>(x, cols, out);
            break;
        case Format::q4_1:
            kept = blocks<block_affine<4>, 20>(x, cols, out);
            break;
        case Format::q5_0:
            kept = blocks<block_symmetric<5>, 22>(x, cols, out);
            break;
        case Format::q5_1:
            kept = blocks<block_affine<5>, 24>(x, cols, out);
            break;
        case Format::q4_k:
            kept = blocks<block_affine_k<4>, 144, 256>(x, cols, out);
            break;
        case Format::q5_k:
            kept = blocks<block_affine_k<5>, 176, 256>(x, cols, out);
            break;
        case Format::q6_k:
            kept = blocks<block_q6_k, 210, 256>(x, cols, out);
            break;
        case Format::mxfp8:
            kept = blocks<block_mxfp8, 33>(x, cols, out);
            break;
    }
    return {true, kept < kF16Overflow};
}

#define QUANTIZE_ROW(level, attribute)                                                           \
    attribute Outcome row_##level(Format format, const float* x, int64_t cols, std::byte* out) { \
        return quantize_row(format, x, cols, out);                                               \
    }
QUANTIZE_ROW(portable, )
#if defined(QUANTIZE_X86)
QUANTIZE_ROW(avx2, __attribute__((target("avx2"))))
QUANTIZE_ROW(avx512, __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))))
#endif
#undef QUANTIZE_ROW

using RowFn = Outcome (*)(Format, const float*, int64_t, std::byte*);

RowFn choose_row(QuantizeLevel level) {
#if defined(QUANTIZE_X86)
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (level >= QuantizeLevel::avx512 && avx512) return row_avx512;
    if (level >= QuantizeLevel::avx2 && __builtin_cpu_supports("avx2")) return row_avx2;
#else
    static_cast<void>(level);
#endif
    return row_portable;
}

}  // namespace

QuantizeLevel quantize_level(std::string_view simd) {
    if (simd.starts_with("avx512")) return QuantizeLevel::avx512;
    return simd == "avx2" ? QuantizeLevel::avx2 : QuantizeLevel::portable;
}

void require_finite(const float* source, int64_t cols) {
    if (largest_magnitude_bits(source, cols) >= kInfinity) throw_not_finite(source, cols);
}

void require_whole_blocks(Format format, int64_t cols) {
    const FormatInfo& f = info(format);
    if (cols >= 0 && cols % f.block == 0) return;
    throw std::invalid_argument(std::to_string(cols) + " columns do not fill " + std::string(f.name) + "'s blocks of " +
                                std::to_string(f.block) + "; use " +
                                (cols >= 0 && cols % 32 == 0 ? "Q8_0, Q5_1, Q5_0, Q4_1 or Q4_0, whose blocks hold 32, or F16"
                                                             : "F16, BF16 or F32, which take any number"));
}

void quantize(Format format, const float* source, int64_t cols, std::byte* out, QuantizeLevel level) {
    require_whole_blocks(format, cols);
    const Outcome outcome = choose_row(level)(format, source, cols, out);
    if (!outcome.finite) throw_not_finite(source, cols);
    if (!outcome.fits) throw_too_large(format, source, cols);
}

}  // namespace llama_ext
