#pragma once

#include <cstdint>

#include "cuda/plan.h"

namespace llama_ext::cuda {

// Turns heads in place, pair by pair (2i, 2i + 1): rows [rows, stride], of which each has `heads` heads at its beginning.
struct RopeCall {
    Address x;      // float32 [rows, stride], stride >= heads * 2 * pairs
    Address table;  // float2 {cosine, sine} [rows, pairs]
    int64_t rows, stride;
    int heads, pairs;
};

Plan rope(const RopeCall& call);

}  // namespace llama_ext::cuda
