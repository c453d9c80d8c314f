// y = W x (+ residual) for one row of activations: every weight is read once, and memory is all that matters.
//
// A warp has a row of W at a time: 16 bytes a lane and load, kInFlight loads under way, each renewed as soon as it is used. x
// lies in shared memory (geometry.h says how), once a block and tile of columns; the first weights are fetched before the wait
// for the kernel that makes x. A row's sum runs in an order that depends on cols alone.
#include "cuda/kernels/device.cuh"
#include "cuda/kernels/product.h"

namespace {

using namespace llama_ext::cuda;

constexpr int kInFlight = 4;

// Weights pass through once, so they shall not displace anything. volatile: stays above the wait for the predecessor.
__device__ __forceinline__ uint4 load_weights(const uint4* at) {
    uint4 w;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w)
                 : "l"(at));
    return w;
}

__device__ __forceinline__ void multiply_add(uint4 w, float4 low, float4 high, float* even, float* odd) {
    const float2 a = widen_bf16(w.x), b = widen_bf16(w.y), c = widen_bf16(w.z), d = widen_bf16(w.w);
    *even = fmaf(a.x, low.x, *even);
    *odd = fmaf(a.y, low.y, *odd);
    *even = fmaf(b.x, low.z, *even);
    *odd = fmaf(b.y, low.w, *odd);
    *even = fmaf(c.x, high.x, *even);
    *odd = fmaf(c.y, high.y, *odd);
    *even = fmaf(d.x, high.z, *even);
    *odd = fmaf(d.y, high.w, *odd);
}

}  // namespace

// weight [rows, cols] bf16, x [cols], residual [rows] or null, which may be y -> y [rows]
// PRECOND: grid (up to ceil(rows / kProductWarps)), block (32 * kProductWarps), shared product_shared_bytes(tile_cols);
//          cols % 8 == 0, tile_cols % 8 == 0, 8 <= tile_cols <= kProductTileCols; weight and x on 16 bytes
extern "C" __global__ void __launch_bounds__(32 * kProductWarps)
    product_bf16(const uint4* weight, const float* x, const float* residual, float* y, int64_t rows, int64_t cols,
                 int tile_cols) {
    extern __shared__ float4 planes[];  // [2][product_plane(tile_cols)]
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int plane = product_plane(tile_cols);
    const int64_t row_loads = cols / 8;
    int64_t staged = -1;  // the column at which the tile in shared memory begins
    let_successor_start();
    for (int64_t first = int64_t{blockIdx.x} * kProductWarps; first < rows; first += int64_t{gridDim.x} * kProductWarps) {
        const int64_t row = first + warp;
        float even = 0.0f, odd = 0.0f;
        for (int64_t tile = 0; tile < cols; tile += tile_cols) {
            const int loads = static_cast<int>(min(static_cast<int64_t>(tile_cols), cols - tile) / 8);
            const int mine = row < rows ? loads : 0;
            const uint4* w = weight + row * row_loads + tile / 8;
            uint4 in_flight[kInFlight];
#pragma unroll
            for (int u = 0; u < kInFlight; ++u) {
                const int at = u * 32 + lane;
                if (at < mine) in_flight[u] = load_weights(w + at);
            }
            if (staged != tile) {
                if (staged < 0)
                    wait_for_predecessor();
                else
                    __syncthreads();  // until every warp is through with the tile before
                const float4* from = reinterpret_cast<const float4*>(x + tile);
                for (int i = threadIdx.x; i < 2 * loads; i += 32 * kProductWarps) planes[i % 2 * plane + i / 2] = from[i];
                staged = tile;
                __syncthreads();
            }
            for (int base = 0; base < mine; base += 32 * kInFlight) {
#pragma unroll
                for (int u = 0; u < kInFlight; ++u) {
                    const int at = base + u * 32 + lane, next = at + 32 * kInFlight;
                    const uint4 now = in_flight[u];
                    if (next < mine) in_flight[u] = load_weights(w + next);
                    if (at < mine) multiply_add(now, planes[at], planes[plane + at], &even, &odd);
                }
            }
        }
        const float sum = warp_sum(even + odd);
        if (lane == 0 && row < rows) y[row] = residual ? sum + residual[row] : sum;
    }
}
