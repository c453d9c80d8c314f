// What the experts made of each row, added to the residual stream in the order of the row's choices.
#include "cuda/kernels/device.cuh"
#include "cuda/kernels/step.h"

namespace {

using namespace llama_ext::cuda;

constexpr int kInFlight = 4;

__device__ __forceinline__ float add(float a, float b) { return a + b; }
__device__ __forceinline__ float4 add(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }

// Piece: float, or float4 for 16-byte accesses
template <typename Piece>
__device__ __forceinline__ void combine(const Piece* y, const int32_t* entry, const Step* step, Piece* x, int passes,
                                        int64_t pieces) {
    const int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    const int row = blockIdx.y;
    let_successor_start();
    wait_for_predecessor();
    if (at >= pieces || row >= step->rows) return;
    entry += static_cast<int64_t>(row) * passes;
    const Piece before = x[row * pieces + at];
    Piece sum = y[entry[0] * pieces + at];
    for (int i = 1; i < passes; i += kInFlight) {
        Piece held[kInFlight];
#pragma unroll
        for (int u = 0; u < kInFlight; ++u)
            if (i + u < passes) held[u] = y[entry[i + u] * pieces + at];
#pragma unroll
        for (int u = 0; u < kInFlight; ++u)
            if (i + u < passes) sum = add(sum, held[u]);
    }
    x[row * pieces + at] = add(before, sum);
}

}  // namespace

// y [max_rows * passes, hidden], entry [max_rows, passes], step [1], x [max_rows, hidden] -> x
// PRECOND: grid (ceil(hidden / 4 / block), max_rows); hidden % 4 == 0, y and x on 16 bytes; passes >= 1
extern "C" __global__ void __launch_bounds__(128)
    combine(const float* y, const int32_t* entry, const Step* step, float* x, int passes, int64_t hidden) {
    combine(reinterpret_cast<const float4*>(y), entry, step, reinterpret_cast<float4*>(x), passes, hidden / 4);
}

// The same for any hidden and any float pointer.
// PRECOND: grid (ceil(hidden / block), max_rows); passes >= 1
extern "C" __global__ void __launch_bounds__(128)
    combine_unaligned(const float* y, const int32_t* entry, const Step* step, float* x, int passes, int64_t hidden) {
    combine<float>(y, entry, step, x, passes, hidden);
}
