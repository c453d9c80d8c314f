// How a matrix lies in device memory: the bits of its format (program/format.h), in another order, in planes of rows, so that
// what a kernel reads most of loads 16 bytes at a time and aligned. A matrix takes as many bytes as in its file, but for the
// alignment of planes and of rows.
//
// A block is 32 weights of a row, a super-block 256. Each plane is [rows][its bytes a row].
//
//   format                quants                      high                scales                       supers
//   f32, f16, bf16        as they are, a row padded
//                         with zeros to 16 bytes
//   q8_0                  int8 [32] a block           -                   f16 d a block                -
//   mxfp8                 E4M3 [32] a block           -                   E8M0 a block                 -
//   q4_0                  nibbles [16] a block        -                   f16 d a block                -
//   q4_1                  nibbles                     -                   f16 d, f16 m a block         -
//   q5_0                  nibbles                     fifth bits, 4 B     f16 d                        -
//   q5_1                  nibbles                     fifth bits          f16 d, f16 m                 -
//   q4_K                  nibbles                     -                   -                            16 B a super-block
//   q5_K                  nibbles                     fifth bits          -                            16 B a super-block
//   q6_K                  nibbles                     bit pairs, 8 B      int8 [2] a block             f16 d a super-block
//
//   nibbles     byte j has weight j in its low half, weight j + 16 in its high half
//   fifth bits  a 32-bit word: bit 8 (i % 4) + i / 4 belongs to weight i. So word w of weights 4 w .. 4 w + 3, spread over four
//               bytes, takes (high >> w) & 0x01010101.
//   bit pairs   two 32-bit words: bits 8 (i % 4) + 2 (i / 4 % 4) and the next of word i / 16 belong to weight i
//   super-block of q4_K and q5_K:  f16 d, f16 dmin, then 8 times 12 bits, a block's scale in the low 6 and its minimum in the
//               high 6: the low 8 bits of block j are byte 4 + j, the high 4 are half j % 2 (0: the low one) of byte 12 + j / 2
//   q6_K        scale [0] is for weights 0 to 15 of the block, [1] for the rest
#pragma once

#include "cuda/kernels/both.h"

namespace llama_ext::cuda {

inline constexpr int kBlock = 32, kSuperBlock = 256;

// Offsets of the planes from a matrix's first byte, which lies on 256 bytes like each plane. A plane that a format lacks is
// empty.
struct Planes {
    int64_t high, scales, supers;  // quants: 0
    int64_t bytes;                 // of it all, a multiple of 256
};

}  // namespace llama_ext::cuda
