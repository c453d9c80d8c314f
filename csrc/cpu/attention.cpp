#include "cpu/attention.h"

#include <algorithm>

#include "cpu/bind.h"

namespace llama_ext::cpu {
namespace {

void normalise(Partial* partial, int head_dim) {
    const float factor = 1.0f / partial->sum;
    for (int d = 0; d < head_dim; ++d) partial->values[d] *= factor;
}

struct BoundAttention final : BoundInstruction {
    Attention i;

    int group() const { return i.heads / i.kv_heads; }

    SlotRange slots(const Step& step, const CacheView& cache, int64_t position) const {
        const int64_t first = std::max(i.mask.first_key(position), step.cache->start());
        return {first % cache.capacity, position % cache.capacity};
    }

    // The blocks that hold any of the slots; a wrapped range may touch every block.
    static Share blocks(const CacheView& cache, SlotRange range) {
        if (range.low > range.high) return {0, (cache.capacity + kKeyBlock - 1) / kKeyBlock};
        return {range.low / kKeyBlock, range.high / kKeyBlock + 1};
    }

    void run(Step& step, int member) const override {
        const CacheView& cache = step.cache->layer(i.cache);
        append(step, member, cache);
        step.team.barrier();
        if (step.rows == 1)
            one_row(step, member, cache);
        else
            many_rows(step, member, cache);
    }

    // QK-norm and the query's scale, then k and v into the cache: a key-value head of a row is one piece of work.
    void append(Step& step, int member, const CacheView& cache) const {
        const Share mine = share(int64_t{step.rows} * i.kv_heads, member, step.team.size());
        for (int64_t n = mine.begin; n < mine.end; ++n) {
            const int64_t row = n / i.kv_heads, position = step.position + row;
            const int kv_head = static_cast<int>(n % i.kv_heads);
            float* q = step.q + (row * i.heads + kv_head * group()) * i.head_dim;
            float* k = step.k + n * i.head_dim;
            if (i.qk_norm) {
                for (int g = 0; g < group(); ++g)
                    step.kernels.rms_norm(q + g * i.head_dim, nullptr, i.qk_norm_eps, i.head_dim, q + g * i.head_dim);
                step.kernels.rms_norm(k, nullptr, i.qk_norm_eps, i.head_dim, k);
            }
            const float scale = i.scale * i.temperature(position);
            for (int64_t d = 0; d < int64_t{group()} * i.head_dim; ++d) q[d] *= scale;
            step.kernels.append(cache, kv_head, position % cache.capacity, k, step.v + n * i.head_dim);
        }
    }

    // One query a head: the blocks of slots are shared out, then merged head by head.
    void one_row(Step& step, int member, const CacheView& cache) const {
        const SlotRange range = slots(step, cache, step.position);
        const Share span = blocks(cache, range);
        const int64_t count = span.end - span.begin;
        // Heads of a group share a pass over their keys, unless there are too few passes to keep the team busy.
        const int together = count * i.kv_heads >= 2 * step.team.size() ? std::min(group(), kQueryTile) : 1;
        const int64_t passes = (group() + together - 1) / together;
        const Share mine = share(count * i.kv_heads * passes, member, step.team.size());
        for (int64_t n = mine.begin; n < mine.end; ++n) {
            // Block after block of one head: its keys, and its values, follow one another in memory.
            const int64_t block = n / passes % count;
            const int kv_head = static_cast<int>(n / (passes * count));
            const int first = static_cast<int>(n % passes) * together, queries = std::min(together, group() - first);
            Query query[kQueryTile];
            Partial partial[kQueryTile];
            for (int j = 0; j < queries; ++j) {
                const int64_t head = kv_head * group() + first + j;
                query[j] = {step.q + head * i.head_dim, range};
                partial[j].values =
                    count == 1 ? step.a + head * i.head_dim : step.block_values + (head * count + block) * i.head_dim;
            }
            step.kernels.attend(cache, kv_head, span.begin + block, query, queries, partial);
            for (int j = 0; j < queries; ++j) {
                if (count == 1)
                    normalise(&partial[j], i.head_dim);
                else
                    step.block_partials[(kv_head * group() + first + j) * count + block] = partial[j];
            }
        }
        if (count == 1) return;
        step.team.barrier();
        const Share heads = share(i.heads, member, step.team.size());
        for (int64_t head = heads.begin; head < heads.end; ++head) {
            Partial total{step.a + head * i.head_dim, 0, 0};
            for (int64_t block = 0; block < count; ++block)
                step.kernels.merge(&total, step.block_partials[head * count + block], i.head_dim);
            normalise(&total, i.head_dim);
        }
    }

    // Queries of one key-value head (rows, and heads of the group) in tiles; a tile is one piece of work.
    void many_rows(Step& step, int member, const CacheView& cache) const {
        const int64_t queries = int64_t{step.rows} * group(), tiles = (queries + kQueryTile - 1) / kQueryTile;
        const Share mine = share(tiles * i.kv_heads, member, step.team.size());
        float* scratch = step.members[static_cast<size_t>(member)].partials;
        for (int64_t n = mine.begin; n < mine.end; ++n) {
            const int kv_head = static_cast<int>(n / tiles);
            const int64_t first = n % tiles * kQueryTile;
            const int count = static_cast<int>(std::min<int64_t>(kQueryTile, queries - first));
            Query query[kQueryTile];
            Partial total[kQueryTile], partial[kQueryTile];
            Share span{INT64_MAX, 0};
            for (int j = 0; j < count; ++j) {
                const int64_t row = (first + j) / group(), head = kv_head * group() + (first + j) % group();
                const SlotRange range = slots(step, cache, step.position + row);
                const Share own = blocks(cache, range);
                span = {std::min(span.begin, own.begin), std::max(span.end, own.end)};
                query[j] = {step.q + (row * i.heads + head) * i.head_dim, range};
                total[j] = {step.a + (row * i.heads + head) * i.head_dim, 0, 0};
                partial[j].values = scratch + j * i.head_dim;
            }
            for (int64_t block = span.begin; block < span.end; ++block) {
                step.kernels.attend(cache, kv_head, block, query, count, partial);
                for (int j = 0; j < count; ++j) step.kernels.merge(&total[j], partial[j], i.head_dim);
            }
            for (int j = 0; j < count; ++j) normalise(&total[j], i.head_dim);
        }
    }
};

}  // namespace

std::unique_ptr<BoundInstruction> bind(const Attention& instruction, Binder&) {
    auto bound = std::make_unique<BoundAttention>();
    bound->i = instruction;
    return bound;
}

}  // namespace llama_ext::cpu
