// llama_ext._core.cuda.calls: what _ops calls, by raw addresses, as tests do.
#include "cuda/calls.h"

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "bindings/cuda/operands.h"
#include "cuda/calls/calls.h"
#include "cuda/pack.h"

namespace py = pybind11;

namespace llama_ext {
namespace {

namespace calls = cuda::calls;

calls::Type type_from(const std::string& name) {
    if (name != "f32" && name != "bf16") throw std::invalid_argument("type is '" + name + "', must be f32 or bf16");
    return name == "f32" ? calls::Type::f32 : calls::Type::bf16;
}

Scoring scoring_from(const std::string& name) {
    if (name != "softmax" && name != "sigmoid")
        throw std::invalid_argument("scoring is '" + name + "', must be softmax or sigmoid");
    return name == "softmax" ? Scoring::softmax : Scoring::sigmoid;
}

// name(*, device, stream, scratch, scratch_bytes, ...) and name_scratch_bytes(*, device, ...): through the table, as _ops does.
// name_plan(*, device, scratch, ...): what the first would launch.
template <typename Call, typename Make>
void bind(py::module_& m, const std::string& name, calls::Operation<Call> operation, Make make) {
    const auto check = [](const char* error) {
        if (error) throw std::runtime_error(error);
    };
    m.def(
        name.c_str(),
        [=](int device, uintptr_t stream, uint64_t scratch, uint64_t scratch_bytes, const py::kwargs& values) {
            const Call call = make(values);
            const calls::Place place{device, reinterpret_cast<void*>(stream), scratch, scratch_bytes};
            const py::gil_scoped_release release;
            check(operation.run(&place, &call));
        },
        py::kw_only(), py::arg("device") = 0, py::arg("stream"), py::arg("scratch"), py::arg("scratch_bytes"));
    m.def((name + "_scratch_bytes").c_str(),
          [=](int device, const py::kwargs& values) {
              const Call call = make(values);
              uint64_t bytes = 0;
              check(operation.scratch_bytes(device, &call, &bytes));
              return bytes;
          },
          py::kw_only(), py::arg("device") = 0);
    m.def((name + "_plan").c_str(),
          [=](const std::shared_ptr<Device>& device, uint64_t scratch, const py::kwargs& values) {
              calls::Scratch at(Address{scratch});
              return calls::plan_of(make(values), device->card(), at);
          },
          py::kw_only(), py::arg("device"), py::arg("scratch"));
}

int64_t number(const py::kwargs& values, const char* name) { return values[name].cast<int64_t>(); }
uint64_t address(const py::kwargs& values, const char* name) {
    const py::object value = values[name];
    return value.is_none() ? 0 : value.cast<uint64_t>();
}
std::string text(const py::kwargs& values, const char* name) { return values[name].cast<std::string>(); }
calls::Type type(const py::kwargs& values, const char* name = "type") { return type_from(text(values, name)); }

Plan repack(const std::string& format, int64_t rows, int64_t cols, const Buffer& source, const Buffer& packed) {
    Operands operand("repack");
    const Format f = format_from_name(format);
    const calls::RepackCall call{operand("source", source, static_cast<size_t>(rows) * row_bytes(f, cols)), f, rows, cols,
                                 operand("packed", packed, static_cast<size_t>(cuda::planes(f, rows, cols).bytes))};
    return operand.keep(calls::repack(call));
}

}  // namespace

void bind_cuda_calls(py::module_& m) {
    const calls::Table& table = calls::table();
    m.attr("calls_address") = reinterpret_cast<uintptr_t>(&table);
    m.def("repack", &repack, py::kw_only(), py::arg("format"), py::arg("rows"), py::arg("cols"), py::arg("source"),
          py::arg("packed"));
    py::module_ part = m.def_submodule("calls", "Operations on raw addresses, in a stream of the caller's.");
    bind(part, "rms_norm", table.rms_norm, [](const py::kwargs& v) -> calls::RmsNorm {
        return {type(v),         type(v, "weight_type"), number(v, "rows"), number(v, "n"), v["eps"].cast<float>(),
                address(v, "x"), address(v, "weight"),   address(v, "out")};
    });
    bind(part, "rope", table.rope, [](const py::kwargs& v) -> calls::Rope {
        return {type(v),
                v["interleaved"].cast<bool>(),
                number(v, "batch"),
                number(v, "rows"),
                number(v, "heads"),
                number(v, "head_dim"),
                address(v, "positions"),
                address(v, "inverse_frequency"),
                address(v, "x"),
                address(v, "out")};
    });
    bind(part, "attention", table.attention, [](const py::kwargs& v) -> calls::Attention {
        return {type(v),
                v["heads"].cast<int32_t>(),
                v["kv_heads"].cast<int32_t>(),
                v["head_dim"].cast<int32_t>(),
                number(v, "rows"),
                number(v, "keys"),
                number(v, "first_position"),
                v["mask"].cast<Mask>(),
                v["scale"].cast<float>(),
                address(v, "q"),
                address(v, "k"),
                address(v, "v"),
                address(v, "out")};
    });
    bind(part, "linear", table.linear, [](const py::kwargs& v) -> calls::Linear {
        return {type(v),
                format_from_name(text(v, "format")),
                number(v, "rows"),
                number(v, "cols"),
                number(v, "outputs"),
                address(v, "x"),
                address(v, "weight"),
                address(v, "out")};
    });
    bind(part, "moe_route", table.moe_route, [](const py::kwargs& v) -> calls::MoeRoute {
        return {type(v),
                number(v, "rows"),
                v["experts"].cast<int32_t>(),
                v["top_k"].cast<int32_t>(),
                scoring_from(text(v, "scoring")),
                address(v, "logits"),
                address(v, "chosen"),
                address(v, "scores")};
    });
    bind(part, "moe_dispatch", table.moe_dispatch, [](const py::kwargs& v) -> calls::MoeDispatch {
        return {type(v),
                number(v, "rows"),
                number(v, "top_k"),
                number(v, "hidden"),
                number(v, "num_experts"),
                address(v, "x"),
                address(v, "experts"),
                address(v, "scores"),
                address(v, "gathered"),
                address(v, "offsets"),
                address(v, "source")};
    });
    bind(part, "moe_combine", table.moe_combine, [](const py::kwargs& v) -> calls::MoeCombine {
        return {type(v),         number(v, "rows"),    number(v, "top_k"),   number(v, "hidden"),
                address(v, "y"), address(v, "source"), address(v, "scores"), address(v, "out")};
    });
}

}  // namespace llama_ext
