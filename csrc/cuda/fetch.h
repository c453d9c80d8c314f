// Experts that lie in the host's memory, the most recently used ones of all layers in slots on the card.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/plan.h"
#include "cuda/product.h"

namespace llama_ext::cuda {

// Gives the experts of a layer that a step has chosen slots of the pool, as far as there are any, and copies them there. What has
// a slot keeps it; the others take the slots that were used longest ago, by whatever layer, never one of an expert of this step.
// An expert that gets none is read where it lies, in the host's memory.
struct FetchCall {
    Groups groups;      // of the step: what is chosen. The shared expert, if there is one, is none of this
    Address experts;    // uint64 [experts + 1] of this layer: where each lies now, for products; home at first, then written
    Address home;       // uint64 [experts]: where each lies in pinned host memory, as the device sees it, on 16 bytes
    Address cards;      // the pool's state, shared by all layers: fetch_state_bytes(), as fetch_state() fills it
    int layer, layers;  // which of those that share the pool, 0 to layers - 1: its hits and misses are counted
    int expert_count;
    int slots;           // of the pool, up to 65536
    Address pool;        // uint8 [slots, slot_bytes]
    int64_t slot_bytes;  // a multiple of 256, as large as the largest layer's experts
    int64_t bytes;       // of each expert of this layer: a multiple of 16, at most slot_bytes
};

// One launch, which captured in a graph serves every step.
Plan fetch(const FetchCall& call, const Card& card);

// A pool's state, of which nothing is in use yet.
size_t fetch_state_bytes(int slots, int layers);
std::vector<std::byte> fetch_state(int slots, int layers);

// What a pool's state says.
struct FetchFacts {
    int used;               // slots that hold an expert
    uint64_t hits, misses;  // chosen experts that had a slot already, and those that had none
};
FetchFacts fetch_facts(const std::byte* state);

}  // namespace llama_ext::cuda
