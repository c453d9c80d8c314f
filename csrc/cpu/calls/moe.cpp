// What a mixture of experts does around its products: choosing experts, bringing rows together by expert, adding the results.
// Rows are grouped by counting, in one pass over the choices: O(choices + experts), no sort.
#include <cstring>
#include <vector>

#include "cpu/calls/calls.h"

namespace llama_ext::cpu {

void moe_route(const MoeRouteCall& call, const Parallel& parallel) {
    parallel(call.rows, grain(int64_t{call.experts} + 64 * call.top_k), [&](int64_t begin, int64_t end) {
        std::vector<float> logits(static_cast<size_t>(call.experts));
        std::vector<int32_t> chosen(static_cast<size_t>(call.top_k));
        for (int64_t row = begin; row < end; ++row) {
            widen(call.type, at(call.logits, call.type, row * call.experts), call.experts, logits.data());
            route(logits.data(), call.experts, call.top_k, call.scoring, chosen.data(), call.scores + row * call.top_k);
            for (int i = 0; i < call.top_k; ++i) call.chosen[row * call.top_k + i] = chosen[static_cast<size_t>(i)];
        }
    });
}

namespace {

// offsets[e] .. offsets[e + 1]: the places of expert e's rows; source[place]: the choice that goes there
void group(const MoeDispatchCall& call) {
    const int64_t choices = call.rows * call.top_k;
    std::vector<int64_t> next(static_cast<size_t>(call.num_experts));
    for (int64_t i = 0; i < choices; ++i) ++next[static_cast<size_t>(call.experts[i])];
    int64_t total = 0;
    for (int64_t e = 0; e < call.num_experts; ++e) {
        const int64_t count = next[static_cast<size_t>(e)];
        call.offsets[e] = next[static_cast<size_t>(e)] = total;
        total += count;
    }
    call.offsets[call.num_experts] = total;
    for (int64_t i = 0; i < choices; ++i) call.source[next[static_cast<size_t>(call.experts[i])]++] = i;
}

}  // namespace

void moe_dispatch(const MoeDispatchCall& call, const Parallel& parallel) {
    group(call);
    if (call.hidden == 0) return;
    const size_t row_size = static_cast<size_t>(call.hidden) * value_bytes(call.type);
    parallel(call.rows * call.top_k, grain(call.hidden), [&](int64_t begin, int64_t end) {
        std::vector<float> row(call.scores ? static_cast<size_t>(call.hidden) : 0);
        for (int64_t place = begin; place < end; ++place) {
            const int64_t choice = call.source[place];
            const std::byte* from = at(call.x, call.type, choice / call.top_k * call.hidden);
            std::byte* to = at(call.gathered, call.type, place * call.hidden);
            if (!call.scores) {
                std::memcpy(to, from, row_size);
                continue;
            }
            widen(call.type, from, call.hidden, row.data());
            for (float& value : row) value *= call.scores[choice];
            narrow(call.type, row.data(), call.hidden, to);
        }
    });
}

void moe_combine(const MoeCombineCall& call, const Parallel& parallel) {
    parallel(call.rows, grain(2 * call.top_k * call.hidden), [&](int64_t begin, int64_t end) {
        std::vector<float> result(static_cast<size_t>(call.hidden)), sum(result.size());
        for (int64_t row = begin; row < end; ++row) {
            for (int64_t choice = row * call.top_k; choice < (row + 1) * call.top_k; ++choice) {
                widen(call.type, at(call.y, call.type, call.place[choice] * call.hidden), call.hidden, result.data());
                if (call.scores)
                    for (float& value : result) value *= call.scores[choice];
                if (choice == row * call.top_k)
                    sum.swap(result);
                else
                    for (size_t i = 0; i < sum.size(); ++i) sum[i] += result[i];
            }
            narrow(call.type, sum.data(), call.hidden, at(call.out, call.type, row * call.hidden));
        }
    });
}

}  // namespace llama_ext::cpu
