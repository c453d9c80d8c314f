// A program's attention reads rows of q, k and v side by side in float32 and a cache a head after the other: a call lays both out
// in its scratch. The cache is of the tensors' own type, so nothing is rounded.
#include "cuda/attention.h"

#include <algorithm>

#include "cuda/calls/calls.h"
#include "cuda/check.h"
#include "cuda/kernels/attention.h"
#include "cuda/kernels/call.h"
#include "cuda/kernels/step.h"

namespace llama_ext::cuda::calls {
namespace {

constexpr const char* kName = "attention";
constexpr int64_t kKeysASplit = 64;  // at least, or a block has less to do than to add its part to the others'

constexpr int64_t kPrefillRows = 1 << 15;  // a launch, at most

// By the keys and the card alone, not by the rows: what else is in a call moves no bit of a row.
int splits_for(const Attention& call, int64_t keys, const Card& card) {
    const int64_t by_keys = (keys + kKeysASplit - 1) / kKeysASplit, by_card = 2 * card.multiprocessors / call.kv_heads;
    return static_cast<int>(std::clamp<int64_t>(std::min(by_keys, by_card), 1, kDecodeSplits));
}

Launch lay_out_cache(const Attention& call, Pointer from, Address to, int64_t keys) {
    const int64_t pieces = call.head_dim * value_bytes(call.type) / 16;
    return {"call_cache",
            {blocks(kName, keys * call.kv_heads * pieces, kCallThreads), 1, 1},
            {kCallThreads, 1, 1},
            0,
            {{"x", Address{from}}, {"cache", to}, {"keys", keys}, {"heads", int64_t{call.kv_heads}}, {"pieces", pieces}},
            true};
}

// x [rows, cols] into the columns from `column` on of qkv [rows, stride]
Launch lay_out_rows(const Attention& call, Pointer x, int64_t cols, Address qkv, int64_t column, int64_t stride) {
    const int64_t each = call.type == Type::f32 ? 4 : 8;
    return {call.type == Type::f32 ? "call_rows_f32" : "call_rows_bf16",
            {blocks(kName, call.rows * cols / each, kCallThreads), 1, 1},
            {kCallThreads, 1, 1},
            0,
            {{"x", Address{x}},
             {"y", Address{qkv.value + 4 * static_cast<uint64_t>(column)}},
             {"rows", call.rows},
             {"cols", cols},
             {"stride", stride}},
            true};
}

}  // namespace

Plan build(const Attention& call, const Card& card, Scratch& scratch) {
    require_range(kName, "kv_heads", call.kv_heads, 1, UINT16_MAX);
    require_range(kName, "heads", call.heads, call.kv_heads, int64_t{kMaxGroup} * call.kv_heads);
    require_range(kName, "head_dim", call.head_dim, 8, kMaxHeadDim);
    require(call.head_dim % 8 == 0, kName, "head_dim", std::to_string(call.head_dim), "a multiple of 8");
    require(call.mask.kind == Mask::Kind::global || call.mask.extent > 0, kName, "the mask's extent",
            std::to_string(call.mask.extent), "positive");
    require_range(kName, "first_position", call.first_position, 0, call.keys);
    require_range(kName, "rows", call.rows, 1, call.keys - call.first_position);
    for (const auto& [name, address] : {std::pair{"q", call.q}, {"k", call.k}, {"v", call.v}, {"out", call.out}})
        require_address(kName, name, {address}, 16);
    const int64_t d = call.head_dim, width = call.heads * d, kv_width = call.kv_heads * d, stride = width + 2 * kv_width;
    product_of(kName, "q", {call.rows, stride, 4});
    product_of(kName, "k", {call.keys, kv_width, 4});

    // Key `base` is the first that any query sees, and slot 0 holds it. What a chunked mask shows does not change: a base is the
    // start of a chunk.
    const int64_t base = call.mask.first_key(call.first_position), keys = call.first_position + call.rows - base;
    const uint64_t row_bytes = static_cast<uint64_t>(kv_width * value_bytes(call.type));
    const uint64_t own = static_cast<uint64_t>(call.first_position) * row_bytes;  // of the first query's key
    const Address key_cache = scratch.take(keys * static_cast<int64_t>(row_bytes));
    const Address value_cache = scratch.take(keys * static_cast<int64_t>(row_bytes));
    const Address qkv = scratch.take(4 * call.rows * stride);
    const Address state = scratch.take(sizeof(CacheState));
    const bool narrow = call.type == Type::bf16;
    const Address out = narrow ? scratch.take(4 * call.rows * width) : Address{call.out};

    Plan plan;
    const uint64_t first = static_cast<uint64_t>(base) * row_bytes;
    plan.launches.push_back(lay_out_cache(call, call.k + first, key_cache, keys));
    plan.launches.push_back(lay_out_cache(call, call.v + first, value_cache, keys));
    plan.launches.push_back(lay_out_rows(call, call.q, width, qkv, 0, stride));
    plan.launches.push_back({"call_cache_state",
                             {1, 1, 1},
                             {1, 1, 1},
                             0,
                             {{"state", state}, {"keys", key_cache}, {"values", value_cache}, {"capacity", keys}},
                             true});
    AttentionCall attend{};
    attend.cache = state;
    attend.heads = call.heads;
    attend.kv_heads = call.kv_heads;
    attend.head_dim = call.head_dim;
    attend.format = narrow ? CacheFormat::bf16 : CacheFormat::f32;
    attend.mask = call.mask;
    attend.scale = call.scale;
    if (call.rows <= kDecodeRows) {
        // It appends its rows once more: their keys and values, as they are.
        plan.launches.push_back(lay_out_rows(call, call.k + own, kv_width, qkv, width, stride));
        plan.launches.push_back(lay_out_rows(call, call.v + own, kv_width, qkv, width + kv_width, stride));
        attend.step = scratch.take(sizeof(Step));
        attend.qkv = qkv;
        attend.out = out;
        attend.max_rows = static_cast<int>(call.rows);
        attend.splits = splits_for(call, keys, card);
        const size_t needed = attention_scratch_bytes(attend.max_rows, call.heads, call.head_dim, attend.splits);
        const int64_t partial_bytes = static_cast<int64_t>((needed + 15) / 16 * 16);
        attend.scratch = scratch.take(partial_bytes);
        zero(&plan, attend.scratch, partial_bytes);
        write_step(&plan, attend.step, call.first_position - base, call.rows);
        append(&plan, cuda::attention(attend, card));
    } else {
        for (int64_t row = 0; row < call.rows; row += kPrefillRows) {
            const int64_t rows = std::min(kPrefillRows, call.rows - row);
            attend.step = scratch.take(sizeof(Step));
            attend.qkv = {qkv.value + 4 * static_cast<uint64_t>(row * stride)};
            attend.out = {out.value + 4 * static_cast<uint64_t>(row * width)};
            attend.max_rows = static_cast<int>(rows);
            write_step(&plan, attend.step, call.first_position - base + row, rows);
            append(&plan, attention_prefill(attend, card));
        }
    }
    if (narrow) to_bf16(&plan, out, {call.out}, call.rows * width);
    return plan;
}

}  // namespace llama_ext::cuda::calls
