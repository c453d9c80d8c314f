// float32 and bfloat16 into each other: operators take both, the kernels of a program float32.
#include "cuda/kernels/convert.h"
#include "cuda/kernels/device.cuh"

namespace {

using namespace llama_ext::cuda;

__device__ __forceinline__ uint32_t narrow(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
}

}  // namespace

// x [n] -> y [n], exactly
// PRECOND: grid (ceil(n / (kConvertThreads * kConvertEach))), block (kConvertThreads); x and y on 16 bytes
extern "C" __global__ void __launch_bounds__(kConvertThreads) convert_from_bf16(const uint16_t* x, float* y, int64_t n) {
    const int64_t at = (int64_t{blockIdx.x} * kConvertThreads + threadIdx.x) * kConvertEach;
    let_successor_start();
    wait_for_predecessor();
    if (at + kConvertEach <= n) {
        const uint4 bits = *reinterpret_cast<const uint4*>(x + at);
        const float2 a = widen_bf16(bits.x), b = widen_bf16(bits.y), c = widen_bf16(bits.z), d = widen_bf16(bits.w);
        *reinterpret_cast<float4*>(y + at) = make_float4(a.x, a.y, b.x, b.y);
        *reinterpret_cast<float4*>(y + at + 4) = make_float4(c.x, c.y, d.x, d.y);
        return;
    }
    for (int64_t i = at; i < n; ++i) y[i] = __uint_as_float(uint32_t{x[i]} << 16);
}

// x [n] -> y [n], rounded to nearest, ties to even; a NaN stays one
// PRECOND: as above
extern "C" __global__ void __launch_bounds__(kConvertThreads) convert_to_bf16(const float* x, uint16_t* y, int64_t n) {
    const int64_t at = (int64_t{blockIdx.x} * kConvertThreads + threadIdx.x) * kConvertEach;
    let_successor_start();
    wait_for_predecessor();
    if (at + kConvertEach <= n) {
        const float4 a = *reinterpret_cast<const float4*>(x + at), b = *reinterpret_cast<const float4*>(x + at + 4);
        *reinterpret_cast<uint4*>(y + at) = make_uint4(narrow(a.x, a.y), narrow(a.z, a.w), narrow(b.x, b.y), narrow(b.z, b.w));
        return;
    }
    for (int64_t i = at; i < n; ++i) y[i] = static_cast<uint16_t>(narrow(x[i], 0.0f));
}
