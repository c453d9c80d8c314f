#include "cuda/executor.h"

#include "bindings/cuda/operands.h"
#include "bindings/stepping.h"

namespace llama_ext {
namespace {

using cuda::Cache;
using cuda::Executor;

std::shared_ptr<Executor> make_executor(const Program& program, int ordinal, int threads, bool poison, bool graphs,
                                        size_t memory_limit, const PackingProgress& progress,
                                        const std::optional<std::string>& image) {
    const py::gil_scoped_release release;
    return std::make_shared<Executor>(
        program, Executor::Options{ordinal, threads, poison, graphs, memory_limit, image ? image->c_str() : nullptr},
        interruptible(progress));
}

}  // namespace

void bind_cuda_executor(py::module_& m) {
    py::class_<Executor, std::shared_ptr<Executor>> executor(m, "Executor");
    executor
        .def(py::init(&make_executor), py::arg("program"), py::kw_only(), py::arg("ordinal") = 0, py::arg("threads") = 1,
             py::arg("poison") = false, py::arg("graphs") = true, py::arg("memory_limit") = 0,
             py::arg("progress") = PackingProgress(), py::arg("image") = py::none())
        .def_property_readonly("device", &Executor::device, py::return_value_policy::reference_internal)
        .def_property_readonly("weight_bytes", &Executor::weight_bytes)
        .def_property_readonly("host_bytes", &Executor::host_bytes)
        .def_property_readonly("captures", &Executor::captures)
        .def_property_readonly("residency",
                               [](Executor& self) -> py::object {
                                   if (!self.host_bytes()) return py::none();
                                   const Executor::Residency r = self.residency();
                                   py::dict facts;
                                   facts["budget"] = r.budget;
                                   facts["resident"] = r.resident;
                                   facts["hits"] = r.hits;
                                   facts["misses"] = r.misses;
                                   return facts;
                               })
        .def("read_seconds", &Executor::read_seconds, py::arg("bytes"), py::call_guard<py::gil_scoped_release>())
        .def("plan", &Executor::plan, py::arg("rows") = 1);
    py::class_<Cache> cache(m, "Cache");
    bind_steps(executor, cache);
}

}  // namespace llama_ext
