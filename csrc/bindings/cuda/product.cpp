#include "cuda/product.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/cuda/operands.h"

namespace py = pybind11;

namespace llama_ext {
namespace {

// A name -> its place among `names`.
int choice(const char* argument, const std::string& name, std::initializer_list<const char*> names) {
    int index = 0;
    std::string known;
    for (const char* one : names) {
        if (name == one) return index;
        known += (index++ ? ", " : "") + std::string(one);
    }
    throw std::invalid_argument("product: " + std::string(argument) + " is " + name + ", must be one of " + known);
}

// groups: {"count", "expert", "first", "row", "score": buffers, "max_groups": int}, as in product.h
cuda::ProductCall product_call(Operands* operand, const std::optional<Buffer>& weight, const std::string& format, int64_t rows,
                               int64_t cols, const Buffer& step, int max_rows, const std::string& which, const Buffer& x,
                               const std::optional<Buffer>& norm, float eps, const std::string& epilogue, const Buffer& y,
                               std::optional<int64_t> y_stride, const std::optional<Buffer>& table, int64_t rotated,
                               int32_t pairs, const std::optional<py::dict>& groups, const std::optional<Buffer>& experts,
                               int64_t offset, bool gathered, bool scaled) {
    cuda::ProductCall call{};
    call.weight.format = format_from_name(format);
    call.weight.rows = rows, call.weight.cols = cols;
    const bool sized = rows >= 1 && cols >= 1 && cols % info(call.weight.format).block == 0;  // else product() says what is wrong
    call.weight.base =
        (*operand)("weight", weight, sized ? static_cast<size_t>(cuda::planes(call.weight.format, rows, cols).bytes) : 0);
    call.step = (*operand)("step", step, 24);
    call.max_rows = max_rows;
    call.which = static_cast<cuda::Rows>(choice("which", which, {"all", "logits"}));
    call.norm = (*operand)("norm", norm, bytes_of({cols}, 4));
    call.eps = eps;
    call.epilogue = static_cast<cuda::Epilogue>(choice("epilogue", epilogue, {"store", "add", "silu_times_up", "rotate"}));
    const int64_t results = call.epilogue == cuda::Epilogue::silu_times_up ? rows / 2 : rows;
    call.y_stride = y_stride.value_or(results);
    int64_t x_rows = max_rows, y_rows = max_rows;
    if (experts) {
        if (!groups) throw std::invalid_argument("product: groups is None, must say which expert each entry goes to");
        const auto of = [&](const char* name) { return (*groups)[name].cast<Buffer>(); };
        call.groups.max_groups = (*groups)["max_groups"].cast<int>();
        const int64_t most = call.groups.max_groups;
        call.groups.count = (*operand)("groups.count", of("count"), 4);
        call.groups.expert = (*operand)("groups.expert", of("expert"), bytes_of({most}, 4));
        call.groups.first = (*operand)("groups.first", of("first"), bytes_of({most + 1}, 4));
        y_rows = static_cast<int64_t>(of("row").bytes / 4);
        if (!gathered) x_rows = y_rows;
        call.groups.row = (*operand)("groups.row", of("row"), 4);
        call.groups.score = (*operand)("groups.score", of("score"), bytes_of({y_rows}, 4));
        call.experts = (*operand)("experts", *experts, 8);
    }
    call.x = (*operand)("x", x, bytes_of({x_rows, cols}, 4));
    call.y = (*operand)("y", y, call.y_stride < results ? 0 : bytes_of({(y_rows - 1) * call.y_stride + results}, 4));
    call.table = (*operand)("table", table, bytes_of({max_rows, pairs}, 8));
    call.rotated = rotated, call.pairs = pairs;
    call.offset = offset, call.gathered = gathered, call.scaled = scaled;
    return call;
}

template <Plan (*operation)(const cuda::ProductCall&, const cuda::Card&)>
Plan product(const std::optional<Buffer>& weight, const std::string& format, int64_t rows, int64_t cols, const Buffer& step,
             int max_rows, const std::string& which, const Buffer& x, const std::optional<Buffer>& norm, float eps,
             const std::string& epilogue, const Buffer& y, std::optional<int64_t> y_stride, const std::optional<Buffer>& table,
             int64_t rotated, int32_t pairs, const std::optional<py::dict>& groups, const std::optional<Buffer>& experts,
             int64_t offset, bool gathered, bool scaled) {
    Operands operand("product");
    const cuda::ProductCall call =
        product_call(&operand, weight, format, rows, cols, step, max_rows, which, x, norm, eps, epilogue, y, y_stride, table,
                     rotated, pairs, groups, experts, offset, gathered, scaled);
    return operand.keep(operation(call, operand.device().card()));
}

template <Plan (*operation)(const cuda::ProductCall&, const cuda::Card&)>
void define(py::module_& m, const char* name) {
    m.def(name, &product<operation>, py::kw_only(), py::arg("weight") = py::none(), py::arg("format"), py::arg("rows"),
          py::arg("cols"), py::arg("step"), py::arg("max_rows"), py::arg("which") = "all", py::arg("x"),
          py::arg("norm") = py::none(), py::arg("eps") = 0.0f, py::arg("epilogue") = "store", py::arg("y"),
          py::arg("y_stride") = py::none(), py::arg("table") = py::none(), py::arg("rotated") = 0, py::arg("pairs") = 0,
          py::arg("groups") = py::none(), py::arg("experts") = py::none(), py::arg("offset") = 0, py::arg("gathered") = false,
          py::arg("scaled") = false);
}

}  // namespace

void bind_cuda_product(py::module_& m) { define<cuda::product>(m, "product"); }

}  // namespace llama_ext
