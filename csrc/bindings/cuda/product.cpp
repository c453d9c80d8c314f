#include "cuda/product.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/cuda/operands.h"

namespace py = pybind11;

namespace llama_ext {
namespace {

Plan product(const Buffer& weight, const Buffer& x, const std::optional<Buffer>& residual, const Buffer& y, int64_t rows,
             int64_t cols) {
    Operands operand("product");
    const size_t out = bytes_of({rows}, sizeof(float));
    const cuda::ProductCall call{operand("weight", weight, bytes_of({rows, cols}, 2)),
                                 operand("x", x, bytes_of({cols}, sizeof(float))),
                                 operand("residual", residual, out),
                                 operand("y", y, out),
                                 rows,
                                 cols};
    return operand.keep(cuda::product(call, operand.device().multiprocessors(), operand.device().shared_bytes_each()));
}

}  // namespace

void bind_cuda_product(py::module_& m) {
    m.def("product", &product, py::kw_only(), py::arg("weight"), py::arg("x"), py::arg("residual") = py::none(), py::arg("y"),
          py::arg("rows"), py::arg("cols"));
}

}  // namespace llama_ext
