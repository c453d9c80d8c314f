#include "cuda/product.h"

#include <algorithm>

#include "cuda/check.h"
#include "cuda/kernels/product.h"

namespace llama_ext::cuda {

Plan product(const ProductCall& call, int multiprocessors, int shared_bytes_each) {
    require_range("product", "rows", call.rows, 1, INT32_MAX);
    require_range("product", "cols", call.cols, 1, INT32_MAX);
    require(call.cols % 8 == 0, "product", "cols", std::to_string(call.cols),
            "a multiple of 8 (weights load 16 bytes at a time): pad the rows with zeros");
    require_range("product", "multiprocessors", multiprocessors, 1, 1 << 16);
    require_address("product", "weight", call.weight, 16);
    require_address("product", "x", call.x, 16);
    require_address("product", "y", call.y, 4);
    require(aligned(call.residual, 4), "product", "residual", "not aligned", "on 4 bytes");

    // A block stages x once, whatever the number of its rows: as few blocks as fill the card, each with an equal share of them.
    constexpr int64_t kByRegisters = 4;  // blocks a multiprocessor
    constexpr int kReserved = 1024;      // bytes of shared memory that the system takes for each block
    const int32_t tile_cols = static_cast<int32_t>(std::min<int64_t>(call.cols, kProductTileCols));
    const int64_t at_a_time =
        std::clamp<int64_t>(shared_bytes_each / (product_shared_bytes(tile_cols) + kReserved), 1, kByRegisters);
    const int64_t groups = (call.rows + kProductWarps - 1) / kProductWarps;
    const int64_t rounds = (groups + at_a_time * multiprocessors - 1) / (at_a_time * multiprocessors);
    const uint32_t blocks = static_cast<uint32_t>((groups + rounds - 1) / rounds);
    return {{{"product_bf16",
              {blocks, 1, 1},
              {32 * kProductWarps, 1, 1},
              static_cast<uint32_t>(product_shared_bytes(tile_cols)),
              {{"weight", call.weight},
               {"x", call.x},
               {"residual", call.residual},
               {"y", call.y},
               {"rows", call.rows},
               {"cols", call.cols},
               {"tile_cols", tile_cols}},
              true}},
            {}};
}

}  // namespace llama_ext::cuda
