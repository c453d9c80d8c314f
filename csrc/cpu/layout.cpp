#include "cpu/layout.h"

#include <algorithm>

namespace llama_ext::cpu {
namespace {

// The widest row of each kind in the whole program: what the buffers are made for.
struct Widths {
    int64_t q = 0, kv = 0, h = 0, head_dim = 0;
    int64_t product;            // input of a product
    int64_t block_queries = 0;  // heads times blocks of slots
    // Of mixtures of experts: experts, experts chosen, entries a row (mixture.h), inputs of a row's products with down.
    int64_t experts = 0, top_k = 0, passes = 0, expert_inputs = 0;

    explicit Widths(const Program& program) : product(program.hidden) {
        for (const Instruction& instruction : program.code) {
            if (const auto* i = std::get_if<Attention>(&instruction)) {
                const int64_t capacity = program.caches[static_cast<size_t>(i->cache)].capacity;
                q = std::max<int64_t>(q, int64_t{i->heads} * i->head_dim);
                kv = std::max<int64_t>(kv, int64_t{i->kv_heads} * i->head_dim);
                head_dim = std::max<int64_t>(head_dim, i->head_dim);
                block_queries = std::max(block_queries, i->heads * ((capacity + kKeyBlock - 1) / kKeyBlock));
            }
            if (const auto* i = std::get_if<GateUp>(&instruction)) h = std::max(h, i->gate->rows);
            if (const auto* i = std::get_if<Route>(&instruction)) {
                experts = std::max(experts, i->router->rows);
                top_k = std::max<int64_t>(top_k, i->top_k);
            }
            if (const auto* i = std::get_if<ExpertsGateUp>(&instruction)) {
                passes = std::max<int64_t>(passes, top_k + (i->shared_gate ? 1 : 0));
                expert_inputs = std::max(expert_inputs, passes * i->gate[0]->rows);
            }
            for (const WeightPtr& w : weights(instruction)) product = std::max(product, w->cols);
        }
        h = std::max(h, expert_inputs);
    }
};

// Hands out pieces of one allocation; without one it only adds up.
struct Carver {
    std::byte* base;
    size_t used = 0;

    template <class T>
    void take(T*& pointer, int64_t count) {
        pointer = base ? reinterpret_cast<T*>(base + used) : nullptr;
        used += aligned(static_cast<size_t>(count) * sizeof(T));
    }

    // `inputs` of products lie in a row's `cols` columns.
    void take(ActivationBuffers& buffers, int64_t rows, int64_t cols, int64_t inputs) {
        take(buffers.f32, rows * cols);
        take(buffers.q15, rows * (cols / 32 + 1));
        buffers.bf16 = nullptr;
        if (rows <= kExactRows) return;
        take(buffers.bf16, (rows + kBf16Tile) * ((cols + inputs) / 2));
    }
};

}  // namespace

size_t lay_out(const Program& program, const std::vector<Rotation>& rotations, size_t scratch, std::byte* base, Step* step,
               float** own_logits) {
    const Widths widths(program);
    const int64_t rows = program.max_rows, entries = rows * widths.passes;
    int64_t angles = 0;
    for (const Rotation& r : rotations) angles += rotation_pairs(program, r) * rows;
    Carver carver{base};
    carver.take(step->x, rows * program.hidden);
    carver.take(step->q, rows * widths.q);
    carver.take(step->k, rows * widths.kv);
    carver.take(step->v, rows * widths.kv);
    carver.take(step->a, rows * widths.q);
    carver.take(step->h, rows * widths.h);
    if (entries) {
        Mixture& m = step->mixture;
        carver.take(step->n, rows * program.hidden);
        carver.take(step->gathered, entries * program.hidden);
        carver.take(step->y, entries * program.hidden);
        carver.take(m.logits, rows * widths.experts);
        carver.take(m.chosen, rows * widths.top_k);
        carver.take(m.scores, rows * widths.top_k);
        carver.take(m.first, widths.experts + 2);
        carver.take(m.row, entries);
        carver.take(m.score, entries);
        carver.take(m.entry, entries);
        carver.take(m.active, widths.experts + 1);
    }
    carver.take(step->block_values, widths.block_queries * widths.head_dim);
    carver.take(step->block_partials, widths.block_queries);
    carver.take(step->cosine, angles);
    carver.take(step->sine, angles);
    carver.take(*own_logits, program.vocab);
    carver.take(step->shared, rows, std::max({widths.product, widths.passes * program.hidden, widths.expert_inputs}),
                std::max<int64_t>(1, widths.passes));
    for (MemberBuffers& m : step->members) {
        carver.take(m.activation, 1, std::max(widths.product, widths.expert_inputs), std::max<int64_t>(1, widths.passes));
        carver.take(m.row, widths.product);
        carver.take(m.bytes, static_cast<int64_t>(scratch));
        carver.take(m.tile, 2 * kGroupsAtOnce * rows * kGroup);
        carver.take(m.partials, kQueryTile * widths.head_dim);
    }
    return carver.used;
}

}  // namespace llama_ext::cpu
