#include "cuda/product.h"

#include <algorithm>

#include "cuda/check.h"
#include "cuda/kernels/product.h"
#include "cuda/product_call.h"

namespace llama_ext::cuda {
namespace {

static_assert(static_cast<int>(Epilogue::store) == kProductStore && static_cast<int>(Epilogue::add) == kProductAdd &&
              static_cast<int>(Epilogue::silu_times_up) == kProductSiluTimesUp &&
              static_cast<int>(Epilogue::rotate) == kProductRotate);

constexpr int kMostRows = 16;

struct Kind {
    const char* name;  // in the kernels' names
    ProductLayout layout;
};
constexpr Kind kKinds[kFormats] = {{"f32", kProductF32},   {"f16", kProduct16},    {"bf16", kProduct16},
                                   {"q8_0", kProductQ8},   {"q4_0", kProductQ4},   {"q4_1", kProductQ4},
                                   {"q5_0", kProductQ5},   {"q5_1", kProductQ5},   {"q4_k", kProductQ4K},
                                   {"q5_k", kProductQ56K}, {"q6_k", kProductQ56K}, {"mxfp8", kProductMxfp8}};

}  // namespace

Plan product(const ProductCall& call, const Card& card) {
    check_product("product", call, kMostRows);
    require_range("product", "multiprocessors", card.multiprocessors, 1, 1 << 16);
    const Kind& kind = kKinds[static_cast<size_t>(call.weight.format)];
    const int rows = product_rows(call.max_rows), weights = 2 * product_pairs(rows);

    // x lies in shared memory as a whole where it fits, or else by tiles.
    constexpr int kReserved = 1024;  // bytes that the system takes for each block
    // The kernel's own: squares of each warp and row, a factor a row.
    const int own = 4 * (kProductWarps + 1) * rows;
    const auto shared_bytes = [&](int64_t units) {
        return int64_t{16} * call.max_rows * product_x_row(kind.layout, static_cast<int>(units));
    };
    const int64_t units = (call.weight.cols + kind.layout.cols - 1) / kind.layout.cols;
    const int64_t most = card.shared_bytes - own, share = card.shared_bytes_each / product_blocks(rows) - kReserved - own;
    int64_t tile = units;
    if (shared_bytes(units) > most) {
        const int64_t step = 32 * product_depth(kind.layout, rows);
        tile = step;
        while (tile + step < units && shared_bytes(tile + step) <= std::min(most, share)) tile += step;
    }
    require(shared_bytes(tile) <= most, "product", "shared memory of the card", std::to_string(card.shared_bytes) + " bytes",
            std::to_string(shared_bytes(tile) + own) + " or more");

    // A block stages x once, whatever the number of its rows: as few blocks as fill the card.
    const int64_t items = (call.weight.rows + weights - 1) / weights;
    const int64_t fit =
        std::clamp<int64_t>(card.shared_bytes_each / (shared_bytes(tile) + own + kReserved), 1, product_blocks(rows));
    const bool experts = call.experts.value != 0;
    const int64_t groups = experts ? call.groups.max_groups : 1;
    const int64_t wanted = (items * groups + kProductWarps - 1) / kProductWarps;
    const int64_t each = std::clamp<int64_t>((wanted + card.multiprocessors - 1) / card.multiprocessors, 1, fit);
    const int64_t blocks = std::max(std::min(each * card.multiprocessors, items * groups), groups);

    return {{{"product_" + std::string(kind.name) + "_" + std::to_string(rows),
              {static_cast<uint32_t>(blocks), 1, 1},
              {32 * kProductWarps, 1, 1},
              static_cast<uint32_t>(shared_bytes(tile)),
              product_arguments(call, {"tile_units", static_cast<int32_t>(tile)}, {.norm = true, .rotation = true}),
              true}},
            {}};
}

}  // namespace llama_ext::cuda
