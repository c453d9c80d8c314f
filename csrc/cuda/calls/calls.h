// What the calls share: each turns its arguments into a plan (`build`), and table.cpp runs it.
#pragma once

#include <initializer_list>

#include "cuda/calls.h"
#include "cuda/plan.h"

namespace llama_ext::cuda::calls {

// Scratch of a call, handed out piece by piece: a plan is built once at no address, to count the bytes, and once in earnest.
class Scratch {
public:
    explicit Scratch(Address base) : base_(base) {}

    Address take(int64_t bytes) {
        const Address at{base_.value + used_};
        used_ += (static_cast<uint64_t>(bytes) + 255) / 256 * 256;
        return at;
    }
    uint64_t used() const { return used_; }

private:
    Address base_;
    uint64_t used_ = 0;
};

Plan build(const RmsNorm& call, const Card& card, Scratch& scratch);
Plan build(const Rope& call, const Card& card, Scratch& scratch);
Plan build(const Attention& call, const Card& card, Scratch& scratch);
Plan build(const Linear& call, const Card& card, Scratch& scratch);
Plan build(const MoeRoute& call, const Card& card, Scratch& scratch);
Plan build(const MoeDispatch& call, const Card& card, Scratch& scratch);
Plan build(const MoeCombine& call, const Card& card, Scratch& scratch);

// A kernel may fetch weights before the one ahead of it has ended, for in a program nobody writes them. Here that one may have:
// it packed them, or it is another library's. So no launch starts early.
template <typename Call>
Plan plan_of(const Call& call, const Card& card, Scratch& scratch) {
    Plan plan = build(call, card, scratch);
    for (Launch& launch : plan.launches) launch.programmatic = false;
    return plan;
}

// The bytes of a checkpoint's matrix into the layout of a program's weights.
struct RepackCall {
    Address source;  // [rows][row_bytes(format, cols)], on 16 bytes
    Format format;
    int64_t rows, cols;
    Address packed;  // planes(format, rows, cols).bytes, on 256 bytes
};
Plan repack(const RepackCall& call);

// Parts of plans.
void append(Plan* plan, Plan next);
void from_bf16(Plan* plan, Address x, Address y, int64_t n);
void to_bf16(Plan* plan, Address x, Address y, int64_t n);
void write_step(Plan* plan, Address step, int64_t position, int64_t rows);
void zero(Plan* plan, Address x, int64_t bytes);  // a multiple of 16

inline int64_t value_bytes(Type type) { return type == Type::f32 ? 4 : 2; }
inline Format format_of(Type type) { return type == Type::f32 ? Format::f32 : Format::bf16; }

// So many blocks of threads, or an error: more than a grid has.
uint32_t blocks(const char* operation, int64_t count, int64_t each);

// Not negative, and their product is no overflow. -> the product
int64_t product_of(const char* operation, const char* argument, std::initializer_list<int64_t> sizes);

}  // namespace llama_ext::cuda::calls
