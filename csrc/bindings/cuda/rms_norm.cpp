#include "cuda/rms_norm.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/cuda/operands.h"

namespace py = pybind11;

namespace llama_ext {
namespace {

Plan rms_norm(const Buffer& x, const std::optional<Buffer>& weight, const Buffer& y, int64_t rows, int64_t n, float eps) {
    Operands operand("rms_norm");
    const size_t all = bytes_of({rows, n}, sizeof(float));
    const cuda::RmsNormCall call{
        operand("x", x, all), operand("weight", weight, bytes_of({n}, sizeof(float))), operand("y", y, all), rows, n, eps};
    return operand.keep(cuda::rms_norm(call));
}

}  // namespace

void bind_cuda_rms_norm(py::module_& m) {
    m.def("rms_norm", &rms_norm, py::kw_only(), py::arg("x"), py::arg("weight"), py::arg("y"), py::arg("rows"), py::arg("n"),
          py::arg("eps"));
}

}  // namespace llama_ext
