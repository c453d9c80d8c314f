#include "cuda/attention.h"

#include "cuda/check.h"
#include "cuda/kernels/attention.h"

namespace llama_ext::cuda {
namespace {

static_assert(static_cast<int>(Mask::Kind::global) == kMaskGlobal && static_cast<int>(Mask::Kind::chunked) == kMaskChunked &&
              static_cast<int>(Mask::Kind::sliding) == kMaskSliding);

const char* format_name(CacheFormat format) {
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

int element_bytes(CacheFormat format) {
    return format == CacheFormat::f32 ? 4 : format == CacheFormat::q8_0 || format == CacheFormat::fp8 ? 1 : 2;
}

// Counters come first and are as many for any number of rows, so that launches for different numbers of rows can share scratch.
size_t counter_bytes(int heads) { return static_cast<size_t>(kDecodeRows) * static_cast<size_t>(heads) * sizeof(uint32_t); }

size_t partials(int max_rows, int heads, int splits) {
    return static_cast<size_t>(max_rows) * static_cast<size_t>(heads) * static_cast<size_t>(splits);
}

void check(const AttentionCall& call) {
    constexpr const char* name = "attention";
    require_range(name, "max_rows", call.max_rows, 1, kDecodeRows);
    require_range(name, "kv_heads", call.kv_heads, 1, UINT16_MAX);
    require_range(name, "heads", call.heads, call.kv_heads, int64_t{kMaxGroup} * call.kv_heads);
    require(call.heads % call.kv_heads == 0, name, "heads", std::to_string(call.heads),
            "a multiple of kv_heads, " + std::to_string(call.kv_heads));
    require_range(name, "head_dim", call.head_dim, 8, kMaxHeadDim);
    const int unit = call.format == CacheFormat::q8_0 ? kCacheBlock : 8;
    require(call.head_dim % unit == 0, name, "head_dim", std::to_string(call.head_dim),
            "a multiple of " + std::to_string(unit) + " for a cache in " + format_name(call.format));
    require_range(name, "splits", call.splits, 1, kDecodeSplits);
    require(call.mask.kind == Mask::Kind::global || call.mask.extent > 0, name, "the mask's extent",
            std::to_string(call.mask.extent), "positive");
    require(call.qk_norm_eps >= 0, name, "qk_norm_eps", std::to_string(call.qk_norm_eps), "0 or more");
    require(call.temperature_scale == 0 || call.temperature_floor > 0, name, "temperature_floor",
            std::to_string(call.temperature_floor), "positive");
    require_address(name, "qkv", call.qkv, 16);
    require_address(name, "step", call.step, 8);
    require_address(name, "cache", call.cache, 8);
    require_address(name, "out", call.out, 16);
    require_address(name, "scratch", call.scratch, 16);
}

}  // namespace

// counters [kDecodeRows, heads], of which [max_rows, kv_heads] are used; partial_values [max_rows, heads, splits, head_dim];
// partial_stats, two floats each, [max_rows, heads, splits]
size_t attention_scratch_bytes(int max_rows, int heads, int head_dim, int splits) {
    return counter_bytes(heads) + partials(max_rows, heads, splits) * static_cast<size_t>(head_dim + 2) * sizeof(float);
}

Plan attention(const AttentionCall& call, const Card&) {
    check(call);
    const int group = call.heads / call.kv_heads, bytes = element_bytes(call.format);
    const bool own_kernel = call.head_dim == 64 || call.head_dim == 128;
    const int stages_bytes = decode_stages(own_kernel ? call.head_dim : 0, bytes) *
                             stage_bytes(call.head_dim, bytes, call.format == CacheFormat::q8_0);
    const uint32_t warps = static_cast<uint32_t>(head_sets(group) * decode_key_sets(group, stages_bytes));
    const Address partial_values{call.scratch.value + counter_bytes(call.heads)};
    const Address partial_stats{partial_values.value + partials(call.max_rows, call.heads, call.splits) *
                                                           static_cast<size_t>(call.head_dim) * sizeof(float)};
    return {{{std::string("attention_decode_") + format_name(call.format) + "_" +
                  (own_kernel ? std::to_string(call.head_dim) : "any") + "_" + std::to_string(heads_a_warp(group)),
              {static_cast<uint32_t>(call.splits), static_cast<uint32_t>(call.kv_heads), static_cast<uint32_t>(call.max_rows)},
              {32 * warps, 1, 1},
              static_cast<uint32_t>(decode_shared_bytes(group, call.head_dim, stages_bytes)),
              {{"qkv", call.qkv},
               {"step", call.step},
               {"cache", call.cache},
               {"out", call.out},
               {"counters", call.scratch},
               {"partial_stats", partial_stats},
               {"partial_values", partial_values},
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
