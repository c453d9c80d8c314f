// y = x / sqrt(mean(x^2) + eps) * weight, a row of x a block.
//
// A thread keeps the first kHeld pieces of its share of the row in registers, so that rows of up to 4 * kHeld * blockDim.x values
// are read once; what is longer is read again. The sum runs in an order that depends on n and blockDim.x alone.
#include "cuda/kernels/device.cuh"

namespace {

constexpr int kHeld = 4;

__device__ __forceinline__ float square(float v) { return v * v; }
__device__ __forceinline__ float square(float4 v) { return v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w; }

__device__ __forceinline__ float times(float v, float scale) { return v * scale; }
__device__ __forceinline__ float4 times(float4 v, float scale) {
    return make_float4(v.x * scale, v.y * scale, v.z * scale, v.w * scale);
}

__device__ __forceinline__ float times(float v, float scale, float w) { return v * scale * w; }
__device__ __forceinline__ float4 times(float4 v, float scale, float4 w) {
    return make_float4(v.x * scale * w.x, v.y * scale * w.y, v.z * scale * w.z, v.w * scale * w.w);
}

// The sum over the block, in every thread.
__device__ __forceinline__ float block_sum(float value) {
    __shared__ float of_warp[32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    value = warp_sum(value);
    if (lane == 0) of_warp[warp] = value;
    __syncthreads();
    return warp_sum(lane < warps ? of_warp[lane] : 0.0f);
}

// Piece: float, or float4 for 16-byte accesses.  x, y [pieces] of this block's row, weight [pieces] or null
template <typename Piece>
__device__ __forceinline__ void normalise(const Piece* x, const Piece* weight, Piece* y, int64_t pieces, int64_t n, float eps) {
    const int64_t first = threadIdx.x, stride = blockDim.x;
    let_successor_start();
    wait_for_predecessor();
    Piece held[kHeld];
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
        const int64_t at = first + i * stride;
        if (at < pieces) {
            held[i] = x[at];
            sum += square(held[i]);
        }
    }
    for (int64_t at = first + kHeld * stride; at < pieces; at += stride) sum += square(x[at]);
    const float scale = rsqrtf(block_sum(sum) / static_cast<float>(n) + eps);
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
        const int64_t at = first + i * stride;
        if (at < pieces) y[at] = weight ? times(held[i], scale, weight[at]) : times(held[i], scale);
    }
    for (int64_t at = first + kHeld * stride; at < pieces; at += stride)
        y[at] = weight ? times(x[at], scale, weight[at]) : times(x[at], scale);
}

}  // namespace

// x [rows, n], weight [n] or null -> y [rows, n], which may be x
// PRECOND: grid (rows), block (a multiple of 32, up to 1024); n % 4 == 0 and every pointer on 16 bytes
extern "C" __global__ void __launch_bounds__(1024) rms_norm(const float* x, const float* weight, float* y, int64_t n, float eps) {
    const int64_t row = blockIdx.x * n;
    normalise(reinterpret_cast<const float4*>(x + row), reinterpret_cast<const float4*>(weight),
              reinterpret_cast<float4*>(y + row), n / 4, n, eps);
}

// The same for any n and any float pointer.
// PRECOND: grid (rows), block (a multiple of 32, up to 1024)
extern "C" __global__ void __launch_bounds__(1024)
    rms_norm_unaligned(const float* x, const float* weight, float* y, int64_t n, float eps) {
    const int64_t row = blockIdx.x * n;
    normalise(x + row, weight, y + row, n, n, eps);
}
