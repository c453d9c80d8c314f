#include <vector>

#include "cpu/calls/calls.h"

namespace llama_ext::cpu {

void rms_norm(const Kernels& kernels, const RmsNormCall& call, const Parallel& parallel) {
    parallel(call.rows, grain(call.n), [&](int64_t begin, int64_t end) {
        std::vector<float> row(static_cast<size_t>(call.n));
        for (int64_t r = begin; r < end; ++r) {
            widen(call.type, at(call.x, call.type, r * call.n), call.n, row.data());
            kernels.rms_norm(row.data(), call.weight, call.eps, call.n, row.data());
            narrow(call.type, row.data(), call.n, at(call.out, call.type, r * call.n));
        }
    });
}

}  // namespace llama_ext::cpu
