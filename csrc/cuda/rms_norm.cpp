#include "cuda/rms_norm.h"

#include <algorithm>

#include "cuda/check.h"

namespace llama_ext::cuda {

Plan rms_norm(const RmsNormCall& call) {
    require_range("rms_norm", "rows", call.rows, 1, INT32_MAX);
    require_range("rms_norm", "n", call.n, 1, INT32_MAX);
    require(call.eps >= 0.0f, "rms_norm", "eps", std::to_string(call.eps), "0 or more");
    require_address("rms_norm", "x", call.x, 4);
    require_address("rms_norm", "y", call.y, 4);
    require(aligned(call.weight, 4), "rms_norm", "weight", "not aligned", "on 4 bytes");

    const bool pieces_of_16 = call.n % 4 == 0 && aligned(call.x, 16) && aligned(call.y, 16) && aligned(call.weight, 16);
    const int64_t pieces = pieces_of_16 ? call.n / 4 : call.n;
    const uint32_t threads = static_cast<uint32_t>(std::min<int64_t>((pieces + 31) / 32 * 32, 1024));
    return {{{pieces_of_16 ? "rms_norm" : "rms_norm_unaligned",
              {static_cast<uint32_t>(call.rows), 1, 1},
              {threads, 1, 1},
              0,
              {{"x", call.x}, {"weight", call.weight}, {"y", call.y}, {"n", call.n}, {"eps", call.eps}},
              true}},
            {}};
}

}  // namespace llama_ext::cuda
