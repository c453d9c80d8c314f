// Products of packed weights (packed.h) with up to 16 rows of x: each weight is read once, and memory is all that matters.
//
// A warp has a pair of rows of W at a time, 2i and 2i + 1, which is what rotations and SiLU take (two pairs where many rows of x
// meet float weights: shared memory would bound it else). A lane takes 16 bytes of each row's quants at a time, a unit, next to
// its neighbours', with `depth` units under way, each renewed as soon as it is used: the stream of loads runs on over the ends of
// rows. Pairs are dealt out to blocks one by one, so that all have equally many.
//
// x is staged to shared memory once a block, normalised and in the form that the weights meet (product.h), by tiles of columns
// where it does not fit. The first weights are fetched before the wait for the kernel that makes x.
//
// Rounding: a lane adds up its units in ascending order in one chain, then the lanes of a warp meet in a fixed tree; every fused
// multiplication is written out. So a row's bits depend neither on the other rows nor on the tiles.
#pragma once

#include "cuda/kernels/device.cuh"
#include "cuda/kernels/packed.h"
#include "cuda/kernels/product.h"
#include "cuda/kernels/step.h"

namespace {

using namespace llama_ext::cuda;

constexpr int kProductThreads = 32 * kProductWarps;
constexpr float kLargestQ15 = 127 * 128 + 63;

// Weights pass through once, so they shall not displace anything. volatile: stays above the wait for the predecessor.
__device__ __forceinline__ uint4 load_weights(const void* at) {
    uint4 w;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w)
                 : "l"(at));
    return w;
}

// Scales and their like: neighbouring loads may share a sector.
__device__ __forceinline__ uint4 load_16(const void* at) {
    uint4 w;
    asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w) : "l"(at));
    return w;
}
__device__ __forceinline__ uint2 load_8(const void* at) {
    uint2 w;
    asm volatile("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(w.x), "=r"(w.y) : "l"(at));
    return w;
}
__device__ __forceinline__ uint32_t load_4(const void* at) {
    uint32_t w;
    asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(w) : "l"(at));
    return w;
}
__device__ __forceinline__ uint16_t load_2(const void* at) {
    uint16_t w;
    asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(w) : "l"(at));
    return w;
}
__device__ __forceinline__ uint32_t load_1(const void* at) {
    uint32_t w;
    asm volatile("ld.global.nc.u8 %0, [%1];" : "=r"(w) : "l"(at));
    return w;
}

// What a launch before this one wrote. volatile: behind the wait for it, and no later than written here.
__device__ __forceinline__ float load_behind(const float* at) {
    float value;
    asm volatile("ld.global.f32 %0, [%1];" : "=f"(value) : "l"(at) : "memory");
    return value;
}

__device__ __forceinline__ float half_float(uint32_t bits) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

__device__ __forceinline__ uint32_t word(uint4 w, int i) { return i == 0 ? w.x : i == 1 ? w.y : i == 2 ? w.z : w.w; }

// The planes of one matrix.
struct PlanePointers {
    const char *quants, *high, *scales, *supers;
};

// --- A format: what a lane loads of unit `unit` (counted over the whole matrix), and what that means ---------------------------

// Floats: piece(w, p) is columns 4 p .. 4 p + 3 of the unit.
struct FloatFormat {
    static constexpr bool kFloat = true, kSupersApart = false;
};

struct WeightsF32 : FloatFormat {
    static constexpr ProductLayout kLayout = kProductF32;
    uint4 raw;
    __device__ __forceinline__ void load(const PlanePointers& at, uint32_t unit) {
        raw = load_weights(at.quants + int64_t{unit} * 16);
    }
    __device__ __forceinline__ float4 piece(int) const {
        return make_float4(__uint_as_float(raw.x), __uint_as_float(raw.y), __uint_as_float(raw.z), __uint_as_float(raw.w));
    }
};

template <float2 (*widen)(uint32_t)>
struct Weights16 : FloatFormat {
    static constexpr ProductLayout kLayout = kProduct16;
    uint4 raw;
    __device__ __forceinline__ void load(const PlanePointers& at, uint32_t unit) {
        raw = load_weights(at.quants + int64_t{unit} * 16);
    }
    __device__ __forceinline__ float4 piece(int p) const {
        const float2 a = widen(word(raw, 2 * p)), b = widen(word(raw, 2 * p + 1));
        return make_float4(a.x, a.y, b.x, b.y);
    }
};
using WeightsBf16 = Weights16<widen_bf16>;
using WeightsF16 = Weights16<widen_f16>;

// Four E4M3 as float16, exactly.
struct FourHalves {
    __half2 first, last;
};
__device__ __forceinline__ FourHalves widen_e4m3(uint32_t four) {
    FourHalves out;
    uint32_t first, last;
#if __CUDA_ARCH__ >= 890
    asm("{\n"
        " .reg .b16 low, high;\n"
        " mov.b32 {low, high}, %2;\n"
        " cvt.rn.f16x2.e4m3x2 %0, low;\n"
        " cvt.rn.f16x2.e4m3x2 %1, high;\n"
        "}"
        : "=r"(first), "=r"(last)
        : "r"(four));
    out.first = *reinterpret_cast<__half2*>(&first);
    out.last = *reinterpret_cast<__half2*>(&last);
#else
    // Exponent and mantissa moved to float16's place are 2^-8 of the value, subnormals too. S.1111.111 alone is a NaN: adding one
    // carries, and the carry fills float16's exponent.
    const uint32_t nan = (four & 0x7f7f7f7fu) + 0x01010101u;
    const uint32_t odd = (four & 0x80008000u) | ((four & 0x7f007f00u) >> 1) | ((nan & 0x80008000u) >> 1);
    const uint32_t even = ((four << 8) & 0x80008000u) | ((four & 0x007f007fu) << 7) | ((nan & 0x00800080u) << 7);
    first = __byte_perm(even, odd, 0x5410);
    last = __byte_perm(even, odd, 0x7632);
    const __half2 mend = __float2half2_rn(256.0f);
    out.first = __hmul2(*reinterpret_cast<__half2*>(&first), mend);
    out.last = __hmul2(*reinterpret_cast<__half2*>(&last), mend);
#endif
    return out;
}

struct WeightsMxfp8 : FloatFormat {
    static constexpr ProductLayout kLayout = kProductMxfp8;
    uint4 raw;
    uint32_t exponent;
    __device__ __forceinline__ void load(const PlanePointers& at, uint32_t unit) {
        raw = load_weights(at.quants + int64_t{unit} * 16);
        exponent = load_1(at.scales + unit / 2);
    }
    // A power of two times 4 bits is exact, so this is the weight as dequantize() gives it.
    __device__ __forceinline__ float4 piece(int p) const {
        const float scale = __uint_as_float(exponent == 0xff ? 0x7fc00000u : exponent == 0 ? 0x00400000u : exponent << 23);
        const FourHalves halves = widen_e4m3(word(raw, p));
        const float2 a = __half22float2(halves.first), b = __half22float2(halves.last);
        return make_float4(__fmul_rn(a.x, scale), __fmul_rn(a.y, scale), __fmul_rn(b.x, scale), __fmul_rn(b.y, scale));
    }
};

// Integers: quants(i) is four weights, columns 4 i .. 4 i + 3 of the unit, as signed bytes, too large by kOffset.
// A weight is scale() * quant [+ minimum()], except where halves of a block have a scale each (kHalves). kSupersApart: a
// super-block's scale is 2 bytes, so a unit's loads of it would ask for a sector for each few; a warp loads those of all its
// units under way at a time, and a unit gets its own by set_super().
struct IntegerFormat {
    static constexpr bool kFloat = false, kMinimum = false, kHalves = false, kSupersApart = false;
    static constexpr int kOffset = 0, kWords = 8;
    uint4 raw;
    __device__ __forceinline__ float minimum(int) const { return 0.0f; }
    __device__ __forceinline__ float half_scale(int) const { return 1.0f; }

protected:
    __device__ __forceinline__ uint32_t nibbles(int i) const {
        return (i < 4 ? word(raw, i) : word(raw, i - 4) >> 4) & 0x0f0f0f0fu;
    }
    __device__ __forceinline__ static uint32_t fifth(uint32_t high, int i) {
        return (i < 4 ? high << (4 - i) : high >> (i - 4)) & 0x10101010u;
    }
};

struct WeightsQ8_0 : IntegerFormat {
    static constexpr ProductLayout kLayout = kProductQ8;
    static constexpr int kWords = 4;
    uint16_t d;
    __device__ __forceinline__ void load(const PlanePointers& at, uint32_t unit) {
        raw = load_weights(at.quants + int64_t{unit} * 16);
        d = load_2(at.scales + int64_t{unit / 2} * 2);
    }
    __device__ __forceinline__ uint32_t quants(int i) const { return word(raw, i); }
    __device__ __forceinline__ float scale(int) const { return half_float(d); }
};

template <bool kFifth>
struct WeightsQ0 : IntegerFormat {
    static constexpr ProductLayout kLayout = kFifth ? kProductQ5 : kProductQ4;
    static constexpr int kOffset = kFifth ? 16 : 8;
    uint32_t high;
    uint16_t d;
    __device__ __forceinline__ void load(const PlanePointers& at, uint32_t unit) {
        raw = load_weights(at.quants + int64_t{unit} * 16);
        if constexpr (kFifth) high = load_4(at.high + int64_t{unit} * 4);
        d = load_2(at.scales + int64_t{unit} * 2);
    }
    __device__ __forceinline__ uint32_t quants(int i) const {
        if constexpr (kFifth) return nibbles(i) | fifth(high, i);
        return nibbles(i);
    }
    __device__ __forceinline__ float scale(int) const { return half_float(d); }
};
using WeightsQ4_0 = WeightsQ0<false>;
using WeightsQ5_0 = WeightsQ0<true>;

template <bool kFifth>
struct WeightsQ1 : IntegerFormat {
    static constexpr ProductLayout kLayout = kFifth ? kProductQ5 : kProductQ4;
    static constexpr bool kMinimum = true;
    uint32_t high, dm;
    __device__ __forceinline__ void load(const PlanePointers& at, uint32_t unit) {
        raw = load_weights(at.quants + int64_t{unit} * 16);
        if constexpr (kFifth) high = load_4(at.high + int64_t{unit} * 4);
        dm = load_4(at.scales + int64_t{unit} * 4);
    }
    __device__ __forceinline__ uint32_t quants(int i) const {
        if constexpr (kFifth) return nibbles(i) | fifth(high, i);
        return nibbles(i);
    }
    __device__ __forceinline__ float scale(int) const { return half_float(dm & 0xffffu); }
    __device__ __forceinline__ float minimum(int) const { return half_float(dm >> 16); }
};
using WeightsQ4_1 = WeightsQ1<false>;
using WeightsQ5_1 = WeightsQ1<true>;

// `sub`: which of the super-block's 8 blocks the unit is.
template <bool kFifth>
struct WeightsK : IntegerFormat {
    static constexpr ProductLayout kLayout = kFifth ? kProductQ56K : kProductQ4K;
    static constexpr bool kMinimum = true;
    uint32_t high;
    uint4 super;
    __device__ __forceinline__ void load(const PlanePointers& at, uint32_t unit) {
        raw = load_weights(at.quants + int64_t{unit} * 16);
        if constexpr (kFifth) high = load_4(at.high + int64_t{unit} * 4);
        super = load_16(at.supers + int64_t{unit / 8} * 16);
    }
    __device__ __forceinline__ uint32_t quants(int i) const {
        if constexpr (kFifth) return nibbles(i) | fifth(high, i);
        return nibbles(i);
    }
    __device__ __forceinline__ float scale(int sub) const {
        return __fmul_rn(half_float(super.x & 0xffffu), static_cast<float>(factors(sub) & 63));
    }
    __device__ __forceinline__ float minimum(int sub) const {
        return -__fmul_rn(half_float(super.x >> 16), static_cast<float>(factors(sub) >> 6));
    }

private:
    __device__ __forceinline__ uint32_t factors(int sub) const {  // 12 bits
        const uint32_t low = ((sub < 4 ? super.y : super.z) >> (8 * (sub % 4))) & 0xffu;
        return low | (super.w >> (4 * sub) & 15u) << 8;
    }
};
using WeightsQ4_K = WeightsK<false>;
using WeightsQ5_K = WeightsK<true>;

struct WeightsQ6_K : IntegerFormat {
    static constexpr ProductLayout kLayout = kProductQ56K;
    static constexpr bool kHalves = true, kSupersApart = true;
    static constexpr int kOffset = 32;
    uint2 high;
    uint16_t of_halves;
    float d;
    __device__ __forceinline__ void load(const PlanePointers& at, uint32_t unit) {
        raw = load_weights(at.quants + int64_t{unit} * 16);
        high = load_8(at.high + int64_t{unit} * 8);
        of_halves = load_2(at.scales + int64_t{unit} * 2);
    }
    __device__ __forceinline__ void set_super(uint32_t bits) { d = half_float(bits); }
    __device__ __forceinline__ uint32_t quants(int i) const {
        const uint32_t pairs = i < 4 ? high.x : high.y;
        return nibbles(i) | ((i % 4 < 2 ? pairs << (4 - 2 * (i % 4)) : pairs >> (2 * (i % 4) - 4)) & 0x30303030u);
    }
    __device__ __forceinline__ float scale(int) const { return d; }
    __device__ __forceinline__ float half_scale(int half) const {
        return static_cast<float>(static_cast<int8_t>(of_halves >> (8 * half)));
    }
};

// --- x ------------------------------------------------------------------------------------------------------------------------

// Columns 4 i .. 4 i + 3 of a row of `cols`; what is past the end is 0. Rows begin on 16 bytes where cols is a multiple of 4.
__device__ __forceinline__ float4 load_piece(const float* row, int cols, int i) {
    const int col = 4 * i;
    if (cols % 4 == 0) return col < cols ? reinterpret_cast<const float4*>(row)[i] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    return make_float4(col < cols ? row[col] : 0.0f, col + 1 < cols ? row[col + 1] : 0.0f, col + 2 < cols ? row[col + 2] : 0.0f,
                       col + 3 < cols ? row[col + 3] : 0.0f);
}

__device__ __forceinline__ float add_squares(float4 v, float sum) {
    return fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, fmaf(v.x, v.x, sum))));
}

__device__ __forceinline__ float4 normalised(float4 v, float factor, float4 norm) {
    return make_float4(__fmul_rn(__fmul_rn(v.x, factor), norm.x), __fmul_rn(__fmul_rn(v.y, factor), norm.y),
                       __fmul_rn(__fmul_rn(v.z, factor), norm.z), __fmul_rn(__fmul_rn(v.w, factor), norm.w));
}

// Piece i of a tile, to its place. to: the row in shared memory.
template <class F>
__device__ __forceinline__ void put_floats(uint4* to, int plane, int i, float4 v) {
    constexpr int kPieces = F::kLayout.pieces;
    reinterpret_cast<float4*>(to)[i % kPieces * plane + i / kPieces] = v;
}

// The same in digits: eight lanes have a block, lane j of them columns 4 j .. 4 j + 3. All lanes of the warp come here; those
// past the tile's end (`there` is false) put nothing. The arithmetic is that of csrc/cpu/kernels/quantize.cpp, to the bit.
template <class F>
__device__ __forceinline__ void put_digits(uint4* to, int plane, int i, float4 v, bool there) {
    const float values[4] = {v.x, v.y, v.z, v.w};
    // The largest magnitude by its bits: as integers they order as the floats do, and a NaN is above them all.
    int largest_bits = 0;
#pragma unroll
    for (int k = 0; k < 4; ++k) largest_bits = max(largest_bits, __float_as_int(values[k]) & 0x7fffffff);
#pragma unroll
    for (int step = 1; step < 8; step *= 2) largest_bits = max(largest_bits, __shfl_xor_sync(kWholeWarp, largest_bits, step));
    const float largest = __int_as_float(largest_bits);
    // A block so small that the division would overflow counts as zeros. A NaN or an infinity stays visible in the scale; the
    // integers under it are zeros, so that no sum of them wraps.
    const bool tiny = largest < 1e-33f, finite = largest_bits < 0x7f800000;
    const float to_int = tiny ? 0.0f : __fdiv_rn(kLargestQ15, largest);
    uint32_t high = 0, low = 0;
    int sum = 0;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        const int q = finite ? __float2int_rn(__fmul_rn(values[k], to_int)) : 0;
        const int h = (q + 64) >> 7;
        high |= static_cast<uint32_t>(h & 0xff) << (8 * k);
        low |= static_cast<uint32_t>((q - (h << 7)) & 0xff) << (8 * k);
        sum += q;
    }
    sum += __shfl_xor_sync(kWholeWarp, sum, 1);
    sum += __shfl_xor_sync(kWholeWarp, sum, 2);  // of 16 columns
    const int other = __shfl_xor_sync(kWholeWarp, sum, 4);
    if (!there) return;
    const int block = i / 8, j = i % 8;
    constexpr bool kWholeBlocks = F::kLayout.cols == 32;
    uint4* const unit = kWholeBlocks ? to + j / 4 * plane + block : to + 2 * block + j / 4;
    reinterpret_cast<uint32_t*>(unit)[j % 4] = high;
    reinterpret_cast<uint32_t*>(unit + (kWholeBlocks ? 2 : 1) * plane)[j % 4] = low;
    if (j == 0) {
        const float scale = tiny ? 0.0f : __fdiv_rn(largest, kLargestQ15);
        uint4* const scales = to + F::kLayout.pieces * plane;
        if constexpr (kWholeBlocks)
            scales[block] = make_uint4(__float_as_uint(scale), static_cast<uint32_t>(sum), static_cast<uint32_t>(other),
                                       __float_as_uint(__fmul_rn(scale, static_cast<float>(sum + other))));
        else
            reinterpret_cast<float*>(scales)[block] = scale;
    }
}

// --- The product ---------------------------------------------------------------------------------------------------------------

// One unit of kWeights rows of W against `rows` rows of x, which lie `row` apart. x: the unit's first piece; scales: its block's.
// sums[r % 2][r / 2 * kRows + t]: of row r of W, row t of x
template <class F, int kRows, int kWeights>
__device__ __forceinline__ void multiply_add(const F (&w)[kWeights], const uint4* x, const uint4* scales, int plane, int row,
                                             int rows, int sub, float (&sums)[2][kWeights / 2 * kRows]) {
    if constexpr (F::kFloat) {
#pragma unroll
        for (int p = 0; p < F::kLayout.pieces; ++p) {
            float4 weight[kWeights];
#pragma unroll
            for (int c = 0; c < kWeights; ++c) weight[c] = w[c].piece(p);
            const float4* of_row = reinterpret_cast<const float4*>(x) + p * plane;
#pragma unroll
            for (int t = 0; t < kRows; ++t, of_row += row) {
                if (kRows > 1 && t >= rows) break;
                const float4 v = *of_row;
#pragma unroll
                for (int c = 0; c < kWeights; ++c) {
                    float& sum = sums[c % 2][c / 2 * kRows + t];
                    sum = fmaf(weight[c].x, v.x, sum);
                    sum = fmaf(weight[c].y, v.y, sum);
                    sum = fmaf(weight[c].z, v.z, sum);
                    sum = fmaf(weight[c].w, v.w, sum);
                }
            }
        }
    } else {
        constexpr int kPieces = F::kWords / 4;  // of 16 columns
        uint32_t quants[kWeights][F::kWords];
        float scale[kWeights], minimum[kWeights];
#pragma unroll
        for (int c = 0; c < kWeights; ++c) {
#pragma unroll
            for (int i = 0; i < F::kWords; ++i) quants[c][i] = w[c].quants(i);
            scale[c] = w[c].scale(sub);
            minimum[c] = w[c].minimum(sub);
        }
#pragma unroll
        for (int t = 0; t < kRows; ++t) {
            if (kRows > 1 && t >= rows) break;
            uint4 of_x;  // as put_digits makes it
            if constexpr (kPieces == 2)
                of_x = scales[t * row];
            else
                of_x.x = *reinterpret_cast<const uint32_t*>(reinterpret_cast<const char*>(scales) + int64_t{t} * row * 16);
            const float x_scale = __uint_as_float(of_x.x);
            int dots[kWeights][kPieces];
#pragma unroll
            for (int p = 0; p < kPieces; ++p) {
                const uint4 high = x[t * row + p * plane], low = x[t * row + (kPieces + p) * plane];
#pragma unroll
                for (int c = 0; c < kWeights; ++c) {
                    int of_high = 0, of_low = 0;
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const int four = static_cast<int>(quants[c][4 * p + i]);
                        of_high = __dp4a(four, static_cast<int>(word(high, i)), of_high);
                        of_low = __dp4a(four, static_cast<int>(word(low, i)), of_low);
                    }
                    dots[c][p] = (of_high << 7) + of_low;
                    if constexpr (F::kOffset != 0) dots[c][p] -= F::kOffset * static_cast<int>(p ? of_x.z : of_x.y);
                }
            }
#pragma unroll
            for (int c = 0; c < kWeights; ++c) {
                float& sum = sums[c % 2][c / 2 * kRows + t];
                float dot;
                if constexpr (F::kHalves) {
                    // In floats: an integer sum of 16 columns times its scale can pass 32 bits.
                    dot = fmaf(static_cast<float>(dots[c][1]), w[c].half_scale(1),
                               __fmul_rn(static_cast<float>(dots[c][0]), w[c].half_scale(0)));
                } else if constexpr (kPieces == 2) {
                    dot = static_cast<float>(dots[c][0] + dots[c][1]);
                } else {
                    dot = static_cast<float>(dots[c][0]);
                }
                sum = fmaf(__fmul_rn(scale[c], x_scale), dot, sum);
                if constexpr (F::kMinimum) sum = fmaf(minimum[c], __uint_as_float(of_x.w), sum);
            }
        }
    }
}

// Sums over the warp: of kCount values, value `lane / (32 / kCount)` comes to each lane, in a tree that is the same for any
// kCount.
template <int kCount>
__device__ __forceinline__ float warp_sums(float (&value)[kCount], int lane) {
    int count = kCount;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        if (count > 1) {
            count /= 2;
            const bool upper = lane & step;
#pragma unroll
            for (int i = 0; i < kCount / 2; ++i) {
                if (i < count) {
                    const float give = upper ? value[i] : value[i + count], keep = upper ? value[i + count] : value[i];
                    value[i] = keep + __shfl_xor_sync(kWholeWarp, give, step);
                }
            }
        } else {
            value[0] += __shfl_xor_sync(kWholeWarp, value[0], step);
        }
    }
    return value[0];
}

__device__ __forceinline__ float silu(float v) { return v / (1.0f + expf(-v)); }

template <bool kTruth>
struct Constant {
    static constexpr bool kValue = kTruth;
};

struct ProductArguments {
    const char* weight;
    const uint64_t* experts;
    int64_t offset, high, scales, supers;
    int rows, cols, tile_units;
    const Step* step;
    int logits;
    const float *x, *norm;
    float eps;
    int epilogue;
    float* y;
    int64_t y_stride;
    const float2* table;
    int rotated, pairs;
    const int *group_count, *group_expert, *group_first, *entry_row;
    const float* entry_score;
    int gathered, scaled;
};

// kRows: the most rows of x.
template <class F, int kRows>
__device__ __forceinline__ void product(const ProductArguments& a) {
    constexpr ProductLayout kLayout = F::kLayout;
    constexpr int kDepth = product_depth(kLayout, kRows), kPairs = product_pairs(kRows), kWeights = 2 * kPairs;
    // Pieces of x that a thread asks for before it needs the first: along the columns of a single row, else along the rows. Of a
    // single row the first ones stay in registers from the mean square to the staging.
    constexpr int kFirstBatch = kRows == 16 ? 8 : 4;

    extern __shared__ uint4 shared[];  // [rows of x][product_x_row(kLayout, tile_units)]
    __shared__ float squares[kProductWarps][kRows], factors[kRows];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int units = (a.cols + kLayout.cols - 1) / kLayout.cols, items = (a.rows + kWeights - 1) / kWeights;
    const int plane = product_plane(kLayout, a.tile_units), x_row = product_x_row(kLayout, a.tile_units);

    F in_flight[kDepth][kWeights];
    const auto planes_at = [&](const char* base) { return PlanePointers{base, base + a.high, base + a.scales, base + a.supers}; };
    // Unit `unit` of the item's rows, of which the last ones may not exist: they repeat the last one that does.
    const auto fetch = [&](const PlanePointers& at, F(&to)[kWeights], int item, int unit) {
#pragma unroll
        for (int c = 0; c < kWeights; ++c)
            to[c].load(at, static_cast<uint32_t>(min(item * kWeights + c, a.rows - 1)) * static_cast<uint32_t>(units) +
                               static_cast<uint32_t>(unit));
    };
    // The scale of super-block lane % kSupers of row lane / kSupers, counted from the item's first row and from unit `base`.
    constexpr int kSupers = 4 * kDepth;  // super-blocks of a row that are under way
    static_assert(!F::kSupersApart || kWeights * kSupers <= 32);
    [[maybe_unused]] uint32_t supers = 0;
    const auto fetch_supers = [&](const PlanePointers& at, int item, int base) {
        const int row = min(item * kWeights + lane / kSupers, a.rows - 1), super = base / 8 + lane % kSupers;
        if (lane < kWeights * kSupers && super < units / 8) supers = load_2(at.supers + (int64_t{row} * (units / 8) + super) * 2);
    };
    const auto fetch_first = [&](const PlanePointers& at, int item) {
        if constexpr (F::kSupersApart)
            if (item < items) fetch_supers(at, item, 0);
#pragma unroll
        for (int d = 0; d < kDepth; ++d)
            if (item < items && d * 32 + lane < units) fetch(at, in_flight[d], item, d * 32 + lane);
    };

    // Which items this block has: part, part + parts, ... of its group's; a product without experts is one group.
    int part = blockIdx.x, parts = gridDim.x;
    PlanePointers at = planes_at(a.weight);
    let_successor_start();
    if (!a.experts) fetch_first(at, part + parts * warp);
    float4 first_norm[kFirstBatch];
    if (a.norm) {
        if constexpr (kRows == 1) {
#pragma unroll
            for (int k = 0; k < kFirstBatch; ++k) first_norm[k] = load_piece(a.norm, a.cols, threadIdx.x + k * kProductThreads);
        }
        for (int col = 32 * threadIdx.x; col < a.cols; col += 32 * kProductThreads)
            asm volatile("prefetch.global.L2 [%0];" ::"l"(a.norm + col));
    }
    wait_for_predecessor();

    int rows, first;  // of x: rows of the step, or entries of the group
    if (a.experts) {
        const int groups = *a.group_count;
        if (groups == 0) return;
        const int group = static_cast<int>(blockIdx.x) % groups;
        part = static_cast<int>(blockIdx.x) / groups;
        parts = (static_cast<int>(gridDim.x) - group + groups - 1) / groups;
        first = a.group_first[group];
        rows = a.group_first[group + 1] - first;
        at = planes_at(reinterpret_cast<const char*>(a.experts[a.group_expert[group]]) + a.offset);
        fetch_first(at, part + parts * warp);
    } else if (kRows == 1) {  // of a step of one row: mostly no need to look it up, which x would wait for
        rows = a.logits ? a.step->logit_rows : 1;
        first = 0;
    } else {
        rows = a.logits ? a.step->logit_rows : a.step->rows;
        first = a.step->rows - rows;
    }
    if (rows <= 0 || part >= items) return;

    const auto row_of_x = [&](int t) {
        const int64_t row = a.experts && a.gathered ? a.entry_row[first + t] : first + t;
        return a.x + row * a.cols;
    };
    const int pieces = (a.cols + 3) / 4;

    float4 first_x[kFirstBatch];
    if constexpr (kRows == 1) {
#pragma unroll
        for (int k = 0; k < kFirstBatch; ++k) first_x[k] = load_piece(row_of_x(0), a.cols, threadIdx.x + k * kProductThreads);
    }
    float factor = 0.0f;  // of a single row
    if (a.norm) {
        float sums[kRows] = {};
        int from = threadIdx.x;
        if constexpr (kRows == 1) {
#pragma unroll
            for (int k = 0; k < kFirstBatch; ++k) sums[0] = add_squares(first_x[k], sums[0]);
            from += kFirstBatch * kProductThreads;
        }
        for (int i = from; i < pieces; i += kProductThreads) {
#pragma unroll
            for (int t = 0; t < kRows; ++t)
                if (t < rows) sums[t] = add_squares(load_piece(row_of_x(t), a.cols, i), sums[t]);
        }
        const float sum = warp_sums(sums, lane);
        if (lane % (32 / kRows) == 0) squares[warp][lane / (32 / kRows)] = sum;
        __syncthreads();
        const auto factor_of = [&](int t) {
            float all = 0.0f;
#pragma unroll
            for (int w = 0; w < kProductWarps; ++w) all += squares[w][t];
            return rsqrtf(__fdiv_rn(all, static_cast<float>(a.cols)) + a.eps);
        };
        if constexpr (kRows == 1) {
            factor = factor_of(0);
        } else {
            if (threadIdx.x < rows) factors[threadIdx.x] = factor_of(threadIdx.x);
            __syncthreads();
        }
    }

    // Piece i of the tile that begins at first_piece, of which it has `count`, of row t to shared memory. Whole warps come here:
    // lanes that share a block have to meet.
    const auto put = [&](int t, int i, int count, float4 v, float4 norm) {
        // volatile: the compiler would read it without a norm, too, and nothing is there.
        if (a.norm) v = normalised(v, kRows == 1 ? factor : *static_cast<volatile float*>(factors + t), norm);
        uint4* const to = shared + t * x_row;
        if constexpr (F::kFloat) {
            if (i < count) put_floats<F>(to, plane, i, v);
        } else {
            put_digits<F>(to, plane, i, v, i < count);
        }
    };
    // Units first_unit .. of each row, as many as tile_units or there are. kFirst: with first_x and first_norm.
    const auto stage = [&](int first_unit, auto first_time) {
        [[maybe_unused]] constexpr bool kFirst = decltype(first_time)::kValue;
        constexpr int kBatch = kFirst || kRows == 16 ? kFirstBatch : 2;  // registers hold sums by then
        const int first_piece = first_unit * (kLayout.cols / 4);
        const int count = min(a.tile_units, units - first_unit) * (kLayout.cols / 4);
        const auto norm_piece = [&](int i) {
            return a.norm && i < count ? load_piece(a.norm, a.cols, first_piece + i) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        };
        if constexpr (kRows == 1) {
            int from = threadIdx.x;
            if constexpr (kFirst) {
#pragma unroll
                for (int k = 0; k < kFirstBatch; ++k)
                    if (k * kProductThreads + 32 * warp < count)
                        put(0, threadIdx.x + k * kProductThreads, count, first_x[k], first_norm[k]);
                from += kFirstBatch * kProductThreads;
            }
#pragma unroll 1
            for (; from - lane < count; from += kBatch * kProductThreads) {
                float4 v[kBatch], norm[kBatch];
#pragma unroll
                for (int k = 0; k < kBatch; ++k) {
                    const int i = from + k * kProductThreads;
                    if (i < count) v[k] = load_piece(row_of_x(0), a.cols, first_piece + i), norm[k] = norm_piece(i);
                }
#pragma unroll
                for (int k = 0; k < kBatch; ++k)
                    if (from - lane + k * kProductThreads < count) put(0, from + k * kProductThreads, count, v[k], norm[k]);
            }
        } else {
#pragma unroll 1
            for (int i = threadIdx.x; i - lane < count; i += kProductThreads) {
                const float4 norm = norm_piece(i);
#pragma unroll 1
                for (int from = 0; from < rows; from += kBatch) {
                    float4 v[kBatch];
#pragma unroll
                    for (int k = 0; k < kBatch; ++k)
                        if (from + k < rows && i < count) v[k] = load_piece(row_of_x(from + k), a.cols, first_piece + i);
#pragma unroll
                    for (int k = 0; k < kBatch; ++k)
                        if (from + k < rows) put(from + k, i, count, v[k], norm);
                }
            }
        }
    };

    int staged = 0;  // the unit at which the tile in shared memory begins
    stage(0, Constant<true>{});
    __syncthreads();
    for (int begin = part; begin < items; begin += parts * kProductWarps) {
        const int item = begin + parts * warp;
        float sums[2][kPairs * kRows] = {};
        // Of a single row: what the results meet in their lane, {even row, odd row} of y or {cosine, sine}, on its way meanwhile.
        float2 meets = make_float2(0.0f, 0.0f);
        if (kRows == 1 && lane == 0 && item < items) {
            if (a.epilogue == kProductAdd) {
                meets.x = load_behind(a.y + 2 * item);
                if (2 * item + 1 < a.rows) meets.y = load_behind(a.y + 2 * item + 1);
            } else if (a.epilogue == kProductRotate && 2 * item < a.rotated) {
                const float* const turn = reinterpret_cast<const float*>(a.table + item % a.pairs);
                meets = make_float2(load_behind(turn), load_behind(turn + 1));
            }
        }
        for (int tile = 0; tile < units; tile += a.tile_units) {
            if (staged != tile) {
                __syncthreads();  // until every warp is through with the tile before
                stage(tile, Constant<false>{});
                staged = tile;
                __syncthreads();
            }
            if (item >= items) continue;
            const int end = min(tile + a.tile_units, units);
            for (int base = tile; base < end; base += 32 * kDepth) {
                int next = base + 32 * kDepth, next_item = item;
                if (next >= units) next = 0, next_item = item + parts * kProductWarps;
                if constexpr (F::kSupersApart) {
#pragma unroll
                    for (int d = 0; d < kDepth; ++d)
#pragma unroll
                        for (int c = 0; c < kWeights; ++c)
                            in_flight[d][c].set_super(__shfl_sync(kWholeWarp, supers, c * kSupers + d * 4 + lane / 8));
                    if (next_item < items) fetch_supers(at, next_item, next);
                }
#pragma unroll
                for (int d = 0; d < kDepth; ++d) {
                    const int unit = base + d * 32 + lane, in_tile = unit - tile, ahead = next + d * 32 + lane;
                    if (unit < units) {
                        const uint4* const scales =
                            kLayout.cols == 32
                                ? shared + kLayout.pieces * plane + in_tile
                                : reinterpret_cast<const uint4*>(reinterpret_cast<const float*>(shared + kLayout.pieces * plane) +
                                                                 in_tile / 2);
                        multiply_add<F, kRows, kWeights>(in_flight[d], shared + in_tile, scales, plane, x_row, rows, lane % 8,
                                                         sums);
                    }
                    if (next_item < items && ahead < units) fetch(at, in_flight[d], next_item, ahead);
                }
            }
        }
        if (item >= items) continue;

        // A lane has one pair of results, or none.
        constexpr int kResults = kPairs * kRows, kLanes = 32 / kResults;
        float even = warp_sums(sums[0], lane), odd = warp_sums(sums[1], lane);
        const int t = lane / kLanes % kRows, pair = item * kPairs + lane / kLanes / kRows;
        if (lane % kLanes != 0 || t >= rows || 2 * pair >= a.rows) continue;
        if (a.scaled) {
            const float score = a.entry_score[first + t];
            even = __fmul_rn(even, score), odd = __fmul_rn(odd, score);
        }
        float* const y = a.y + (a.experts ? first + t : t) * a.y_stride;
        if (a.epilogue == kProductSiluTimesUp) {
            y[pair] = silu(even) * odd;
            continue;
        }
        if (a.epilogue == kProductAdd) {
            even += kRows == 1 ? meets.x : y[2 * pair];
            if (2 * pair + 1 < a.rows) odd += kRows == 1 ? meets.y : y[2 * pair + 1];
        }
        if (a.epilogue == kProductRotate && 2 * pair < a.rotated) {
            const float2 turn = kRows == 1 ? meets : a.table[int64_t{first + t} * a.pairs + pair % a.pairs];
            const float turned = fmaf(even, turn.x, -__fmul_rn(odd, turn.y));
            odd = fmaf(even, turn.y, __fmul_rn(odd, turn.x));
            even = turned;
        }
        y[2 * pair] = even;
        if (2 * pair + 1 < a.rows) y[2 * pair + 1] = odd;
    }
}

}  // namespace

// product_{format}_{rows of x, at most}:
//   weight: a packed matrix [rows, cols] whose planes begin `high`, `scales` and `supers` behind it, or, with experts, null:
//   then group g's lies at experts[group_expert[g]] + offset
//   step [1]; logits: 1 for its last logit_rows rows, 0 for all
//   x float32 [max_rows, cols]: of the step, or with experts and not gathered [entries, cols]
//   norm float32 [cols] or null, eps
//   y float32 [max_rows, y_stride], with experts [entries, y_stride]; epilogue: kProductStore ...
//   table float2 [max_rows, pairs], rotated: rows of the weight
//   group_count [1], group_expert [groups], group_first [groups + 1], entry_row and entry_score [entries]
// PRECOND: grid (any, with experts at least *group_count), block (32 * kProductWarps),
//          shared 16 * product_x_row(layout, tile_units) * the most rows;
//          tile_units at least all of a row, or a multiple of 32 * product_depth(layout, rows); rows * units of a row < 2^32;
//          weight on 256 bytes, x and norm on 16; rows of a step or of a group at most those of the kernel and those that shared
//          memory is for; the kernels of one row: a step of one row
#define LLAMA_EXT_PRODUCT(format, Weights, kRows)                                                                            \
    extern "C" __global__ void __launch_bounds__(kProductThreads, product_blocks(kRows)) product_##format##_##kRows(         \
        const char* weight, const uint64_t* experts, int64_t offset, int64_t high, int64_t scales, int64_t supers, int rows, \
        int cols, int tile_units, const Step* step, int logits, const float* x, const float* norm, float eps, int epilogue,  \
        float* y, int64_t y_stride, const float2* table, int rotated, int pairs, const int* group_count,                     \
        const int* group_expert, const int* group_first, const int* entry_row, const float* entry_score, int gathered,       \
        int scaled) {                                                                                                        \
        product<Weights, kRows>({weight,       experts,     offset,    high,        scales,   supers, rows,                  \
                                 cols,         tile_units,  step,      logits,      x,        norm,   eps,                   \
                                 epilogue,     y,           y_stride,  table,       rotated,  pairs,  group_count,           \
                                 group_expert, group_first, entry_row, entry_score, gathered, scaled});                      \
    }
#define LLAMA_EXT_PRODUCTS(format, Weights) \
    LLAMA_EXT_PRODUCT(format, Weights, 1)   \
    LLAMA_EXT_PRODUCT(format, Weights, 4)   \
    LLAMA_EXT_PRODUCT(format, Weights, 16)
