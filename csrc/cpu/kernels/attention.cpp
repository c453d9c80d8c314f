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

struct Q8Cache {
    using Element = int8_t;
    LLAMA_EXT_INLINE F32x16 load16(const int8_t* p) { return load_i8(p); }
    LLAMA_EXT_INLINE F32x16 load_some(const int8_t* p, int) { return load_i8(p); }  // never asked for: rows are whole blocks
    // A tile's scales of one block, lane by lane; tile: its integers [16 head_dim]
    LLAMA_EXT_INLINE F32x16 scales(const int8_t* tile, int64_t head_dim, int64_t block) {
        return load_f16(tile + kKeyTile * (head_dim + 2 * block));
    }
};

template <class C>
inline constexpr bool kScaled = false;
template <>
inline constexpr bool kScaled<Q8Cache> = true;

// Elements of a tile of keys or values, its scales counted in.
template <class C>
LLAMA_EXT_INLINE int64_t tile_elements(int64_t head_dim) {
    return kScaled<C> ? kKeyTile * (head_dim + 2 * (head_dim / kCacheBlock)) : kKeyTile * head_dim;
}

template <class C>
void append_as(const CacheView& cache, int kv_head, int64_t slot, const float* k, const float* v) {
    using Element = typename C::Element;
    const int64_t head_dim = cache.head_dim, lane = slot % kKeyTile;
    const size_t tile = tile_offset(cache, kv_head, slot);
    Element* keys = reinterpret_cast<Element*>(cache.keys + tile) + lane;
    Element* values = reinterpret_cast<Element*>(cache.values + tile) + lane * head_dim;
    for (int64_t d = 0; d < head_dim; ++d) {
        keys[d * kKeyTile] = C::narrow(k[d]);
        values[d] = C::narrow(v[d]);
    }
}

// x [32] -> q [32] and their scale, as CacheFormat defines it
LLAMA_EXT_INLINE uint16_t quantize_q8_0(const float* x, int8_t* q) {
    const F32x16 values[2] = {load(x), load(x + 16)};
    // The largest magnitude by its bits, as in quantize_q15: a NaN is above all others.
    const int32_t largest_bits = reduce_max(max(f32_to_bits(abs(values[0])), f32_to_bits(abs(values[1]))));
    float largest;
    memcpy(&largest, &largest_bits, sizeof largest);
    // Far below what f16 can scale, 127 / largest would overflow; an infinity or a NaN stays visible in the scale, over ones: a
    // zero times an infinity would depend on who multiplies it.
    const bool tiny = largest < 1e-30f, finite = largest_bits < 0x7f800000;
    const F32x16 to_int = broadcast(tiny ? 0.0f : 127.0f / largest);
    for (int half = 0; half < 2; ++half)
        store_i8(q + 16 * half, finite ? round_to_i32(values[half] * to_int) : broadcast(int32_t{1}));
    return f16_from_f32(largest / 127.0f);
}

template <>
void append_as<Q8Cache>(const CacheView& cache, int kv_head, int64_t slot, const float* k, const float* v) {
    const int64_t head_dim = cache.head_dim, lane = slot % kKeyTile;
    const size_t tile = tile_offset(cache, kv_head, slot);
    int8_t* keys = reinterpret_cast<int8_t*>(cache.keys + tile);
    int8_t* values = reinterpret_cast<int8_t*>(cache.values + tile);
    for (int64_t d = 0; d < head_dim; d += kCacheBlock) {
        int8_t q[kCacheBlock];
        const int64_t scale_at = kKeyTile * head_dim + 2 * (d / kCacheBlock * kKeyTile + lane);
        const uint16_t key_scale = quantize_q8_0(k + d, q);
        for (int64_t j = 0; j < kCacheBlock; ++j) keys[(d + j) * kKeyTile + lane] = q[j];
        memcpy(keys + scale_at, &key_scale, sizeof key_scale);
        const uint16_t value_scale = quantize_q8_0(v + d, values + lane * head_dim + d);
        memcpy(values + scale_at, &value_scale, sizeof value_scale);
    }
}

// Of the 16 slots from `first` on, those in front of `end`.
LLAMA_EXT_INLINE uint32_t before(int64_t first, int64_t end) {
    const int64_t n = end - first;
    return n <= 0 ? 0 : n >= kKeyTile ? 0xffff : (1u << n) - 1;
}

// Which of the 16 slots from `first` on lie in the range and in front of `end`.
LLAMA_EXT_INLINE uint32_t visible(const SlotRange& range, int64_t first, int64_t end) {
    const uint32_t from_low = ~before(first, range.low), to_high = before(first, range.high + 1);
    return (range.low <= range.high ? from_low & to_high : from_low | to_high) & before(first, end);
}

// Tiles of q8_0 are asked for by hand so many tiles ahead, in this block or the next: with half as many bytes an element, the
// hardware's own look-ahead leaves a third of the time waiting. The wider formats gain nothing from it.
constexpr int kTilesAhead = 4;

// Scores of `count` queries with `tiles` tiles of keys from `keys` on, into scores [count][kKeyBlock] from column `at` on.
template <class C, int count, int tiles>
LLAMA_EXT_INLINE void score(const typename C::Element* keys, const Query* queries, int64_t head_dim, float (*scores)[kKeyBlock],
                            int at) {
    const int64_t tile = tile_elements<C>(head_dim), part = kScaled<C> ? kCacheBlock : head_dim;
    for (int64_t from = 0; from < head_dim; from += part) {
        F32x16 acc[count][tiles];
        for (int i = 0; i < count; ++i)
            for (int t = 0; t < tiles; ++t) acc[i][t] = zero();
        for (int64_t d = from; d < from + part; ++d) {
            F32x16 k[tiles];
            if (kScaled<C> && d % (64 / kKeyTile) == 0)
                for (int t = 0; t < tiles; ++t) __builtin_prefetch(keys + (t + kTilesAhead) * tile + d * kKeyTile);
            for (int t = 0; t < tiles; ++t) k[t] = C::load16(keys + t * tile + d * kKeyTile);
            for (int i = 0; i < count; ++i) {
                const F32x16 q = broadcast(queries[i].q[d]);
                for (int t = 0; t < tiles; ++t) acc[i][t] = fma(k[t], q, acc[i][t]);
            }
        }
        for (int t = 0; t < tiles; ++t) {
            if constexpr (kScaled<C>) {
                const F32x16 scale = C::scales(keys + t * tile, head_dim, from / kCacheBlock);
                for (int i = 0; i < count; ++i)
                    acc[i][t] = from == 0 ? acc[i][t] * scale : fma(acc[i][t], scale, load(scores[i] + at + t * kKeyTile));
            }
            for (int i = 0; i < count; ++i) store(scores[i] + at + t * kKeyTile, acc[i][t]);
        }
    }
}

// Which slots of a block the queries of a pass see, tile by tile.
template <int count>
struct Seen {
    uint32_t by[count][kKeyBlock / kKeyTile], any[kKeyBlock / kKeyTile], all[kKeyBlock / kKeyTile];
};

// One tile's part of weigh(); values: the tile. checked: some query does not see some slot that another sees. It must leave that
// slot out and not take it times zero, for what lies there need not be finite.
template <class C, int count, int vectors, bool checked>
LLAMA_EXT_INLINE void weigh_tile(const typename C::Element* values, int64_t head_dim, const Seen<count>& seen, int tile,
                                 int64_t from, int last, const float (*weights)[kKeyBlock], F32x16 (&acc)[count][vectors]) {
    constexpr int blocks = kScaled<C> ? vectors / 2 : 1;
    // With scales: the weights times the scale of each block. A slot that nobody sees may make NaNs here, which nobody takes.
    float scaled[count][blocks][kKeyTile];
    if constexpr (kScaled<C>) {
        for (int b = 0; b < blocks; ++b) {
            const F32x16 scale = C::scales(values, head_dim, from / kCacheBlock + b);
            for (int i = 0; i < count; ++i) store(scaled[i][b], load(weights[i] + tile * kKeyTile) * scale);
        }
    }
    for (uint32_t mask = seen.any[tile]; mask; mask &= mask - 1) {
        const int bit = __builtin_ctz(mask);
        const typename C::Element* row = values + bit * head_dim + from;
        if (kScaled<C>) __builtin_prefetch(row + kTilesAhead * tile_elements<C>(head_dim));
        F32x16 v[vectors];
        for (int j = 0; j < vectors - 1; ++j) v[j] = C::load16(row + 16 * j);
        v[vectors - 1] = last == 16 ? C::load16(row + 16 * (vectors - 1)) : C::load_some(row + 16 * (vectors - 1), last);
        for (int i = 0; i < count; ++i) {
            if (checked && !(seen.by[i][tile] >> bit & 1)) continue;
            F32x16 weight[blocks];
            for (int b = 0; b < blocks; ++b)
                weight[b] = broadcast(kScaled<C> ? scaled[i][b][bit] : weights[i][tile * kKeyTile + bit]);
            for (int j = 0; j < vectors; ++j) acc[i][j] = fma(weight[kScaled<C> ? j / 2 : 0], v[j], acc[i][j]);
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
    for (int tile = 0; tile < tiles; ++tile, values += tile_elements<C>(head_dim)) {
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
    const int64_t tile = tile_elements<C>(head_dim);
    const Element* keys = reinterpret_cast<const Element*>(cache.keys + tile_offset(cache, kv_head, first));
    const Element* values = reinterpret_cast<const Element*>(cache.values + tile_offset(cache, kv_head, first));

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
    for (; t + 4 <= used; t += 4) score<C, count, 4>(keys + t * tile, queries, head_dim, scores, t * kKeyTile);
    for (; t < used; ++t) score<C, count, 1>(keys + t * tile, queries, head_dim, scores, t * kKeyTile);

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
    if constexpr (kScaled<C>) {
        if (from < head_dim) weigh<C, count, 2>(values, head_dim, seen, used, from, 16, scores, out);
    } else {
        for (; from < head_dim; from += 16) {
            const int width = static_cast<int>(head_dim - from < 16 ? head_dim - from : 16);
            weigh<C, count, 1>(values, head_dim, seen, used, from, width, scores, out);
        }
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
        case CacheFormat::q8_0:
            return append_as<Q8Cache>(cache, kv_head, slot, k, v);
        case CacheFormat::fp8:  // no cache of the CPU has it
            break;
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
        case CacheFormat::q8_0:
            return attend_counted<Q8Cache>(cache, kv_head, block, queries, count, out);
        case CacheFormat::fp8:  // no cache of the CPU has it
            break;
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
