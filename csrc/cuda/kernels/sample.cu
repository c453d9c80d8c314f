// Draws a token as program/sampling.h defines it: integer weights, whose sums do not depend on an order, so that the id is the
// CPU's.
//
// One block. Greedy is a single pass over the logits; a temperature takes three (the largest, the sum, the draw); top-k and top-p
// take four more each: three that narrow the place of the last one kept down, 11, 11 and 10 bits of its key at a time, in a
// histogram in shared memory, and one that finds it among its equals. Lanes of a warp whose keys share a digit are added up
// before they go to the histogram. For 128,256 logits a pass is 0.5 MB from the second-level cache.
//
// Passes that depend on the order of ids give each warp a contiguous share of them.
#include "cuda/kernels/device.cuh"
#define LLAMA_EXT_HD __host__ __device__
#include "cuda/kernels/sample.h"
#include "cuda/kernels/step.h"

namespace {

using namespace llama_ext;
using namespace llama_ext::cuda;

constexpr int kWarps = kSampleThreads / 32;
constexpr int kDigits = 1 << 11;
constexpr uint64_t kNoLimit = ~uint64_t{0};

struct Logits {
    const float* logits;
    const uint32_t* seen;  // [ceil(vocab / 32)], or null: nothing is penalised
    float penalty;
    int vocab;

    __device__ float at(int id) const {
        const float logit = logits[id];
        return seen && (seen[id / 32] >> (id % 32) & 1u) ? penalise(logit, penalty) : logit;
    }
};

struct Shared {
    unsigned long long histogram[kDigits];
    unsigned long long of_warp[kWarps];
    unsigned long long found, before;
    int id;
};

// The same in every thread.
template <typename T, typename Combine>
__device__ T block_reduce(T value, T none, Combine combine, Shared& shared) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) value = combine(value, __shfl_xor_sync(kWholeWarp, value, step));
    __syncthreads();  // of_warp is free
    if (lane == 0) shared.of_warp[warp] = value;
    __syncthreads();
    T all = none;
    for (int w = 0; w < kWarps; ++w) all = combine(all, static_cast<T>(shared.of_warp[w]));
    return all;
}

__device__ uint64_t add(uint64_t a, uint64_t b) { return a + b; }
__device__ uint64_t greater(uint64_t a, uint64_t b) { return a > b ? a : b; }

// An order in which a larger logit is larger, and of equals the lower id.
__device__ uint64_t preference(float logit, int id) {
    return static_cast<uint64_t>(static_cast<uint32_t>(order_key(logit)) ^ 0x80000000u) << 32 | static_cast<uint32_t>(~id);
}

struct Weigh {
    float max;
    float inverse_temperature;
    __device__ uint64_t operator()(float logit) const { return weight(scaled_logit(logit, max, inverse_temperature)); }
};

struct Count {
    __device__ uint64_t operator()(float) const { return 1; }
};

// Adds what the warp's lanes have, each under its digit. mass < 2^41. All lanes take part; digit < 0 has nothing.
__device__ void add_to_histogram(int digit, uint64_t mass, Shared& shared) {
    unsigned left = __ballot_sync(kWholeWarp, digit >= 0);
    while (left) {
        const int leader = __ffs(static_cast<int>(left)) - 1;
        const unsigned same = __ballot_sync(kWholeWarp, digit == __shfl_sync(kWholeWarp, digit, leader) && digit >= 0);
        const bool mine = same >> (threadIdx.x % 32) & 1u;
        const unsigned low = __reduce_add_sync(kWholeWarp, mine ? static_cast<unsigned>(mass & 0xfffffu) : 0u);
        const unsigned high = __reduce_add_sync(kWholeWarp, mine ? static_cast<unsigned>(mass >> 20) : 0u);
        if (static_cast<int>(threadIdx.x % 32) == leader)
            atomicAdd(&shared.histogram[digit], (static_cast<unsigned long long>(high) << 20) + low);
        left &= ~same;
    }
}

// In the order of ranks (sampling.h), among those up to `limit`: the first whose mass, with that of all before it, reaches
// `target`, which is at least 1 and at most the mass of all. Its rank.
template <typename Mass>
__device__ uint64_t reach(const Logits& logits, int32_t max_key, uint64_t limit, const Mass& mass, uint64_t target,
                          Shared& shared) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t prefix = 0;
    uint64_t before = 0;
    int below_bits = 32;
    for (int bits = 11; below_bits > 0; below_bits -= bits) {
        if (below_bits < bits) bits = below_bits;
        const int shift = below_bits - bits;
        for (int i = threadIdx.x; i < kDigits; i += kSampleThreads) shared.histogram[i] = 0;
        __syncthreads();
        for (int from = 32 * warp; from < logits.vocab; from += kSampleThreads) {
            const int id = from + lane;
            int digit = -1;
            uint64_t has = 0;
            if (id < logits.vocab) {
                const float logit = logits.at(id);
                const uint64_t place = rank(logit, max_key, static_cast<uint32_t>(id));
                const uint32_t below = static_cast<uint32_t>(place >> 32);
                if (place <= limit && (below_bits == 32 || below >> below_bits == prefix)) {
                    has = mass(logit);
                    if (has) digit = static_cast<int>(below >> shift & ((1u << bits) - 1));
                }
            }
            add_to_histogram(digit, has, shared);
        }
        __syncthreads();
        if (warp == 0) {
            constexpr int kEach = kDigits / 32;
            uint64_t sum = 0;
            for (int i = 0; i < kEach; ++i) sum += shared.histogram[lane * kEach + i];
            uint64_t up_to = sum;
#pragma unroll
            for (int step = 1; step < 32; step *= 2) {
                const uint64_t other = __shfl_up_sync(kWholeWarp, up_to, step);
                if (lane >= step) up_to += other;
            }
            uint64_t so_far = before + up_to - sum;
            if (so_far < target && before + up_to >= target) {
                int digit = lane * kEach;
                while (so_far + shared.histogram[digit] < target) so_far += shared.histogram[digit++];
                shared.found = static_cast<unsigned long long>(digit);
                shared.before = so_far;
            }
        }
        __syncthreads();
        prefix = prefix << bits | static_cast<uint32_t>(shared.found);
        before = shared.before;
        __syncthreads();  // before found changes
    }
    // Its equals have the same mass: which of them?
    const float logit = from_order_key(static_cast<int32_t>(static_cast<uint32_t>(max_key) - prefix));
    const uint64_t each = mass(logit);
    uint64_t place = (target - before + each - 1) / each - 1;  // from 0
    const int share = (logits.vocab + kSampleThreads - 1) / kSampleThreads * 32;
    const int first = warp * share, last = min(first + share, logits.vocab);
    const auto equal = [&](int id) {
        return id < last && static_cast<uint32_t>(rank(logits.at(id), max_key, 0) >> 32) == prefix;
    };
    uint64_t count = 0;
    for (int from = first; from < last; from += 32) count += __popc(__ballot_sync(kWholeWarp, equal(from + lane)));
    if (lane == 0) shared.of_warp[warp] = count;
    __syncthreads();
    uint64_t ahead = 0;
    for (int w = 0; w < warp; ++w) ahead += shared.of_warp[w];
    if (ahead <= place && place < ahead + count) {
        place -= ahead;
        for (int from = first; from < last; from += 32) {
            const unsigned which = __ballot_sync(kWholeWarp, equal(from + lane));
            const unsigned here = __popc(which);
            if (place < here) {
                const bool is = which >> lane & 1u && __popc(which & ((1u << lane) - 1)) == place;
                if (is) shared.id = from + lane;
                break;
            }
            place -= here;
        }
    }
    __syncthreads();
    const uint64_t result = static_cast<uint64_t>(prefix) << 32 | static_cast<uint32_t>(shared.id);
    __syncthreads();  // before of_warp and id change
    return result;
}

// Whether an id of the history lies outside the vocabulary; if not, its bits are set, and none else.
__device__ bool mark(const int32_t* history, uint32_t size, int vocab, uint32_t* seen) {
    bool bad = false;
    for (int i = threadIdx.x; i < (vocab + 31) / 32; i += kSampleThreads) seen[i] = 0;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < size; i += kSampleThreads) {
        const int32_t id = history[i];
        if (id < 0 || id >= vocab)
            bad = true;
        else
            atomicOr(seen + id / 32, 1u << (id % 32));
    }
    return __syncthreads_or(bad);
}

}  // namespace

// logits [vocab], step [1], draw [1], seen [ceil(vocab / 32)] for its own use -> id [1], if draw->wanted
// PRECOND: grid (1), block (kSampleThreads); 1 <= vocab <= kMaxVocab
extern "C" __global__ void __launch_bounds__(kSampleThreads)
    sample(const float* logits, int vocab, const Step* step, const DrawState* draw, uint32_t* seen, int32_t* id) {
    __shared__ Shared shared;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    let_successor_start();
    wait_for_predecessor();
    if (!draw->wanted) return;
    const SamplingConstants constants = draw->constants;
    const bool penalised = draw->history_size > 0 && constants.repetition_penalty != 1.0f;
    if (penalised && mark(reinterpret_cast<const int32_t*>(draw->history), draw->history_size, vocab, seen)) {
        if (threadIdx.x == 0) *id = kSampleBadHistory;
        return;
    }
    const Logits all{logits, penalised ? seen : nullptr, constants.repetition_penalty, vocab};

    uint64_t best = 0;
    bool nan = false;
    for (int i = threadIdx.x; i < vocab; i += kSampleThreads) {
        const float logit = all.at(i);
        nan |= isnan(logit);
        best = greater(best, preference(logit, i));
    }
    if (__syncthreads_or(nan)) {
        if (threadIdx.x == 0) *id = kSampleNan;
        return;
    }
    best = block_reduce(best, uint64_t{0}, greater, shared);
    if (constants.greedy) {
        if (threadIdx.x == 0) *id = static_cast<int32_t>(~static_cast<uint32_t>(best));
        return;
    }
    const int32_t max_key = static_cast<int32_t>(static_cast<uint32_t>(best >> 32) ^ 0x80000000u);
    const Weigh weigh{from_order_key(max_key), constants.inverse_temperature};

    uint64_t limit = kNoLimit;  // the rank of the last one kept
    if (constants.top_k > 0 && constants.top_k < static_cast<uint32_t>(vocab))
        limit = reach(all, max_key, limit, Count{}, constants.top_k, shared);
    const auto kept_weight = [&](int i) -> uint64_t {
        const float logit = all.at(i);
        if (rank(logit, max_key, static_cast<uint32_t>(i)) > limit) return 0;
        const uint64_t w = weigh(logit);
        return w >= constants.min_weight ? w : 0;
    };
    if (constants.top_p < kTopPOne) {
        uint64_t sum = 0;
        for (int i = threadIdx.x; i < vocab; i += kSampleThreads) {
            const float logit = all.at(i);
            if (rank(logit, max_key, static_cast<uint32_t>(i)) <= limit) sum += weigh(logit);
        }
        const uint64_t total = block_reduce(sum, uint64_t{0}, add, shared);
        limit = reach(all, max_key, limit, weigh, top_p_target(total, constants.top_p), shared);
    }

    // Each warp's share of the ids, and what of the weight lies in it.
    const int share = (vocab + kSampleThreads - 1) / kSampleThreads * 32;
    const int first = warp * share, last = min(first + share, vocab);
    uint64_t sum = 0;
    for (int i = first + lane; i < last; i += 32) sum += kept_weight(i);
#pragma unroll
    for (int step_ = 16; step_ > 0; step_ /= 2) sum += __shfl_xor_sync(kWholeWarp, sum, step_);
    __syncthreads();  // of_warp is free
    if (lane == 0) shared.of_warp[warp] = sum;
    __syncthreads();
    uint64_t ahead = 0, total = 0;
    for (int w = 0; w < kWarps; ++w) {
        if (w == warp) ahead = total;
        total += shared.of_warp[w];
    }
    const uint64_t position = static_cast<uint64_t>(step->position + step->rows);
    const uint64_t threshold = draw_threshold(constants.seed, position, draw->draw, total);
    if (threshold < ahead || threshold >= ahead + sum) return;
    for (int from = first; from < last; from += 32) {
        const int i = from + lane;
        const uint64_t own = i < last ? kept_weight(i) : 0;
        uint64_t up_to = own;
#pragma unroll
        for (int step_ = 1; step_ < 32; step_ *= 2) {
            const uint64_t other = __shfl_up_sync(kWholeWarp, up_to, step_);
            if (lane >= step_) up_to += other;
        }
        if (own && threshold >= ahead + up_to - own && threshold < ahead + up_to) *id = i;
        ahead += __shfl_sync(kWholeWarp, up_to, 31);
        if (threshold < ahead) break;
    }
}
