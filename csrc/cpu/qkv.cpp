#include <algorithm>
#include <cstring>

#include "cpu/bind.h"
#include "cpu/groups.h"
#include "cpu/prepare.h"

namespace llama_ext::cpu {
namespace {

struct BoundQkv final : BoundInstruction {
    PackedWeight q, k, v;
    const float* norm;
    float eps;
    int head_dim;
    int64_t rotation;

    // Groups of q, then of k, then of v: one row of work to share out.
    void run(Step& step, int member) const override {
        const Activation x =
            prepare(step, member, step.x, step.rows, step.program.hidden, norm, eps, forms_of({&q, &k, &v}), Coarse::bf16);
        const Share mine = share(q.groups + k.groups + v.groups, member, step.team.size());
        int64_t before = 0;
        const auto part = [&](const PackedWeight& w, float* out, int64_t rotation_offset) {
            const Share of_it{std::clamp(mine.begin - before, int64_t{0}, w.groups),
                              std::clamp(mine.end - before, int64_t{0}, w.groups)};
            before += w.groups;
            for_each_group(step, member, w, of_it, x, 0, step.rows,
                           [&](int64_t g, const float* tile) { put(step, w, g, tile, out, rotation_offset); });
        };
        part(q, step.q, rotation);
        part(k, step.k, rotation);
        part(v, step.v, -1);
    }

    // A group's results to `out`, rotated.
    void put(const Step& step, const PackedWeight& w, int64_t g, const float* tile, float* out, int64_t rotation_offset) const {
        const int64_t first = g * kGroup, last = std::min(first + kGroup, w.rows);
        for (int64_t r = 0; r < step.rows; ++r) {
            std::memcpy(out + r * w.rows + first, tile + r * kGroup, static_cast<size_t>(last - first) * sizeof(float));
            if (rotation_offset < 0) continue;
            // A group may hold the end of one head and the beginning of the next.
            for (int64_t at = first; at < last;) {
                const int64_t in_head = at % head_dim, count = std::min(last - at, head_dim - in_head);
                const int64_t angle = rotation_offset + r * (head_dim / 2) + in_head / 2;
                step.kernels.rotate(out + r * w.rows + at, step.cosine + angle, step.sine + angle, count);
                at += count;
            }
        }
    }
};

}  // namespace

std::unique_ptr<BoundInstruction> bind(const Qkv& instruction, Binder& binder) {
    auto bound = std::make_unique<BoundQkv>();
    bound->norm = binder.vector(*instruction.norm);
    bound->q = binder.pack(*instruction.q);
    bound->k = binder.pack(*instruction.k);
    bound->v = binder.pack(*instruction.v);
    bound->eps = instruction.eps;
    bound->head_dim = instruction.head_dim;
    bound->rotation = binder.rotation(instruction.rope, instruction.rope_chunk);
    return bound;
}

}  // namespace llama_ext::cpu
