#include "cuda/executor.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <set>
#include <stdexcept>
#include <string>

#include "cuda/check.h"
#include "cuda/fetch.h"

namespace llama_ext::cuda {
namespace {

constexpr size_t kPrefillsKept = 4;
constexpr int kBlocksAMultiprocessor = 2;  // of attention, over all key-value heads
constexpr int kMostSplits = 64;

int fewest_kv_heads(const Program& program) {
    int fewest = kMostSplits;
    for (const CacheLayer& layer : program.caches) fewest = std::min(fewest, layer.kv_heads);
    return std::max(1, fewest);
}

int splits_for(const Program& program, const Card& card) {
    const int heads = fewest_kv_heads(program);
    // Rounded down: a few blocks more than run at a time would take as long again.
    return std::clamp(kBlocksAMultiprocessor * card.multiprocessors / heads, 1, kMostSplits);
}

// Weights that are not of experts that a router chooses among, each once, in bytes on the card.
size_t common_bytes(const Program& program) {
    size_t bytes = 0;
    std::set<const Weight*> seen;
    for (const Instruction& instruction : program.code) {
        const auto* up = std::get_if<ExpertsGateUp>(&instruction);
        const auto* down = std::get_if<ExpertsDown>(&instruction);
        std::vector<WeightPtr> list = weights(instruction);
        if (up) list = up->shared_gate ? std::vector<WeightPtr>{up->shared_gate, up->shared_up} : std::vector<WeightPtr>{};
        if (down) list = down->shared_down ? std::vector<WeightPtr>{down->shared_down} : std::vector<WeightPtr>{};
        for (const WeightPtr& weight : list)
            if (seen.insert(weight.get()).second) bytes += Stack{{weight}}.bytes();
    }
    return bytes;
}

std::string megabytes(size_t bytes) { return std::to_string((bytes + 999'999) / 1'000'000) + " MB"; }

}  // namespace

Executor::Executor(Program program, const Options& options, const std::function<void(size_t, size_t)>& progress)
    : program_((program.validate(), std::move(program))),
      poison_(options.poison),
      graphs_(options.graphs),
      device_(std::make_shared<const Device>(options.ordinal)),
      module_(std::make_shared<const Module>(device_, options.image)),
      stream_(std::make_unique<Stream>(device_)),
      max_rows_(serves_tiles(program_) ? program_.max_rows : std::min(program_.max_rows, kDraftRows)),
      draft_rows_(std::min(program_.max_rows, kDraftRows)),
      tiles_(serves_tiles(program_)),
      ids_(static_cast<size_t>(program_.max_rows)) {
    make_places();
    size_t total = common_bytes(program_);
    for (const Instruction& instruction : program_.code) {
        const auto* i = std::get_if<ExpertsGateUp>(&instruction);
        const auto* d = std::get_if<ExpertsDown>(&instruction);
        for (const auto* list : {i ? &i->gate : nullptr, i ? &i->up : nullptr, d ? &d->down : nullptr})
            for (size_t e = 0; list && e < list->size(); ++e) total += Stack{{(*list)[e]}}.bytes();
    }
    weights_ = std::make_unique<Weights>(device_, *stream_, options.threads, total, progress);
    put_experts(options.memory_limit, total);
    const Lowering at{program_, device_->card(), *weights_, places_, experts_, pool_, splits_for(program_, device_->card())};
    for (const Instruction& instruction : program_.code) {
        const bool last = std::holds_alternative<Head>(instruction) || std::holds_alternative<Sample>(instruction);
        (last ? tail_ : code_).push_back(lower(instruction, at));
    }
    one_ = std::make_shared<const Executable>(module_, plan(1));
    draft_ = draft_rows_ > 1 ? std::make_shared<const Executable>(module_, plan(draft_rows_)) : nullptr;
    if (tiles_ && max_rows_ > kDraftRows) {
        Plan end;
        for (const auto& part : tail_) part->emit({kDraftRows}, &end);
        end.launches.front().programmatic = false;
        end_ = std::make_shared<const Executable>(module_, std::move(end));
    }
    if (graphs_) capture_graphs();
}

Executor::~Executor() = default;

Address Executor::take(size_t bytes, bool poisoned) {
    memory_.push_back(std::make_unique<Memory>(device_, std::max<size_t>(bytes, 16)));
    if (poisoned) {
        poisoned_.push_back(memory_.back().get());
    } else {
        stream_->fill({memory_.back()->address()}, 0, memory_.back()->bytes());
    }
    return {memory_.back()->address()};
}

void Executor::make_places() {
    const size_t rows = static_cast<size_t>(max_rows_);
    const Widths w = widths(program_, max_rows_, splits_for(program_, device_->card()));
    const auto floats = [&](size_t of_rows, int64_t width) { return take(of_rows * static_cast<size_t>(width) * sizeof(float)); };
    const size_t control_bytes = sizeof(Control) + rows * sizeof(int32_t);
    control_ = std::make_unique<HostMemory>(device_, control_bytes + sizeof(int32_t));
    std::memset(control_->data(), 0, control_->bytes());
    places_.step = take(control_bytes, false);
    places_.draw = {places_.step.value + offsetof(Control, draw)};
    places_.ids = {places_.step.value + sizeof(Control)};
    places_.id = take(sizeof(int32_t), false);
    places_.caches = take(program_.caches.size() * sizeof(CacheState), false);
    const size_t entries = rows * static_cast<size_t>(w.passes);
    places_.x = floats(rows, program_.hidden);
    places_.qkv = floats(rows, w.qkv);
    places_.a = floats(rows, w.attention);
    places_.n = floats(rows, program_.hidden);
    places_.h = take(std::max(rows * static_cast<size_t>(w.intermediate), entries * static_cast<size_t>(w.expert_intermediate)) *
                     sizeof(float));
    places_.logits = floats(static_cast<size_t>(draft_rows_), program_.vocab);
    places_.attention_scratch = take(w.attention_scratch, false);
    places_.sample_scratch = take(sample_scratch_bytes(program_.vocab), false);
    if (w.passes) {
        const size_t groups = std::min(rows * static_cast<size_t>(w.passes), static_cast<size_t>(w.max_experts) + 1);
        places_.y = floats(entries, program_.hidden);
        places_.router_logits = floats(rows, w.max_experts);
        places_.route_scratch = take(w.route_scratch, false);
        places_.entry = take(entries * sizeof(int32_t));
        places_.groups = {take(sizeof(int32_t)),           take(groups * sizeof(int32_t)), take((groups + 1) * sizeof(int32_t)),
                          take(entries * sizeof(int32_t)), take(entries * sizeof(float)),  static_cast<int>(groups)};
    }
    std::vector<Rotation> rotations;
    for (const Instruction& instruction : program_.code) {
        const auto* i = std::get_if<Qkv>(&instruction);
        if (!i || i->rope < 0 || places_.tables.contains({i->rope, i->rope_chunk})) continue;
        const std::vector<double>& frequencies = program_.ropes[static_cast<size_t>(i->rope)].inverse_frequency;
        const Address inverse = take(frequencies.size() * sizeof(double), false);
        stream_->write(inverse, frequencies.data(), frequencies.size() * sizeof(double));
        const Address table = take(rows * frequencies.size() * 2 * sizeof(float));
        places_.tables[{i->rope, i->rope_chunk}] = table;
        rotations.push_back({inverse.value, table.value, i->rope_chunk, static_cast<int32_t>(frequencies.size()), 0});
    }
    if (!rotations.empty()) {
        places_.rotations = take(rotations.size() * sizeof(Rotation), false);
        stream_->write(places_.rotations, rotations.data(), rotations.size() * sizeof(Rotation));
    }
}

void Executor::put_experts(size_t limit, size_t total) {
    struct Pieces {
        const ExpertsGateUp* up = nullptr;
        const ExpertsDown* down = nullptr;
        int top_k = 0;
    };
    std::map<int, Pieces> layers;
    for (const Instruction& instruction : program_.code) {
        if (const auto* i = std::get_if<Route>(&instruction)) layers[i->layer].top_k = i->top_k;
        if (const auto* i = std::get_if<ExpertsGateUp>(&instruction)) layers[i->layer].up = i;
        if (const auto* i = std::get_if<ExpertsDown>(&instruction)) layers[i->layer].down = i;
    }
    size_t shared_bytes = 0, expert_bytes = 0;
    int64_t slot_bytes = 0;
    int most_chosen = 0;
    for (const auto& [layer, pieces] : layers) {
        const ExpertsGateUp& up = *pieces.up;
        const Stack first{{up.gate[0], up.up[0]}, Stack::Order::interleaved};
        const WeightPtr& down = pieces.down->down[0];
        for (size_t e = 0; e < up.gate.size(); ++e) {
            if (up.gate[e]->format != first.format() || up.up[e]->format != first.format() ||
                pieces.down->down[e]->format != down->format)
                throw std::invalid_argument("the experts of layer " + std::to_string(layer) +
                                            " have matrices of several formats, which CUDA does not serve: convert the model "
                                            "(weights=...)");
        }
        ExpertSet set{};
        set.gate_up = {first.format(), first.rows(), first.cols(), {}};
        set.down = {down->format, down->rows, down->cols, {}};
        set.down_offset = static_cast<int64_t>(first.bytes());
        set.bytes = set.down_offset + static_cast<int64_t>(Stack{{down}}.bytes());
        set.count = static_cast<int>(up.gate.size());
        set.shared = up.shared_gate && up.shared_gate->format == first.format() && up.shared_up->format == first.format() &&
                     pieces.down->shared_down->format == down->format;
        expert_bytes += static_cast<size_t>(set.count) * static_cast<size_t>(set.bytes);
        if (set.shared) shared_bytes += static_cast<size_t>(set.bytes);
        slot_bytes = std::max(slot_bytes, set.bytes);
        most_chosen = std::max(most_chosen, pieces.top_k);
        experts_.emplace(layer, set);
    }

    // What there is, and what the rest takes.
    size_t taken = 0;
    for (const auto& memory : memory_) taken += memory->bytes();
    const size_t common = common_bytes(program_);
    const size_t free = device_->free_bytes();
    size_t cache_bytes = 0;
    for (const CacheLayer& layer : program_.caches) cache_bytes += static_cast<size_t>(layer.capacity) * layer.bytes_per_slot();
    const size_t spare = free - std::min(cache_bytes, free / 8);
    const size_t room = limit ? (limit > taken ? std::min(limit - taken, spare) : 0) : spare;
    if (common > room)
        throw std::runtime_error("the weights that every token reads take " + megabytes(common) + " of the card, " +
                                 megabytes(room) + " are left for them: " + megabytes(common - room) +
                                 " are missing; use a smaller format (weights=...) or a shorter max_context");
    if (experts_.empty()) return;
    const bool on_card = total <= room;
    if (!on_card) {
        const size_t each = static_cast<size_t>(slot_bytes);
        pool_.slot_bytes = slot_bytes;
        pool_.slot_count = static_cast<int>(std::min<size_t>((room - common) / each, INT32_MAX));
        if (pool_.slot_count < most_chosen)
            throw std::runtime_error("there is room on the card for " + std::to_string(pool_.slot_count) + " experts of " +
                                     megabytes(each) + " beside the weights that every token reads, and a token needs " +
                                     std::to_string(most_chosen) + ": " +
                                     megabytes(static_cast<size_t>(most_chosen - pool_.slot_count) * each) +
                                     " are missing; use a smaller format (weights=...)");
        pool_.slots = weights_->reserve(static_cast<size_t>(pool_.slot_count) * each);
        host_ = std::make_unique<HostMemory>(device_, expert_bytes);
        const std::vector<std::byte> state = fetch_state(pool_.slot_count, static_cast<int>(experts_.size()));
        pool_.state = take(state.size(), false);
        stream_->write(pool_.state, state.data(), state.size());
    }
    std::byte* host = on_card ? nullptr : host_->data();
    for (auto& [layer, set] : experts_) {
        const Pieces& pieces = layers[layer];
        const auto stacks = [&](const WeightPtr& gate, const WeightPtr& up, const WeightPtr& down) {
            return std::pair{Stack{{gate, up}, Stack::Order::interleaved}, Stack{{down}}};
        };
        std::vector<uint64_t> table;
        for (size_t e = 0; e < pieces.up->gate.size(); ++e) {
            const auto [gate_up, down] = stacks(pieces.up->gate[e], pieces.up->up[e], pieces.down->down[e]);
            if (on_card) {
                const Address at = weights_->reserve(static_cast<size_t>(set.bytes));
                weights_->pack_to_device(gate_up, false, at);
                weights_->pack_to_device(down, false, {at.value + static_cast<uint64_t>(set.down_offset)});
                table.push_back(at.value);
            } else {
                weights_->pack_to_host(gate_up, host);
                weights_->pack_to_host(down, host + set.down_offset);
                table.push_back(host_->address() + static_cast<uint64_t>(host - host_->data()));
                host += set.bytes;
            }
        }
        if (!on_card) {
            set.home = take(table.size() * sizeof(uint64_t), false);
            stream_->write(set.home, table.data(), table.size() * sizeof(uint64_t));
        }
        if (set.shared) {
            const auto [gate_up, down] = stacks(pieces.up->shared_gate, pieces.up->shared_up, pieces.down->shared_down);
            const Address at = weights_->reserve(static_cast<size_t>(set.bytes));
            weights_->pack_to_device(gate_up, false, at);
            weights_->pack_to_device(down, false, {at.value + static_cast<uint64_t>(set.down_offset)});
            table.push_back(at.value);
        } else {
            table.push_back(0);
        }
        set.table = take(table.size() * sizeof(uint64_t), false);
        stream_->write(set.table, table.data(), table.size() * sizeof(uint64_t));
    }
}

Plan Executor::plan(int rows) const {
    if (rows < 1 || rows > program_.max_rows)
        throw std::invalid_argument("a step takes 1 to " + std::to_string(program_.max_rows) + " rows, not " +
                                    std::to_string(rows));
    const bool large = tiles_ && rows > kDraftRows;
    const Form form{large ? rows : rows == 1 ? 1 : draft_rows_};
    Plan plan;
    for (const auto& part : code_) part->emit(form, &plan);
    for (const auto& part : tail_)
        if (!large) part->emit(form, &plan);
    plan.launches.front().programmatic = false;  // it follows a copy
    return plan;
}

void Executor::capture_graphs() {
    const auto record = [this](const std::shared_ptr<const Executable>& executable, int rows) {
        ++captures_;
        return stream_->capture([&] {
            stream_->write_async(places_.step, control_->data(), sizeof(Control) + static_cast<size_t>(rows) * sizeof(int32_t));
            stream_->run(*executable);
            stream_->read_async(control_->data() + control_->bytes() - sizeof(int32_t), places_.id, sizeof(int32_t));
        });
    };
    one_graph_ = record(one_, 1);
    if (draft_) draft_graph_ = record(draft_, draft_rows_);
}

std::shared_ptr<const Executable> Executor::prefill(int rows) {
    auto found = std::find_if(prefills_.begin(), prefills_.end(), [rows](const auto& kept) { return kept.first == rows; });
    if (found == prefills_.end()) {
        prefills_.emplace_front(rows, std::make_shared<const Executable>(module_, plan(rows)));
        if (prefills_.size() > kPrefillsKept) prefills_.pop_back();
    } else {
        prefills_.splice(prefills_.begin(), prefills_, found);
    }
    return prefills_.front().second;
}

std::unique_ptr<Cache> Executor::make_cache(bool poison, int64_t start) {
    const std::lock_guard lock(mutex_);
    return std::make_unique<Cache>(program_, device_, *stream_, poison, start);
}

void Executor::run(Cache& cache, const int32_t* ids, int rows, int64_t logit_rows, float* logits) {
    step(cache, ids, rows, logit_rows, logits, nullptr);
}

int32_t Executor::run_and_draw(Cache& cache, const int32_t* ids, int rows, const Draw& draw) {
    return step(cache, ids, rows, 1, nullptr, &draw);
}

DrawState Executor::on_device(const Draw& draw) {
    DrawState state{};
    state.constants = draw.params;
    state.wanted = 1;
    if (draw.history_size) {
        const size_t bytes = draw.history_size * sizeof(int32_t);
        if (!history_ || history_->bytes() < bytes)
            history_ =
                std::make_unique<Memory>(device_, std::max(bytes, static_cast<size_t>(program_.max_context) * sizeof(int32_t)));
        stream_->write({history_->address()}, draw.history, bytes);
        state.history = history_->address();
        state.history_size = static_cast<uint32_t>(draw.history_size);
    }
    return state;
}

int32_t Executor::step(Cache& cache, const int32_t* ids, int rows, int64_t logit_rows, float* logits, const Draw* draw) {
    const std::lock_guard lock(mutex_);
    if (&cache.program() != &program_) throw std::invalid_argument("this cache was made for another executor");
    const auto guard = cache.lock();
    cache.check_step(ids, rows, logit_rows, ids_.data());
    if (cache.reserve(rows) || current_ != cache.identity()) {
        current_ = 0;
        stream_->write(places_.caches, cache.states().data(), cache.states().size() * sizeof(CacheState));
        current_ = cache.identity();
    }
    auto* const control = reinterpret_cast<Control*>(control_->data());
    auto* const control_ids = reinterpret_cast<int32_t*>(control_->data() + sizeof(Control));
    control->draw = {};
    if (poison_)
        for (const Memory* memory : poisoned_) stream_->fill({memory->address()}, 0xff, memory->bytes());
    for (int first = 0; first < rows; first += max_rows_) {
        const int count = std::min(max_rows_, rows - first);
        control->step = {cache.position() + first, cache.start(), count,
                         static_cast<int32_t>(std::clamp<int64_t>(first + count - (rows - logit_rows), 0, count))};
        std::memcpy(control_ids, ids_.data() + first, static_cast<size_t>(count) * sizeof(int32_t));
        if (draw && first + count == rows) control->draw = on_device(*draw);
        if (count > kDraftRows)
            run_large(count, control->step.logit_rows, logits);
        else
            run_small(count, control->step.logit_rows, logits);
        if (logits) logits += control->step.logit_rows * program_.vocab;
    }
    stream_->synchronize();
    cache.advance(rows);
    int32_t id;
    std::memcpy(&id, control_->data() + control_->bytes() - sizeof id, sizeof id);
    return id;
}

Executor::Residency Executor::residency() {
    const std::lock_guard lock(mutex_);
    std::vector<std::byte> state(fetch_state_bytes(pool_.slot_count, static_cast<int>(experts_.size())));
    stream_->read(state.data(), pool_.state, state.size());
    const FetchFacts facts = fetch_facts(state.data());
    const size_t each = static_cast<size_t>(pool_.slot_bytes);
    return {static_cast<size_t>(pool_.slot_count) * each, static_cast<size_t>(facts.used) * each, facts.hits, facts.misses};
}

double Executor::read_seconds(size_t bytes) {
    const std::lock_guard lock(mutex_);
    const size_t half = std::max<size_t>(bytes / 2, 1);
    if (!probe_ || probe_->bytes() < 2 * half) {
        probe_ = std::make_unique<Memory>(device_, 2 * half);
        stream_->fill({probe_->address()}, 1, probe_->bytes());
    }
    stream_->synchronize();
    const auto begin = std::chrono::steady_clock::now();
    stream_->copy({probe_->address() + half}, {probe_->address()}, half);
    stream_->synchronize();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void Executor::run_small(int rows, int64_t logit_rows, float* logits) {
    const auto& executable = rows == 1 ? one_ : draft_;
    const int form = rows == 1 ? 1 : draft_rows_;
    if (graphs_) {
        stream_->run(rows == 1 ? *one_graph_ : *draft_graph_);
    } else {
        stream_->write_async(places_.step, control_->data(), sizeof(Control) + static_cast<size_t>(form) * sizeof(int32_t));
        stream_->run(*executable);
        stream_->read_async(control_->data() + control_->bytes() - sizeof(int32_t), places_.id, sizeof(int32_t));
    }
    if (logits && logit_rows)
        stream_->read(logits, places_.logits, static_cast<size_t>(logit_rows * program_.vocab) * sizeof(float));
    else
        stream_->synchronize();  // before control changes
}

void Executor::run_large(int rows, int64_t logit_rows, float* logits) {
    auto* const control = reinterpret_cast<Control*>(control_->data());
    const Step whole = control->step;
    const std::shared_ptr<const Executable> executable = prefill(rows);
    stream_->write(places_.step, control_->data(), sizeof(Control) + static_cast<size_t>(rows) * sizeof(int32_t));
    stream_->run(*executable);
    // The tail takes a few rows at a time: a step that ends with them.
    for (int64_t done = 0; done < logit_rows; done += kDraftRows) {
        const int64_t count = std::min<int64_t>(kDraftRows, logit_rows - done);
        control->step.rows = static_cast<int32_t>(rows - logit_rows + done + count);
        control->step.logit_rows = static_cast<int32_t>(count);
        stream_->write(places_.step, control_->data(), sizeof(Control));
        stream_->run(*end_);
        if (logits)
            stream_->read(logits + done * program_.vocab, places_.logits,
                          static_cast<size_t>(count * program_.vocab) * sizeof(float));
        else
            stream_->read(control_->data() + control_->bytes() - sizeof(int32_t), places_.id, sizeof(int32_t));
    }
    control->step = whole;
}

}  // namespace llama_ext::cuda
