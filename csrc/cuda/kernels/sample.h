// What the sampler's kernel and its host code agree on.
#pragma once

#include "cuda/kernels/both.h"
#include "program/sampling.h"

namespace llama_ext::cuda {

// How a step draws the token that follows its last row; lies in device memory.
struct DrawState {
    SamplingConstants constants;
    uint64_t draw;     // sampling.h's draw index
    uint64_t history;  // int32 [history_size], distinct or not; ids seen so far, for the repetition penalty
    uint32_t history_size;
    uint32_t wanted;  // 0: nothing is drawn, and id stays as it is
};

inline constexpr uint32_t kSampleStages = 3;
inline constexpr uint32_t kSampleThreads = 512;
inline constexpr uint32_t kSampleSlice = 4 * kSampleThreads;  // logits of a block, 4 a thread
inline constexpr int kSampleIdBits = 20;
// A slice a thread of the block that draws.
inline constexpr uint32_t kSampleMaxVocab = kSampleThreads * kSampleSlice;
static_assert(kSampleMaxVocab <= uint32_t{1} << kSampleIdBits);

// Ranges of scaled logits, 1/16 wide, from 0 down to kZeroBelow; a bucket a thread.
inline constexpr float kSampleBucketsAUnit = 16.0f;
inline constexpr uint32_t kSampleBuckets = 445;
static_assert(kSampleBuckets == static_cast<uint32_t>(-kZeroBelow * kSampleBucketsAUnit) + 1 && kSampleBuckets <= kSampleThreads);

// Zero between launches, but for the ticket.
struct SampleState {
    uint64_t best;                     // the greatest of the slices', see the kernel
    uint64_t weights[kSampleBuckets];  // of a bucket's logits
    uint32_t counts[kSampleBuckets];
    uint32_t arrived[kSampleStages];  // slices that a stage is through with
    uint32_t listed;                  // candidates
    uint32_t ticket;                  // blocks that have begun, modulo the grid
};

LLAMA_EXT_BOTH constexpr uint32_t sample_slices(uint32_t vocab) { return (vocab + kSampleSlice - 1) / kSampleSlice; }

}  // namespace llama_ext::cuda
