#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/cuda/operands.h"
#include "cuda/moe_calls.h"

namespace py = pybind11;

namespace llama_ext {
namespace {

size_t values(const std::string& type, std::initializer_list<int64_t> shape) { return bytes_of(shape, type == "F32" ? 4 : 2); }

Plan moe_route(const std::string& type, int64_t rows, int experts, int top_k, const std::string& scoring, const Buffer& logits,
               const Buffer& chosen, const Buffer& scores) {
    Operands operand("moe_route");
    if (scoring != "softmax" && scoring != "sigmoid")
        throw std::invalid_argument("moe_route: scoring is '" + scoring + "', must be softmax or sigmoid");
    const cuda::MoeRouteCall call{format_from_name(type),
                                  rows,
                                  experts,
                                  top_k,
                                  scoring == "softmax" ? Scoring::softmax : Scoring::sigmoid,
                                  operand("logits", logits, values(type, {rows, experts})),
                                  operand("chosen", chosen, bytes_of({rows, top_k}, 8)),
                                  operand("scores", scores, bytes_of({rows, top_k}, 4))};
    return operand.keep(cuda::moe_route(call));
}

Plan moe_dispatch(const std::string& type, int64_t rows, int64_t top_k, int64_t hidden, int64_t num_experts, const Buffer& x,
                  const Buffer& experts, const std::optional<Buffer>& scores, const Buffer& gathered, const Buffer& offsets,
                  const Buffer& source) {
    Operands operand("moe_dispatch");
    const cuda::MoeDispatchCall call{format_from_name(type),
                                     rows,
                                     top_k,
                                     hidden,
                                     num_experts,
                                     operand("x", x, values(type, {rows, hidden})),
                                     operand("experts", experts, bytes_of({rows, top_k}, 8)),
                                     operand("scores", scores, bytes_of({rows, top_k}, 4)),
                                     operand("gathered", gathered, values(type, {rows, top_k, hidden})),
                                     operand("offsets", offsets, bytes_of({num_experts + 1}, 8)),
                                     operand("source", source, bytes_of({rows, top_k}, 8))};
    return operand.keep(cuda::moe_dispatch(call));
}

Plan moe_combine(const std::string& type, int64_t rows, int64_t top_k, int64_t hidden, const Buffer& y, const Buffer& source,
                 const std::optional<Buffer>& scores, const Buffer& place, const Buffer& out) {
    Operands operand("moe_combine");
    const cuda::MoeCombineCall call{format_from_name(type),
                                    rows,
                                    top_k,
                                    hidden,
                                    operand("y", y, values(type, {rows, top_k, hidden})),
                                    operand("source", source, bytes_of({rows, top_k}, 8)),
                                    operand("scores", scores, bytes_of({rows, top_k}, 4)),
                                    operand("place", place, bytes_of({rows, top_k}, 8)),
                                    operand("out", out, values(type, {rows, hidden}))};
    return operand.keep(cuda::moe_combine(call));
}

}  // namespace

void bind_cuda_moe(py::module_& m) {
    m.def("moe_route", &moe_route, py::kw_only(), py::arg("type"), py::arg("rows"), py::arg("experts"), py::arg("top_k"),
          py::arg("scoring"), py::arg("logits"), py::arg("chosen"), py::arg("scores"));
    m.def("moe_dispatch", &moe_dispatch, py::kw_only(), py::arg("type"), py::arg("rows"), py::arg("top_k"), py::arg("hidden"),
          py::arg("num_experts"), py::arg("x"), py::arg("experts"), py::arg("scores"), py::arg("gathered"), py::arg("offsets"),
          py::arg("source"));
    m.def("moe_combine", &moe_combine, py::kw_only(), py::arg("type"), py::arg("rows"), py::arg("top_k"), py::arg("hidden"),
          py::arg("y"), py::arg("source"), py::arg("scores"), py::arg("place"), py::arg("out"));
}

}  // namespace llama_ext
