// What the kernel files of one SIMD level define for its table in level.cpp.
#pragma once

#include "cpu/kernels.h"
#include "cpu/kernels/simd.h"

namespace llama_ext::cpu::LLAMA_EXT_LEVEL {

extern const ProductFn kProducts[kFormats], kBf16Product;
void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* out);
void quantize_q15(const float* x, int64_t n, Q15Block* out, int64_t stride, bool coarse);
void round_bf16(const float* x, int64_t n, Bf16Pair* out, int64_t stride);
void silu_times(const float* gate, const float* up, int64_t n, float* out);
void rotate(float* x, const float* cosine, const float* sine, int64_t n);
uint64_t sum_lines(const std::byte* p, int64_t lines);
void append(const CacheView& cache, int kv_head, int64_t slot, const float* k, const float* v);
void attend(const CacheView& cache, int kv_head, int64_t block, const Query* queries, int count, Partial* out);
void merge(Partial* total, const Partial& next, int head_dim);

extern const Kernels kKernels;

}  // namespace llama_ext::cpu::LLAMA_EXT_LEVEL
