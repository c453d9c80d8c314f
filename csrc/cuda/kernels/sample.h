// What a launch of sample reads from device memory.
#pragma once

#include "cuda/kernels/both.h"
#include "program/sampling.h"

namespace llama_ext::cuda {

// How a step draws the token that follows its last row.
struct DrawState {
    SamplingConstants constants;
    uint64_t draw;     // sampling.h's draw index
    uint64_t history;  // int32 [history_size], distinct or not: ids seen so far, for the repetition penalty
    uint32_t history_size;
    uint32_t wanted;  // 0: nothing is drawn, and the id stays as it is
};

inline constexpr int kSampleThreads = 1024;

}  // namespace llama_ext::cuda
