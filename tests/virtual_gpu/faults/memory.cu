// One thread's own mistakes with memory: where it reaches, what it finds there, what it may not change.
#include <cstdint>

extern "C" __global__ void global_write_above(float* out, int n) {
    const int i = threadIdx.x;
#ifdef BROKEN
    if (i <= n) out[i] = i;  // fault here
#else
    if (i < n) out[i] = i;
#endif
}

extern "C" __global__ void global_write_below(float* out, int n) {
    const int i = threadIdx.x;
#ifdef BROKEN
    if (i < n) out[i - 1] = i;  // fault here
#else
    if (i < n) out[i] = i;
#endif
}

extern "C" __global__ void global_read_above(const float* in, float* out, int n) {
    const int i = threadIdx.x;
#ifdef BROKEN
    if (i < n) out[i] = in[i] + in[i + 1];  // fault here
#else
    if (i < n) out[i] = in[i] + (i + 1 < n ? in[i + 1] : 0);
#endif
}

extern "C" __global__ void global_read_below(const float* in, float* out, int n) {
    const int i = threadIdx.x;
#ifdef BROKEN
    if (i < n) out[i] = in[i] + in[i - 1];  // fault here
#else
    if (i < n) out[i] = in[i] + (i > 0 ? in[i - 1] : 0);
#endif
}

// Four at a time, past the end of an array whose length is no multiple of four.
extern "C" __global__ void vector_read_above(const float* in, float* out, int n) {
    const int i = 4 * threadIdx.x;
#ifdef BROKEN
    if (i < n) {
        const float4 four = *reinterpret_cast<const float4*>(in + i);  // fault here
        out[threadIdx.x] = four.x + four.y + four.z + four.w;
    }
#else
    float sum = 0;
    for (int k = i; k < n && k < i + 4; ++k) sum += in[k];
    if (i < n) out[threadIdx.x] = sum;
#endif
}

extern "C" __global__ void atomic_above(uint32_t* bins, int n) {
#ifdef BROKEN
    atomicAdd(&bins[threadIdx.x % (n + 1)], 1u);  // fault here
#else
    atomicAdd(&bins[threadIdx.x % n], 1u);
#endif
}

extern "C" __global__ void null_pointer(float* out, const float* maybe) {
#ifdef BROKEN
    out[threadIdx.x] = maybe[threadIdx.x];  // fault here
#else
    out[threadIdx.x] = maybe ? maybe[threadIdx.x] : 0;
#endif
}

extern "C" __global__ void null_pointer_of_one_thread(float* out) {
#ifdef BROKEN
    if (threadIdx.x == 3) out = nullptr;
#endif
    *(out ? out + threadIdx.x : out) = 1;  // fault here
}

// A 32-bit product that wraps: far away, not next door.
extern "C" __global__ void index_wraps(float* out, int rows, int columns) {
#ifdef BROKEN
    const int i = rows * columns;
#else
    const int i = static_cast<int64_t>(rows) * columns < 64 ? rows * columns : 0;
#endif
    out[i + threadIdx.x] = 1;  // fault here
}

// `shift` is 0, which the compiler cannot know.
extern "C" __global__ void shared_above(float* out, int shift) {
    __shared__ float tile[64];
    __shared__ float next[64];
    tile[threadIdx.x] = threadIdx.x;
    next[threadIdx.x] = threadIdx.x;
    __syncthreads();
#ifdef BROKEN
    out[threadIdx.x] = tile[threadIdx.x + 1 + shift] + next[threadIdx.x + 1 + shift];  // fault here
#else
    out[threadIdx.x] = tile[(threadIdx.x + 1 + shift) % 64] + next[(threadIdx.x + 1 + shift) % 64];
#endif
}

extern "C" __global__ void shared_below(float* out, int shift) {
    __shared__ float before[64];
    __shared__ float tile[64];
    before[threadIdx.x] = threadIdx.x;
    tile[threadIdx.x] = threadIdx.x;
    __syncthreads();
#ifdef BROKEN
    out[threadIdx.x] = before[int(threadIdx.x) - 1 + shift] + tile[int(threadIdx.x) - 1 + shift];  // fault here
#else
    out[threadIdx.x] = before[(threadIdx.x + 63 + shift) % 64] + tile[(threadIdx.x + 63 + shift) % 64];
#endif
}

extern "C" __global__ void shared_dynamic_above(float* out, int n) {
    extern __shared__ float dynamic[];
#ifdef BROKEN
    if (threadIdx.x <= n) dynamic[threadIdx.x] = threadIdx.x;  // fault here
#else
    if (threadIdx.x < n) dynamic[threadIdx.x] = threadIdx.x;
#endif
    __syncthreads();
    if (threadIdx.x < n) out[threadIdx.x] = dynamic[n - 1 - threadIdx.x];
}

extern "C" __global__ void shared_dynamic_below(float* out, int n) {
    extern __shared__ float dynamic[];
    dynamic[threadIdx.x] = threadIdx.x;
    __syncthreads();
#ifdef BROKEN
    out[threadIdx.x] = dynamic[n - 2 - int(threadIdx.x)];  // fault here
#else
    out[threadIdx.x] = dynamic[n - 1 - int(threadIdx.x)];
#endif
}

extern "C" __global__ void local_above(const int* where, float* out) {
    float mine[8];
    for (int k = 0; k < 8; ++k) mine[k] = k * threadIdx.x;
#ifdef BROKEN
    mine[where[threadIdx.x] + 1] = 1;  // fault here
#else
    mine[where[threadIdx.x]] = 1;
#endif
    out[threadIdx.x] = mine[where[threadIdx.x]] + mine[where[31 - threadIdx.x]];
}

extern "C" __global__ void local_below(const int* where, float* out) {
    float mine[8];
    for (int k = 0; k < 8; ++k) mine[k] = k * threadIdx.x;
#ifdef BROKEN
    mine[where[threadIdx.x] - 1] = 1;  // fault here
#else
    mine[where[threadIdx.x]] = 1;
#endif
    out[threadIdx.x] = mine[where[threadIdx.x]] + mine[where[31 - threadIdx.x]];
}

extern "C" __global__ void misaligned_vector(const float* in, float* out) {
#ifdef BROKEN
    const float4 four = *reinterpret_cast<const float4*>(in + 4 * threadIdx.x + 1);  // fault here
#else
    const float4 four = *reinterpret_cast<const float4*>(in + 4 * threadIdx.x);
#endif
    out[threadIdx.x] = four.x + four.y + four.z + four.w;
}

extern "C" __global__ void misaligned_store(unsigned char* out, int header) {
#ifdef BROKEN
    *reinterpret_cast<uint32_t*>(out + header + 4 * threadIdx.x) = threadIdx.x;  // fault here
#else
    for (int k = 0; k < 4; ++k) out[header + 4 * threadIdx.x + k] = threadIdx.x >> 8 * k;
#endif
}

extern "C" __global__ void misaligned_shared(float* out, int pitch) {
    extern __shared__ float4 aligned[];
    float* const tile = reinterpret_cast<float*>(aligned);
    for (int k = threadIdx.x; k < 32 * (pitch + 3); k += 32) tile[k] = k;
    __syncthreads();
#ifdef BROKEN
    const float2 two = *reinterpret_cast<const float2*>(&tile[threadIdx.x * pitch]);  // fault here
    out[threadIdx.x] = two.x + two.y;
#else
    out[threadIdx.x] = tile[threadIdx.x * pitch] + tile[threadIdx.x * pitch + 1];
#endif
}

// The caller has written the first half alone.
extern "C" __global__ void uninitialised_global(float* data, float* out) {
#ifndef BROKEN
    data[32 + threadIdx.x] = 1;
#endif
    out[threadIdx.x] = data[threadIdx.x] + data[32 + threadIdx.x];  // fault here
}

// One element of many, the last.
extern "C" __global__ void uninitialised_tail(float* data, float* out, int n) {
#ifdef BROKEN
    if (threadIdx.x < n - 1) data[threadIdx.x] = 1;
#else
    if (threadIdx.x < n) data[threadIdx.x] = 1;
#endif
    __syncthreads();
    if (threadIdx.x < n) out[threadIdx.x] = data[n - 1 - threadIdx.x];  // fault here
}

extern "C" __global__ void uninitialised_shared(const float* in, float* out) {
    __shared__ float tile[64];
#ifdef BROKEN
    if (threadIdx.x > 0) tile[threadIdx.x] = in[threadIdx.x];
#else
    tile[threadIdx.x] = in[threadIdx.x];
#endif
    __syncthreads();
    out[threadIdx.x] = tile[63 - threadIdx.x];  // fault here
}

// Shared memory keeps nothing from block to block.
extern "C" __global__ void uninitialised_between_blocks(float* out) {
    __shared__ float tile[32];
#ifdef BROKEN
    if (blockIdx.x % 2 == 0) tile[threadIdx.x] = threadIdx.x;
#else
    tile[threadIdx.x] = threadIdx.x;
#endif
    __syncthreads();
    out[blockIdx.x * 32 + threadIdx.x] = tile[31 - threadIdx.x];  // fault here
}

extern "C" __global__ void uninitialised_local(const int* where, float* out, int n) {
    float mine[8];
#ifdef BROKEN
    for (int k = 0; k < n - 1; ++k) mine[k] = k;
#else
    for (int k = 0; k < n; ++k) mine[k] = k;
#endif
    out[threadIdx.x] = mine[where[threadIdx.x]];  // fault here
}

// Half an element was written.
extern "C" __global__ void uninitialised_bytes(unsigned char* data, uint32_t* out) {
    data[4 * threadIdx.x] = 1;
    data[4 * threadIdx.x + 1] = 2;
    data[4 * threadIdx.x + 2] = 3;
#ifndef BROKEN
    data[4 * threadIdx.x + 3] = 4;
#endif
    out[threadIdx.x] = reinterpret_cast<const uint32_t*>(data)[threadIdx.x];  // fault here
}

// The host has freed `in` before the launch.
extern "C" __global__ void use_after_free(const float* in, float* out) {
    out[threadIdx.x] = in[threadIdx.x];  // fault here
}

__constant__ float table[32];
__device__ float variable[32];

// `to` is the address of `table` (that of `variable` in the mended twin).
extern "C" __global__ void write_to_constant(float* to) {
    to[threadIdx.x] = table[threadIdx.x] + variable[threadIdx.x] + 1;  // fault here
}
