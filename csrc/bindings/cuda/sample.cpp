#include "cuda/sample.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>

#include "bindings/cuda/operands.h"
#include "cuda/kernels/step.h"

namespace py = pybind11;

namespace llama_ext {
namespace {

Plan sample(const Buffer& logits, int64_t vocab, const Buffer& step, const Buffer& draw, const Buffer& scratch,
            const Buffer& id) {
    Operands operand("sample");
    const cuda::SampleCall call{operand("logits", logits, bytes_of({vocab}, sizeof(float))),
                                vocab,
                                operand("step", step, sizeof(cuda::Step)),
                                operand("draw", draw, sizeof(cuda::DrawState)),
                                operand("scratch", scratch, cuda::sample_scratch_bytes(vocab)),
                                operand("id", id, sizeof(int32_t))};
    return operand.keep(cuda::sample(call));
}

// The bytes of a DrawState.
py::array_t<uint8_t> draw_state(const SamplingParams& params, uint64_t draw, uint64_t history, uint32_t history_size,
                                bool wanted) {
    if (const char* wrong = check(params)) throw std::invalid_argument(wrong);
    const cuda::DrawState state{prepare(params), draw, history, history_size, wanted};
    py::array_t<uint8_t> bytes(sizeof state);
    std::memcpy(bytes.mutable_data(), &state, sizeof state);
    return bytes;
}

}  // namespace

void bind_cuda_sample(py::module_& m) {
    m.def("sample", &sample, py::kw_only(), py::arg("logits"), py::arg("vocab"), py::arg("step"), py::arg("draw"),
          py::arg("scratch"), py::arg("id"));
    m.def("sample_scratch_bytes", &cuda::sample_scratch_bytes, py::arg("vocab"));
    m.def("draw_state", &draw_state, py::arg("params"), py::kw_only(), py::arg("draw") = 0, py::arg("history") = 0,
          py::arg("history_size") = 0, py::arg("wanted") = true);
}

}  // namespace llama_ext
