// From instructions to launches: what an executor's step consists of.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "cuda/device.h"
#include "cuda/plan.h"
#include "cuda/product.h"
#include "cuda/weights.h"
#include "program/program.h"

namespace llama_ext::cuda {

inline constexpr int kDraftRows = 16;  // the most that product() and attention() take

// What a step is made for. A step of up to kDraftRows rows reads its number of rows from device memory, so one plan serves them
// all; one of more (a prefill) is made for exactly so many.
struct Form {
    int rows;
    bool tiles() const { return rows > kDraftRows; }
};

// Where the values between instructions lie, all of them in device memory. Shapes as in program/instruction.h, for the most rows.
struct Places {
    Address step, ids, draw, id;  // Step, int32 [max rows], DrawState, int32 [1]
    Address caches;               // CacheState, one a layer of the program's caches
    Address x, qkv, a, n, h, y;
    Address logits;  // [kDraftRows, vocab]
    Address attention_scratch, sample_scratch;
    // mixtures of experts
    Address router_logits, route_scratch, entry;
    Groups groups;
    // rotations
    Address rotations;                                  // Rotation [tables]
    std::map<std::pair<int, int64_t>, Address> tables;  // rope and chunk -> float2 [max rows, pairs]
};

// The experts of a layer, each in one piece: gate and up interleaved, then down.
struct ExpertSet {
    Matrix gate_up, down;  // the shape of each expert's; their bases are null
    int64_t down_offset, bytes;
    int count;
    Address table;  // uint64 [count + 1]: where each lies, the shared one last
    bool shared;    // the shared one is among them; else it has matrices of its own, or there is none
    Address home;   // uint64 [count]: where each lies in the host's memory, or null: all lie on the card
};

// A pool on the card for experts that lie in the host's memory (fetch.h).
struct ExpertPool {
    Address state, slots;
    int slot_count = 0;
    int64_t slot_bytes = 0;
};

// An instruction with its weights on the card.
class Lowered {
public:
    virtual ~Lowered() = default;
    virtual void emit(const Form& form, Plan* plan) const = 0;
};

// What instructions need while they are lowered.
struct Lowering {
    const Program& program;
    const Card card;
    Weights& weights;
    const Places& places;
    const std::map<int, ExpertSet>& experts;  // by layer
    const ExpertPool& pool;
    const int splits;
};

std::unique_ptr<Lowered> lower(const Instruction& instruction, const Lowering& lowering);

// Sizes that the places follow from.
struct Widths {
    int64_t qkv = 0, attention = 0, intermediate = 0;
    int64_t expert_intermediate = 0;
    int passes = 0;  // entries a row: top_k and the shared expert
    int max_experts = 0;
    size_t attention_scratch = 0, route_scratch = 0;
};
Widths widths(const Program& program, int max_rows, int splits);

// Whether every matrix has a format that product_tiles() takes.
bool serves_tiles(const Program& program);

}  // namespace llama_ext::cuda
