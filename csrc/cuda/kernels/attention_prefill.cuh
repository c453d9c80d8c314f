// What the kernels of attention for many rows share: which queries a block has, and which keys they see.
#pragma once

#include "cuda/kernels/attention.h"
#include "cuda/kernels/attention_prefill.h"
#include "cuda/kernels/device.cuh"
#include "cuda/kernels/step.h"

namespace {

using namespace llama_ext::cuda;

constexpr float kLog2E = 1.4426950408889634f;

__device__ __forceinline__ float exp2_of(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

// Mask::first_key of program/instruction.h, and nothing before the sequence's start.
__device__ __forceinline__ int64_t first_key(int64_t position, int64_t start, int mask, int64_t extent) {
    int64_t first = 0;
    if (mask == kMaskChunked) first = position - position % extent;
    if (mask == kMaskSliding) first = position - extent + 1;
    return max(first, start);
}

// The queries of a block, which are neighbours, and the keys that any of them sees. These are neighbours too: a later row's
// range neither begins nor ends before an earlier one's, and each ends with the row itself.
struct Queries {
    int64_t position, start;  // of the step
    int64_t first;            // position of the block's first key: keys are counted from it
    int64_t slot, capacity;   // key i lies in slot (slot + i) % capacity
    int count;                // of the block's keys
    int from, end;            // queries of the block, and of all

    // Blocks of late queries come first: they have most keys.
    // False: there are no queries for this block.
    __device__ bool find(const Step* step, const CacheState* cache, int of_block, int group, int mask, int64_t extent) {
        end = step->rows * group;
        from = ((end + of_block - 1) / of_block - 1 - static_cast<int>(blockIdx.y)) * of_block;
        if (from < 0) return false;
        position = step->position, start = step->start, capacity = cache->capacity;
        first = first_key(position + from / group, start, mask, extent);
        count = static_cast<int>(position + (min(from + of_block, end) - 1) / group - first) + 1;
        slot = first % capacity;
        return true;
    }
    // The keys that a query sees: low to high. None if there is no such query.
    __device__ void range(int query, int group, int mask, int64_t extent, int* low, int* high) const {
        const int64_t at = position + query / group;
        *low = query < end ? static_cast<int>(first_key(at, start, mask, extent) - first) : INT_MAX;
        *high = query < end ? static_cast<int>(at - first) : -1;
    }
    // Of a key, which is one of the block's.
    __device__ int64_t slot_of(int key) const {
        const int64_t at = slot + key;
        return at < capacity ? at : at - capacity;
    }
};

// Attention::temperature of program/instruction.h.
__device__ __forceinline__ float temperature(int64_t position, float scale, int64_t floor) {
    return scale == 0.0f ? 1.0f : fmaf(logf(static_cast<float>((position + 1) / floor + 1)), scale, 1.0f);
}

}  // namespace
