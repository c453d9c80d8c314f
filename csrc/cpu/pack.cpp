#include "cpu/pack.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/pack_k.h"
#include "program/half.h"

namespace llama_ext::cpu {
namespace {

// How a file's block falls apart: 2-byte scales first or last, then 4-byte words in the order of packing.
struct BlockLayout {
    int halves;        // f16 scales, each packed as [16] u16
    int half_offset;   // where they stand in the file's block
    int fifth_offset;  // 32 fifth bits to be regrouped (Q5_0, Q5_1), or -1
    int word_offset;   // 4-byte words, each packed as [16] u32: where they start in the file's block
    int words;
};

constexpr BlockLayout layout(Format format) {
    switch (format) {
        case Format::q8_0:
            return {1, 0, -1, 2, 8};
        case Format::q4_0:
            return {1, 0, -1, 2, 4};
        case Format::q4_1:
            return {2, 0, -1, 4, 4};
        case Format::q5_0:
            return {1, 0, 2, 6, 4};
        case Format::q5_1:
            return {2, 0, 4, 8, 4};
        default:
            return {};
    }
}

// Bit e of `bits` belongs to element e = 4 l + c; it becomes bit l of byte c, so that one shift and one mask give the fifth
// bits of the four elements of word l.
uint32_t regroup_fifth_bits(uint32_t bits) {
    uint32_t result = 0;
    for (int l = 0; l < 8; ++l)
        for (int c = 0; c < 4; ++c) result |= ((bits >> (4 * l + c)) & 1u) << (8 * c + l);
    return result;
}

// The inverse of regroup_fifth_bits.
uint32_t ungroup_fifth_bits(uint32_t bits) {
    uint32_t result = 0;
    for (int l = 0; l < 8; ++l)
        for (int c = 0; c < 4; ++c) result |= ((bits >> (8 * c + l)) & 1u) << (4 * l + c);
    return result;
}

void unpack_blocks(Format format, int64_t cols, const std::byte* group, int r, std::byte* out) {
    const BlockLayout b = layout(format);
    const int block_bytes = info(format).bytes;
    const int64_t blocks = cols / info(format).block;
    for (int64_t block = 0; block < blocks; ++block, group += kGroup * block_bytes, out += block_bytes) {
        const std::byte* from = group;
        for (int i = 0; i < b.halves; ++i, from += 2 * kGroup) std::memcpy(out + b.half_offset + 2 * i, from + 2 * r, 2);
        if (b.fifth_offset >= 0) {
            uint32_t bits;
            std::memcpy(&bits, from + 4 * r, 4);
            bits = ungroup_fifth_bits(bits);
            std::memcpy(out + b.fifth_offset, &bits, 4);
            from += 4 * kGroup;
        }
        for (int i = 0; i < b.words; ++i, from += 4 * kGroup) std::memcpy(out + b.word_offset + 4 * i, from + 4 * r, 4);
    }
}

// One group of blocks, in the order in which they are written: for each piece of a block, the piece of every row.
template <Format format, int block_bytes>
void pack_blocks(int64_t blocks, const std::byte* const* rows, std::byte* out) {
    constexpr BlockLayout b = layout(format);
    const auto each_row = [&](int64_t at, auto piece) {
        for (int r = 0; r < kGroup; ++r) {
            std::memcpy(&piece, rows[r] + at, sizeof piece);
            if constexpr (sizeof piece == 4) {
                if (b.fifth_offset >= 0 && at % block_bytes == b.fifth_offset) piece = regroup_fifth_bits(piece);
            }
            std::memcpy(out + sizeof piece * static_cast<size_t>(r), &piece, sizeof piece);
        }
        out += kGroup * sizeof piece;
    };
    for (int64_t at = 0; at < blocks * block_bytes; at += block_bytes) {
        for (int i = 0; i < b.halves; ++i) each_row(at + b.half_offset + 2 * i, uint16_t{});
        if constexpr (b.fifth_offset >= 0) each_row(at + b.fifth_offset, uint32_t{});
        for (int i = 0; i < b.words; ++i) each_row(at + b.word_offset + 4 * i, uint32_t{});
    }
}

// Transposed, a row after the other within pieces that stay in the nearest cache.
template <class Element>
void pack_elements(int64_t cols, const std::byte* const* rows, std::byte* out) {
    constexpr int64_t kPiece = 128;
    for (int64_t first = 0; first < cols; first += kPiece) {
        const int64_t last = std::min(first + kPiece, cols);
        for (int r = 0; r < kGroup; ++r)
            for (int64_t c = first; c < last; ++c)
                std::memcpy(out + sizeof(Element) * static_cast<size_t>(c * kGroup + r),
                            rows[r] + sizeof(Element) * static_cast<size_t>(c), sizeof(Element));
    }
}

void pack_mxfp8(int64_t cols, const std::byte* const* rows, std::byte* out) {
    std::vector<float> values(static_cast<size_t>(cols));
    for (int r = 0; r < kGroup; ++r) {
        dequantize(Format::mxfp8, rows[r], cols, values.data());
        for (int64_t c = 0; c < cols; ++c) {
            const uint16_t bits = bf16_from_f32(values[static_cast<size_t>(c)]);
            std::memcpy(out + sizeof bits * static_cast<size_t>(c * kGroup + r), &bits, sizeof bits);
        }
    }
}

}  // namespace

size_t packed_group_bytes(Format format, int64_t cols) { return kGroup * row_bytes(packed_format(format), cols); }

void pack_group(Format format, int64_t cols, const std::byte* source, int rows, std::byte* out) {
    const size_t stride = row_bytes(format, cols);
    // Rows that do not exist are zeros, read from one that stays at zero.
    std::vector<std::byte> none(rows < kGroup ? stride : 0);
    const std::byte* row[kGroup];
    for (int r = 0; r < kGroup; ++r) row[r] = r < rows ? source + static_cast<size_t>(r) * stride : none.data();
    const int64_t blocks = cols / info(format).block;
    switch (format) {
        case Format::f32:
            return pack_elements<uint32_t>(cols, row, out);
        case Format::f16:
        case Format::bf16:
            return pack_elements<uint16_t>(cols, row, out);
        case Format::q8_0:
            return pack_blocks<Format::q8_0, 34>(blocks, row, out);
        case Format::q4_0:
            return pack_blocks<Format::q4_0, 18>(blocks, row, out);
        case Format::q4_1:
            return pack_blocks<Format::q4_1, 20>(blocks, row, out);
        case Format::q5_0:
            return pack_blocks<Format::q5_0, 22>(blocks, row, out);
        case Format::q5_1:
            return pack_blocks<Format::q5_1, 24>(blocks, row, out);
        case Format::q4_k:
        case Format::q5_k:
        case Format::q6_k:
            return pack_k(format, blocks, row, out);
        case Format::mxfp8:
            return pack_mxfp8(cols, row, out);
    }
}

void unpack_row(Format format, int64_t cols, const std::byte* group, int r, std::byte* out) {
    if (info(format).block == 256) return unpack_k(format, cols / 256, group, r, out);
    if (info(format).block > 1) return unpack_blocks(format, cols, group, r, out);
    const size_t size = static_cast<size_t>(info(format).bytes);
    for (int64_t c = 0; c < cols; ++c)
        std::memcpy(out + static_cast<size_t>(c) * size, group + static_cast<size_t>(c * kGroup + r) * size, size);
}

}  // namespace llama_ext::cpu
