#include "cuda/route.h"

#include <algorithm>

#include "cuda/check.h"
#include "cuda/kernels/route.h"

namespace llama_ext::cuda {
namespace {

static_assert(static_cast<int>(Scoring::softmax) == kRouteSoftmax && static_cast<int>(Scoring::sigmoid) == kRouteSigmoid);

const char* format_name(Format format) {
    switch (format) {
        case Format::f32:
            return "f32";
        case Format::f16:
            return "f16";
        case Format::bf16:
            return "bf16";
        case Format::q8_0:
            return "q8_0";
        default:
            return nullptr;
    }
}

uint32_t parts(int64_t whole, int64_t part) { return static_cast<uint32_t>((whole + part - 1) / part); }
Address behind(Address address, int64_t bytes) { return {address.value + static_cast<uint64_t>(bytes)}; }

void check(const RouteCall& call) {
    const auto& router = call.router;
    require(format_name(router.format) != nullptr, "route", "the router's format", std::string(info(router.format).name),
            "F32, F16, BF16 or Q8_0");
    require_range("route", "experts", router.rows, 1, kRouteExperts);
    require_range("route", "hidden", router.cols, 4, INT32_MAX);
    require(router.cols % 4 == 0, "route", "hidden", std::to_string(router.cols), "a multiple of 4");
    require_range("route", "max_rows", call.max_rows, 1, INT32_MAX / (kRouteExperts + 1));
    require_range("route", "top_k", call.top_k, 1, router.rows);
    require(call.eps >= 0.0f, "route", "eps", std::to_string(call.eps), "0 or more");
    require_address("route", "router", router.base, 256);
    require_address("route", "step", call.step, 8);
    require_address("route", "x", call.x, 16);
    require_address("route", "norm", call.norm, 16);
    require_address("route", "n", call.n, 16);
    require_address("route", "logits", call.logits, 4);
    const int needed = route_groups(call.max_rows, call.top_k, static_cast<int>(router.rows), call.shared);
    require(call.groups.max_groups >= needed, "route", "the groups' max_groups", std::to_string(call.groups.max_groups),
            "at least " + std::to_string(needed));
    require_address("route", "the groups' count", call.groups.count, 4);
    require_address("route", "the groups' expert", call.groups.expert, 4);
    require_address("route", "the groups' first", call.groups.first, 4);
    require_address("route", "the groups' row", call.groups.row, 4);
    require_address("route", "the groups' score", call.groups.score, 4);
    require_address("route", "entry", call.entry, 4);
    require_address("route", "scratch", call.scratch, 16);
}

}  // namespace

int route_groups(int max_rows, int top_k, int experts, bool shared) {
    return static_cast<int>(std::min<int64_t>(int64_t{max_rows} * top_k, experts)) + shared;
}

size_t route_scratch_bytes(int max_rows, int experts) {
    if (max_rows <= kRouteRows) return kRouteChosenOffset;
    return kRouteChosenOffset + static_cast<size_t>(max_rows) * static_cast<size_t>(experts) * (sizeof(int32_t) + sizeof(float));
}

Plan route(const RouteCall& call, const Card&) {
    check(call);
    const std::string format = format_name(call.router.format);
    const int32_t experts = static_cast<int32_t>(call.router.rows);
    const int64_t hidden = call.router.cols;
    const Address quants = call.router.base;
    const Address scales = behind(quants, planes(call.router.format, experts, hidden).scales);
    const Address counts = behind(call.scratch, kRouteCountsOffset), chosen = behind(call.scratch, kRouteChosenOffset);
    const Address scores = behind(chosen, int64_t{call.max_rows} * call.top_k * int64_t{sizeof(int32_t)});
    const int32_t scoring = static_cast<int32_t>(call.scoring), shared = call.shared;

    if (call.max_rows <= kRouteRows)
        return {{{"route_" + format + (call.max_rows == 1 ? "_1" : "_16"),
                  {static_cast<uint32_t>(experts), 1, 1},
                  {kRouteThreads, 1, 1},
                  0,
                  {{"quants", quants},
                   {"scales", scales},
                   {"step", call.step},
                   {"x", call.x},
                   {"norm", call.norm},
                   {"n", call.n},
                   {"logits", call.logits},
                   {"count", call.groups.count},
                   {"expert", call.groups.expert},
                   {"first", call.groups.first},
                   {"row", call.groups.row},
                   {"score", call.groups.score},
                   {"entry", call.entry},
                   {"arrived", call.scratch},
                   {"hidden", hidden},
                   {"eps", call.eps},
                   {"experts", experts},
                   {"top_k", int32_t{call.top_k}},
                   {"scoring", scoring},
                   {"shared", shared}},
                  true}},
                {}};

    return {{{"route_large_norm",
              {static_cast<uint32_t>(call.max_rows), 1, 1},
              {kRouteThreads, 1, 1},
              0,
              {{"x", call.x},
               {"norm", call.norm},
               {"step", call.step},
               {"n", call.n},
               {"counts", counts},
               {"hidden", hidden},
               {"eps", call.eps}},
              true},
             {"route_large_logits_" + format,
              {parts(call.max_rows, kRouteTileRows), parts(experts, kRouteTileExperts), 1},
              {kRouteTileThreads, 1, 1},
              0,
              {{"quants", quants},
               {"scales", scales},
               {"step", call.step},
               {"n", call.n},
               {"logits", call.logits},
               {"hidden", hidden},
               {"experts", experts}},
              true},
             {"route_large_choose",
              {parts(call.max_rows, kRouteChooseRows), 1, 1},
              {32 * kRouteChooseRows, 1, 1},
              0,
              {{"logits", call.logits},
               {"step", call.step},
               {"chosen", chosen},
               {"scores", scores},
               {"counts", counts},
               {"experts", experts},
               {"top_k", int32_t{call.top_k}},
               {"scoring", scoring}},
              true},
             {"route_large_sort",
              {static_cast<uint32_t>(experts) + 1, 1, 1},
              {kRouteThreads, 1, 1},
              0,
              {{"chosen", chosen},
               {"scores", scores},
               {"counts", counts},
               {"step", call.step},
               {"count", call.groups.count},
               {"expert", call.groups.expert},
               {"first", call.groups.first},
               {"row", call.groups.row},
               {"score", call.groups.score},
               {"entry", call.entry},
               {"experts", experts},
               {"top_k", int32_t{call.top_k}},
               {"shared", shared}},
              true}},
            {}};
}

}  // namespace llama_ext::cuda
