#include "cuda/rope.h"

#include <algorithm>

#include "cuda/check.h"

namespace llama_ext::cuda {

Plan rope(const RopeCall& call) {
    constexpr int kMost = 1 << 20;
    require_range("rope", "rows", call.rows, 1, INT32_MAX);
    require_range("rope", "heads", call.heads, 1, kMost);
    require_range("rope", "pairs", call.pairs, 1, kMost);
    const int64_t pairs = int64_t{call.heads} * call.pairs;
    require_range("rope", "heads * pairs", pairs, 1, 8 * kMost);
    require_range("rope", "stride", call.stride, 2 * pairs, INT32_MAX);
    require_address("rope", "x", call.x, 4);
    require_address("rope", "table", call.table, 8);

    const bool pieces_of_16 = call.pairs % 2 == 0 && call.stride % 4 == 0 && aligned(call.x, 16) && aligned(call.table, 16);
    const int32_t pieces = pieces_of_16 ? call.pairs / 2 : call.pairs;
    const int64_t of_row = int64_t{call.heads} * pieces;
    const uint32_t threads = static_cast<uint32_t>(std::min<int64_t>((of_row + 31) / 32 * 32, 256));
    return {{{pieces_of_16 ? "rope" : "rope_unaligned",
              {static_cast<uint32_t>(call.rows), static_cast<uint32_t>((of_row + threads - 1) / threads), 1},
              {threads, 1, 1},
              0,
              {{"x", call.x},
               {"table", call.table},
               {"stride", pieces_of_16 ? call.stride / 4 : call.stride},
               {"heads", int32_t{call.heads}},
               {pieces_of_16 ? "pieces" : "pairs", pieces}},
              true}},
            {}};
}

}  // namespace llama_ext::cuda
