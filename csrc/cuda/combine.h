#pragma once

#include <cstdint>

#include "cuda/plan.h"

namespace llama_ext::cuda {

// x[r] += the sum of y[entry[r][i]] over i, in that order, in float32
struct CombineCall {
    Address y;      // float32 [max_rows * passes, hidden]
    Address entry;  // int32 [max_rows, passes]
    Address step;
    Address x;  // float32 [max_rows, hidden]
    int max_rows, passes;
    int64_t hidden;
};
Plan combine(const CombineCall& call);

}  // namespace llama_ext::cuda
