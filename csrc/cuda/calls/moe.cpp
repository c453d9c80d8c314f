#include "cuda/calls/calls.h"
#include "cuda/moe_calls.h"

namespace llama_ext::cuda::calls {

Plan build(const MoeRoute& call, const Card&, Scratch&) {
    return moe_route(
        {format_of(call.type), call.rows, call.experts, call.top_k, call.scoring, {call.logits}, {call.chosen}, {call.scores}});
}

Plan build(const MoeDispatch& call, const Card&, Scratch&) {
    return moe_dispatch({format_of(call.type),
                         call.rows,
                         call.top_k,
                         call.hidden,
                         call.num_experts,
                         {call.x},
                         {call.experts},
                         {call.scores},
                         {call.gathered},
                         {call.offsets},
                         {call.source}});
}

Plan build(const MoeCombine& call, const Card&, Scratch& scratch) {
    const Address place = scratch.take(8 * product_of("moe_combine", "y", {call.rows, call.top_k}));
    return moe_combine(
        {format_of(call.type), call.rows, call.top_k, call.hidden, {call.y}, {call.source}, {call.scores}, place, {call.out}});
}

}  // namespace llama_ext::cuda::calls
