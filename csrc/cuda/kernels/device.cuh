// What the kernels share.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

constexpr unsigned kWholeWarp = 0xffffffffu;

// Programmatic dependent launch (sm_90 and later): a kernel may start while its predecessor still runs. Every kernel calls both,
// on every path: what the predecessor wrote may be read only after wait_for_predecessor(), and because each kernel waits, the end
// of a kernel also means the end of all that ran before it. Buffers that a predecessor writes are neither `__restrict__` nor read
// by `ld.global.nc`: the compiler may move such a read above the wait.
__device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel's blocks start as soon as every block of this one has: they fill what its last wave leaves free.
__device__ __forceinline__ void let_successor_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// The same bits in every lane.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(kWholeWarp, value, step);
    return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(kWholeWarp, value, step));
    return value;
}

// Two 16-bit floats of one register; the first lies in the low half.
__device__ __forceinline__ float2 widen_bf16(uint32_t pair) {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

__device__ __forceinline__ float2 widen_f16(uint32_t pair) {
    return make_float2(__half2float(__ushort_as_half(static_cast<unsigned short>(pair & 0xffffu))),
                       __half2float(__ushort_as_half(static_cast<unsigned short>(pair >> 16))));
}
