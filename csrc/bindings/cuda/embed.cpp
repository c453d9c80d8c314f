#include "cuda/embed.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/cuda/operands.h"
#include "cuda/kernels/step.h"

namespace py = pybind11;

namespace llama_ext {
namespace {

Plan embed(const Buffer& table, const std::string& format, int64_t rows, int64_t cols, const Buffer& ids, const Buffer& step,
           const Buffer& x, int max_rows, const std::optional<Buffer>& rotations, int rotation_count) {
    Operands operand("embed");
    const Format f = format_from_name(format);
    const cuda::EmbedCall call{{f, rows, cols, operand("table", table, static_cast<size_t>(cuda::planes(f, rows, cols).bytes))},
                               operand("ids", ids, bytes_of({max_rows}, sizeof(int32_t))),
                               operand("step", step, sizeof(cuda::Step)),
                               operand("x", x, bytes_of({max_rows, cols}, sizeof(float))),
                               max_rows,
                               operand("rotations", rotations, bytes_of({rotation_count}, sizeof(cuda::Rotation))),
                               rotation_count};
    return operand.keep(cuda::embed(call));
}

}  // namespace

void bind_cuda_embed(py::module_& m) {
    m.def("embed", &embed, py::kw_only(), py::arg("table"), py::arg("format"), py::arg("rows"), py::arg("cols"), py::arg("ids"),
          py::arg("step"), py::arg("x"), py::arg("max_rows"), py::arg("rotations") = py::none(), py::arg("rotation_count") = 0);
}

}  // namespace llama_ext
