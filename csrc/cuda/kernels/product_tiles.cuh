// Products of packed weights (packed.h) with many rows of x, on tensor cores: y = W x for 64 rows of W and 64 tokens a block.
//
// A block goes through the columns by steps of 32, which is a block of every quantized format. For each step the weights, as they
// are packed, come by cp.async (three stages; a thread copies what it alone unpacks, so no barrier stands between), become
// float16 (bfloat16 where they are that) in shared memory, and meet the tokens there; the tile of the next step is made while
// this one is multiplied. Four warps have 32 rows of W and 32 tokens each.
//
// Precision: nothing of the weights is lost. Quants are integers, or E4M3, exact in float16; what they are multiplied by (and the
// minimum, with the sum of x) is applied in float32 to the sum of a step's 32 products, or of 16 where halves of a block have a
// scale each. x is kTerms numbers of 16 bits: what is nearest to it, what is nearest to the rest. For float16 each 32 columns of
// a token are first scaled by a power of two that brings the largest to 2^10 .. 2^11, which is undone in the same place: so
// tokens of any size keep 22 bits, and nobody has to look at a whole row of x in front. bfloat16 has the range of float32 and
// takes no scale. Sums of steps are added up in float32 outside the tensor cores, whose own additions truncate: their error does
// not pile up.
//
// Shared tiles are [64][32] 16-bit numbers, whose pieces of 16 bytes are swizzled: eight rows' pieces of the same columns, which
// ldmatrix and the stores take at a time, lie in all 32 banks.
#pragma once

#include "cuda/kernels/product.cuh"
#include "cuda/kernels/product_tiles.h"

namespace {

constexpr int kTerms = 2;       // of x
constexpr int kTileStages = 3;  // of packed weights under way

// --- What a thread has of a step: 16 weights of a row --------------------------------------------------------------------------

// Bytes that a thread copies of each plane a step, and bytes of a block (of a super-block: supers) in the plane. What is less
// than cp.async can copy comes with its neighbours, as an aligned word.
struct TileSource {
    int quants, high, scales, supers;
    int scale_bytes, super_bytes;
};
constexpr TileSource kTile16{32, 0, 0, 0, 0, 0};

// 16-bit weights as they are.
struct TileBf16 {
    static constexpr TileSource kSource = kTile16;
    static constexpr bool kBf16 = true;
};
struct TileF16 {
    static constexpr TileSource kSource = kTile16;
    static constexpr bool kBf16 = false;
};
struct TileMxfp8 {
    static constexpr TileSource kSource{16, 0, 4, 0, 1, 0};
    static constexpr bool kBf16 = false;
};

// Integers of a format of product.cuh.
template <class F, int high, int scale, int super>
struct TileIntegers {
    using Format = F;
    static constexpr bool kBf16 = false;
    static constexpr TileSource kSource{F::kWords == 4 ? 16 : 8, high, scale ? 4 : 0, super == 2 ? 4 : super, scale, super};
};
using TileQ8_0 = TileIntegers<WeightsQ8_0, 0, 2, 0>;
using TileQ4_0 = TileIntegers<WeightsQ4_0, 0, 2, 0>;
using TileQ4_1 = TileIntegers<WeightsQ4_1, 0, 4, 0>;
using TileQ5_0 = TileIntegers<WeightsQ5_0, 4, 2, 0>;
using TileQ5_1 = TileIntegers<WeightsQ5_1, 4, 4, 0>;
using TileQ4_K = TileIntegers<WeightsQ4_K, 0, 0, 16>;
using TileQ5_K = TileIntegers<WeightsQ5_K, 4, 0, 16>;
using TileQ6_K = TileIntegers<WeightsQ6_K, 8, 2, 2>;

template <class T>
constexpr bool kIsInteger = false;
template <class F, int high, int scale, int super>
constexpr bool kIsInteger<TileIntegers<F, high, scale, super>> = true;

// What a row of a step is multiplied by: nothing, a scale, or two numbers: scale and minimum, or a scale of each half.
template <class T>
__host__ __device__ constexpr bool tile_minimum() {
    if constexpr (kIsInteger<T>) return T::Format::kMinimum;
    return false;
}
template <class T>
__host__ __device__ constexpr bool tile_halves() {
    if constexpr (kIsInteger<T>) return T::Format::kHalves;
    return false;
}
template <class T>
constexpr int kFactors = T::kSource.scales + T::kSource.supers == 0 ? 0
                         : tile_minimum<T>() || tile_halves<T>()    ? 2
                                                                    : 1;

// --- Instructions ------------------------------------------------------------------------------------------------------------

__device__ __forceinline__ uint32_t shared_address(const void* at) { return static_cast<uint32_t>(__cvta_generic_to_shared(at)); }

// kBytes from `from`, or zeros. All but whole sectors pass through the first cache: the next step takes their neighbours.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* to, const void* from, bool there = true) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(from), "n"(kBytes),
                 "r"(there ? kBytes : 0)
                 : "memory");
}
__device__ __forceinline__ void copy_async_once(void* to, const void* from, bool there = true) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(there ? 16 : 0)
                 : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most kLeft groups are under way.
template <int kLeft>
__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

__device__ __forceinline__ uint4 load_matrices(const uint4* at) {
    uint4 m;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m.x), "=r"(m.y), "=r"(m.z), "=r"(m.w)
                 : "r"(shared_address(at))
                 : "memory");
    return m;
}

template <bool kBf16>
__device__ __forceinline__ void multiply_matrices(float (&sum)[4], uint4 a, uint32_t b0, uint32_t b1) {
    if constexpr (kBf16)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

// Where piece 0 .. 3 (8 columns) of a row of a shared tile lies, in 16 bytes. So piece p ^ q of row r + 8 n lies at
// (tile_piece(r, p) ^ q) + 32 n: a thread needs to know one place.
__device__ __forceinline__ int tile_piece(int row, int piece) { return row * 4 + (piece ^ (row / 2 % 4)); }

template <class To, class From>
__device__ __forceinline__ To bits_of(From from) {
    static_assert(sizeof(To) == sizeof(From));
    return *reinterpret_cast<To*>(&from);
}

// --- Conversions -------------------------------------------------------------------------------------------------------------

// Four integers 0 .. 255 less an offset, as float16: under the exponent of 1024 the low bits of a float16 are units.
__device__ __forceinline__ uint2 halves_of_bytes(uint32_t bytes, int offset) {
    const __half2 base = __float2half2_rn(static_cast<float>(1024 + offset));
    const uint32_t first = __byte_perm(bytes, 0x64646464u, 0x4140), last = __byte_perm(bytes, 0x64646464u, 0x4342);
    return make_uint2(bits_of<uint32_t>(__hsub2(bits_of<__half2>(first), base)),
                      bits_of<uint32_t>(__hsub2(bits_of<__half2>(last), base)));
}

// Two numbers' nearest 16-bit ones, which are taken off them.
template <bool kBf16>
__device__ __forceinline__ uint32_t take_term(float& a, float& b) {
    uint32_t term;
    float2 back;
    if constexpr (kBf16) {
        term = bits_of<uint32_t>(__floats2bfloat162_rn(a, b));
        back = widen_bf16(term);
    } else {
        const __half2 halves = __floats2half2_rn(a, b);
        term = bits_of<uint32_t>(halves);
        back = __half22float2(halves);
    }
    a -= back.x, b -= back.y;
    return term;
}

// --- The product -------------------------------------------------------------------------------------------------------------

struct TilesArguments {
    const char* weight;
    const uint64_t* experts;
    int64_t offset, high, scales, supers;
    int rows, cols, token_tiles;
    const Step* step;
    int logits;
    const float* x;
    int epilogue;
    float* y;
    int64_t y_stride;
    const int *group_count, *group_expert, *group_first, *entry_row;
    const float* entry_score;
    int gathered, scaled;
};

template <class T>
__device__ __forceinline__ void product_tiles(const TilesArguments& a) {
    constexpr bool kBf16 = T::kBf16, kNibbles = T::kSource.quants == 8;
    constexpr int kStage = kTileThreads * (T::kSource.quants + T::kSource.high + T::kSource.scales + T::kSource.supers);
    constexpr int kTilePieces = 64 * 4;

    __shared__ uint4 packed[kTileStages][kStage / 16];  // of a stage: a plane after the other, of each a thread after the other
    __shared__ uint4 weights[2][kTilePieces], tokens[2][kTerms][kTilePieces];
    __shared__ float factors[2][kFactors<T> ? kFactors<T> : 1][kTileWeights + 16];  // halves are written together
    __shared__ float2 of_tokens[2][kTileTokens];                                    // scale, sum of the step's columns

    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const int steps = (a.cols + kBlock - 1) / kBlock;
    const int row_tiles = (a.rows + kTileWeights - 1) / kTileWeights;

    // Blocks that share weights are neighbours.
    const int token_tile = static_cast<int>(blockIdx.x) % a.token_tiles;
    const int row_tile = static_cast<int>(blockIdx.x) / a.token_tiles % row_tiles;
    const int group = static_cast<int>(blockIdx.x) / a.token_tiles / row_tiles;

    // Half of the step's columns of one row: of nibbles 8 half .. 8 half + 7 and 16 more, else 16 half .. . Eight lanes have the
    // same half of eight rows, and a warp both halves. Rows past the end repeat the last one.
    const int my_row = 16 * warp + lane % 8 + 8 * (lane / 16), half = lane / 8 % 2;
    const uint32_t w_row = static_cast<uint32_t>(min(row_tile * kTileWeights + my_row, a.rows - 1));
    const uint32_t first_block = w_row * static_cast<uint32_t>(steps);
    const int my_piece = tile_piece(my_row, kNibbles ? half : 2 * half);
    const char* base = a.weight;

    const auto fetch = [&](int step) {
        if (step < steps) {
            unsigned char* to = reinterpret_cast<unsigned char*>(packed[step % kTileStages]);
            const uint32_t block = first_block + static_cast<uint32_t>(step);
            if constexpr (T::kSource.quants == 32) {
                const uint32_t units = (a.cols + 7) / 8, unit = 4 * step + 2 * half;  // a row is padded to whole ones
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const bool there = unit + i < units;
                    copy_async_once(to + 16 * (kTileThreads * i + thread),
                                    base + int64_t{w_row * units + (there ? unit + i : 0)} * 16, there);
                }
            } else if constexpr (T::kSource.quants == 16) {
                copy_async_once(to + 16 * thread, base + int64_t{block} * 32 + 16 * half);
            } else {
                copy_async<8>(to + 8 * thread, base + int64_t{block} * 16 + 8 * half);
            }
            to += kTileThreads * T::kSource.quants;
            if constexpr (T::kSource.high)
                copy_async<T::kSource.high>(to + T::kSource.high * thread, base + a.high + int64_t{block} * T::kSource.high);
            to += kTileThreads * T::kSource.high;
            if constexpr (T::kSource.scales)
                copy_async<4>(to + 4 * thread, base + a.scales + (int64_t{block} * T::kSource.scale_bytes & ~int64_t{3}));
            to += kTileThreads * T::kSource.scales;
            if constexpr (T::kSource.supers)
                copy_async<T::kSource.supers>(to + T::kSource.supers * thread,
                                              base + a.supers + (int64_t{block / 8} * T::kSource.super_bytes & ~int64_t{3}));
        }
        commit_copies();
    };

    let_successor_start();
    const auto fetch_first = [&] {
#pragma unroll
        for (int step = 0; step < kTileStages; ++step) fetch(step);
    };
    if (!a.experts) fetch_first();
    wait_for_predecessor();

    int count, first;  // rows of the step, or entries of the group
    if (a.experts) {
        if (group >= *a.group_count) return;
        first = a.group_first[group];
        count = a.group_first[group + 1] - first;
    } else {
        count = a.logits ? a.step->logit_rows : a.step->rows;
        first = a.step->rows - count;
    }
    const int done = token_tile * kTileTokens;
    if (done >= count) {
        wait_for_copies<0>();
        return;
    }
    if (a.experts) {
        base = reinterpret_cast<const char*>(a.experts[a.group_expert[group]]) + a.offset;
        fetch_first();
    }
    count = min(count - done, kTileTokens);  // of this tile
    first += done;

    // Two tokens' columns 4 part .. 4 part + 3 and 16 more. Four lanes have a token; in the order of lanes tokens 0 1 4 5 2 3 6 7
    // of eight, whose pieces lie in different banks for either half of a warp. Tokens past the end repeat the last one.
    const int part = lane % 4, of_eight = (lane / 4 & 1) | (lane / 4 & 2) << 1 | (lane / 4 & 4) >> 1;
    int x_row[2];
    float4 in_flight[2][2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int token = min(32 * i + 8 * warp + of_eight, count - 1);
        x_row[i] = a.experts && a.gathered ? a.entry_row[first + token] : first + token;
    }
    const auto fetch_tokens = [&](int step) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
            if (32 * i < count) {
                const float* const x = a.x + int64_t{x_row[i]} * a.cols;
#pragma unroll
                for (int k = 0; k < 2; ++k) {
                    const int piece = 8 * step + 4 * k + part;
                    if constexpr (T::kSource.quants == 32)
                        in_flight[i][k] = load_piece(x, a.cols, piece);
                    else  // whole blocks
                        in_flight[i][k] = reinterpret_cast<const float4*>(x)[piece];
                }
            }
    };

    const auto put_tokens = [&](int buffer) {
        const int at = 2 * tile_piece(8 * warp + of_eight, part / 2) + part % 2;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            if (32 * i >= count) break;
            const int token = 32 * i + 8 * warp + of_eight;
            float v[8] = {in_flight[i][0].x, in_flight[i][0].y, in_flight[i][0].z, in_flight[i][0].w,
                          in_flight[i][1].x, in_flight[i][1].y, in_flight[i][1].z, in_flight[i][1].w};
            if constexpr (!kBf16) {
                float sum = 0.0f;
                if constexpr (tile_minimum<T>()) {
                    sum = ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
                    sum += __shfl_xor_sync(kWholeWarp, sum, 1);
                    sum += __shfl_xor_sync(kWholeWarp, sum, 2);
                }
                int largest = 0;  // magnitude, by its bits: a NaN is above them all
#pragma unroll
                for (int k = 0; k < 8; ++k) largest = max(largest, __float_as_int(v[k]) & 0x7fffffff);
                largest = max(largest, __shfl_xor_sync(kWholeWarp, largest, 1));
                largest = max(largest, __shfl_xor_sync(kWholeWarp, largest, 2));
                // 2^shift, whose reciprocal is normal too. What is not finite stays so: its second term is a NaN.
                const int shift = min(127 + 10 - (largest >> 23), 126);
                const float to_term = __int_as_float((127 + shift) << 23);
#pragma unroll
                for (int k = 0; k < 8; ++k) v[k] *= to_term;
                if (part == 0) of_tokens[buffer][token] = make_float2(__int_as_float((127 - shift) << 23), sum);
            }
#pragma unroll
            for (int t = 0; t < kTerms; ++t) {
                uint2* const to = reinterpret_cast<uint2*>(tokens[buffer][t]);
#pragma unroll
                for (int k = 0; k < 2; ++k) {
                    const uint32_t low = take_term<kBf16>(v[4 * k], v[4 * k + 1]);
                    const uint32_t high = take_term<kBf16>(v[4 * k + 2], v[4 * k + 3]);
                    to[(at ^ 4 * k) + 256 * i] = make_uint2(low, high);
                }
            }
        }
    };

    // The packed weights of a step, which this thread has copied, to their tile.
    const auto put_weights = [&](int step, int buffer) {
        const unsigned char* from = reinterpret_cast<const unsigned char*>(packed[step % kTileStages]);
        const uint32_t block = first_block + static_cast<uint32_t>(step);
        uint4 out[2];
        const auto word_of = [&](const unsigned char* plane) { return reinterpret_cast<const uint32_t*>(plane)[thread]; };
        const unsigned char* const high = from + kTileThreads * T::kSource.quants;
        const unsigned char* const scales = high + kTileThreads * T::kSource.high;
        const unsigned char* const supers = scales + kTileThreads * T::kSource.scales;
        if constexpr (T::kSource.quants == 32) {
#pragma unroll
            for (int i = 0; i < 2; ++i) out[i] = reinterpret_cast<const uint4*>(from)[kTileThreads * i + thread];
        } else if constexpr (kIsInteger<T>) {
            typename T::Format w;
            uint2 four[4];
            if constexpr (kNibbles) {
                const uint2 mine = reinterpret_cast<const uint2*>(from)[thread];
                w.raw = make_uint4(mine.x, mine.y, 0, 0);
                // The other half's bits are two words of quants further.
                if constexpr (T::kSource.high == 4) w.high = word_of(high) >> (2 * half);
                if constexpr (T::kSource.high == 8) {
                    const uint2 pairs = reinterpret_cast<const uint2*>(high)[thread];
                    w.high = make_uint2(pairs.x >> (4 * half), pairs.y >> (4 * half));
                }
#pragma unroll
                for (int i = 0; i < 4; ++i) four[i] = halves_of_bytes(w.quants(i % 2 + i / 2 * 4), T::Format::kOffset);
            } else {
                w.raw = reinterpret_cast<const uint4*>(from)[thread];
#pragma unroll
                for (int i = 0; i < 4; ++i) four[i] = halves_of_bytes(w.quants(i) ^ 0x80808080u, 128);
            }
#pragma unroll
            for (int i = 0; i < 2; ++i) out[i] = make_uint4(four[2 * i].x, four[2 * i].y, four[2 * i + 1].x, four[2 * i + 1].y);
            const int sub = step % 8;
            if constexpr (tile_halves<T>()) {
                w.of_halves = static_cast<uint16_t>(word_of(scales) >> (block % 2 * 16));
                w.set_super(word_of(supers) >> (block / 8 % 2 * 16));
                factors[buffer][half][my_row] = __fmul_rn(w.scale(sub), w.half_scale(half));
            } else {
                if constexpr (T::kSource.supers == 16) w.super = reinterpret_cast<const uint4*>(supers)[thread];
                if constexpr (T::kSource.scale_bytes == 4) w.dm = word_of(scales);
                if constexpr (T::kSource.scale_bytes == 2) w.d = static_cast<uint16_t>(word_of(scales) >> (block % 2 * 16));
                if (half == 0) factors[buffer][0][my_row] = w.scale(sub);
                if constexpr (tile_minimum<T>())
                    if (half == 1) factors[buffer][1][my_row] = w.minimum(sub);
            }
        } else {
            const uint4 mine = reinterpret_cast<const uint4*>(from)[thread];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const FourHalves low = widen_e4m3(word(mine, 2 * i)), above = widen_e4m3(word(mine, 2 * i + 1));
                out[i] = make_uint4(bits_of<uint32_t>(low.first), bits_of<uint32_t>(low.last), bits_of<uint32_t>(above.first),
                                    bits_of<uint32_t>(above.last));
            }
            const uint32_t exponent = word_of(scales) >> (block % 4 * 8) & 0xffu;
            if (half == 0)
                factors[buffer][0][my_row] = __uint_as_float(exponent == 0xff ? 0x7fc00000u
                                                             : exponent == 0  ? 0x00400000u
                                                                              : exponent << 23);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) weights[buffer][my_piece ^ (kNibbles ? 2 * i : i)] = out[i];
    };

    // A warp's 32 rows of W by 32 tokens. A lane has of each 16 by 8: rows g and g + 8, tokens 2 c and 2 c + 1.
    const int warp_row = warp % 2 * 32, warp_token = warp / 2 * 32, g = lane / 4, c = lane % 4;
    const int w_piece = tile_piece(warp_row + lane % 16, lane / 16), v_piece = tile_piece(warp_token + lane % 8, lane / 8);
    float sums[2][4][4] = {};
    const auto multiply = [&](int buffer) {
        uint4 w[2][2];
        float factor[kFactors<T> ? kFactors<T> : 1][2][2];  // of rows g and g + 8 of either 16
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
            for (int k = 0; k < 2; ++k) w[m][k] = load_matrices(&weights[buffer][(w_piece ^ 2 * k) + 64 * m]);
            if constexpr (kFactors<T> > 0) {
#pragma unroll
                for (int f = 0; f < kFactors<T>; ++f)
#pragma unroll
                    for (int r = 0; r < 2; ++r) factor[f][m][r] = factors[buffer][f][warp_row + 16 * m + 8 * r + g];
            }
        }
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            uint4 v[kTerms];
#pragma unroll
            for (int t = 0; t < kTerms; ++t) v[t] = load_matrices(&tokens[buffer][t][v_piece + 32 * n]);
            float4 of_two{};  // scale and sum of two tokens
            if constexpr (!kBf16) of_two = reinterpret_cast<const float4*>(&of_tokens[buffer][warp_token + 8 * n])[c];
#pragma unroll
            for (int m = 0; m < 2; ++m) {
#pragma unroll
                for (int part = 0; part < (tile_halves<T>() ? 2 : 1); ++part) {
                    float sum[4] = {};
#pragma unroll
                    for (int t = kTerms - 1; t >= 0; --t) {  // small ones first
                        if (!tile_halves<T>() || part == 0) multiply_matrices<kBf16>(sum, w[m][0], v[t].x, v[t].y);
                        if (!tile_halves<T>() || part == 1) multiply_matrices<kBf16>(sum, w[m][1], v[t].z, v[t].w);
                    }
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        float& total = sums[m][n][i];
                        const float scale = i % 2 ? of_two.z : of_two.x, of_columns = i % 2 ? of_two.w : of_two.y;
                        if constexpr (kBf16) {
                            total += sum[i];
                        } else if constexpr (kFactors<T> == 0) {
                            total = fmaf(sum[i], scale, total);
                        } else {
                            total = fmaf(__fmul_rn(sum[i], scale), factor[part][m][i / 2], total);
                            if constexpr (tile_minimum<T>()) total = fmaf(of_columns, factor[1][m][i / 2], total);
                        }
                    }
                }
            }
        }
    };

    fetch_tokens(0);
    wait_for_copies<kTileStages - 1>();
    put_weights(0, 0);
    put_tokens(0);
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
        __syncthreads();  // this step's tile is there, and all are through with the one before
        fetch(step + kTileStages);
        if (step + 1 < steps) fetch_tokens(step + 1);
        if (warp_token < count) multiply(step & 1);
        if (step + 1 < steps) {
            put_tokens(~step & 1);
            wait_for_copies<kTileStages - 1>();
            put_weights(step + 1, ~step & 1);
        }
    }

#pragma unroll
    for (int n = 0; n < 4; ++n) {
        const int token = warp_token + 8 * n + 2 * c;
        float score[2] = {1.0f, 1.0f};
        if (a.scaled) {
#pragma unroll
            for (int i = 0; i < 2; ++i) score[i] = a.entry_score[first + min(token + i, count - 1)];
        }
        float* const y = a.y + (int64_t{a.experts ? first : done} + token) * a.y_stride;
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const int row = row_tile * kTileWeights + warp_row + 16 * m + 8 * r + g;
                float value[2];
#pragma unroll
                for (int i = 0; i < 2; ++i) value[i] = sums[m][n][2 * r + i] * score[i];
                if (a.epilogue == kProductSiluTimesUp) {
                    // The lane of the even row, gate's, makes the first token's result, that of up's the second's.
                    const bool up = g % 2;
                    const float other = __shfl_xor_sync(kWholeWarp, up ? value[0] : value[1], 4);
                    if (row < a.rows && token + up < count)
                        y[up * a.y_stride + row / 2] = up ? silu(other) * value[1] : silu(value[0]) * other;
                    continue;
                }
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    if (row >= a.rows || token + i >= count) continue;
                    float* const to = y + i * a.y_stride + row;
                    *to = a.epilogue == kProductAdd ? *to + value[i] : value[i];
                }
            }
        }
    }
}

}  // namespace

// product_tiles_{group}_{format}:
//   weight: a packed matrix [rows, cols] whose planes begin `high`, `scales` and `supers` behind it, or, with experts, null:
//   then group g's lies at experts[group_expert[g]] + offset
//   step [1]; logits: 1 for its last logit_rows rows, 0 for all
//   x float32 [max_rows, cols]: of the step, or with experts and not gathered [entries, cols]
//   y float32 [max_rows, y_stride], with experts [entries, y_stride]; epilogue: kProductStore ..., not kProductRotate
//   group_count [1], group_expert [groups], group_first [groups + 1], entry_row and entry_score [entries]
// PRECOND: grid (token_tiles * tiles of rows * (with experts groups, at least *group_count, else 1)), block (kTileThreads);
//          token_tiles of kTileTokens hold the step's rows, and every group's; weight on 256 bytes, x on 16
#define LLAMA_EXT_PRODUCT_TILES(name, Tile)                                                                                      \
    extern "C" __global__ void __launch_bounds__(kTileThreads, 3)                                                                \
        product_tiles_##name(const char* weight, const uint64_t* experts, int64_t offset, int64_t high, int64_t scales,          \
                             int64_t supers, int rows, int cols, int token_tiles, const Step* step, int logits, const float* x,  \
                             int epilogue, float* y, int64_t y_stride, const int* group_count, const int* group_expert,          \
                             const int* group_first, const int* entry_row, const float* entry_score, int gathered, int scaled) { \
        product_tiles<Tile>({weight,       experts,     offset,    high,        scales,   supers, rows,     cols,                \
                             token_tiles,  step,        logits,    x,           epilogue, y,      y_stride, group_count,         \
                             group_expert, group_first, entry_row, entry_score, gathered, scaled});                              \
    }
