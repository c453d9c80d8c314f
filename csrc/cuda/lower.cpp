#include "cuda/lower.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cuda/attention.h"
#include "cuda/combine.h"
#include "cuda/embed.h"
#include "cuda/fetch.h"
#include "cuda/kernels/step.h"
#include "cuda/rms_norm.h"
#include "cuda/rope.h"
#include "cuda/route.h"
#include "cuda/sample.h"

namespace llama_ext::cuda {
namespace {

Address offset(Address address, int64_t bytes) { return {address.value + static_cast<uint64_t>(bytes)}; }

class Base : public Lowered {
protected:
    Base(const Lowering& at, const Instruction& instruction)
        : card_(at.card), places_(at.places), hidden_(at.program.hidden), label_(name(instruction)) {
        if (const int number = layer(instruction); number >= 0) label_ = "layers." + std::to_string(number) + "." + label_;
    }

    void add(Plan part, Plan* plan) const {
        for (Launch& launch : part.launches) {
            launch.label = label_;
            plan->launches.push_back(std::move(launch));
        }
    }

    ProductCall call(const Matrix& weight, const Form& form, Address x, Address y, int64_t y_stride) const {
        ProductCall call{};
        call.weight = weight;
        call.step = places_.step;
        call.max_rows = form.rows;
        call.which = Rows::all;
        call.x = x;
        call.epilogue = Epilogue::store;
        call.y = y;
        call.y_stride = y_stride;
        return call;
    }

    Plan multiply(const ProductCall& call, const Form& form) const {
        return form.tiles() ? product_tiles(call, card_) : product(call, card_);
    }

    // The norm in front of `call`: in the product itself, or by a launch of its own into n.
    void normalise(Address norm, float eps, const Form& form, ProductCall* call, Plan* plan) const {
        if (!form.tiles()) {
            call->norm = norm;
            call->eps = eps;
            return;
        }
        add(rms_norm({call->x, norm, places_.n, form.rows, hidden_, eps}), plan);
        call->x = places_.n;
    }

    const Card card_;
    const Places& places_;
    const int64_t hidden_;
    std::string label_;
};

// gate and up as one matrix, or, of two formats, both widened to one
Matrix gate_and_up(const Lowering& at, const WeightPtr& gate, const WeightPtr& up) {
    const Stack stack{{gate, up}, Stack::Order::interleaved};
    if (!stack.one_format())
        throw std::invalid_argument("gate and up of a layer have two formats, " + std::string(info(gate->format).name) + " and " +
                                    std::string(info(up->format).name) +
                                    ", which CUDA does not serve: convert the model (weights=...)");
    return at.weights.matrix(stack);
}

class LoweredEmbed final : public Base {
public:
    LoweredEmbed(const Embed& i, const Instruction& instruction, const Lowering& at)
        : Base(at, instruction), table_(at.weights.matrix(i.table)) {}

    void emit(const Form& form, Plan* plan) const override {
        const int tables = static_cast<int>(places_.tables.size());
        add(embed({table_, places_.ids, places_.step, places_.x, form.rows, tables ? places_.rotations : Address{}, tables}),
            plan);
    }

private:
    Matrix table_;
};

class LoweredQkv final : public Base {
public:
    LoweredQkv(const Qkv& i, const Instruction& instruction, const Lowering& at)
        : Base(at, instruction), norm_(at.weights.vector(i.norm)), eps_(i.eps), heads_(i.heads + i.kv_heads) {
        width_ = int64_t{i.heads + 2 * i.kv_heads} * i.head_dim;
        rotated_ = int64_t{heads_} * i.head_dim;
        if (i.rope >= 0) {
            table_ = at.places.tables.at({i.rope, i.rope_chunk});
            pairs_ = i.head_dim / 2;
        }
        // Neighbours of one format are one matrix: mostly all three.
        std::vector<Stack> stacks;
        for (const WeightPtr& part : {i.q, i.k, i.v}) {
            if (stacks.empty() || stacks.back().format() != part->format)
                stacks.push_back({{part}});
            else
                stacks.back().parts.push_back(part);
        }
        for (const Stack& stack : stacks) matrices_.push_back(at.weights.matrix(stack));
    }

    void emit(const Form& form, Plan* plan) const override {
        ProductCall call = this->call({}, form, places_.x, places_.qkv, width_);
        normalise(norm_, eps_, form, &call, plan);
        int64_t first = 0;
        for (const Matrix& matrix : matrices_) {
            call.weight = matrix;
            call.y = offset(places_.qkv, first * int64_t{sizeof(float)});
            const int64_t rotated = std::clamp<int64_t>(rotated_ - first, 0, matrix.rows);
            const bool here = table_.value && rotated && !form.tiles();
            call.epilogue = here ? Epilogue::rotate : Epilogue::store;
            call.table = here ? table_ : Address{};
            call.rotated = here ? rotated : 0;
            call.pairs = here ? pairs_ : 0;
            add(multiply(call, form), plan);
            first += matrix.rows;
        }
        if (form.tiles() && table_.value) add(rope({places_.qkv, table_, form.rows, width_, heads_, pairs_}), plan);
    }

private:
    Address norm_;
    float eps_;
    int heads_;  // that turn
    int64_t width_, rotated_;
    Address table_{};
    int32_t pairs_ = 0;
    std::vector<Matrix> matrices_;
};

class LoweredAttention final : public Base {
public:
    LoweredAttention(const Attention& i, const Instruction& instruction, const Lowering& at)
        : Base(at, instruction),
          instruction_(i),
          format_(at.program.caches[static_cast<size_t>(i.cache)].format),
          splits_(at.splits) {}

    void emit(const Form& form, Plan* plan) const override {
        const Attention& i = instruction_;
        AttentionCall call{};
        call.qkv = places_.qkv;
        call.step = places_.step;
        call.cache = offset(places_.caches, i.cache * int64_t{sizeof(CacheState)});
        call.out = places_.a;
        call.scratch = places_.attention_scratch;
        call.max_rows = form.rows;
        call.heads = i.heads;
        call.kv_heads = i.kv_heads;
        call.head_dim = i.head_dim;
        call.format = format_;
        call.mask = i.mask;
        call.scale = i.scale;
        call.qk_norm = i.qk_norm;
        call.qk_norm_eps = i.qk_norm_eps;
        call.temperature_scale = i.temperature_scale;
        call.temperature_floor = i.temperature_floor;
        call.splits = splits_;
        if (form.tiles()) {
            add(attention_append(call, card_), plan);
            add(attention_prefill(call, card_), plan);
        } else {
            add(attention(call, card_), plan);
        }
    }

private:
    const Attention instruction_;
    const CacheFormat format_;
    const int splits_;
};

// output and down: a product that is added to x
class LoweredAdd final : public Base {
public:
    LoweredAdd(const WeightPtr& weight, Address input, const Instruction& instruction, const Lowering& at)
        : Base(at, instruction), weight_(at.weights.matrix(weight)), input_(input) {}

    void emit(const Form& form, Plan* plan) const override {
        ProductCall call = this->call(weight_, form, input_, places_.x, hidden_);
        call.epilogue = Epilogue::add;
        add(multiply(call, form), plan);
    }

private:
    Matrix weight_;
    Address input_;
};

class LoweredGateUp final : public Base {
public:
    LoweredGateUp(const GateUp& i, const Instruction& instruction, const Lowering& at)
        : Base(at, instruction), norm_(at.weights.vector(i.norm)), eps_(i.eps), weight_(gate_and_up(at, i.gate, i.up)) {}

    void emit(const Form& form, Plan* plan) const override {
        ProductCall call = this->call(weight_, form, places_.x, places_.h, weight_.rows / 2);
        normalise(norm_, eps_, form, &call, plan);
        call.epilogue = Epilogue::silu_times_up;
        add(multiply(call, form), plan);
    }

private:
    Address norm_;
    float eps_;
    Matrix weight_;
};

class LoweredRoute final : public Base {
public:
    LoweredRoute(const Route& i, const Instruction& instruction, const Lowering& at)
        : Base(at, instruction),
          set_(at.experts.at(i.layer)),
          pool_(at.pool),
          norm_(at.weights.vector(i.norm)),
          eps_(i.eps),
          top_k_(i.top_k),
          scoring_(i.scoring),
          layer_(0) {
        const bool plain = i.router->format == Format::bf16 || i.router->format == Format::f16;
        router_ = at.weights.matrix(Stack{{i.router}}, !plain);
        for (const auto& [number, set] : at.experts) {
            if (number < i.layer) ++layer_;
            ++layers_;
        }
    }

    void emit(const Form& form, Plan* plan) const override {
        RouteCall call{};
        call.router = router_;
        call.step = places_.step;
        call.max_rows = form.rows;
        call.x = places_.x;
        call.norm = norm_;
        call.eps = eps_;
        call.top_k = top_k_;
        call.scoring = scoring_;
        call.shared = set_.shared;
        call.n = places_.n;
        call.logits = places_.router_logits;
        call.groups = places_.groups;
        call.groups.max_groups = route_groups(form.rows, top_k_, set_.count, set_.shared);
        call.entry = places_.entry;
        call.scratch = places_.route_scratch;
        add(route(call, card_), plan);
        if (set_.home.value) {
            FetchCall fetched{};
            fetched.groups = call.groups;
            fetched.experts = set_.table;
            fetched.home = set_.home;
            fetched.cards = pool_.state;
            fetched.layer = layer_;
            fetched.layers = layers_;
            fetched.expert_count = set_.count;
            fetched.slots = pool_.slot_count;
            fetched.pool = pool_.slots;
            fetched.slot_bytes = pool_.slot_bytes;
            fetched.bytes = set_.bytes;
            add(fetch(fetched, card_), plan);
        }
    }

private:
    const ExpertSet& set_;
    const ExpertPool& pool_;
    Address norm_;
    float eps_;
    int top_k_;
    Scoring scoring_;
    Matrix router_;
    int layer_, layers_ = 0;  // among those with experts
};

// The groups of a layer's experts, as its route leaves them.
ProductCall expert_call(ProductCall call, const ExpertSet& set, const Places& places, const Form& form, int top_k,
                        int64_t offset) {
    call.groups = places.groups;
    call.groups.max_groups = route_groups(form.rows, top_k, set.count, set.shared);
    call.experts = set.table;
    call.offset = offset;
    return call;
}

class LoweredExpertsGateUp final : public Base {
public:
    LoweredExpertsGateUp(const ExpertsGateUp& i, int top_k, const Instruction& instruction, const Lowering& at)
        : Base(at, instruction), set_(at.experts.at(i.layer)), top_k_(top_k), scaled_(i.scale_input) {
        if (i.shared_gate && !set_.shared) shared_ = gate_and_up(at, i.shared_gate, i.shared_up);
    }

    // h [rows * top_k, and the shared expert's behind them, intermediate]
    void emit(const Form& form, Plan* plan) const override {
        const int64_t width = set_.gate_up.rows / 2;
        ProductCall call =
            expert_call(this->call(set_.gate_up, form, places_.n, places_.h, width), set_, places_, form, top_k_, 0);
        call.epilogue = Epilogue::silu_times_up;
        call.gathered = true;
        call.scaled = scaled_;
        Plan products = multiply(call, form);
        // `fetch` ahead of it writes weights, which the products read as what does not change while they run: so they may not
        // begin before it has ended. Those of experts_down do not.
        if (set_.home.value) products.launches.front().programmatic = false;
        add(std::move(products), plan);
        if (!shared_.base.value) return;
        ProductCall apart = this->call(shared_, form, places_.n, shared_h(places_, form.rows, top_k_, width), width);
        apart.epilogue = Epilogue::silu_times_up;
        add(multiply(apart, form), plan);
    }

    static Address shared_h(const Places& places, int rows, int top_k, int64_t width) {
        return offset(places.h, int64_t{rows} * top_k * width * int64_t{sizeof(float)});
    }

private:
    const ExpertSet& set_;
    int top_k_;
    bool scaled_;
    Matrix shared_{};  // of a format of its own
};

class LoweredExpertsDown final : public Base {
public:
    LoweredExpertsDown(const ExpertsDown& i, int top_k, const Instruction& instruction, const Lowering& at)
        : Base(at, instruction), set_(at.experts.at(i.layer)), top_k_(top_k), scaled_(i.scale_output) {
        if (i.shared_down && !set_.shared) shared_ = at.weights.matrix(i.shared_down);
    }

    void emit(const Form& form, Plan* plan) const override {
        ProductCall call = expert_call(this->call(set_.down, form, places_.h, places_.y, hidden_), set_, places_, form, top_k_,
                                       set_.down_offset);
        call.scaled = scaled_;
        add(multiply(call, form), plan);
        add(combine({places_.y, places_.entry, places_.step, places_.x, form.rows, top_k_ + set_.shared, hidden_}), plan);
        if (!shared_.base.value) return;
        const Address input = LoweredExpertsGateUp::shared_h(places_, form.rows, top_k_, shared_.cols);
        ProductCall apart = this->call(shared_, form, input, places_.x, hidden_);
        apart.epilogue = Epilogue::add;
        add(multiply(apart, form), plan);
    }

private:
    const ExpertSet& set_;
    int top_k_;
    bool scaled_;
    Matrix shared_{};
};

// Logits of at most kDraftRows rows, whatever the step's.
class LoweredHead final : public Base {
public:
    LoweredHead(const Head& i, const Instruction& instruction, const Lowering& at)
        : Base(at, instruction), norm_(at.weights.vector(i.norm)), eps_(i.eps), weight_(at.weights.matrix(i.weight)) {}

    void emit(const Form& form, Plan* plan) const override {
        const Form few{std::min(form.rows, kDraftRows)};
        ProductCall call = this->call(weight_, few, places_.x, places_.logits, weight_.rows);
        call.which = Rows::logits;
        normalise(norm_, eps_, few, &call, plan);
        add(product(call, card_), plan);
    }

private:
    Address norm_;
    float eps_;
    Matrix weight_;
};

class LoweredSample final : public Base {
public:
    LoweredSample(const Instruction& instruction, const Lowering& at) : Base(at, instruction), vocab_(at.program.vocab) {}

    void emit(const Form&, Plan* plan) const override {
        add(sample({places_.logits, vocab_, places_.step, places_.draw, places_.sample_scratch, places_.id}, card_), plan);
    }

private:
    int64_t vocab_;
};

int top_k_of(const Program& program, int layer) {
    for (const Instruction& instruction : program.code)
        if (const auto* i = std::get_if<Route>(&instruction); i && i->layer == layer) return i->top_k;
    return 0;
}

}  // namespace

std::unique_ptr<Lowered> lower(const Instruction& instruction, const Lowering& at) {
    struct Visitor {
        const Instruction& instruction;
        const Lowering& at;

        std::unique_ptr<Lowered> operator()(const Embed& i) const { return std::make_unique<LoweredEmbed>(i, instruction, at); }
        std::unique_ptr<Lowered> operator()(const Qkv& i) const { return std::make_unique<LoweredQkv>(i, instruction, at); }
        std::unique_ptr<Lowered> operator()(const Attention& i) const {
            return std::make_unique<LoweredAttention>(i, instruction, at);
        }
        std::unique_ptr<Lowered> operator()(const Output& i) const {
            return std::make_unique<LoweredAdd>(i.weight, at.places.a, instruction, at);
        }
        std::unique_ptr<Lowered> operator()(const GateUp& i) const { return std::make_unique<LoweredGateUp>(i, instruction, at); }
        std::unique_ptr<Lowered> operator()(const Down& i) const {
            return std::make_unique<LoweredAdd>(i.weight, at.places.h, instruction, at);
        }
        std::unique_ptr<Lowered> operator()(const Route& i) const { return std::make_unique<LoweredRoute>(i, instruction, at); }
        std::unique_ptr<Lowered> operator()(const ExpertsGateUp& i) const {
            return std::make_unique<LoweredExpertsGateUp>(i, top_k_of(at.program, i.layer), instruction, at);
        }
        std::unique_ptr<Lowered> operator()(const ExpertsDown& i) const {
            return std::make_unique<LoweredExpertsDown>(i, top_k_of(at.program, i.layer), instruction, at);
        }
        std::unique_ptr<Lowered> operator()(const Head& i) const { return std::make_unique<LoweredHead>(i, instruction, at); }
        std::unique_ptr<Lowered> operator()(const Sample&) const { return std::make_unique<LoweredSample>(instruction, at); }
    };
    return std::visit(Visitor{instruction, at}, instruction);
}

Widths widths(const Program& program, int max_rows, int splits) {
    Widths w;
    for (const Instruction& instruction : program.code) {
        if (const auto* i = std::get_if<Qkv>(&instruction)) {
            w.qkv = std::max(w.qkv, int64_t{i->heads + 2 * i->kv_heads} * i->head_dim);
        } else if (const auto* i = std::get_if<Attention>(&instruction)) {
            w.attention = std::max(w.attention, int64_t{i->heads} * i->head_dim);
            w.attention_scratch = std::max(
                w.attention_scratch, attention_scratch_bytes(std::min(max_rows, kDraftRows), i->heads, i->head_dim, splits));
        } else if (const auto* i = std::get_if<GateUp>(&instruction)) {
            w.intermediate = std::max(w.intermediate, i->gate->rows);
        } else if (const auto* i = std::get_if<Route>(&instruction)) {
            const int experts = static_cast<int>(i->router->rows);
            w.max_experts = std::max(w.max_experts, experts);
            w.passes = std::max(w.passes, i->top_k + 1);
            w.route_scratch = std::max(w.route_scratch, route_scratch_bytes(max_rows, experts));
        } else if (const auto* i = std::get_if<ExpertsGateUp>(&instruction)) {
            w.expert_intermediate = std::max(w.expert_intermediate, i->gate[0]->rows);
        }
    }
    return w;
}

bool serves_tiles(const Program& program) {
    for (const Instruction& instruction : program.code) {
        if (std::holds_alternative<Embed>(instruction) || std::holds_alternative<Route>(instruction) ||
            std::holds_alternative<Head>(instruction))
            continue;
        for (const WeightPtr& weight : weights(instruction))
            if (weight->rows > 1 && weight->format == Format::f32) return false;
    }
    return true;
}

}  // namespace llama_ext::cuda
