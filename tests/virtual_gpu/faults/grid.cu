// Between blocks: flags, fences, atomics, locks, and barriers of a whole grid.
#include "ptx.cuh"

// The last block to arrive adds up what all blocks have written, every thread a part of it. Thread 0's fence comes before the
// barrier, so it orders thread 0's own part alone.
extern "C" __global__ void fence_of_thread_zero(float* parts, uint32_t* arrived, float* out) {
    __shared__ bool last;
    parts[blockIdx.x * 64 + threadIdx.x] = blockIdx.x;
#ifdef BROKEN
    if (threadIdx.x == 0) __threadfence();
    __syncthreads();
#else
    __threadfence();
    __syncthreads();
#endif
    if (threadIdx.x == 0) last = atomicAdd(arrived, 1u) == gridDim.x - 1;
    __syncthreads();
    if (last) {
        __threadfence();
        float sum = 0;
        for (int block = 0; block < gridDim.x; ++block) sum += parts[block * 64 + threadIdx.x];  // fault here
        out[threadIdx.x] = sum;
    }
}

// One thread writes and publishes.
extern "C" __global__ void missing_grid_fence(float* parts, uint32_t* arrived, float* out) {
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = blockIdx.x;
#ifndef BROKEN
        __threadfence();
#endif
        if (atomicAdd(arrived, 1u) == gridDim.x - 1) {
            __threadfence();
            float sum = 0;
            for (int block = 0; block < gridDim.x; ++block) sum += parts[block];  // fault here
            *out = sum;
        }
    }
}

// What the counter says is known to thread 0; to know the other blocks' parts takes a fence on this side too.
extern "C" __global__ void missing_acquire(float* parts, uint32_t* arrived, float* out) {
    __shared__ bool last;
    parts[blockIdx.x * 64 + threadIdx.x] = blockIdx.x;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(arrived, 1u) == gridDim.x - 1;
    __syncthreads();
    if (last) {
#ifndef BROKEN
        __threadfence();
#endif
        float sum = 0;
        for (int block = 0; block < gridDim.x; ++block) sum += parts[block * 64 + threadIdx.x];  // fault here
        out[threadIdx.x] = sum;
    }
}

// A fence for the block, where another block reads.
extern "C" __global__ void fence_of_block_scope(float* parts, uint32_t* arrived, float* out) {
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = blockIdx.x;
#ifdef BROKEN
        __threadfence_block();
#else
        __threadfence();
#endif
        if (atomicAdd(arrived, 1u) == gridDim.x - 1) {
            __threadfence();
            float sum = 0;
            for (int block = 0; block < gridDim.x; ++block) sum += parts[block];  // fault here
            *out = sum;
        }
    }
}

// An atomic for the block, on a counter that all blocks share.
extern "C" __global__ void atomic_of_block_scope(uint32_t* counter) {
#ifdef BROKEN
    atomicAdd_block(counter, 1u);  // fault here
#else
    atomicAdd(counter, 1u);
#endif
}

// A volatile flag comes through, but takes nothing with it.
extern "C" __global__ void volatile_flag(float* data, uint32_t* flag, float* out) {
    volatile uint32_t* const ready = flag;
    if (blockIdx.x == 0) {
        *data = 42;
#ifndef BROKEN
        __threadfence();
#endif
        *ready = 1;
    } else {
        while (*ready == 0) {
        }
#ifndef BROKEN
        __threadfence();
#endif
        *out = *data;  // fault here
    }
}

// A release that nobody acquires.
extern "C" __global__ void relaxed_wait(float* data, uint32_t* flag, float* out) {
    if (blockIdx.x == 0) {
        *data = 42;
        store_release(flag, 1);
    } else {
#ifdef BROKEN
        while (load_relaxed(flag) == 0) {
        }
#else
        while (load_acquire(flag) == 0) {
        }
#endif
        *out = *data;  // fault here
    }
}

extern "C" __global__ void nobody_sets_the_flag(uint32_t* flag, uint32_t* out) {
    volatile uint32_t* const ready = flag;
#ifndef BROKEN
    if (blockIdx.x == 1) *ready = 1;
#endif
    if (blockIdx.x == 0) {
        while (*ready == 0) {  // fault here
        }
        *out = 1;
    }
}

// Everybody waits for a turn that nobody passes on.
extern "C" __global__ void turn_never_passed(uint32_t* turn, uint32_t* out) {
    const uint32_t me = blockIdx.x;
    while (load_acquire(turn) != me) {  // fault here
    }
    *out += me;
#ifdef BROKEN
    if (me == 0) store_release(turn, 1);
#else
    store_release(turn, me + 1);
#endif
}

extern "C" __global__ void plain_update(uint32_t* counter) {
#ifdef BROKEN
    *counter += 1;  // fault here
#else
    atomicAdd(counter, 1u);
#endif
}

// Within one block, between its warps.
extern "C" __global__ void plain_update_in_block(uint32_t* counters) {
#ifdef BROKEN
    counters[threadIdx.x % 32] += 1;  // fault here
#else
    atomicAdd(&counters[threadIdx.x % 32], 1u);
#endif
}

extern "C" __global__ void plain_update_shared(const uint32_t* in, uint32_t* out) {
    __shared__ uint32_t bins[8];
    if (threadIdx.x < 8) bins[threadIdx.x] = 0;
    __syncthreads();
#ifdef BROKEN
    bins[in[threadIdx.x] % 8] += 1;  // fault here
#else
    atomicAdd(&bins[in[threadIdx.x] % 8], 1u);
#endif
    __syncthreads();
    if (threadIdx.x < 8) out[threadIdx.x] = bins[threadIdx.x];
}

// The counter is read while others still count.
extern "C" __global__ void atomic_and_plain_read(uint32_t* counter, uint32_t* out) {
#ifdef BROKEN
    atomicAdd(counter, 1u);
    out[blockIdx.x] = *counter;  // fault here
#else
    out[blockIdx.x] = atomicAdd(counter, 1u);
#endif
}

// One block sets to zero what the others add to.
extern "C" __global__ void atomic_and_plain_write(uint32_t* counter) {
#ifdef BROKEN
    if (blockIdx.x == 0) *counter = 0;  // fault here
#endif
    atomicAdd(counter, 1u);
}

extern "C" __global__ void atomic_and_plain_shared(uint32_t* out) {
    __shared__ uint32_t sum;
    if (threadIdx.x == 0) sum = 0;
    __syncthreads();
    atomicAdd(&sum, threadIdx.x);
#ifndef BROKEN
    __syncthreads();
#endif
    out[threadIdx.x] = sum;  // fault here
}

// A block overwrites what its neighbour reads.
extern "C" __global__ void stencil_in_place(const float* in, float* data) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
#ifdef BROKEN
    const float left = i > 0 ? data[i - 1] : 0;  // fault here
    data[i] = 0.5f * left + 0.5f;                // fault here
#else
    const float left = i > 0 ? in[i - 1] : 0;
    data[i] = 0.5f * left + 0.5f;
#endif
}

// Two blocks write the same element.
extern "C" __global__ void overlapping_blocks(float* out) {
#ifdef BROKEN
    const int i = blockIdx.x * (blockDim.x - 1) + threadIdx.x;
#else
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
#endif
    out[i] = blockIdx.x;  // fault here
}

// A spinlock whose release lets the protected write trail behind.
extern "C" __global__ void lock_without_fence(uint32_t* lock, uint32_t* value) {
    if (threadIdx.x == 0) {
        while (atomicCAS(lock, 0u, 1u) != 0) {
        }
#ifndef BROKEN
        __threadfence();
#endif
        *value += 1;  // fault here
#ifndef BROKEN
        __threadfence();
#endif
        atomicExch(lock, 0u);
    }
}

// A lock that its holder takes again.
extern "C" __global__ void lock_taken_twice(uint32_t* lock, uint32_t* value) {
    while (atomicCAS(lock, 0u, 1u) != 0) {  // fault here
    }
    __threadfence();
    *value += 1;
#ifdef BROKEN
    while (atomicCAS(lock, 0u, 1u) != 0) {  // fault here
    }
#endif
    __threadfence();
    atomicExch(lock, 0u);
}

// A barrier of the grid, for a number of times. Right only if all blocks are resident together: a cooperative launch.
__device__ inline void grid_barrier(uint32_t* arrived, uint32_t target, bool fences) {
    __syncthreads();
    if (threadIdx.x == 0) {
        if (fences) __threadfence();
        atomicAdd(arrived, 1u);
        while (*static_cast<volatile uint32_t*>(arrived) < target) {
        }
        if (fences) __threadfence();
    }
    __syncthreads();
}

// The mended twin is the same kernel, launched cooperatively.
extern "C" __global__ void grid_barrier_without_residency(uint32_t* arrived, uint32_t* data, uint32_t* out) {
    data[blockIdx.x] = blockIdx.x;
    grid_barrier(arrived, gridDim.x, true);  // fault here
    out[blockIdx.x] = data[gridDim.x - 1 - blockIdx.x];
}

extern "C" __global__ void grid_barrier_without_fence(uint32_t* arrived, uint32_t* data, uint32_t* out) {
    if (threadIdx.x == 0) data[blockIdx.x] = blockIdx.x;
#ifdef BROKEN
    grid_barrier(arrived, gridDim.x, false);
#else
    grid_barrier(arrived, gridDim.x, true);  // fault here
#endif
    if (threadIdx.x == 0) out[blockIdx.x] = data[gridDim.x - 1 - blockIdx.x];  // fault here
}

// Two launches in two streams, with an event between them or without.
extern "C" __global__ void stream_first(float* data) { data[threadIdx.x] = threadIdx.x; }
extern "C" __global__ void stream_second(const float* data, float* out) {
    out[threadIdx.x] = data[threadIdx.x];  // fault here
}

// ld.global.nc takes what a cache may have held since before the kernel began.
extern "C" __global__ void non_coherent_read(float* data, float* out) {
    data[threadIdx.x] = threadIdx.x;
    __syncthreads();
#ifdef BROKEN
    out[threadIdx.x] = __ldg(&data[threadIdx.x ^ 1]);  // fault here
#else
    out[threadIdx.x] = data[threadIdx.x ^ 1];
#endif
}

// Lanes 0 and 1 have met; lane 5, which sets the flag, was not among them.
extern "C" __global__ void release_by_a_stranger(float* data, uint32_t* flag, float* out) {
    const int lane = threadIdx.x;
    if (blockIdx.x == 0) {
        if (lane == 0) {
            *data = 42;
            __threadfence();
        }
#ifdef BROKEN
        if (lane < 2) __syncwarp(3);
#else
        __syncwarp();
#endif
        if (lane == 5) *static_cast<volatile uint32_t*>(flag) = 1;
    } else if (lane == 0) {
        while (*static_cast<volatile uint32_t*>(flag) == 0) {
        }
        __threadfence();
        *out = *data;  // fault here
    }
}

// A plain read, and then an atomic of one's own: it does not make the read known to the other block.
extern "C" __global__ void plain_read_before_atomic(uint32_t* counter, uint32_t* out) {
#ifdef BROKEN
    if (blockIdx.x == 0) *out = *counter;  // fault here
#else
    if (blockIdx.x == 0) *out = atomicAdd(counter, 0u);
#endif
    atomicAdd(counter, 1u);  // fault here
}
