#include "cuda/calls/calls.h"
#include "cuda/check.h"
#include "cuda/kernels/rope_call.h"

namespace llama_ext::cuda::calls {

Plan build(const Rope& call, const Card&, Scratch& scratch) {
    constexpr const char* name = "rope";
    require(call.head_dim % 2 == 0, name, "head_dim", std::to_string(call.head_dim), "even");
    require_address(name, "positions", {call.positions}, 8);
    require_address(name, "inverse_frequency", {call.inverse_frequency}, 8);
    require_address(name, "x", {call.x}, static_cast<uint64_t>(value_bytes(call.type)));
    require_address(name, "out", {call.out}, static_cast<uint64_t>(value_bytes(call.type)));
    const int64_t pairs = call.head_dim / 2, angles = product_of(name, "positions", {call.rows, pairs});
    const int64_t count = product_of(name, "x", {call.batch, call.rows, call.heads, pairs});
    const Address table = scratch.take(8 * angles);
    return {{{"rope_call_table",
              {blocks(name, angles, kRopeCallThreads), 1, 1},
              {kRopeCallThreads, 1, 1},
              0,
              {{"positions", Address{call.positions}},
               {"inverse_frequency", Address{call.inverse_frequency}},
               {"table", table},
               {"rows", call.rows},
               {"pairs", pairs}},
              true},
             {call.type == Type::f32 ? "rope_call_f32" : "rope_call_bf16",
              {blocks(name, count, kRopeCallThreads), 1, 1},
              {kRopeCallThreads, 1, 1},
              0,
              {{"x", Address{call.x}},
               {"table", table},
               {"out", Address{call.out}},
               {"count", count},
               {"rows", call.rows},
               {"heads", call.heads},
               {"pairs", pairs},
               {"interleaved", int32_t{call.interleaved}}},
              true}},
            {}};
}

}  // namespace llama_ext::cuda::calls
