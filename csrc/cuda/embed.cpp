#include "cuda/embed.h"

#include "cuda/check.h"
#include "cuda/kernels/step.h"

namespace llama_ext::cuda {

Plan embed(const EmbedCall& call) {
    const Matrix& table = call.table;
    require_range("embed", "rows of the table", table.rows, 1, INT32_MAX);
    require_range("embed", "cols of the table", table.cols, 1, INT32_MAX);
    const int block = info(table.format).block;
    require(table.cols % block == 0, "embed", "cols of the table", std::to_string(table.cols),
            "a multiple of " + std::to_string(block) + ", a block of " + std::string(info(table.format).name));
    require_range("embed", "max_rows", call.max_rows, 1, 65535);
    require_range("embed", "rotation_count", call.rotation_count, 0, 1024);
    require_address("embed", "table", table.base, 256);
    require_address("embed", "ids", call.ids, 4);
    require_address("embed", "step", call.step, 8);
    require_address("embed", "x", call.x, table.cols % 4 == 0 ? 16 : 4);
    if (call.rotation_count) require_address("embed", "rotations", call.rotations, 8);

    constexpr uint32_t kThreads = 256;
    const Planes at = planes(table.format, table.rows, table.cols);
    const auto plane = [&](int64_t offset, int64_t end) {
        return Address{offset < end ? table.base.value + static_cast<uint64_t>(offset) : 0};
    };
    const int32_t column_blocks = static_cast<int32_t>((table.cols + 4 * kThreads - 1) / (4 * kThreads));
    return {{{"embed",
              {static_cast<uint32_t>(column_blocks + call.rotation_count), static_cast<uint32_t>(call.max_rows), 1},
              {kThreads, 1, 1},
              0,
              {{"format", static_cast<int32_t>(table.format)},
               {"quants", table.base},
               {"high", plane(at.high, at.scales)},
               {"scales", plane(at.scales, at.supers)},
               {"supers", plane(at.supers, at.bytes)},
               {"cols", table.cols},
               {"ids", call.ids},
               {"step", call.step},
               {"x", call.x},
               {"rotations", call.rotations},
               {"column_blocks", column_blocks}},
              true}},
            {}};
}

}  // namespace llama_ext::cuda
