// Collectives of a warp's lanes. The interpreter brings them together: `mask` is who takes part.
#include <bit>
#include <unordered_map>

#include "alu/families.h"
#include "alu/form.h"
#include "alu/lanes.h"
#include "alu/real.h"

namespace vgpu {
namespace {

using namespace lanes;

// What a lane gets from one that takes no part: undefined by the ISA, here a value that shows.
constexpr uint32_t kPoison = 0xdeadbeef;

enum class Shuffle { up, down, bfly, idx };

template <Shuffle mode>
void shfl(const Instruction& in, std::byte* regs, uint32_t mask) {
    alignas(64) uint32_t a[kLanes];
    const uint32_t *source = u32(regs, in.a), *b = u32(regs, in.b), *c = u32(regs, in.c);
    for (int i = 0; i < kLanes; ++i) a[i] = mask >> i & 1 ? source[i] : kPoison;
    alignas(64) uint32_t from[kLanes];
    uint32_t in_range = 0;
    for (int i = 0; i < kLanes; ++i) {
        const int lane = i, value = static_cast<int>(b[i] & 31), clamp = static_cast<int>(c[i] & 31);
        const int segment = static_cast<int>(c[i] >> 8 & 31), lowest = lane & segment, bound = lowest | (clamp & ~segment);
        const int j = mode == Shuffle::up     ? lane - value
                      : mode == Shuffle::down ? lane + value
                      : mode == Shuffle::bfly ? lane ^ value
                                              : lowest | (value & ~segment);
        const bool valid = mode == Shuffle::up ? j >= bound : j <= bound;
        from[i] = static_cast<uint32_t>(valid ? j : lane) & 31;
        in_range |= static_cast<uint32_t>(valid) << i;
    }
    if (in.d != kNone) write(u32(regs, in.d), mask, [&](int i) { return a[from[i]]; });
    if (in.d2 != kNone) write_predicate(regs, in.d2, mask, in_range);
}

enum class Vote { all, any, uni, ballot };

// in.small: all ones if the predicate is negated
template <Vote mode>
void vote(const Instruction& in, std::byte* regs, uint32_t mask) {
    const uint32_t yes = (predicate(regs, in.a) ^ in.small) & mask;
    if constexpr (mode == Vote::ballot) {
        write(u32(regs, in.d), mask, [&](int) { return yes; });
    } else {
        const bool result = mode == Vote::all ? yes == mask : mode == Vote::any ? yes != 0 : yes == 0 || yes == mask;
        write_predicate(regs, in.d, mask, result ? kAll : 0);
    }
}

template <class T>
void match_any(const Instruction& in, std::byte* regs, uint32_t mask) {
    const T* a = row<T>(regs, in.a);
    uint32_t equal[kLanes] = {};
    for (uint32_t rest = mask; rest;) {
        const T x = a[std::countr_zero(rest)];
        const uint32_t group = bits([&](int i) { return a[i] == x; }) & mask;
        for (uint32_t r = group; r; r &= r - 1) equal[std::countr_zero(r)] = group;
        rest &= ~group;
    }
    write(u32(regs, in.d), mask, [&](int i) { return equal[i]; });
}

template <class T>
void match_all(const Instruction& in, std::byte* regs, uint32_t mask) {
    const T* a = row<T>(regs, in.a);
    const T x = a[std::countr_zero(mask)];
    const bool same = (bits([&](int i) { return a[i] == x; }) & mask) == mask;
    if (in.d != kNone) write(u32(regs, in.d), mask, [&](int) { return same ? mask : 0; });
    if (in.d2 != kNone) write_predicate(regs, in.d2, mask, same ? kAll : 0);
}

template <class T, class F>
void reduce(const Instruction& in, std::byte* regs, uint32_t mask, F f) {
    const uint32_t* a = u32(regs, in.a);
    T result = value<T>(a[std::countr_zero(mask)]);
    for (uint32_t rest = mask & (mask - 1); rest; rest &= rest - 1) result = f(result, value<T>(a[std::countr_zero(rest)]));
    write(u32(regs, in.d), mask, [&](int) { return cell<T>(result); });
}

template <auto f, class T>
void redux(const Instruction& in, std::byte* regs, uint32_t mask) {
    reduce<T>(in, regs, mask, f);
}

constexpr uint32_t kMaximum = 1, kNan = 2, kAbs = 4;
void redux_f32(const Instruction& in, std::byte* regs, uint32_t mask) {
    const real::MinMax of{(in.small & kMaximum) != 0, (in.small & kNan) != 0, false, (in.small & kAbs) != 0};
    reduce<float>(in, regs, mask, [&](float x, float y) { return of(x, y); });
    if (std::has_single_bit(mask)) {  // nothing was compared: the value itself, as a comparison with itself leaves it
        const int lane = std::countr_zero(mask);
        uint32_t& d = u32(regs, in.d)[lane];
        d = formats::bits_of(of(formats::as_float(d), formats::as_float(d)));
    }
}

constexpr auto kAdd = [](uint32_t a, uint32_t b) { return a + b; };
constexpr auto kMin = []<class T>(T a, T b) { return a < b ? a : b; };
constexpr auto kMax = []<class T>(T a, T b) { return a > b ? a : b; };
constexpr auto kAnd = [](uint32_t a, uint32_t b) { return a & b; };
constexpr auto kOr = [](uint32_t a, uint32_t b) { return a | b; };
constexpr auto kXor = [](uint32_t a, uint32_t b) { return a ^ b; };

void activemask(const Instruction& in, std::byte* regs, uint32_t mask) {
    write(u32(regs, in.d), mask, [&](int) { return mask; });
}

void elect(const Instruction& in, std::byte* regs, uint32_t mask) {
    const uint32_t leader = static_cast<uint32_t>(std::countr_zero(mask));
    if (in.d != kNone) write(u32(regs, in.d), mask, [&](int) { return leader; });
    if (in.d2 != kNone) write_predicate(regs, in.d2, mask, uint32_t{1} << leader);
}

// The membermask is operand i.
void collective(Form& form, size_t i) {
    form.out.flags |= kCollective;
    form.out.member = form.source(i, Type::b32);
}

void decode_shfl(Form& form) {
    form.require(form.take("sync") && form.take_type() == Type::b32);
    const int mode = form.take_one({"up", "down", "bfly", "idx"});
    form.require(mode >= 0);
    form.finish(5);
    form.destination_pair(0, Type::b32, Type::pred);
    form.out.a = form.source(1, Type::b32);
    form.out.b = form.source(2, Type::b32);
    form.out.c = form.source(3, Type::b32);
    collective(form, 4);
    constexpr Alu kModes[] = {shfl<Shuffle::up>, shfl<Shuffle::down>, shfl<Shuffle::bfly>, shfl<Shuffle::idx>};
    form.out.run = kModes[mode];
}

void decode_vote(Form& form) {
    form.require(form.take("sync"));
    const Type type = form.take_type();
    const int mode = form.take_one({"all", "any", "uni", "ballot"});
    form.require(mode >= 0 && type == (mode == 3 ? Type::b32 : Type::pred));
    form.finish(3);
    bool negated = false;
    form.out.d = form.destination(0, type);
    form.out.a = form.predicate(1, &negated);
    form.out.small = negated ? kAll : 0;
    collective(form, 2);
    constexpr Alu kModes[] = {vote<Vote::all>, vote<Vote::any>, vote<Vote::uni>, vote<Vote::ballot>};
    form.out.run = kModes[mode];
}

void decode_match(Form& form) {
    form.require(form.take("sync"));
    const Type type = form.take_type();
    const int mode = form.take_one({"any", "all"});
    form.require(mode >= 0 && (type == Type::b32 || type == Type::b64));
    form.finish(3);
    const bool wide = type == Type::b64;
    if (mode == 0)
        form.out.d = form.destination(0, Type::b32);
    else
        form.destination_pair(0, Type::b32, Type::pred);
    form.out.a = form.source(1, type);
    collective(form, 2);
    form.out.run = mode == 0 ? wide ? match_any<uint64_t> : match_any<uint32_t>
                   : wide    ? match_all<uint64_t>
                             : match_all<uint32_t>;
}

void decode_redux(Form& form) {
    form.require(form.take("sync"));
    const Type type = form.take_type();
    const bool abs = form.take("abs"), nan = form.take("NaN");
    const int op = form.take_one({"add", "min", "max", "and", "or", "xor"});
    form.finish(3);
    form.fill(type, type);
    collective(form, 2);
    Instruction& out = form.out;
    if (type == Type::f32) {
        form.require(op == 1 || op == 2);
        out.small = (op == 2 ? kMaximum : 0) | (nan ? kNan : 0) | (abs ? kAbs : 0);
        out.run = redux_f32;
        return;
    }
    form.require(!abs && !nan);
    constexpr Alu kBits[] = {redux<kAnd, uint32_t>, redux<kOr, uint32_t>, redux<kXor, uint32_t>};
    constexpr Alu kUnsigned[] = {redux<kAdd, uint32_t>, redux<kMin, uint32_t>, redux<kMax, uint32_t>};
    constexpr Alu kSigned[] = {redux<kAdd, uint32_t>, redux<kMin, int32_t>, redux<kMax, int32_t>};
    if (op >= 3 && type == Type::b32)
        out.run = kBits[op - 3];
    else if (op >= 0 && op < 3 && (type == Type::u32 || type == Type::s32))
        out.run = type == Type::u32 ? kUnsigned[op] : kSigned[op];
    else
        form.unknown();
}

void decode_activemask(Form& form) {
    form.require(form.take_type() == Type::b32);
    form.finish(1);
    form.out.d = form.destination(0, Type::b32);
    form.out.run = activemask;
}

void decode_elect(Form& form) {
    form.require(form.take("sync"));
    form.finish(2);
    form.require(form.operand(0).kind == ptx::Operand::Kind::pair);
    form.destination_pair(0, Type::b32, Type::pred);
    collective(form, 1);
    form.out.run = elect;
}

}  // namespace

bool decode_warp(const ptx::Statement& statement, Operands& operands, Instruction& out) {
    static const std::unordered_map<std::string_view, void (*)(Form&)> known = {
        {"shfl", decode_shfl},
        {"vote", decode_vote},
        {"match", decode_match},
        {"redux", decode_redux},
        {"activemask", decode_activemask},
        {"elect", decode_elect},
    };
    const auto found = known.find(statement.opcode);
    if (found == known.end()) return false;
    Form form(statement, operands, out);
    found->second(form);
    return true;
}

}  // namespace vgpu
