// Writes a token's key and value into its slot of the cache, in the cache's format.
#include "cuda/kernels/device.cuh"

namespace {

__device__ __forceinline__ void narrow(float value, float* to) { *to = value; }
__device__ __forceinline__ void narrow(float value, __nv_bfloat16* to) { *to = __float2bfloat16_rn(value); }
__device__ __forceinline__ void narrow(float value, __half* to) { *to = __float2half_rn(value); }

template <typename T>
__device__ __forceinline__ void append(const float* k, const float* v, const int64_t* position, T* keys, T* values,
                                       int64_t capacity, int head_dim) {
    let_successor_start();
    wait_for_predecessor();
    const int64_t from = int64_t{blockIdx.x} * head_dim;
    const int64_t to = (blockIdx.x * capacity + *position % capacity) * head_dim;
    for (int d = threadIdx.x; d < head_dim; d += blockDim.x) {
        narrow(k[from + d], keys + to + d);
        narrow(v[from + d], values + to + d);
    }
}

}  // namespace

// attention_append_{type of the cache}:
//   k, v [kv_heads, head_dim], position [1] -> slot position % capacity of keys, values [kv_heads, capacity, head_dim]
// PRECOND: grid (kv_heads), block (any); *position >= 0
#define LLAMA_EXT_APPEND(name, T)                                                                                      \
    extern "C" __global__ void __launch_bounds__(256) attention_append_##name(                                         \
        const float* k, const float* v, const int64_t* position, T* keys, T* values, int64_t capacity, int head_dim) { \
        append(k, v, position, keys, values, capacity, head_dim);                                                      \
    }

LLAMA_EXT_APPEND(f32, float)
LLAMA_EXT_APPEND(bf16, __nv_bfloat16)
LLAMA_EXT_APPEND(f16, __half)
