#include "cuda/rope.h"

#include <pybind11/pybind11.h>

#include "bindings/cuda/operands.h"

namespace py = pybind11;

namespace llama_ext {
namespace {

Plan rope(const Buffer& x, const Buffer& table, int64_t rows, int64_t stride, int heads, int pairs) {
    Operands operand("rope");
    const cuda::RopeCall call{operand("x", x, bytes_of({rows, stride}, sizeof(float))),
                              operand("table", table, bytes_of({rows, pairs}, 2 * sizeof(float))),
                              rows,
                              stride,
                              heads,
                              pairs};
    return operand.keep(cuda::rope(call));
}

}  // namespace

void bind_cuda_rope(py::module_& m) {
    m.def("rope", &rope, py::kw_only(), py::arg("x"), py::arg("table"), py::arg("rows"), py::arg("stride"), py::arg("heads"),
          py::arg("pairs"));
}

}  // namespace llama_ext
