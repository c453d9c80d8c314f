#include "cuda/attention.h"

#include "cuda/check.h"
#include "cuda/kernels/attention.h"

namespace llama_ext::cuda {
namespace {

static_assert(static_cast<int>(Mask::Kind::global) == kMaskGlobal && static_cast<int>(Mask::Kind::chunked) == kMaskChunked &&
              static_cast<int>(Mask::Kind::sliding) == kMaskSliding);

constexpr int kMaxSplits = 1024;

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

void check(const char* operation, const CacheView& cache, Address position) {
    require_range(operation, "kv_heads", cache.kv_heads, 1, UINT16_MAX);
    require_range(operation, "head_dim", cache.head_dim, 8, kMaxHeadDim);
    require(cache.format != CacheFormat::q8_0 && cache.format != CacheFormat::fp8, operation, "the cache's format",
            format_name(cache.format), "f32, f16 or bf16");
    require(cache.head_dim % 8 == 0, operation, "head_dim", std::to_string(cache.head_dim), "a multiple of 8");
    require_range(operation, "capacity", cache.capacity, 1, INT32_MAX);
    require_address(operation, "keys", cache.keys, 16);
    require_address(operation, "values", cache.values, 16);
    require_address(operation, "position", position, 8);
}

}  // namespace

// partial_values [heads, splits, head_dim], partial_max [heads, splits], partial_sum [heads, splits]
size_t attention_scratch_bytes(int heads, int head_dim, int splits) {
    return static_cast<size_t>(heads) * static_cast<size_t>(splits) * static_cast<size_t>(head_dim + 2) * sizeof(float);
}

Plan attention_append(const AppendCall& call) {
    const CacheView& cache = call.cache;
    check("attention_append", cache, call.position);
    require_address("attention_append", "k", call.k, 4);
    require_address("attention_append", "v", call.v, 4);
    const uint32_t threads = static_cast<uint32_t>((cache.head_dim + 31) / 32 * 32);
    return {{{std::string("attention_append_") + format_name(cache.format),
              {static_cast<uint32_t>(cache.kv_heads), 1, 1},
              {threads, 1, 1},
              0,
              {{"k", call.k},
               {"v", call.v},
               {"position", call.position},
               {"keys", cache.keys},
               {"values", cache.values},
               {"capacity", cache.capacity},
               {"head_dim", int32_t{cache.head_dim}}},
              true}},
            {}};
}

Plan attention(const AttentionCall& call) {
    const CacheView& cache = call.cache;
    check("attention", cache, call.position);
    require_range("attention", "heads", call.heads, cache.kv_heads, int64_t{kMaxGroup} * cache.kv_heads);
    require(call.heads % cache.kv_heads == 0, "attention", "heads", std::to_string(call.heads),
            "a multiple of kv_heads, " + std::to_string(cache.kv_heads));
    require_range("attention", "splits", call.splits, 1, kMaxSplits);
    require(call.mask.kind == Mask::Kind::global || call.mask.extent > 0, "attention", "the mask's extent",
            std::to_string(call.mask.extent), "positive");
    require_address("attention", "q", call.q, 4);
    require_address("attention", "out", call.out, 4);
    require_address("attention", "scratch", call.scratch, 16);

    const int group = call.heads / cache.kv_heads, of_warp = heads_per_warp(group);
    const int element_bytes = static_cast<int>(cache_row_bytes(cache.format, 1));
    const uint32_t warps = static_cast<uint32_t>((group + of_warp - 1) / of_warp);
    const bool own_kernel = cache.head_dim == 64 || cache.head_dim == 128;
    const std::string kernel = std::string("attention_split_") + format_name(cache.format) + "_" +
                               (own_kernel ? std::to_string(cache.head_dim) : "any") + "_" + std::to_string(of_warp);
    const uint64_t partials = static_cast<uint64_t>(call.heads) * static_cast<uint64_t>(call.splits);
    const Address partial_values = call.scratch;
    const Address partial_max{partial_values.value + partials * static_cast<uint64_t>(cache.head_dim) * sizeof(float)};
    const Address partial_sum{partial_max.value + partials * sizeof(float)};
    const Launch split{kernel,
                       {static_cast<uint32_t>(call.splits), static_cast<uint32_t>(cache.kv_heads), 1},
                       {32 * warps, 1, 1},
                       static_cast<uint32_t>(split_shared_bytes(group, cache.head_dim, element_bytes)),
                       {{"q", call.q},
                        {"keys", cache.keys},
                        {"values", cache.values},
                        {"position", call.position},
                        {"partial_max", partial_max},
                        {"partial_sum", partial_sum},
                        {"partial_values", partial_values},
                        {"capacity", cache.capacity},
                        {"extent", call.mask.extent},
                        {"mask", static_cast<int32_t>(call.mask.kind)},
                        {"group", int32_t{group}},
                        {"head_dim", int32_t{cache.head_dim}},
                        {"scale", call.scale}},
                       true};
    const Launch combine{"attention_combine",
                         {static_cast<uint32_t>(call.heads), 1, 1},
                         {static_cast<uint32_t>((cache.head_dim + 31) / 32 * 32), 1, 1},
                         0,
                         {{"partial_max", partial_max},
                          {"partial_sum", partial_sum},
                          {"partial_values", partial_values},
                          {"out", call.out},
                          {"splits", int32_t{call.splits}},
                          {"head_dim", int32_t{cache.head_dim}}},
                         true};
    return {{split, combine}, {}};
}

}  // namespace llama_ext::cuda
