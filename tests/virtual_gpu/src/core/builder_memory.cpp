// The instructions that touch memory or wait for others, decoded.
#include <algorithm>
#include <string_view>

#include "core/builder.h"

namespace vgpu {
namespace {

using Kind = ptx::Operand::Kind;

struct Element {
    uint8_t bytes;
    bool sign;
    Number number;
};

bool element(std::string_view type, Element* out) {
    static const std::unordered_map<std::string_view, Element> types = {
        {"b8", {1, false, Number::u32}},      {"u8", {1, false, Number::u32}},        {"s8", {1, true, Number::s32}},
        {"b16", {2, false, Number::b16}},     {"u16", {2, false, Number::u32}},       {"s16", {2, true, Number::s32}},
        {"f16", {2, false, Number::f16}},     {"bf16", {2, false, Number::bf16}},     {"b32", {4, false, Number::b32}},
        {"u32", {4, false, Number::u32}},     {"s32", {4, true, Number::s32}},        {"f32", {4, false, Number::f32}},
        {"f16x2", {4, false, Number::f16x2}}, {"bf16x2", {4, false, Number::bf16x2}}, {"b64", {8, false, Number::b64}},
        {"u64", {8, false, Number::u64}},     {"s64", {8, true, Number::s64}},        {"f64", {8, false, Number::f64}},
        {"b128", {16, false, Number::b128}},
    };
    const auto found = types.find(type);
    if (found == types.end()) return false;
    *out = found->second;
    return true;
}

bool starts(std::string_view text, std::string_view with) { return text.substr(0, with.size()) == with; }

// Hints that change no result.
bool is_hint(std::string_view m) {
    return m == "ca" || m == "cg" || m == "cs" || m == "lu" || m == "cv" || m == "wb" || m == "wt" || m == "weak" ||
           starts(m, "L1::") || starts(m, "L2::") || m == "unified" || m == "evict_last";
}

bool is_space(std::string_view m, Where* out) {
    if (m == "global")
        *out = Where::global;
    else if (m == "shared" || m == "shared::cta" || m == "shared::cluster")
        *out = Where::shared;
    else if (m == "local")
        *out = Where::local;
    else if (m == "const")
        *out = Where::constant;
    else if (m == "param" || m == "param::entry" || m == "param::func")
        *out = Where::param;
    else
        return false;
    return true;
}

bool is_order(std::string_view m, Access* access) {
    if (m == "volatile" || m == "mmio") {
        access->strong = true;
        access->scope = Scope::sys;
    } else if (m == "relaxed" || m == "acquire" || m == "release" || m == "acq_rel") {
        access->strong = true;
        if (m == "acquire" || m == "acq_rel") access->order |= kAcquire;
        if (m == "release" || m == "acq_rel") access->order |= kRelease;
    } else if (m == "cta" || m == "cluster") {
        access->scope = Scope::cta;
    } else if (m == "gpu") {
        access->scope = Scope::gpu;
    } else if (m == "sys") {
        access->scope = Scope::sys;
    } else {
        return false;
    }
    return true;
}

}  // namespace

void Builder::grain(Where space, uint32_t bytes) {
    if (space != Where::shared && space != Where::generic) return;
    const uint32_t shift = bytes >= 4 ? 2 : bytes >= 2 ? 1 : 0;
    kernel_->shared_grain_shift = std::min(kernel_->shared_grain_shift, shift);
}

void Builder::address(const ptx::Operand& operand, Where& space, uint32_t& reg, bool& wide, int64_t& offset) {
    if (operand.kind != Kind::address) fail("an address is expected");
    offset = static_cast<int64_t>(operand.value);
    reg = kNone;
    wide = true;
    if (operand.name.empty()) return;
    if (const Register* r = find_register(operand.name)) {
        if (r->width != 32 && r->width != 64) fail("register " + operand.name + " is no address");
        reg = r->at;
        wide = r->width == 64;
        return;
    }
    const Symbol s = symbol(operand.name);
    offset += static_cast<int64_t>(s.address);
    if (space == Where::param && s.space == Where::call_param) space = Where::call_param;
    if (space == Where::generic) {
        // The variable's own space; its generic address is meant.
        if (s.space == Where::shared) offset += static_cast<int64_t>(windows_.shared);
        if (s.space == Where::local) offset += static_cast<int64_t>(windows_.local);
        if (s.space == Where::param) offset += static_cast<int64_t>(windows_.param);
    }
}

bool Builder::decode_memory(const ptx::Statement& s, Instruction& in) {
    const bool is_load = s.opcode == "ld" || s.opcode == "ldu", is_store = s.opcode == "st";
    const bool to_matrix = s.opcode == "ldmatrix", from_matrix = s.opcode == "stmatrix";
    if (!is_load && !is_store && !to_matrix && !from_matrix) return false;
    Access access;
    if (to_matrix || from_matrix) {
        access.count = 0;
        for (const std::string& m : s.modifiers) {
            if (m == "x1" || m == "x2" || m == "x4")
                access.count = static_cast<uint8_t>(m[1] - '0');
            else if (m == "trans")
                access.what = 1;
            else if (m == "shared" || m == "shared::cta")
                access.space = Where::shared;
            else if (m != "sync" && m != "aligned" && m != "m8n8" && m != "b16")
                fail("unknown modifier ." + m);
        }
        if (!access.count || s.operands.size() != 2) fail("unknown form");
        const ptx::Operand& at = s.operands[from_matrix ? 0 : 1];
        const ptx::Operand& rows = s.operands[from_matrix ? 1 : 0];
        address(at, access.space, access.address, access.wide, access.offset);
        std::vector<ptx::Operand> parts = rows.kind == Kind::vector ? rows.parts : std::vector<ptx::Operand>{rows};
        if (parts.size() != access.count) fail("another number of registers than matrices");
        for (size_t i = 0; i < parts.size(); ++i)
            access.registers[i] = from_matrix ? source(parts[i], 32) : destination(parts[i], 32);
        in.opcode = static_cast<uint16_t>(to_matrix ? Op::load_matrix : Op::store_matrix);
        in.flags |= kCollective;
        access.bytes = 4;  // rows of 16 bytes, read by their first lane's address
        in.small = static_cast<uint32_t>(kernel_->accesses.size());
        kernel_->accesses.push_back(access);
        return true;
    }
    Element e{0, false, Number::u32};
    for (const std::string& m : s.modifiers) {
        if (is_space(m, &access.space) || is_hint(m) || is_order(m, &access)) continue;
        if (m == "v2" || m == "v4" || m == "v8")
            access.count = static_cast<uint8_t>(m[1] - '0');
        else if (m == "nc")
            access.non_coherent = true;
        else if (!element(m, &e))
            fail("unknown modifier ." + m);
    }
    if (!e.bytes) fail("no type");
    if (access.strong && access.scope == Scope::none) fail("no scope");
    access.bytes = e.bytes;
    access.sign = e.sign;
    if (access.unit() > 32) fail("a vector of more than 32 bytes");
    // A last operand may be a cache policy: it changes nothing.
    if (s.operands.size() < 2 || s.operands.size() > 3) fail("unknown form");
    const ptx::Operand& at = s.operands[is_load ? 1 : 0];
    const ptx::Operand& values = s.operands[is_load ? 0 : 1];
    address(at, access.space, access.address, access.wide, access.offset);
    if (is_store && (access.space == Where::constant || (access.space == Where::param))) fail("a store to read-only memory");
    const std::vector<ptx::Operand> parts = values.kind == Kind::vector ? values.parts : std::vector<ptx::Operand>{values};
    if (parts.size() != access.count) fail("another number of registers than elements");
    for (size_t i = 0; i < parts.size(); ++i) {
        const Register* r = parts[i].kind == Kind::name ? find_register(parts[i].name) : nullptr;
        if (r) {
            if (r->width < e.bytes * 8 && !(r->width == 16 && e.bytes == 1)) fail("register " + parts[i].name + " is too narrow");
            if (r->width == 1) fail("a predicate is no memory operand");
            access.registers[i] = r->at;
            access.widths[i] = static_cast<uint8_t>(r->width);
        } else if (is_load) {
            access.registers[i] = destination(parts[i], e.bytes * 8);
            access.widths[i] = static_cast<uint8_t>(e.bytes <= 4 ? 32 : e.bytes * 8);
        } else {
            access.registers[i] = source(parts[i], e.bytes * 8);
            access.widths[i] = static_cast<uint8_t>(e.bytes <= 4 ? 32 : e.bytes * 8);
        }
    }
    grain(access.space, access.unit());
    in.opcode = static_cast<uint16_t>(is_load ? Op::load : Op::store);
    in.small = static_cast<uint32_t>(kernel_->accesses.size());
    kernel_->accesses.push_back(access);
    return true;
}

bool Builder::decode_atomic(const ptx::Statement& s, Instruction& in) {
    const bool reduce = s.opcode == "red";
    if (s.opcode != "atom" && !reduce) return false;
    if (s.has("async")) fail("red.async is not served");
    static const std::unordered_map<std::string_view, AtomicOp> ops = {
        {"add", AtomicOp::add},     {"min", AtomicOp::min},       {"max", AtomicOp::max}, {"inc", AtomicOp::inc},
        {"dec", AtomicOp::dec},     {"exch", AtomicOp::exch},     {"cas", AtomicOp::cas}, {"and", AtomicOp::logic_and},
        {"or", AtomicOp::logic_or}, {"xor", AtomicOp::logic_xor},
    };
    Access access;
    access.strong = access.modifies = true;
    Element e{0, false, Number::u32};
    bool has_op = false;
    for (const std::string& m : s.modifiers) {
        if (is_space(m, &access.space) || is_hint(m) || is_order(m, &access) || m == "noftz") continue;
        if (const auto found = ops.find(m); found != ops.end()) {
            access.op = found->second;
            has_op = true;
        } else if (m == "v2" || m == "v4" || m == "v8") {
            access.count = static_cast<uint8_t>(m[1] - '0');
        } else if (!element(m, &e)) {
            fail("unknown modifier ." + m);
        }
    }
    if (!e.bytes || !has_op) fail("no type or operation");
    if (access.scope == Scope::none) access.scope = Scope::gpu;  // the default of atom and red
    access.bytes = e.bytes;
    access.number = e.number;
    const bool floating = e.number >= Number::f32;
    const bool min_or_max = access.op == AtomicOp::min || access.op == AtomicOp::max;
    if (floating && access.op != AtomicOp::add && !(min_or_max && e.bytes <= 4 && e.number != Number::f32) && access.count == 1)
        fail("no such operation on floats");
    size_t next = 0;
    const auto registers = [&](const ptx::Operand& o, std::array<uint32_t, 8>& out, bool writes) {
        const std::vector<ptx::Operand> parts = o.kind == Kind::vector ? o.parts : std::vector<ptx::Operand>{o};
        if (parts.size() != access.count) fail("another number of registers than elements");
        for (size_t i = 0; i < parts.size(); ++i)
            out[i] = writes ? destination(parts[i], e.bytes * 8) : source(parts[i], e.bytes * 8);
    };
    access.registers.fill(kNone);
    const size_t sources = access.op == AtomicOp::cas ? 2 : 1;
    if (s.operands.size() < (reduce ? 1 : 2) + sources) fail("too few operands");
    if (!reduce) registers(s.operands[next++], access.registers, true);
    address(s.operands[next++], access.space, access.address, access.wide, access.offset);
    registers(s.operands[next++], access.more, false);
    access.b = access.more[0];
    if (access.op == AtomicOp::cas) access.c = source(s.operands[next++], e.bytes * 8);
    grain(access.space, access.unit());
    in.opcode = static_cast<uint16_t>(Op::atomic);
    in.small = static_cast<uint32_t>(kernel_->accesses.size());
    kernel_->accesses.push_back(access);
    return true;
}

bool Builder::decode_async(const ptx::Statement& s, Instruction& in) {
    if (s.opcode == "griddepcontrol") {
        if (s.modifiers.size() != 1 || (s.modifiers[0] != "wait" && s.modifiers[0] != "launch_dependents")) fail("unknown form");
        if (module_.target < 90) fail("griddepcontrol needs sm_90");
        in.opcode = static_cast<uint16_t>(s.has("wait") ? Op::wait_predecessors : Op::launch_dependents);
        return true;
    }
    if (s.opcode != "cp") return false;
    if (s.modifiers.empty() || s.modifiers[0] != "async" || s.has("bulk")) fail("not served");
    if (s.has("commit_group")) {
        in.opcode = static_cast<uint16_t>(Op::copy_commit);
        return true;
    }
    if (s.has("wait_group") || s.has("wait_all")) {
        in.opcode = static_cast<uint16_t>(Op::copy_wait);
        in.immediate = UINT64_MAX;
        if (s.has("wait_group")) {
            if (s.operands.size() != 1 || s.operands[0].kind != Kind::integer) fail("a count is expected");
            in.immediate = s.operands[0].value;
        }
        return true;
    }
    Access access;
    access.space = Where::shared;
    if (s.has("mbarrier")) {  // cp.async.mbarrier.arrive{.noinc}.shared.b64
        for (const std::string& m : s.modifiers)
            if (m != "async" && m != "mbarrier" && m != "arrive" && m != "noinc" && m != "b64" && !is_space(m, &access.space))
                fail("unknown modifier ." + m);
        if (s.operands.size() != 1) fail("unknown form");
        access.what = s.has("noinc");
        address(s.operands[0], access.space, access.address, access.wide, access.offset);
        in.opcode = static_cast<uint16_t>(Op::copy_arrive);
    } else {
        Where spaces[2] = {Where::shared, Where::global};
        size_t named = 0;
        for (const std::string& m : s.modifiers) {
            if (m == "async" || m == "ca" || m == "cg" || is_hint(m)) continue;
            if (named < 2 && is_space(m, &spaces[named]))
                ++named;
            else
                fail("unknown modifier ." + m);
        }
        if (spaces[0] != Where::shared || spaces[1] != Where::global || s.operands.size() < 3) fail("unknown form");
        address(s.operands[0], access.space, access.address, access.wide, access.offset);
        address(s.operands[1], access.second_space, access.second, access.second_wide, access.second_offset);
        if (s.operands[2].kind != Kind::integer) fail("a size is expected");
        access.bytes = static_cast<uint8_t>(s.operands[2].value);
        if (access.bytes != 4 && access.bytes != 8 && access.bytes != 16) fail("cp.async copies 4, 8 or 16 bytes");
        if (s.has("cg") && access.bytes != 16) fail("cp.async.cg copies 16 bytes");
        if (s.operands.size() > 3) {
            if (s.operands[3].kind == Kind::name && width(s.operands[3]) == 1) fail("ignore-src is not served");
            if (!(s.has("L2::cache_hint") && s.operands.size() == 4)) access.size = source(s.operands[3], 32);
        }
        grain(Where::shared, access.bytes);
        in.opcode = static_cast<uint16_t>(Op::copy_async);
    }
    in.small = static_cast<uint32_t>(kernel_->accesses.size());
    kernel_->accesses.push_back(access);
    return true;
}

bool Builder::decode_mbarrier(const ptx::Statement& s, Instruction& in) {
    if (s.opcode != "mbarrier" || s.modifiers.empty()) return false;
    static const std::unordered_map<std::string_view, int> what = {
        {"init", kMbarInit},           {"inval", kMbarInvalidate},
        {"arrive", kMbarArrive},       {"arrive_drop", kMbarArriveDrop},
        {"expect_tx", kMbarExpectTx},  {"complete_tx", kMbarCompleteTx},
        {"test_wait", kMbarTestState}, {"try_wait", kMbarTestState}};
    const auto found = what.find(s.modifiers[0]);
    if (found == what.end()) fail("not served");
    Access access;
    access.bytes = 8;
    access.scope = Scope::cta;
    access.what = static_cast<uint8_t>(found->second);
    access.order = kAcquire | kRelease;
    bool expect = false;
    for (size_t i = 1; i < s.modifiers.size(); ++i) {
        const std::string& m = s.modifiers[i];
        if (m == "relaxed")
            access.order = 0;
        else if (m == "parity")
            access.what = kMbarTestParity;
        else if (m == "expect_tx")
            expect = true;
        else if (m != "b64" && m != "noComplete" && m != "acquire" && m != "release" && m != "cta" && m != "cluster" &&
                 !is_space(m, &access.space))
            fail("unknown modifier ." + m);
    }
    access.registers.fill(kNone);
    size_t next = 0;
    const auto at = [&](const ptx::Operand& o) { address(o, access.space, access.address, access.wide, access.offset); };
    const auto need = [&](size_t n) {
        if (s.operands.size() < n) fail("too few operands");
    };
    switch (access.what) {
        case kMbarInit:
        case kMbarExpectTx:
        case kMbarCompleteTx:
            need(2);
            at(s.operands[0]);
            access.second = source(s.operands[1], 32);
            break;
        case kMbarInvalidate:
            need(1);
            at(s.operands[0]);
            break;
        case kMbarArrive:
        case kMbarArriveDrop:
            need(1);
            if (s.operands[0].kind != Kind::address) access.registers[0] = destination(s.operands[next++], 64);
            need(next + 1);
            at(s.operands[next++]);
            if (s.operands.size() > next) access.second = source(s.operands[next], 32);
            if (expect) {
                access.size = access.second;
                access.second = kNone;
            }
            break;
        default:
            need(3);
            in.d = destination(s.operands[0], 1);
            at(s.operands[1]);
            access.second = source(s.operands[2], access.what == kMbarTestState ? 64 : 32);
    }
    in.opcode = static_cast<uint16_t>(Op::mbarrier);
    in.small = static_cast<uint32_t>(kernel_->accesses.size());
    kernel_->accesses.push_back(access);
    return true;
}

bool Builder::decode_barrier(const ptx::Statement& s, Instruction& in) {
    if (s.opcode == "fence" || s.opcode == "membar") {
        Scope scope = Scope::none;
        for (const std::string& m : s.modifiers) {
            if (m == "cta" || m == "cluster")
                scope = Scope::cta;
            else if (m == "gl" || m == "gpu")
                scope = Scope::gpu;
            else if (m == "sys")
                scope = Scope::sys;
            else if (m == "proxy" || m == "mbarrier_init")
                scope = Scope::cta;  // orders what is not modelled apart
            else if (m != "sc" && m != "acq_rel" && m != "acquire" && m != "release" && m != "async" && m != "alias" &&
                     !starts(m, "async") && !starts(m, "shared") && m != "global" && m != "sync_restrict" &&
                     !starts(m, "sync_restrict"))
                fail("unknown modifier ." + m);
        }
        if (scope == Scope::none) fail("no scope");
        in.opcode = static_cast<uint16_t>(Op::fence);
        in.small = static_cast<uint32_t>(scope);
        return true;
    }
    if (s.opcode != "bar" && s.opcode != "barrier") return false;
    if (s.has("warp")) {
        if (s.operands.size() != 1) fail("a membermask is expected");
        in.opcode = static_cast<uint16_t>(Op::warp_barrier);
        in.member = source(s.operands[0], 32);
        return true;
    }
    if (s.has("cluster")) {  // a cluster has one block: its barrier is not worth more than that
        fail("clusters are not served");
    }
    in.opcode = static_cast<uint16_t>(Op::barrier);
    // type: 0 sync, 1 arrive, 2 red.popc, 3 red.and, 4 red.or; small: 1 aligned
    in.type = s.has("arrive") ? 1 : s.has("popc") ? 2 : s.has("and") ? 3 : s.has("or") ? 4 : 0;
    in.small = s.opcode == "bar" || s.has("aligned");
    if (in.type == 0 && !s.has("sync")) fail("unknown form");
    size_t next = 0;
    if (in.type >= 2) in.d = destination(s.operands.at(next++), in.type == 2 ? 32 : 1);
    if (s.operands.size() <= next) fail("a barrier is expected");
    in.a = source(s.operands[next++], 32);
    const size_t rest = s.operands.size() - next;
    if (in.type >= 2) {
        if (rest == 2) in.b = source(s.operands[next++], 32);
        const ptx::Operand& p = s.operands.at(next);
        in.c = source(p, 1);
        in.immediate = p.negated;
    } else if (rest == 1) {
        in.b = source(s.operands[next], 32);
    }
    if (in.type == 1 && in.b == kNone) fail("bar.arrive needs a count");
    return true;
}

namespace {

template <bool kTo>
void add_window(const Instruction& in, std::byte* regs, uint32_t mask) {
    const uint64_t* a = u64(regs, in.a);
    uint64_t* d = u64(regs, in.d);
    for (int lane = 0; lane < kLanes; ++lane) {
        const uint64_t value = kTo ? a[lane] - in.immediate : a[lane] + in.immediate;
        d[lane] = mask >> lane & 1 ? value : d[lane];
    }
}

void in_window(const Instruction& in, std::byte* regs, uint32_t mask) {
    const uint64_t* a = u64(regs, in.a);
    uint32_t result = 0;
    for (int lane = 0; lane < kLanes; ++lane)
        result |= static_cast<uint32_t>(a[lane] - in.immediate < (uint64_t{1} << in.small)) << lane;
    uint32_t& d = predicate(regs, in.d);
    d = (d & ~mask) | (result & mask);
}

}  // namespace

bool Builder::decode_address(const ptx::Statement& s, Instruction& in) {
    if (s.opcode == "cvta") {
        Where space = Where::generic;
        bool wide = false;
        for (const std::string& m : s.modifiers)
            if (m == "u64")
                wide = true;
            else if (m != "to" && !is_space(m, &space))
                fail("unknown modifier ." + m);
        if (!wide || s.operands.size() != 2) fail("unknown form");
        in.run = s.has("to") ? add_window<true> : add_window<false>;
        in.immediate = space == Where::shared  ? windows_.shared
                       : space == Where::local ? windows_.local
                       : space == Where::param ? windows_.param
                                               : 0;
        in.d = destination(s.operands[0], 64);
        in.a = source(s.operands[1], 64);
        return true;
    }
    if (s.opcode == "isspacep") {
        Where space = Where::generic;
        for (const std::string& m : s.modifiers)
            if (!is_space(m, &space)) fail("unknown modifier ." + m);
        if (s.operands.size() != 2) fail("unknown form");
        in.run = in_window;
        in.d = destination(s.operands[0], 1);
        in.a = source(s.operands[1], 64);
        in.small = 24;
        static_assert(Windows::kBytes == uint64_t{1} << 24);
        if (space == Where::shared)
            in.immediate = windows_.shared;
        else if (space == Where::local)
            in.immediate = windows_.local;
        else if (space == Where::param)
            in.immediate = windows_.param;
        else if (space == Where::global) {
            in.immediate = windows_.global;
            in.small = 38;
            static_assert(Memory::kRange == uint64_t{1} << 38);
        } else if (space == Where::constant) {  // constants lie among the global variables: no address is known for one alone
            fail("isspacep.const is not served: constants lie among the global variables");
        } else {
            fail("not served");
        }
        return true;
    }
    if (s.opcode == "mapa" || s.opcode == "getctarank") fail("clusters are not served");
    return false;
}

}  // namespace vgpu
