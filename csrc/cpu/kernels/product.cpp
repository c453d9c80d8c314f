// Products of packed weights with 1 to any number of rows. Compiled once a SIMD level.
//
// One call computes one group of 16 outputs for `rows` tokens. Tokens are taken in tiles of 8 or fewer: within a tile the
// weights are unpacked once and meet every token; between tiles they come from the L1 or L2 cache. For each token and output
// the additions happen in the order of the columns, in one lane, whatever the tile: a token's result is the same bits
// however many others go along.
//
// Integer formats multiply bytes exactly in 32-bit integers within a (sub-)block and leave them once a block:
//   y += (d_w d_x) sum(w x)  [+ m_w (d_x sum(x))]
#include "cpu/kernels/level.h"

namespace llama_ext::cpu::LLAMA_EXT_LEVEL {
namespace {

constexpr int kPrefetch = 8192;  // bytes ahead; bench/NOTES.md has what other distances did

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

// One description a format. A packed block holds kSubBlocks times 32 weights of 16 rows; kOffset is what the stored
// unsigned values are too large by; unpack<j> gives sub-block j as 8 vectors of bytes; scale and minimum its factors.
template <bool minimum_, int offset_>
struct Block32 {
    static constexpr int kSubBlocks = 1, kOffset = offset_;
    static constexpr bool kMinimum = minimum_, kSigned = false, kHalfScales = false;
    static constexpr int kHeader = minimum_ ? 64 : 32;
    const std::byte* p;

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
    explicit Q4(const std::byte* block) { this->p = block; }

    template <int>
    void unpack(I32x16 (&w)[8]) const {
        const std::byte* words = this->p + Block32<minimum_, 0>::kHeader;
        for (int l = 0; l < 4; ++l) {
            const I32x16 both = load_words(vector(words, l));
            w[l] = low_nibbles(both);
            w[l + 4] = high_nibbles(both);
        }
    }
};

template <bool minimum_>
struct Q5 : Block32<minimum_, minimum_ ? 0 : 16> {
    static constexpr int kBytes = Block32<minimum_, 0>::kHeader + 64 + 256;
    explicit Q5(const std::byte* block) { this->p = block; }

    template <int>
    void unpack(I32x16 (&w)[8]) const {
        const std::byte* words = this->p + Block32<minimum_, 0>::kHeader;
        const I32x16 fifth = load_words(words);
        for (int l = 0; l < 4; ++l) {
            const I32x16 both = load_words(vector(words, l + 1));
            w[l] = low_nibbles(both);
            w[l + 4] = high_nibbles(both);
        }
        w[0] = w[0] | fifth_bits<0>(fifth);
        w[1] = w[1] | fifth_bits<1>(fifth);
        w[2] = w[2] | fifth_bits<2>(fifth);
        w[3] = w[3] | fifth_bits<3>(fifth);
        w[4] = w[4] | fifth_bits<4>(fifth);
        w[5] = w[5] | fifth_bits<5>(fifth);
        w[6] = w[6] | fifth_bits<6>(fifth);
        w[7] = w[7] | fifth_bits<7>(fifth);
    }
};

struct Q8 : Block32<false, 0> {
    static constexpr int kBytes = 32 + 512;
    static constexpr bool kSigned = true;
    explicit Q8(const std::byte* block) { p = block; }

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
    static constexpr int kHeader = 64 + 3 * 64, kBytes = kHeader + (fifth_ ? 512 : 0) + 2048;
    const std::byte* p;
    F32x16 d, dmin;
    I32x16 scales[2], minima[2];

    explicit QK(const std::byte* block) : p(block), d(load_f16(block)), dmin(load_f16(block + 32)) {
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
        const std::byte* words = p + kHeader + (fifth_ ? 512 : 0);
        for (int l = 0; l < 8; ++l) {
            const I32x16 both = load_words(vector(words, 8 * (j / 2) + l));
            w[l] = j % 2 ? high_nibbles(both) : low_nibbles(both);
            if constexpr (fifth_) w[l] = w[l] | fifth_bits<j>(load_words(vector(p + kHeader, l)));
        }
    }
};

struct Q6K {
    static constexpr int kSubBlocks = 8, kOffset = 32;
    static constexpr bool kMinimum = false, kSigned = false, kHalfScales = true;
    static constexpr int kHeader = 32 + 4 * 64, kBytes = kHeader + 2048 + 1024;
    const std::byte* p;
    F32x16 d;

    explicit Q6K(const std::byte* block) : p(block), d(load_f16(block)) {}

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
        constexpr int half = j / 4, quarter = j % 4;
        const std::byte* low = vector(p + kHeader, 16 * half + 8 * (quarter % 2));
        const std::byte* high = vector(p + kHeader + 2048, 8 * half);
        for (int l = 0; l < 8; ++l) {
            const I32x16 both = load_words(vector(low, l)), bits = load_words(vector(high, l));
            I32x16 pair;
            if constexpr (quarter < 2)
                pair = shift_left<4 - 2 * quarter>(bits);
            else
                pair = shift_right<2 * quarter - 4>(bits);
            w[l] = (quarter / 2 ? high_nibbles(both) : low_nibbles(both)) | (pair & broadcast(0x30303030));
        }
    }
};

// A single row is bound by memory, and the hardware alone looks ahead too little, least of all in a K block's long unrolled
// body: the lines some blocks ahead are asked for by hand. The next group follows this one in memory.
template <int bytes>
LLAMA_EXT_INLINE void prefetch(const std::byte* p) {
    for (int line = 0; line < bytes; line += 64) __builtin_prefetch(p + kPrefetch + line);
}

LLAMA_EXT_INLINE int32_t word_at(const int8_t* p) {
    int32_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

// sum(w x) over 16 or 32 columns, w unsigned or signed bytes in `words` vectors, x two digits a value: x at [.. 4 * words)
// of the high digits and, 32 bytes on, of the low ones. `bias` is added once, in every lane.
//
// Nothing wraps: |digits| are at most 127 and 64, unsigned bytes at most 255 (Q8_0 with 128 added, on AVX-512), and the bias is
// at most 128 times the sum of 32 values.
static_assert(32LL * 255 * (127 * 128 + 64) + 128LL * 32 * static_cast<int>(kLargestQ15) < INT32_MAX);
template <bool is_signed, int words>
LLAMA_EXT_INLINE I32x16 dot(const I32x16* w, const int8_t* x, int32_t bias) {
    I32x16 high = broadcast(0), low = broadcast(bias);
    for (int l = 0; l < words; ++l) {
        if constexpr (is_signed) {
            high = dot4_signed(high, w[l], word_at(x + 4 * l));
            low = dot4_signed(low, w[l], word_at(x + 32 + 4 * l));
        } else {
            high = dot4_unsigned(high, w[l], word_at(x + 4 * l));
            low = dot4_unsigned(low, w[l], word_at(x + 32 + 4 * l));
        }
    }
    return shift_left<kDigitShift>(high) + low;
}

// Sub-block j of one packed block against `tile` tokens. digits, scale, sum16: of the tile's first token, at this sub-block.
template <class B, int j, int tile>
LLAMA_EXT_INLINE void sub_block(const B& block, const int8_t* digits, const float* scale, const int32_t* sum16, int64_t cols,
                                F32x16 (&acc)[tile]) {
    I32x16 w[8];
    block.template unpack<j>(w);
    const F32x16 d = B::template scale_of<j>(block);
    for (int t = 0; t < tile; ++t) {
        const int8_t* x = digits + t * 2 * cols;
        const float d_x = scale[t * (cols / 32)];
        const int32_t* sums = sum16 + t * (cols / 16);
        F32x16 sum;
        if constexpr (B::kHalfScales) {
            // In floats: an integer sum of 16 columns times its scale can pass 32 bits.
            const F32x16 first = to_f32(dot<false, 4>(w, x, -B::kOffset * sums[0]));
            const F32x16 second = to_f32(dot<false, 4>(w + 4, x + 16, -B::kOffset * sums[1]));
            sum = fma(second, to_f32(B::template half_scale<2 * j + 1>(block)),
                      first * to_f32(B::template half_scale<2 * j>(block)));
        } else {
            const int32_t bias = B::kSigned ? kSignedBias : -B::kOffset;
            sum = to_f32(dot<B::kSigned, 8>(w, x, bias * (sums[0] + sums[1])));
        }
        acc[t] = fma(d * broadcast(d_x), sum, acc[t]);
        if constexpr (B::kMinimum)
            acc[t] = fma(B::template minimum_of<j>(block), broadcast(d_x * static_cast<float>(sums[0] + sums[1])), acc[t]);
    }
}

template <class B, int tile>
struct IntegerTile {
    static void run(const std::byte* p, int64_t cols, const Activation& x, int64_t row, float* out) {
        F32x16 acc[tile];
        for (int t = 0; t < tile; ++t) acc[t] = zero();
        const int8_t* digits = x.digits + row * 2 * cols;
        const float* scale = x.scale + row * (cols / 32);
        const int32_t* sum16 = x.sum16 + row * (cols / 16);
        for (int64_t k = 0; k < cols; k += 32 * B::kSubBlocks, p += B::kBytes) {
            if constexpr (tile == 1) prefetch<B::kBytes>(p);
            const B block(p);
            sub_block<B, 0, tile>(block, digits, scale, sum16, cols, acc);
            if constexpr (B::kSubBlocks == 8) {
                sub_block<B, 1, tile>(block, digits + 64, scale + 1, sum16 + 2, cols, acc);
                sub_block<B, 2, tile>(block, digits + 128, scale + 2, sum16 + 4, cols, acc);
                sub_block<B, 3, tile>(block, digits + 192, scale + 3, sum16 + 6, cols, acc);
                sub_block<B, 4, tile>(block, digits + 256, scale + 4, sum16 + 8, cols, acc);
                sub_block<B, 5, tile>(block, digits + 320, scale + 5, sum16 + 10, cols, acc);
                sub_block<B, 6, tile>(block, digits + 384, scale + 6, sum16 + 12, cols, acc);
                sub_block<B, 7, tile>(block, digits + 448, scale + 7, sum16 + 14, cols, acc);
            }
            digits += 64 * B::kSubBlocks;
            scale += B::kSubBlocks;
            sum16 += 2 * B::kSubBlocks;
        }
        for (int t = 0; t < tile; ++t) store(out + kGroup * t, acc[t]);
    }
};

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

template <class W, int tile>
struct FloatTile {
    static void run(const std::byte* p, int64_t cols, const Activation& x, int64_t row, float* out) {
        F32x16 acc[tile];
        for (int t = 0; t < tile; ++t) acc[t] = zero();
        const float* values = x.f32 + row * cols;
        for (int64_t k = 0; k < cols; ++k, p += W::kBytes) {
            if constexpr (tile == 1) prefetch<W::kBytes>(p);
            const F32x16 w = W::load_column(p);
            for (int t = 0; t < tile; ++t) acc[t] = fma(w, broadcast(values[t * cols + k]), acc[t]);
        }
        for (int t = 0; t < tile; ++t) store(out + kGroup * t, acc[t]);
    }
};

// The rest of the rows in tiles of `tile`, then of half of that, down to one.
template <template <class, int> class Tile, class B, int tile>
LLAMA_EXT_INLINE void tiles(const std::byte* p, int64_t cols, const Activation& x, int64_t row, int64_t end, float* out) {
    for (; row + tile <= end; row += tile, out += tile * kGroup) Tile<B, tile>::run(p, cols, x, row, out);
    if constexpr (tile > 1) tiles<Tile, B, tile / 2>(p, cols, x, row, end, out);
}

template <template <class, int> class Tile, class B>
void product(const PackedWeight& w, int64_t group, const Activation& x, int64_t row, int64_t rows, float* out) {
    tiles<Tile, B, kLargestTile>(w.data + static_cast<size_t>(group) * w.group_bytes, w.cols, x, row, row + rows, out);
}

}  // namespace

const ProductFn kProducts[kFormats] = {
    product<FloatTile, F32Weights>,
    product<FloatTile, F16Weights>,
    product<FloatTile, Bf16Weights>,
    product<IntegerTile, Q8>,
    product<IntegerTile, Q4<false>>,
    product<IntegerTile, Q4<true>>,
    product<IntegerTile, Q5<false>>,
    product<IntegerTile, Q5<true>>,
    product<IntegerTile, QK<false>>,
    product<IntegerTile, QK<true>>,
    product<IntegerTile, Q6K>,
    nullptr,  // MXFP8, which is packed as BF16
};

}  // namespace llama_ext::cpu::LLAMA_EXT_LEVEL
