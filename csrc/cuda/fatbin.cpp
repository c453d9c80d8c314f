#include "cuda/fatbin.h"

// The assembler takes the file in as it is; no megabytes of numbers pass through a compiler. LLAMA_EXT_FATBIN: its path, a
// string.
asm(".section .rodata\n"
    ".balign 16\n"
    ".globl llama_ext_fatbin\n"
    ".hidden llama_ext_fatbin\n"
    "llama_ext_fatbin:\n"
    ".incbin \"" LLAMA_EXT_FATBIN
    "\"\n"
    ".byte 0\n"
    ".text\n");

extern "C" __attribute__((visibility("hidden"))) const unsigned char llama_ext_fatbin[];

namespace llama_ext::cuda {

const void* fatbin() { return llama_ext_fatbin; }

}  // namespace llama_ext::cuda
