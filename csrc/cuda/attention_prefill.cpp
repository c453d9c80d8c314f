#include "cuda/kernels/attention_prefill.h"

#include "cuda/attention_check.h"
#include "cuda/check.h"
#include "cuda/kernels/attention.h"

namespace llama_ext::cuda {

Plan attention_prefill(const AttentionCall& call, const Card&) {
    constexpr const char* name = "attention_prefill";
    check_attention(name, call, UINT16_MAX);
    require_address(name, "out", call.out, 8);

    const int group = call.heads / call.kv_heads;
    const bool on_tensor_cores = (call.head_dim == 64 || call.head_dim == 128) && call.format != CacheFormat::f32;
    const int of_block = on_tensor_cores ? kPrefillQueries : kAnyQueries;
    const std::string format = cache_format_name(call.format);
    return {{{on_tensor_cores ? "attention_prefill_" + format + "_" + std::to_string(call.head_dim)
                              : "attention_prefill_any_" + format,
              {static_cast<uint32_t>(call.kv_heads),
               static_cast<uint32_t>((int64_t{call.max_rows} * group + of_block - 1) / of_block), 1},
              {32 * kPrefillWarps, 1, 1},
              on_tensor_cores ? 0 : static_cast<uint32_t>(any_shared_bytes(call.head_dim)),
              {{"qkv", call.qkv},
               {"step", call.step},
               {"cache", call.cache},
               {"out", call.out},
               {"extent", call.mask.extent},
               {"temperature_floor", call.temperature_floor},
               {"mask", static_cast<int32_t>(call.mask.kind)},
               {"group", int32_t{group}},
               {"head_dim", int32_t{call.head_dim}},
               {"scale", call.scale},
               {"qk_norm", int32_t{call.qk_norm}},
               {"qk_norm_eps", call.qk_norm_eps},
               {"temperature_scale", call.temperature_scale}},
              true}},
            {}};
}

}  // namespace llama_ext::cuda
