#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "bindings/cuda/operands.h"
#include "cuda/attention.h"
#include "cuda/kernels/step.h"

namespace py = pybind11;

namespace llama_ext {
namespace {

// out: null where the operation writes none.
cuda::AttentionCall prefill_call(Operands* operand, const Buffer& qkv, const Buffer& step, const Buffer& cache, const Buffer* out,
                                 int max_rows, int heads, int kv_heads, int head_dim, const std::string& format) {
    const bool sized = max_rows > 0 && heads > 0 && kv_heads > 0 && head_dim > 0;  // else the operation says what is wrong
    const int64_t width = sized ? heads + 2 * int64_t{kv_heads} : 0;
    cuda::AttentionCall call{};
    call.qkv = (*operand)("qkv", qkv, bytes_of({max_rows, width, head_dim}, sizeof(float)));
    call.step = (*operand)("step", step, sizeof(cuda::Step));
    call.cache = (*operand)("cache", cache, sizeof(cuda::CacheState));
    if (out) call.out = (*operand)("out", *out, bytes_of({max_rows, heads, head_dim}, sizeof(float)));
    call.max_rows = max_rows;
    call.heads = heads;
    call.kv_heads = kv_heads;
    call.head_dim = head_dim;
    call.format = cache_format(format);
    return call;
}

Plan attention_append(const Buffer& qkv, const Buffer& step, const Buffer& cache, int max_rows, int heads, int kv_heads,
                      int head_dim, const std::string& format, bool qk_norm, float qk_norm_eps) {
    Operands operand("attention_append");
    cuda::AttentionCall call = prefill_call(&operand, qkv, step, cache, nullptr, max_rows, heads, kv_heads, head_dim, format);
    call.qk_norm = qk_norm;
    call.qk_norm_eps = qk_norm_eps;
    return operand.keep(cuda::attention_append(call, operand.device().card()));
}

Plan attention_prefill(const Buffer& qkv, const Buffer& step, const Buffer& cache, const Buffer& out, int max_rows, int heads,
                       int kv_heads, int head_dim, const std::string& format, const Mask& mask, float scale, bool qk_norm,
                       float qk_norm_eps, float temperature_scale, int64_t temperature_floor) {
    Operands operand("attention_prefill");
    cuda::AttentionCall call = prefill_call(&operand, qkv, step, cache, &out, max_rows, heads, kv_heads, head_dim, format);
    call.mask = mask;
    call.scale = scale;
    call.qk_norm = qk_norm;
    call.qk_norm_eps = qk_norm_eps;
    call.temperature_scale = temperature_scale;
    call.temperature_floor = temperature_floor;
    return operand.keep(cuda::attention_prefill(call, operand.device().card()));
}

}  // namespace

void bind_cuda_attention_prefill(py::module_& m) {
    m.def("attention_append", &attention_append, py::kw_only(), py::arg("qkv"), py::arg("step"), py::arg("cache"),
          py::arg("max_rows"), py::arg("heads"), py::arg("kv_heads"), py::arg("head_dim"), py::arg("format"),
          py::arg("qk_norm") = false, py::arg("qk_norm_eps") = 0.0f);
    m.def("attention_prefill", &attention_prefill, py::kw_only(), py::arg("qkv"), py::arg("step"), py::arg("cache"),
          py::arg("out"), py::arg("max_rows"), py::arg("heads"), py::arg("kv_heads"), py::arg("head_dim"), py::arg("format"),
          py::arg("mask"), py::arg("scale"), py::arg("qk_norm") = false, py::arg("qk_norm_eps") = 0.0f,
          py::arg("temperature_scale") = 0.0f, py::arg("temperature_floor") = 0);
}

}  // namespace llama_ext
