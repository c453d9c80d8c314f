#include "cpu/pack_k.h"

#include <cstring>

#include "cpu/pack.h"

namespace llama_ext::cpu {
namespace {

constexpr int kSubBlocks = 8;
constexpr uint32_t kNibbles = 0x0f0f0f0f;
constexpr size_t kVector = 4 * kGroup;  // a word of each row

// A row's block, as it stands in a file: 2-byte factors, words of scales, low 4 bits and, of Q5_K and Q6_K, high ones.
template <Format format>
struct FileBlock;

template <>
struct FileBlock<Format::q4_k> {
    uint16_t factors[2];
    uint32_t scales[3], low[32];
};
template <>
struct FileBlock<Format::q5_k> {
    uint16_t factors[2];
    uint32_t scales[3], high[8], low[32];
};
template <>
struct FileBlock<Format::q6_k> {
    uint32_t low[32], high[16], scales[4];
    uint16_t factors[1];
};

// Where the low bits of sub-block j stand: the first of its 8 words, and whether in their upper halves.
template <Format format>
constexpr int low_word(int j) {
    return format == Format::q6_k ? 16 * (j / 4) + 8 * (j % 2) : 8 * (j / 2);
}
template <Format format>
constexpr bool low_upper(int j) {
    return format == Format::q6_k ? j % 4 >= 2 : j % 2 == 1;
}
// Vectors of high bits of a sub-block.
template <Format format>
constexpr int kHighWords = format == Format::q4_k   ? 0
                           : format == Format::q5_k ? 1
                                                    : 2;

// Bytes of a file's block; FileBlock may end in padding.
template <Format format>
constexpr size_t kFileBytes = format == Format::q4_k   ? 144
                              : format == Format::q5_k ? 176
                                                       : 210;

template <Format format>
void pack(int64_t blocks, const std::byte* const* rows, std::byte* out) {
    using Block = FileBlock<format>;
    constexpr int kScaleWords = sizeof(Block::scales) / 4;
    for (int64_t b = 0; b < blocks; ++b) {
        for (int r = 0; r < kGroup; ++r) {
            Block block;
            std::memcpy(static_cast<void*>(&block), rows[r] + static_cast<size_t>(b) * kFileBytes<format>, kFileBytes<format>);
            std::byte* to = out;
            for (const uint16_t factor : block.factors) {
                std::memcpy(to + 2 * r, &factor, sizeof factor);
                to += kVector / 2;
            }
            const auto put = [&](uint32_t word) {
                std::memcpy(to + 4 * r, &word, sizeof word);
                to += kVector;
            };
            for (int i = 0; i < kScaleWords; ++i) put(block.scales[i]);
            for (int j = 0; j < kSubBlocks; ++j) {
                if constexpr (format == Format::q5_k) {
                    uint32_t fifth = 0;  // bit l of byte c is of element 4 l + c, as in Q5_0
                    for (int l = 0; l < 8; ++l) fifth |= (block.high[l] >> j & 0x01010101) << l;
                    put(fifth);
                }
                const uint32_t* low = block.low + low_word<format>(j);
                for (int l = 0; l < 4; ++l)
                    put(low_upper<format>(j) ? (low[l] >> 4 & kNibbles) | (low[l + 4] & ~kNibbles)
                                             : (low[l] & kNibbles) | (low[l + 4] & kNibbles) << 4);
                if constexpr (format == Format::q6_k) {
                    const uint32_t* high = block.high + 8 * (j / 4);
                    for (int half = 0; half < 2; ++half) {  // bits 2 l and 2 l + 1 of byte c are of element 16 half + 4 l + c
                        uint32_t pairs = 0;
                        for (int l = 0; l < 4; ++l) pairs |= (high[4 * half + l] >> 2 * (j % 4) & 0x03030303) << 2 * l;
                        put(pairs);
                    }
                }
            }
        }
        out += kGroup * kFileBytes<format>;
    }
}

template <Format format>
void unpack(int64_t blocks, const std::byte* group, int r, std::byte* out) {
    using Block = FileBlock<format>;
    constexpr int kScaleWords = sizeof(Block::scales) / 4;
    for (int64_t b = 0; b < blocks; ++b) {
        Block block{};
        const std::byte* from = group;
        for (uint16_t& factor : block.factors) {
            std::memcpy(&factor, from + 2 * r, sizeof factor);
            from += kVector / 2;
        }
        const auto take = [&] {
            uint32_t word;
            std::memcpy(&word, from + 4 * r, sizeof word);
            from += kVector;
            return word;
        };
        for (int i = 0; i < kScaleWords; ++i) block.scales[i] = take();
        for (int j = 0; j < kSubBlocks; ++j) {
            if constexpr (format == Format::q5_k) {
                const uint32_t fifth = take();
                for (int l = 0; l < 8; ++l) block.high[l] |= (fifth >> l & 0x01010101) << j;
            }
            uint32_t* low = block.low + low_word<format>(j);
            for (int l = 0; l < 4; ++l) {
                const uint32_t word = take();
                low[l] |= low_upper<format>(j) ? (word & kNibbles) << 4 : word & kNibbles;
                low[l + 4] |= low_upper<format>(j) ? word & ~kNibbles : word >> 4 & kNibbles;
            }
            if constexpr (format == Format::q6_k) {
                uint32_t* high = block.high + 8 * (j / 4);
                for (int half = 0; half < 2; ++half) {
                    const uint32_t pairs = take();
                    for (int l = 0; l < 4; ++l) high[4 * half + l] |= (pairs >> 2 * l & 0x03030303) << 2 * (j % 4);
                }
            }
        }
        std::memcpy(out, static_cast<const void*>(&block), kFileBytes<format>);
        group += kGroup * kFileBytes<format>;
        out += kFileBytes<format>;
    }
}

}  // namespace

void pack_k(Format format, int64_t blocks, const std::byte* const* rows, std::byte* out) {
    if (format == Format::q4_k) return pack<Format::q4_k>(blocks, rows, out);
    if (format == Format::q5_k) return pack<Format::q5_k>(blocks, rows, out);
    pack<Format::q6_k>(blocks, rows, out);
}

void unpack_k(Format format, int64_t blocks, const std::byte* group, int r, std::byte* out) {
    if (format == Format::q4_k) return unpack<Format::q4_k>(blocks, group, r, out);
    if (format == Format::q5_k) return unpack<Format::q5_k>(blocks, group, r, out);
    unpack<Format::q6_k>(blocks, group, r, out);
}

}  // namespace llama_ext::cpu
