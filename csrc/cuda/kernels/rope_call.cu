// Rotary embedding as the torch operator has it: positions a row, pairs in either order, float32 or bfloat16. (A program's
// rope.cu turns neighbours in place, by a step's table.)
#include "cuda/kernels/device.cuh"
#include "cuda/kernels/rope_call.h"

namespace {

using namespace llama_ext::cuda;

__device__ __forceinline__ float wide(float value) { return value; }
__device__ __forceinline__ float wide(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ void put(float* to, float value) { *to = value; }
__device__ __forceinline__ void put(__nv_bfloat16* to, float value) { *to = __float2bfloat16_rn(value); }

// {cosine, sine}, from float64 rounded once. The angle is taken to half turns, with the product's own error and 1 / pi's beside
// it, and whole turns are dropped, which is exact: good for any angle, where sincos() would need local memory for large ones.
__device__ __forceinline__ float2 turned_by(double angle) {
    constexpr double kInvPi = 0.31830988618379069, kInvPiRest = -1.9678676675182486e-17;
    const double half_turns = angle * kInvPi, rest = fma(angle, kInvPi, -half_turns) + angle * kInvPiRest;
    double sine, cosine;
    sincospi(fma(-2.0, rint(0.5 * half_turns), half_turns) + rest, &sine, &cosine);
    return make_float2(static_cast<float>(cosine), static_cast<float>(sine));
}

template <typename Value>
__device__ __forceinline__ void turn(const Value* x, const float2* table, Value* out, int64_t count, int64_t rows, int64_t heads,
                                     int64_t pairs, int interleaved) {
    const int64_t at = int64_t{blockIdx.x} * kRopeCallThreads + threadIdx.x;
    let_successor_start();
    wait_for_predecessor();
    if (at >= count) return;
    const int64_t head = at / pairs, pair = at % pairs;
    const float2 angle = table[head / heads % rows * pairs + pair];
    const int64_t first = 2 * head * pairs + (interleaved ? 2 * pair : pair), second = first + (interleaved ? 1 : pairs);
    const float a = wide(x[first]), b = wide(x[second]);
    put(out + first, a * angle.x - b * angle.y);
    put(out + second, a * angle.y + b * angle.x);
}

}  // namespace

// positions [rows], inverse_frequency [pairs] -> table {cosine, sine} [rows, pairs]
// PRECOND: grid (ceil(rows * pairs / kRopeCallThreads)), block (kRopeCallThreads)
extern "C" __global__ void __launch_bounds__(kRopeCallThreads)
    rope_call_table(const int64_t* positions, const double* inverse_frequency, float2* table, int64_t rows, int64_t pairs) {
    const int64_t at = int64_t{blockIdx.x} * kRopeCallThreads + threadIdx.x;
    let_successor_start();
    wait_for_predecessor();
    if (at >= rows * pairs) return;
    table[at] = turned_by(static_cast<double>(positions[at / pairs]) * inverse_frequency[at % pairs]);
}

// x [batch, rows, heads, 2 * pairs], table [rows, pairs] -> out, of x's shape.  count = batch * rows * heads * pairs
// PRECOND: grid (ceil(count / kRopeCallThreads)), block (kRopeCallThreads)
extern "C" __global__ void __launch_bounds__(kRopeCallThreads)
    rope_call_f32(const float* x, const float2* table, float* out, int64_t count, int64_t rows, int64_t heads, int64_t pairs,
                  int interleaved) {
    turn(x, table, out, count, rows, heads, pairs, interleaved);
}
extern "C" __global__ void __launch_bounds__(kRopeCallThreads)
    rope_call_bf16(const __nv_bfloat16* x, const float2* table, __nv_bfloat16* out, int64_t count, int64_t rows, int64_t heads,
                   int64_t pairs, int interleaved) {
    turn(x, table, out, count, rows, heads, pairs, interleaved);
}
