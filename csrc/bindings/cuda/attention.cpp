#include "cuda/attention.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/cuda/operands.h"

namespace py = pybind11;

namespace llama_ext {
namespace {

cuda::CacheView cache_view(Operands* operand, const Buffer& keys, const Buffer& values, const CacheLayer& cache) {
    const size_t bytes = bytes_of({cache.kv_heads, cache.capacity, cache.head_dim}, cache_row_bytes(cache.format, 1));
    return {(*operand)("keys", keys, bytes),
            (*operand)("values", values, bytes),
            cache.kv_heads,
            cache.head_dim,
            cache.capacity,
            cache.format};
}

Plan attention_append(const Buffer& k, const Buffer& v, const Buffer& position, const Buffer& keys, const Buffer& values,
                      const CacheLayer& cache) {
    Operands operand("attention_append");
    const size_t row = bytes_of({cache.kv_heads, cache.head_dim}, sizeof(float));
    const cuda::AppendCall call{operand("k", k, row), operand("v", v, row), operand("position", position, sizeof(int64_t)),
                                cache_view(&operand, keys, values, cache)};
    return operand.keep(cuda::attention_append(call));
}

Plan attention(const Buffer& q, const Buffer& keys, const Buffer& values, const Buffer& position, const Buffer& scratch,
               const Buffer& out, const CacheLayer& cache, int heads, int splits, const Mask& mask, float scale) {
    Operands operand("attention");
    const size_t row = bytes_of({heads, cache.head_dim}, sizeof(float));
    const size_t partials = bytes_of({heads, splits, int64_t{cache.head_dim} + 2}, sizeof(float));
    const cuda::AttentionCall call{operand("q", q, row),
                                   operand("position", position, sizeof(int64_t)),
                                   cache_view(&operand, keys, values, cache),
                                   operand("out", out, row),
                                   operand("scratch", scratch, partials),
                                   heads,
                                   splits,
                                   mask,
                                   scale};
    return operand.keep(cuda::attention(call));
}

}  // namespace

void bind_cuda_attention(py::module_& m) {
    m.def("attention_append", &attention_append, py::kw_only(), py::arg("k"), py::arg("v"), py::arg("position"), py::arg("keys"),
          py::arg("values"), py::arg("cache"));
    m.def("attention", &attention, py::kw_only(), py::arg("q"), py::arg("keys"), py::arg("values"), py::arg("position"),
          py::arg("scratch"), py::arg("out"), py::arg("cache"), py::arg("heads"), py::arg("splits"), py::arg("mask"),
          py::arg("scale"));
    m.def("attention_scratch_bytes", &cuda::attention_scratch_bytes, py::kw_only(), py::arg("heads"), py::arg("head_dim"),
          py::arg("splits"));
}

}  // namespace llama_ext
