// What floating-point instructions of several widths have in common, branch-free for loops over lanes.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "alu/formats.h"

namespace vgpu::real {

inline bool is_nan(float x) { return (formats::bits_of(x) & 0x7fffffff) > 0x7f800000; }

// The hardware has one f32 NaN.
inline float canonical(float x) { return is_nan(x) ? formats::as_float(0x7fffffff) : x; }

// f64 keeps the payload of a NaN: here of the first among the operands, whatever order the compiler puts them in.
template <class... A>
inline double first_nan(double result, double a, A... rest) {
    if constexpr (sizeof...(rest) > 0) result = first_nan(result, rest...);
    return a != a ? formats::as_double(formats::bits_of(a) | uint64_t{1} << 51) : result;
}

// .sat: [0, 1]; NaN and -0 become +0.
inline float saturate(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }

template <bool ftz>
inline float input(float x) {
    return ftz ? formats::flush(x) : x;
}
template <bool ftz, bool sat>
inline float output(float x) {
    const float y = ftz ? formats::flush(x) : x;
    return sat ? saturate(y) : canonical(y);
}

// Integers in the order of floats, -0 below +0.
inline int32_t order(float x) {
    const int32_t b = std::bit_cast<int32_t>(x);
    return b ^ (b >> 31 & 0x7fffffff);
}
inline int64_t order(double x) {
    const int64_t b = std::bit_cast<int64_t>(x);
    return b ^ (b >> 63 & INT64_MAX);
}

// The smaller or larger; of a number and a NaN the number, or with `nan` the NaN.
template <bool larger, bool nan = false>
inline float pick(float a, float b) {
    const bool first = larger ? order(a) > order(b) : order(a) < order(b);
    float d = first ? a : b;
    d = is_nan(a) ? (nan ? a : b) : d;
    d = is_nan(b) ? (nan ? b : a) : d;
    return canonical(d);
}
template <bool larger>
inline double pick(double a, double b) {
    const bool first = larger ? order(a) > order(b) : order(a) < order(b);
    double d = first ? a : b;
    d = a != a ? b : d;
    d = b != b ? a : d;
    return d != d ? first_nan(d, a, b) : d;
}

// As the modifiers of min and max say, for values already flushed.
struct MinMax {
    bool larger, nan, xorsign, abs;
    float operator()(float a, float b) const {
        const uint32_t sign = (formats::bits_of(a) ^ formats::bits_of(b)) & 0x80000000;
        if (abs) {
            a = formats::as_float(formats::bits_of(a) & 0x7fffffff);
            b = formats::as_float(formats::bits_of(b) & 0x7fffffff);
        }
        float d = larger ? nan ? pick<true, true>(a, b) : pick<true>(a, b) : nan ? pick<false, true>(a, b) : pick<false>(a, b);
        if (xorsign && !is_nan(d)) d = formats::as_float((formats::bits_of(d) & 0x7fffffff) | sign);
        return d;
    }
};

// c ? a : b on bits: the compiler would move what only one of them needs into a branch, and such loops stay scalar.
inline uint32_t choose(bool c, uint32_t a, uint32_t b) { return b ^ ((a ^ b) & (0 - static_cast<uint32_t>(c))); }
inline uint64_t choose(bool c, uint64_t a, uint64_t b) { return b ^ ((a ^ b) & (0 - static_cast<uint64_t>(c))); }
inline double choose(bool c, double a, double b) {
    return formats::as_double(choose(c, formats::bits_of(a), formats::bits_of(b)));
}

// `rounded` is an exact result rounded to nearest, `rest` what it lacks: rounded to odd instead, so that a further rounding, to
// at least two bits less, is as if it were the only one. The rest is ignored if `rounded` is no finite number.
inline float to_odd(float rounded, float rest) {
    const uint32_t bits = formats::bits_of(rounded), other = formats::bits_of(rest);
    const uint32_t inexact = std::min(other & 0x7fffffff, 1u) & ~bits, step = 1 - 2 * ((bits ^ other) >> 31);  // toward the rest
    const uint32_t odd = bits + (step & (0 - inexact));
    return formats::as_float((bits & 0x7f800000) == 0x7f800000 ? bits : odd);
}
inline double to_odd(double rounded, double rest) {
    const uint64_t bits = formats::bits_of(rounded), other = formats::bits_of(rest);
    const uint64_t inexact = std::min(other & INT64_MAX, uint64_t{1}) & ~bits, step = 1 - 2 * ((bits ^ other) >> 63);
    const uint64_t odd = bits + (step & (0 - inexact));
    return formats::as_double((bits & 0x7ff0000000000000) == 0x7ff0000000000000 ? bits : odd);
}

// a + b rounded to odd: the rest is what Knuth's sum finds.
template <class T>
inline T add_to_odd(T a, T b) {
    const T sum = a + b, part = sum - a;
    return to_odd(sum, (a - (sum - part)) + (b - part));
}

// A double as a float rounded to odd.
inline float narrow_to_odd(double x) {
    const float f = static_cast<float>(x);
    const uint64_t back = formats::bits_of(static_cast<double>(f)) & INT64_MAX, exact = formats::bits_of(x) & INT64_MAX;
    const uint32_t above = back > exact, inexact = back != exact;
    return formats::as_float((formats::bits_of(f) - above) | inexact);
}

// ---- approximate functions, computed in double and rounded: closer than the hardware's, never bit for bit the same ----

inline double exp2(double x) {
    const double low = x > -1000 ? x : -1000, y = low < 1000 ? low : 1000;  // NaN: a number
    const double n = std::nearbyint(y), t = (y - n) * 0.69314718055994530942;
    double p = 1.0 / 39916800;
    constexpr double kFactorials[] = {3628800, 362880, 40320, 5040, 720, 120, 24, 6, 2, 1, 1};
    for (const double factorial : kFactorials) p = p * t + 1.0 / factorial;
    const double scale = formats::as_double(static_cast<uint64_t>(static_cast<int64_t>(n) + 1023) << 52);
    return choose(x != x, x, p * scale);
}

// Of a float's value.
inline double log2(double x) {
    const uint64_t bits = formats::bits_of(x), half = formats::bits_of(0.70710678118654752440);
    const int64_t exponent = static_cast<int64_t>(bits - half) >> 52;  // so that the mantissa lies in [sqrt(1/2), sqrt(2))
    const double m = formats::as_double(bits - (static_cast<uint64_t>(exponent) << 52));
    const double s = (m - 1.0) / (m + 1.0), s2 = s * s;
    double p = 1.0 / 17;
    constexpr double kOdd[] = {15, 13, 11, 9, 7, 5, 3, 1};
    for (const double k : kOdd) p = p * s2 + 1.0 / k;
    const double infinity = formats::as_double(0x7ff0000000000000);
    double value = static_cast<double>(exponent) + p * s * 2.88539008177792681472;
    value = choose(x == infinity, infinity, value);
    value = choose(x == 0, -infinity, value);
    return choose(!(x >= 0), formats::as_double(0x7ff8000000000000), value);
}

inline double tanh(double x) {
    const double low = x > -40 ? x : -40, y = low < 40 ? low : 40;
    const double large = 1 - 2 / (exp2(y * 2.88539008177792681472) + 1), x2 = x * x;
    const double small = x * (1 + x2 * (-1.0 / 3 + x2 * (2.0 / 15 + x2 * (-17.0 / 315 + x2 * (62.0 / 2835)))));
    return choose(x != x, x, choose(x2 < 0.0016, small, large));
}

}  // namespace vgpu::real
