#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/cuda/operands.h"
#include "cuda/stream.h"

namespace py = pybind11;

namespace llama_ext {
namespace {

using cuda::Event;
using cuda::Executable;
using cuda::Graph;
using cuda::HostMemory;
using cuda::Module;
using cuda::Stream;

// Pinned memory of the host, as a buffer of the device and as an array.
struct HostBuffer : Buffer {
    std::byte* data() const { return static_cast<const HostMemory&>(*memory).data(); }
};

void check_same(const char* call, const Buffer& device, const Buffer& host) {
    if (device.bytes != host.bytes)
        throw std::invalid_argument(std::string(call) + ": " + count(host.bytes) + " of the host, " + count(device.bytes) +
                                    " of the device, must be as many");
}

void write(Stream& stream, const Buffer& to, const py::array& array) {
    if (!(array.flags() & py::array::c_style)) throw std::invalid_argument("write: the array must be C-contiguous");
    const size_t bytes = static_cast<size_t>(array.nbytes());
    if (bytes > to.bytes) throw std::invalid_argument("write: " + count(bytes) + " do not fit a buffer of " + count(to.bytes));
    const void* from = array.data();
    const py::gil_scoped_release release;
    stream.write(to.address(), from, bytes);
}

py::array_t<uint8_t> read(Stream& stream, const Buffer& from) {
    py::array_t<uint8_t> out(static_cast<py::ssize_t>(from.bytes));
    uint8_t* to = out.mutable_data();
    const py::gil_scoped_release release;
    stream.read(to, from.address(), from.bytes);
    return out;
}

Plan concatenate(const Plan& first, const Plan& second) {
    Plan all = first;
    all.launches.insert(all.launches.end(), second.launches.begin(), second.launches.end());
    all.owners.insert(all.owners.end(), second.owners.begin(), second.owners.end());
    return all;
}

}  // namespace

void bind_cuda_device(py::module_& m) {
    py::class_<Device, std::shared_ptr<Device>>(m, "Device")
        .def(py::init<int>(), py::arg("ordinal") = 0)
        .def_property_readonly("name", &Device::name)
        .def_property_readonly("compute_capability",
                               [](const Device& d) { return py::make_tuple(d.compute_major(), d.compute_minor()); })
        .def_property_readonly("multiprocessors", &Device::multiprocessors)
        .def_property_readonly("shared_bytes", &Device::shared_bytes)
        .def_property_readonly("memory_bytes", &Device::memory_bytes)
        .def_property_readonly("free_bytes", &Device::free_bytes);
    py::class_<Buffer>(m, "Buffer")
        .def(py::init([](std::shared_ptr<Device> device, size_t bytes) {
                 return Buffer{std::make_shared<cuda::Memory>(std::move(device), bytes), 0, bytes};
             }),
             py::arg("device"), py::arg("nbytes"))
        .def_property_readonly("address", [](const Buffer& b) { return b.address().value; })
        .def_readonly("nbytes", &Buffer::bytes)
        .def(
            "part",
            [](const Buffer& b, size_t offset, size_t bytes) {
                if (offset > b.bytes || bytes > b.bytes - offset)
                    throw std::invalid_argument("part: " + count(bytes) + " from " + std::to_string(offset) +
                                                " on do not lie in a buffer of " + count(b.bytes));
                return Buffer{b.memory, b.offset + offset, bytes};
            },
            py::arg("offset"), py::arg("nbytes"));
    py::class_<HostBuffer, Buffer>(m, "HostBuffer")
        .def(py::init([](std::shared_ptr<Device> device, size_t bytes) {
                 return HostBuffer{{std::make_shared<HostMemory>(std::move(device), bytes), 0, bytes}};
             }),
             py::arg("device"), py::arg("nbytes"))
        .def_property_readonly("array", [](const py::object& self) {
            const auto& b = self.cast<const HostBuffer&>();
            return py::array_t<uint8_t>(static_cast<py::ssize_t>(b.bytes), reinterpret_cast<uint8_t*>(b.data()), self);
        });
    py::class_<Event>(m, "Event")
        .def(py::init([](std::shared_ptr<Device> device) { return std::make_unique<Event>(std::move(device)); }),
             py::arg("device"))
        .def("milliseconds_since", &Event::milliseconds_since, py::arg("earlier"), py::call_guard<py::gil_scoped_release>());
    py::class_<Module, std::shared_ptr<Module>>(m, "Module")
        .def(py::init([](std::shared_ptr<Device> device, const std::optional<std::string>& image) {
                 return image ? std::make_shared<Module>(std::move(device), image->c_str())
                              : std::make_shared<Module>(std::move(device));
             }),
             py::arg("device"), py::arg("image") = py::none());
    py::class_<Plan>(m, "Plan")
        .def("__add__", &concatenate, py::is_operator())
        .def("__str__", [](const Plan& plan) { return to_string(plan); })
        .def_property_readonly("kernels",
                               [](const Plan& plan) {
                                   std::vector<std::string> names;
                                   for (const cuda::Launch& launch : plan.launches) names.push_back(launch.kernel);
                                   return names;
                               })
        .def_property_readonly("labels",
                               [](const Plan& plan) {
                                   std::vector<std::string> labels;
                                   for (const cuda::Launch& launch : plan.launches) labels.push_back(launch.label);
                                   return labels;
                               })
        .def(
            "repeated",
            [](const Plan& plan, size_t launch, size_t times) {
                if (launch >= plan.launches.size())
                    throw std::invalid_argument("repeated: launch is " + std::to_string(launch) + ", must be less than " +
                                                std::to_string(plan.launches.size()));
                return Plan{std::vector<cuda::Launch>(times, plan.launches[launch]), plan.owners};
            },
            py::arg("launch"), py::arg("times"));
    py::class_<Executable, std::shared_ptr<Executable>>(m, "Executable")
        .def(py::init([](std::shared_ptr<Module> module, const Plan& plan) {
                 return std::make_shared<Executable>(std::move(module), plan);
             }),
             py::arg("module"), py::arg("plan"));
    py::class_<Graph>(m, "Graph");
    py::class_<Stream>(m, "Stream")
        .def(py::init([](std::shared_ptr<Device> device, std::optional<uintptr_t> foreign) {
                 if (!foreign) return std::make_unique<Stream>(std::move(device));
                 return std::make_unique<Stream>(std::move(device), reinterpret_cast<CUstream>(*foreign));
             }),
             py::arg("device"), py::arg("foreign") = py::none())
        .def("write", &write, py::arg("buffer"), py::arg("array"))
        .def("read", &read, py::arg("buffer"))
        .def(
            "write_async",
            [](Stream& stream, const Buffer& to, const HostBuffer& from) {
                check_same("write_async", to, from);
                stream.write_async(to.address(), from.data(), to.bytes);
            },
            py::arg("buffer"), py::arg("host"))
        .def(
            "read_async",
            [](Stream& stream, const HostBuffer& to, const Buffer& from) {
                check_same("read_async", from, to);
                stream.read_async(to.data(), from.address(), from.bytes);
            },
            py::arg("host"), py::arg("buffer"))
        .def(
            "copy",
            [](Stream& stream, const Buffer& to, const Buffer& from) {
                if (to.bytes != from.bytes)
                    throw std::invalid_argument("copy: " + count(from.bytes) + " to " + count(to.bytes) + ", must be as many");
                stream.copy(to.address(), from.address(), to.bytes);
            },
            py::arg("to"), py::arg("source"))
        .def(
            "fill", [](Stream& stream, const Buffer& buffer, uint8_t byte) { stream.fill(buffer.address(), byte, buffer.bytes); },
            py::arg("buffer"), py::arg("byte"), py::call_guard<py::gil_scoped_release>())
        .def("run", py::overload_cast<const Executable&>(&Stream::run), py::arg("executable"),
             py::call_guard<py::gil_scoped_release>())
        .def("run", py::overload_cast<const Graph&>(&Stream::run), py::arg("graph"), py::call_guard<py::gil_scoped_release>())
        .def(
            "capture",
            [](Stream& stream, std::shared_ptr<Executable> executable) { return stream.capture(std::move(executable)); },
            py::arg("work"), py::call_guard<py::gil_scoped_release>())
        .def(
            "capture", [](Stream& stream, const std::function<void()>& work) { return stream.capture(work); }, py::arg("work"))
        .def("record", &Stream::record, py::arg("event"))
        .def("synchronize", &Stream::synchronize, py::call_guard<py::gil_scoped_release>());
}

}  // namespace llama_ext
