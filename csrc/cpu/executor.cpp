#include "cpu/executor.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <unordered_map>

#include "cpu/bind.h"
#include "program/file_map.h"

namespace llama_ext::cpu {
namespace {

constexpr size_t kLine = 64;

size_t aligned(size_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

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

// Hands out pieces of one allocation: called first to add up, then again to give addresses.
struct Carver {
    std::byte* base = nullptr;
    size_t used = 0;

    template <class T>
    void take(T*& pointer, int64_t count) {
        pointer = base ? reinterpret_cast<T*>(base + used) : nullptr;
        used += aligned(static_cast<size_t>(count) * sizeof(T));
    }

    void take(ActivationBuffers& buffers, int64_t rows, int64_t cols) {
        take(buffers.f32, rows * cols);
        take(buffers.digits, rows * 2 * cols);
        take(buffers.scale, rows * (cols / 32 + 1));
        take(buffers.sum16, rows * (cols / 16 + 1));
    }
};

// Binds twice: without pages it only adds up what it would take, with them it packs.
struct PackingBinder final : Binder {
    const Program& program;
    Team& team;
    std::vector<Rotation>& rotations;
    Residency* residency;  // null: experts are packed
    const Pages* pages = nullptr;
    const std::function<void(size_t, size_t)>* progress = nullptr;
    size_t used = 0, widest = 0;
    std::unordered_map<const Weight*, PackedWeight> done;

    PackingBinder(const Program& p, Team& t, std::vector<Rotation>& r, Residency* kept)
        : program(p), team(t), rotations(r), residency(kept) {}

    std::byte* take(size_t bytes) {
        const size_t at = used;
        used += aligned(bytes);
        return pages ? pages->data() + at : nullptr;
    }

    void report() const {
        if (progress && *progress) (*progress)(used, pages->bytes());
    }

    PackedWeight pack(const Weight& w) override {
        if (const auto found = done.find(&w); found != done.end()) return found->second;
        PackedWeight packed{w.format, w.rows, w.cols, (w.rows + kGroup - 1) / kGroup, packed_group_bytes(w.format, w.cols),
                            nullptr};
        std::byte* place = take(static_cast<size_t>(packed.groups) * packed.group_bytes);
        packed.data = place;
        if (pages) {
            const WeightBytes bytes = w.fetch();
            const size_t stride = row_bytes(w.format, w.cols);
            team.run([&](int member) {
                const Share mine = share(packed.groups, member, team.size());
                for (int64_t g = mine.begin; g < mine.end; ++g) {
                    const int rows = static_cast<int>(std::min<int64_t>(kGroup, w.rows - g * kGroup));
                    pack_group(w.format, w.cols, bytes.data + static_cast<size_t>(g * kGroup) * stride, rows,
                               place + static_cast<size_t>(g) * packed.group_bytes);
                }
            });
            // The file's pages have served: they would be a second copy of the model.
            give_back(bytes.data, w.bytes());
            report();
        }
        done.emplace(&w, packed);
        return packed;
    }

    const float* vector(const Weight& w) override {
        float* place = reinterpret_cast<float*>(take(static_cast<size_t>(w.cols) * sizeof(float)));
        if (pages) dequantize(w.format, w.fetch().data, w.cols, place);
        return place;
    }

    WeightBytes keep(const Weight& w) override { return pages ? w.fetch() : WeightBytes{}; }

    bool is_head(const Weight& w) const override {
        return std::any_of(program.code.begin(), program.code.end(), [&](const Instruction& i) {
            const auto* head = std::get_if<Head>(&i);
            return head && head->weight.get() == &w;
        });
    }

    PackedWeight expert(const Weight& w, int layer, Residency::Part part, int expert) override {
        if (!residency) return pack(w);
        if (!w.data || !is_mapped(w.data, w.bytes()))
            throw std::invalid_argument("'" + w.name + "' is not in a file as it is needed, so it cannot stay there");
        residency->add(layer, part, expert, w.data, w.bytes());
        PackedWeight mapped{w.format, w.rows, w.cols, (w.rows + kGroup - 1) / kGroup, packed_group_bytes(w.format, w.cols),
                            nullptr};
        mapped.source = w.data;
        scratch(mapped.group_bytes);
        return mapped;
    }

    bool experts_mapped() const override { return residency != nullptr; }

    bool has_shared_expert(int layer) const override {
        return std::any_of(program.code.begin(), program.code.end(), [&](const Instruction& i) {
            const auto* experts = std::get_if<ExpertsDown>(&i);
            return experts && experts->layer == layer && experts->shared_down;
        });
    }

    void scratch(size_t bytes) override { widest = std::max(widest, bytes); }

    int64_t rotation(int rope, int64_t chunk) override {
        if (rope < 0) return -1;
        for (const Rotation& r : rotations)
            if (r.rope == rope && r.chunk == chunk) return r.offset;
        const Rotation* last = rotations.empty() ? nullptr : &rotations.back();
        rotations.push_back({rope, chunk, last ? last->offset + pairs(last->rope) * program.max_rows : 0});
        return rotations.back().offset;
    }

    int64_t pairs(int rope) const {
        return static_cast<int64_t>(program.ropes[static_cast<size_t>(rope)].inverse_frequency.size());
    }
};

// Cosines and sines of the step's positions, from float64 angles.
void rotation_rows(const Step& step, const std::vector<Rotation>& rotations, int member) {
    const Share mine = share(step.rows, member, step.team.size());
    for (const Rotation& rotation : rotations) {
        const std::vector<double>& frequency = step.program.ropes[static_cast<size_t>(rotation.rope)].inverse_frequency;
        const int64_t pairs = static_cast<int64_t>(frequency.size());
        for (int64_t r = mine.begin; r < mine.end; ++r) {
            const int64_t position = step.position + r;
            const double angle_position = static_cast<double>(rotation.chunk ? position % rotation.chunk : position);
            for (int64_t i = 0; i < pairs; ++i) {
                const double angle = angle_position * frequency[static_cast<size_t>(i)];
                step.cosine[rotation.offset + r * pairs + i] = static_cast<float>(std::cos(angle));
                step.sine[rotation.offset + r * pairs + i] = static_cast<float>(std::sin(angle));
            }
        }
    }
}

}  // namespace

Executor::Executor(Program program, const Options& options, const std::function<void(size_t, size_t)>& progress)
    : program_((program.validate(), std::move(program))),
      kernels_(choose_kernels(options.simd)),
      team_(options.threads),
      poison_(options.poison),
      residency_(options.resident_experts),
      sampler_(static_cast<uint32_t>(program_.vocab)),
      ids_(static_cast<size_t>(program_.max_rows)),
      step_{kernels_, program_, team_} {
    PackingBinder binder(program_, team_, rotations_, options.resident_experts ? &residency_ : nullptr);
    const auto bind_all = [&] {
        code_.clear();
        binder.used = 0;
        binder.done.clear();
        residency_ = Residency(options.resident_experts);
        for (const Instruction& instruction : program_.code)
            std::visit([&](const auto& i) { code_.push_back(bind(i, binder)); }, instruction);
    };
    bind_all();
    weights_ = Pages(binder.used, Pages::Size::huge);
    binder.pages = &weights_;
    binder.progress = &progress;
    bind_all();

    const Widths widths(program_);
    const int64_t rows = program_.max_rows, entries = rows * widths.passes;
    if (!residency_.empty()) {
        residency_.require_room_for(static_cast<int>(widths.top_k));
        step_.residency = &residency_;
    }
    int64_t angles = 0;
    for (const Rotation& r : rotations_) angles += binder.pairs(r.rope) * rows;
    step_.members.resize(static_cast<size_t>(team_.size()));
    const auto carve = [&](Carver& carver) {
        carver.take(step_.x, rows * program_.hidden);
        carver.take(step_.q, rows * widths.q);
        carver.take(step_.k, rows * widths.kv);
        carver.take(step_.v, rows * widths.kv);
        carver.take(step_.a, rows * widths.q);
        carver.take(step_.h, rows * widths.h);
        if (entries) {
            Mixture& m = step_.mixture;
            carver.take(step_.n, rows * program_.hidden);
            carver.take(step_.gathered, entries * program_.hidden);
            carver.take(step_.y, entries * program_.hidden);
            carver.take(m.logits, rows * widths.experts);
            carver.take(m.chosen, rows * widths.top_k);
            carver.take(m.scores, rows * widths.top_k);
            carver.take(m.first, widths.experts + 2);
            carver.take(m.row, entries);
            carver.take(m.score, entries);
            carver.take(m.entry, entries);
            carver.take(m.active, widths.experts + 1);
        }
        carver.take(step_.block_values, widths.block_queries * widths.head_dim);
        carver.take(step_.block_partials, widths.block_queries);
        carver.take(step_.cosine, angles);
        carver.take(step_.sine, angles);
        carver.take(own_logits_, program_.vocab);
        carver.take(step_.shared, rows, std::max({widths.product, widths.passes * program_.hidden, widths.expert_inputs}));
        for (MemberBuffers& m : step_.members) {
            carver.take(m.activation, 1, std::max(widths.product, widths.expert_inputs));
            carver.take(m.row, widths.product);
            carver.take(m.bytes, static_cast<int64_t>(binder.widest));
            carver.take(m.tile, 2 * rows * kGroup);
            carver.take(m.partials, kQueryTile * widths.head_dim);
        }
    };
    Carver sizes;
    carve(sizes);
    buffers_ = Pages(sizes.used, Pages::Size::normal);
    Carver carver{buffers_.data()};
    carve(carver);
    sampler_.use(Sampler::level(kernels_.name));
    step_.sampler = &sampler_;
    step_.ids = ids_.data();
}

void Executor::run(Cache& cache, const int32_t* ids, int rows, int64_t logit_rows, float* logits) {
    team_.require_own_process();
    const std::lock_guard lock(mutex_);
    run_locked(cache, ids, rows, logit_rows, logits, nullptr);
}

int32_t Executor::run_and_draw(Cache& cache, const int32_t* ids, int rows, const Draw& draw) {
    team_.require_own_process();
    const std::lock_guard lock(mutex_);
    run_locked(cache, ids, rows, 1, own_logits_, &draw);
    return step_.id;
}

void Executor::run_locked(Cache& cache, const int32_t* ids, int rows, int64_t logit_rows, float* logits, const Draw* draw) {
    if (&cache.program() != &program_) throw std::invalid_argument("this cache was made for another executor");
    const auto guard = cache.lock();
    if (rows < 1 || rows > program_.max_rows)
        throw std::invalid_argument("a step takes 1 to " + std::to_string(program_.max_rows) + " rows, not " +
                                    std::to_string(rows));
    if (logit_rows < 0 || logit_rows > rows) throw std::invalid_argument("logit_rows must be between 0 and the step's rows");
    if (cache.position() + rows > program_.max_context) {
        throw std::invalid_argument("position " + std::to_string(cache.position()) + " plus " + std::to_string(rows) +
                                    " tokens is past max_context " + std::to_string(program_.max_context));
    }
    for (int r = 0; r < rows; ++r) {
        const int32_t id = ids_[static_cast<size_t>(r)] = static_cast<const volatile int32_t*>(ids)[r];
        if (id < 0 || id >= program_.vocab) {
            throw std::invalid_argument("token id " + std::to_string(id) + " is outside the vocabulary of " +
                                        std::to_string(program_.vocab));
        }
    }
    step_.cache = &cache;
    step_.rows = rows;
    step_.position = cache.position();
    step_.logit_rows = logit_rows;
    step_.logits = logits;
    step_.draw = draw;
    if (poison_) std::memset(buffers_.data(), 0xff, buffers_.bytes());
    team_.run([this](int member) {
        rotation_rows(step_, rotations_, member);
        for (const auto& instruction : code_) {
            instruction->run(step_, member);
            team_.barrier();
        }
    });
    cache.advance(rows);
}

double Executor::read_seconds(size_t bytes) {
    constexpr size_t kMost = size_t{16} << 30;
    if (bytes < kLine || bytes > kMost)
        throw std::invalid_argument("bytes to read must be 64 to " + std::to_string(kMost) + ", is " + std::to_string(bytes));
    team_.require_own_process();
    const std::lock_guard lock(mutex_);
    const Pages* source = &weights_;
    if (weights_.bytes() < bytes) {
        if (probe_.bytes() < bytes) {
            probe_ = Pages(bytes, Pages::Size::huge);
            std::memset(probe_.data(), 1, probe_.bytes());
        }
        source = &probe_;
    }
    std::atomic<uint64_t> total{0};
    const auto start = std::chrono::steady_clock::now();
    team_.run([&](int member) {
        const Share mine = share(static_cast<int64_t>(bytes / kLine), member, team_.size());
        total += kernels_.sum_lines(source->data() + static_cast<size_t>(mine.begin) * kLine, mine.end - mine.begin);
    });
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace llama_ext::cpu
