#include "cuda/moe_calls.h"

#include <algorithm>

#include "cuda/check.h"
#include "cuda/kernels/moe.h"
#include "cuda/kernels/route.h"

namespace llama_ext::cuda {
namespace {

constexpr int64_t kMostSortBlocks = 1 << 16;

std::string suffix(const char* operation, Format type) {
    require(type == Format::f32 || type == Format::bf16, operation, "the type", std::string(info(type).name), "F32 or BF16");
    return type == Format::f32 ? "_f32" : "_bf16";
}

uint64_t value_bytes(Format type) { return type == Format::f32 ? 4 : 2; }
uint32_t parts(int64_t whole, int64_t part) { return static_cast<uint32_t>((whole + part - 1) / part); }

// The blocks that a row is divided among.
uint32_t row_parts(int64_t hidden) { return parts(hidden, int64_t{kMoePerThread} * kMoeRowThreads); }
int32_t rows_aligned(Format type, int64_t hidden, Address a, Address b) {
    const uint64_t bytes = kMoePerThread * value_bytes(type);
    return hidden % kMoePerThread == 0 && aligned(a, bytes) && aligned(b, bytes);
}

void check_sizes(const char* operation, int64_t rows, int64_t top_k, int64_t hidden) {
    require_range(operation, "rows", rows, 1, INT32_MAX);
    require_range(operation, "top_k", top_k, 1, INT32_MAX);
    require_range(operation, "rows * top_k", rows * top_k, 1, INT32_MAX);
    require_range(operation, "hidden", hidden, 1, int64_t{UINT16_MAX} * kMoePerThread * kMoeRowThreads);
}

}  // namespace

Plan moe_route(const MoeRouteCall& call) {
    const std::string type = suffix("moe_route", call.type);
    require_range("moe_route", "rows", call.rows, 1, INT32_MAX);
    require_range("moe_route", "experts", call.experts, 1, INT32_MAX - 32);
    require_range("moe_route", "top_k", call.top_k, 1, call.experts);
    require_address("moe_route", "logits", call.logits, value_bytes(call.type));
    require_address("moe_route", "chosen", call.chosen, 8);
    require_address("moe_route", "scores", call.scores, 4);
    return {{{"moe_route" + type,
              {parts(call.rows, kMoeRouteRows), 1, 1},
              {32 * kMoeRouteRows, 1, 1},
              0,
              {{"logits", call.logits},
               {"chosen", call.chosen},
               {"scores", call.scores},
               {"rows", call.rows},
               {"experts", int32_t{call.experts}},
               {"top_k", int32_t{call.top_k}},
               {"scoring", static_cast<int32_t>(call.scoring)}},
              true}},
            {}};
}

Plan moe_dispatch(const MoeDispatchCall& call) {
    const std::string type = suffix("moe_dispatch", call.type);
    check_sizes("moe_dispatch", call.rows, call.top_k, call.hidden);
    require_range("moe_dispatch", "num_experts", call.num_experts, 0, INT32_MAX);
    require_address("moe_dispatch", "x", call.x, value_bytes(call.type));
    require_address("moe_dispatch", "experts", call.experts, 8);
    require(aligned(call.scores, 4), "moe_dispatch", "scores", "not aligned", "on 4 bytes");
    require_address("moe_dispatch", "gathered", call.gathered, value_bytes(call.type));
    require_address("moe_dispatch", "offsets", call.offsets, 8);
    require_address("moe_dispatch", "source", call.source, 8);
    const int64_t choices = call.rows * call.top_k;
    return {{{"moe_dispatch_sort",
              {static_cast<uint32_t>(std::min(call.num_experts + 1, kMostSortBlocks)), 1, 1},
              {kMoeSortThreads, 1, 1},
              0,
              {{"experts", call.experts},
               {"offsets", call.offsets},
               {"source", call.source},
               {"choices", choices},
               {"num_experts", call.num_experts}},
              true},
             {"moe_dispatch" + type,
              {static_cast<uint32_t>(choices), row_parts(call.hidden), 1},
              {kMoeRowThreads, 1, 1},
              0,
              {{"x", call.x},
               {"source", call.source},
               {"scores", call.scores},
               {"gathered", call.gathered},
               {"choices", choices},
               {"top_k", call.top_k},
               {"hidden", call.hidden},
               {"aligned", rows_aligned(call.type, call.hidden, call.x, call.gathered)}},
              true}},
            {}};
}

Plan moe_combine(const MoeCombineCall& call) {
    const std::string type = suffix("moe_combine", call.type);
    check_sizes("moe_combine", call.rows, call.top_k, call.hidden);
    require_address("moe_combine", "y", call.y, value_bytes(call.type));
    require_address("moe_combine", "source", call.source, 8);
    require(aligned(call.scores, 4), "moe_combine", "scores", "not aligned", "on 4 bytes");
    require_address("moe_combine", "place", call.place, 8);
    require_address("moe_combine", "out", call.out, value_bytes(call.type));
    const int64_t choices = call.rows * call.top_k;
    return {{{"moe_combine_place",
              {parts(choices, kMoeSortThreads), 1, 1},
              {kMoeSortThreads, 1, 1},
              0,
              {{"source", call.source}, {"place", call.place}, {"choices", choices}},
              true},
             {"moe_combine" + type,
              {static_cast<uint32_t>(call.rows), row_parts(call.hidden), 1},
              {kMoeRowThreads, 1, 1},
              0,
              {{"y", call.y},
               {"source", call.source},
               {"place", call.place},
               {"scores", call.scores},
               {"out", call.out},
               {"choices", choices},
               {"top_k", call.top_k},
               {"hidden", call.hidden},
               {"aligned", rows_aligned(call.type, call.hidden, call.y, call.out)}},
              true}},
            {}};
}

}  // namespace llama_ext::cuda
