#include "cuda/attention_prefill.h"

#include "cuda/check.h"
#include "cuda/kernels/attention.h"
#include "cuda/kernels/attention_prefill.h"

namespace llama_ext::cuda {

static_assert(static_cast<int>(Mask::Kind::global) == kMaskGlobal && static_cast<int>(Mask::Kind::chunked) == kMaskChunked &&
              static_cast<int>(Mask::Kind::sliding) == kMaskSliding);

const char* cache_format_name(CacheFormat format) {
    switch (format) {
        case CacheFormat::f32:
            return "f32";
        case CacheFormat::f16:
            return "f16";
        case CacheFormat::q8_0:
            return "q8_0";
        case CacheFormat::fp8:
            return "fp8";
        case CacheFormat::bf16:
            break;
    }
    return "bf16";
}

void check_prefill(const char* operation, const AttentionCall& call) {
    require_range(operation, "max_rows", call.max_rows, 1, UINT16_MAX);
    require_range(operation, "kv_heads", call.kv_heads, 1, UINT16_MAX);
    require_range(operation, "heads", call.heads, call.kv_heads, int64_t{kMaxGroup} * call.kv_heads);
    require(call.heads % call.kv_heads == 0, operation, "heads", std::to_string(call.heads),
            "a multiple of kv_heads, " + std::to_string(call.kv_heads));
    require_range(operation, "head_dim", call.head_dim, 8, kMaxHeadDim);
    const int unit = call.format == CacheFormat::q8_0 ? kCacheBlock : 8;
    require(call.head_dim % unit == 0, operation, "head_dim", std::to_string(call.head_dim),
            "a multiple of " + std::to_string(unit) + " for a cache in " + cache_format_name(call.format));
    require(call.qk_norm_eps >= 0, operation, "qk_norm_eps", std::to_string(call.qk_norm_eps), "0 or more");
    require_address(operation, "qkv", call.qkv, 16);
    require_address(operation, "step", call.step, 8);
    require_address(operation, "cache", call.cache, 8);
}

Plan attention_prefill(const AttentionCall& call, const Card&) {
    constexpr const char* name = "attention_prefill";
    check_prefill(name, call);
    require(call.mask.kind == Mask::Kind::global || call.mask.extent > 0, name, "the mask's extent",
            std::to_string(call.mask.extent), "positive");
    require(call.temperature_scale == 0 || call.temperature_floor > 0, name, "temperature_floor",
            std::to_string(call.temperature_floor), "positive");
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
