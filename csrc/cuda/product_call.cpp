#include "cuda/product_call.h"

#include <algorithm>
#include <string>
#include <utility>

#include "cuda/check.h"
#include "cuda/pack.h"

namespace llama_ext::cuda {

void check_product(const char* operation, const ProductCall& call, int most_rows) {
    const Matrix& w = call.weight;
    require_range(operation, "rows", w.rows, 1, INT32_MAX);
    require_range(operation, "cols", w.cols, 1, INT32_MAX - 256);
    require_range(operation, "max_rows", call.max_rows, 1, most_rows);
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

std::vector<Argument> product_arguments(const ProductCall& call, Argument tiles, ProductArguments has) {
    const Planes at = planes(call.weight.format, call.weight.rows, call.weight.cols);
    const bool experts = call.experts.value != 0;
    std::vector<Argument> all{{"weight", call.weight.base},
                              {"experts", call.experts},
                              {"offset", experts ? call.offset : int64_t{0}},
                              {"high", at.high},
                              {"scales", at.scales},
                              {"supers", at.supers},
                              {"rows", static_cast<int32_t>(call.weight.rows)},
                              {"cols", static_cast<int32_t>(call.weight.cols)},
                              std::move(tiles),
                              {"step", call.step},
                              {"logits", int32_t{call.which == Rows::logits}},
                              {"x", call.x}};
    const auto add = [&all](std::vector<Argument> more) { std::move(more.begin(), more.end(), std::back_inserter(all)); };
    if (has.norm) add({{"norm", call.norm}, {"eps", call.eps}});
    add({{"epilogue", static_cast<int32_t>(call.epilogue)}, {"y", call.y}, {"y_stride", call.y_stride}});
    if (has.rotation)
        add({{"table", call.table}, {"rotated", static_cast<int32_t>(call.rotated)}, {"pairs", std::max(call.pairs, 1)}});
    add({{"group_count", call.groups.count},
         {"group_expert", call.groups.expert},
         {"group_first", call.groups.first},
         {"entry_row", call.groups.row},
         {"entry_score", call.groups.score},
         {"gathered", int32_t{experts && call.gathered}},
         {"scaled", int32_t{experts && call.scaled}}});
    return all;
}

}  // namespace llama_ext::cuda
