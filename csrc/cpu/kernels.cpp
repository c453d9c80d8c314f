#include "cpu/kernels.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace llama_ext::cpu {

#ifdef LLAMA_EXT_X86
namespace avx512_bf16 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
namespace avx2 {
extern const Kernels kKernels;
}
#endif
namespace portable {
extern const Kernels kKernels;
}

const Kernels* const* available_kernels() {
    static const Kernels* available[5] = {};
    static const bool filled = [] {
        const Kernels** next = available;
#ifdef LLAMA_EXT_X86
        __builtin_cpu_init();
        const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
        const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                            __builtin_cpu_supports("avx512vnni");
        if (avx512 && __builtin_cpu_supports("avx512bf16")) *next++ = &avx512_bf16::kKernels;
        if (avx512) *next++ = &avx512::kKernels;
        if (avx2) *next++ = &avx2::kKernels;
#endif
        *next++ = &portable::kKernels;
        return true;
    }();
    (void)filled;
    return available;
}

const Kernels& choose_kernels(const char* name) {
    const char* origin = "simd";
    if (!name || !*name) {
        name = std::getenv("LLAMA_EXT_SIMD");
        origin = "LLAMA_EXT_SIMD";
    }
    if (!name || !*name) return *available_kernels()[0];
    std::string names;
    for (const Kernels* const* level = available_kernels(); *level; ++level) {
        if (std::string((*level)->name) == name) return **level;
        names += (names.empty() ? "" : ", ") + std::string((*level)->name);
    }
    throw std::invalid_argument(std::string(origin) + "='" + name +
                                "' is no SIMD level that this build and machine have; use one of " + names);
}

}  // namespace llama_ext::cpu
