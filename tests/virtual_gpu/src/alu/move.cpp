// mov: registers, and vectors of parts packed into a register or taken out of one.
#include "alu/families.h"
#include "alu/form.h"
#include "alu/lanes.h"

namespace vgpu {
namespace {

using namespace lanes;

constexpr auto kSame = []<class T>(T a) { return a; };

void move128(const Instruction& in, std::byte* regs, uint32_t mask) {
    for (int half = 0; half < 2; ++half) {
        const uint64_t* a = u64(regs, in.a) + half * kLanes;
        write(u64(regs, in.d) + half * kLanes, mask, [&](int i) { return a[i]; });
    }
}

void move_predicate(const Instruction& in, std::byte* regs, uint32_t mask) {
    write_predicate(regs, in.d, mask, predicate(regs, in.a) ^ in.small);
}

// Whole is a register of 16 to 64 bits, Part the registers of its parts, whose offsets are in in.more, lowest first; kNone: a
// part that nobody wants.
template <class Whole, class Part, int count>
void pack(const Instruction& in, std::byte* regs, uint32_t mask) {
    const Cell<Part>* parts[count];
    for (int k = 0; k < count; ++k) parts[k] = row<Part>(regs, in.more[k]);
    write(row<Whole>(regs, in.d), mask, [&](int i) {
        Cell<Whole> whole = 0;
        for (int k = 0; k < count; ++k) whole |= Cell<Whole>{static_cast<Part>(parts[k][i])} << (8 * sizeof(Part) * k);
        return whole;
    });
}

template <class Whole, class Part, int count>
void unpack(const Instruction& in, std::byte* regs, uint32_t mask) {
    // A part may be the whole's own register: they are of one size for 16 and 32 bits.
    alignas(64) Cell<Whole> whole[kLanes];
    const auto* a = row<Whole>(regs, in.a);
    for (int i = 0; i < kLanes; ++i) whole[i] = a[i];
    for (int k = 0; k < count; ++k) {
        if (in.more[k] == kNone) continue;
        write(row<Part>(regs, in.more[k]), mask,
              [&](int i) { return Cell<Part>{static_cast<Part>(whole[i] >> (8 * sizeof(Part) * k))}; });
    }
}

// 128 bits of two parts of 64 bits, or of four of 32.
void pack128(const Instruction& in, std::byte* regs, uint32_t mask) {
    const bool four = in.small == 4;
    for (int half = 0; half < 2; ++half) {
        uint64_t* d = u64(regs, in.d) + half * kLanes;
        if (four) {
            const uint32_t *low = u32(regs, in.more[2 * half]), *high = u32(regs, in.more[2 * half + 1]);
            write(d, mask, [&](int i) { return low[i] | uint64_t{high[i]} << 32; });
        } else {
            const uint64_t* a = u64(regs, in.more[half]);
            write(d, mask, [&](int i) { return a[i]; });
        }
    }
}

void unpack128(const Instruction& in, std::byte* regs, uint32_t mask) {
    const int count = static_cast<int>(in.small);
    for (int k = 0; k < count; ++k) {
        if (in.more[k] == kNone) continue;
        const uint64_t* a = u64(regs, in.a) + (count == 4 ? k / 2 : k) * kLanes;
        if (count == 4)
            write(u32(regs, in.more[k]), mask, [&](int i) { return static_cast<uint32_t>(a[i] >> (k % 2 * 32)); });
        else
            write(u64(regs, in.more[k]), mask, [&](int i) { return a[i]; });
    }
}

struct Vector {
    int whole, count;
    Alu pack, unpack;
};
constexpr Vector kVectors[] = {
    {16, 2, pack<uint16_t, uint8_t, 2>, unpack<uint16_t, uint8_t, 2>},
    {32, 2, pack<uint32_t, uint16_t, 2>, unpack<uint32_t, uint16_t, 2>},
    {32, 4, pack<uint32_t, uint8_t, 4>, unpack<uint32_t, uint8_t, 4>},
    {64, 2, pack<uint64_t, uint32_t, 2>, unpack<uint64_t, uint32_t, 2>},
    {64, 4, pack<uint64_t, uint16_t, 4>, unpack<uint64_t, uint16_t, 4>},
    {128, 2, pack128, unpack128},
    {128, 4, pack128, unpack128},
};

void decode_vector(Form& form, Type type, bool packs) {
    const ptx::Operand& vector = form.operand(packs ? 1 : 0);
    const int whole = bits_of(type), count = static_cast<int>(vector.parts.size());
    for (const Vector& v : kVectors) {
        if (v.whole != whole || v.count != count) continue;
        const Type part = whole / count == 8    ? Type::b8
                          : whole / count == 16 ? Type::b16
                          : whole / count == 32 ? Type::b32
                                                : Type::b64;
        uint32_t* list = form.operands.list(vector.parts.size());
        for (int k = 0; k < count; ++k) {
            const ptx::Operand& o = vector.parts[static_cast<size_t>(k)];
            list[k] = packs ? form.source(o, part) : form.operands.destination(o, bits_of(part));
        }
        form.out.more = list;
        form.out.small = static_cast<uint32_t>(count);
        if (packs)
            form.out.d = form.destination(0, type);
        else
            form.out.a = form.source(1, type);
        form.out.run = packs ? v.pack : v.unpack;
        return;
    }
    form.unknown("vector of so many parts");
}

}  // namespace

bool decode_move(const ptx::Statement& statement, Operands& operands, Instruction& out) {
    if (statement.opcode != "mov") return false;
    Form form(statement, operands, out);
    const Type type = form.take_type();
    form.finish(2);
    const bool untyped = type == Type::b16 || type == Type::b32 || type == Type::b64 || type == Type::b128;
    const bool packs = form.operand(1).kind == ptx::Operand::Kind::vector;
    if (packs || form.operand(0).kind == ptx::Operand::Kind::vector) {
        form.require(untyped);
        decode_vector(form, type, packs);
        return true;
    }
    if (type == Type::pred) {
        bool negated = false;
        out.d = form.destination(0, type);
        out.a = form.predicate(1, &negated);
        out.small = negated ? kAll : 0;
        out.run = move_predicate;
        return true;
    }
    form.require(untyped || type == Type::u16 || type == Type::s16 || type == Type::u32 || type == Type::s32 ||
                 type == Type::u64 || type == Type::s64 || type == Type::f32 || type == Type::f64 || type == Type::f16 ||
                 type == Type::bf16 || type == Type::f16x2 || type == Type::bf16x2);
    form.fill(type, type);
    const int bits = bits_of(type);
    out.run = bits == 128 ? move128 : bits == 64 ? unary<kSame, uint64_t> : unary<kSame, uint32_t>;
    return true;
}

}  // namespace vgpu
