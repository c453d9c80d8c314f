#include "cuda/embed.h"

#include <string>

#include "cuda/check.h"

namespace llama_ext::cuda {

Plan embed(const EmbedCall& call) {
    const Matrix& table = call.table;
    require_range("embed", "the table's rows", table.rows, 1, INT32_MAX);
    require_range("embed", "the table's columns", table.cols, 1, INT32_MAX);
    require_range("embed", "max_rows", call.max_rows, 1, 1 << 20);
    require_range("embed", "rotation_count", call.rotation_count, 0, 1 << 16);
    require_address("embed", "table", table.base, 256);
    require_address("embed", "ids", call.ids, 4);
    require_address("embed", "step", call.step, 8);
    require_address("embed", "x", call.x, 4);
    if (call.rotation_count) require_address("embed", "rotations", call.rotations, 8);
    const Planes at = planes(table.format, table.rows, table.cols);
    const PlaneRows row = plane_rows(table.format, table.cols);
    return {{{"embed",
              {static_cast<uint32_t>(call.max_rows + call.rotation_count), 1, 1},
              {256, 1, 1},
              0,
              {{"table", table.base},
               {"format", static_cast<int32_t>(table.format)},
               {"cols", table.cols},
               {"high", at.high},
               {"scales", at.scales},
               {"supers", at.supers},
               {"quants_row", row.quants},
               {"high_row", row.high},
               {"scales_row", row.scales},
               {"supers_row", row.supers},
               {"ids", call.ids},
               {"step", call.step},
               {"x", call.x},
               {"max_rows", int32_t{call.max_rows}},
               {"rotations", call.rotations}},
              true}},
            {}};
}

}  // namespace llama_ext::cuda
