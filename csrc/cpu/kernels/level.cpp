#include "cpu/kernels/level.h"

#define LLAMA_EXT_STRING_OF(x) #x
#define LLAMA_EXT_STRING(x) LLAMA_EXT_STRING_OF(x)

namespace llama_ext::cpu::LLAMA_EXT_LEVEL {

const Kernels kKernels = {
    LLAMA_EXT_STRING(LLAMA_EXT_LEVEL),
    kProducts,
    kBf16Product,
    rms_norm,
    quantize_q15,

    round_bf16,
    silu_times,
    rotate,
    sum_lines,
    append,
    attend,
    merge,
};

}  // namespace llama_ext::cpu::LLAMA_EXT_LEVEL
