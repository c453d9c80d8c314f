// Brings a step's chosen experts from the host's memory to slots on the card, in one launch with no word from the host.
//
// Every block works out by itself, from state that nobody changes meanwhile, which experts have no slot and which slots they get:
// the least recently used ones, never one of this step's own. Then it copies its share. The last block to arrive writes the state
// and the tables of addresses. Where all have slots already, which is the case to be quick in, the blocks find that out from the
// table, nobody waits for anybody, and the first one notes the use.
#include "cuda/kernels/device.cuh"
#include "cuda/kernels/fetch.h"

namespace {

using namespace llama_ext::cuda;

constexpr int kWarps = kFetchThreads / 32;
constexpr int kInFlight = 4;
constexpr uint64_t kNone = ~uint64_t{0};

// Once over the bus, so it shall not displace anything.
__device__ __forceinline__ uint4 load_once(const uint4* at) {
    uint4 w;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w)
                 : "l"(at));
    return w;
}

__device__ __forceinline__ uint64_t warp_min(uint64_t value) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        const uint64_t other = __shfl_xor_sync(kWholeWarp, static_cast<unsigned long long>(value), step);
        value = min(value, other);
    }
    return value;
}

}  // namespace

// count [1], expert [count]: ascending; those from expert_count on are no concern of this
// home [expert_count]: addresses on 16 bytes, of `bytes` each -> experts [expert_count]: home[e], or where e lies in the pool
// pool [slots, slot_bytes]; state: fetch.h
// PRECOND: any grid in x, block (kFetchThreads), shared 4 * ceil(slots / 32); count <= kFetchGroups, slots <= kFetchSlots;
//          bytes % 16 == 0, bytes <= slot_bytes; pool on 16 bytes, slot_bytes % 16 == 0
extern "C" __global__ void __launch_bounds__(kFetchThreads, 1)
    fetch(const int32_t* count, const int32_t* expert, uint64_t* experts, const uint64_t* home, uint8_t* state, uint8_t* pool,
          int64_t bytes, int64_t slot_bytes, int slots, int layer, int expert_count) {
    extern __shared__ uint32_t in_use[];  // [ceil(slots / 32)]: bits of slots that this step's experts have already
    __shared__ int32_t missed[kFetchGroups], victims[kFetchGroups];
    __shared__ int32_t misses_found, hits_found;
    __shared__ uint64_t of_warp[2][kWarps];
    __shared__ bool is_last;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    FetchState* common = reinterpret_cast<FetchState*>(state);
    uint64_t* last_used = reinterpret_cast<uint64_t*>(common + 1);
    FetchOwner* owners = reinterpret_cast<FetchOwner*>(state + fetch_owners_offset(slots));
    FetchCounts* counts = reinterpret_cast<FetchCounts*>(state + fetch_counts_offset(slots)) + layer;
    const uint64_t pool_begin = reinterpret_cast<uint64_t>(pool), pool_bytes = slots * slot_bytes;
    // The slot at an address, or -1: it is one of the host's.
    const auto slot_at = [&](uint64_t address) {
        return address - pool_begin < pool_bytes ? static_cast<int>((address - pool_begin) / slot_bytes) : -1;
    };
    let_successor_start();
    for (int i = threadIdx.x; i < (slots + 31) / 32; i += kFetchThreads) in_use[i] = 0;
    __syncthreads();  // no slot is in use yet
    wait_for_predecessor();
    const int chosen = *count;
    if (warp == 0) {
        int misses = 0, hits = 0;
        for (int base = 0; base < chosen; base += 32) {
            const int e = base + lane < chosen ? expert[base + lane] : expert_count;
            const int slot = e < expert_count ? slot_at(experts[e]) : -1;
            const bool miss = e < expert_count && slot < 0;
            const unsigned all = __ballot_sync(kWholeWarp, miss);
            if (miss) missed[misses + __popc(all & ((1u << lane) - 1))] = e;
            if (slot >= 0) atomicOr(in_use + slot / 32, 1u << slot % 32);
            misses += __popc(all);
            hits += __popc(__ballot_sync(kWholeWarp, slot >= 0));
        }
        if (lane == 0) {
            misses_found = misses;
            hits_found = hits;
        }
    }
    __syncthreads();  // what is missed is known
    const int misses = misses_found, hits = hits_found;
    if (misses == 0 && blockIdx.x > 0) return;

    // Slots in the order of their last use and, where that is the same, of their numbers.
    int served = 0;
    uint64_t previous = 0;  // one more than what orders the slot before
    for (; served < misses; ++served) {
        uint64_t next = kNone;
        for (int s = threadIdx.x; s < slots; s += kFetchThreads) {
            const uint64_t order = last_used[s] * kFetchSlots + s;
            if (order >= previous && order < next && !(in_use[s / 32] >> s % 32 & 1)) next = order;
        }
        next = warp_min(next);
        if (lane == 0) of_warp[served % 2][warp] = next;
        __syncthreads();  // each warp's first is there
#pragma unroll
        for (int w = 0; w < kWarps; ++w) next = min(next, of_warp[served % 2][w]);
        if (next == kNone) break;
        if (threadIdx.x == 0) victims[served] = static_cast<int>(next % kFetchSlots);
        previous = next + 1;
    }
    __syncthreads();  // victims are known

    const int64_t pieces = bytes / 16, stride = int64_t{gridDim.x} * kFetchThreads;
    for (int m = 0; m < served; ++m) {
        const uint4* from = reinterpret_cast<const uint4*>(home[missed[m]]);
        uint4* to = reinterpret_cast<uint4*>(pool + victims[m] * slot_bytes);
        for (int64_t at = int64_t{blockIdx.x} * kFetchThreads + threadIdx.x; at < pieces; at += kInFlight * stride) {
            uint4 held[kInFlight];
#pragma unroll
            for (int u = 0; u < kInFlight; ++u)
                if (at + u * stride < pieces) held[u] = load_once(from + at + u * stride);
#pragma unroll
            for (int u = 0; u < kInFlight; ++u)
                if (at + u * stride < pieces) to[at + u * stride] = held[u];
        }
    }

    if (misses > 0) {
        // The block has read all that it needs of the state. Its copies need not have landed: nobody reads them in this launch.
        if (threadIdx.x == 0) {
            __threadfence();
            is_last = atomicInc(&common->arrived, gridDim.x - 1) == gridDim.x - 1;
            __threadfence();
        }
        __syncthreads();  // whether it is the last is known
        if (!is_last) return;
    }
    const uint64_t now = common->uses + 1;
    for (int i = threadIdx.x; i < chosen; i += kFetchThreads) {
        const int slot = expert[i] < expert_count ? slot_at(experts[expert[i]]) : -1;
        if (slot >= 0) last_used[slot] = now;
    }
    __syncthreads();  // the table has been read, and the time
    for (int m = threadIdx.x; m < served; m += kFetchThreads) {
        const int e = missed[m], slot = victims[m];
        const FetchOwner before = owners[slot];
        if (before.entry) *reinterpret_cast<uint64_t*>(before.entry) = before.home;
        owners[slot] = {reinterpret_cast<uint64_t>(experts + e), home[e]};
        last_used[slot] = now;
        experts[e] = pool_begin + slot * slot_bytes;
    }
    if (threadIdx.x == 0) {
        common->uses = now;
        counts->hits += hits;
        counts->misses += misses;
    }
}
