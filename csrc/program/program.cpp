#include "program/program.h"

#include <cmath>
#include <limits>
#include <set>
#include <stdexcept>
#include <string>

#include "program/sampling.h"

namespace llama_ext {
namespace {

// What may be asked for at all: far above any model, and far below where a product of sizes leaves 64 bits.
constexpr int64_t kMaxContext = int64_t{1} << 32;
constexpr int64_t kMaxWidth = int64_t{1} << 24;
constexpr int kMaxRows = 1 << 16;
constexpr int64_t kMaxExperts = 1 << 16;
constexpr int kMaxLayers = 1 << 16;

void require_range(const char* what, int64_t value, int64_t least, int64_t most) {
    if (value < least || value > most) {
        throw std::invalid_argument(std::string(what) + " must be " + std::to_string(least) + " to " + std::to_string(most) +
                                    ", is " + std::to_string(value));
    }
}

// Which instruction must come right before and right after another, by name; null: any.
struct Neighbours {
    const char *before, *after;
};
Neighbours neighbours(const Instruction& instruction) {
    struct Visitor {
        Neighbours operator()(const Embed&) const { return {"", nullptr}; }
        Neighbours operator()(const Qkv&) const { return {nullptr, "attention"}; }
        Neighbours operator()(const Attention&) const { return {"qkv", "output"}; }
        Neighbours operator()(const Output&) const { return {"attention", nullptr}; }
        Neighbours operator()(const GateUp&) const { return {nullptr, "down"}; }
        Neighbours operator()(const Down&) const { return {"gate_up", nullptr}; }
        Neighbours operator()(const Route&) const { return {nullptr, "experts_gate_up"}; }
        Neighbours operator()(const ExpertsGateUp&) const { return {"route", "experts_down"}; }
        Neighbours operator()(const ExpertsDown&) const { return {"experts_gate_up", nullptr}; }
        Neighbours operator()(const Head&) const { return {nullptr, "sample"}; }
        Neighbours operator()(const Sample&) const { return {"head", ""}; }
    };
    return std::visit(Visitor{}, instruction);
}

// Checks one instruction after the other; complaints carry the instruction's name.
struct Checker {
    const Program& program;
    std::string where{};
    const Instruction* previous = nullptr;
    std::vector<bool> cache_taken = std::vector<bool>(program.caches.size());
    int64_t attention_width = 0, intermediate = 0;  // of the a and h that the next output or down reads
    std::set<int> mixtures{};                       // layers that have one

    void check(const Instruction& instruction) {
        where = name(instruction);
        if (layer(instruction) >= 0) where += " of layer " + std::to_string(layer(instruction));
        const std::string before = previous ? name(*previous) : "";
        const char* needed_before = neighbours(instruction).before;
        const char* needed_after = previous ? neighbours(*previous).after : "embed";
        require(!needed_before || before == needed_before,
                needed_before && *needed_before ? std::string("must follow ") + needed_before : "must be the first instruction");
        require(!needed_after || std::string(needed_after) == name(instruction),
                before.empty() ? "a program begins with embed"
                               : "stands where " + before + " needs its " + (needed_after ? needed_after : ""));
        std::visit(*this, instruction);
        previous = &instruction;
    }

    [[noreturn]] void fail(const std::string& what) const { throw std::invalid_argument(where + ": " + what); }

    void require(bool holds, const std::string& what) const {
        if (!holds) fail(what);
    }

    void matrix(const char* operand, const WeightPtr& w, int64_t rows, int64_t cols) const {
        require(w != nullptr, std::string(operand) + " is missing");
        if (w->rows != rows || w->cols != cols) {
            fail(std::string(operand) + " (" + w->name + ") is [" + std::to_string(w->rows) + ", " + std::to_string(w->cols) +
                 "], expected [" + std::to_string(rows) + ", " + std::to_string(cols) + "]");
        }
        const int block = info(w->format).block;
        require(cols % block == 0, std::string(operand) + " (" + w->name + "): " + std::to_string(cols) +
                                       " columns are no multiple of " + std::string(info(w->format).name) + "'s block of " +
                                       std::to_string(block));
    }

    void norm(const WeightPtr& w) const {
        matrix("norm", w, 1, program.hidden);
        require(w->format == Format::f32, "norm (" + w->name + ") must be F32, is " + std::string(info(w->format).name));
    }

    void heads(int heads, int kv_heads, int head_dim) const {
        require(heads > 0 && kv_heads > 0 && heads % kv_heads == 0,
                std::to_string(heads) + " query heads cannot share " + std::to_string(kv_heads) + " key-value heads evenly");
        require(int64_t{heads} * 256 <= kMaxWidth, std::to_string(heads) + " heads are too many");
        require(head_dim > 0 && head_dim % 8 == 0 && head_dim <= 256,
                "head_dim must be a multiple of 8 up to 256, is " + std::to_string(head_dim));
    }

    void operator()(const Embed& i) const { matrix("table", i.table, program.vocab, program.hidden); }

    void operator()(const Qkv& i) const {
        heads(i.heads, i.kv_heads, i.head_dim);
        norm(i.norm);
        matrix("q", i.q, int64_t{i.heads} * i.head_dim, program.hidden);
        matrix("k", i.k, int64_t{i.kv_heads} * i.head_dim, program.hidden);
        matrix("v", i.v, int64_t{i.kv_heads} * i.head_dim, program.hidden);
        require(i.rope >= -1 && i.rope < static_cast<int>(program.ropes.size()),
                "rope " + std::to_string(i.rope) + " does not exist");
        require(i.rope_chunk >= 0, "rope_chunk is negative");
        if (i.rope >= 0) {
            const size_t pairs = program.ropes[static_cast<size_t>(i.rope)].inverse_frequency.size();
            require(pairs == static_cast<size_t>(i.head_dim / 2), "rope has " + std::to_string(pairs) +
                                                                      " frequencies, head_dim " + std::to_string(i.head_dim) +
                                                                      " needs half as many");
        }
    }

    void operator()(const Attention& i) {
        heads(i.heads, i.kv_heads, i.head_dim);
        const Qkv& qkv = std::get<Qkv>(*previous);
        require(qkv.heads == i.heads && qkv.kv_heads == i.kv_heads && qkv.head_dim == i.head_dim, "its qkv has other heads");
        require(i.cache >= 0 && i.cache < static_cast<int>(program.caches.size()),
                "cache " + std::to_string(i.cache) + " does not exist");
        const size_t cache = static_cast<size_t>(i.cache);
        require(!cache_taken[cache], "cache " + std::to_string(i.cache) + " is another attention's");
        cache_taken[cache] = true;
        const CacheLayer& c = program.caches[cache];
        require(c.kv_heads == i.kv_heads && c.head_dim == i.head_dim, "its cache has another shape");
        require(i.mask.kind == Mask::Kind::global || i.mask.extent > 0, "the mask's extent must be positive");
        const int64_t needed = cache_capacity(i.mask, program.max_context, program.max_rows);
        require(c.capacity >= needed,
                "its cache has " + std::to_string(c.capacity) + " slots, the mask needs " + std::to_string(needed));
        require(i.temperature_scale == 0 || i.temperature_floor > 0, "temperature_floor must be positive");
        attention_width = int64_t{i.heads} * i.head_dim;
    }

    void operator()(const Output& i) const { matrix("weight", i.weight, program.hidden, attention_width); }

    void operator()(const GateUp& i) {
        norm(i.norm);
        require(i.gate != nullptr, "gate is missing");
        require(i.gate->rows <= kMaxWidth, "gate has too many rows");
        matrix("gate", i.gate, i.gate->rows, program.hidden);
        matrix("up", i.up, i.gate->rows, program.hidden);
        intermediate = i.gate->rows;
    }

    void operator()(const Down& i) const { matrix("weight", i.weight, program.hidden, intermediate); }

    void operator()(const Route& i) {
        // Its experts are found by the layer: by cost.h, and by executors that keep them in their file.
        require(i.layer >= 0 && i.layer < kMaxLayers,
                "layer must be 0 to " + std::to_string(kMaxLayers - 1) + ", is " + std::to_string(i.layer));
        require(mixtures.insert(i.layer).second, "this layer has another mixture of experts");
        norm(i.norm);
        require(i.router != nullptr, "router is missing");
        require(i.router->rows <= kMaxExperts, "router has too many rows");
        matrix("router", i.router, i.router->rows, program.hidden);
        require(i.top_k >= 1 && i.top_k <= i.router->rows,
                "top_k " + std::to_string(i.top_k) + " is not from 1 to the " + std::to_string(i.router->rows) + " experts");
        // With the shared expert; executors count them in 32 bits.
        require(int64_t{program.max_rows} * (i.top_k + 1) <= std::numeric_limits<int32_t>::max(),
                "max_rows " + std::to_string(program.max_rows) + " times top_k " + std::to_string(i.top_k) + " is too many");
    }

    void experts(const char* operand, const std::vector<WeightPtr>& list, size_t count, int64_t rows, int64_t cols) const {
        require(list.size() == count,
                std::string(operand) + " has " + std::to_string(list.size()) + " experts, the router " + std::to_string(count));
        for (size_t e = 0; e < count; ++e) matrix((operand + (" of expert " + std::to_string(e))).c_str(), list[e], rows, cols);
    }

    void operator()(const ExpertsGateUp& i) {
        const Route& route = std::get<Route>(*previous);
        require(i.layer == route.layer, "its route is of layer " + std::to_string(route.layer));
        const size_t count = static_cast<size_t>(route.router->rows);
        require(!i.gate.empty() && i.gate[0] != nullptr, "gate is missing");
        require(i.gate[0]->rows <= kMaxWidth, "gate has too many rows");
        intermediate = i.gate[0]->rows;
        experts("gate", i.gate, count, intermediate, program.hidden);
        experts("up", i.up, count, intermediate, program.hidden);
        require((i.shared_gate == nullptr) == (i.shared_up == nullptr), "shared gate and up go together");
        if (!i.shared_gate) return;
        matrix("shared_gate", i.shared_gate, intermediate, program.hidden);
        matrix("shared_up", i.shared_up, intermediate, program.hidden);
    }

    void operator()(const ExpertsDown& i) const {
        const auto& before = std::get<ExpertsGateUp>(*previous);
        require(i.layer == before.layer, "its experts_gate_up is of layer " + std::to_string(before.layer));
        experts("down", i.down, before.gate.size(), program.hidden, intermediate);
        require((i.shared_down == nullptr) == (before.shared_gate == nullptr), "shared gate, up and down go together");
        if (i.shared_down) matrix("shared_down", i.shared_down, program.hidden, intermediate);
    }

    void operator()(const Head& i) const {
        norm(i.norm);
        matrix("weight", i.weight, program.vocab, program.hidden);
    }

    void operator()(const Sample&) const {}
};

}  // namespace

float Attention::temperature(int64_t position) const {
    if (temperature_scale == 0) return 1;
    const double steps = std::floor(static_cast<double>(position + 1) / static_cast<double>(temperature_floor));
    return static_cast<float>(std::log(steps + 1) * temperature_scale + 1);
}

const char* name(const Instruction& instruction) {
    static constexpr const char* kNames[] = {"embed",           "qkv",          "attention", "output", "gate_up", "down", "route",
                                             "experts_gate_up", "experts_down", "head",      "sample"};
    static_assert(std::size(kNames) == std::variant_size_v<Instruction>);
    return kNames[instruction.index()];
}

int layer(const Instruction& instruction) {
    return std::visit(
        [](const auto& i) {
            if constexpr (requires { i.layer; })
                return i.layer;
            else
                return -1;
        },
        instruction);
}

namespace {

void append(std::vector<WeightPtr>* list, const std::vector<WeightPtr>& more) {
    list->insert(list->end(), more.begin(), more.end());
}

}  // namespace

std::vector<WeightPtr> weights(const Instruction& instruction) {
    struct Visitor {
        std::vector<WeightPtr> operator()(const Embed& i) const { return {i.table}; }
        std::vector<WeightPtr> operator()(const Qkv& i) const { return {i.norm, i.q, i.k, i.v}; }
        std::vector<WeightPtr> operator()(const Attention&) const { return {}; }
        std::vector<WeightPtr> operator()(const Output& i) const { return {i.weight}; }
        std::vector<WeightPtr> operator()(const GateUp& i) const { return {i.norm, i.gate, i.up}; }
        std::vector<WeightPtr> operator()(const Down& i) const { return {i.weight}; }
        std::vector<WeightPtr> operator()(const Route& i) const { return {i.norm, i.router}; }
        std::vector<WeightPtr> operator()(const ExpertsGateUp& i) const {
            std::vector<WeightPtr> list = i.gate;
            append(&list, i.up);
            if (i.shared_gate) append(&list, {i.shared_gate, i.shared_up});
            return list;
        }
        std::vector<WeightPtr> operator()(const ExpertsDown& i) const {
            std::vector<WeightPtr> list = i.down;
            if (i.shared_down) list.push_back(i.shared_down);
            return list;
        }
        std::vector<WeightPtr> operator()(const Head& i) const { return {i.norm, i.weight}; }
        std::vector<WeightPtr> operator()(const Sample&) const { return {}; }
    };
    return std::visit(Visitor{}, instruction);
}

size_t cache_row_bytes(CacheFormat format, int head_dim) {
    const size_t elements = static_cast<size_t>(head_dim);
    switch (format) {
        case CacheFormat::f32:
            return 4 * elements;
        case CacheFormat::q8_0:
            return elements / kCacheBlock * (kCacheBlock + 2);
        case CacheFormat::fp8:
            return elements;
        case CacheFormat::f16:
        case CacheFormat::bf16:
            break;
    }
    return 2 * elements;
}

int64_t cache_capacity(const Mask& mask, int64_t max_context, int max_rows) {
    // Compared before it is added: the extent comes from a file and may be anything.
    if (mask.kind == Mask::Kind::global || mask.extent >= max_context) return max_context;
    return std::min(max_context, mask.extent + max_rows);
}

void Program::validate() const {
    require_range("max_context", max_context, 1, kMaxContext);
    require_range("max_rows", max_rows, 1, kMaxRows);
    require_range("vocab", vocab, 1, kMaxVocab);
    require_range("hidden", hidden, 1, kMaxWidth);
    for (const CacheLayer& cache : caches) {
        require_range("a cache's capacity", cache.capacity, 1, 2 * kMaxContext);
        require_range("a cache's kv_heads", cache.kv_heads, 1, kMaxWidth / 256);
        require_range("a cache's head_dim", cache.head_dim, 1, 256);
        if (cache.format == CacheFormat::q8_0 && cache.head_dim % kCacheBlock != 0) {
            throw std::invalid_argument("a cache in q8_0 needs a head_dim that is a multiple of " + std::to_string(kCacheBlock) +
                                        ", is " + std::to_string(cache.head_dim) + "; f32, f16 and bf16 take it");
        }
    }
    Checker checker{*this};
    for (const Instruction& instruction : code) checker.check(instruction);
    if (code.empty()) throw std::invalid_argument("a program begins with embed");
    if (!std::holds_alternative<Sample>(code.back())) throw std::invalid_argument("a program ends with head and sample");
}

int64_t Program::max_rollback(int64_t position, int64_t highest) const {
    int64_t earliest = 0;  // the first position that still finds all its keys
    for (const Instruction& instruction : code) {
        const auto* i = std::get_if<Attention>(&instruction);
        if (!i || i->mask.kind == Mask::Kind::global) continue;
        const int64_t kept = highest - caches[static_cast<size_t>(i->cache)].capacity;  // the oldest position in the ring
        if (kept <= 0) continue;
        const int64_t extent = i->mask.extent;
        const bool chunked = i->mask.kind == Mask::Kind::chunked;
        earliest = std::max(earliest, chunked ? (kept + extent - 1) / extent * extent : kept + extent - 1);
    }
    return std::max<int64_t>(0, position - earliest);
}

}  // namespace llama_ext
