#include "cuda/attention.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "bindings/cuda/operands.h"
#include "cuda/kernels/step.h"

namespace py = pybind11;

namespace llama_ext {
namespace {

Plan attention(const Buffer& qkv, const Buffer& step, const Buffer& cache, const Buffer& out, const Buffer& scratch, int max_rows,
               int heads, int kv_heads, int head_dim, const std::string& format, const Mask& mask, float scale, bool qk_norm,
               float qk_norm_eps, float temperature_scale, int64_t temperature_floor, int splits) {
    Operands operand("attention");
    const bool sized =
        max_rows > 0 && heads > 0 && kv_heads > 0 && head_dim > 0 && splits > 0;  // else attention() says what is wrong
    const int64_t row = sized ? heads + 2 * int64_t{kv_heads} : 0;
    const cuda::AttentionCall call{
        operand("qkv", qkv, bytes_of({max_rows, row, head_dim}, sizeof(float))),
        operand("step", step, sizeof(cuda::Step)),
        operand("cache", cache, sizeof(cuda::CacheState)),
        operand("out", out, bytes_of({max_rows, heads, head_dim}, sizeof(float))),
        operand("scratch", scratch, sized ? cuda::attention_scratch_bytes(max_rows, heads, head_dim, splits) : 0),
        max_rows,
        heads,
        kv_heads,
        head_dim,
        cache_format(format),
        mask,
        scale,
        qk_norm,
        qk_norm_eps,
        temperature_scale,
        temperature_floor,
        splits};
    return operand.keep(cuda::attention(call, operand.device().card()));
}

}  // namespace

void bind_cuda_attention(py::module_& m) {
    m.def("attention", &attention, py::kw_only(), py::arg("qkv"), py::arg("step"), py::arg("cache"), py::arg("out"),
          py::arg("scratch"), py::arg("max_rows"), py::arg("heads"), py::arg("kv_heads"), py::arg("head_dim"), py::arg("format"),
          py::arg("mask"), py::arg("scale"), py::arg("qk_norm") = false, py::arg("qk_norm_eps") = 0.0f,
          py::arg("temperature_scale") = 0.0f, py::arg("temperature_floor") = 0, py::arg("splits"));
    m.def("attention_scratch_bytes", &cuda::attention_scratch_bytes, py::kw_only(), py::arg("max_rows"), py::arg("heads"),
          py::arg("head_dim"), py::arg("splits"));
}

}  // namespace llama_ext
