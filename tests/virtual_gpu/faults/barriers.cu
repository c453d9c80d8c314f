// Barriers of a block: forgotten, reached by some, miscounted.
#include "ptx.cuh"

// Another warp's part is read before that warp has written it.
extern "C" __global__ void missing_block_barrier(const float* in, float* out) {
    __shared__ float tile[128];
    tile[threadIdx.x] = in[threadIdx.x];
#ifndef BROKEN
    __syncthreads();
#endif
    out[threadIdx.x] = tile[127 - threadIdx.x];  // fault here
}

// The tile is filled again while slow warps still read it.
extern "C" __global__ void overwritten_too_early(const float* in, float* out, int rounds) {
    __shared__ float tile[128];
    float sum = 0;
    for (int round = 0; round < rounds; ++round) {
        tile[threadIdx.x] = in[round * 128 + threadIdx.x];  // fault here
        __syncthreads();
        sum += tile[127 - threadIdx.x];
#ifndef BROKEN
        __syncthreads();
#endif
    }
    out[threadIdx.x] = sum;
}

// Two buffers and one barrier a round are enough, if each round reads the buffer that this round's barrier has closed.
extern "C" __global__ void double_buffer_off_by_one(const float* in, float* out, int rounds) {
    __shared__ float tile[2][128];
    tile[0][threadIdx.x] = in[threadIdx.x];
    tile[1][threadIdx.x] = 0;
    float sum = 0;
    for (int round = 0; round < rounds; ++round) {
        __syncthreads();
#ifdef BROKEN
        tile[round & 1][threadIdx.x] = in[(round + 1) * 128 + threadIdx.x];
#else
        tile[(round + 1) & 1][threadIdx.x] = in[(round + 1) * 128 + threadIdx.x];
#endif
        sum += tile[round & 1][127 - threadIdx.x];  // fault here
    }
    out[threadIdx.x] = sum;
}

// A tree in shared memory whose barrier stands outside the loop.
extern "C" __global__ void reduction_without_barriers(const float* in, float* out) {
    __shared__ float part[256];
    part[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    for (int half = 128; half > 0; half /= 2) {
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];  // fault here
#ifndef BROKEN
        __syncthreads();
#endif
    }
#ifdef BROKEN
    __syncthreads();
#endif
    if (threadIdx.x == 0) *out = part[0];
}

// A whole warp stays away.
extern "C" __global__ void barrier_in_branch(float* out) {
    __shared__ float tile[64];
    tile[threadIdx.x] = threadIdx.x;
#ifdef BROKEN
    if (threadIdx.x < 32) {
        __syncthreads();  // fault here
        out[threadIdx.x] = tile[threadIdx.x + 32];
    }
#else
    __syncthreads();
    if (threadIdx.x < 32) out[threadIdx.x] = tile[threadIdx.x + 32];
#endif
}

// Half of a warp's lanes come to one barrier, the others to the next.
extern "C" __global__ void barrier_within_warp(const int* flags, float* out) {
    __shared__ float tile[64];
    tile[threadIdx.x] = threadIdx.x;
    float value = 0;
#ifdef BROKEN
    if (flags[threadIdx.x]) {
        __syncthreads();  // fault here
        value = tile[63 - threadIdx.x];
    }
    __syncthreads();
#else
    __syncthreads();
    if (flags[threadIdx.x]) value = tile[63 - threadIdx.x];
    __syncthreads();
#endif
    out[threadIdx.x] = value;
}

// Threads past the end go home, the others wait for them.
extern "C" __global__ void barrier_after_return(const float* in, float* out, int n) {
    __shared__ float tile[128];
    const int i = threadIdx.x;
#ifdef BROKEN
    if (i >= n) return;
    tile[i] = in[i];
    __syncthreads();  // fault here
    out[i] = tile[n - 1 - i];
#else
    if (i < n) tile[i] = in[i];
    __syncthreads();
    if (i < n) out[i] = tile[n - 1 - i];
#endif
}

// A loop whose number of rounds differs from thread to thread, with a barrier in it.
extern "C" __global__ void barrier_in_uneven_loop(const int* rounds, int* out) {
    __shared__ int tile[64];
    int sum = 0;
#ifdef BROKEN
    const int mine = rounds[threadIdx.x];
#else
    const int mine = rounds[0];
#endif
    for (int round = 0; round < mine; ++round) {
        tile[threadIdx.x] = round;
        __syncthreads();  // fault here
        sum += tile[threadIdx.x ^ 1];
        __syncthreads();  // fault here
    }
    out[threadIdx.x] = sum;
}

// The barrier waits for 96 threads; 64 come.
extern "C" __global__ void named_barrier_miscounted(float* out) {
    __shared__ float tile[64];
    if (threadIdx.x < 64) {
        tile[threadIdx.x] = threadIdx.x;
#ifdef BROKEN
        asm volatile("bar.sync 1, 96;" ::: "memory");  // fault here
#else
        asm volatile("bar.sync 1, 64;" ::: "memory");
#endif
        out[threadIdx.x] = tile[63 - threadIdx.x];
    }
}

// Each of two warps waits at the barrier that the other comes to later.
extern "C" __global__ void crossed_barriers(float* out) {
    if (threadIdx.x < 32) {
        asm volatile("bar.sync 1, 64;" ::: "memory");  // fault here
        asm volatile("bar.sync 2, 64;" ::: "memory");
    } else {
#ifdef BROKEN
        asm volatile("bar.sync 2, 64;" ::: "memory");  // fault here
        asm volatile("bar.sync 1, 64;" ::: "memory");
#else
        asm volatile("bar.sync 1, 64;" ::: "memory");
        asm volatile("bar.sync 2, 64;" ::: "memory");
#endif
    }
    out[threadIdx.x] = 1;
}

// One warp fills a buffer for another: barrier 1 says that it is full, barrier 2 that it is empty.
extern "C" __global__ void producer_announces_too_early(const float* in, float* out, int rounds) {
    __shared__ float tile[32];
    const int lane = threadIdx.x % 32;
    if (threadIdx.x < 32) {
        for (int round = 0; round < rounds; ++round) {
            if (round > 0) asm volatile("bar.sync 2, 64;" ::: "memory");
#ifdef BROKEN
            asm volatile("bar.arrive 1, 64;" ::: "memory");
            tile[lane] = in[round * 32 + lane];  // fault here
#else
            tile[lane] = in[round * 32 + lane];
            asm volatile("bar.arrive 1, 64;" ::: "memory");
#endif
        }
    } else {
        for (int round = 0; round < rounds; ++round) {
            asm volatile("bar.sync 1, 64;" ::: "memory");
            out[round * 32 + lane] = tile[lane ^ 1];
            if (round < rounds - 1) asm volatile("bar.arrive 2, 64;" ::: "memory");
        }
    }
}

// The producer does not wait until the buffer is empty.
extern "C" __global__ void producer_does_not_wait(const float* in, float* out, int rounds) {
    __shared__ float tile[2][32];
    const int lane = threadIdx.x % 32;
    if (threadIdx.x < 32) {
        for (int round = 0; round < rounds; ++round) {
#ifndef BROKEN
            if (round >= 2) barrier_sync(3 + round % 2, 64);
#endif
            tile[round % 2][lane] = in[round * 32 + lane];  // fault here
            barrier_arrive(1 + round % 2, 64);
        }
    } else {
        for (int round = 0; round < rounds; ++round) {
            barrier_sync(1 + round % 2, 64);  // fault here
            out[round * 32 + lane] = tile[round % 2][lane ^ 1];
#ifndef BROKEN
            if (round + 2 < rounds) barrier_arrive(3 + round % 2, 64);
#endif
        }
    }
}
