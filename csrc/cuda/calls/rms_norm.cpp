#include "cuda/rms_norm.h"

#include "cuda/calls/calls.h"
#include "cuda/check.h"

namespace llama_ext::cuda::calls {

Plan build(const RmsNorm& call, const Card&, Scratch& scratch) {
    require_range("rms_norm", "rows", call.rows, 1, INT32_MAX);
    require_range("rms_norm", "n", call.n, 1, INT32_MAX);
    const int64_t values = product_of("rms_norm", "x", {call.rows, call.n});
    Plan plan;
    RmsNormCall norm{{call.x}, {call.weight}, {call.out}, call.rows, call.n, call.eps};
    if (call.type == Type::bf16) {
        norm.x = norm.y = scratch.take(4 * values);
        from_bf16(&plan, {call.x}, norm.x, values);
    }
    if (call.weight && call.weight_type == Type::bf16) {
        norm.weight = scratch.take(4 * call.n);
        from_bf16(&plan, {call.weight}, norm.weight, call.n);
    }
    append(&plan, rms_norm(norm));
    if (call.type == Type::bf16) to_bf16(&plan, norm.y, {call.out}, values);
    return plan;
}

}  // namespace llama_ext::cuda::calls
