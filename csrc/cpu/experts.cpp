// experts_gate_up and experts_down: an expert's matrices against the rows that its router gave it. Every member takes a share of
// each expert's groups, so the work is even however the rows fell.
#include <algorithm>
#include <cstring>

#include "cpu/bind.h"
#include "cpu/groups.h"
#include "cpu/prepare.h"

namespace llama_ext::cpu {
namespace {

// Matrices of one kind, an expert each and, perhaps, the shared one behind them.
using Matrices = std::vector<PackedWeight>;

// Before an expert's matrices are touched in a step of several rows. In a step of one row its route has seen to that.
void make_resident(Step& step, int member, int layer, Residency::Part part, int at) {
    if (step.rows == 1 || !step.residency) return;
    const Mixture& m = step.mixture;
    const auto in_file = [&](int i) { return i < m.active_count && m.active[i] < m.experts; };
    if (in_file(at)) {
        // Nobody reads any longer what may be given back now.
        step.team.barrier();
        if (member == 0) {
            step.residency->use(layer, part, {m.active + at, 1});
            if (in_file(at + 1)) step.residency->expect(layer, part, m.active[at + 1]);
        }
        step.team.barrier();
    }
}

Forms forms_of_all(std::initializer_list<const Matrices*> kinds) {
    Forms forms;
    for (const Matrices* kind : kinds) {
        for (const PackedWeight& w : *kind) {
            const Forms of_one = forms_of({&w});
            forms.f32 |= of_one.f32;
            forms.bf16 |= of_one.bf16;
            forms.integers |= of_one.integers;
        }
    }
    return forms;
}

struct BoundExpertsGateUp final : BoundInstruction {
    Matrices gate, up;
    Forms forms;
    int layer;
    bool scale_input;

    void run(Step& step, int member) const override {
        const Mixture& m = step.mixture;
        const int64_t intermediate = gate[0].rows;
        // One row is every expert's input; several are sorted by expert first.
        const bool one = step.rows == 1;
        const Activation x =
            one ? prepare(step, member, step.n, 1, step.program.hidden, nullptr, 0, forms, Coarse::all) : gather(step, member);
        for (int a = 0; a < m.active_count; ++a) {
            make_resident(step, member, layer, Residency::Part::gate_up, a);
            const size_t e = static_cast<size_t>(m.active[a]);
            const int64_t begin = m.first[e], rows = m.first[e + 1] - begin;
            const Share mine = share(gate[e].groups, member, step.team.size());
            const auto use = [&](int64_t g, float* gate_tile, float* up_tile) {
                const int64_t first = g * kGroup, count = std::min<int64_t>(kGroup, intermediate - first);
                for (int64_t r = 0; r < rows; ++r) {
                    float* gates = gate_tile + r * kGroup;
                    float* ups = up_tile + r * kGroup;
                    // W (s n) = s (W n): n is quantized once, whatever its scores.
                    if (scale_input) {
                        const float s = m.score[begin + r];
                        for (int64_t j = 0; j < count; ++j) gates[j] *= s, ups[j] *= s;
                    }
                    step.kernels.silu_times(gates, ups, count, step.h + (begin + r) * intermediate + first);
                }
            };
            for_each_group(step, member, gate[e], up[e], mine, x, one ? 0 : begin, rows, use);
        }
    }

    Activation gather(Step& step, int member) const {
        const Mixture& m = step.mixture;
        const int64_t hidden = step.program.hidden, entries = int64_t{step.rows} * m.passes;
        const Share mine = share(entries, member, step.team.size());
        for (int64_t n = mine.begin; n < mine.end; ++n)
            std::memcpy(step.gathered + n * hidden, step.n + m.row[n] * hidden, static_cast<size_t>(hidden) * sizeof(float));
        // prepare shares rows out as above: a member reads what it has copied itself, and floats only after its barrier.
        return prepare(step, member, step.gathered, entries, hidden, nullptr, 0, forms, Coarse::all);
    }
};

struct BoundExpertsDown final : BoundInstruction {
    Matrices down;
    Forms forms;
    int layer;
    bool scale_output;

    void run(Step& step, int member) const override {
        const Mixture& m = step.mixture;
        const int64_t hidden = down[0].rows, cols = down[0].cols;
        const Activation input =
            prepare(step, member, step.h, int64_t{step.rows} * m.passes, cols, nullptr, 0, forms, Coarse::all);
        const Share mine = share(down[0].groups, member, step.team.size());
        for (int a = 0; a < m.active_count; ++a) {
            make_resident(step, member, layer, Residency::Part::down, a);
            const size_t e = static_cast<size_t>(m.active[a]);
            const int64_t begin = m.first[e], rows = m.first[e + 1] - begin;
            for_each_group(step, member, down[e], mine, input, begin, rows, [&](int64_t g, const float* tile) {
                const int64_t first = g * kGroup, count = std::min<int64_t>(kGroup, hidden - first);
                for (int64_t r = 0; r < rows; ++r)
                    std::memcpy(step.y + (begin + r) * hidden + first, tile + r * kGroup,
                                static_cast<size_t>(count) * sizeof(float));
            });
        }
        // A member has the same columns of every expert: it adds up what it has written itself.
        const int64_t first = mine.begin * kGroup, last = std::min(mine.end * kGroup, hidden);
        for (int64_t r = 0; r < step.rows; ++r) {
            float* x = step.x + r * hidden;
            for (int j = 0; j < m.passes; ++j) {
                const int64_t n = m.entry[r * m.passes + j];
                const float s = scale_output ? m.score[n] : 1.0f;
                const float* y = step.y + n * hidden;
                for (int64_t c = first; c < last; ++c) x[c] += s * y[c];
            }
        }
    }
};

Matrices bind_all(const std::vector<WeightPtr>& experts, const WeightPtr& shared, int layer, Residency::Part part,
                  Binder& binder) {
    Matrices bound;
    for (size_t e = 0; e < experts.size(); ++e) bound.push_back(binder.expert(*experts[e], layer, part, static_cast<int>(e)));
    if (shared) bound.push_back(binder.pack(*shared));
    return bound;
}

}  // namespace

std::unique_ptr<BoundInstruction> bind(const ExpertsGateUp& instruction, Binder& binder) {
    auto bound = std::make_unique<BoundExpertsGateUp>();
    bound->gate = bind_all(instruction.gate, instruction.shared_gate, instruction.layer, Residency::Part::gate_up, binder);
    bound->up = bind_all(instruction.up, instruction.shared_up, instruction.layer, Residency::Part::gate_up, binder);
    bound->forms = forms_of_all({&bound->gate, &bound->up});
    bound->layer = instruction.layer;
    bound->scale_input = instruction.scale_input;
    return bound;
}

std::unique_ptr<BoundInstruction> bind(const ExpertsDown& instruction, Binder& binder) {
    auto bound = std::make_unique<BoundExpertsDown>();
    bound->down = bind_all(instruction.down, instruction.shared_down, instruction.layer, Residency::Part::down, binder);
    bound->forms = forms_of_all({&bound->down});
    bound->layer = instruction.layer;
    bound->scale_output = instruction.scale_output;
    return bound;
}

}  // namespace llama_ext::cpu
