// Python's view of sampling: parameters, one draw, and the generator behind it.
#include "program/sampling.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>

#include "bindings/bindings.h"
#include "cpu/kernels.h"
#include "cpu/sampler.h"
#include "program/philox.h"

namespace py = pybind11;

namespace llama_ext {

namespace {

[[noreturn]] void raise(const char* type, const std::string& message) {
    const py::object error = py::module_::import("llama_ext.errors").attr(type);
    PyErr_SetString(error.ptr(), message.c_str());
    throw py::error_already_set();
}

// A one-dimensional contiguous array of exactly T; nothing is converted, since a silent float64 would sample
// differently.
template <typename T>
py::array_t<T> vector_of(const py::object& object, const char* name, const char* dtype) {
    if (!py::isinstance<py::array_t<T, py::array::c_style>>(object)) {
        throw py::type_error(std::string(name) + " must be a C-contiguous numpy array of " + dtype);
    }
    auto array = py::reinterpret_borrow<py::array_t<T>>(object);
    if (array.ndim() != 1) {
        throw py::value_error(std::string(name) + " must have one dimension, not " + std::to_string(array.ndim()));
    }
    return array;
}

int32_t sample(const py::object& logits_object, const SamplingParams& params, const py::object& history_object, uint64_t position,
               uint64_t draw, std::optional<Sampler::Level> level) {
    const auto logits = vector_of<float>(logits_object, "logits", "float32");
    const auto history = vector_of<int32_t>(history_object, "history", "int32");
    if (logits.size() < 1 || logits.size() > static_cast<py::ssize_t>(kMaxVocab)) {
        throw py::value_error("logits must hold 1 to " + std::to_string(kMaxVocab) + " values, not " +
                              std::to_string(logits.size()));
    }
    const uint32_t vocab = static_cast<uint32_t>(logits.size());
    const SamplingConstants constants = prepare(params);
    static const Sampler::Level kDefault = Sampler::level(cpu::choose_kernels().name);
    int32_t id = 0;
    {
        static thread_local std::unique_ptr<Sampler> sampler;  // reused: its buffers are megabytes
        if (!sampler || sampler->capacity() < vocab) sampler = std::make_unique<Sampler>(vocab);
        sampler->use(level.value_or(kDefault));
        id =
            sampler->sample(logits.data(), vocab, history.data(), static_cast<size_t>(history.size()), constants, position, draw);
    }
    raise_sampling_error(id, vocab);
    return id;
}

}  // namespace

void raise_sampling_error(int32_t id, int64_t vocab) {
    if (id == kSampleNan) raise("LlamaExtError", "the model produced NaN logits, so there is no token to sample");
    if (id == kSampleBadHistory)
        throw py::value_error("history holds a token id outside the vocabulary of " + std::to_string(vocab));
}

void bind_sampling(py::module_& m) {
    py::class_<SamplingParams>(m, "SamplingParams", "Sampling parameters; see llama_ext.SamplingParams.")
        .def(
            py::init([](double temperature, int64_t top_k, double top_p, double min_p, double repetition_penalty, uint64_t seed) {
                const SamplingParams params{temperature, top_k, top_p, min_p, repetition_penalty, seed};
                if (const char* wrong = check(params)) raise("OptionError", wrong);
                return params;
            }),
            py::kw_only(), py::arg("temperature") = 1.0, py::arg("top_k") = 0, py::arg("top_p") = 1.0, py::arg("min_p") = 0.0,
            py::arg("repetition_penalty") = 1.0, py::arg("seed") = 0)
        .def_readonly("temperature", &SamplingParams::temperature)
        .def_readonly("top_k", &SamplingParams::top_k)
        .def_readonly("top_p", &SamplingParams::top_p)
        .def_readonly("min_p", &SamplingParams::min_p)
        .def_readonly("repetition_penalty", &SamplingParams::repetition_penalty)
        .def_readonly("seed", &SamplingParams::seed);
    py::enum_<Sampler::Level>(m, "SampleLevel", "The SIMD level that `sample` may use at most.")
        .value("portable", Sampler::Level::portable)
        .value("avx2", Sampler::Level::avx2)
        .value("avx512", Sampler::Level::avx512);
    m.def("sample", &sample, py::arg("logits"), py::arg("params"), py::arg("history"), py::arg("position"), py::arg("draw") = 0,
          py::kw_only(), py::arg("level") = py::none(),
          "Draws one token id from float32 logits [vocab]. history [n] int32 feeds the repetition penalty. "
          "Every level gives the same ids.");
    m.def(
        "philox",
        [](uint64_t seed, uint64_t position, uint64_t draw) {
            const Philox4 x = philox(seed, position, draw);
            return py::make_tuple(x.word[0], x.word[1], x.word[2], x.word[3]);
        },
        py::arg("seed"), py::arg("position"), py::arg("draw"),
        "Philox4x32-10 of key `seed` and counter (position, draw): four 32-bit words.");
    m.def(
        "sampling_weights",
        [](const py::array_t<float, py::array::c_style>& z) {
            py::array_t<uint64_t> out(z.size());
            for (py::ssize_t i = 0; i < z.size(); ++i) out.mutable_data()[i] = weight(z.data()[i]);
            return out;
        },
        py::arg("z"), "The integer weights floor(2^40 * exp(z)) of scaled logits z [n] <= 0; for tests.");
}

}  // namespace llama_ext
