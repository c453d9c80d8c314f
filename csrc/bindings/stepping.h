// What the executors' bindings have in common: steps, and the caches that they are taken on.
#pragma once

#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>

#include "bindings/bindings.h"
#include "program/draw.h"

namespace llama_ext {

namespace py = pybind11;

using Ids = py::array_t<int32_t, py::array::c_style>;
using PackingProgress = std::function<void(size_t, size_t)>;

// Of an executor that is being made with the GIL released; Ctrl-C ends it.
inline PackingProgress interruptible(const PackingProgress& progress) {
    return [&progress](size_t done, size_t total) {
        const py::gil_scoped_acquire gil;
        if (PyErr_CheckSignals()) throw py::error_already_set();
        if (progress) progress(done, total);
    };
}

template <typename Executor, typename Cache>
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

template <typename Executor, typename Cache>
int32_t run_and_draw(Executor& executor, Cache& cache, const Ids& ids, const SamplingParams& params, const Ids& history) {
    if (ids.ndim() != 1 || history.ndim() != 1) throw std::invalid_argument("ids and history must have one dimension");
    const Draw draw{prepare(params), history.data(), static_cast<size_t>(history.size())};
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

template <typename Executor, typename Cache>
std::unique_ptr<Cache> make_cache(Executor& executor, bool poison, int64_t start) {
    const py::gil_scoped_release release;
    return executor.make_cache(poison, start);
}

// run and run_and_draw of an executor; position, rollback and the like of its cache
template <typename Executor, typename Cache>
void bind_steps(py::class_<Executor, std::shared_ptr<Executor>>& executor, py::class_<Cache>& cache) {
    executor.def("run", &run<Executor, Cache>, py::arg("cache"), py::arg("ids").noconvert(), py::arg("logit_rows") = 0)
        .def("run_and_draw", &run_and_draw<Executor, Cache>, py::arg("cache"), py::arg("ids").noconvert(), py::arg("params"),
             py::arg("history").noconvert())
        .def("make_cache", &make_cache<Executor, Cache>, py::arg("poison") = false, py::kw_only(), py::arg("start") = 0,
             py::keep_alive<0, 1>());
    cache.def_property_readonly("start", &Cache::start)
        .def_property_readonly("position", &Cache::position)
        .def_property_readonly("max_rollback", &Cache::max_rollback)
        .def("rollback", &Cache::rollback, py::arg("n"), py::call_guard<py::gil_scoped_release>())
        .def("reset", &Cache::reset, py::call_guard<py::gil_scoped_release>())
        .def_property_readonly("bytes_used", &Cache::bytes_used)
        .def_property_readonly("bytes_reserved", &Cache::bytes_reserved);
}

}  // namespace llama_ext
