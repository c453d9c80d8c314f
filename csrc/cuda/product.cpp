#include "cuda/product.h"

#include <algorithm>

#include "cuda/check.h"
#include "cuda/kernels/product.h"
#include "cuda/pack.h"

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

void check(const ProductCall& call) {
    const char* const operation = "product";
    const Matrix& w = call.weight;
    require_range(operation, "rows", w.rows, 1, INT32_MAX);
    require_range(operation, "cols", w.cols, 1, INT32_MAX - 256);
    require_range(operation, "max_rows", call.max_rows, 1, kMostRows);
    const int block = info(w.format).block;
    require(w.cols % block == 0, operation, "cols", std::to_string(w.cols),
            "a multiple of " + std::to_string(block) + ", as " + std::string(info(w.format).name) + " has its blocks");
    require(w.rows <= UINT32_MAX / (plane_rows(w.format, w.cols).quants / 16), operation, "rows", std::to_string(w.rows),
            "so many that their quants are at most 2^32 times 16 bytes");
    require_address(operation, "step", call.step, 8);
    require_address(operation, "x", call.x, 16);
    require_address(operation, "y", call.y, 4);
    require(aligned(call.norm, 16), operation, "norm", "not aligned", "on 16 bytes");
    require(call.eps >= 0.0f, operation, "eps", std::to_string(call.eps), "0 or more");

    const bool pairs = call.epilogue == Epilogue::silu_times_up;
    require(!pairs || w.rows % 2 == 0, operation, "rows", std::to_string(w.rows), "even: gate's and up's in turn");
    const int64_t results = pairs ? w.rows / 2 : w.rows;
    require(call.y_stride >= results, operation, "y_stride", std::to_string(call.y_stride), std::to_string(results) + " or more");
    if (call.epilogue == Epilogue::rotate) {
        require(call.which == Rows::all, operation, "which", "logits", "all, where rows are rotated");
        require_address(operation, "table", call.table, 8);
        require_range(operation, "pairs", call.pairs, 1, INT32_MAX / 2);
        require_range(operation, "rotated", call.rotated, 0, w.rows);
        require(call.rotated % (2 * int64_t{call.pairs}) == 0, operation, "rotated", std::to_string(call.rotated),
                "a multiple of 2 * pairs, " + std::to_string(2 * int64_t{call.pairs}));
    }

    if (!call.experts.value) {
        require_address(operation, "weight", w.base, 256);
        return;
    }
    require(!w.base.value, operation, "weight", "an address", "null: experts says where the weights lie");
    require(call.epilogue == Epilogue::store || pairs, operation, "epilogue", "add or rotate",
            "store or silu_times_up, with experts");
    require(call.which == Rows::all, operation, "which", "logits", "all, with experts");
    require_address(operation, "experts", call.experts, 8);
    require(call.offset >= 0 && call.offset % 256 == 0, operation, "offset", std::to_string(call.offset), "a multiple of 256");
    require_address(operation, "groups.count", call.groups.count, 4);
    require_address(operation, "groups.expert", call.groups.expert, 4);
    require_address(operation, "groups.first", call.groups.first, 4);
    require_address(operation, "groups.row", call.groups.row, 4);
    require_address(operation, "groups.score", call.groups.score, 4);
    require_range(operation, "groups.max_groups", call.groups.max_groups, 1, 1 << 16);
}

}  // namespace

Plan product(const ProductCall& call, const Card& card) {
    check(call);
    require_range("product", "multiprocessors", card.multiprocessors, 1, 1 << 16);
    const Kind& kind = kKinds[static_cast<size_t>(call.weight.format)];
    const int rows = product_rows(call.max_rows), weights = 2 * product_pairs(rows);

    // x lies in shared memory as a whole where it fits, or else by tiles.
    constexpr int kReserved = 1024;                         // bytes that the system takes for each block
    constexpr int kStatic = 4 * kProductWarps * kMostRows;  // the kernel's own
    const auto shared_bytes = [&](int64_t units) {
        return int64_t{16} * call.max_rows * product_x_row(kind.layout, static_cast<int>(units));
    };
    const int64_t units = (call.weight.cols + kind.layout.cols - 1) / kind.layout.cols;
    const int64_t most = card.shared_bytes - kStatic, share = card.shared_bytes_each / product_blocks(rows) - kReserved - kStatic;
    int64_t tile = units;
    if (shared_bytes(units) > most) {
        const int64_t step = 32 * product_depth(kind.layout, rows);
        tile = step;
        while (tile + step < units && shared_bytes(tile + step) <= std::min(most, share)) tile += step;
    }
    require(shared_bytes(tile) <= most, "product", "shared memory of the card", std::to_string(card.shared_bytes) + " bytes",
            std::to_string(shared_bytes(tile) + kStatic) + " or more");

    // A block stages x once, whatever the number of its rows: as few blocks as fill the card.
    const int64_t items = (call.weight.rows + weights - 1) / weights;
    const int64_t fit =
        std::clamp<int64_t>(card.shared_bytes_each / (shared_bytes(tile) + kStatic + kReserved), 1, product_blocks(rows));
    const bool experts = call.experts.value != 0;
    const int64_t groups = experts ? call.groups.max_groups : 1;
    const int64_t wanted = (items * groups + kProductWarps - 1) / kProductWarps;
    const int64_t each = std::clamp<int64_t>((wanted + card.multiprocessors - 1) / card.multiprocessors, 1, fit);
    const int64_t blocks = std::max(std::min(each * card.multiprocessors, items * groups), groups);

    const Planes at = planes(call.weight.format, call.weight.rows, call.weight.cols);
    return {{{"product_" + std::string(kind.name) + "_" + std::to_string(rows),
              {static_cast<uint32_t>(blocks), 1, 1},
              {32 * kProductWarps, 1, 1},
              static_cast<uint32_t>(shared_bytes(tile)),
              {{"weight", call.weight.base},
               {"experts", call.experts},
               {"offset", experts ? call.offset : int64_t{0}},
               {"high", at.high},
               {"scales", at.scales},
               {"supers", at.supers},
               {"rows", static_cast<int32_t>(call.weight.rows)},
               {"cols", static_cast<int32_t>(call.weight.cols)},
               {"tile_units", static_cast<int32_t>(tile)},
               {"step", call.step},
               {"logits", int32_t{call.which == Rows::logits}},
               {"x", call.x},
               {"norm", call.norm},
               {"eps", call.eps},
               {"epilogue", static_cast<int32_t>(call.epilogue)},
               {"y", call.y},
               {"y_stride", call.y_stride},
               {"table", call.table},
               {"rotated", static_cast<int32_t>(call.rotated)},
               {"pairs", std::max(call.pairs, 1)},
               {"group_count", call.groups.count},
               {"group_expert", call.groups.expert},
               {"group_first", call.groups.first},
               {"entry_row", call.groups.row},
               {"entry_score", call.groups.score},
               {"gathered", int32_t{experts && call.gathered}},
               {"scaled", int32_t{experts && call.scaled}}},
              true}},
            {}};
}

}  // namespace llama_ext::cuda
