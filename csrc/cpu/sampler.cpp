// The CPU sampler. Vector passes over blocks of 64 logits find the maximum and the weights; top-k and top-p
// then look only at blocks that can hold a survivor, and find the last survivor by histograms over the order
// of the logits.
#include "cpu/sampler.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <stdexcept>

// The kernels are written once as plain loops and compiled again for AVX2 and AVX-512; elsewhere the baseline
// serves, and NEON and SSE2 vectorise it too. All give the same bits as long as nothing is fused: see
// -ffp-contract=off in program/sampling.h (AVX2 alone has no fused multiply-add, AVX-512 has).
#if defined(__x86_64__) && defined(__GNUC__)
#define SAMPLE_X86 1
#endif
#if defined(__GNUC__)
#define SAMPLE_INLINE inline __attribute__((always_inline))
#else
#define SAMPLE_INLINE inline
#endif

namespace llama_ext {

namespace {

constexpr uint32_t kBlock = 64;
constexpr int kBucketBits = 11;
constexpr uint32_t kBuckets = 1u << kBucketBits;

// Top-p first tries to settle with the tokens at least this close to the maximum, nearest first.
constexpr int kHeads = 3;
constexpr float kHeadZ[kHeads] = {-4.0f, -8.0f, -13.0f};

constexpr uint32_t blocks_of(uint32_t vocab) { return (vocab + kBlock - 1) / kBlock; }

struct Totals {
    uint64_t total = 0;
    uint64_t head[kHeads] = {};  // lower bounds of the weight with z >= kHeadZ[i]; only if asked for
};

struct Logits {
    const float* data;  // [vocab]
    uint32_t vocab;
    float max;
    float inverse_temperature;
    const int32_t* block_key;  // [blocks]

    bool block_reaches(uint32_t block, float z) const {
        return scaled_logit(from_order_key(block_key[block]), max, inverse_temperature) >= z;
    }
};

// Fills keys [blocks] with each block's largest order_key. Returns whether there is a NaN.
SAMPLE_INLINE bool scan_block(const float* x, uint32_t n, int32_t* key) {
    int32_t best = std::numeric_limits<int32_t>::min();
    int32_t nan = 0;
    for (uint32_t j = 0; j < n; ++j) {
        const int32_t k = order_key(x[j]);
        best = k > best ? k : best;
        nan |= x[j] != x[j];
    }
    *key = best;
    return nan != 0;
}

SAMPLE_INLINE bool scan(const float* logits, uint32_t vocab, int32_t* keys) {
    bool nan = false;
    const uint32_t whole = vocab / kBlock;
    for (uint32_t b = 0; b < whole; ++b) nan |= scan_block(logits + b * kBlock, kBlock, keys + b);
    if (vocab % kBlock) nan |= scan_block(logits + whole * kBlock, vocab % kBlock, keys + whole);
    return nan;
}

SAMPLE_INLINE uint64_t weigh_block(const Logits& logits, uint32_t first, uint32_t n, uint64_t floor, bool heads,
                                   uint64_t* weights, Totals& totals) {
    alignas(64) float z[kBlock];
    alignas(64) int32_t mantissa[kBlock];
    alignas(64) int32_t shift[kBlock];
    const float max = logits.max, inverse = logits.inverse_temperature;
    const float* x = logits.data + first;
    for (uint32_t j = 0; j < n; ++j) {
        z[j] = scaled_logit(x[j], max, inverse);
        const Exponential e = exponential_or_zero(z[j]);
        mantissa[j] = e.mantissa;
        shift[j] = e.shift;
    }
    uint64_t sum = 0;
    uint64_t* w = weights + first;
    for (uint32_t j = 0; j < n; ++j) {
        const uint64_t wj = weight(Exponential{mantissa[j], shift[j]});
        // Weights are below 2^63, and a signed comparison is one instruction in AVX2.
        const uint64_t kept = static_cast<int64_t>(wj) >= static_cast<int64_t>(floor) ? wj : 0;
        w[j] = kept;
        sum += kept;
    }
    if (heads) {
        for (int h = 0; h < kHeads; ++h) {
            // 64 mantissas below 2^25 fit. Heads have shifts below 32; what lies outside is masked.
            uint32_t part = 0;
            for (uint32_t j = 0; j < n; ++j) {
                const int32_t in = -static_cast<int32_t>(z[j] >= kHeadZ[h]);
                part += static_cast<uint32_t>((mantissa[j] & in) >> (shift[j] & 31));
            }
            totals.head[h] += static_cast<uint64_t>(part) << 16;
        }
    }
    return sum;
}

// Writes weights [vocab] (0 where below `floor`) and block_sum [blocks]; a block whose sum is 0 may be left
// unwritten. `skip_below` is a z under which every weight is known to be below `floor` or 0.
SAMPLE_INLINE Totals weigh(const Logits& logits, float skip_below, uint64_t floor, bool heads, uint64_t* weights,
                           uint64_t* block_sum) {
    Totals totals;
    const uint32_t whole = logits.vocab / kBlock, blocks = blocks_of(logits.vocab);
    for (uint32_t b = 0; b < blocks; ++b) {
        uint64_t sum = 0;
        if (logits.block_reaches(b, skip_below)) {
            sum = b < whole ? weigh_block(logits, b * kBlock, kBlock, floor, heads, weights, totals)
                            : weigh_block(logits, b * kBlock, logits.vocab % kBlock, floor, heads, weights, totals);
        }
        block_sum[b] = sum;
        totals.total += sum;
    }
    return totals;
}

// Writes to list [vocab] the ranks, in increasing id, of the logits with z >= least_z and order_key >=
// least_key.
SAMPLE_INLINE uint32_t gather(const Logits& logits, float least_z, int32_t least_key, int32_t max_key, uint64_t* list) {
    uint32_t size = 0;
    const float max = logits.max, inverse = logits.inverse_temperature;
    const uint32_t blocks = blocks_of(logits.vocab);
    for (uint32_t b = 0; b < blocks; ++b) {
        if (logits.block_key[b] < least_key || !logits.block_reaches(b, least_z)) continue;
        const uint32_t first = b * kBlock;
        const float* x = logits.data + first;
        if (first + kBlock <= logits.vocab) {
            alignas(64) int32_t in[kBlock];
            for (uint32_t j = 0; j < kBlock; ++j) {
                in[j] = static_cast<int32_t>(scaled_logit(x[j], max, inverse) >= least_z) &
                        static_cast<int32_t>(order_key(x[j]) >= least_key);
            }
            for (uint32_t j = 0; j < kBlock; j += 8) {
                int32_t any = 0;
                for (uint32_t i = 0; i < 8; ++i) any |= in[j + i];
                if (!any) continue;
                for (uint32_t i = 0; i < 8; ++i) {
                    list[size] = rank(x[j + i], max_key, first + j + i);
                    size += static_cast<uint32_t>(in[j + i]);
                }
            }
        } else {
            for (uint32_t id = first; id < logits.vocab; ++id) {
                const float v = logits.data[id];
                if (scaled_logit(v, max, inverse) >= least_z && order_key(v) >= least_key) {
                    list[size++] = rank(v, max_key, id);
                }
            }
        }
    }
    return size;
}

#define SAMPLE_KERNELS(level, attribute)                                                                                    \
    attribute bool scan_##level(const float* x, uint32_t vocab, int32_t* keys) { return scan(x, vocab, keys); }             \
    attribute Totals weigh_##level(const Logits& x, float skip, uint64_t floor, uint64_t* w, uint64_t* sums) {              \
        return weigh(x, skip, floor, false, w, sums);                                                                       \
    }                                                                                                                       \
    attribute Totals weigh_heads_##level(const Logits& x, float skip, uint64_t floor, uint64_t* w, uint64_t* sums) {        \
        return weigh(x, skip, floor, true, w, sums);                                                                        \
    }                                                                                                                       \
    attribute uint32_t gather_##level(const Logits& x, float least_z, int32_t least_key, int32_t max_key, uint64_t* list) { \
        return gather(x, least_z, least_key, max_key, list);                                                                \
    }

SAMPLE_KERNELS(baseline, )
#if defined(SAMPLE_X86)
SAMPLE_KERNELS(avx2, __attribute__((target("avx2"))))
#if defined(__clang__)  // ignores a whole attribute that names a vector width
SAMPLE_KERNELS(avx512, __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))))
#else
SAMPLE_KERNELS(avx512, __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"))))
#endif
#endif
#undef SAMPLE_KERNELS

}  // namespace

struct Sampler::Kernels {
    bool (*scan)(const float*, uint32_t, int32_t*);
    Totals (*weigh)(const Logits&, float, uint64_t, uint64_t*, uint64_t*);
    Totals (*weigh_heads)(const Logits&, float, uint64_t, uint64_t*, uint64_t*);
    uint32_t (*gather)(const Logits&, float, int32_t, int32_t, uint64_t*);

    static const Kernels baseline, avx2, avx512;
};

const Sampler::Kernels Sampler::Kernels::baseline{scan_baseline, weigh_baseline, weigh_heads_baseline, gather_baseline};
#if defined(SAMPLE_X86)
const Sampler::Kernels Sampler::Kernels::avx2{scan_avx2, weigh_avx2, weigh_heads_avx2, gather_avx2};
const Sampler::Kernels Sampler::Kernels::avx512{scan_avx512, weigh_avx512, weigh_heads_avx512, gather_avx512};
#endif

Sampler::Sampler(uint32_t capacity) : capacity_(capacity) {
    if (capacity < 1 || capacity > kMaxVocab) throw std::invalid_argument("a vocabulary has 1 to 4194304 tokens");
    weight_ = std::make_unique<uint64_t[]>(capacity);
    list_ = std::make_unique<uint64_t[]>(capacity);
    refined_ = std::make_unique<uint64_t[]>(capacity);
    penalised_ = std::make_unique<float[]>(capacity);
    block_key_ = std::make_unique<int32_t[]>(blocks_of(capacity));
    block_sum_ = std::make_unique<uint64_t[]>(blocks_of(capacity));
    histogram_ = std::make_unique<uint64_t[]>(kBuckets);
    use(Level::avx512);
}

Sampler::Level Sampler::level(std::string_view simd) {
    if (simd.starts_with("avx512")) return Level::avx512;
    return simd == "avx2" ? Level::avx2 : Level::portable;
}

void Sampler::use(Level level) {
    kernels_ = &Kernels::baseline;
#if defined(SAMPLE_X86)
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (level >= Level::avx2 && __builtin_cpu_supports("avx2")) kernels_ = &Kernels::avx2;
    if (level >= Level::avx512 && avx512) kernels_ = &Kernels::avx512;
#else
    static_cast<void>(level);
#endif
}

// Returns a penalised copy, or nullptr if the history holds an id outside the vocabulary.
const float* Sampler::penalise_history(const float* logits, uint32_t vocab, const int32_t* history, size_t history_size,
                                       float penalty) {
    std::memcpy(penalised_.get(), logits, vocab * sizeof(float));
    for (size_t i = 0; i < history_size; ++i) {
        const uint32_t id = static_cast<uint32_t>(history[i]);
        if (id >= vocab) return nullptr;
        penalised_[id] = penalise(logits[id], penalty);  // of the original: a repeated id changes nothing
    }
    return penalised_.get();
}

// The last rank of the shortest prefix, in order of rank, that reaches `target`: a count, or a weight if
// kWeighted. `list` is in increasing id and does reach it. Each round splits what is left into at most 2048
// ranges of logits and goes on in the one where the target falls; equal logits are already in the order that
// breaks ties.
template <bool kWeighted>
uint64_t Sampler::select(const uint64_t* list, uint32_t size, uint64_t target) {
    const auto amount = [this](uint64_t rank) -> uint64_t { return kWeighted ? weight_[static_cast<uint32_t>(rank)] : 1; };
    uint64_t* histogram = histogram_.get();
    for (;;) {
        uint64_t low = std::numeric_limits<uint64_t>::max(), high = 0;
        for (uint32_t i = 0; i < size; ++i) {
            low = std::min(low, list[i]);
            high = std::max(high, list[i]);
        }
        low >>= 32;
        high >>= 32;
        if (low == high) {
            uint32_t i = 0;
            for (uint64_t reached = amount(list[0]); reached < target; reached += amount(list[i])) ++i;
            return list[i];
        }
        const int shift = std::max(0, static_cast<int>(std::bit_width(high - low)) - kBucketBits);
        std::fill_n(histogram, ((high - low) >> shift) + 1, uint64_t{0});
        for (uint32_t i = 0; i < size; ++i) histogram[((list[i] >> 32) - low) >> shift] += amount(list[i]);
        uint64_t bucket = 0;
        for (; histogram[bucket] < target; ++bucket) target -= histogram[bucket];
        uint64_t* refined = refined_.get();
        uint32_t kept = 0;
        for (uint32_t i = 0; i < size; ++i) {
            const uint64_t rank = list[i];
            refined[kept] = rank;
            kept += ((rank >> 32) - low) >> shift == bucket;
        }
        list = refined;
        size = kept;
    }
}

namespace {

// Keeps the ranks up to `last`, in order.
uint32_t keep_up_to(uint64_t* list, uint32_t size, uint64_t last) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < size; ++i) {
        const uint64_t rank = list[i];
        list[kept] = rank;
        kept += rank <= last;
    }
    return kept;
}

}  // namespace

int32_t Sampler::sample(const float* logits, uint32_t vocab, const int32_t* history, size_t history_size,
                        const SamplingConstants& params, uint64_t position, uint64_t draw) {
    if (vocab < 1 || vocab > capacity_) throw std::invalid_argument("the vocabulary exceeds the sampler's capacity");
    if (params.repetition_penalty != 1.0f && history_size > 0) {
        logits = penalise_history(logits, vocab, history, history_size, params.repetition_penalty);
        if (!logits) return kSampleBadHistory;
    }
    const uint32_t blocks = blocks_of(vocab);
    if (kernels_->scan(logits, vocab, block_key_.get())) return kSampleNan;
    const int32_t* best = std::max_element(block_key_.get(), block_key_.get() + blocks);  // the first of equals
    const int32_t max_key = *best;
    if (params.greedy) {
        uint32_t id = static_cast<uint32_t>(best - block_key_.get()) * kBlock;
        while (order_key(logits[id]) != max_key) ++id;
        return static_cast<int32_t>(id);
    }

    const Logits all{logits, vocab, from_order_key(max_key), params.inverse_temperature, block_key_.get()};
    const bool top_k = params.top_k > 0 && params.top_k < vocab;
    const bool top_p = params.top_p < kTopPOne;
    uint64_t total = 0;

    if (!top_k && !top_p) {
        // Only a shortcut: weights are within 1e-6 of the exponential, so 0.01 keeps it clear of the exact
        // border.
        float skip_below = kZeroBelow;
        if (params.min_weight > 0) {
            const double border = std::log(static_cast<double>(params.min_weight) / static_cast<double>(kWeightOne));
            skip_below = std::max(skip_below, static_cast<float>(border) - 0.01f);
        }
        total = kernels_->weigh(all, skip_below, params.min_weight, weight_.get(), block_sum_.get()).total;
        uint64_t threshold = draw_threshold(params.seed, position, draw, total);
        uint32_t block = 0;
        for (; block_sum_[block] <= threshold; ++block) threshold -= block_sum_[block];
        uint32_t id = block * kBlock;
        for (; weight_[id] <= threshold; ++id) threshold -= weight_[id];
        return static_cast<int32_t>(id);
    }

    // Every path below ends with list_ [size]: the survivors in increasing id, their weights in weight_.
    uint32_t size = 0;
    uint64_t target = 0;
    if (top_k) {
        // k blocks hold a logit at least as large as the k-th largest of the blocks' maxima: so do the k
        // largest.
        int32_t least_key = std::numeric_limits<int32_t>::min();
        if (params.top_k < blocks) {
            for (uint32_t b = 0; b < blocks; ++b) list_[b] = rank(from_order_key(block_key_[b]), max_key, b);
            const uint64_t last = select<false>(list_.get(), blocks, params.top_k);
            least_key = block_key_[static_cast<uint32_t>(last)];
        }
        size = kernels_->gather(all, kZeroBelow, least_key, max_key, list_.get());
        if (size > params.top_k) {
            size = keep_up_to(list_.get(), size, select<false>(list_.get(), size, params.top_k));
        }
        if (size > vocab / 16) {
            kernels_->weigh(all, kZeroBelow, 0, weight_.get(), block_sum_.get());
        } else {
            for (uint32_t i = 0; i < size; ++i) {
                const uint32_t id = static_cast<uint32_t>(list_[i]);
                weight_[id] = weight(scaled_logit(logits[id], all.max, all.inverse_temperature));
            }
        }
        for (uint32_t i = 0; i < size; ++i) total += weight_[static_cast<uint32_t>(list_[i])];
        target = top_p_target(total, params.top_p);
    } else {
        const Totals totals = kernels_->weigh_heads(all, kZeroBelow, 0, weight_.get(), block_sum_.get());
        target = top_p_target(totals.total, params.top_p);
        float least_z = kZeroBelow;
        for (int h = kHeads - 1; h >= 0 && totals.head[h] >= target; --h) least_z = kHeadZ[h];
        size = kernels_->gather(all, least_z, std::numeric_limits<int32_t>::min(), max_key, list_.get());
    }
    if (top_p) size = keep_up_to(list_.get(), size, select<true>(list_.get(), size, target));

    total = 0;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < size; ++i) {
        const uint32_t id = static_cast<uint32_t>(list_[i]);
        list_[kept] = id;
        const bool in = weight_[id] >= params.min_weight;
        total += in ? weight_[id] : 0;
        kept += in;
    }
    uint64_t threshold = draw_threshold(params.seed, position, draw, total);
    uint32_t i = 0;
    for (; weight_[list_[i]] <= threshold; ++i) threshold -= weight_[list_[i]];
    return static_cast<int32_t>(list_[i]);
}

}  // namespace llama_ext
