// From instructions to bound ones: what an operation's file needs while the executor is being built.
#pragma once

#include <memory>

#include "cpu/executor.h"

namespace llama_ext::cpu {

class Binder {
public:
    virtual ~Binder() = default;
    virtual PackedWeight pack(const Weight& weight) = 0;
    virtual const float* vector(const Weight& weight) = 0;  // [cols], a norm's weight
    // Index into Step::cosine and sine of the table for this rope and chunk; -1 for no rope.
    virtual int64_t rotation(int rope, int64_t chunk) = 0;
};

std::unique_ptr<BoundInstruction> bind(const Embed& instruction, Binder& binder);
std::unique_ptr<BoundInstruction> bind(const Qkv& instruction, Binder& binder);
std::unique_ptr<BoundInstruction> bind(const Attention& instruction, Binder& binder);
std::unique_ptr<BoundInstruction> bind(const Output& instruction, Binder& binder);
std::unique_ptr<BoundInstruction> bind(const GateUp& instruction, Binder& binder);
std::unique_ptr<BoundInstruction> bind(const Down& instruction, Binder& binder);
std::unique_ptr<BoundInstruction> bind(const Head& instruction, Binder& binder);
std::unique_ptr<BoundInstruction> bind(const Sample& instruction, Binder& binder);

}  // namespace llama_ext::cpu
