// Numbers that the product's kernels and the host code that launches them must agree on.
#pragma once

#include "cuda/kernels/both.h"

namespace llama_ext::cuda {

inline constexpr int kProductWarps = 8;  // a block

// What the results become; product.h (Epilogue) says how.
inline constexpr int kProductStore = 0, kProductAdd = 1, kProductSiluTimesUp = 2, kProductRotate = 3;

// How x lies in shared memory. A lane takes a unit of weights at a time, 16 bytes of the quants; what a unit meets is `pieces` of
// 16 bytes, each in a plane of its own, so that neighbouring lanes read neighbouring 16 bytes. Planes are padded so that staging
// meets no bank twice either. Behind the planes of a row stand the blocks' scales.
//   float32: piece p is columns 4 p .. 4 p + 3 of the unit
//   integers: two signed digits a value (128 * high + low), the high ones of 16 columns a piece, in front of the low ones
struct ProductLayout {
    int cols;       // of a unit
    int pieces;     // of x a unit
    int padding;    // of a plane, in 16 bytes
    int units_a_scale;  // units whose scales fill 16 bytes; 0: there are none
    // Where one row of x is multiplied, up to 4, and up to 16: units under way a lane and row of weights. (With many rows a unit
    // is work for longer than it is under way.)
    int depth[3];
    int many_pairs;  // pairs of rows of weights that a warp takes at a time, with up to 16 rows
};
inline constexpr ProductLayout kProductF32{4, 1, 0, 0, {4, 2, 2}, 2};
inline constexpr ProductLayout kProduct16{8, 2, 4, 0, {4, 2, 1}, 2};
inline constexpr ProductLayout kProductMxfp8{16, 4, 2, 0, {4, 2, 1}, 2};
inline constexpr ProductLayout kProductQ8{16, 2, 0, 8, {4, 2, 2}, 1};       // scales: float32
inline constexpr ProductLayout kProductNibbles{32, 4, 4, 1, {4, 2, 2}, 1};  // {scale, sum of 16, of the others, both * scale}
inline constexpr ProductLayout kProductK{32, 4, 4, 1, {2, 2, 2}, 1};

// Rows of x that a kernel is made for: the least that holds max_rows.
LLAMA_EXT_BOTH constexpr int product_rows(int max_rows) { return max_rows == 1 ? 1 : max_rows <= 4 ? 4 : 16; }
LLAMA_EXT_BOTH constexpr int product_depth(ProductLayout layout, int rows) {
    return layout.depth[rows == 1 ? 0 : rows == 4 ? 1 : 2];
}
LLAMA_EXT_BOTH constexpr int product_pairs(ProductLayout layout, int rows) { return rows == 16 ? layout.many_pairs : 1; }
inline constexpr int kProductBlocks = 2;  // a multiprocessor, at least, by their registers

// In 16 bytes, for `units` units of a row of x in shared memory at a time.
LLAMA_EXT_BOTH constexpr int product_plane(ProductLayout layout, int units) { return (units + 7) / 8 * 8 + layout.padding; }
LLAMA_EXT_BOTH constexpr int product_x_row(ProductLayout layout, int units) {
    return layout.pieces * product_plane(layout, units) +
           (layout.units_a_scale ? (units + layout.units_a_scale - 1) / layout.units_a_scale : 0);
}

}  // namespace llama_ext::cuda
