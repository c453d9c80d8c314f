#include "cuda/kernels/product_tiles.h"

#include "cuda/check.h"
#include "cuda/product.h"
#include "cuda/product_call.h"

namespace llama_ext::cuda {
namespace {

// In the kernels' names.
constexpr const char* kNames[kFormats] = {nullptr,      "float_f16",  "float_bf16", "block_q8_0", "block_q4_0", "block_q4_1",
                                          "block_q5_0", "block_q5_1", "k_q4",       "k_q5",       "k_q6",       "float_mxfp8"};
constexpr int kMostRows = 1 << 20;

}  // namespace

Plan product_tiles(const ProductCall& call, const Card&) {
    const char* const operation = "product_tiles";
    check_product(operation, call, kMostRows);
    const char* const name = kNames[static_cast<size_t>(call.weight.format)];
    require(name, operation, "format", "F32", "of 16 bits or fewer: tensor cores take no more");
    require(!call.norm.value, operation, "norm", "an address", "null: x is normalised already");
    require(call.epilogue != Epilogue::rotate, operation, "epilogue", "rotate", "store, add or silu_times_up");

    const bool experts = call.experts.value != 0;
    const int64_t token_tiles = (call.max_rows + kTileTokens - 1) / kTileTokens;
    const int64_t row_tiles = (call.weight.rows + kTileWeights - 1) / kTileWeights;
    const int64_t blocks = token_tiles * row_tiles * (experts ? call.groups.max_groups : 1);
    require(blocks <= INT32_MAX, operation, "rows", std::to_string(call.weight.rows),
            "so many that the tiles of all rows and groups are at most " + std::to_string(INT32_MAX));

    return {{{"product_tiles_" + std::string(name),
              {static_cast<uint32_t>(blocks), 1, 1},
              {kTileThreads, 1, 1},
              0,
              product_arguments(call, {"token_tiles", static_cast<int32_t>(token_tiles)}, {.norm = false, .rotation = false}),
              true}},
            {}};
}

}  // namespace llama_ext::cuda
