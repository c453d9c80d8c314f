// What changes from step to step, in device memory: kernels read it there, so that one captured graph serves every step. Nothing
// of it is written while kernels of the step run; it may be read only after wait_for_predecessor() all the same.
#pragma once

#include "cuda/kernels/both.h"

namespace llama_ext::cuda {

struct Step {
    int64_t position;    // of the step's first token
    int64_t start;       // of the sequence: nothing lies before it, and no mask reaches past it
    int32_t rows;        // tokens of the step, at least 1; a launch is made for at most so and so many
    int32_t logit_rows;  // the last so many of them are asked for logits; 0: none
};

// Where the keys and values of a layer lie, and how much there is: a cache grows, and sessions take turns.
struct CacheState {
    // [kv_heads, capacity, head_dim] in the cache's format (q8_0: its integers); position p lies in slot p % capacity
    uint64_t keys, values;
    uint64_t key_scales, value_scales;  // q8_0: f16 [kv_heads, capacity, head_dim / 32], else 0
    int64_t capacity;
};

// An angle's pair of a step's rotation table is float2 {cosine, sine}, [max_rows, head_dim / 2].
struct Rotation {
    uint64_t inverse_frequency;  // float64 [pairs]
    uint64_t table;              // float2 [max_rows, pairs]
    int64_t chunk;               // positions count modulo this; 0: as they are
    int32_t pairs;
    int32_t padding;
};

}  // namespace llama_ext::cuda
