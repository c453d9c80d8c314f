// The kernels of one SIMD level as a table, and the choice among the levels.
#pragma once

#include <cstdint>

#include "cpu/attention.h"
#include "cpu/product.h"

namespace llama_ext::cpu {

struct Kernels {
    const char* name;
    const ProductFn* products;  // [kFormats]
    ProductFn bf16_product;     // of BF16 weights and bf16 activations; null where the machine has no such dot product

    // x, weight (or null: all ones), out [n]: out = x / sqrt(mean(x^2) + eps) * weight, in float32 throughout
    void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* out);
    // x [n], n a multiple of 32 -> n / 32 blocks, `stride` apart; coarse: of one digit unless they stand out
    void (*quantize_q15)(const float* x, int64_t n, Q15Block* out, int64_t stride, bool coarse);
    // x [n] -> bf16_pairs(n) pairs, `stride` apart; to nearest, ties to even
    void (*round_bf16)(const float* x, int64_t n, Bf16Pair* out, int64_t stride);
    // gate, up, out [n]: out = gate / (1 + e^-gate) * up
    void (*silu_times)(const float* gate, const float* up, int64_t n, float* out);
    // x [n], n even: pairs (x[2i], x[2i+1]) rotated by the angle whose cosine and sine are cosine[i], sine[i]; in place
    void (*rotate)(float* x, const float* cosine, const float* sine, int64_t n);

    // p [lines][64] bytes: all its words added up, which is the fastest way there is to read memory (for probing bandwidth)
    uint64_t (*sum_lines)(const std::byte* p, int64_t lines);

    AppendFn append;
    AttendFn attend;
    MergeFn merge;
};

// Levels of this build that this machine can run, best first: a subset of avx512_bf16, avx512, avx2, portable.
// Null-terminated.
const Kernels* const* available_kernels();

// The level of that name, or of LLAMA_EXT_SIMD, or the best. Throws std::invalid_argument for one that is not available.
const Kernels& choose_kernels(const char* name = nullptr);

}  // namespace llama_ext::cpu
