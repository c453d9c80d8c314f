// Lanes of one warp: they run in no order of their own, so what they tell each other through memory needs a __syncwarp.
#include "ptx.cuh"

extern "C" __global__ void missing_syncwarp(const float* in, float* out) {
    __shared__ float tile[32];
    tile[threadIdx.x] = in[threadIdx.x];
#ifndef BROKEN
    __syncwarp();
#endif
    out[threadIdx.x] = tile[31 - threadIdx.x];  // fault here
}

// The tree that warps in lockstep could do without a barrier.
extern "C" __global__ void tree_without_syncwarp(const float* in, float* out) {
    __shared__ float part[32];
    part[threadIdx.x] = in[threadIdx.x];
    __syncwarp();
    for (int half = 16; half > 0; half /= 2) {
        float other = 0;
        if (threadIdx.x < half) other = part[threadIdx.x + half];
#ifndef BROKEN
        __syncwarp();
#endif
        part[threadIdx.x] += other;  // fault here
#ifndef BROKEN
        __syncwarp();
#endif
    }
    if (threadIdx.x == 0) *out = part[0];
}

// A shuffle makes lanes wait for one another; it orders no memory.
extern "C" __global__ void shuffle_is_no_fence(const float* in, float* out) {
    __shared__ float tile[32];
    tile[threadIdx.x] = in[threadIdx.x];
#ifndef BROKEN
    __syncwarp();
#endif
    const float sum = __shfl_xor_sync(0xffffffffu, in[threadIdx.x], 1);
    out[threadIdx.x] = sum + tile[31 - threadIdx.x];  // fault here
}

// Lanes 0-15 synchronise, lanes 16-31 need it too.
extern "C" __global__ void syncwarp_of_too_few(const float* in, float* out) {
    __shared__ float tile[32];
    const int lane = threadIdx.x;
    if (lane < 16) {
        tile[lane] = in[lane];
        __syncwarp(0x0000ffffu);
        tile[lane + 16] = tile[lane ^ 1] * 2;
        __syncwarp(0x0000ffffu);
    }
#ifndef BROKEN
    __syncwarp();
#endif
    out[lane] = tile[31 - lane];  // fault here
}

// What a warp's lane wrote to global memory, read by its neighbour.
extern "C" __global__ void missing_syncwarp_global(float* data, float* out) {
    data[threadIdx.x] = threadIdx.x;
#ifndef BROKEN
    __syncwarp();
#endif
    out[threadIdx.x] = data[threadIdx.x ^ 1];  // fault here
}

// The mask does not name all the lanes that come.
extern "C" __global__ void shuffle_mask_too_small(const int* in, int* out) {
#ifdef BROKEN
    out[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, in[threadIdx.x], 1);  // fault here
#else
    out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, in[threadIdx.x], 1);
#endif
}

// The mask names lanes that wait elsewhere.
extern "C" __global__ void shuffle_of_absent_lanes(const int* in, int* out) {
    int value = in[threadIdx.x];
    if (threadIdx.x < 16) {
#ifdef BROKEN
        value += __shfl_xor_sync(0xffffffffu, value, 1);  // fault here
#else
        value += __shfl_xor_sync(0x0000ffffu, value, 1);
#endif
    }
    __syncthreads();
    out[threadIdx.x] = value;
}

extern "C" __global__ void syncwarp_of_absent_lanes(int* out) {
    __shared__ int tile[32];
    tile[threadIdx.x] = threadIdx.x;
    if (threadIdx.x % 2) {
#ifdef BROKEN
        __syncwarp(0xffffffffu);  // fault here
#else
        __syncwarp(0xaaaaaaaau);
#endif
        tile[threadIdx.x] += 1;
    }
    __syncthreads();
    out[threadIdx.x] = tile[31 - threadIdx.x];
}

// The mask of a branch has to be found before it.
extern "C" __global__ void vote_of_absent_lanes(const int* in, int* out) {
    int value = in[threadIdx.x];
    const unsigned positive = __ballot_sync(0xffffffffu, value > 0);
    if (value > 0) {
#ifdef BROKEN
        value = __ballot_sync(0xffffffffu, value > 1);  // fault here
#else
        value = __ballot_sync(positive, value > 1);
#endif
    }
    __syncthreads();
    out[threadIdx.x] = value + (positive != 0);
}

// The bytes of a word, read by the lanes next to the one that writes it.
extern "C" __global__ void bytes_of_a_word(int* words, int* out) {
    const int lane = threadIdx.x;
    if (lane % 4 == 0) words[lane / 4] = lane;
#ifndef BROKEN
    __syncwarp();
#endif
    out[lane] = reinterpret_cast<const signed char*>(words)[lane];  // fault here
}
