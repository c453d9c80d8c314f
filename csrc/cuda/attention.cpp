#include "cuda/attention.h"

#include "cuda/attention_check.h"
#include "cuda/check.h"
#include "cuda/kernels/attention.h"

namespace llama_ext::cuda {
namespace {

int element_bytes(CacheFormat format) {
    return format == CacheFormat::f32 ? 4 : format == CacheFormat::q8_0 || format == CacheFormat::fp8 ? 1 : 2;
}

// Counters come first and are as many for any number of rows, so that launches for different numbers of rows can share scratch.
size_t counter_bytes(int heads) { return static_cast<size_t>(kDecodeRows) * static_cast<size_t>(heads) * sizeof(uint32_t); }

size_t partials(int max_rows, int heads, int splits) {
    return static_cast<size_t>(max_rows) * static_cast<size_t>(heads) * static_cast<size_t>(splits);
}

}  // namespace

// counters [kDecodeRows, heads], of which [max_rows, kv_heads] are used; partial_values [max_rows, heads, splits, head_dim];
// partial_stats, two floats each, [max_rows, heads, splits]
size_t attention_scratch_bytes(int max_rows, int heads, int head_dim, int splits) {
    return counter_bytes(heads) + partials(max_rows, heads, splits) * static_cast<size_t>(head_dim + 2) * sizeof(float);
}

Plan attention(const AttentionCall& call, const Card&) {
    constexpr const char* name = "attention";
    check_attention(name, call, kDecodeRows);
    require_range(name, "splits", call.splits, 1, kDecodeSplits);
    require_address(name, "out", call.out, 16);
    require_address(name, "scratch", call.scratch, 16);
    const int group = call.heads / call.kv_heads, bytes = element_bytes(call.format);
    const bool own_kernel = call.head_dim == 64 || call.head_dim == 128;
    const int stages_bytes = decode_stages(own_kernel ? call.head_dim : 0, bytes) *
                             stage_bytes(call.head_dim, bytes, call.format == CacheFormat::q8_0);
    const uint32_t warps = static_cast<uint32_t>(head_sets(group) * decode_key_sets(group, stages_bytes));
    const Address partial_values{call.scratch.value + counter_bytes(call.heads)};
    const Address partial_stats{partial_values.value + partials(call.max_rows, call.heads, call.splits) *
                                                           static_cast<size_t>(call.head_dim) * sizeof(float)};
    return {{{std::string("attention_decode_") + cache_format_name(call.format) + "_" +
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
