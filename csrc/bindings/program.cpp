#include "program/program.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cerrno>
#include <stdexcept>
#include <system_error>

#include "bindings/bindings.h"
#include "program/cost.h"
#include "program/file_map.h"

namespace py = pybind11;

namespace llama_ext {
namespace {

// Holds the numpy array whose bytes a Weight points to; the last release may come from any thread.
struct PythonOwner {
    py::object object;
    explicit PythonOwner(py::object o) : object(std::move(o)) {}
    ~PythonOwner() {
        const py::gil_scoped_acquire gil;
        object = py::object();
    }
};

void check_bytes(const Weight& w, const py::array& data) {
    if (!data.dtype().is(py::dtype::of<uint8_t>()))
        throw py::type_error(w.name + ": the data must be the format's bytes, uint8, not " +
                             py::str(data.dtype()).cast<std::string>());
    if (!(data.flags() & py::array::c_style)) throw std::invalid_argument(w.name + ": the data must be contiguous");
    if (static_cast<size_t>(data.nbytes()) != w.bytes()) {
        throw std::invalid_argument(w.name + ": " + std::to_string(data.nbytes()) + " bytes, but [" + std::to_string(w.rows) +
                                    ", " + std::to_string(w.cols) + "] in " + std::string(info(w.format).name) + " takes " +
                                    std::to_string(w.bytes()));
    }
}

// data: an array of the bytes, or a function that makes one
std::shared_ptr<Weight> make_weight(std::string name, const std::string& format, int64_t rows, int64_t cols,
                                    const py::object& data) {
    auto w = std::make_shared<Weight>();
    w->name = std::move(name);
    w->format = format_from_name(format);
    w->rows = rows;
    w->cols = cols;
    w->data = nullptr;
    const FormatInfo& f = info(w->format);
    const bool overflows = static_cast<double>(rows) * static_cast<double>(cols) * f.bytes / f.block > 9e18;  // past int64_t
    if (rows <= 0 || cols <= 0 || cols % f.block != 0 || overflows) {
        throw std::invalid_argument(w->name + ": [" + std::to_string(rows) + ", " + std::to_string(cols) + "] is no shape for " +
                                    format + ", whose blocks hold " + std::to_string(info(w->format).block) + " columns");
    }
    if (py::isinstance<py::array>(data)) {
        const py::array array = data;
        check_bytes(*w, array);
        w->data = static_cast<const std::byte*>(array.data());
        w->owner = std::make_shared<PythonOwner>(array);
        return w;
    }
    if (!PyCallable_Check(data.ptr()))
        throw py::type_error(w->name + ": the data must be an array of the format's bytes, or a function that makes one");
    const auto maker = std::make_shared<PythonOwner>(data);
    w->make = [maker, facts = Weight{w->name, w->format, rows, cols, nullptr, nullptr}] {
        const py::gil_scoped_acquire gil;
        const py::object made = maker->object();
        if (!py::isinstance<py::array>(made)) throw py::type_error(facts.name + ": what was made is no array");
        const py::array array = made;
        check_bytes(facts, array);
        return WeightBytes{static_cast<const std::byte*>(array.data()), std::make_shared<PythonOwner>(array)};
    };
    return w;
}

py::array_t<float> dequantize_weight(const Weight& w) {
    py::array_t<float> out({w.rows, w.cols});
    float* to = out.mutable_data();
    const py::gil_scoped_release release;
    const WeightBytes bytes = w.fetch();
    const size_t stride = row_bytes(w.format, w.cols);
    for (int64_t r = 0; r < w.rows; ++r)
        dequantize(w.format, bytes.data + static_cast<size_t>(r) * stride, w.cols, to + r * w.cols);
    return out;
}

// The bytes as they are, [nbytes] uint8, read-only: a view of the file where they lie in one.
py::array weight_bytes(const Weight& w) {
    const py::ssize_t size = static_cast<py::ssize_t>(w.bytes());
    const WeightBytes bytes = w.fetch();
    const auto& owner = w.data ? w.owner : bytes.owner;
    py::array view(py::dtype::of<uint8_t>(), {size}, {1}, bytes.data, static_cast<PythonOwner*>(owner.get())->object);
    view.attr("flags").attr("writeable") = false;
    return view;
}

Scoring scoring_from(const std::string& name) {
    if (name == "softmax") return Scoring::softmax;
    if (name == "sigmoid") return Scoring::sigmoid;
    throw std::invalid_argument("unknown scoring '" + name + "'; known: softmax, sigmoid");
}

Mask::Kind mask_kind(const std::string& name) {
    if (name == "global") return Mask::Kind::global;
    if (name == "chunked") return Mask::Kind::chunked;
    if (name == "sliding") return Mask::Kind::sliding;
    throw std::invalid_argument("unknown mask '" + name + "'; known: global, chunked, sliding");
}

const char* mask_name(Mask::Kind kind) {
    switch (kind) {
        case Mask::Kind::chunked:
            return "chunked";
        case Mask::Kind::sliding:
            return "sliding";
        case Mask::Kind::global:
            break;
    }
    return "global";
}

}  // namespace

CacheFormat cache_format(const std::string& name) {
    if (name == "f32") return CacheFormat::f32;
    if (name == "f16") return CacheFormat::f16;
    if (name == "bf16") return CacheFormat::bf16;
    if (name == "q8_0") return CacheFormat::q8_0;
    if (name == "fp8") return CacheFormat::fp8;
    throw std::invalid_argument("unknown cache format '" + name + "'; known: f32, f16, bf16, q8_0, fp8");
}

namespace {

const char* cache_format_name(CacheFormat format) {
    switch (format) {
        case CacheFormat::f32:
            return "f32";
        case CacheFormat::bf16:
            return "bf16";
        case CacheFormat::q8_0:
            return "q8_0";
        case CacheFormat::fp8:
            return "fp8";
        case CacheFormat::f16:
            break;
    }
    return "f16";
}

void bind_instructions(py::module_& m) {
    using W = WeightPtr;
    py::class_<Embed>(m, "Embed")
        .def(py::init([](W table) { return Embed{table}; }), py::kw_only(), py::arg("table"))
        .def_readonly("table", &Embed::table);
    py::class_<Qkv>(m, "Qkv")
        .def(py::init(
                 [](int layer, W norm, W q, W k, W v, float eps, int heads, int kv_heads, int head_dim, int rope,
                    int64_t rope_chunk) { return Qkv{layer, norm, q, k, v, eps, heads, kv_heads, head_dim, rope, rope_chunk}; }),
             py::kw_only(), py::arg("layer"), py::arg("norm"), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("eps"),
             py::arg("heads"), py::arg("kv_heads"), py::arg("head_dim"), py::arg("rope"), py::arg("rope_chunk") = 0)
        .def_readonly("layer", &Qkv::layer)
        .def_readonly("norm", &Qkv::norm)
        .def_readonly("q", &Qkv::q)
        .def_readonly("k", &Qkv::k)
        .def_readonly("v", &Qkv::v)
        .def_readonly("eps", &Qkv::eps)
        .def_readonly("heads", &Qkv::heads)
        .def_readonly("kv_heads", &Qkv::kv_heads)
        .def_readonly("head_dim", &Qkv::head_dim)
        .def_readonly("rope", &Qkv::rope)
        .def_readonly("rope_chunk", &Qkv::rope_chunk);
    py::class_<Attention>(m, "Attention")
        .def(py::init([](int layer, int cache, int heads, int kv_heads, int head_dim, float scale, Mask mask, bool qk_norm,
                         float qk_norm_eps, float temperature_scale, int64_t temperature_floor) {
                 return Attention{layer, cache,   heads,       kv_heads,          head_dim,         scale,
                                  mask,  qk_norm, qk_norm_eps, temperature_scale, temperature_floor};
             }),
             py::kw_only(), py::arg("layer"), py::arg("cache"), py::arg("heads"), py::arg("kv_heads"), py::arg("head_dim"),
             py::arg("scale"), py::arg("mask"), py::arg("qk_norm") = false, py::arg("qk_norm_eps") = 0.0f,
             py::arg("temperature_scale") = 0.0f, py::arg("temperature_floor") = 0)
        .def_readonly("layer", &Attention::layer)
        .def_readonly("cache", &Attention::cache)
        .def_readonly("heads", &Attention::heads)
        .def_readonly("kv_heads", &Attention::kv_heads)
        .def_readonly("head_dim", &Attention::head_dim)
        .def_readonly("scale", &Attention::scale)
        .def_readonly("mask", &Attention::mask)
        .def_readonly("qk_norm", &Attention::qk_norm)
        .def_readonly("qk_norm_eps", &Attention::qk_norm_eps)
        .def_readonly("temperature_scale", &Attention::temperature_scale)
        .def_readonly("temperature_floor", &Attention::temperature_floor);
    py::class_<Output>(m, "Output")
        .def(py::init([](int layer, W weight) { return Output{layer, weight}; }), py::kw_only(), py::arg("layer"),
             py::arg("weight"))
        .def_readonly("layer", &Output::layer)
        .def_readonly("weight", &Output::weight);
    py::class_<GateUp>(m, "GateUp")
        .def(py::init([](int layer, W norm, W gate, W up, float eps) { return GateUp{layer, norm, gate, up, eps}; }),
             py::kw_only(), py::arg("layer"), py::arg("norm"), py::arg("gate"), py::arg("up"), py::arg("eps"))
        .def_readonly("layer", &GateUp::layer)
        .def_readonly("norm", &GateUp::norm)
        .def_readonly("gate", &GateUp::gate)
        .def_readonly("up", &GateUp::up)
        .def_readonly("eps", &GateUp::eps);
    py::class_<Down>(m, "Down")
        .def(py::init([](int layer, W weight) { return Down{layer, weight}; }), py::kw_only(), py::arg("layer"),
             py::arg("weight"))
        .def_readonly("layer", &Down::layer)
        .def_readonly("weight", &Down::weight);
    py::class_<Route>(m, "Route")
        .def(py::init([](int layer, W norm, W router, float eps, int top_k, const std::string& scoring) {
                 return Route{layer, norm, router, eps, top_k, scoring_from(scoring)};
             }),
             py::kw_only(), py::arg("layer"), py::arg("norm"), py::arg("router"), py::arg("eps"), py::arg("top_k"),
             py::arg("scoring"))
        .def_readonly("layer", &Route::layer)
        .def_readonly("norm", &Route::norm)
        .def_readonly("router", &Route::router)
        .def_readonly("eps", &Route::eps)
        .def_readonly("top_k", &Route::top_k)
        .def_property_readonly("scoring", [](const Route& i) { return i.scoring == Scoring::sigmoid ? "sigmoid" : "softmax"; });
    py::class_<ExpertsGateUp>(m, "ExpertsGateUp")
        .def(py::init([](int layer, std::vector<W> gate, std::vector<W> up, W shared_gate, W shared_up, bool scale_input) {
                 return ExpertsGateUp{layer, std::move(gate), std::move(up), shared_gate, shared_up, scale_input};
             }),
             py::kw_only(), py::arg("layer"), py::arg("gate"), py::arg("up"), py::arg("shared_gate") = nullptr,
             py::arg("shared_up") = nullptr, py::arg("scale_input") = false)
        .def_readonly("layer", &ExpertsGateUp::layer)
        .def_readonly("gate", &ExpertsGateUp::gate)
        .def_readonly("up", &ExpertsGateUp::up)
        .def_readonly("shared_gate", &ExpertsGateUp::shared_gate)
        .def_readonly("shared_up", &ExpertsGateUp::shared_up)
        .def_readonly("scale_input", &ExpertsGateUp::scale_input);
    py::class_<ExpertsDown>(m, "ExpertsDown")
        .def(py::init([](int layer, std::vector<W> down, W shared_down, bool scale_output) {
                 return ExpertsDown{layer, std::move(down), shared_down, scale_output};
             }),
             py::kw_only(), py::arg("layer"), py::arg("down"), py::arg("shared_down") = nullptr, py::arg("scale_output") = false)
        .def_readonly("layer", &ExpertsDown::layer)
        .def_readonly("down", &ExpertsDown::down)
        .def_readonly("shared_down", &ExpertsDown::shared_down)
        .def_readonly("scale_output", &ExpertsDown::scale_output);
    py::class_<Head>(m, "Head")
        .def(py::init([](W norm, W weight, float eps) { return Head{norm, weight, eps}; }), py::kw_only(), py::arg("norm"),
             py::arg("weight"), py::arg("eps"))
        .def_readonly("norm", &Head::norm)
        .def_readonly("weight", &Head::weight)
        .def_readonly("eps", &Head::eps);
    py::class_<Sample>(m, "Sample").def(py::init<>());
}

}  // namespace

void bind_program(py::module_& m) {
    py::class_<Weight, std::shared_ptr<Weight>>(m, "Weight")
        .def(py::init(&make_weight), py::arg("name"), py::arg("format"), py::arg("rows"), py::arg("cols"), py::arg("data"))
        .def_readonly("name", &Weight::name)
        .def_property_readonly("format", [](const Weight& w) { return info(w.format).name; })
        .def_readonly("rows", &Weight::rows)
        .def_readonly("cols", &Weight::cols)
        .def_property_readonly("nbytes", &Weight::bytes)
        .def_property_readonly("in_file", [](const Weight& w) { return w.data != nullptr && is_mapped(w.data, w.bytes()); })
        .def("bytes", &weight_bytes)
        .def("dequantize", &dequantize_weight);
    py::class_<FileMap, std::shared_ptr<FileMap>>(m, "FileMap", py::buffer_protocol())
        .def(py::init([](const std::string& path) {
                 try {
                     return std::make_shared<FileMap>(path);
                 } catch (const std::system_error& error) {
                     errno = error.code().value();
                     PyErr_SetFromErrnoWithFilename(PyExc_OSError, path.c_str());
                     throw py::error_already_set();
                 }
             }),
             py::arg("path"))
        .def_buffer([](const FileMap& map) {
            return py::buffer_info(const_cast<std::byte*>(map.data()), 1, py::format_descriptor<uint8_t>::format(), 1,
                                   {static_cast<py::ssize_t>(map.bytes())}, {1}, true);
        });
    m.def(
        "give_back",
        [](const py::array& values) {
            const char* begin = static_cast<const char*>(values.data());
            if (values.size() == 0) return;
            // From the first to the last element, whatever lies between.
            ptrdiff_t low = 0, high = values.itemsize();
            for (py::ssize_t d = 0; d < values.ndim(); ++d) {
                const ptrdiff_t span = values.strides(d) * (values.shape(d) - 1);
                (span < 0 ? low : high) += span;
            }
            give_back(reinterpret_cast<const std::byte*>(begin + low), static_cast<size_t>(high - low));
        },
        py::arg("values"));
    py::class_<Mask>(m, "Mask")
        .def(py::init([](const std::string& kind, int64_t extent) {
                 const Mask mask{mask_kind(kind), extent};
                 if (mask.kind != Mask::Kind::global && extent <= 0)
                     throw std::invalid_argument("a " + kind + " mask needs a positive extent, not " + std::to_string(extent));
                 return mask;
             }),
             py::arg("kind"), py::arg("extent") = 0)
        .def_property_readonly("kind", [](const Mask& mask) { return mask_name(mask.kind); })
        .def_readonly("extent", &Mask::extent)
        .def("first_key", &Mask::first_key, py::arg("position"));
    bind_instructions(m);
    py::class_<CacheLayer>(m, "CacheLayer")
        .def(py::init([](int kv_heads, int head_dim, int64_t capacity, const std::string& format) {
                 return CacheLayer{kv_heads, head_dim, capacity, cache_format(format)};
             }),
             py::kw_only(), py::arg("kv_heads"), py::arg("head_dim"), py::arg("capacity"), py::arg("format"))
        .def_readonly("kv_heads", &CacheLayer::kv_heads)
        .def_readonly("head_dim", &CacheLayer::head_dim)
        .def_readonly("capacity", &CacheLayer::capacity)
        .def_property_readonly("format", [](const CacheLayer& c) { return cache_format_name(c.format); })
        .def_property_readonly("bytes_per_slot", &CacheLayer::bytes_per_slot);
    py::class_<Cost>(m, "Cost")
        .def_readonly("weight_bytes", &Cost::weight_bytes)
        .def_readonly("cache_bytes", &Cost::cache_bytes)
        .def_readonly("operations", &Cost::operations);
    py::class_<Program, std::shared_ptr<Program>>(m, "Program")
        .def(py::init([](int64_t vocab, int64_t hidden, int64_t max_context, int max_rows,
                         const std::vector<std::vector<double>>& ropes, std::vector<CacheLayer> caches,
                         std::vector<Instruction> code) {
                 auto p = std::make_shared<Program>(
                     Program{vocab, hidden, max_context, max_rows, {}, std::move(caches), std::move(code)});
                 for (const std::vector<double>& frequencies : ropes) p->ropes.push_back({frequencies});
                 p->validate();
                 return p;
             }),
             py::kw_only(), py::arg("vocab"), py::arg("hidden"), py::arg("max_context"), py::arg("max_rows"), py::arg("ropes"),
             py::arg("caches"), py::arg("code"))
        .def_readonly("vocab", &Program::vocab)
        .def_readonly("hidden", &Program::hidden)
        .def_readonly("max_context", &Program::max_context)
        .def_readonly("max_rows", &Program::max_rows)
        .def_property_readonly("ropes",
                               [](const Program& p) {
                                   std::vector<std::vector<double>> ropes;
                                   for (const Rope& rope : p.ropes) ropes.push_back(rope.inverse_frequency);
                                   return ropes;
                               })
        .def_readonly("caches", &Program::caches)
        .def_readonly("code", &Program::code)
        .def(
            "max_rollback",
            [](const Program& p, int64_t position, int64_t highest) {
                return p.max_rollback(position, std::max(position, highest));
            },
            py::arg("position"), py::arg("highest") = 0)
        .def(
            "cost",
            [](const Program& p, int64_t index, int64_t rows, int64_t position, int64_t logit_rows) {
                if (rows < 1 || rows > p.max_context || position < 0 || position > p.max_context - rows || logit_rows < 0 ||
                    logit_rows > rows)
                    throw std::invalid_argument("there is no step of " + std::to_string(rows) + " rows at position " +
                                                std::to_string(position) + " with " + std::to_string(logit_rows) + " logits");
                return cost(p, p.code.at(static_cast<size_t>(index)), rows, position, logit_rows);
            },
            py::arg("index"), py::arg("rows") = 1, py::arg("position") = 0, py::arg("logit_rows") = 1);
    m.def("name", [](const Instruction& i) { return name(i); }, py::arg("instruction"));
    m.def(
        "weights",
        [](const Instruction& i) {
            std::vector<std::shared_ptr<Weight>> list;
            for (const WeightPtr& w : weights(i)) list.push_back(std::const_pointer_cast<Weight>(w));
            return list;
        },
        py::arg("instruction"));
    m.def("cache_capacity", &cache_capacity, py::arg("mask"), py::arg("max_context"), py::arg("max_rows"));
    py::dict formats;
    for (int f = 0; f < kFormats; ++f) {
        const FormatInfo& i = info(static_cast<Format>(f));
        static constexpr const char* kActivations[] = {"f32", "q15"};
        formats[py::str(i.name)] = py::make_tuple(i.block, i.bytes, kActivations[static_cast<size_t>(i.activation)]);
    }
    m.attr("formats") = formats;
}

}  // namespace llama_ext
