// Weights as the CPU kernels read them: groups of 16 rows, lane r of every vector belonging to row r of the group. A product
// then needs no horizontal sums, one row's arithmetic never depends on how many tokens go along, and a group is one
// sequential stream. The file's bits are kept: only their order changes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "program/instruction.h"

namespace llama_ext::cpu {

inline constexpr int kGroup = 16;

// One packed group, block after block (rows r = 0..15 innermost):
//   F32            [cols][16] f32
//   F16, BF16      [cols][16] f16 or bf16
//   Q8_0           a block: d [16] f16, words [8][16]                       (a word: 4 consecutive bytes of the file's quants)
//   Q4_0, Q4_1     a block: d [16] f16, (m [16] f16,) words [4][16]
//   Q5_0, Q5_1     a block: d, (m,) fifth bits [16] u32, words [4][16]; bit l of byte c of row r's u32 belongs to element 4 l + c
//   Q4_K, Q5_K     a block of 256: d, dmin, scale words [3][16]; of each 32 columns (fifth bits as Q5_0,) words [4][16] as Q4_0
//   Q6_K           a block of 256: d, scale words [4][16]; of each 32 columns words [4][16] as Q4_0, high words [2][16], of whose
//                  word h bits 2 l and 2 l + 1 of byte c belong to element 16 h + 4 l + c
//   MXFP8          as BF16, which holds its weights (4 digits of a power of two) exactly, but for those below 2^-126: they are
//                  rounded to multiples of 2^-133
struct PackedWeight {
    Format format;  // packed_format() of the file's
    int64_t rows, cols;
    int64_t groups;  // ceil(rows / 16); rows past the last are zero
    size_t group_bytes;
    const std::byte* data;              // [groups][group_bytes]; null: not packed, a group is packed when it is needed
    const std::byte* source = nullptr;  // then: the matrix as it stands in its file
};

// What a format is once it is packed: itself, but for MXFP8.
inline Format packed_format(Format format) { return format == Format::mxfp8 ? Format::bf16 : format; }

// format: as in the file, here and below.
size_t packed_group_bytes(Format format, int64_t cols);

// The reverse of one row, of a format that packs as itself: row r (0..15) of a packed group as it stands in a file,
// row_bytes(format, cols) bytes.
void unpack_row(Format format, int64_t cols, const std::byte* group, int r, std::byte* out);

// rows: how many of the 16 exist (the rest become zero); source row r starts at source + r * row_bytes(format, cols).
void pack_group(Format format, int64_t cols, const std::byte* source, int rows, std::byte* out);

}  // namespace llama_ext::cpu
