// What attention_append and attention_prefill ask of a call.
#pragma once

#include "cuda/attention.h"

namespace llama_ext::cuda {

const char* cache_format_name(CacheFormat format);

// Throws std::invalid_argument, in the name of `operation`.
void check_prefill(const char* operation, const AttentionCall& call);

}  // namespace llama_ext::cuda
