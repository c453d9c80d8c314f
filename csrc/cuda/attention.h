#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/plan.h"
#include "program/program.h"

namespace llama_ext::cuda {

// The cache of a layer: position p in slot p % capacity.
struct CacheView {
    Address keys, values;  // [kv_heads, capacity, head_dim] of format
    int kv_heads, head_dim;
    int64_t capacity;
    CacheFormat format;
};

// cache[position] = k, v
struct AppendCall {
    Address k, v;      // [kv_heads, head_dim] float32
    Address position;  // [1] int64
    CacheView cache;
};

// out = softmax(scale q K^T over the mask's keys) V, for one token; its own key and value are in the cache already
struct AttentionCall {
    Address q;         // [heads, head_dim] float32
    Address position;  // [1] int64
    CacheView cache;
    Address out;      // [heads, head_dim] float32
    Address scratch;  // attention_scratch_bytes()
    int heads;
    int splits;  // the keys are shared out among so many blocks a key-value head, whatever the position
    Mask mask;
    float scale;
};

size_t attention_scratch_bytes(int heads, int head_dim, int splits);

Plan attention_append(const AppendCall& call);
Plan attention(const AttentionCall& call);

}  // namespace llama_ext::cuda
