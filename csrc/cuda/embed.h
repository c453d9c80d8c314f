// The first launch of a step: rows of the embedding, and the step's rotation tables.
#pragma once

#include <cstdint>

#include "cuda/pack.h"
#include "cuda/plan.h"

namespace llama_ext::cuda {

struct EmbedCall {
    Matrix table;  // [vocab, hidden], packed
    Address ids;   // int32 [max_rows], each from 0 to vocab - 1
    Address step;  // Step [1]
    Address x;     // float32 [max_rows, hidden]
    int max_rows;
    Address rotations;   // Rotation [rotation_count]
    int rotation_count;  // 0: none, and rotations is null
};

// One launch. Angles: position % chunk * inverse_frequency in float64, cosine and sine rounded to float32 once or nearly so.
Plan embed(const EmbedCall& call);

}  // namespace llama_ext::cuda
