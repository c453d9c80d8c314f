// Asynchronous copies into shared memory, and mbarriers.
#include "ptx.cuh"

extern "C" __global__ void async_without_wait(const float4* in, float4* out) {
    __shared__ float4 tile[32];
    copy_async_16(&tile[threadIdx.x], &in[threadIdx.x]);
    copy_commit();
#ifndef BROKEN
    copy_wait<0>();
#endif
    out[threadIdx.x] = tile[threadIdx.x];  // fault here
}

// wait_group waits for what was committed.
extern "C" __global__ void async_without_commit(const float4* in, float4* out) {
    __shared__ float4 tile[32];
    copy_async_16(&tile[threadIdx.x], &in[threadIdx.x]);
#ifndef BROKEN
    copy_commit();
#endif
    copy_wait<0>();
    out[threadIdx.x] = tile[threadIdx.x];  // fault here
}

// wait_group 1 leaves the newest group in flight: after the last stage that is the one that is needed.
extern "C" __global__ void async_wait_off_by_one(const float4* in, float4* out, int stages) {
    __shared__ float4 tile[2][32];
    copy_async_16(&tile[0][threadIdx.x], &in[threadIdx.x]);
    copy_commit();
    for (int stage = 0; stage < stages; ++stage) {
        if (stage + 1 < stages) copy_async_16(&tile[(stage + 1) % 2][threadIdx.x], &in[32 * (stage + 1) + threadIdx.x]);
#ifdef BROKEN
        if (stage + 1 < stages) copy_commit();
#else
        copy_commit();
#endif
        copy_wait<1>();
        out[32 * stage + threadIdx.x] = tile[stage % 2][threadIdx.x];  // fault here
    }
}

// The wait is for a thread's own copies; other threads need a barrier after it.
extern "C" __global__ void async_without_barrier(const float4* in, float4* out) {
    __shared__ float4 tile[64];
    copy_async_16(&tile[threadIdx.x], &in[threadIdx.x]);
    copy_commit();
    copy_wait<0>();
#ifndef BROKEN
    __syncthreads();
#endif
    out[threadIdx.x] = tile[63 - threadIdx.x];  // fault here
}

// The barrier before the wait does not help either.
extern "C" __global__ void async_barrier_before_wait(const float4* in, float4* out) {
    __shared__ float4 tile[64];
    copy_async_16(&tile[threadIdx.x], &in[threadIdx.x]);
    copy_commit();
#ifdef BROKEN
    __syncthreads();
    copy_wait<0>();
#else
    copy_wait<0>();
    __syncthreads();
#endif
    out[threadIdx.x] = tile[63 - threadIdx.x];  // fault here
}

// The next stage goes into the buffer that slow warps still read.
extern "C" __global__ void async_overwritten_too_early(const float4* in, float4* out, int stages) {
    __shared__ float4 tile[2][64];
    copy_async_16(&tile[0][threadIdx.x], &in[threadIdx.x]);
    copy_commit();
    for (int stage = 0; stage < stages; ++stage) {
        if (stage + 1 < stages) copy_async_16(&tile[(stage + 1) % 2][threadIdx.x], &in[64 * (stage + 1) + threadIdx.x]);
        copy_commit();
        copy_wait<1>();
        __syncthreads();
        out[64 * stage + threadIdx.x] = tile[stage % 2][63 - threadIdx.x];  // fault here
#ifndef BROKEN
        __syncthreads();
#endif
    }
}

// Three buffers, one barrier a stage: the copy has to be issued after the barrier.
extern "C" __global__ void async_issued_before_barrier(const float4* in, float4* out, int stages) {
    __shared__ float4 tile[3][64];
    for (int stage = 0; stage < 2; ++stage) {
        copy_async_16(&tile[stage][threadIdx.x], &in[64 * stage + threadIdx.x]);
        copy_commit();
    }
    for (int stage = 0; stage < stages; ++stage) {
        copy_wait<1>();
#ifndef BROKEN
        __syncthreads();
#endif
        if (stage + 2 < stages) copy_async_16(&tile[(stage + 2) % 3][threadIdx.x], &in[64 * (stage + 2) + threadIdx.x]);
        copy_commit();
#ifdef BROKEN
        __syncthreads();
#endif
        out[64 * stage + threadIdx.x] = tile[stage % 3][63 - threadIdx.x];  // fault here
    }
}

// A plain store into a buffer whose copy is in flight.
extern "C" __global__ void async_destination_written(const float4* in, float4* out) {
    __shared__ float4 tile[32];
    copy_async_16(&tile[threadIdx.x], &in[threadIdx.x]);
    copy_commit();
#ifdef BROKEN
    tile[threadIdx.x].w = 1;  // fault here
    copy_wait<0>();
#else
    copy_wait<0>();
    tile[threadIdx.x].w = 1;
#endif
    out[threadIdx.x] = tile[threadIdx.x];
}

// The source changes while the copy is in flight: old or new, nobody can say.
extern "C" __global__ void async_source_written(float4* data, float4* out) {
    __shared__ float4 tile[32];
    copy_async_16(&tile[threadIdx.x], &data[threadIdx.x]);
    copy_commit();
#ifdef BROKEN
    data[threadIdx.x] = make_float4(0, 0, 0, 0);  // fault here
    copy_wait<0>();
#else
    copy_wait<0>();
    data[threadIdx.x] = make_float4(0, 0, 0, 0);
#endif
    out[threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ void async_source_above(const float4* in, float4* out, int n) {
    __shared__ float4 tile[32];
#ifdef BROKEN
    if (threadIdx.x <= n) copy_async_16(&tile[threadIdx.x], &in[threadIdx.x]);  // fault here
#else
    copy_async_16_or_zero(&tile[threadIdx.x], &in[threadIdx.x < n ? threadIdx.x : 0], threadIdx.x < n ? 16 : 0);
#endif
    copy_commit();
    copy_wait<0>();
    if (threadIdx.x < n) out[threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ void async_misaligned(const float* in, float* out) {
    __shared__ float4 tile[32];
#ifdef BROKEN
    copy_async_16(&tile[threadIdx.x], in + 4 * threadIdx.x + 1);  // fault here
#else
    copy_async_16(&tile[threadIdx.x], in + 4 * threadIdx.x);
#endif
    copy_commit();
    copy_wait<0>();
    out[threadIdx.x] = tile[threadIdx.x].x;
}

#if __CUDA_ARCH__ >= 900
// A warp fills a buffer, another empties it; the phases of `full` and `empty` alternate between parity 0 and 1.
extern "C" __global__ void mbarrier_wrong_parity(const float* in, float* out, int rounds) {
    __shared__ float tile[32];
    __shared__ uint64_t full, empty;
    const int lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
        mbarrier_init(&full, 32);
        mbarrier_init(&empty, 32);
    }
    __syncthreads();
    for (int round = 0; round < rounds; ++round) {
        if (threadIdx.x < 32) {
            if (round > 0) mbarrier_wait(&empty, (round - 1) & 1);  // fault here
            tile[lane] = in[32 * round + lane];                     // fault here
            mbarrier_arrive(&full);
        } else {
#ifdef BROKEN
            mbarrier_wait(&full, (round + 1) & 1);  // fault here
#else
            mbarrier_wait(&full, round & 1);
#endif
            out[32 * round + lane] = tile[lane ^ 1];  // fault here
            mbarrier_arrive(&empty);
        }
    }
}

// The barrier is used before everybody knows that it exists.
extern "C" __global__ void mbarrier_not_yet_there(float* out) {
    __shared__ float tile[64];
    __shared__ uint64_t full;
    if (threadIdx.x == 0) mbarrier_init(&full, 64);  // fault here
#ifndef BROKEN
    __syncthreads();
#endif
    tile[threadIdx.x] = threadIdx.x;
    mbarrier_arrive(&full);  // fault here
    mbarrier_wait(&full, 0);
    out[threadIdx.x] = tile[63 - threadIdx.x];
}

// It waits for 64 arrivals; 63 come.
extern "C" __global__ void mbarrier_miscounted(float* out) {
    __shared__ uint64_t full;
    if (threadIdx.x == 0) mbarrier_init(&full, 64);
    __syncthreads();
#ifdef BROKEN
    if (threadIdx.x > 0) mbarrier_arrive(&full);
#else
    mbarrier_arrive(&full);
#endif
    mbarrier_wait(&full, 0);  // fault here
    out[threadIdx.x] = threadIdx.x;
}

// The copies' own arrivals, or arrivals that say nothing of copies.
extern "C" __global__ void mbarrier_without_copies(const float4* in, float4* out) {
    __shared__ float4 tile[64];
    __shared__ uint64_t full;
    if (threadIdx.x == 0) mbarrier_init(&full, 64);
    __syncthreads();
    copy_async_16(&tile[threadIdx.x], &in[threadIdx.x]);
#ifdef BROKEN
    mbarrier_arrive(&full);
#else
    mbarrier_arrive_copies(&full);
#endif
    mbarrier_wait(&full, 0);
    out[threadIdx.x] = tile[63 - threadIdx.x];  // fault here
}
#endif
