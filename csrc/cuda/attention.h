// Attention over a cache of keys and values.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/plan.h"
#include "program/program.h"

namespace llama_ext::cuda {

// a = softmax(scale q K^T over the mask's keys) V, as program/instruction.h defines it: QK-norm and temperature included.
struct AttentionCall {
    Address qkv;      // float32 [max_rows, (heads + 2 kv_heads) * head_dim]: of each row q, then k, then v; q and k are rotated
    Address step;     // Step [1]
    Address cache;    // CacheState [1]
    Address out;      // float32 [max_rows, heads * head_dim]
    Address scratch;  // attention_scratch_bytes(); zeroed once, when it is made
    int max_rows;
    int heads, kv_heads, head_dim;
    CacheFormat format;
    Mask mask;
    float scale;
    bool qk_norm;
    float qk_norm_eps;
    float temperature_scale;  // 0: none
    int64_t temperature_floor;
    int splits;  // the keys are shared out among so many blocks a key-value head, whatever the position
};

size_t attention_scratch_bytes(int max_rows, int heads, int head_dim, int splits);

// Up to 16 rows: appends their keys and values, attends and combines, in one launch. A row's result is the same bits for any
// max_rows up to 16 and any number of rows.
Plan attention(const AttentionCall& call, const Card& card);

// The same for any number of rows, in two launches: attention_append writes keys and values, attention_prefill reads them.
// scratch and splits are not used.
Plan attention_append(const AttentionCall& call, const Card& card);
Plan attention_prefill(const AttentionCall& call, const Card& card);

}  // namespace llama_ext::cuda
