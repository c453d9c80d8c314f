#include "cuda/attention_check.h"

#include "cuda/check.h"
#include "cuda/kernels/attention.h"

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

void check_cache_rows(const char* operation, const AttentionCall& call, int64_t most_rows) {
    require_range(operation, "max_rows", call.max_rows, 1, most_rows);
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

void check_attention(const char* operation, const AttentionCall& call, int64_t most_rows) {
    check_cache_rows(operation, call, most_rows);
    require(call.mask.kind == Mask::Kind::global || call.mask.extent > 0, operation, "the mask's extent",
            std::to_string(call.mask.extent), "positive");
    require(call.temperature_scale == 0 || call.temperature_floor > 0, operation, "temperature_floor",
            std::to_string(call.temperature_floor), "positive");
}

}  // namespace llama_ext::cuda
