// llama_ext._core: the decode program, its CPU executor, the sampler, and CUDA. Knows no torch.
#include "bindings/bindings.h"
#include "cpu/kernels.h"

PYBIND11_MODULE(_core, m) {
    m.doc() = "The compiled part of llama_ext: programs, executors, sampling.";
    m.attr("version") = LLAMA_EXT_VERSION;
    m.attr("build") = LLAMA_EXT_BUILD;
    llama_ext::bind_program(m);
    llama_ext::bind_executor(m);
    llama_ext::bind_kernels(m);
    llama_ext::bind_quantize(m);
    llama_ext::bind_sampling(m);
    llama_ext::bind_cuda(m);
}
