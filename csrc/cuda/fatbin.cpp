#include "cuda/fatbin.h"

// LLAMA_EXT_FATBINS: a list of LLAMA_EXT_FATBIN(name, "path"), which the build writes. The assembler takes each file in as it is;
// no megabytes of numbers pass through a compiler.
#define LLAMA_EXT_FATBIN(name, path)      \
    asm(".section .rodata\n"              \
        ".balign 16\n"                    \
        ".globl llama_ext_fatbin_" #name  \
        "\n"                              \
        ".hidden llama_ext_fatbin_" #name \
        "\n"                              \
        "llama_ext_fatbin_" #name         \
        ":\n"                             \
        ".incbin \"" path                 \
        "\"\n"                            \
        ".byte 0\n"                       \
        ".text\n");                       \
    extern "C" __attribute__((visibility("hidden"))) const unsigned char llama_ext_fatbin_##name[];
#include LLAMA_EXT_FATBINS
#undef LLAMA_EXT_FATBIN

namespace llama_ext::cuda {
namespace {

#define LLAMA_EXT_FATBIN(name, path) {#name, llama_ext_fatbin_##name},
constexpr Fatbin kFatbins[] = {
#include LLAMA_EXT_FATBINS
};
#undef LLAMA_EXT_FATBIN

}  // namespace

std::span<const Fatbin> fatbins() { return kFatbins; }

}  // namespace llama_ext::cuda
