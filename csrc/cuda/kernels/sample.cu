// A token drawn from logits, by the definition of program/sampling.h and to its bit: integer weights, whose sums have no order.
//
// Three stages, of which a draw takes as many as it needs. A stage is a block a slice of 2048 logits, 4 a thread; a slice is read
// by 16-byte loads, once a stage, and kept in registers.
//
//   0  penalises, finds the largest logit and NaNs        greedy ends here: the lowest id of the largest
//   1  weighs: a sum a slice, or, for top-k and top-p,    without a filter the draw ends here
//      counts and weights in 445 buckets of 1/16 of z
//   2  keeps what lies before the bucket in which a filter ends (a sum a slice), and lists that bucket's logits
//
// The last block to leave a stage does the rest by itself: it finds, among those listed, the place at which the filters end, by
// counting; then the slice in which the threshold falls, reads that slice once more, and has the id. So 128,256 logits cost
// 63 blocks and one pass over 513 KB for greedy, two for a plain draw and three with filters, all but the first from L2 and, if
// nothing is penalised, fetched while the stage before still runs.
//
// Stages wait for each other within one launch. A block draws its part from a ticket when it begins, and waits only for parts of
// lower tickets: those have begun, and none of them waits for a higher one. So it ends whatever number of blocks runs at a time
// and in whatever order they begin, and needs no cooperative launch. The ticket is taken before the predecessor has ended, which
// costs nothing then, and before a successor may start: all tickets of a launch lie before those of the next one.
#include "cuda/kernels/device.cuh"
#include "cuda/kernels/sample.h"
#include "cuda/kernels/step.h"

using namespace llama_ext;
using namespace llama_ext::cuda;

namespace {

constexpr uint32_t kWarps = kSampleThreads / 32;
constexpr uint32_t kDirect = 128;  // candidates that are told apart by comparing each with each
constexpr int kDigit = 9;          // bits; a digit's values are as many as threads
static_assert(1u << kDigit == kSampleThreads);
constexpr uint64_t kNoLimit = ~uint64_t{0};
constexpr uint64_t kFoundNan = uint64_t{0xffffffffu} << 32;  // above every key; and above that
constexpr uint64_t kFoundBadHistory = ~uint64_t{0};

struct Shared {
    uint64_t weights[kSampleThreads];
    ulonglong2 direct[kDirect];  // {order, amount}
    uint32_t counts[kSampleThreads];
    uint32_t low[kSampleBuckets], high[kSampleBuckets];  // of a weight's 40 bits, 20 each
    uint32_t penalised[kSampleSlice / 32];               // a bit a logit
    uint64_t of_warp[kWarps], least[kWarps];
    int32_t key[kWarps];
    uint32_t at[kWarps];
    uint64_t picked_values[2];
    uint32_t picked;
    uint32_t ticket, arrived, gathered;
};

// What a block knows of the draw once the largest logit is there.
struct Draw {
    float max;
    int32_t max_key;
    float inverse_temperature;
    uint64_t min_weight;
};

struct Quad {
    float v[4];
};

__device__ __forceinline__ unsigned long long* counter(uint64_t* at) { return reinterpret_cast<unsigned long long*>(at); }

__device__ __forceinline__ uint64_t shuffle_up(uint64_t value, int by) { return __shfl_up_sync(kWholeWarp, value, by); }

// -> the sum over the threads before this one, and over all in *total
__device__ __forceinline__ uint64_t scan(uint64_t value, Shared& s, uint64_t* total) {
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint64_t inclusive = value;
#pragma unroll
    for (int by = 1; by < 32; by *= 2) {
        const uint64_t other = shuffle_up(inclusive, by);
        if (lane >= by) inclusive += other;
    }
    if (lane == 31) s.of_warp[warp] = inclusive;
    __syncthreads();  // the warps' sums are there
    uint64_t warps = lane < kWarps ? s.of_warp[lane] : 0;
#pragma unroll
    for (int by = 1; by < kWarps; by *= 2) {
        const uint64_t other = shuffle_up(warps, by);
        if (lane >= by) warps += other;
    }
    *total = __shfl_sync(kWholeWarp, warps, kWarps - 1);
    const uint64_t before = __shfl_sync(kWholeWarp, warps, (warp + 31) % 32);
    __syncthreads();  // and everyone has read them
    return inclusive - value + (warp ? before : 0);
}

// The one thread for which `mine` holds, and two values of its own. There is one.
__device__ __forceinline__ uint32_t pick(bool mine, uint64_t* first, uint64_t* second, Shared& s) {
    if (mine) {
        s.picked = threadIdx.x;
        s.picked_values[0] = *first;
        s.picked_values[1] = *second;
    }
    __syncthreads();  // it has said so
    const uint32_t picked = s.picked;
    *first = s.picked_values[0];
    *second = s.picked_values[1];
    __syncthreads();  // and everyone knows
    return picked;
}

// from [vocab] -> those at first .. first + 3, as far as there are
__device__ __forceinline__ Quad load(const float* from, uint32_t first, uint32_t vocab) {
    Quad quad{};
    if (first + 4 <= vocab && reinterpret_cast<uint64_t>(from) % 16 == 0) {
        const float4 v = *reinterpret_cast<const float4*>(from + first);
        quad = {{v.x, v.y, v.z, v.w}};
    } else {
#pragma unroll
        for (uint32_t j = 0; j < 4; ++j) {
            if (first + j < vocab) quad.v[j] = from[first + j];
        }
    }
    return quad;
}

__device__ __forceinline__ uint32_t load_acquire(const uint32_t* from) {
    uint32_t value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}

// One more, after all that this block did before and before all that it does next.  -> how many there were
__device__ __forceinline__ uint32_t count_one(uint32_t* at) {
    uint32_t before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(at) : "memory");
    return before;
}

// Until every slice has left the stage. What its blocks wrote may be read from then on.
__device__ __forceinline__ void await(const SampleState* state, uint32_t stage, uint32_t slices) {
    if (threadIdx.x == 0) {
        while (load_acquire(&state->arrived[stage]) != slices) {
        }
    }
    __syncthreads();  // the stage before is through
}

// Whether this block is the last to leave the stage: then it may read what the others wrote.
__device__ __forceinline__ bool leave(SampleState* state, uint32_t stage, uint32_t slices, Shared& s) {
    __syncthreads();  // everyone's results are written
    if (threadIdx.x == 0) s.arrived = count_one(&state->arrived[stage]);
    __syncthreads();  // known to all
    return s.arrived == slices - 1;
}

// A token's place in (logit descending, id ascending), in 52 bits: the smaller, the better.
__device__ __forceinline__ uint64_t order_of(float logit, int32_t max_key, uint32_t id) {
    const uint32_t below = static_cast<uint32_t>(max_key) - static_cast<uint32_t>(order_key(logit));
    return static_cast<uint64_t>(below) << kSampleIdBits | id;
}

__device__ __forceinline__ uint64_t weight_of(uint64_t order, const Draw& d) {
    const uint32_t below = static_cast<uint32_t>(order >> kSampleIdBits);
    const float logit = from_order_key(static_cast<int32_t>(static_cast<uint32_t>(d.max_key) - below));
    return weight(scaled_logit(logit, d.max, d.inverse_temperature));
}

// z from kZeroBelow to 0 -> its bucket; never falls as the logit does
__device__ __forceinline__ uint32_t bucket_of(float z) { return static_cast<uint32_t>(mul_rn(z, -kSampleBucketsAUnit)); }

// Stage 0.  -> the slice's largest key as an unsigned integer, over the complement of its lowest id; or what was wrong
__device__ __forceinline__ void find_best(const float* logits, uint32_t vocab, const DrawState* draw, bool penalty,
                                          uint32_t slice, uint64_t* best, float* penalised, Shared& s) {
    const uint32_t first = slice * kSampleSlice + 4 * threadIdx.x;
    Quad quad = load(logits, first, vocab);
    int bad = 0;
    if (penalty) {
        if (threadIdx.x < kSampleSlice / 32) s.penalised[threadIdx.x] = 0;
        __syncthreads();  // no bit is set
        const int32_t* history = reinterpret_cast<const int32_t*>(draw->history);
        const uint32_t size = draw->history_size;
#pragma unroll 4
        for (uint32_t i = threadIdx.x; i < size; i += kSampleThreads) {
            const uint32_t seen = static_cast<uint32_t>(history[i]);
            bad |= seen >= vocab;
            if (seen < vocab && seen / kSampleSlice == slice) atomicOr(&s.penalised[seen % kSampleSlice / 32], 1u << seen % 32);
        }
        bad = __syncthreads_or(bad);  // all bits are set
        const uint32_t bits = s.penalised[threadIdx.x / 8] >> (threadIdx.x % 8 * 4);
        const float by = draw->constants.repetition_penalty;
#pragma unroll
        for (uint32_t j = 0; j < 4; ++j) {
            if (first + j >= vocab) break;
            if (bits >> j & 1) quad.v[j] = penalise(quad.v[j], by);
            penalised[first + j] = quad.v[j];
        }
    }
    int32_t key = INT32_MIN;  // below -infinity's
    uint32_t at = 0;
    int nan = 0;
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j) {
        if (first + j >= vocab) break;
        const int32_t mine = order_key(quad.v[j]);
        nan |= quad.v[j] != quad.v[j];
        if (mine > key) {
            key = mine;
            at = first + j;
        }
    }
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int32_t of_warp = __reduce_max_sync(kWholeWarp, key);
    at = __reduce_min_sync(kWholeWarp, key == of_warp ? at : UINT32_MAX);
    if (lane == 0) {
        s.key[warp] = of_warp;
        s.at[warp] = at;
    }
    nan = __syncthreads_or(nan);  // each warp's is there
    if (warp == 0) {
        key = lane < kWarps ? s.key[lane] : INT32_MIN;
        const int32_t of_block = __reduce_max_sync(kWholeWarp, key);
        at = __reduce_min_sync(kWholeWarp, lane < kWarps && key == of_block ? s.at[lane] : UINT32_MAX);
        if (lane == 0) {
            const uint64_t place = static_cast<uint64_t>(static_cast<uint32_t>(of_block) ^ 0x80000000u) << 32 | ~at;
            atomicMax(counter(best), bad ? kFoundBadHistory : nan ? kFoundNan : place);
        }
    }
}

// Stage 1 without filters: the slice's weight.
__device__ __forceinline__ void weigh(const Quad& quad, uint32_t first, uint32_t vocab, const Draw& d, uint64_t* sum, Shared& s) {
    uint64_t mine = 0, all;
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j) {
        if (first + j >= vocab) break;
        const uint64_t w = weight(scaled_logit(quad.v[j], d.max, d.inverse_temperature));
        if (w >= d.min_weight) mine += w;
    }
    scan(mine, s, &all);
    if (threadIdx.x == 0) *sum = all;
}

// Stage 1 for filters: the slice's share of the buckets.
__device__ __forceinline__ void fill_buckets(const Quad& quad, uint32_t first, uint32_t vocab, const Draw& d, SampleState* state,
                                             Shared& s) {
    const uint32_t own = threadIdx.x;
    if (own < kSampleBuckets) s.counts[own] = s.low[own] = s.high[own] = 0;
    __syncthreads();  // all are empty
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j) {
        if (first + j >= vocab) break;
        const float z = scaled_logit(quad.v[j], d.max, d.inverse_temperature);
        if (!(z >= kZeroBelow)) continue;  // weighs nothing
        const uint64_t w = weight(z);
        const uint32_t bucket = bucket_of(z);
        // 2048 times 2^20 fit; and shared memory adds 32 bits at once, 64 in a loop.
        atomicAdd(&s.counts[bucket], 1u);
        atomicAdd(&s.low[bucket], static_cast<uint32_t>(w) & 0xfffffu);
        atomicAdd(&s.high[bucket], static_cast<uint32_t>(w >> 20));
    }
    __syncthreads();  // all are full
    if (own < kSampleBuckets && s.counts[own]) {
        atomicAdd(&state->counts[own], s.counts[own]);
        atomicAdd(counter(&state->weights[own]), (static_cast<uint64_t>(s.high[own]) << 20) + s.low[own]);
    }
}

// Where the filters end, as far as the buckets tell.
struct Border {
    uint32_t first, last;      // candidates lie in these buckets; what lies before them survives, what lies behind does not
    uint64_t count, weight;    // of what lies before
    uint64_t all;              // the weight of all
    bool by_count, by_weight;  // which filters take something away
};

__device__ __forceinline__ Border find_border(const SampleState* state, const SamplingConstants& c, Shared& s) {
    const bool mine = threadIdx.x < kSampleBuckets;
    const uint64_t count = mine ? state->counts[threadIdx.x] : 0, weight = mine ? state->weights[threadIdx.x] : 0;
    uint64_t counts, all;
    uint64_t count_before = scan(count, s, &counts), weight_before = scan(weight, s, &all);
    Border b{kSampleThreads, kSampleThreads, 0, 0, all, c.top_k > 0 && c.top_k < counts, c.top_p < kTopPOne};
    // What weighs nothing need not be counted: the k best hold all that weighs something, or all k weigh something.
    uint64_t kept = all;
    if (b.by_count) {
        const uint64_t k = c.top_k;
        b.count = count_before, b.weight = weight_before;
        b.first = b.last = pick(count_before < k && k <= count_before + count, &b.count, &b.weight, s);
        kept = b.weight;  // at least so much, as far as top-p is concerned
    }
    const uint64_t target = top_p_target(kept, c.top_p);
    if (b.by_weight && target > 0) {  // of 0 if all that is known to be kept is the first bucket
        b.count = count_before, b.weight = weight_before;
        b.first = pick(weight_before < target && target <= weight_before + weight, &b.count, &b.weight, s);
        if (!b.by_count) b.last = b.first;
    }
    return b;
}

// Stage 2.
__device__ __forceinline__ void keep(const Quad& quad, uint32_t first, uint32_t vocab, const Draw& d, const Border& b,
                                     SampleState* state, uint64_t* sum, uint64_t* list, Shared& s) {
    uint64_t mine = 0, all;
    uint32_t candidate = 0;  // a bit each
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j) {
        if (first + j >= vocab) break;
        const float z = scaled_logit(quad.v[j], d.max, d.inverse_temperature);
        if (!(z >= kZeroBelow)) continue;
        const uint32_t bucket = bucket_of(z);
        const uint64_t w = weight(z);
        if (bucket < b.first)
            mine += w >= d.min_weight ? w : 0;
        else if (bucket <= b.last)
            candidate |= 1u << j;
    }
    // A place in the list for each: in any order.
    const uint32_t lane = threadIdx.x % 32, count = __popc(candidate);
    uint32_t end = count;
#pragma unroll
    for (int by = 1; by < 32; by *= 2) {
        const uint32_t other = __shfl_up_sync(kWholeWarp, end, by);
        if (lane >= by) end += other;
    }
    uint32_t at = 0;
    if (lane == 31 && end) at = atomicAdd(&state->listed, end);
    at = __shfl_sync(kWholeWarp, at, 31) + end - count;
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j) {
        if (candidate >> j & 1) list[at++] = order_of(quad.v[j], d.max_key, first + j);
    }
    scan(mine, s, &all);
    if (threadIdx.x == 0) *sum = all;
}

// list [size], in any order: the place of the one at which the best, added up in order, reach `target`. They do reach it.
// Adds up weights, or counts.
__device__ __forceinline__ uint64_t select(const uint64_t* list, uint32_t size, uint64_t target, bool weights, const Draw& d,
                                           Shared& s) {
    uint64_t low = 0;
    int bits = 64 - 1;
    uint32_t inside = size;  // from low on, 2^bits wide
    if (inside > kDirect) {
        uint64_t least = kNoLimit, greatest = 0;
        for (uint32_t i = threadIdx.x; i < size; i += kSampleThreads) {
            least = min(least, list[i]);
            greatest = max(greatest, list[i]);
        }
#pragma unroll
        for (int by = 16; by > 0; by /= 2) {
            least = min(least, __shfl_xor_sync(kWholeWarp, least, by));
            greatest = max(greatest, __shfl_xor_sync(kWholeWarp, greatest, by));
        }
        if (threadIdx.x % 32 == 0) {
            s.least[threadIdx.x / 32] = least;
            s.of_warp[threadIdx.x / 32] = greatest;
        }
        __syncthreads();  // each warp's are there
        for (uint32_t warp = 0; warp < kWarps; ++warp) {
            least = min(least, s.least[warp]);
            greatest = max(greatest, s.of_warp[warp]);
        }
        low = least;
        bits = 64 - __clzll(static_cast<long long>(greatest - least));
    }
    while (inside > kDirect) {
        const int shift = max(0, bits - kDigit);
        s.weights[threadIdx.x] = 0;
        s.counts[threadIdx.x] = 0;
        __syncthreads();  // all digits are empty
        for (uint32_t i = threadIdx.x; i < size; i += kSampleThreads) {
            const uint64_t order = list[i], from = order - low;
            if (from >> bits) continue;
            atomicAdd(&s.counts[from >> shift], 1u);
            if (weights) atomicAdd(counter(&s.weights[from >> shift]), weight_of(order, d));
        }
        __syncthreads();  // all are full
        uint64_t all, count = s.counts[threadIdx.x];
        const uint64_t amount = weights ? s.weights[threadIdx.x] : count;
        uint64_t before = scan(amount, s, &all);
        const uint32_t digit = pick(before < target && target <= before + amount, &before, &count, s);
        target -= before;
        low += static_cast<uint64_t>(digit) << shift;
        bits = shift;
        inside = static_cast<uint32_t>(count);
    }
    if (threadIdx.x == 0) s.gathered = 0;
    __syncthreads();  // none is gathered
    for (uint32_t i = threadIdx.x; i < size; i += kSampleThreads) {
        const uint64_t order = list[i];
        if ((order - low) >> bits) continue;
        s.direct[atomicAdd(&s.gathered, 1u)] = make_ulonglong2(order, weights ? weight_of(order, d) : 1);
    }
    __syncthreads();  // all are
    uint64_t order = 0, amount = 0, reached = 0;
    if (threadIdx.x < inside) {
        order = s.direct[threadIdx.x].x;
        amount = s.direct[threadIdx.x].y;
        for (uint32_t i = 0; i < inside; ++i) {
            const ulonglong2 other = s.direct[i];
            if (other.x <= order) reached += other.y;
        }
    }
    pick(reached >= target && reached - amount < target, &order, &amount, s);
    return order;
}

// The last place that survives top-k and top-p: first by count, then by what weighs what that left.
__device__ __forceinline__ uint64_t find_limit(const uint64_t* list, uint32_t size, const Border& b, const SamplingConstants& c,
                                               const Draw& d, Shared& s) {
    uint64_t limit = kNoLimit;
#pragma unroll 1
    for (int by_weight = b.by_count ? 0 : 1; by_weight <= (b.by_weight ? 1 : 0); ++by_weight) {
        uint64_t target = c.top_k - b.count;
        if (by_weight) {
            uint64_t kept = b.all;
            if (b.by_count) {
                uint64_t mine = 0;
                for (uint32_t i = threadIdx.x; i < size; i += kSampleThreads) {
                    const uint64_t order = list[i];
                    if (order <= limit) mine += weight_of(order, d);
                }
                scan(mine, s, &kept);
                kept += b.weight;
            }
            target = top_p_target(kept, c.top_p) - b.weight;
        }
        limit = select(list, size, target, by_weight, d, s);
    }
    return limit;
}

// The draw itself, by the block that came last.  from [vocab]: the logits, penalised
__device__ __forceinline__ uint32_t draw_id(const float* from, uint32_t vocab, uint32_t slices, const uint64_t* sums,
                                            const uint64_t* list, uint32_t listed, uint64_t limit, const Step* step,
                                            const SamplingConstants& c, uint64_t draw, const Draw& d, Shared& s) {
    uint64_t amount = threadIdx.x < slices ? sums[threadIdx.x] : 0, total;
    if (listed) {
        s.weights[threadIdx.x] = amount;
        __syncthreads();  // the slices' sums of what needs no list
        for (uint32_t i = threadIdx.x; i < listed; i += kSampleThreads) {
            const uint64_t order = list[i];
            if (order > limit) continue;
            const uint64_t w = weight_of(order, d);
            const uint32_t id = static_cast<uint32_t>(order) & ((1u << kSampleIdBits) - 1);
            if (w >= d.min_weight) atomicAdd(counter(&s.weights[id / kSampleSlice]), w);
        }
        __syncthreads();  // and with what is listed
        amount = s.weights[threadIdx.x];
    }
    uint64_t before = scan(amount, s, &total);
    const uint64_t position = static_cast<uint64_t>(step->position + step->rows);
    uint64_t threshold = draw_threshold(c.seed, position, draw, total);
    const uint32_t slice = pick(before <= threshold && threshold < before + amount, &before, &amount, s);
    threshold -= before;

    const uint32_t first = slice * kSampleSlice + 4 * threadIdx.x;
    const Quad quad = load(from, first, vocab);
    uint64_t weights[4], mine = 0;
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j) {
        weights[j] = 0;
        if (first + j >= vocab || order_of(quad.v[j], d.max_key, first + j) > limit) continue;
        const uint64_t w = weight(scaled_logit(quad.v[j], d.max, d.inverse_temperature));
        if (w >= d.min_weight) weights[j] = w;
        mine += weights[j];
    }
    before = scan(mine, s, &total);
    uint64_t id = first, rest = threshold - before;
#pragma unroll
    for (uint32_t j = 0; j < 3; ++j) {
        if (id != first + j || rest < weights[j]) continue;
        rest -= weights[j];
        ++id;
    }
    pick(before <= threshold && threshold < before + mine, &id, &rest, s);
    return static_cast<uint32_t>(id);
}

}  // namespace

// logits [vocab], step [1], draw [1], state [1], sums [slices], list [vocab], penalised [vocab] -> id [1]
// PRECOND: grid (kSampleStages * sample_slices(vocab)), block (kSampleThreads); vocab from 1 to kSampleMaxVocab; penalised on 16
// bytes; state all zero before the first launch, and no other launch on it meanwhile
extern "C" __global__ void __launch_bounds__(kSampleThreads, 1)
    sample(const float* logits, int32_t vocab, const Step* step, const DrawState* draw, SampleState* state, uint64_t* sums,
           uint64_t* list, float* penalised, int32_t* id) {
    __shared__ Shared s;
    if (threadIdx.x == 0) s.ticket = atomicInc(&state->ticket, gridDim.x - 1);
    __syncthreads();  // the ticket is there, and taken
    let_successor_start();
    wait_for_predecessor();
    if (!draw->wanted) return;
    const uint32_t slices = gridDim.x / kSampleStages, stage = s.ticket / slices, slice = s.ticket % slices;
    const SamplingConstants c = draw->constants;
    const bool penalty = c.repetition_penalty != 1.0f && draw->history_size > 0;
    const bool filtered = (c.top_k > 0 && c.top_k < static_cast<uint32_t>(vocab)) || c.top_p < kTopPOne;
    const uint32_t last_stage = c.greedy ? 0 : filtered ? 2 : 1;
    if (stage > last_stage) return;

    const float* from = penalty ? penalised : logits;
    Border border{};
    Draw d{};
    if (stage == 0) {
        find_best(logits, vocab, draw, penalty, slice, &state->best, penalised, s);
    } else {
        const uint32_t first = slice * kSampleSlice + 4 * threadIdx.x;
        Quad quad{};
        if (!penalty) quad = load(from, first, vocab);  // before it waits
        await(state, stage - 1, slices);
        if (penalty) quad = load(from, first, vocab);
        const uint64_t best = state->best;
        d.max_key = static_cast<int32_t>(static_cast<uint32_t>(best >> 32) ^ 0x80000000u);
        d.max = from_order_key(d.max_key);
        d.inverse_temperature = c.inverse_temperature;
        d.min_weight = c.min_weight;
        if (best >= kFoundNan) {
            // It only has to be said.
        } else if (stage == 2) {
            border = find_border(state, c, s);
            keep(quad, first, vocab, d, border, state, sums + slice, list, s);
        } else if (filtered) {
            fill_buckets(quad, first, vocab, d, state, s);
        } else {
            weigh(quad, first, vocab, d, sums + slice, s);
        }
    }
    if (!leave(state, stage, slices, s) || stage != last_stage) return;

    const uint64_t best = state->best;
    int32_t drawn;
    if (best >= kFoundNan) {
        drawn = best == kFoundNan ? kSampleNan : kSampleBadHistory;
    } else if (c.greedy) {
        drawn = static_cast<int32_t>(~static_cast<uint32_t>(best));
    } else {
        const uint32_t listed = state->listed;
        const uint64_t limit = listed ? find_limit(list, listed, border, c, d, s) : kNoLimit;
        drawn = static_cast<int32_t>(draw_id(from, vocab, slices, sums, list, listed, limit, step, c, draw->draw, d, s));
    }
    __syncthreads();  // all is read
    // As the next launch wants it.
    if (filtered && threadIdx.x < kSampleBuckets) state->weights[threadIdx.x] = state->counts[threadIdx.x] = 0;
    if (threadIdx.x == 0) {
        *id = drawn;
        state->best = 0;
        state->listed = 0;
        for (uint32_t i = 0; i < kSampleStages; ++i) state->arrived[i] = 0;
    }
}
