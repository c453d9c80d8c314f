#include "program/cost.h"

#include <algorithm>

namespace llama_ext {
namespace {

template <class... F>
struct Overload : F... {
    using F::operator()...;
};
template <class... F>
Overload(F...) -> Overload<F...>;

int64_t product_operations(const Weight& w, int64_t rows) { return 2 * w.rows * w.cols * rows; }

// Keys that the rows position .. position + rows - 1 look at, summed over the rows.
int64_t keys_seen(const Mask& mask, int64_t rows, int64_t position) {
    if (mask.kind == Mask::Kind::global) return rows * position + rows * (rows + 1) / 2;
    int64_t keys = 0;
    for (int64_t p = position; p < position + rows; ++p) keys += p - mask.first_key(p) + 1;
    return keys;
}

int64_t bytes_of(const WeightPtr& w) { return w ? static_cast<int64_t>(w->bytes()) : 0; }

// The router of the mixture whose expert instruction this is.
const Route& route_of(const Program& program, const Instruction& instruction) {
    const Route* route = nullptr;
    for (const Instruction& other : program.code) {
        if (const auto* found = std::get_if<Route>(&other); found && found->layer == layer(instruction)) route = found;
    }
    return *route;
}

}  // namespace

Cost cost(const Program& program, const Instruction& instruction, int64_t rows, int64_t position, int64_t logit_rows) {
    Cost c;
    for (const WeightPtr& w : weights(instruction)) c.weight_bytes += static_cast<int64_t>(w->bytes());
    // Experts are alike in size; the first stands for all.
    const auto chosen = [&](int64_t experts) { return std::min(experts, rows * route_of(program, instruction).top_k); };
    std::visit(
        Overload{
            [&](const Route& i) { c.operations = product_operations(*i.router, rows); },
            [&](const ExpertsGateUp& i) {
                const int64_t each = bytes_of(i.gate[0]) + bytes_of(i.up[0]);
                c.weight_bytes =
                    chosen(static_cast<int64_t>(i.gate.size())) * each + bytes_of(i.shared_gate) + bytes_of(i.shared_up);
                const int64_t passes = rows * (route_of(program, instruction).top_k + (i.shared_gate ? 1 : 0));
                c.operations = 2 * product_operations(*i.gate[0], passes);
            },
            [&](const ExpertsDown& i) {
                c.weight_bytes = chosen(static_cast<int64_t>(i.down.size())) * bytes_of(i.down[0]) + bytes_of(i.shared_down);
                const int64_t passes = rows * (route_of(program, instruction).top_k + (i.shared_down ? 1 : 0));
                c.operations = product_operations(*i.down[0], passes);
            },
            [&](const Embed& i) { c.weight_bytes = rows * static_cast<int64_t>(row_bytes(i.table->format, i.table->cols)); },
            [&](const Qkv& i) {
                c.operations = product_operations(*i.q, rows) + product_operations(*i.k, rows) + product_operations(*i.v, rows);
            },
            [&](const Attention& i) {
                const CacheLayer& cache = program.caches[static_cast<size_t>(i.cache)];
                const int64_t keys = keys_seen(i.mask, rows, position);
                // Rows of one step share what they read: the span from the first row's first key to the last row.
                const int64_t span = position + rows - i.mask.first_key(position);
                c.cache_bytes = (span + rows) * static_cast<int64_t>(cache.bytes_per_slot());
                c.operations = 4 * keys * i.heads * i.head_dim;
            },
            [&](const Output& i) { c.operations = product_operations(*i.weight, rows); },
            [&](const GateUp& i) { c.operations = product_operations(*i.gate, rows) + product_operations(*i.up, rows); },
            [&](const Down& i) { c.operations = product_operations(*i.weight, rows); },
            [&](const Head& i) {
                c.operations = product_operations(*i.weight, logit_rows);
                if (logit_rows == 0) c.weight_bytes = 0;
            },
            [&](const Sample&) {},
        },
        instruction);
    return c;
}

}  // namespace llama_ext
