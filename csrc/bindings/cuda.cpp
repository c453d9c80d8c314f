// llama_ext._core.cuda: single operations on a CUDA device, as plans that run, print and capture.
#include <pybind11/pybind11.h>

#include "bindings/bindings.h"

#ifdef LLAMA_EXT_CUDA
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "cuda/attention.h"
#include "cuda/device.h"
#include "cuda/plan.h"
#include "cuda/product.h"
#include "cuda/rms_norm.h"
#include "cuda/stream.h"
#endif

namespace py = pybind11;

namespace llama_ext {

#ifdef LLAMA_EXT_CUDA
namespace {

using cuda::Address;
using cuda::Device;
using cuda::Executable;
using cuda::Graph;
using cuda::Module;
using cuda::Plan;
using cuda::Stream;

// Device memory, or a part of it.
struct Buffer {
    std::shared_ptr<const cuda::Memory> memory;
    size_t offset, bytes;

    Address address() const { return {memory->address() + offset}; }
};

std::string count(size_t bytes) { return std::to_string(bytes) + " bytes"; }

// The operands of one call: each must be as large as its shape says, all on one device. What they lie in outlives the plan.
class Operands {
public:
    explicit Operands(const char* operation) : operation_(operation) {}

    Address operator()(const char* argument, const Buffer& buffer, size_t bytes) {
        const std::string what = std::string(operation_) + ": " + argument;
        if (buffer.bytes < bytes)
            throw std::invalid_argument(what + " has " + count(buffer.bytes) + ", its shape needs " + count(bytes));
        if (device_ && buffer.memory->device().context() != device_->context())
            throw std::invalid_argument(what + " lies on another device than the operands before it");
        device_ = &buffer.memory->device();
        owners_.push_back(buffer.memory);
        return buffer.address();
    }
    Address operator()(const char* argument, const std::optional<Buffer>& buffer, size_t bytes) {
        return buffer ? (*this)(argument, *buffer, bytes) : Address{};
    }

    const Device& device() const { return *device_; }
    Plan keep(Plan plan) {
        plan.owners = std::move(owners_);
        return plan;
    }

private:
    const char* operation_;
    const Device* device_ = nullptr;
    std::vector<std::shared_ptr<const void>> owners_;
};

// Bytes of a shape. A negative or absurd size counts as nothing here: the operation's own check names it.
size_t bytes_of(std::initializer_list<int64_t> shape, size_t element_bytes) {
    size_t bytes = element_bytes;
    for (const int64_t size : shape) {
        if (size < 0 || size > INT32_MAX || __builtin_mul_overflow(bytes, static_cast<size_t>(size), &bytes)) return 0;
    }
    return bytes;
}

Plan rms_norm(const Buffer& x, const std::optional<Buffer>& weight, const Buffer& y, int64_t rows, int64_t n, float eps) {
    Operands operand("rms_norm");
    const size_t all = bytes_of({rows, n}, sizeof(float));
    const cuda::RmsNormCall call{
        operand("x", x, all), operand("weight", weight, bytes_of({n}, sizeof(float))), operand("y", y, all), rows, n, eps};
    return operand.keep(cuda::rms_norm(call));
}

Plan product(const Buffer& weight, const Buffer& x, const std::optional<Buffer>& residual, const Buffer& y, int64_t rows,
             int64_t cols) {
    Operands operand("product");
    const size_t out = bytes_of({rows}, sizeof(float));
    const cuda::ProductCall call{operand("weight", weight, bytes_of({rows, cols}, 2)),
                                 operand("x", x, bytes_of({cols}, sizeof(float))),
                                 operand("residual", residual, out),
                                 operand("y", y, out),
                                 rows,
                                 cols};
    return operand.keep(cuda::product(call, operand.device().multiprocessors(), operand.device().shared_bytes_each()));
}

cuda::CacheView cache_view(Operands* operand, const Buffer& keys, const Buffer& values, const CacheLayer& cache) {
    const size_t bytes = bytes_of({cache.kv_heads, cache.capacity, cache.head_dim}, cache_row_bytes(cache.format, 1));
    return {(*operand)("keys", keys, bytes),
            (*operand)("values", values, bytes),
            cache.kv_heads,
            cache.head_dim,
            cache.capacity,
            cache.format};
}

Plan attention_append(const Buffer& k, const Buffer& v, const Buffer& position, const Buffer& keys, const Buffer& values,
                      const CacheLayer& cache) {
    Operands operand("attention_append");
    const size_t row = bytes_of({cache.kv_heads, cache.head_dim}, sizeof(float));
    const cuda::AppendCall call{operand("k", k, row), operand("v", v, row), operand("position", position, sizeof(int64_t)),
                                cache_view(&operand, keys, values, cache)};
    return operand.keep(cuda::attention_append(call));
}

Plan attention(const Buffer& q, const Buffer& keys, const Buffer& values, const Buffer& position, const Buffer& scratch,
               const Buffer& out, const CacheLayer& cache, int heads, int splits, const Mask& mask, float scale) {
    Operands operand("attention");
    const size_t row = bytes_of({heads, cache.head_dim}, sizeof(float));
    const size_t partials = bytes_of({heads, splits, int64_t{cache.head_dim} + 2}, sizeof(float));
    const cuda::AttentionCall call{operand("q", q, row),
                                   operand("position", position, sizeof(int64_t)),
                                   cache_view(&operand, keys, values, cache),
                                   operand("out", out, row),
                                   operand("scratch", scratch, partials),
                                   heads,
                                   splits,
                                   mask,
                                   scale};
    return operand.keep(cuda::attention(call));
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

void bind_classes(py::module_& m) {
    py::class_<Device, std::shared_ptr<Device>>(m, "Device")
        .def(py::init<int>(), py::arg("ordinal") = 0)
        .def_property_readonly("name", &Device::name)
        .def_property_readonly("compute_capability",
                               [](const Device& d) { return py::make_tuple(d.compute_major(), d.compute_minor()); })
        .def_property_readonly("multiprocessors", &Device::multiprocessors)
        .def_property_readonly("shared_bytes", &Device::shared_bytes)
        .def_property_readonly("memory_bytes", &Device::memory_bytes);
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
    py::class_<Module, std::shared_ptr<Module>>(m, "Module")
        .def(py::init([](std::shared_ptr<Device> device, const std::optional<std::string>& image) {
                 return image ? std::make_shared<Module>(std::move(device), image->c_str())
                              : std::make_shared<Module>(std::move(device));
             }),
             py::arg("device"), py::arg("image") = py::none());
    py::class_<Plan>(m, "Plan")
        .def("__add__", &concatenate, py::is_operator())
        .def("__str__", [](const Plan& plan) { return to_string(plan); })
        .def_property_readonly("kernels", [](const Plan& plan) {
            std::vector<std::string> names;
            for (const cuda::Launch& launch : plan.launches) names.push_back(launch.kernel);
            return names;
        });
    py::class_<Executable, std::shared_ptr<Executable>>(m, "Executable")
        .def(py::init([](std::shared_ptr<Module> module, const Plan& plan) {
                 return std::make_shared<Executable>(std::move(module), plan);
             }),
             py::arg("module"), py::arg("plan"));
    py::class_<Graph>(m, "Graph");
    py::class_<Stream>(m, "Stream")
        .def(py::init([](std::shared_ptr<Device> device) { return std::make_unique<Stream>(std::move(device)); }),
             py::arg("device"))
        .def("write", &write, py::arg("buffer"), py::arg("array"))
        .def("read", &read, py::arg("buffer"))
        .def(
            "fill", [](Stream& stream, const Buffer& buffer, uint8_t byte) { stream.fill(buffer.address(), byte, buffer.bytes); },
            py::arg("buffer"), py::arg("byte"), py::call_guard<py::gil_scoped_release>())
        .def("run", py::overload_cast<const Executable&>(&Stream::run), py::arg("executable"),
             py::call_guard<py::gil_scoped_release>())
        .def("run", py::overload_cast<const Graph&>(&Stream::run), py::arg("graph"), py::call_guard<py::gil_scoped_release>())
        .def(
            "capture",
            [](Stream& stream, std::shared_ptr<Executable> executable) { return stream.capture(std::move(executable)); },
            py::arg("executable"), py::call_guard<py::gil_scoped_release>())
        .def("synchronize", &Stream::synchronize, py::call_guard<py::gil_scoped_release>());
}

}  // namespace
#endif

void bind_cuda(py::module_& m) {
    py::module_ part = m.def_submodule("cuda", "Single operations on a CUDA device; only `built` and `about` without CUDA.");
    part.attr("about") = LLAMA_EXT_CUDA_ABOUT;
#ifdef LLAMA_EXT_CUDA
    part.attr("built") = true;
    bind_classes(part);
    part.def("rms_norm", &rms_norm, py::kw_only(), py::arg("x"), py::arg("weight"), py::arg("y"), py::arg("rows"), py::arg("n"),
             py::arg("eps"));
    part.def("product", &product, py::kw_only(), py::arg("weight"), py::arg("x"), py::arg("residual") = py::none(), py::arg("y"),
             py::arg("rows"), py::arg("cols"));
    part.def("attention_append", &attention_append, py::kw_only(), py::arg("k"), py::arg("v"), py::arg("position"),
             py::arg("keys"), py::arg("values"), py::arg("cache"));
    part.def("attention", &attention, py::kw_only(), py::arg("q"), py::arg("keys"), py::arg("values"), py::arg("position"),
             py::arg("scratch"), py::arg("out"), py::arg("cache"), py::arg("heads"), py::arg("splits"), py::arg("mask"),
             py::arg("scale"));
    part.def("attention_scratch_bytes", &cuda::attention_scratch_bytes, py::kw_only(), py::arg("heads"), py::arg("head_dim"),
             py::arg("splits"));
#else
    part.attr("built") = false;
#endif
}

}  // namespace llama_ext
