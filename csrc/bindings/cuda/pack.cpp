#include "cuda/pack.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstring>

#include "bindings/cuda/operands.h"

namespace py = pybind11;

namespace llama_ext {
namespace {

// data: a checkpoint's bytes of [rows, cols] -> the bytes of a cuda::Matrix
py::array_t<uint8_t> pack(const std::string& format, int64_t rows, int64_t cols,
                          const py::array_t<uint8_t, py::array::c_style>& data) {
    const Format f = format_from_name(format);
    const int64_t bytes = cuda::planes(f, rows, cols).bytes;
    const size_t row = row_bytes(f, cols);
    if (static_cast<size_t>(data.nbytes()) != static_cast<size_t>(rows) * row)
        throw std::invalid_argument("pack: data has " + count(static_cast<size_t>(data.nbytes())) + ", its shape needs " +
                                    count(static_cast<size_t>(rows) * row));
    py::array_t<uint8_t> out(bytes);
    std::memset(out.mutable_data(), 0, static_cast<size_t>(bytes));
    for (int64_t i = 0; i < rows; ++i)
        cuda::pack_row(f, rows, cols, i, reinterpret_cast<const std::byte*>(data.data()) + static_cast<size_t>(i) * row,
                       reinterpret_cast<std::byte*>(out.mutable_data()));
    return out;
}

}  // namespace

void bind_cuda_pack(py::module_& m) {
    m.def("pack", &pack, py::kw_only(), py::arg("format"), py::arg("rows"), py::arg("cols"), py::arg("data"));
}

}  // namespace llama_ext
