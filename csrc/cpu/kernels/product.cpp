// Products of packed weights with 1 to any number of rows. Compiled once a SIMD level.
//
// One call computes one or two groups of 16 outputs for `rows` tokens. For each token and output the additions happen in the
// order of the columns, in one lane: a token's result is the same bits however many others go along.
//
// Integer formats multiply bytes exactly in 32-bit integers within a (sub-)block and leave them once a block:
//   y += (d_w d_x) sum(w x)  [+ m_w (d_x sum(x))]
// Blocks of x of two digits take two byte products, those of one digit one, once so many tokens go along that it pays to ask.
// Few tokens keep their sums in registers and are bound by memory. Of many, kChunk at a time, each meets a block of both groups
// as soon as it is unpacked, two dot products a load of x, and sums wait in the L1 cache: the blocks of x stream through. Floats
// go by tiles of 8 tokens or fewer, whose sums stay in registers.
#include "cpu/kernels/level.h"

namespace llama_ext::cpu::LLAMA_EXT_LEVEL {
namespace {

constexpr int64_t kFewRows = 4;  // tokens whose sums of one group stay in registers beside the weights
constexpr int64_t kChunk = 64;   // tokens whose sums of two groups leave room in the L1 cache

LLAMA_EXT_INLINE I32x16 low_nibbles(I32x16 w) { return w & broadcast(0x0f0f0f0f); }
LLAMA_EXT_INLINE I32x16 high_nibbles(I32x16 w) { return shift_right<4>(w) & broadcast(0x0f0f0f0f); }
LLAMA_EXT_INLINE const std::byte* vector(const std::byte* p, int i) { return p + 64 * i; }

// Bit `n` of every byte moved to bit 4.
template <int n>
LLAMA_EXT_INLINE I32x16 fifth_bits(I32x16 bits) {
    if constexpr (n <= 4)
        return shift_left<4 - n>(bits) & broadcast(0x10101010);
    else
        return shift_right<n - 4>(bits) & broadcast(0x10101010);
}

// 32 weights of 4 bits in 4 vectors: of word l the low halves of bytes are columns 4 l .. 4 l + 3, the high ones those 16 on.
LLAMA_EXT_INLINE void unpack_nibbles(const std::byte* words, I32x16 (&w)[8]) {
    for (int l = 0; l < 4; ++l) {
        const I32x16 both = load_words(vector(words, l));
        w[l] = low_nibbles(both);
        w[l + 4] = high_nibbles(both);
    }
}

// Their fifth bits: bit l of a byte is word l's.
LLAMA_EXT_INLINE void add_fifth_bits(I32x16 fifth, I32x16 (&w)[8]) {
    w[0] = w[0] | fifth_bits<0>(fifth);
    w[1] = w[1] | fifth_bits<1>(fifth);
    w[2] = w[2] | fifth_bits<2>(fifth);
    w[3] = w[3] | fifth_bits<3>(fifth);
    w[4] = w[4] | fifth_bits<4>(fifth);
    w[5] = w[5] | fifth_bits<5>(fifth);
    w[6] = w[6] | fifth_bits<6>(fifth);
    w[7] = w[7] | fifth_bits<7>(fifth);
}

// The fifth and sixth bits of words 0 .. 3, two bits of each byte a word, moved to bits 4 and 5.
LLAMA_EXT_INLINE void add_pairs(I32x16 pairs, I32x16* w) {
    const I32x16 mask = broadcast(0x30303030);
    w[0] = w[0] | (shift_left<4>(pairs) & mask);
    w[1] = w[1] | (shift_left<2>(pairs) & mask);
    w[2] = w[2] | (pairs & mask);
    w[3] = w[3] | (shift_right<2>(pairs) & mask);
}

// One description a format. A packed block holds kSubBlocks times 32 weights of 16 rows; kOffset is what the stored
// unsigned values are too large by; unpack<j> gives sub-block j as 8 vectors of bytes; scale and minimum its factors.
template <bool minimum_, int offset_>
struct Block32 {
    static constexpr int kSubBlocks = 1, kOffset = offset_;
    static constexpr bool kMinimum = minimum_, kSigned = false, kHalfScales = false;
    static constexpr int kHeader = minimum_ ? 64 : 32;
    const std::byte* p;

    void load(const std::byte* block) { p = block; }

    template <int>
    LLAMA_EXT_INLINE F32x16 scale_of(const Block32& b) {
        return load_f16(b.p);
    }
    template <int>
    LLAMA_EXT_INLINE F32x16 minimum_of(const Block32& b) {
        return load_f16(b.p + 32);
    }
};

template <bool minimum_>
struct Q4 : Block32<minimum_, minimum_ ? 0 : 8> {
    static constexpr int kBytes = Block32<minimum_, 0>::kHeader + 256;

    template <int>
    void unpack(I32x16 (&w)[8]) const {
        unpack_nibbles(this->p + Block32<minimum_, 0>::kHeader, w);
    }
};

template <bool minimum_>
struct Q5 : Block32<minimum_, minimum_ ? 0 : 16> {
    static constexpr int kBytes = Block32<minimum_, 0>::kHeader + 64 + 256;

    template <int>
    void unpack(I32x16 (&w)[8]) const {
        const std::byte* words = this->p + Block32<minimum_, 0>::kHeader;
        unpack_nibbles(words + 64, w);
        add_fifth_bits(load_words(words), w);
    }
};

struct Q8 : Block32<false, 0> {
    static constexpr int kBytes = 32 + 512;
    static constexpr bool kSigned = true;

    template <int>
    void unpack(I32x16 (&w)[8]) const {
        for (int l = 0; l < 8; ++l) w[l] = prepare_signed(load_words(vector(p + 32, l)));
    }
};

// Q4_K, Q5_K: lane r's three scale words hold eight 6-bit scales and minima (format.h: unpack_k_scale), taken apart for
// sub-blocks 0-3 and 4-7 at once, byte j % 4 belonging to sub-block j.
template <bool fifth_>
struct QK {
    static constexpr int kSubBlocks = 8, kOffset = 0;
    static constexpr bool kMinimum = true, kSigned = false, kHalfScales = false;
    static constexpr int kHeader = 64 + 3 * 64, kBytes = kHeader + 8 * (fifth_ ? 320 : 256);
    const std::byte* p;
    F32x16 d, dmin;
    I32x16 scales[2], minima[2];

    void load(const std::byte* block) {
        p = block;
        d = load_f16(block);
        dmin = load_f16(block + 32);
        const I32x16 w0 = load_words(block + 64), w1 = load_words(block + 128), w2 = load_words(block + 192);
        const I32x16 six = broadcast(0x3f3f3f3f), four = broadcast(0x0f0f0f0f), top = broadcast(0x30303030);
        scales[0] = w0 & six;
        minima[0] = w1 & six;
        scales[1] = (w2 & four) | (shift_right<2>(w0) & top);
        minima[1] = (shift_right<4>(w2) & four) | (shift_right<2>(w1) & top);
    }

    template <int j>
    LLAMA_EXT_INLINE F32x16 scale_of(const QK& b) {
        return b.d * to_f32(shift_right<8 * (j % 4)>(b.scales[j / 4]) & broadcast(255));
    }
    template <int j>
    LLAMA_EXT_INLINE F32x16 minimum_of(const QK& b) {
        return zero() - b.dmin * to_f32(shift_right<8 * (j % 4)>(b.minima[j / 4]) & broadcast(255));
    }

    template <int j>
    void unpack(I32x16 (&w)[8]) const {
        const std::byte* words = p + kHeader + j * (fifth_ ? 320 : 256);
        unpack_nibbles(fifth_ ? words + 64 : words, w);
        if constexpr (fifth_) add_fifth_bits(load_words(words), w);
    }
};

struct Q6K {
    static constexpr int kSubBlocks = 8, kOffset = 32;
    static constexpr bool kMinimum = false, kSigned = false, kHalfScales = true;
    static constexpr int kHeader = 32 + 4 * 64, kBytes = kHeader + 8 * 384;
    const std::byte* p;
    F32x16 d;

    void load(const std::byte* block) {
        p = block;
        d = load_f16(block);
    }

    template <int>
    LLAMA_EXT_INLINE F32x16 scale_of(const Q6K& b) {
        return b.d;
    }
    // int8 scale of 16-weight piece i
    template <int i>
    LLAMA_EXT_INLINE I32x16 half_scale(const Q6K& b) {
        return shift_right_signed<24>(shift_left<24 - 8 * (i % 4)>(load_words(vector(b.p + 32, i / 4))));
    }

    template <int j>
    void unpack(I32x16 (&w)[8]) const {
        const std::byte* words = p + kHeader + j * 384;
        unpack_nibbles(words, w);
        add_pairs(load_words(vector(words, 4)), w);
        add_pairs(load_words(vector(words, 5)), w + 4);
    }
};

// Few rows are bound by memory, and the hardware alone looks ahead too little on some machines: the lines some small blocks ahead
// are asked for by hand. The next group follows this one in memory. Blocks of 256 columns are left to the hardware: as many lines
// at once would wait for each other. bench/NOTES.md has what other distances did.
template <int bytes>
LLAMA_EXT_INLINE void prefetch(const std::byte* p) {
    if constexpr (bytes <= 1024)
        for (int line = 0; line < bytes; line += 64) __builtin_prefetch(p + 4096 + line);
}

LLAMA_EXT_INLINE int32_t word_at(const int8_t* p) {
    int32_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

// What each lane's sum begins with: w's bytes are too large by `offset`, a power of two, each.
template <class B>
LLAMA_EXT_INLINE I32x16 first_sum(int32_t minus_sum) {
    constexpr int32_t offset = B::kSigned ? -kSignedBias : B::kOffset;
    if constexpr (offset != 0)
        return times_power_of_two<offset>(broadcast(minus_sum));
    else
        return broadcast(0);
}

template <class B>
LLAMA_EXT_INLINE I32x16 dot4(I32x16 sum, I32x16 w, int32_t x) {
    if constexpr (B::kSigned)
        return dot4_signed(sum, w, x);
    else
        return dot4_unsigned(sum, w, x);
}

// sum(w x) over 16 or 32 columns of `groups` groups, w unsigned or signed bytes in `words` vectors each, beginning with vector
// `first`. `minus_sum`: of those x.
//
// Nothing wraps: |digits| are at most 127 and 64, unsigned bytes at most 255 (Q8_0 with 128 added, on AVX-512), and what they are
// too large by is at most 128 times the sum of 32 values.
static_assert(32LL * 255 * (127 * 128 + 64) + 128LL * 32 * static_cast<int>(kLargestQ15) < INT32_MAX);
// many: one digit is met often and by itself.
template <class B, bool many, int groups, int first, int words>
LLAMA_EXT_INLINE void dot(const I32x16 (&w)[groups][8], const Q15Block& x, int32_t minus_sum, I32x16 (&sum)[groups]) {
    I32x16 high[groups], low[groups];
    for (int g = 0; g < groups; ++g) high[g] = broadcast(0), low[g] = first_sum<B>(minus_sum);
    for (int l = first; l < first + words; ++l) {
        const int32_t of_high = word_at(x.high + 4 * l);
        for (int g = 0; g < groups; ++g) high[g] = dot4<B>(high[g], w[g][l], of_high);
    }
    if (!many || x.two_digits) {
        for (int l = first; l < first + words; ++l) {
            const int32_t of_low = word_at(x.low + 4 * l);
            for (int g = 0; g < groups; ++g) low[g] = dot4<B>(low[g], w[g][l], of_low);
        }
    }
    for (int g = 0; g < groups; ++g) sum[g] = shift_left<kDigitShift>(high[g]) + low[g];
}

// Sub-block j of a block of each group, unpacked, and its factors.
template <class B, int groups>
struct Unpacked {
    I32x16 w[groups][8];
    F32x16 scale[groups], minimum[groups], half_scale[groups][2];

    template <int j>
    LLAMA_EXT_INLINE void load(Unpacked& u, const B (&block)[groups]) {
        for (int g = 0; g < groups; ++g) {
            block[g].template unpack<j>(u.w[g]);
            u.scale[g] = B::template scale_of<j>(block[g]);
            if constexpr (B::kMinimum) u.minimum[g] = B::template minimum_of<j>(block[g]);
            if constexpr (B::kHalfScales) {
                u.half_scale[g][0] = to_f32(B::template half_scale<2 * j>(block[g]));
                u.half_scale[g][1] = to_f32(B::template half_scale<2 * j + 1>(block[g]));
            }
        }
    }

    // One token's 32 columns, added to its sums.
    template <bool many>
    LLAMA_EXT_INLINE void add(const Unpacked& u, const Q15Block& x, F32x16 (&acc)[groups]) {
        F32x16 sum[groups];
        if constexpr (B::kHalfScales) {
            // In floats: an integer sum of 16 columns times its scale can pass 32 bits.
            I32x16 first[groups], second[groups];
            dot<B, many, groups, 0, 4>(u.w, x, x.minus_of[0], first);
            dot<B, many, groups, 4, 4>(u.w, x, x.minus_of[1], second);
            for (int g = 0; g < groups; ++g)
                sum[g] = fma(to_f32(second[g]), u.half_scale[g][1], to_f32(first[g]) * u.half_scale[g][0]);
        } else {
            I32x16 whole[groups];
            dot<B, many, groups, 0, 8>(u.w, x, x.minus_sum, whole);
            for (int g = 0; g < groups; ++g) sum[g] = to_f32(whole[g]);
        }
        for (int g = 0; g < groups; ++g) {
            acc[g] = fma(u.scale[g] * broadcast(x.scale), sum[g], acc[g]);
            if constexpr (B::kMinimum) acc[g] = fma(u.minimum[g], broadcast(x.scaled_sum), acc[g]);
        }
    }
};

// A block of one group against `count` tokens whose sums are in registers.
template <class B, int count, int j>
LLAMA_EXT_INLINE void few_tokens(const B (&block)[1], const Q15Block* x, int64_t stride, F32x16 (&acc)[count][1]) {
    if constexpr (j < B::kSubBlocks) {
        Unpacked<B, 1> u;
        Unpacked<B, 1>::template load<j>(u, block);
        for (int t = 0; t < count; ++t) Unpacked<B, 1>::template add<false>(u, x[j * stride + t], acc[t]);
        few_tokens<B, count, j + 1>(block, x, stride, acc);
    }
}

// out [groups][out_rows][16]: the sums of `rows` tokens.
template <class B, int groups, int j>
LLAMA_EXT_INLINE void tokens(const B (&block)[groups], const Q15Block* x, int64_t stride, int64_t rows, float* out,
                             int64_t out_rows) {
    if constexpr (j < B::kSubBlocks) {
        Unpacked<B, groups> u;
        Unpacked<B, groups>::template load<j>(u, block);
        for (int64_t t = 0; t < rows; ++t) {
            F32x16 acc[groups];
            for (int g = 0; g < groups; ++g) acc[g] = load(out + (g * out_rows + t) * kGroup);
            Unpacked<B, groups>::template add<true>(u, x[j * stride + t], acc);
            for (int g = 0; g < groups; ++g) store(out + (g * out_rows + t) * kGroup, acc[g]);
        }
        tokens<B, groups, j + 1>(block, x, stride, rows, out, out_rows);
    }
}

// A packed group against `count` rows of x.
template <class B, int count>
void few_rows(const std::byte* p, int64_t cols, const Activation& x, int64_t row, float* out) {
    F32x16 acc[count][1];
    for (int t = 0; t < count; ++t) acc[t][0] = zero();
    const Q15Block* at = x.q15 + row;
    B block[1];
    for (int64_t k = 0; k < cols; k += 32 * B::kSubBlocks, p += B::kBytes, at += B::kSubBlocks * x.rows) {
        prefetch<B::kBytes>(p);
        block[0].load(p);
        few_tokens<B, count, 0>(block, at, x.rows, acc);
    }
    for (int t = 0; t < count; ++t) store(out + t * kGroup, acc[t][0]);
}

// Packed groups that begin group_bytes apart against any number of rows; x [cols / 32][x_rows], from the first of those rows on.
template <class B, int groups>
void many_rows(const std::byte* packed, size_t group_bytes, int64_t cols, const Q15Block* x, int64_t x_rows, int64_t rows,
               float* out) {
    for (int64_t from = 0; from < rows; from += kChunk) {
        const int64_t count = rows - from < kChunk ? rows - from : kChunk;
        float* sums = out + from * kGroup;
        for (int g = 0; g < groups; ++g) memset(sums + g * rows * kGroup, 0, static_cast<size_t>(count * kGroup) * sizeof(float));
        const std::byte* p = packed;
        const Q15Block* at = x + from;
        B block[groups];
        for (int64_t k = 0; k < cols; k += 32 * B::kSubBlocks, p += B::kBytes, at += B::kSubBlocks * x_rows) {
            for (int g = 0; g < groups; ++g) {
                const std::byte* of_group = p + static_cast<size_t>(g) * group_bytes;
                // Of the groups after these, which a product of some rows leaves time for.
                for (int line = 0; from == 0 && line < B::kBytes; line += 64)
                    __builtin_prefetch(of_group + static_cast<size_t>(groups) * group_bytes + line, 0, 2);
                block[g].load(of_group);
            }
            tokens<B, groups, 0>(block, at, x_rows, count, sums, rows);
        }
    }
}

template <class B>
void product(const PackedWeight& w, int64_t group, int64_t groups, const Activation& x, int64_t row, int64_t rows, float* out) {
    if (rows > kFewRows && groups == kGroupsAtOnce)
        return many_rows<B, kGroupsAtOnce>(w.data + static_cast<size_t>(group) * w.group_bytes, w.group_bytes, w.cols,
                                           x.q15 + row, x.rows, rows, out);
    for (int64_t g = group; g < group + groups; ++g, out += rows * kGroup) {
        const std::byte* p = w.data + static_cast<size_t>(g) * w.group_bytes;
        if (rows == 1)
            few_rows<B, 1>(p, w.cols, x, row, out);
        else if (rows == 2)
            few_rows<B, 2>(p, w.cols, x, row, out);
        else if (rows == 3)
            few_rows<B, 3>(p, w.cols, x, row, out);
        else if (rows == 4)
            few_rows<B, 4>(p, w.cols, x, row, out);
        else
            many_rows<B, 1>(p, w.group_bytes, w.cols, x.q15 + row, x.rows, rows, out);
    }
}

struct F32Weights {
    static constexpr int kBytes = 64;
    LLAMA_EXT_INLINE F32x16 load_column(const std::byte* p) { return load(reinterpret_cast<const float*>(p)); }
};
struct F16Weights {
    static constexpr int kBytes = 32;
    LLAMA_EXT_INLINE F32x16 load_column(const std::byte* p) { return load_f16(p); }
};

struct Bf16Weights {
    static constexpr int kBytes = 32;
    LLAMA_EXT_INLINE F32x16 load_column(const std::byte* p) { return load_bf16(p); }
};

// `tile` rows of x and `count` groups that begin group_bytes apart; out [count][rows][16]. A sum is one chain of additions, each
// waiting for the one before: with one or two rows two groups, whose chains are apart, take hardly longer than one.
template <class W, int tile, int count>
void float_tile(const std::byte* p, size_t group_bytes, int64_t cols, const float* x, int64_t rows, float* out) {
    F32x16 acc[count][tile];
    for (int g = 0; g < count; ++g)
        for (int t = 0; t < tile; ++t) acc[g][t] = zero();
    for (int64_t k = 0; k < cols; ++k, p += W::kBytes) {
        F32x16 w[count];
        for (int g = 0; g < count; ++g) {
            const std::byte* of_group = p + static_cast<size_t>(g) * group_bytes;
            if constexpr (tile == 1) prefetch<W::kBytes>(of_group);
            w[g] = W::load_column(of_group);
        }
        for (int t = 0; t < tile; ++t) {
            const F32x16 v = broadcast(x[t * cols + k]);
            for (int g = 0; g < count; ++g) acc[g][t] = fma(w[g], v, acc[g][t]);
        }
    }
    for (int g = 0; g < count; ++g)
        for (int t = 0; t < tile; ++t) store(out + (g * rows + t) * kGroup, acc[g][t]);
}

// Rows from `row` on in tiles of `tile`, then of half of that, down to one.
template <class W, int tile, int count>
LLAMA_EXT_INLINE void float_tiles(const std::byte* p, size_t group_bytes, int64_t cols, const float* x, int64_t row, int64_t rows,
                                  float* out) {
    for (; row + tile <= rows; row += tile)
        float_tile<W, tile, count>(p, group_bytes, cols, x + row * cols, rows, out + row * kGroup);
    if constexpr (tile > 1) float_tiles<W, tile / 2, count>(p, group_bytes, cols, x, row, rows, out);
}

template <class W>
void float_product(const PackedWeight& w, int64_t group, int64_t groups, const Activation& x, int64_t row, int64_t rows,
                   float* out) {
    const float* values = x.f32 + row * w.cols;
    const int64_t at_once = rows <= 2 && groups == kGroupsAtOnce ? kGroupsAtOnce : 1;
    for (const int64_t end = group + groups; group < end; group += at_once, out += at_once * rows * kGroup) {
        const std::byte* p = w.data + static_cast<size_t>(group) * w.group_bytes;
        if (at_once == kGroupsAtOnce)
            float_tiles<W, 2, kGroupsAtOnce>(p, w.group_bytes, w.cols, values, 0, rows, out);
        else
            float_tiles<W, kLargestTile, 1>(p, w.group_bytes, w.cols, values, 0, rows, out);
    }
}

}  // namespace

const ProductFn kProducts[kFormats] = {
    float_product<F32Weights>,
    float_product<F16Weights>,
    float_product<Bf16Weights>,
    product<Q8>,
    product<Q4<false>>,
    product<Q4<true>>,
    product<Q5<false>>,
    product<Q5<true>>,
    product<QK<false>>,
    product<QK<true>>,
    product<Q6K>,
    nullptr,  // MXFP8, which is packed as BF16
};

}  // namespace llama_ext::cpu::LLAMA_EXT_LEVEL
