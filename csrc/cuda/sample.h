// A token from logits, with the ids that the CPU's sampler gives (program/sampling.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/kernels/sample.h"
#include "cuda/plan.h"

namespace llama_ext::cuda {

// id = a token drawn from logits [vocab], as program/sampling.h defines it, or one of its error codes. The position of the draw
// is that of the token drawn: step.position + step.rows.
struct SampleCall {
    Address logits;  // float32 [vocab], of the last row
    int64_t vocab;
    Address step;     // Step [1]
    Address draw;     // DrawState [1]
    Address scratch;  // sample_scratch_bytes(vocab); zeroed once, when it is made. Of one sampler: no two run at a time
    Address id;       // int32 [1]
};

size_t sample_scratch_bytes(int64_t vocab);
Plan sample(const SampleCall& call, const Card& card);  // one launch

}  // namespace llama_ext::cuda
