#include "cpu/pack.h"

#include <cstring>

namespace llama_ext::cpu {
namespace {

// How a file's block falls apart: 2-byte scales first or last, then 4-byte words in the order of packing.
struct BlockLayout {
    int halves;           // f16 scales, each packed as [16] u16
    int half_offset;      // where they stand in the file's block
    int fifth_offset;     // 32 fifth bits to be regrouped (Q5_0, Q5_1), or -1
    int words;            // 4-byte words packed as [16] u32 each
    int word_offsets[3];  // up to three runs of words: where each starts in the file's block
    int word_counts[3];
};

BlockLayout layout(Format format) {
    switch (format) {
        case Format::q8_0:
            return {1, 0, -1, 8, {2}, {8}};
        case Format::q4_0:
            return {1, 0, -1, 4, {2}, {4}};
        case Format::q4_1:
            return {2, 0, -1, 4, {4}, {4}};
        case Format::q5_0:
            return {1, 0, 2, 4, {6}, {4}};
        case Format::q5_1:
            return {2, 0, 4, 4, {8}, {4}};
        case Format::q4_k:
            return {2, 0, -1, 35, {4}, {35}};
        case Format::q5_k:
            return {2, 0, -1, 43, {4}, {43}};
        case Format::q6_k:
            return {1, 208, -1, 52, {192, 0, 128}, {4, 32, 16}};
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
        for (int run = 0; run < 3; ++run)
            for (int i = 0; i < b.word_counts[run]; ++i, from += 4 * kGroup)
                std::memcpy(out + b.word_offsets[run] + 4 * i, from + 4 * r, 4);
    }
}

void pack_blocks(Format format, int64_t cols, const std::byte* source, int rows, std::byte* out) {
    const BlockLayout b = layout(format);
    const size_t stride = row_bytes(format, cols);
    const int block_bytes = info(format).bytes;
    const int64_t blocks = cols / info(format).block;
    for (int64_t block = 0; block < blocks; ++block, out += kGroup * block_bytes) {
        for (int r = 0; r < rows; ++r) {
            const std::byte* from = source + static_cast<size_t>(r) * stride + block * block_bytes;
            std::byte* to = out;
            for (int i = 0; i < b.halves; ++i, to += 2 * kGroup) std::memcpy(to + 2 * r, from + b.half_offset + 2 * i, 2);
            if (b.fifth_offset >= 0) {
                uint32_t bits;
                std::memcpy(&bits, from + b.fifth_offset, 4);
                bits = regroup_fifth_bits(bits);
                std::memcpy(to + 4 * r, &bits, 4);
                to += 4 * kGroup;
            }
            for (int run = 0; run < 3; ++run)
                for (int i = 0; i < b.word_counts[run]; ++i, to += 4 * kGroup)
                    std::memcpy(to + 4 * r, from + b.word_offsets[run] + 4 * i, 4);
        }
    }
}

// Elements of `size` bytes, transposed.
void pack_elements(int64_t cols, size_t size, const std::byte* source, int rows, std::byte* out) {
    for (int r = 0; r < rows; ++r) {
        const std::byte* from = source + static_cast<size_t>(r) * static_cast<size_t>(cols) * size;
        for (int64_t c = 0; c < cols; ++c)
            std::memcpy(out + static_cast<size_t>(c * kGroup + r) * size, from + static_cast<size_t>(c) * size, size);
    }
}

}  // namespace

size_t packed_group_bytes(Format format, int64_t cols) { return kGroup * row_bytes(format, cols); }

void pack_group(Format format, int64_t cols, const std::byte* source, int rows, std::byte* out) {
    if (rows < kGroup) std::memset(out, 0, packed_group_bytes(format, cols));
    switch (format) {
        case Format::f32:
            return pack_elements(cols, 4, source, rows, out);
        case Format::f16:
        case Format::bf16:
            return pack_elements(cols, 2, source, rows, out);
        default:
            return pack_blocks(format, cols, source, rows, out);
    }
}

void unpack_row(Format format, int64_t cols, const std::byte* group, int r, std::byte* out) {
    if (info(format).block > 1) return unpack_blocks(format, cols, group, r, out);
    const size_t size = static_cast<size_t>(info(format).bytes);
    for (int64_t c = 0; c < cols; ++c)
        std::memcpy(out + static_cast<size_t>(c) * size, group + static_cast<size_t>(c * kGroup + r) * size, size);
}

}  // namespace llama_ext::cpu
