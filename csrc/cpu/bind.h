// From instructions to bound ones: what an operation's file needs while the executor is being built.
#pragma once

#include <memory>

#include "cpu/executor.h"

namespace llama_ext::cpu {

class Binder {
public:
    virtual ~Binder() = default;
    virtual PackedWeight pack(const Weight& weight) = 0;    // the same weight twice is packed once
    virtual const float* vector(const Weight& weight) = 0;  // [cols], a norm's weight
    virtual WeightBytes keep(const Weight& weight) = 0;     // as in the file
    virtual bool is_head(const Weight& weight) const = 0;   // whether the head packs it
    // A matrix of expert `expert` of this layer's mixture: packed, or left in its file under the care of Step::residency.
    virtual PackedWeight expert(const Weight& weight, int layer, Residency::Part part, int expert) = 0;
    virtual bool experts_mapped() const = 0;
    virtual bool has_shared_expert(int layer) const = 0;
    // Bytes that MemberBuffers::bytes must have.
    virtual void scratch(size_t bytes) = 0;
    // Index into Step::cosine and sine of the table for this rope and chunk; -1 for no rope.
    virtual int64_t rotation(int rope, int64_t chunk) = 0;
};

std::unique_ptr<BoundInstruction> bind(const Embed& instruction, Binder& binder);
std::unique_ptr<BoundInstruction> bind(const Qkv& instruction, Binder& binder);
std::unique_ptr<BoundInstruction> bind(const Attention& instruction, Binder& binder);
std::unique_ptr<BoundInstruction> bind(const Output& instruction, Binder& binder);
std::unique_ptr<BoundInstruction> bind(const GateUp& instruction, Binder& binder);
std::unique_ptr<BoundInstruction> bind(const Down& instruction, Binder& binder);
std::unique_ptr<BoundInstruction> bind(const Route& instruction, Binder& binder);
std::unique_ptr<BoundInstruction> bind(const ExpertsGateUp& instruction, Binder& binder);
std::unique_ptr<BoundInstruction> bind(const ExpertsDown& instruction, Binder& binder);
std::unique_ptr<BoundInstruction> bind(const Head& instruction, Binder& binder);
std::unique_ptr<BoundInstruction> bind(const Sample& instruction, Binder& binder);

}  // namespace llama_ext::cpu
