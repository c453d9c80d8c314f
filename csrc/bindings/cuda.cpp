// llama_ext._core.cuda: single operations on a CUDA device, as plans that run, print and capture.
#include <pybind11/pybind11.h>

#include "bindings/bindings.h"

#ifdef LLAMA_EXT_CUDA
#include "bindings/cuda/operands.h"
#endif

namespace py = pybind11;

namespace llama_ext {

void bind_cuda(py::module_& m) {
    py::module_ part = m.def_submodule("cuda", "Single operations on a CUDA device; only `built` and `about` without CUDA.");
    part.attr("about") = LLAMA_EXT_CUDA_ABOUT;
#ifdef LLAMA_EXT_CUDA
    part.attr("built") = true;
    bind_cuda_device(part);
    bind_cuda_pack(part);
    bind_cuda_rms_norm(part);
    bind_cuda_rope(part);
    bind_cuda_product(part);
    bind_cuda_attention(part);
    bind_cuda_route(part);
    bind_cuda_moe(part);
    bind_cuda_calls(part);
    bind_cuda_embed(part);
    bind_cuda_sample(part);
    bind_cuda_executor(part);
    bind_cuda_attention_prefill(part);
#else
    part.attr("built") = false;
#endif
}

}  // namespace llama_ext
