// Matrix products, with what stands before and behind them in a program.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/pack.h"
#include "cuda/plan.h"

namespace llama_ext::cuda {

// What becomes of a product's results. Rows of the weight come in pairs 2i, 2i + 1 where a pair makes something together.
enum class Epilogue {
    store,          // y = W x
    add,            // y += W x, y being the residual stream
    silu_times_up,  // rows 2i of W are gate's row i, rows 2i + 1 up's: y[i] = silu(W_2i x) * W_2i+1 x
    rotate,         // y = W x, whose first `rotated` rows turn pair by pair, a head of 2 * pairs after the other
};

// Which of a step's rows a product takes: all of them, or the last Step::logit_rows, whose results then begin at y's first row.
enum class Rows { all, logits };

// A step's rows sorted by expert (route.h), where a product has a matrix an expert.
struct Groups {
    Address count;   // int32 [1]: experts that have entries, at most max_groups
    Address expert;  // int32 [max_groups], ascending; the shared one, whose index is `experts`, last
    Address first;   // int32 [max_groups + 1]: group g has the entries first[g] .. first[g + 1] - 1, at most one a row
    Address row;     // int32 [entries]: whose row an entry is
    Address score;   // float32 [entries]; 1 for the shared expert
    int max_groups;
};

struct ProductCall {
    Matrix weight;  // with experts: the shape of each; its base is null
    Address step;   // Step [1]
    int max_rows;   // of a step, for which the launch is made
    Rows which;
    Address x;     // float32 [max_rows, cols], row after row; with experts and not gathered: [entries, cols]
    Address norm;  // float32 [cols]: x is normalised (RMSNorm, eps) and multiplied by this in front; or null: taken as it is
    float eps;
    Epilogue epilogue;
    Address y;         // float32 [max_rows, y_stride]; with experts [entries, y_stride]
    int64_t y_stride;  // in floats, at least the results of a row
    // rotate:
    Address table;    // float2 [max_rows, pairs] (Step's Rotation)
    int64_t rotated;  // rows of the weight, whole heads
    int32_t pairs;    // head_dim / 2

    // A mixture of experts; null addresses otherwise. The epilogue is store or silu_times_up.
    Groups groups;
    Address experts;  // uint64 [experts + 1]: where an expert's weights lie; this matrix begins `offset` bytes behind
    int64_t offset;   // a multiple of 256
    bool gathered;    // x has a row a token, and entry e takes x[row[e]]; else entry e takes x[e]
    bool scaled;      // what a product gives is multiplied by the entry's score: before SiLU, or as it is stored
};

// Up to 16 rows: each weight is read once. A row's result is the same bits for any max_rows up to 16 and any number of rows.
Plan product(const ProductCall& call, const Card& card);

// Any number of rows, on tensor cores: x is normalised already (norm is null), and nothing is rotated. f32 weights are refused.
Plan product_tiles(const ProductCall& call, const Card& card);

}  // namespace llama_ext::cuda
