#include "cuda/attention_check.h"
#include "cuda/kernels/attention_prefill.h"

namespace llama_ext::cuda {

Plan attention_append(const AttentionCall& call, const Card&) {
    check_cache_rows("attention_append", call, UINT16_MAX);
    const int blocks = (2 * call.kv_heads + kAppendWarps - 1) / kAppendWarps;
    return {{{std::string("attention_append_") + cache_format_name(call.format),
              {static_cast<uint32_t>(call.max_rows), static_cast<uint32_t>(blocks), 1},
              {32 * kAppendWarps, 1, 1},
              0,
              {{"qkv", call.qkv},
               {"step", call.step},
               {"cache", call.cache},
               {"heads", int32_t{call.heads}},
               {"kv_heads", int32_t{call.kv_heads}},
               {"head_dim", int32_t{call.head_dim}},
               {"qk_norm", int32_t{call.qk_norm}},
               {"qk_norm_eps", call.qk_norm_eps}},
              true}},
            {}};
}

}  // namespace llama_ext::cuda
