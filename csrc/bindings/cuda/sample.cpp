#include "cuda/sample.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstring>

#include "bindings/cuda/operands.h"
#include "cuda/kernels/step.h"

namespace py = pybind11;

namespace llama_ext {
namespace {

Plan sample(const Buffer& logits, int64_t vocab, const Buffer& step, const Buffer& draw, const Buffer& scratch,
            const Buffer& id) {
    Operands operand("sample");
    const bool whole = vocab >= 1 && vocab <= cuda::kSampleMaxVocab;
    const cuda::SampleCall call{operand("logits", logits, bytes_of({vocab}, sizeof(float))),
                                vocab,
                                operand("step", step, sizeof(cuda::Step)),
                                operand("draw", draw, sizeof(cuda::DrawState)),
                                operand("scratch", scratch, whole ? cuda::sample_scratch_bytes(vocab) : 0),
                                operand("id", id, sizeof(int32_t))};
    const Device& device = operand.device();
    return operand.keep(cuda::sample(call, {device.multiprocessors(), device.shared_bytes(), device.shared_bytes_each()}));
}

// The bytes of a DrawState. The history is the caller's to keep.
py::array_t<uint8_t> draw_state(const SamplingParams& params, uint64_t draw, const std::optional<Buffer>& history, bool wanted) {
    const cuda::DrawState state{prepare(params), draw, history ? history->address().value : 0,
                                history ? static_cast<uint32_t>(history->bytes / sizeof(int32_t)) : 0, wanted};
    py::array_t<uint8_t> out(sizeof state);
    std::memcpy(out.mutable_data(), &state, sizeof state);
    return out;
}

}  // namespace

void bind_cuda_sample(py::module_& m) {
    m.def("sample", &sample, py::kw_only(), py::arg("logits"), py::arg("vocab"), py::arg("step"), py::arg("draw"),
          py::arg("scratch"), py::arg("id"));
    m.def("sample_scratch_bytes", &cuda::sample_scratch_bytes, py::kw_only(), py::arg("vocab"));
    m.attr("sample_state_bytes") = offsetof(cuda::SampleState, ticket) + sizeof(uint32_t);
    m.def("draw_state", &draw_state, py::kw_only(), py::arg("params"), py::arg("draw") = 0, py::arg("history") = py::none(),
          py::arg("wanted") = true);
}

}  // namespace llama_ext
