// Attention over keys and values that lie position by position. The kernels read keys in transposed tiles (attention.h), so a
// call first lays the keys and values that any query sees into a cache of its own and drops it at the end. That copy is read and
// written once a call, whatever the number of queries: for one query it costs several times the attention itself (a session
// appends one key a step instead), from some dozens of queries on it disappears beside it.
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "cpu/calls/calls.h"

namespace llama_ext::cpu {
namespace {

struct Free {
    void operator()(std::byte* p) const { std::free(p); }
};

struct OwnCache {
    CacheView view;
    int64_t base;  // the position in slot 0
    std::unique_ptr<std::byte, Free> memory;
};

// Slots begin at a whole block of positions: a query's keys fall into the same blocks as in a session's cache, and its result
// is the same bits.
OwnCache make_cache(const AttentionCall& call) {
    const int64_t base = call.mask.first_key(call.first_position) / kKeyBlock * kKeyBlock;
    const int64_t capacity = call.first_position + call.rows - base;
    const int64_t padded = (capacity + kKeyTile - 1) / kKeyTile * kKeyTile;
    const CacheFormat format = call.type == ValueType::f32 ? CacheFormat::f32 : CacheFormat::bf16;
    const size_t half = static_cast<size_t>(call.kv_heads * padded * call.head_dim) * value_bytes(call.type);
    const size_t bytes = (2 * half + 63) / 64 * 64;
    std::unique_ptr<std::byte, Free> memory(static_cast<std::byte*>(std::aligned_alloc(64, bytes)));
    if (!memory) throw std::bad_alloc();
    const CacheView view{format, call.kv_heads, call.head_dim, capacity, padded, memory.get(), memory.get() + half};
    return {view, base, std::move(memory)};
}

void fill(const Kernels& kernels, const AttentionCall& call, const OwnCache& cache, const Parallel& parallel) {
    const int64_t tiles = cache.view.padded / kKeyTile, row = int64_t{call.kv_heads} * call.head_dim;
    parallel(tiles, grain(2 * kKeyTile * row), [&](int64_t begin, int64_t end) {
        std::vector<float> k(static_cast<size_t>(call.head_dim)), v(k.size());
        for (int64_t tile = begin; tile < end; ++tile) {
            const int64_t last = std::min((tile + 1) * kKeyTile, cache.view.capacity);
            for (int kv_head = 0; kv_head < call.kv_heads; ++kv_head) {
                for (int64_t slot = tile * kKeyTile; slot < last; ++slot) {
                    const int64_t from = (cache.base + slot) * row + kv_head * call.head_dim;
                    widen(call.type, at(call.k, call.type, from), call.head_dim, k.data());
                    widen(call.type, at(call.v, call.type, from), call.head_dim, v.data());
                    kernels.append(cache.view, kv_head, slot, k.data(), v.data());
                }
            }
        }
    });
}

// Up to kQueryTile queries (rows, and heads of the group) of one key-value head, from `first` on.
// scratch [3][kQueryTile][head_dim]
void query_tile(const Kernels& kernels, const AttentionCall& call, const OwnCache& cache, int kv_head, int64_t first,
                float* scratch) {
    const int group = call.heads / call.kv_heads;
    const int64_t d = call.head_dim;
    const int count = static_cast<int>(std::min<int64_t>(kQueryTile, call.rows * group - first));
    float* q = scratch;
    float* block_values = q + kQueryTile * d;
    float* values = block_values + kQueryTile * d;
    Query query[kQueryTile];
    Partial total[kQueryTile], partial[kQueryTile];
    int64_t begin = INT64_MAX, end = 0, to[kQueryTile];
    for (int j = 0; j < count; ++j) {
        const int64_t row = (first + j) / group, position = call.first_position + row;
        to[j] = (row * call.heads + kv_head * group + (first + j) % group) * d;
        widen(call.type, at(call.q, call.type, to[j]), d, q + j * d);
        for (int64_t i = 0; i < d; ++i) q[j * d + i] *= call.scale;
        const SlotRange range{call.mask.first_key(position) - cache.base, position - cache.base};
        begin = std::min(begin, range.low / kKeyBlock);
        end = std::max(end, range.high / kKeyBlock + 1);
        query[j] = {q + j * d, range};
        total[j] = {values + j * d, 0, 0};
        partial[j].values = block_values + j * d;
    }
    for (int64_t block = begin; block < end; ++block) {
        kernels.attend(cache.view, kv_head, block, query, count, partial);
        for (int j = 0; j < count; ++j) kernels.merge(&total[j], partial[j], call.head_dim);
    }
    for (int j = 0; j < count; ++j) {
        const float factor = 1.0f / total[j].sum;
        for (int64_t i = 0; i < d; ++i) total[j].values[i] *= factor;
        narrow(call.type, total[j].values, d, at(call.out, call.type, to[j]));
    }
}

}  // namespace

void attention(const Kernels& kernels, const AttentionCall& call, const Parallel& parallel) {
    const OwnCache cache = make_cache(call);
    fill(kernels, call, cache, parallel);
    const int64_t queries = call.rows * (call.heads / call.kv_heads), tiles = (queries + kQueryTile - 1) / kQueryTile;
    parallel(tiles * call.kv_heads, grain(cache.view.capacity * call.head_dim), [&](int64_t begin, int64_t end) {
        std::vector<float> scratch(static_cast<size_t>(3 * kQueryTile * call.head_dim));
        for (int64_t n = begin; n < end; ++n)
            query_tile(kernels, call, cache, static_cast<int>(n / tiles), n % tiles * kQueryTile, scratch.data());
    });
}

}  // namespace llama_ext::cpu
