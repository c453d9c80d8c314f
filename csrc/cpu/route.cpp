#include "program/route.h"

#include <algorithm>
#include <cstring>

#include "cpu/bind.h"
#include "cpu/groups.h"
#include "cpu/prepare.h"

namespace llama_ext::cpu {
namespace {

struct BoundRoute final : BoundInstruction {
    PackedWeight router;
    const float* norm;
    float eps;
    int layer, top_k;
    Scoring scoring;
    bool shared;  // a shared expert follows
    bool mapped;  // the experts lie in their file

    void run(Step& step, int member) const override {
        logits(step, member, normalise(step, member));
        step.team.barrier();
        const int64_t experts = router.rows;
        // One row's experts are chosen by the member that goes on with them.
        const Share mine = step.rows > 1 ? share(step.rows, member, step.team.size()) : Share{0, member == 0 ? 1 : 0};
        for (int64_t r = mine.begin; r < mine.end; ++r)
            route(step.mixture.logits + r * experts, static_cast<int>(experts), top_k, scoring, step.mixture.chosen + r * top_k,
                  step.mixture.scores + r * top_k);
        if (step.rows > 1) step.team.barrier();
        if (member != 0) return;
        sort(step);
        if (mapped && step.rows == 1) {
            const std::span<const int32_t> chosen{step.mixture.chosen, static_cast<size_t>(top_k)};
            step.residency->use(layer, Residency::Part::gate_up, chosen);
            step.residency->use(layer, Residency::Part::down, chosen);
        }
    }

    // Into step.n. What this member needs of it at once is returned: with one row, before the others have written theirs.
    const float* normalise(Step& step, int member) const {
        const int64_t hidden = step.program.hidden;
        if (step.rows == 1) {
            float* n = step.members[static_cast<size_t>(member)].row;
            step.kernels.rms_norm(step.x, norm, eps, hidden, n);
            const Share mine = share(hidden, member, step.team.size());
            std::memcpy(step.n + mine.begin, n + mine.begin, static_cast<size_t>(mine.end - mine.begin) * sizeof(float));
            return n;
        }
        const Share mine = share(step.rows, member, step.team.size());
        for (int64_t r = mine.begin; r < mine.end; ++r)
            step.kernels.rms_norm(step.x + r * hidden, norm, eps, hidden, step.n + r * hidden);
        step.team.barrier();
        return step.n;
    }

    void logits(Step& step, int member, const float* n) const {
        const Activation input = prepare(step, member, n, step.rows, router.cols, nullptr, 0, forms_of({&router}), Coarse::none);
        const Share mine = share(router.groups, member, step.team.size());
        for_each_group(step, member, router, mine, input, 0, step.rows, [&](int64_t g, const float* tile) {
            const int64_t first = g * kGroup, count = std::min<int64_t>(kGroup, router.rows - first);
            for (int64_t r = 0; r < step.rows; ++r)
                std::memcpy(step.mixture.logits + r * router.rows + first, tile + r * kGroup,
                            static_cast<size_t>(count) * sizeof(float));
        });
    }

    // Counts, so that entries come out by expert and, within one, by row.
    void sort(Step& step) const {
        Mixture& m = step.mixture;
        const int32_t experts = static_cast<int32_t>(router.rows);
        const int32_t rows = step.rows;
        m.experts = experts;
        m.passes = top_k + (shared ? 1 : 0);
        std::fill(m.first, m.first + experts + 2, 0);
        for (int32_t i = 0; i < rows * top_k; ++i) ++m.first[m.chosen[i] + 1];
        m.first[experts + 1] = shared ? rows : 0;
        m.active_count = 0;
        for (int32_t e = 0; e <= experts; ++e) {
            if (m.first[e + 1]) m.active[m.active_count++] = e;
            m.first[e + 1] += m.first[e];
        }
        for (int32_t r = 0; r < rows; ++r) {
            for (int32_t j = 0; j < m.passes; ++j) {
                const int32_t expert = j < top_k ? m.chosen[r * top_k + j] : experts;
                const int32_t n = m.first[expert]++;
                m.row[n] = r;
                m.score[n] = j < top_k ? m.scores[r * top_k + j] : 1.0f;
                m.entry[r * m.passes + j] = n;
            }
        }
        // Each first[e] has walked to the end of its entries, which is where those of e + 1 begin.
        for (int32_t e = experts + 1; e > 0; --e) m.first[e] = m.first[e - 1];
        m.first[0] = 0;
    }
};

}  // namespace

std::unique_ptr<BoundInstruction> bind(const Route& instruction, Binder& binder) {
    auto bound = std::make_unique<BoundRoute>();
    bound->norm = binder.vector(*instruction.norm);
    bound->router = binder.pack(*instruction.router);
    bound->eps = instruction.eps;
    bound->layer = instruction.layer;
    bound->top_k = instruction.top_k;
    bound->scoring = instruction.scoring;
    bound->shared = binder.has_shared_expert(instruction.layer);
    bound->mapped = binder.experts_mapped();
    return bound;
}

}  // namespace llama_ext::cpu
