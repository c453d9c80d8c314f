// What attention's operations share: the cache format's name and their preconditions.
#pragma once

#include "cuda/attention.h"

namespace llama_ext::cuda {

const char* cache_format_name(CacheFormat format);  // in the kernels' names

// What any of them asks of its call, in the name of `operation`; at most `most_rows` rows.
void check_cache_rows(const char* operation, const AttentionCall& call, int64_t most_rows);

// What those that attend ask besides.
void check_attention(const char* operation, const AttentionCall& call, int64_t most_rows);

}  // namespace llama_ext::cuda
