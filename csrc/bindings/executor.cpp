#include "cpu/executor.h"

#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "bindings/bindings.h"

namespace py = pybind11;

namespace llama_ext {
namespace {

using cpu::Cache;
using cpu::Executor;

using Ids = py::array_t<int32_t, py::array::c_style>;

std::shared_ptr<Executor> make_executor(const Program& program, int threads, const std::string& simd, bool poison,
                                        std::function<void(size_t, size_t)> progress, size_t resident_experts) {
    const py::gil_scoped_release release;
    const auto report = [&progress](size_t done, size_t total) {
        const py::gil_scoped_acquire gil;
        if (PyErr_CheckSignals()) throw py::error_already_set();  // Ctrl-C while loading
        if (progress) progress(done, total);
    };
    return std::make_shared<Executor>(
        program, Executor::Options{threads, simd.empty() ? nullptr : simd.c_str(), poison, resident_experts}, report);
}

py::array_t<float> run(Executor& executor, Cache& cache, const Ids& ids, int64_t logit_rows) {
    if (ids.ndim() != 1) throw std::invalid_argument("ids must have one dimension, has " + std::to_string(ids.ndim()));
    const int32_t* data = ids.data();
    const int64_t rows = ids.shape(0);
    if (rows > executor.program().max_rows || logit_rows < 0 || logit_rows > rows)
        throw std::invalid_argument("a step takes 1 to " + std::to_string(executor.program().max_rows) +
                                    " rows and logits of 0 to all of them; got " + std::to_string(rows) + " rows, logit_rows " +
                                    std::to_string(logit_rows));
    py::array_t<float> logits({logit_rows, executor.program().vocab});
    float* to = logits.mutable_data();
    const py::gil_scoped_release release;
    executor.run(cache, data, static_cast<int>(rows), logit_rows, to);
    return logits;
}

int32_t run_and_draw(Executor& executor, Cache& cache, const Ids& ids, const SamplingParams& params, const Ids& history) {
    if (ids.ndim() != 1 || history.ndim() != 1) throw std::invalid_argument("ids and history must have one dimension");
    const cpu::Draw draw{prepare(params), history.data(), static_cast<size_t>(history.size())};
    const int32_t* data = ids.data();
    const int64_t rows = std::min<int64_t>(ids.size(), INT32_MAX);
    int32_t id;
    {
        const py::gil_scoped_release release;
        id = executor.run_and_draw(cache, data, static_cast<int>(rows), draw);
    }
    raise_sampling_error(id, executor.program().vocab);
    return id;
}

// None where all weights are packed.
py::object residency(const Executor& executor) {
    const cpu::Residency* r = executor.residency();
    if (!r) return py::none();
    py::dict facts;
    facts["budget"] = r->budget();
    facts["resident"] = r->resident();
    facts["hits"] = r->hits();
    facts["misses"] = r->misses();
    return facts;
}

}  // namespace

void bind_executor(py::module_& m) {
    py::class_<Executor, std::shared_ptr<Executor>>(m, "Executor")
        .def(py::init(&make_executor), py::arg("program"), py::kw_only(), py::arg("threads"), py::arg("simd") = "",
             py::arg("poison") = false, py::arg("progress") = std::function<void(size_t, size_t)>(),
             py::arg("resident_experts") = 0)
        .def_static(
            "measure",
            [](const Program& program, int threads, bool experts_in_file) {
                const Executor::Memory m = Executor::measure(program, threads, experts_in_file);
                py::dict facts;
                facts["packed"] = m.packed;
                facts["kept"] = m.kept;
                facts["buffers"] = m.buffers;
                return facts;
            },
            py::arg("program"), py::kw_only(), py::arg("threads"), py::arg("experts_in_file") = false)
        .def_property_readonly("simd", &Executor::simd)
        .def_property_readonly("threads", &Executor::threads)
        .def_property_readonly("weight_bytes", &Executor::weight_bytes)
        .def_property_readonly("residency", &residency)
        .def("run", &run, py::arg("cache"), py::arg("ids").noconvert(), py::arg("logit_rows") = 0)
        .def("run_and_draw", &run_and_draw, py::arg("cache"), py::arg("ids").noconvert(), py::arg("params"),
             py::arg("history").noconvert())
        .def("read_seconds", &Executor::read_seconds, py::arg("bytes"), py::call_guard<py::gil_scoped_release>());
    py::class_<Cache>(m, "Cache")
        .def(py::init([](const Executor& executor, bool poison, int64_t start) {
                 return std::make_unique<Cache>(executor.program(), poison, start);
             }),
             py::arg("executor"), py::arg("poison") = false, py::kw_only(), py::arg("start") = 0, py::keep_alive<1, 2>())
        .def_property_readonly("start", &Cache::start)
        .def_property_readonly("position", &Cache::position)
        .def_property_readonly("max_rollback", &Cache::max_rollback)
        .def("rollback", &Cache::rollback, py::arg("n"), py::call_guard<py::gil_scoped_release>())
        .def("reset", &Cache::reset, py::call_guard<py::gil_scoped_release>())
        .def_property_readonly("bytes_used", &Cache::bytes_used)
        .def_property_readonly("bytes_reserved", &Cache::bytes_reserved);
    m.def("simd_levels", [] {
        py::list levels;
        for (const cpu::Kernels* const* level = cpu::available_kernels(); *level; ++level) levels.append((*level)->name);
        return levels;
    });
}

}  // namespace llama_ext
