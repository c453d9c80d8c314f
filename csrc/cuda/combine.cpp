#include "cuda/combine.h"

#include "cuda/check.h"

namespace llama_ext::cuda {

Plan combine(const CombineCall& call) {
    constexpr uint32_t kThreads = 128;
    require_range("combine", "max_rows", call.max_rows, 1, UINT16_MAX);
    require_range("combine", "passes", call.passes, 1, INT32_MAX);
    require_range("combine", "hidden", call.hidden, 1, INT32_MAX);
    require_address("combine", "y", call.y, 4);
    require_address("combine", "entry", call.entry, 4);
    require_address("combine", "step", call.step, 8);
    require_address("combine", "x", call.x, 4);

    const bool pieces_of_16 = call.hidden % 4 == 0 && aligned(call.y, 16) && aligned(call.x, 16);
    const int64_t pieces = pieces_of_16 ? call.hidden / 4 : call.hidden;
    return {{{pieces_of_16 ? "combine" : "combine_unaligned",
              {static_cast<uint32_t>((pieces + kThreads - 1) / kThreads), static_cast<uint32_t>(call.max_rows), 1},
              {kThreads, 1, 1},
              0,
              {{"y", call.y},
               {"entry", call.entry},
               {"step", call.step},
               {"x", call.x},
               {"passes", int32_t{call.passes}},
               {"hidden", call.hidden}},
              true}},
            {}};
}

}  // namespace llama_ext::cuda
