#include "cuda/fetch.h"

#include <algorithm>
#include <cstring>

#include "cuda/check.h"
#include "cuda/kernels/fetch.h"

namespace llama_ext::cuda {

Plan fetch(const FetchCall& call, const Card& card) {
    require_range("fetch", "expert_count", call.expert_count, 1, kFetchGroups - 1);
    require_range("fetch", "the groups' max_groups", call.groups.max_groups, 1, kFetchGroups);
    require_range("fetch", "layers", call.layers, 1, INT32_MAX);
    require_range("fetch", "layer", call.layer, 0, call.layers - 1);
    require_range("fetch", "slots", call.slots, 1, kFetchSlots);
    require_range("fetch", "slot_bytes", call.slot_bytes, 256, INT64_MAX / kFetchSlots);
    require(call.slot_bytes % 256 == 0, "fetch", "slot_bytes", std::to_string(call.slot_bytes), "a multiple of 256");
    require_range("fetch", "bytes", call.bytes, 16, call.slot_bytes);
    require(call.bytes % 16 == 0, "fetch", "bytes", std::to_string(call.bytes), "a multiple of 16");
    require_address("fetch", "the groups' count", call.groups.count, 4);
    require_address("fetch", "the groups' expert", call.groups.expert, 4);
    require_address("fetch", "experts", call.experts, 8);
    require_address("fetch", "home", call.home, 8);
    require_address("fetch", "cards", call.cards, 16);
    require_address("fetch", "pool", call.pool, 16);

    // As many blocks as an expert keeps busy.
    constexpr int64_t kRound = kFetchThreads * 16;  // bytes of a block at a time
    const int64_t blocks = std::min<int64_t>((call.bytes + kRound - 1) / kRound, card.multiprocessors);
    return {{{"fetch",
              {static_cast<uint32_t>(blocks), 1, 1},
              {kFetchThreads, 1, 1},
              static_cast<uint32_t>((call.slots + 31) / 32 * 4),
              {{"count", call.groups.count},
               {"expert", call.groups.expert},
               {"experts", call.experts},
               {"home", call.home},
               {"state", call.cards},
               {"pool", call.pool},
               {"bytes", call.bytes},
               {"slot_bytes", call.slot_bytes},
               {"slots", int32_t{call.slots}},
               {"layer", int32_t{call.layer}},
               {"expert_count", int32_t{call.expert_count}}},
              true}},
            {}};
}

size_t fetch_state_bytes(int slots, int layers) { return static_cast<size_t>(fetch_bytes(slots, layers)); }

std::vector<std::byte> fetch_state(int slots, int layers) {
    std::vector<std::byte> bytes(fetch_state_bytes(slots, layers));
    FetchState state{};
    state.slots = slots;
    state.layers = layers;
    std::memcpy(bytes.data(), &state, sizeof state);
    return bytes;
}

FetchFacts fetch_facts(const std::byte* bytes) {
    FetchState state;
    std::memcpy(&state, bytes, sizeof state);
    FetchFacts facts{};
    for (int s = 0; s < state.slots; ++s) {
        FetchOwner owner;
        std::memcpy(&owner, bytes + fetch_owners_offset(state.slots) + s * int64_t{sizeof owner}, sizeof owner);
        facts.used += owner.entry != 0;
    }
    for (int l = 0; l < state.layers; ++l) {
        FetchCounts counts;
        std::memcpy(&counts, bytes + fetch_counts_offset(state.slots) + l * int64_t{sizeof counts}, sizeof counts);
        facts.hits += counts.hits;
        facts.misses += counts.misses;
    }
    return facts;
}

}  // namespace llama_ext::cuda
