// Right kernels with synchronisation that is easy to mistake for wrong: nothing may be reported.
#include "ptx.cuh"

// --- within a block -------------------------------------------------------------------------------------------------

extern "C" __global__ void block_reduction(const float* in, float* out, int n) {
    __shared__ float parts[32];
    float sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += in[i];
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(0xffffffffu, sum, offset);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x < 32) {
        sum = threadIdx.x < blockDim.x / 32 ? parts[threadIdx.x] : 0;
        for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(0xffffffffu, sum, offset);
        if (threadIdx.x == 0) *out = sum;
    }
}

// Inclusive, in place, two barriers a step.
extern "C" __global__ void scan(const int* in, int* out) {
    __shared__ int tile[128];
    const int i = threadIdx.x;
    tile[i] = in[i];
    __syncthreads();
    for (int step = 1; step < 128; step *= 2) {
        const int before = i >= step ? tile[i - step] : 0;
        __syncthreads();
        tile[i] += before;
        __syncthreads();
    }
    out[i] = tile[i];
}

extern "C" __global__ void transposition(const float* in, float* out, int n) {
    __shared__ float tile[16][17];
    int x = blockIdx.x * 16 + threadIdx.x, y = blockIdx.y * 16 + threadIdx.y;
    tile[threadIdx.y][threadIdx.x] = in[y * n + x];
    __syncthreads();
    x = blockIdx.y * 16 + threadIdx.x;
    y = blockIdx.x * 16 + threadIdx.y;
    out[y * n + x] = tile[threadIdx.x][threadIdx.y];
}

// Shared bins, then global ones.
extern "C" __global__ void histogram(const uint32_t* in, uint32_t* bins, int n) {
    __shared__ uint32_t mine[16];
    if (threadIdx.x < 16) mine[threadIdx.x] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(&mine[in[i] % 16], 1u);
    __syncthreads();
    if (threadIdx.x < 16) atomicAdd(&bins[threadIdx.x], mine[threadIdx.x]);
}

// Threads of different warps share words, not bytes.
extern "C" __global__ void neighbouring_bytes(const unsigned char* in, unsigned char* out) {
    __shared__ unsigned char tile[128];
    const int k = threadIdx.x % 32 * 4 + threadIdx.x / 32;  // the four bytes of a word belong to four warps
    tile[k] = in[k];
    tile[k] += 1;
    out[k] = tile[k];
    out[k] += 1;
}

extern "C" __global__ void neighbouring_halves(const unsigned short* in, unsigned short* out) {
    __shared__ unsigned short tile[128];
    const int k = threadIdx.x % 64 * 2 + threadIdx.x / 64;
    tile[k] = in[k];
    out[k] = tile[k] + 1;
}

// Half of the block goes home; what remains uses a barrier of its own.
extern "C" __global__ void remaining_half(const float* in, float* out) {
    __shared__ float tile[64];
    if (threadIdx.x >= 64) return;
    tile[threadIdx.x] = in[threadIdx.x];
    barrier_sync(1, 64);
    out[threadIdx.x] = tile[63 - threadIdx.x];
}

// Barriers that also vote.
extern "C" __global__ void voting_barriers(const int* in, int* out) {
    __shared__ int tile[128];
    tile[threadIdx.x] = in[threadIdx.x];
    const int count = __syncthreads_count(in[threadIdx.x] > 0);
    const int mirrored = tile[127 - threadIdx.x];
    const int any = __syncthreads_or(in[threadIdx.x] > 126), all = __syncthreads_and(in[threadIdx.x] >= 0);
    tile[threadIdx.x] = 0;
    out[threadIdx.x] = mirrored + 1000 * count + 100000 * any + 1000000 * all;
}

// Buffers take turns: one barrier a round.
extern "C" __global__ void double_buffer(const float* in, float* out, int rounds) {
    __shared__ float tile[2][128];
    float sum = 0;
    for (int round = 0; round < rounds; ++round) {
        tile[round % 2][threadIdx.x] = in[round * 128 + threadIdx.x];
        __syncthreads();
        sum += tile[round % 2][127 - threadIdx.x];
    }
    out[threadIdx.x] = sum;
}

// --- within a warp ----------------------------------------------------------------------------------------------------

extern "C" __global__ void tree_with_syncwarp(const float* in, float* out) {
    __shared__ float part[4][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    part[warp][lane] = in[threadIdx.x];
    __syncwarp();
    for (int half = 16; half > 0; half /= 2) {
        if (lane < half) part[warp][lane] += part[warp][lane + half];
        __syncwarp();
    }
    if (lane == 0) out[warp] = part[warp][0];
}

extern "C" __global__ void warp_aggregated(const int* in, uint32_t* counter, int* out, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const bool keep = i < n && in[i] % 3 == 0;
    const unsigned mask = __ballot_sync(0xffffffffu, keep);
    if (keep) {
        const int lane = threadIdx.x % 32, leader = __ffs(mask) - 1;
        uint32_t base = 0;
        if (lane == leader) base = atomicAdd(counter, __popc(mask));
        base = __shfl_sync(mask, base, leader);
        out[base + __popc(mask & ((1u << lane) - 1))] = in[i];
    }
}

// The same with whichever lanes the hardware keeps together: any answer of __activemask is right.
extern "C" __global__ void opportunistic(const int* in, uint32_t* counter) {
    if (in[threadIdx.x] % 2) {
        const unsigned mask = __activemask();
        const int leader = __ffs(mask) - 1;
        if (threadIdx.x % 32 == leader) atomicAdd(counter, __popc(mask));
    }
}

extern "C" __global__ void divergent(const int* in, int* out) {
    __shared__ int tile[32];
    const int lane = threadIdx.x;
    const unsigned odd = __ballot_sync(0xffffffffu, in[lane] & 1);
    int value;
    if (in[lane] & 1) {
        tile[lane] = in[lane];
        __syncwarp(odd);
        int sum = 0;
        for (unsigned rest = odd; rest; rest &= rest - 1) sum += tile[__ffs(rest) - 1];
        value = __shfl_sync(odd, sum, __ffs(odd) - 1);
    } else {
        tile[lane] = -in[lane];
        value = __reduce_add_sync(~odd, in[lane]);
    }
    __syncwarp();
    out[lane] = value + tile[31 - lane];
}

// Lanes leave a loop one by one; those who are out wait at the __syncwarp.
extern "C" __global__ void uneven_loops(const int* rounds, int* out) {
    __shared__ int tile[32];
    int sum = 0;
    for (int k = 0; k < rounds[threadIdx.x]; ++k) sum += k;
    tile[threadIdx.x] = sum;
    __syncwarp();
    out[threadIdx.x] = tile[(threadIdx.x + 1) % 32];
}

// Lanes that have the same key find one another.
extern "C" __global__ void matching_lanes(const int* in, int* out) {
    const unsigned same = __match_any_sync(0xffffffffu, in[threadIdx.x]);
    out[threadIdx.x] = __popc(same) * 100 + __shfl_sync(same, int(threadIdx.x), __ffs(same) - 1);
}

// --- between warps ------------------------------------------------------------------------------------------------------

// Two producers, two consumers, two buffers.
extern "C" __global__ void named_barriers(const float* in, float* out, int rounds) {
    __shared__ float tile[2][64];
    const int i = threadIdx.x % 64;
    if (threadIdx.x < 64) {
        for (int round = 0; round < rounds; ++round) {
            if (round >= 2) barrier_sync(3 + round % 2, 128);
            tile[round % 2][i] = in[round * 64 + i];
            barrier_arrive(1 + round % 2, 128);
        }
    } else {
        for (int round = 0; round < rounds; ++round) {
            barrier_sync(1 + round % 2, 128);
            out[round * 64 + i] = tile[round % 2][63 - i];
            if (round + 2 < rounds) barrier_arrive(3 + round % 2, 128);
        }
    }
}

// A ring of four slots between two warps: head and tail, released and acquired.
extern "C" __global__ void ring(const float* in, float* out, int count) {
    __shared__ float slots[4];
    __shared__ uint32_t head, tail;
    if (threadIdx.x == 0) head = tail = 0;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < count; ++i) {
            while (i - load_acquire_shared(&tail) == 4) {
            }
            slots[i % 4] = in[i];
            store_release_shared(&head, i + 1);
        }
    } else if (threadIdx.x == 32) {
        for (uint32_t i = 0; i < count; ++i) {
            while (load_acquire_shared(&head) == i) {
            }
            out[i] = slots[i % 4];
            store_release_shared(&tail, i + 1);
        }
    }
}

// A whole warp hands over what its lanes wrote: __syncwarp, then one lane's release.
extern "C" __global__ void warp_hands_over(const float* in, float* out) {
    __shared__ float tile[32];
    __shared__ uint32_t ready;
    const int lane = threadIdx.x % 32;
    if (threadIdx.x == 0) ready = 0;
    __syncthreads();
    if (threadIdx.x < 32) {
        tile[lane] = in[lane];
        __syncwarp();
        if (lane == 0) store_release_shared(&ready, 1);
    } else {
        if (lane == 0) {
            while (load_acquire_shared(&ready) == 0) {
            }
        }
        __syncwarp();
        out[lane] = tile[31 - lane];
    }
}

// One instruction, whose lanes reach into two spaces.
extern "C" __global__ void mixed_spaces(const int* flags, int* data) {
    __shared__ int tile[32];
    tile[threadIdx.x] = 100 + threadIdx.x;
    __syncwarp();
    const int* from = flags[threadIdx.x] ? &tile[threadIdx.x] : &data[threadIdx.x];
    int value;
    asm volatile("ld.s32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    data[threadIdx.x] = value + 1;
}

// A maximum that most atomics leave as it is, for long.
extern "C" __global__ void idle_atomics(int* most, const int* in, int rounds) {
    for (int k = 0; k < rounds; ++k) atomicMax(most, in[threadIdx.x]);
}

// --- asynchronous copies ------------------------------------------------------------------------------------------------

extern "C" __global__ void async_pipeline(const float4* in, float4* out, int stages) {
    __shared__ float4 tile[2][64];
    copy_async_16(&tile[0][threadIdx.x], &in[threadIdx.x]);
    copy_commit();
    for (int stage = 0; stage < stages; ++stage) {
        if (stage + 1 < stages) copy_async_16(&tile[(stage + 1) % 2][threadIdx.x], &in[64 * (stage + 1) + threadIdx.x]);
        copy_commit();
        copy_wait<1>();
        __syncthreads();
        out[64 * stage + threadIdx.x] = tile[stage % 2][63 - threadIdx.x];
        __syncthreads();
    }
}

// Three buffers, one barrier a stage.
extern "C" __global__ void async_three_stages(const float* in, float* out, int stages) {
    __shared__ float tile[3][64];
    for (int stage = 0; stage < 2; ++stage) {
        copy_async_4(&tile[stage][threadIdx.x], &in[64 * stage + threadIdx.x]);
        copy_commit();
    }
    for (int stage = 0; stage < stages; ++stage) {
        copy_wait<1>();
        __syncthreads();
        if (stage + 2 < stages) copy_async_4(&tile[(stage + 2) % 3][threadIdx.x], &in[64 * (stage + 2) + threadIdx.x]);
        copy_commit();
        out[64 * stage + threadIdx.x] = tile[stage % 3][63 - threadIdx.x];
    }
    copy_wait_all();
}

// --- between blocks -------------------------------------------------------------------------------------------------------

// Thread 0's fence comes after the barrier: it stands for the whole block.
extern "C" __global__ void last_block(const float* in, float* parts, uint32_t* arrived, float* out, int n) {
    __shared__ float tile[64];
    __shared__ bool last;
    float sum = 0;
    for (int i = blockIdx.x * 64 + threadIdx.x; i < n; i += gridDim.x * 64) sum += in[i];
    tile[threadIdx.x] = sum;
    __syncthreads();
    for (int half = 32; half > 0; half /= 2) {
        if (threadIdx.x < half) tile[threadIdx.x] += tile[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = tile[0];
        __threadfence();
        last = atomicAdd(arrived, 1u) == gridDim.x - 1;
        __threadfence();
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        sum = 0;
        for (int block = 0; block < gridDim.x; ++block) sum += parts[block];
        *out = sum;
        *arrived = 0;  // for the next launch
    }
}

// Every thread writes, the fence is thread 0's alone, after the barrier; the counter counts without end.
extern "C" __global__ void split_and_combine(const float* in, float* parts, uint32_t* tickets, float* out, int splits) {
    __shared__ bool last;
    const int row = blockIdx.y, split = blockIdx.x;
    parts[(row * splits + split) * 32 + threadIdx.x] = in[(row * splits + split) * 32 + threadIdx.x] * 2;
    __syncthreads();
    if (threadIdx.x == 0) last = (add_acquire_release(&tickets[row], 1) + 1) % splits == 0;
    __syncthreads();
    if (!last) return;
    float sum = 0;
    for (int k = 0; k < splits; ++k) sum += parts[(row * splits + k) * 32 + threadIdx.x];
    out[row * 32 + threadIdx.x] = sum;
}

// All blocks meet, twice a round, under a sense that flips.
extern "C" __global__ void sense_reversing_barrier(uint32_t* arrived, uint32_t* sense, uint32_t* data, uint32_t* out,
                                                   int rounds) {
    uint32_t mine = 0;
    const auto barrier = [&] {
        __syncthreads();
        if (threadIdx.x == 0) {
            mine ^= 1;
            __threadfence();
            if (atomicAdd(arrived, 1u) == gridDim.x - 1) {
                *arrived = 0;
                __threadfence();
                atomicExch(sense, mine);
            } else {
                while (*static_cast<volatile uint32_t*>(sense) != mine) {
                }
            }
            __threadfence();
        }
        __syncthreads();
    };
    uint32_t sum = 0;
    for (int round = 0; round < rounds; ++round) {
        data[blockIdx.x * blockDim.x + threadIdx.x] = round * (blockIdx.x + 1);
        barrier();
        sum += data[(gridDim.x - 1 - blockIdx.x) * blockDim.x + (threadIdx.x + 1) % blockDim.x];
        barrier();
    }
    out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

// Chained scan with look-back. A block takes its place from a counter, so it depends only on blocks that have begun.
// status: 0 nothing, 1 the block's own sum is there, 2 so is the sum of all up to it.
extern "C" __global__ void look_back(const int* in, uint32_t* place, uint32_t* status, int* own, int* upto, int* out) {
    __shared__ int tile[64];
    __shared__ int shared_block, before;
    if (threadIdx.x == 0) shared_block = atomicAdd(place, 1u);
    __syncthreads();
    const int block = shared_block, i = threadIdx.x;
    tile[i] = in[block * 64 + i];
    __syncthreads();
    for (int step = 1; step < 64; step *= 2) {
        const int left = i >= step ? tile[i - step] : 0;
        __syncthreads();
        tile[i] += left;
        __syncthreads();
    }
    if (i == 0) {
        if (block > 0) {
            own[block] = tile[63];
            store_release(&status[block], 1);
        }
        int sum = 0;
        for (int k = block - 1; k >= 0; --k) {
            uint32_t state;
            while ((state = load_acquire(&status[k])) == 0) {
            }
            if (state == 2) {
                sum += upto[k];
                break;
            }
            sum += own[k];
        }
        upto[block] = sum + tile[63];
        store_release(&status[block], 2);
        before = sum;
    }
    __syncthreads();
    out[block * 64 + i] = before + tile[i];
}

// Status and value in one word: relaxed accesses are enough, nothing else is handed over.
extern "C" __global__ void look_back_packed(const int* in, uint32_t* place, unsigned long long* state, int* out) {
    const uint32_t block = atomicAdd(place, 1u);
    const int own = in[block];
    int before = 0;
    if (block > 0) {
        unsigned long long seen;
        while (((seen = *static_cast<volatile unsigned long long*>(&state[block - 1])) >> 32) == 0) {
        }
        before = static_cast<int>(seen);
    }
    *static_cast<volatile unsigned long long*>(&state[block]) = (1ull << 32) | static_cast<uint32_t>(before + own);
    out[block] = before + own;
}

extern "C" __global__ void spinlock(uint32_t* lock, uint32_t* value) {
    if (threadIdx.x == 0) {
        while (atomicCAS(lock, 0u, 1u) != 0) {
        }
        __threadfence();
        value[0] += 1;
        value[1] = value[0] * 2;
        __threadfence();
        atomicExch(lock, 0u);
    }
}

// Every lane takes the lock: lanes run on their own, so the one that has it can let go.
extern "C" __global__ void spinlock_of_lanes(uint32_t* lock, uint32_t* value) {
    bool done = false;
    while (!done) {
        if (atomicCAS(lock, 0u, 1u) == 0) {
            __threadfence();
            *value += threadIdx.x;
            __threadfence();
            atomicExch(lock, 0u);
            done = true;
        }
    }
}

// A chain of blocks, each waiting for the one before.
extern "C" __global__ void release_and_acquire(float* data, uint32_t* flags, float* out) {
    __shared__ float from_before;
    if (threadIdx.x == 0) {
        float value = 1;
        if (blockIdx.x > 0) {
            while (load_acquire(&flags[blockIdx.x - 1]) == 0) {
            }
            value = data[blockIdx.x - 1] * 2;
        }
        data[blockIdx.x] = value;
        store_release(&flags[blockIdx.x], 1);
        from_before = value;
    }
    __syncthreads();
    out[blockIdx.x * 32 + threadIdx.x] = from_before + threadIdx.x;
}

// Knowledge travels on: block 2 learns from block 1 what block 0 wrote.
extern "C" __global__ void hearsay(float* data, uint32_t* flags, float* out) {
    if (blockIdx.x == 0) {
        *data = 42;
        store_release(&flags[0], 1);
    } else if (blockIdx.x == 1) {
        while (load_acquire(&flags[0]) == 0) {
        }
        store_release(&flags[1], 1);
    } else {
        while (load_acquire(&flags[1]) == 0) {
        }
        *out = *data;
    }
}

// Flags of a byte each share a word, and nothing else.
extern "C" __global__ void byte_flags(int* data, unsigned char* flags, int* out) {
    volatile unsigned char* const ready = flags;
    if (blockIdx.x < 4) {
        data[blockIdx.x] = blockIdx.x + 1;
        __threadfence();
        ready[blockIdx.x] = 1;
    } else {
        for (int k = 0; k < 4; ++k) {
            while (ready[k] == 0) {
            }
        }
        __threadfence();
        *out = data[0] + data[1] + data[2] + data[3];
    }
}

// The largest float, by atomics on its bits; no lock, no fence.
extern "C" __global__ void largest(const float* in, int* out, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicMax(out, __float_as_int(in[i]));
}

// A compare-and-swap loop that adds in another type; its first read is an atomic's too.
extern "C" __global__ void add_by_exchange(float* out) {
    unsigned* const bits = reinterpret_cast<unsigned*>(out);
    unsigned seen = *static_cast<volatile unsigned*>(bits), assumed;
    do {
        assumed = seen;
        seen = atomicCAS(bits, assumed, __float_as_uint(__uint_as_float(assumed) + 1));
    } while (seen != assumed);
}

// --- between launches -------------------------------------------------------------------------------------------------------

extern "C" __global__ void first_half(const float* in, float* parts) {
    parts[blockIdx.x * 32 + threadIdx.x] = in[blockIdx.x * 32 + threadIdx.x] + 1;
}
extern "C" __global__ void second_half(const float* parts, float* out, int n) {
    float sum = 0;
    for (int k = 0; k < n; ++k) sum += parts[k * 32 + threadIdx.x];
    out[threadIdx.x] = sum;
}

#if __CUDA_ARCH__ >= 900
// --- mbarriers, and launches that overlap ---------------------------------------------------------------------------------

extern "C" __global__ void mbarriers(const float* in, float* out, int rounds) {
    __shared__ float tile[2][32];
    __shared__ uint64_t full[2], empty[2];
    const int lane = threadIdx.x % 32;
    if (threadIdx.x < 2) {
        mbarrier_init(&full[threadIdx.x], 32);
        mbarrier_init(&empty[threadIdx.x], 32);
    }
    __syncthreads();
    for (int round = 0; round < rounds; ++round) {
        const int buffer = round % 2, phase = round / 2;
        if (threadIdx.x < 32) {
            mbarrier_wait(&empty[buffer], (phase + 1) & 1);  // the first two pass at once
            tile[buffer][lane] = in[32 * round + lane];
            mbarrier_arrive(&full[buffer]);
        } else {
            mbarrier_wait(&full[buffer], phase & 1);
            out[32 * round + lane] = tile[buffer][31 - lane];
            mbarrier_arrive(&empty[buffer]);
        }
    }
}

// A producer warp copies asynchronously; its arrivals come when the bytes have landed.
extern "C" __global__ void mbarriers_and_copies(const float4* in, float4* out, int rounds) {
    __shared__ float4 tile[2][32];
    __shared__ uint64_t full[2], empty[2];
    const int lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
        for (int buffer = 0; buffer < 2; ++buffer) {
            mbarrier_init(&full[buffer], 32);
            mbarrier_init(&empty[buffer], 64);
        }
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        for (int round = 0; round < rounds; ++round) {
            mbarrier_wait(&empty[round % 2], (round / 2 + 1) & 1);
            copy_async_16(&tile[round % 2][lane], &in[32 * round + lane]);
            mbarrier_arrive_copies(&full[round % 2]);
        }
        copy_wait_all();
    } else {
        for (int round = 0; round < rounds; ++round) {
            mbarrier_wait(&full[round % 2], round / 2 & 1);
            const float4 four = tile[round % 2][31 - lane];
            mbarrier_arrive(&empty[round % 2]);
            if (threadIdx.x < 64) out[32 * round + lane] = four;
        }
    }
}

// Three launches, each programmatic: all of a kernel's reads and writes come after its wait, the launch of the next does not.
extern "C" __global__ void chain_first(const float* in, float* a) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const float value = in[i];  // nobody's output: may be read before the wait
    wait_for_predecessors();
    launch_dependents();
    a[i] = value + 1;
}
extern "C" __global__ void chain_second(const float* a, float* b) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    launch_dependents();
    wait_for_predecessors();
    b[i] = a[gridDim.x * blockDim.x - 1 - i] * 2;
}
extern "C" __global__ void chain_third(const float* a, const float* b, float* out) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    wait_for_predecessors();
    out[i] = a[i] + b[i];
}
#endif
