#include "cpu/executor.h"

#include <string>

#include "bindings/stepping.h"

namespace llama_ext {
namespace {

using cpu::Cache;
using cpu::Executor;

std::shared_ptr<Executor> make_executor(const Program& program, int threads, const std::string& simd, bool poison,
                                        const PackingProgress& progress, size_t resident_experts, bool exact_prompt) {
    const py::gil_scoped_release release;
    return std::make_shared<Executor>(
        program, Executor::Options{threads, simd.empty() ? nullptr : simd.c_str(), poison, exact_prompt, resident_experts},
        interruptible(progress));
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
    py::class_<Executor, std::shared_ptr<Executor>> executor(m, "Executor");
    executor
        .def(py::init(&make_executor), py::arg("program"), py::kw_only(), py::arg("threads"), py::arg("simd") = "",
             py::arg("poison") = false, py::arg("progress") = PackingProgress(), py::arg("resident_experts") = 0,
             py::arg("exact_prompt") = false)
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
        .def("read_seconds", &Executor::read_seconds, py::arg("bytes"), py::call_guard<py::gil_scoped_release>());
    py::class_<Cache> cache(m, "Cache");
    cache.def(py::init([](const Executor& made_for, bool poison, int64_t start) {
                  return std::make_unique<Cache>(made_for.program(), poison, start);
              }),
              py::arg("executor"), py::arg("poison") = false, py::kw_only(), py::arg("start") = 0, py::keep_alive<1, 2>());
    bind_steps(executor, cache);
    m.def("simd_levels", [] {
        py::list levels;
        for (const cpu::Kernels* const* level = cpu::available_kernels(); *level; ++level) levels.append((*level)->name);
        return levels;
    });
}

}  // namespace llama_ext
