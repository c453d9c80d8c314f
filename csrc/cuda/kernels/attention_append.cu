// Writes the keys and values of a step into the cache, in its format. A warp has a head's key or value of a row, a lane eight
// neighbours of it (attention_format.cuh).
#include "cuda/kernels/attention_format.cuh"
#include "cuda/kernels/attention_prefill.h"
#include "cuda/kernels/step.h"

namespace {

using namespace llama_ext::cuda;

template <typename F>
__device__ __forceinline__ void append(const float* qkv, const Step* step, const CacheState* cache, int heads, int kv_heads,
                                       int head_dim, int qk_norm, float qk_norm_eps) {
    const int lane = threadIdx.x % 32, units = head_dim / 8;
    const int head = blockIdx.y * kAppendWarps + threadIdx.x / 32;  // of the keys, then of the values
    const int64_t row = blockIdx.x;
    let_successor_start();
    wait_for_predecessor();
    if (row >= step->rows || head >= 2 * kv_heads) return;
    const bool is_key = head < kv_heads;
    const float4* const from = reinterpret_cast<const float4*>(qkv + (row * (heads + 2 * kv_heads) + heads + head) * head_dim);
    float x[8] = {};
    if (lane < units) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float4 four = from[F::piece(lane, units, i)];
            x[4 * i] = four.x, x[4 * i + 1] = four.y, x[4 * i + 2] = four.z, x[4 * i + 3] = four.w;
        }
    }
    if (is_key && qk_norm) {
        float squares = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; ++i) squares = fmaf(x[i], x[i], squares);
        const float norm = rsqrtf(warp_sum(squares) / static_cast<float>(head_dim) + qk_norm_eps);
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] *= norm;
    }
    __half scale;
    const typename F::Unit bits = F::narrow(x, &scale);
    if (lane >= units) return;
    const int64_t at = (is_key ? head : head - kv_heads) * cache->capacity + (step->position + row) % cache->capacity;
    char* const plane = reinterpret_cast<char*>(is_key ? cache->keys : cache->values);
    F::store(plane + at * head_dim * F::kBytes, lane, units, bits);
    if constexpr (F::kScaled) {
        if (lane % 4 == 0)
            reinterpret_cast<__half*>(is_key ? cache->key_scales : cache->value_scales)[at * (units / 4) + lane / 4] = scale;
    }
}

}  // namespace

// attention_append_{format of the cache}: qkv [max_rows, (heads + 2 kv_heads) * head_dim], step [1], cache [1]
//   -> slots (step->position + row) % capacity of cache->keys, ->values [kv_heads, capacity, head_dim] and their scales
// PRECOND: grid (max_rows, ceil(2 kv_heads / kAppendWarps)), block (32 * kAppendWarps); head_dim % 8 == 0 (q8_0: % 32), <= 256;
//          qkv and the cache on 16 bytes; step->rows <= capacity
#define LLAMA_EXT_APPEND(format, F)                                                                                      \
    extern "C" __global__ void __launch_bounds__(32 * kAppendWarps)                                                      \
        attention_append_##format(const float* qkv, const Step* step, const CacheState* cache, int heads, int kv_heads,  \
                                  int head_dim, int qk_norm, float qk_norm_eps) {                                        \
        append<F>(qkv, step, cache, heads, kv_heads, head_dim, qk_norm, qk_norm_eps);                                    \
    }

LLAMA_EXT_APPEND(f32, F32Cache)
LLAMA_EXT_APPEND(f16, F16Cache)
LLAMA_EXT_APPEND(bf16, Bf16Cache)
LLAMA_EXT_APPEND(q8_0, Q8Cache)
LLAMA_EXT_APPEND(fp8, Fp8Cache)
