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
    int cols;           // of a unit
    int pieces;         // of x a unit
    int padding;        // of a plane, in 16 bytes
    int units_a_scale;  // units whose scales fill 16 bytes; 0: there are none
    int depth[3];       // units under way a lane and row of weights, where 1, 4 or 16 rows of x are multiplied
};
inline constexpr ProductLayout kProductF32{4, 1, 0, 0, {4, 2, 2}};
inline constexpr ProductLayout kProduct16{8, 2, 4, 0, {4, 2, 2}};
inline constexpr ProductLayout kProductMxfp8{16, 4, 2, 0, {4, 2, 2}};
inline constexpr ProductLayout kProductQ8{16, 2, 0, 8, {4, 2, 2}};  // scales: float32
// scales: {scale, sum of the first 16, sum of the others, both sums * scale}
inline constexpr ProductLayout kProductQ4{32, 4, 4, 1, {4, 2, 2}};
inline constexpr ProductLayout kProductQ5{32, 4, 4, 1, {3, 2, 2}};
inline constexpr ProductLayout kProductQ4K{32, 4, 4, 1, {2, 2, 1}};
inline constexpr ProductLayout kProductQ56K{32, 4, 4, 1, {2, 1, 1}};

// Rows of x that a kernel is made for: the least that holds max_rows.
LLAMA_EXT_BOTH constexpr int product_rows(int max_rows) { return max_rows == 1 ? 1 : max_rows <= 4 ? 4 : 16; }
LLAMA_EXT_BOTH constexpr int product_depth(ProductLayout layout, int rows) {
    return layout.depth[rows == 1 ? 0 : rows == 4 ? 1 : 2];
}
// Pairs of rows of W that a warp takes at a time. With one pair and many rows of x shared memory would bound it.
LLAMA_EXT_BOTH constexpr int product_pairs(int rows) { return rows == 16 ? 2 : 1; }
// Blocks a multiprocessor that registers are saved for.
LLAMA_EXT_BOTH constexpr int product_blocks(int rows) { return rows == 16 ? 1 : 2; }

// In 16 bytes, for `units` units of a row of x in shared memory at a time.
LLAMA_EXT_BOTH constexpr int product_plane(ProductLayout layout, int units) { return (units + 7) / 8 * 8 + layout.padding; }
LLAMA_EXT_BOTH constexpr int product_x_row(ProductLayout layout, int units) {
    return layout.pieces * product_plane(layout, units) +
           (layout.units_a_scale ? (units + layout.units_a_scale - 1) / layout.units_a_scale : 0);
}

}  // namespace llama_ext::cuda
