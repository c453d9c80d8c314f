// What it means to sample a token, defined once. Everything here is integer arithmetic or single IEEE float32
// operations rounded to nearest, so a CPU, a GPU and numpy turn identical logits into identical ids. The
// readable version of the same definition is `sample_reference` in llama_ext/sampling.py; tests hold both to
// each other.
//
// Input: float32 logits [vocab], a history of token ids, parameters, the position of the token being drawn,
// and a draw index (for a caller that needs several independent draws at one position).
//
//  1. Penalty. Each distinct id of the history: logit > 0 ? logit / p : logit * p, in float32 (Keskar et al.
//  2019).
//     A NaN among the logits is an error. Below, "logit" is the penalised one and `max` the largest.
//  2. Temperature 0 is greedy: the lowest id among the largest logits.
//  3. Weight. z = (logit - max) * inverse_temperature in float32, 0 where logit == max (so infinities behave:
//  +inf
//     shares everything among its equals, -inf gets nothing unless all are -inf). w = floor(2^40 * E(z))
//     where E is `exponential` below; w = 0 unless z >= kZeroBelow. A sum of integers has no order: any
//     parallel order will do.
//  4. Top-k keeps the first k by (logit descending, id ascending); 0 keeps all.
//  5. Top-p keeps, in the same order, the shortest prefix whose weight reaches ceil(total * top_p)
//  (`top_p_target`),
//     where total is the weight of what top-k kept and top_p is in units of 2^-32.
//  6. Min-p keeps w >= ceil(min_p * 2^40). The largest weight is exactly 2^40, so at least one token always
//  survives.
//  7. Draw. r = the low 64 bits of philox(seed, position, draw); threshold = the high 64 bits of r * (sum of
//  the
//     survivors); the answer is the first survivor in increasing id whose cumulative weight exceeds the
//     threshold.
//
// Why float32 in step 3: logits are float32, so at a magnitude of 20 they carry a relative error of 1e-6 into
// any exponential; more digits there are not information, and float64 runs at 1/64 of the rate on consumer
// GPUs. The 40 fractional bits are what matters: a tail of 2^18 tokens loses less than 2^-22 of the largest
// weight to the floor.
//
// A compiler must not fuse a product and a sum: build with -ffp-contract=off (device code uses the _rn
// intrinsics).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "program/philox.h"

namespace llama_ext {

struct SamplingParams {
    double temperature = 1.0;         // >= 0, finite; 0 is greedy
    int64_t top_k = 0;                // >= 0; 0 is off
    double top_p = 1.0;               // (0, 1]
    double min_p = 0.0;               // [0, 1)
    double repetition_penalty = 1.0;  // [1e-6, 1e6]; 1 is off
    uint64_t seed = 0;
};

// The parameters as the arithmetic uses them: what a GPU keeps in device memory.
struct SamplingConstants {
    uint64_t seed;
    uint64_t top_p;             // in units of 2^-32, 1..2^32; 2^32 is off
    uint64_t min_weight;        // 0..2^40; 0 is off
    float inverse_temperature;  // may be +inf (a temperature below 2^-128) or 0 (an enormous one)
    float repetition_penalty;
    uint32_t top_k;  // 0 is off
    uint32_t greedy;
};

constexpr uint64_t kWeightOne = uint64_t{1} << 40;  // the weight of the largest logit
constexpr uint64_t kTopPOne = uint64_t{1} << 32;
constexpr float kZeroBelow = -27.75f;              // exp(-27.73) < 2^-40
constexpr uint32_t kMaxVocab = uint32_t{1} << 22;  // keeps every sum below 2^63
constexpr int32_t kSampleNan = -1;                 // the logits hold a NaN
constexpr int32_t kSampleBadHistory = -2;          // the history holds an id outside the vocabulary

// nullptr, or one sentence about the first parameter that is out of range.
inline const char* check(const SamplingParams& p) {
    if (!(p.temperature >= 0.0) || !std::isfinite(p.temperature)) return "temperature must be a finite number of at least 0";
    if (p.top_k < 0 || p.top_k > INT32_MAX) return "top_k must be an integer from 0 to 2147483647";
    if (!(p.top_p > 0.0 && p.top_p <= 1.0)) return "top_p must be above 0 and at most 1";
    if (!(p.min_p >= 0.0 && p.min_p < 1.0)) return "min_p must be at least 0 and below 1";
    if (!(p.repetition_penalty >= 1e-6 && p.repetition_penalty <= 1e6)) return "repetition_penalty must be from 1e-6 to 1e6";
    return nullptr;
}

// Valid parameters -> constants. On the host, once a request.
inline SamplingConstants prepare(const SamplingParams& p) {
    SamplingConstants c{};
    c.seed = p.seed;
    const double scaled = std::floor(p.top_p * 4294967296.0 + 0.5);
    c.top_p = scaled < 1.0 ? 1 : static_cast<uint64_t>(scaled);
    c.min_weight = static_cast<uint64_t>(std::ceil(p.min_p * 1099511627776.0));
    c.greedy = p.temperature == 0.0;
    // A conversion of a double beyond float's range is undefined in C++, so the overflow to infinity is
    // spelled out.
    const double inverse = c.greedy ? 1.0 : 1.0 / p.temperature;
    c.inverse_temperature = inverse > 3.4028234663852886e38 ? HUGE_VALF : static_cast<float>(inverse);
    c.repetition_penalty = static_cast<float>(p.repetition_penalty);
    c.top_k = static_cast<uint32_t>(p.top_k);
    return c;
}

// One float32 operation, rounded to nearest, never fused with its neighbour.
#ifdef __CUDA_ARCH__
__device__ inline float mul_rn(float a, float b) { return __fmul_rn(a, b); }
__device__ inline float add_rn(float a, float b) { return __fadd_rn(a, b); }
__device__ inline float div_rn(float a, float b) { return __fdiv_rn(a, b); }
#else
LLAMA_EXT_HD inline float mul_rn(float a, float b) { return a * b; }
LLAMA_EXT_HD inline float add_rn(float a, float b) { return a + b; }
LLAMA_EXT_HD inline float div_rn(float a, float b) { return a / b; }
#endif

LLAMA_EXT_HD inline float penalise(float logit, float penalty) {
    return logit > 0.0f ? div_rn(logit, penalty) : mul_rn(logit, penalty);
}

// E(z) for kZeroBelow <= z <= 0, as mantissa * 2^(-24 - shift): Cody and Waite's reduction and Cephes'
// polynomial. About 1 ulp of float32 away from exp(z); E(0) is exactly 1.
struct Exponential {
    int32_t mantissa;  // E scaled into about [2^23.5, 2^24.5]
    int32_t shift;     // 0..40
};
LLAMA_EXT_HD inline Exponential exponential(float z) {
    const float round = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, to even
    const float n = add_rn(add_rn(mul_rn(z, 1.44269504088896341f), round), -round);
    float r = add_rn(z, mul_rn(n, -0.693359375f));  // an exact product: the constant has 9 bits
    r = add_rn(r, mul_rn(n, 2.12194440e-4f));       // ln 2 = 0.693359375 - 2.12194440e-4
    float y = 1.9875691500e-4f;
    y = add_rn(mul_rn(y, r), 1.3981999507e-3f);
    y = add_rn(mul_rn(y, r), 8.3334519073e-3f);
    y = add_rn(mul_rn(y, r), 4.1665795894e-2f);
    y = add_rn(mul_rn(y, r), 1.6666665459e-1f);
    y = add_rn(mul_rn(y, r), 5.0000001201e-1f);
    y = add_rn(add_rn(mul_rn(y, mul_rn(r, r)), r), 1.0f);
    return {static_cast<int32_t>(mul_rn(y, 16777216.0f)), -static_cast<int32_t>(n)};  // both conversions are exact
}

LLAMA_EXT_HD inline int32_t bits_of(float x) {
    int32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

LLAMA_EXT_HD inline float float_of(int32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// The next two choose with masks because a conditional around float arithmetic keeps GCC from vectorising it:
// unless -fno-trapping-math says otherwise, what is not chosen must not be computed.

// logit == max ? 0 : (logit - max) * inverse_temperature
LLAMA_EXT_HD inline float scaled_logit(float logit, float max, float inverse_temperature) {
    return float_of(bits_of(mul_rn(add_rn(logit, -max), inverse_temperature)) & -static_cast<int32_t>(logit != max));
}

// E(z), with a mantissa of 0 unless z >= kZeroBelow; a NaN (infinity times an inverse temperature of 0) is
// below.
LLAMA_EXT_HD inline Exponential exponential_or_zero(float z) {
    const int32_t in = -static_cast<int32_t>(z >= kZeroBelow);
    Exponential e = exponential(float_of(bits_of(z) & in));
    e.mantissa &= in;
    return e;
}

LLAMA_EXT_HD inline uint64_t weight(Exponential e) {
    return (static_cast<uint64_t>(static_cast<uint32_t>(e.mantissa)) << 16) >> e.shift;
}

LLAMA_EXT_HD inline uint64_t weight(float z) { return weight(exponential_or_zero(z)); }

// Maps a float that is no NaN to a signed integer in the same order; -0 and +0 are equal.
LLAMA_EXT_HD inline int32_t order_key(float x) {
    const int32_t bits = bits_of(add_rn(x, 0.0f));  // -0 + 0 = +0
    return bits ^ static_cast<int32_t>(static_cast<uint32_t>(bits >> 31) >> 1);
}

LLAMA_EXT_HD inline float from_order_key(int32_t key) {
    return float_of(key ^ static_cast<int32_t>(static_cast<uint32_t>(key >> 31) >> 1));
}

// A token's place in (logit descending, id ascending): the smaller, the better.
LLAMA_EXT_HD inline uint64_t rank(float logit, int32_t max_key, uint32_t id) {
    const uint32_t below = static_cast<uint32_t>(max_key) - static_cast<uint32_t>(order_key(logit));
    return (static_cast<uint64_t>(below) << 32) | id;
}

// ceil(total * top_p / 2^32) for total < 2^63, without a 128-bit type.
LLAMA_EXT_HD inline uint64_t top_p_target(uint64_t total, uint64_t top_p) {
    return (total >> 32) * top_p + (((total & 0xFFFFFFFFu) * top_p + 0xFFFFFFFFu) >> 32);
}

// The high 64 bits of a * b.
LLAMA_EXT_HD inline uint64_t mul_high(uint64_t a, uint64_t b) {
    const uint64_t a0 = a & 0xFFFFFFFFu, a1 = a >> 32, b0 = b & 0xFFFFFFFFu, b1 = b >> 32;
    const uint64_t middle = a1 * b0 + ((a0 * b0) >> 32);
    return a1 * b1 + (middle >> 32) + (((middle & 0xFFFFFFFFu) + a0 * b1) >> 32);
}

// The survivors' total (> 0) -> a threshold in [0, total).
LLAMA_EXT_HD inline uint64_t draw_threshold(uint64_t seed, uint64_t position, uint64_t draw, uint64_t total) {
    const Philox4 x = philox(seed, position, draw);
    return mul_high(static_cast<uint64_t>(x.word[1]) << 32 | x.word[0], total);
}

}  // namespace llama_ext
