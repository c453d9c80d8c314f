#include "cuda/route.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/cuda/operands.h"
#include "cuda/kernels/step.h"

namespace py = pybind11;

namespace llama_ext {
namespace {

Scoring scoring_from(const char* operation, const std::string& name) {
    if (name != "softmax" && name != "sigmoid")
        throw std::invalid_argument(std::string(operation) + ": scoring is '" + name + "', must be softmax or sigmoid");
    return name == "softmax" ? Scoring::softmax : Scoring::sigmoid;
}

Plan route_plan(const Buffer& router, const std::string& format, int64_t experts, int64_t hidden, const Buffer& step,
                int max_rows, const Buffer& x, const Buffer& norm, float eps, int top_k, const std::string& scoring, bool shared,
                const Buffer& n, const Buffer& logits, const Buffer& count, const Buffer& expert, const Buffer& first,
                const Buffer& row, const Buffer& score, int max_groups, const Buffer& entry, const Buffer& scratch) {
    Operands operand("route");
    const Format f = format_from_name(format);
    const int64_t passes = int64_t{top_k} + shared;
    const size_t rows_bytes = bytes_of({max_rows, hidden}, sizeof(float));
    const size_t entries = bytes_of({max_rows, passes}, 4);
    cuda::RouteCall call{};
    call.router = {f, experts, hidden, operand("router", router, static_cast<size_t>(cuda::planes(f, experts, hidden).bytes))};
    call.step = operand("step", step, sizeof(cuda::Step));
    call.max_rows = max_rows;
    call.x = operand("x", x, rows_bytes);
    call.norm = operand("norm", norm, bytes_of({hidden}, sizeof(float)));
    call.eps = eps;
    call.top_k = top_k;
    call.scoring = scoring_from("route", scoring);
    call.shared = shared;
    call.n = operand("n", n, rows_bytes);
    call.logits = operand("logits", logits, bytes_of({max_rows, experts}, sizeof(float)));
    call.groups = {operand("count", count, 4),
                   operand("expert", expert, bytes_of({max_groups}, 4)),
                   operand("first", first, bytes_of({int64_t{max_groups} + 1}, 4)),
                   operand("row", row, entries),
                   operand("score", score, entries),
                   max_groups};
    call.entry = operand("entry", entry, entries);
    call.scratch = operand("scratch", scratch, cuda::route_scratch_bytes(max_rows, static_cast<int>(experts)));
    return operand.keep(cuda::route(call, operand.device().card()));
}

Plan combine(const Buffer& y, const Buffer& entry, const Buffer& step, const Buffer& x, int max_rows, int passes,
             int64_t hidden) {
    Operands operand("combine");
    const cuda::CombineCall call{operand("y", y, bytes_of({max_rows, passes, hidden}, sizeof(float))),
                                 operand("entry", entry, bytes_of({max_rows, passes}, 4)),
                                 operand("step", step, sizeof(cuda::Step)),
                                 operand("x", x, bytes_of({max_rows, hidden}, sizeof(float))),
                                 max_rows,
                                 passes,
                                 hidden};
    return operand.keep(cuda::combine(call));
}

Plan fetch(const Buffer& count, const Buffer& expert, int max_groups, const Buffer& experts, const Buffer& home,
           const Buffer& cards, int layer, int layers, int expert_count, int slots, const Buffer& pool, int64_t slot_bytes,
           int64_t bytes) {
    Operands operand("fetch");
    cuda::FetchCall call{};
    call.groups.count = operand("count", count, 4);
    call.groups.expert = operand("expert", expert, bytes_of({max_groups}, 4));
    call.groups.max_groups = max_groups;
    call.experts = operand("experts", experts, bytes_of({int64_t{expert_count} + 1}, 8));
    call.home = operand("home", home, bytes_of({expert_count}, 8));
    call.cards = operand("cards", cards, cuda::fetch_state_bytes(slots, layers));
    call.layer = layer;
    call.layers = layers;
    call.expert_count = expert_count;
    call.slots = slots;
    call.pool = operand("pool", pool, bytes_of({slots, slot_bytes}, 1));
    call.slot_bytes = slot_bytes;
    call.bytes = bytes;
    return operand.keep(cuda::fetch(call, operand.device().card()));
}

py::bytes fetch_state(int slots, int layers) {
    const std::vector<std::byte> state = cuda::fetch_state(slots, layers);
    return {reinterpret_cast<const char*>(state.data()), state.size()};
}

py::dict fetch_facts(const std::string& state) {
    const cuda::FetchFacts facts = cuda::fetch_facts(reinterpret_cast<const std::byte*>(state.data()));
    py::dict out;
    out["used"] = facts.used;
    out["hits"] = facts.hits;
    out["misses"] = facts.misses;
    return out;
}

}  // namespace

void bind_cuda_route(py::module_& m) {
    m.def("route", &route_plan, py::kw_only(), py::arg("router"), py::arg("format"), py::arg("experts"), py::arg("hidden"),
          py::arg("step"), py::arg("max_rows"), py::arg("x"), py::arg("norm"), py::arg("eps"), py::arg("top_k"),
          py::arg("scoring"), py::arg("shared"), py::arg("n"), py::arg("logits"), py::arg("count"), py::arg("expert"),
          py::arg("first"), py::arg("row"), py::arg("score"), py::arg("max_groups"), py::arg("entry"), py::arg("scratch"));
    m.def("route_groups", &cuda::route_groups, py::kw_only(), py::arg("max_rows"), py::arg("top_k"), py::arg("experts"),
          py::arg("shared"));
    m.def("route_scratch_bytes", &cuda::route_scratch_bytes, py::kw_only(), py::arg("max_rows"), py::arg("experts"));
    m.def("combine", &combine, py::kw_only(), py::arg("y"), py::arg("entry"), py::arg("step"), py::arg("x"), py::arg("max_rows"),
          py::arg("passes"), py::arg("hidden"));
    m.def("fetch", &fetch, py::kw_only(), py::arg("count"), py::arg("expert"), py::arg("max_groups"), py::arg("experts"),
          py::arg("home"), py::arg("cards"), py::arg("layer"), py::arg("layers"), py::arg("expert_count"), py::arg("slots"),
          py::arg("pool"), py::arg("slot_bytes"), py::arg("bytes"));
    m.def("fetch_state", &fetch_state, py::kw_only(), py::arg("slots"), py::arg("layers"));
    m.def("fetch_facts", &fetch_facts, py::arg("state"));
}

}  // namespace llama_ext
