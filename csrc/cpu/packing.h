// The binder of an executor: where each weight goes. It is run through a program twice, first without memory, to add up what will
// be needed, then with it, to pack.
#pragma once

#include <functional>
#include <unordered_map>
#include <vector>

#include "cpu/bind.h"
#include "cpu/memory.h"
#include "cpu/residency.h"
#include "cpu/team.h"

namespace llama_ext::cpu {

// What packing needs and adding up does not.
struct PackingPlace {
    Team& team;
    const Pages& pages;                                   // of Packing::packed_bytes
    const std::function<void(size_t, size_t)>& progress;  // bytes packed, of all
};

class Packing final : public Binder {
public:
    // place: null only adds up. experts_in_file: experts are not packed but left in their file; residency, if not null, is told
    // of them.
    Packing(const Program& program, bool experts_in_file, Residency* residency, const PackingPlace* place)
        : program_(program), experts_in_file_(experts_in_file), residency_(residency), place_(place) {}

    std::vector<std::unique_ptr<BoundInstruction>> bind_all();

    size_t packed_bytes() const { return packed_; }    // of packed weights
    size_t kept_bytes() const { return kept_; }        // of weights kept as in the file
    size_t scratch_bytes() const { return scratch_; }  // MemberBuffers::bytes
    const std::vector<Rotation>& rotations() const { return rotations_; }

    PackedWeight pack(const Weight& weight) override;
    const float* vector(const Weight& weight) override;
    WeightBytes keep(const Weight& weight) override;
    bool is_head(const Weight& weight) const override;
    PackedWeight expert(const Weight& weight, int layer, Residency::Part part, int expert) override;
    bool experts_mapped() const override { return experts_in_file_; }
    bool has_shared_expert(int layer) const override;
    void scratch(size_t bytes) override;
    int64_t rotation(int rope, int64_t chunk) override;

private:
    std::byte* take(size_t bytes);

    const Program& program_;
    const bool experts_in_file_;
    Residency* const residency_;
    const PackingPlace* const place_;
    size_t packed_ = 0, kept_ = 0, scratch_ = 0;
    std::vector<Rotation> rotations_;
    std::unordered_map<const Weight*, PackedWeight> done_;
};

}  // namespace llama_ext::cpu
