#include "cpu/attention.h"

#include "cpu/kernels/level.h"
#include "program/half.h"

namespace llama_ext::cpu::LLAMA_EXT_LEVEL {
namespace {

struct F32Cache {
    using Element = float;
    LLAMA_EXT_INLINE F32x16 load16(const float* p) { return load(p); }
    LLAMA_EXT_INLINE F32x16 load_some(const float* p, int n) { return load_first(p, n); }
    LLAMA_EXT_INLINE float narrow(float x) { return x; }
};

struct F16Cache {
    using Element = uint16_t;
    LLAMA_EXT_INLINE F32x16 load16(const uint16_t* p) { return load_f16(p); }
    LLAMA_EXT_INLINE F32x16 load_some(const uint16_t* p, int n) {
        uint16_t values[16] = {};
        memcpy(values, p, static_cast<size_t>(n) * 2);
        return load_f16(values);
    }
    LLAMA_EXT_INLINE uint16_t narrow(float x) { return f16_from_f32(x); }
};

struct Bf16Cache {
    using Element = uint16_t;
    LLAMA_EXT_INLINE F32x16 load16(const uint16_t* p) { return load_bf16(p); }
    LLAMA_EXT_INLINE F32x16 load_some(const uint16_t* p, int n) {
        uint16_t values[16] = {};
        memcpy(values, p, static_cast<size_t>(n) * 2);
        return load_bf16(values);
    }
    LLAMA_EXT_INLINE uint16_t narrow(float x) { return bf16_from_f32(x); }
};

template <class C>
void append_as(const CacheView& cache, int kv_head, int64_t slot, const float* k, const float* v) {
    using Element = typename C::Element;
    const int64_t head_dim = cache.head_dim;
    Element* keys = reinterpret_cast<Element*>(cache.keys) + (kv_head * cache.padded + slot / kKeyTile * kKeyTile) * head_dim +
                    slot % kKeyTile;
    Element* values = reinterpret_cast<Element*>(cache.values) + (kv_head * cache.padded + slot) * head_dim;
    for (int64_t d = 0; d < head_dim; ++d) {
        keys[d * kKeyTile] = C::narrow(k[d]);
        values[d] = C::narrow(v[d]);
    }
}

// Which of the 16 slots from `first` on lie in the range and in front of `end`.
LLAMA_EXT_INLINE uint32_t visible(const SlotRange& range, int64_t first, int64_t end) {
    uint32_t mask = 0;
    for (int i = 0; i < kKeyTile; ++i) {
        const int64_t slot = first + i;
        const bool inside =
            range.low <= range.high ? range.low <= slot && slot <= range.high : slot <= range.high || slot >= range.low;
        mask |= static_cast<uint32_t>(inside && slot < end) << i;
    }
    return mask;
}

// Scores of `count` queries with `tiles` tiles of keys from `keys` on, into scores [count][kKeyBlock] from column `at` on.
template <class C, int count, int tiles>
LLAMA_EXT_INLINE void score(const typename C::Element* keys, const Query* queries, int64_t head_dim, float (*scores)[kKeyBlock],
                            int at) {
    F32x16 acc[count][tiles];
    for (int i = 0; i < count; ++i)
        for (int t = 0; t < tiles; ++t) acc[i][t] = zero();
    for (int64_t d = 0; d < head_dim; ++d) {
        F32x16 k[tiles];
        for (int t = 0; t < tiles; ++t) k[t] = C::load16(keys + (t * head_dim + d) * kKeyTile);
        for (int i = 0; i < count; ++i) {
            const F32x16 q = broadcast(queries[i].q[d]);
            for (int t = 0; t < tiles; ++t) acc[i][t] = fma(k[t], q, acc[i][t]);
        }
    }
    for (int i = 0; i < count; ++i)
        for (int t = 0; t < tiles; ++t) store(scores[i] + at + t * kKeyTile, acc[i][t]);
}

// Which slots of a block the queries of a pass see, tile by tile.
template <int count>
struct Seen {
    uint32_t by[count][kKeyBlock / kKeyTile], any[kKeyBlock / kKeyTile], all[kKeyBlock / kKeyTile];
};

// One tile's part of weigh(). checked: some query does not see some slot that another sees. It must leave that slot out and
// not take it times zero, for what lies there need not be finite.
template <class C, int count, int vectors, bool checked>
LLAMA_EXT_INLINE void weigh_tile(const typename C::Element* values, int64_t head_dim, const Seen<count>& seen, int tile,
                                 int64_t from, int last, const float (*weights)[kKeyBlock], F32x16 (&acc)[count][vectors]) {
    for (uint32_t mask = seen.any[tile]; mask; mask &= mask - 1) {
        const int bit = __builtin_ctz(mask), key = tile * kKeyTile + bit;
        const typename C::Element* row = values + key * head_dim + from;
        F32x16 v[vectors];
        for (int j = 0; j < vectors - 1; ++j) v[j] = C::load16(row + 16 * j);
        v[vectors - 1] = last == 16 ? C::load16(row + 16 * (vectors - 1)) : C::load_some(row + 16 * (vectors - 1), last);
        for (int i = 0; i < count; ++i) {
            if (checked && !(seen.by[i][tile] >> bit & 1)) continue;
            const F32x16 weight = broadcast(weights[i][key]);
            for (int j = 0; j < vectors; ++j) acc[i][j] = fma(weight, v[j], acc[i][j]);
        }
    }
}

// Values [from .. from + width) of a head, weighted: out[i][from + j] = sum over keys of weights[i][key] * values[key][from + j]
template <class C, int count, int vectors>
LLAMA_EXT_INLINE void weigh(const typename C::Element* values, int64_t head_dim, const Seen<count>& seen, int tiles, int64_t from,
                            int last, const float (*weights)[kKeyBlock], Partial* out) {
    F32x16 acc[count][vectors];
    for (int i = 0; i < count; ++i)
        for (int j = 0; j < vectors; ++j) acc[i][j] = zero();
    for (int tile = 0; tile < tiles; ++tile) {
        if (seen.any[tile] == seen.all[tile])
            weigh_tile<C, count, vectors, false>(values, head_dim, seen, tile, from, last, weights, acc);
        else
            weigh_tile<C, count, vectors, true>(values, head_dim, seen, tile, from, last, weights, acc);
    }
    for (int i = 0; i < count; ++i) {
        for (int j = 0; j < vectors - 1; ++j) store(out[i].values + from + 16 * j, acc[i][j]);
        store_first(out[i].values + from + 16 * (vectors - 1), last, acc[i][vectors - 1]);
    }
}

template <class C, int count>
void attend_as(const CacheView& cache, int kv_head, int64_t block, const Query* queries, Partial* out) {
    using Element = typename C::Element;
    const int64_t head_dim = cache.head_dim, first = block * kKeyBlock;
    const int64_t end = first + kKeyBlock < cache.capacity ? first + kKeyBlock : cache.capacity;
    const int tiles = static_cast<int>((end - first + kKeyTile - 1) / kKeyTile);
    const Element* keys = reinterpret_cast<const Element*>(cache.keys) + (kv_head * cache.padded + first) * head_dim;
    const Element* values = reinterpret_cast<const Element*>(cache.values) + (kv_head * cache.padded + first) * head_dim;

    Seen<count> seen;
    int used = 0;  // tiles up to the last that anyone sees
    for (int t = 0; t < tiles; ++t) {
        seen.any[t] = 0;
        seen.all[t] = ~0u;
        for (int i = 0; i < count; ++i) {
            seen.by[i][t] = visible(queries[i].slots, first + t * kKeyTile, end);
            seen.any[t] |= seen.by[i][t];
            seen.all[t] &= seen.by[i][t];
        }
        if (seen.any[t]) used = t + 1;
    }

    alignas(64) float scores[count][kKeyBlock];
    int t = 0;
    for (; t + 4 <= used; t += 4) score<C, count, 4>(keys + t * kKeyTile * head_dim, queries, head_dim, scores, t * kKeyTile);
    for (; t < used; ++t) score<C, count, 1>(keys + t * kKeyTile * head_dim, queries, head_dim, scores, t * kKeyTile);

    for (int i = 0; i < count; ++i) {
        const F32x16 nothing = broadcast(-__builtin_inff());
        F32x16 largest = nothing;
        bool sees_any = false;
        for (t = 0; t < used; ++t) {
            if (!seen.by[i][t]) continue;
            sees_any = true;
            largest = max(largest, select(seen.by[i][t], load(scores[i] + t * kKeyTile), nothing));
        }
        out[i].maximum = reduce_max(largest);
        F32x16 sum = zero();
        for (t = 0; t < used; ++t) {
            // Slots that this query does not see weigh nothing, whatever lies there.
            const F32x16 weight = select(seen.by[i][t], exp(load(scores[i] + t * kKeyTile) - broadcast(out[i].maximum)), zero());
            if (seen.by[i][t]) sum = sum + weight;
            store(scores[i] + t * kKeyTile, weight);
        }
        out[i].sum = sees_any ? reduce_add(sum) : 0.0f;
    }

    int64_t from = 0;
    for (; from + 64 <= head_dim; from += 64) weigh<C, count, 4>(values, head_dim, seen, used, from, 16, scores, out);
    for (; from < head_dim; from += 16) {
        const int width = static_cast<int>(head_dim - from < 16 ? head_dim - from : 16);
        weigh<C, count, 1>(values, head_dim, seen, used, from, width, scores, out);
    }
}

template <class C>
void attend_counted(const CacheView& cache, int kv_head, int64_t block, const Query* queries, int count, Partial* out) {
    switch (count) {
        case 1:
            return attend_as<C, 1>(cache, kv_head, block, queries, out);
        case 2:
            return attend_as<C, 2>(cache, kv_head, block, queries, out);
        case 3:
            return attend_as<C, 3>(cache, kv_head, block, queries, out);
        default:
            return attend_as<C, 4>(cache, kv_head, block, queries, out);
    }
}

}  // namespace

void append(const CacheView& cache, int kv_head, int64_t slot, const float* k, const float* v) {
    switch (cache.format) {
        case CacheFormat::f32:
            return append_as<F32Cache>(cache, kv_head, slot, k, v);
        case CacheFormat::f16:
            return append_as<F16Cache>(cache, kv_head, slot, k, v);
        case CacheFormat::bf16:
            return append_as<Bf16Cache>(cache, kv_head, slot, k, v);
    }
}

void attend(const CacheView& cache, int kv_head, int64_t block, const Query* queries, int count, Partial* out) {
    switch (cache.format) {
        case CacheFormat::f32:
            return attend_counted<F32Cache>(cache, kv_head, block, queries, count, out);
        case CacheFormat::f16:
            return attend_counted<F16Cache>(cache, kv_head, block, queries, count, out);
        case CacheFormat::bf16:
            return attend_counted<Bf16Cache>(cache, kv_head, block, queries, count, out);
    }
}

void merge(Partial* total, const Partial& next, int head_dim) {
    if (next.sum == 0.0f) return;
    if (total->sum == 0.0f) {
        for (int d = 0; d < head_dim; ++d) total->values[d] = next.values[d];
        total->maximum = next.maximum;
        total->sum = next.sum;
        return;
    }
    const float maximum = total->maximum > next.maximum ? total->maximum : next.maximum;
    alignas(64) float weights[16];
    store(weights, exp(select(1, broadcast(total->maximum), broadcast(next.maximum)) - broadcast(maximum)));
    const float old_weight = weights[0], next_weight = weights[1];
    for (int d = 0; d < head_dim; ++d) total->values[d] = total->values[d] * old_weight + next.values[d] * next_weight;
    total->sum = total->sum * old_weight + next.sum * next_weight;
    total->maximum = maximum;
}

}  // namespace llama_ext::cpu::LLAMA_EXT_LEVEL
