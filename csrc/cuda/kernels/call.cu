// What a program's kernels find in device memory and an operator, called by itself, has to put there first. By kernels and not by
// copies from the host, so that an operator can be captured in a graph.
#include "cuda/kernels/call.h"
#include "cuda/kernels/device.cuh"
#include "cuda/kernels/step.h"

namespace {

using namespace llama_ext::cuda;

// Pieces of 16 bytes.
__device__ __forceinline__ int64_t this_piece() { return int64_t{blockIdx.x} * kCallThreads + threadIdx.x; }

}  // namespace

// PRECOND: grid (1), block (1)
extern "C" __global__ void call_step(Step* step, int64_t position, int rows) {
    let_successor_start();
    wait_for_predecessor();
    *step = {position, 0, rows, 0};
}

// PRECOND: grid (1), block (1)
extern "C" __global__ void call_cache_state(CacheState* state, const void* keys, const void* values, int64_t capacity) {
    let_successor_start();
    wait_for_predecessor();
    *state = {reinterpret_cast<uint64_t>(keys), reinterpret_cast<uint64_t>(values), 0, 0, capacity};
}

// PRECOND: grid (ceil(pieces / kCallThreads)), block (kCallThreads); x on 16 bytes
extern "C" __global__ void __launch_bounds__(kCallThreads) call_zero(uint4* x, int64_t pieces) {
    const int64_t at = this_piece();
    let_successor_start();
    wait_for_predecessor();
    if (at < pieces) x[at] = make_uint4(0, 0, 0, 0);
}

// x [keys, heads, pieces] -> cache [heads, keys, pieces]: whole heads, whatever they hold
// PRECOND: grid (ceil(keys * heads * pieces / kCallThreads)), block (kCallThreads); both on 16 bytes
extern "C" __global__ void __launch_bounds__(kCallThreads)
    call_cache(const uint4* x, uint4* cache, int64_t keys, int64_t heads, int64_t pieces) {
    const int64_t at = this_piece();
    let_successor_start();
    wait_for_predecessor();
    if (at >= keys * heads * pieces) return;
    const int64_t piece = at % pieces, key = at / pieces % keys, head = at / pieces / keys;
    cache[at] = x[(key * heads + head) * pieces + piece];
}

// x [rows, cols] -> y [rows, stride], float32; 4 floats a thread
// PRECOND: grid (ceil(rows * cols / 4 / kCallThreads)), block (kCallThreads); cols and stride multiples of 4, both on 16 bytes
extern "C" __global__ void __launch_bounds__(kCallThreads)
    call_rows_f32(const float4* x, float4* y, int64_t rows, int64_t cols, int64_t stride) {
    const int64_t at = this_piece(), pieces = cols / 4;
    let_successor_start();
    wait_for_predecessor();
    if (at < rows * pieces) y[at / pieces * (stride / 4) + at % pieces] = x[at];
}

// The same out of bfloat16; 8 values a thread
// PRECOND: grid (ceil(rows * cols / 8 / kCallThreads)), block (kCallThreads); cols and stride multiples of 8, both on 16 bytes
extern "C" __global__ void __launch_bounds__(kCallThreads)
    call_rows_bf16(const uint4* x, float4* y, int64_t rows, int64_t cols, int64_t stride) {
    const int64_t at = this_piece(), pieces = cols / 8;
    let_successor_start();
    wait_for_predecessor();
    if (at >= rows * pieces) return;
    const uint4 bits = x[at];
    const float2 a = widen_bf16(bits.x), b = widen_bf16(bits.y), c = widen_bf16(bits.z), d = widen_bf16(bits.w);
    float4* to = y + at / pieces * (stride / 4) + 2 * (at % pieces);
    to[0] = make_float4(a.x, a.y, b.x, b.y);
    to[1] = make_float4(c.x, c.y, d.x, d.y);
}
