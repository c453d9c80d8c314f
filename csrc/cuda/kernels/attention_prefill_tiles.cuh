// Attention of many rows on tensor cores, for a head_dim of 64 or 128. A file of kernels a format of the cache.
//
// A block has 64 neighbouring queries of a key-value head (attention_prefill.cuh), a warp 16 of them: the rows of an
// mma.m16n8k16, whose other side are 8 keys, or 8 elements of values. Queries, scores and results stay in registers; probabilities
// go from the layout of a result straight to that of an operand. The softmax is online, in float32, to the base 2.
//
// Accuracy. Keys and values go into the mma exactly: f16 and bf16 as they are, fp8 as f16, q8_0's integers as bf16. The other
// operand is a float32 as two terms, what the type can hold and what is left. In f16 that makes 22 bits: queries are moved
// to 2^14 .. 2^15, row by row, and probabilities to 2^14 at the most, so that the second term is far from the smallest f16. In bf16
// it makes 16 to 17 bits, whatever the size. q8_0's scales have a place outside: a key's multiply sums over its 32 elements,
// a value's its probability, in float32; scales have f16's whole range, which is why its products are of bf16.
//
// Tiles. 16-bit formats: two tiles of keys and values, one in use while cp.async fills the other. 8-bit formats: cp.async fills a
// tile of bytes, which is widened into one tile of 16 bits; the next bytes are under way while that one is used. In a tile of 16
// bits, 16 bytes `piece` of key k lie at piece ^ (k % 8), so that neither ldmatrix nor what fills it meets a bank twice.
#pragma once

#include "cuda/kernels/attention_prefill.cuh"

namespace {

__device__ __forceinline__ uint32_t shared_address(const void* at) { return static_cast<uint32_t>(__cvta_generic_to_shared(at)); }

// kBytes to shared memory; zeros unless `there`, when nothing is read.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* to, const void* from, bool there) {
    static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
    if constexpr (kBytes == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(there ? 16 : 0)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(from), "n"(kBytes),
                     "r"(there ? kBytes : 0)
                     : "memory");
}

__device__ __forceinline__ void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }

// Four matrices of 8 x 8, lane i with the address of row i % 8 of matrix i / 8.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], uint32_t at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at)
                 : "memory");
}
__device__ __forceinline__ void load_transposed(uint32_t (&to)[4], uint32_t at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at)
                 : "memory");
}

// What the two 16-bit types of operands differ in. split: two floats as pairs of the type, high + low.  product: c += a b
struct F16Operand {
    // Probabilities are up to 2^14, queries below 2^15.
    static constexpr bool kNarrowRange = true;

    __device__ static void split(float x, float y, uint32_t* high, uint32_t* low) {
        const __half2 h = __floats2half2_rn(x, y);
        const float2 wide = __half22float2(h);
        const __half2 l = __floats2half2_rn(x - wide.x, y - wide.y);
        *high = *reinterpret_cast<const uint32_t*>(&h);
        *low = *reinterpret_cast<const uint32_t*>(&l);
    }
    __device__ static void product(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
};

struct Bf16Operand {
    static constexpr bool kNarrowRange = false;

    __device__ static void split(float x, float y, uint32_t* high, uint32_t* low) {
        const __nv_bfloat162 h = __floats2bfloat162_rn(x, y);
        *high = *reinterpret_cast<const uint32_t*>(&h);
        const float2 wide = widen_bf16(*high);
        const __nv_bfloat162 l = __floats2bfloat162_rn(x - wide.x, y - wide.y);
        *low = *reinterpret_cast<const uint32_t*>(&l);
    }
    __device__ static void product(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
};

// Formats. kBytes an element; kScaled: blocks of 32 have a scale; widen: four bytes as two pairs of the operand's type.
struct F16Tiles : F16Operand {
    static constexpr int kBytes = 2;
    static constexpr bool kScaled = false;
};

struct Bf16Tiles : Bf16Operand {
    static constexpr int kBytes = 2;
    static constexpr bool kScaled = false;
};

struct Q8Tiles : Bf16Operand {
    static constexpr int kBytes = 1;
    static constexpr bool kScaled = true;

    // 2^23 + 128 + x has x + 128 as its lowest byte, and bf16 is a float's upper half.
    __device__ static uint2 widen(uint32_t bytes) {
        bytes ^= 0x80808080u;
        uint32_t x[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
            x[i] = __float_as_uint(__uint_as_float(__byte_perm(bytes, 0x4b000000u, 0x7440 + i)) - (8388608.0f + 128.0f));
        return make_uint2(__byte_perm(x[0], x[1], 0x7632), __byte_perm(x[2], x[3], 0x7632));
    }
};

struct Fp8Tiles : F16Operand {
    static constexpr int kBytes = 1;
    static constexpr bool kScaled = false;

#if __CUDA_ARCH__ >= 890
    __device__ static uint2 widen(uint32_t bytes) {
        uint2 pairs;
        asm("{\n\t.reg .b16 low, high;\n\tmov.b32 {low, high}, %2;\n\tcvt.rn.f16x2.e4m3x2 %0, low;\n\t"
            "cvt.rn.f16x2.e4m3x2 %1, high;\n\t}"
            : "=r"(pairs.x), "=r"(pairs.y)
            : "r"(bytes));
        return pairs;
    }
#else
    // pair: in bytes 1 and 3. Sign and magnitude go where f16 has them, which leaves an exponent that is 8 too small. NaN, one
    // beyond the largest number, would become 480: the exponent bit that 480 lacks makes it NaN again.
    __device__ static uint32_t widen_pair(uint32_t pair) {
        const uint32_t magnitude = pair >> 1 & 0x3f803f80u, bits = (pair & 0x80008000u) | magnitude;
        const __half2 wide = __hmul2(*reinterpret_cast<const __half2*>(&bits), __float2half2_rn(256.0f));
        const uint32_t nans = (magnitude + 0x00800080u) & 0x40004000u;
        return *reinterpret_cast<const uint32_t*>(&wide) | nans >> 1;
    }
    __device__ static uint2 widen(uint32_t bytes) {
        return make_uint2(widen_pair(__byte_perm(bytes, 0, 0x1404)), widen_pair(__byte_perm(bytes, 0, 0x3424)));
    }
#endif
};

template <typename F, int kHeadDim>
struct Tiles {
    static constexpr bool kWidened = F::kBytes == 1;
    static constexpr int kKeys = 4096 / kHeadDim;       // of a tile
    static constexpr int kPieces = kHeadDim / 8;        // of 16 bytes, of a key's row in 16 bits
    static constexpr int kRaw = kHeadDim * F::kBytes / 16;  // of a key's row in the cache
    static constexpr int kBlocks = kHeadDim / 32;
    static constexpr int kThreads = 32 * kPrefillWarps;
    static constexpr int kStages = kWidened ? 1 : 2;

    alignas(256) uint4 keys[kStages][kKeys * kPieces];
    alignas(256) uint4 values[kStages][kKeys * kPieces];
    uint4 raw_keys[kWidened ? kKeys * kRaw : 1], raw_values[kWidened ? kKeys * kRaw : 1];
    __half raw_scales[2][F::kScaled ? kKeys * kBlocks : 8];       // keys', values': [kKeys][kBlocks]
    float scales[2][F::kScaled ? kBlocks : 1][F::kScaled ? kKeys : 4];  // likewise: [kBlocks][kKeys]

    // Where the 16 bytes `piece` of a key lie.
    __device__ static int at(int key, int piece) { return key * kPieces + (piece ^ (key % 8)); }

    // Begins to copy a tile whose first key is `from`; zeros are what lies behind the block's last key.
    __device__ void fetch(const char* key_plane, const char* value_plane, const __half* key_scales, const __half* value_scales,
                          const Queries& queries, int from, int stage) {
#pragma unroll
        for (int i = 0; i < kKeys * kRaw / kThreads; ++i) {
            const int piece = threadIdx.x + i * kThreads, key = piece / kRaw;
            const bool there = from + key < queries.count;
            const int64_t offset = there ? (queries.slot_of(from + key) * kRaw + piece % kRaw) * 16 : 0;
            if constexpr (kWidened) {
                copy_async<16>(&raw_keys[piece], key_plane + offset, there);
                copy_async<16>(&raw_values[piece], value_plane + offset, there);
            } else {
                copy_async<16>(&keys[stage][at(key, piece % kRaw)], key_plane + offset, there);
                copy_async<16>(&values[stage][at(key, piece % kRaw)], value_plane + offset, there);
            }
        }
        if constexpr (F::kScaled) {
            const int key = threadIdx.x % kKeys, which = threadIdx.x / kKeys;
            if (which < 2) {
                const bool there = from + key < queries.count;
                const int64_t offset = there ? queries.slot_of(from + key) * kBlocks : 0;
                copy_async<2 * kBlocks>(&raw_scales[which][key * kBlocks], (which ? value_scales : key_scales) + offset, there);
            }
        }
        end_copies();
    }

    // The tile of bytes, which has come, into the one of 16 bits. A thread widens what it has fetched itself.
    __device__ void widen() {
#pragma unroll
        for (int i = 0; i < kKeys * kRaw / kThreads; ++i) {
            const int piece = threadIdx.x + i * kThreads, key = piece / kRaw, of_key = piece % kRaw;
            // Eight lanes write eight pieces; those of a long row, which lie 32 bytes apart, in two orders.
            const bool turned = kRaw == 8 && of_key >= 4;
            widen(raw_keys[piece], &keys[0][at(key, 2 * of_key + turned)], &keys[0][at(key, 2 * of_key + !turned)], turned);
            widen(raw_values[piece], &values[0][at(key, 2 * of_key + turned)], &values[0][at(key, 2 * of_key + !turned)], turned);
        }
        if constexpr (F::kScaled) {
            const int key = threadIdx.x % kKeys, which = threadIdx.x / kKeys;
            if (which < 2) {
#pragma unroll
                for (int b = 0; b < kBlocks; ++b) scales[which][b][key] = __half2float(raw_scales[which][key * kBlocks + b]);
            }
        }
    }
    __device__ static void widen(uint4 raw, uint4* first, uint4* second, bool turned) {
        const uint2 a = F::widen(turned ? raw.z : raw.x), b = F::widen(turned ? raw.w : raw.y);
        const uint2 c = F::widen(turned ? raw.x : raw.z), d = F::widen(turned ? raw.y : raw.w);
        *first = make_uint4(a.x, a.y, b.x, b.y);
        *second = make_uint4(c.x, c.y, d.x, d.y);
    }
};

template <typename F, int kHeadDim>
__device__ __forceinline__ void attend(const float* qkv, const Step* step, const CacheState* cache, float* out, int64_t extent,
                                       int64_t temperature_floor, int mask, int group, float scale, int qk_norm,
                                       float qk_norm_eps, float temperature_scale) {
    using T = Tiles<F, kHeadDim>;
    constexpr int kKeys = T::kKeys, kSteps = kHeadDim / 16;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, column = 2 * (lane % 4);
    const int kv_head = blockIdx.x, kv_heads = gridDim.x;
    __shared__ T tiles;

    let_successor_start();
    wait_for_predecessor();
    Queries queries;
    if (!queries.find(step, cache, kPrefillQueries, group, mask, extent)) return;
    const int64_t first_row = kv_head * queries.capacity;  // of the head in the cache
    const char* const keys = reinterpret_cast<const char*>(cache->keys) + first_row * kHeadDim * F::kBytes;
    const char* const values = reinterpret_cast<const char*>(cache->values) + first_row * kHeadDim * F::kBytes;
    const __half* const key_scales = reinterpret_cast<const __half*>(cache->key_scales) + first_row * T::kBlocks;
    const __half* const value_scales = reinterpret_cast<const __half*>(cache->value_scales) + first_row * T::kBlocks;
    tiles.fetch(keys, values, key_scales, value_scales, queries, 0, 0);

    // Of the warp's 16 queries a lane has two, lane / 4 and lane / 4 + 8; of a tile's columns it has `column` and the next.
    const int warp_from = queries.from + 16 * warp;
    int warp_low, warp_high, unused;
    queries.range(warp_from, group, mask, extent, &warp_low, &unused);
    queries.range(min(warp_from + 15, queries.end - 1), group, mask, extent, &unused, &warp_high);
    int all_low, all_high;  // what every query of the warp sees
    queries.range(warp_from + 15, group, mask, extent, &all_low, &unused);
    queries.range(warp_from, group, mask, extent, &unused, &all_high);

    uint32_t query_high[kSteps][4], query_low[kSteps][4];
    float factor[2], highest[2], sum[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int query = warp_from + lane / 4 + 8 * r;
        highest[r] = -INFINITY, sum[r] = 0.0f;
        float2 q[kSteps][2];
        float squares = 0.0f, largest = 0.0f;
        const bool there = query < queries.end;
        const int64_t row = there ? query / group : 0, head = kv_head * group + query % group;
        const float* const from = qkv + (row * (group + 2) * kv_heads + head) * kHeadDim + column;
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                q[s][h] = there ? *reinterpret_cast<const float2*>(from + 16 * s + 8 * h) : make_float2(0.0f, 0.0f);
                squares = fmaf(q[s][h].x, q[s][h].x, fmaf(q[s][h].y, q[s][h].y, squares));
                largest = fmaxf(largest, fmaxf(fabsf(q[s][h].x), fabsf(q[s][h].y)));
            }
        }
        factor[r] = scale * kLog2E * temperature(queries.position + row, temperature_scale, temperature_floor);
        if (qk_norm) {
            squares += __shfl_xor_sync(kWholeWarp, squares, 1);
            squares += __shfl_xor_sync(kWholeWarp, squares, 2);
            factor[r] *= rsqrtf(squares / static_cast<float>(kHeadDim) + qk_norm_eps);
        }
        float move = 1.0f;
        if constexpr (F::kNarrowRange) {  // by the power of two that brings the largest to 2^14 .. 2^15
            largest = fmaxf(largest, __shfl_xor_sync(kWholeWarp, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(kWholeWarp, largest, 2));
            const uint32_t exponent = min(268 - (__float_as_uint(largest) >> 23), 253u);
            move = __uint_as_float(exponent << 23);
            factor[r] *= __uint_as_float((254 - exponent) << 23);
        }
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
#pragma unroll
            for (int h = 0; h < 2; ++h)
                F::split(q[s][h].x * move, q[s][h].y * move, &query_high[s][2 * h + r], &query_low[s][2 * h + r]);
        }
    }

    float result[kHeadDim / 8][4] = {};
    // ldmatrix: lane i names row i % 8 of matrix i / 8. Keys: matrices are 8 keys by 8 elements, two of elements side by side,
    // then the next 8 keys. Values: the same with keys first.
    const int in_matrix = lane % 8, matrix = lane / 8;
    // Pieces that are an even number further lie at the address with that number of 16 bytes flipped.
    const uint32_t keys_at = shared_address(&tiles.keys[0][T::at(in_matrix + matrix / 2 * 8, matrix % 2)]);
    const uint32_t values_at = shared_address(&tiles.values[0][T::at(in_matrix + matrix % 2 * 8, matrix / 2)]);
    constexpr uint32_t kRow = 2 * kHeadDim, kStage = kKeys * kRow;  // bytes
    int stage = 0;
    for (int tile = 0; tile < queries.count; tile += kKeys) {
        wait_for_copies();
        __syncthreads();  // everyone's copies are there, and everyone is through with the tile before
        if constexpr (T::kWidened) {
            tiles.widen();
            __syncthreads();  // until everyone has widened
        }
        if (tile + kKeys < queries.count)
            tiles.fetch(keys, values, key_scales, value_scales, queries, tile + kKeys, T::kWidened ? 0 : stage ^ 1);
        if (tile <= warp_high && tile + kKeys > warp_low) {
            float score[kKeys / 8][4] = {};
#pragma unroll
            for (int n = 0; n < kKeys / 8; n += 2) {
                constexpr int kTogether = F::kScaled ? 2 : kSteps;  // steps under one scale
#pragma unroll
                for (int part = 0; part < kSteps; part += kTogether) {
                    float partial[2][4] = {};
#pragma unroll
                    for (int s = part; s < part + kTogether; ++s) {
                        uint32_t b[4];
                        load_matrices(b, ((keys_at + stage * kStage) ^ 32 * s) + 8 * n * kRow);
#pragma unroll
                        for (int i = 0; i < 2; ++i) {
                            F::product(partial[i], query_low[s], b[2 * i], b[2 * i + 1]);
                            F::product(partial[i], query_high[s], b[2 * i], b[2 * i + 1]);
                        }
                    }
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        float2 of_key = make_float2(1.0f, 1.0f);
                        if constexpr (F::kScaled)
                            of_key = *reinterpret_cast<const float2*>(&tiles.scales[0][part / 2][8 * (n + i) + column]);
#pragma unroll
                        for (int c = 0; c < 4; ++c)
                            score[n + i][c] = F::kScaled ? fmaf(partial[i][c], c % 2 ? of_key.y : of_key.x, score[n + i][c])
                                                         : partial[i][c];
                    }
                }
            }

#pragma unroll
            for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
                for (int c = 0; c < 4; ++c) score[n][c] *= factor[c / 2];
            }
            if (tile < all_low || tile + kKeys - 1 > all_high) {  // there are keys that not every query of the warp sees
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    int low, high;
                    queries.range(warp_from + lane / 4 + 8 * r, group, mask, extent, &low, &high);
#pragma unroll
                    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
                        for (int c = 0; c < 2; ++c) {
                            const int key = tile + 8 * n + column + c;
                            if (key < low || key > high) score[n][2 * r + c] = -INFINITY;
                        }
                    }
                }
            }
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                float top = -INFINITY;
#pragma unroll
                for (int n = 0; n < kKeys / 8; ++n) top = fmaxf(top, fmaxf(score[n][2 * r], score[n][2 * r + 1]));
                top = fmaxf(top, __shfl_xor_sync(kWholeWarp, top, 1));
                top = fmaxf(top, __shfl_xor_sync(kWholeWarp, top, 2));
                const float before = highest[r];
                highest[r] = fmaxf(before, top);
                const float base = highest[r] == -INFINITY ? 0.0f : highest[r];  // no key was seen yet
                const float kept = exp2_of(before - base), shift = F::kNarrowRange ? base - 14.0f : base;
                sum[r] *= kept;
#pragma unroll
                for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
                    for (int c = 0; c < 2; ++c) {
                        float& x = score[n][2 * r + c];
                        x = exp2_of(x - shift);
                        sum[r] += x;
                    }
                }
#pragma unroll
                for (int d = 0; d < kHeadDim / 8; ++d) result[d][2 * r] *= kept, result[d][2 * r + 1] *= kept;
            }

            constexpr int kParts = F::kScaled ? T::kBlocks : 1;  // elements under one scale
#pragma unroll
            for (int part = 0; part < kParts; ++part) {
#pragma unroll
                for (int k = 0; k < kKeys / 16; ++k) {
                    uint32_t high_term[4], low_term[4];
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        float2 of_value = make_float2(1.0f, 1.0f);
                        if constexpr (F::kScaled)
                            of_value = *reinterpret_cast<const float2*>(&tiles.scales[1][part][16 * k + 8 * i + column]);
                        const float* const p = score[2 * k + i];
#pragma unroll
                        for (int r = 0; r < 2; ++r)
                            F::split(p[2 * r] * of_value.x, p[2 * r + 1] * of_value.y, &high_term[2 * i + r], &low_term[2 * i + r]);
                    }
#pragma unroll
                    for (int d = part * (kHeadDim / 8 / kParts); d < (part + 1) * (kHeadDim / 8 / kParts); d += 2) {
                        uint32_t b[4];
                        load_transposed(b, ((values_at + stage * kStage) ^ 16 * d) + 16 * k * kRow);
#pragma unroll
                        for (int i = 0; i < 2; ++i) {
                            F::product(result[d + i], low_term, b[2 * i], b[2 * i + 1]);
                            F::product(result[d + i], high_term, b[2 * i], b[2 * i + 1]);
                        }
                    }
                }
            }
        }
        if constexpr (!T::kWidened) stage ^= 1;
    }

#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int query = warp_from + lane / 4 + 8 * r;
        float total = sum[r];
        total += __shfl_xor_sync(kWholeWarp, total, 1);
        total += __shfl_xor_sync(kWholeWarp, total, 2);
        if (query >= queries.end) continue;
        const int64_t row = query / group, head = kv_head * group + query % group;
        float* const to = out + (row * group * kv_heads + head) * kHeadDim + column;
        const float share = 1.0f / total;
#pragma unroll
        for (int d = 0; d < kHeadDim / 8; ++d)
            *reinterpret_cast<float2*>(to + 8 * d) = make_float2(result[d][2 * r] * share, result[d][2 * r + 1] * share);
    }
}

}  // namespace

// attention_prefill_{format of the cache}_{head_dim}: qkv [max_rows, (heads + 2 kv_heads) * head_dim], step [1], cache [1], which
//   holds the step's keys and values already -> out [max_rows, heads * head_dim]
// PRECOND: grid (kv_heads, ceil(max_rows * group / kPrefillQueries)), block (32 * kPrefillWarps); the cache on 16 bytes, qkv and
//          out on 8; every key that the mask shows a row of the step still lies in the cache
// Two blocks a multiprocessor are asked for, which is what registers allow: without a number ptxas saves registers for more, and
// spills.
#define LLAMA_EXT_PREFILL(format, F, kHeadDim)                                                                                   \
    extern "C" __global__ void __launch_bounds__(32 * kPrefillWarps, 2) attention_prefill_##format##_##kHeadDim(                 \
        const float* qkv, const Step* step, const CacheState* cache, float* out, int64_t extent, int64_t temperature_floor,      \
        int mask, int group, int head_dim, float scale, int qk_norm, float qk_norm_eps, float temperature_scale) {               \
        attend<F, kHeadDim>(qkv, step, cache, out, extent, temperature_floor, mask, group, scale, qk_norm, qk_norm_eps,          \
                            temperature_scale);                                                                                  \
    }
