#include "core/builder.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace vgpu {
namespace {

uint64_t round_up(uint64_t value, uint64_t to) { return to ? (value + to - 1) / to * to : value; }

// The row class of a register of so many bits: predicates apart, everything up to 32 bits lives in 32.
int row_class(int bits) { return bits == 1 ? 1 : bits <= 32 ? 32 : bits; }
uint32_t row_bytes(int bits) { return bits == 1 ? 4 : bits <= 32 ? 128 : bits == 64 ? 256 : 512; }

int bits_of(const ptx::Type& type) {
    if (type.name == "pred") return 1;
    return type.bytes <= 2 ? 16 : type.bytes * 8;
}

const std::unordered_map<std::string, Special>& special_names() {
    static const std::unordered_map<std::string, Special> names = {
        {"%tid.x", Special::tid_x},
        {"%tid.y", Special::tid_y},
        {"%tid.z", Special::tid_z},
        {"%ntid.x", Special::ntid_x},
        {"%ntid.y", Special::ntid_y},
        {"%ntid.z", Special::ntid_z},
        {"%ctaid.x", Special::ctaid_x},
        {"%ctaid.y", Special::ctaid_y},
        {"%ctaid.z", Special::ctaid_z},
        {"%nctaid.x", Special::nctaid_x},
        {"%nctaid.y", Special::nctaid_y},
        {"%nctaid.z", Special::nctaid_z},
        {"%laneid", Special::laneid},
        {"%warpid", Special::warpid},
        {"%nwarpid", Special::nwarpid},
        {"%smid", Special::smid},
        {"%nsmid", Special::nsmid},
        {"%gridid", Special::gridid},
        {"%lanemask_eq", Special::lanemask_eq},
        {"%lanemask_le", Special::lanemask_le},
        {"%lanemask_lt", Special::lanemask_lt},
        {"%lanemask_ge", Special::lanemask_ge},
        {"%lanemask_gt", Special::lanemask_gt},
        {"%clock", Special::clock},
        {"%clock64", Special::clock64},
        {"%clock_hi", Special::clock_hi},
        {"%globaltimer", Special::globaltimer},
        {"%globaltimer_lo", Special::globaltimer_lo},
        {"%globaltimer_hi", Special::globaltimer_hi},
        {"%dynamic_smem_size", Special::dynamic_smem_size},
        {"%total_smem_size", Special::total_smem_size},
        {"%aggr_smem_size", Special::aggr_smem_size},
        {"%nclusterid.x", Special::nctaid_x},
        {"%nclusterid.y", Special::nctaid_y},
        {"%nclusterid.z", Special::nctaid_z},
        {"%clusterid.x", Special::ctaid_x},
        {"%clusterid.y", Special::ctaid_y},
        {"%clusterid.z", Special::ctaid_z},
        {"%cluster_nctaid.x", Special::one},
        {"%cluster_nctaid.y", Special::one},
        {"%cluster_nctaid.z", Special::one},
        {"%cluster_nctarank", Special::one},
        {"%cluster_ctarank", Special::zero},
        {"%cluster_ctaid.x", Special::zero},
        {"%cluster_ctaid.y", Special::zero},
        {"%cluster_ctaid.z", Special::zero},
    };
    return names;
}

bool ticks(Special which) { return which >= Special::clock && which <= Special::globaltimer_hi; }

}  // namespace

Builder::Builder(const ptx::Module& module, const GlobalSymbols& symbols, const Windows& windows, int reserved_shared)
    : module_(module), symbols_(symbols), windows_(windows), reserved_shared_(reserved_shared) {}

void Builder::fail(const std::string& what) const {
    std::string text = what;
    if (statement_) text += " (PTX line " + std::to_string(statement_->line) + ": " + statement_->text() + ")";
    throw ptx::SyntaxError(text);
}

const ptx::Function* Builder::function(const std::string& name) const {
    const ptx::Function* found = nullptr;
    for (const ptx::Function& f : module_.functions)
        if (f.name == name && (f.defined || !found)) found = &f;
    return found;
}

// The entry and all that it calls, each once; a call of what has no body here is the loader's business (vprintf) or an error.
void Builder::collect(const ptx::Function& from) {
    functions_.push_back(&from);
    for (const ptx::Statement& s : from.code) {
        if (s.opcode != "call") continue;
        for (const ptx::Operand& o : s.operands) {
            if (o.kind != ptx::Operand::Kind::name) continue;
            const ptx::Function* callee = function(o.name);
            if (callee && callee->defined && std::find(functions_.begin(), functions_.end(), callee) == functions_.end())
                collect(*callee);
        }
    }
}

void Builder::check_recursion(const std::string& name, std::set<std::string>& above) const {
    if (!above.insert(name).second) throw ptx::SyntaxError("recursion through " + name + " is not served");
    const ptx::Function* f = function(name);
    if (f && f->defined)
        for (const ptx::Statement& s : f->code)
            if (s.opcode == "call")
                for (const ptx::Operand& o : s.operands)
                    if (o.kind == ptx::Operand::Kind::name && function(o.name) && function(o.name)->defined)
                        check_recursion(o.name, above);
    above.erase(name);
}

uint32_t Builder::add_register(int bits) {
    const uint32_t bytes = row_bytes(bits);
    if (bits != 1) next_register_ = static_cast<uint32_t>(round_up(next_register_, 64));
    const uint32_t at = next_register_;
    if (next_register_ > (uint32_t{1} << 28)) fail("too many registers");
    next_register_ += bytes;
    return at;
}

uint32_t Builder::in_frame(const std::string& name, uint64_t bytes, uint64_t align, bool checked) {
    constexpr uint64_t kMost = uint64_t{1} << 19;
    const uint64_t begin = round_up(kernel_->frame_bytes + (checked ? 16 : 0), std::max<uint64_t>(align, 8));
    if (bytes > kMost || begin + bytes > kMost) fail("local memory of " + name + " is past 512 KiB a thread");
    kernel_->frame.push_back({name, static_cast<uint32_t>(begin), static_cast<uint32_t>(bytes), checked});
    kernel_->frame_bytes = static_cast<uint32_t>(round_up(begin + bytes + (checked ? 16 : 0), 16));
    if (checked) kernel_->info.local_bytes += static_cast<uint32_t>(bytes);
    return static_cast<uint32_t>(begin);
}

// Static variables each with a fence after it; the dynamic array behind them all. Only what the code names is laid out.
void Builder::lay_out_shared() {
    std::set<std::string> named;
    const auto note = [&named](const auto& self, const ptx::Operand& o) -> void {
        if (!o.name.empty()) named.insert(o.name);
        for (const ptx::Operand& part : o.parts) self(self, part);
    };
    for (const ptx::Function* f : functions_)
        for (const ptx::Statement& s : f->code)
            for (const ptx::Operand& o : s.operands) note(note, o);
    uint64_t at = static_cast<uint64_t>(reserved_shared_), dynamic_align = 16, plain = 0;
    std::vector<std::pair<std::string, Symbol*>> dynamic;
    kernel_->shared_begin = static_cast<uint32_t>(at);
    const auto place = [&](const ptx::Variable& v, Symbol& symbol) {
        symbol.space = Where::shared;
        if (v.count == 0) {  // extern .shared x[]: all of them begin where the static ones end
            dynamic_align = std::max(dynamic_align, v.alignment());
            dynamic.emplace_back(v.name, &symbol);
            return;
        }
        plain = round_up(plain, std::max<uint64_t>(v.alignment(), 1)) + v.bytes();
        at = round_up(at, std::max<uint64_t>(v.alignment(), 128));
        symbol.address = at;
        if (v.bytes() > (uint64_t{1} << 20)) fail("shared variable " + v.name + " is past any card's shared memory");
        kernel_->shared.push_back({v.name, static_cast<uint32_t>(at), static_cast<uint32_t>(v.bytes())});
        at += v.bytes() + kFence;
    };
    for (const ptx::Variable& v : module_.variables)
        if (v.space == ptx::Space::shared && named.count(v.name)) place(v, shared_symbols_[v.name]);
    for (const ptx::Function* f : functions_)
        for (const ptx::Variable& v : f->variables)
            if (v.space == ptx::Space::shared) place(v, scopes_[f->name].symbols[v.name]);
    kernel_->dynamic_begin = static_cast<uint32_t>(round_up(at, std::max<uint64_t>(dynamic_align, 128)));
    for (auto& [name, symbol] : dynamic) symbol->address = kernel_->dynamic_begin;
    kernel_->info.static_shared = static_cast<uint32_t>(plain);
}

void Builder::declare(FunctionScope& scope) {
    const ptx::Function& f = *scope.function;
    for (const ptx::Variable& v : f.registers) scope.registers[v.name] = {add_register(bits_of(v.type)), bits_of(v.type)};
    for (const ptx::Variable& v : f.variables) {
        if (v.space == ptx::Space::local) {
            scope.symbols[v.name] = {Where::local, in_frame(v.name, v.bytes(), v.alignment(), true)};
        } else if (v.space == ptx::Space::param) {
            scope.symbols[v.name] = {Where::call_param, in_frame(v.name, v.bytes(), v.alignment(), false)};
        } else if (v.space == ptx::Space::global || v.space == ptx::Space::constant) {
            const auto found = symbols_.find(f.name + "::" + v.name);
            if (found != symbols_.end()) scope.symbols[v.name] = {Where::global, found->second};
        }
    }
    if (f.entry) {
        uint64_t at = 0;
        for (const ptx::Variable& v : f.parameters) {
            at = round_up(at, v.alignment());
            scope.symbols[v.name] = {Where::param, at};
            kernel_->info.parameters.push_back({static_cast<uint32_t>(at), static_cast<uint32_t>(v.bytes())});
            at += v.bytes();
            if (at > 65536) fail("parameters past 64 KiB");
        }
        kernel_->info.parameter_bytes = static_cast<uint32_t>(at);
        return;
    }
    const auto formal = [&](const ptx::Variable& v, std::vector<Variable>& list) {
        if (v.space == ptx::Space::reg) fail("function " + f.name + " passes registers, which is not served");
        const uint32_t begin = in_frame(v.name, v.bytes(), v.alignment(), false);
        scope.symbols[v.name] = {Where::call_param, begin};
        list.push_back({v.name, begin, static_cast<uint32_t>(v.bytes()), false});
    };
    for (const ptx::Variable& v : f.parameters) formal(v, scope.parameter_list);
    for (const ptx::Variable& v : f.results) formal(v, scope.result_list);
}

std::unique_ptr<Kernel> Builder::build(const ptx::Function& entry) {
    kernel_ = std::make_unique<Kernel>();
    kernel_->module = &module_;
    kernel_->info.name = entry.name;
    std::copy(entry.max_threads, entry.max_threads + 3, kernel_->info.max_threads);
    std::copy(entry.required_threads, entry.required_threads + 3, kernel_->info.required_threads);
    collect(entry);
    std::set<std::string> above;
    check_recursion(entry.name, above);
    for (const ptx::Function* f : functions_) scopes_[f->name].function = f;
    lay_out_shared();
    for (const ptx::Function* f : functions_) {
        FunctionScope& scope = scopes_[f->name];
        scope.registers["%carry"] = {add_register(1), 1};
        declare(scope);
    }
    next_register_ = static_cast<uint32_t>(round_up(next_register_, 64));
    kernel_->constants_begin = next_register_;
    // Code indices are known before anything is decoded: an instruction a statement, and an exit behind each function.
    uint32_t at = 0;
    for (const ptx::Function* f : functions_) {
        FunctionScope& scope = scopes_[f->name];
        scope.begin = at;
        for (const ptx::Function::Label& label : f->labels) scope.labels[label.name] = at + label.at;
        at += static_cast<uint32_t>(f->code.size()) + 1;
    }
    decoding_ = true;
    static const ptx::Statement kEnd = [] {
        ptx::Statement s;
        s.opcode = "exit";
        return s;
    }();
    for (const ptx::Function* f : functions_) {
        scope_ = &scopes_[f->name];
        for (const ptx::Statement& s : f->code) decode(s);
        Instruction end;
        end.opcode = static_cast<uint16_t>(f->entry ? Op::exit : Op::ret);
        end.flags = kEndsRun;
        kernel_->code.push_back(end);
        kernel_->statements.push_back(&kEnd);
    }
    kernel_->register_bytes = static_cast<uint32_t>(round_up(next_register_, 64));
    kernel_->constants.resize(kernel_->register_bytes - kernel_->constants_begin);
    for (const auto& [key, offset] : constants_) {
        std::byte* row = kernel_->constants.data() + (offset - kernel_->constants_begin);
        const auto [value, bits] = key;
        if (bits == 1) {
            const uint32_t all = value ? ~uint32_t{0} : 0;
            std::memcpy(row, &all, sizeof all);
        } else {
            for (int lane = 0; lane < kLanes; ++lane) {
                if (bits == 32) {
                    const uint32_t narrow = static_cast<uint32_t>(value);
                    std::memcpy(row + lane * 4, &narrow, 4);
                } else {
                    std::memcpy(row + lane * 8, &value, 8);
                }
            }
        }
    }
    return std::move(kernel_);
}

const Builder::Register* Builder::find_register(const std::string& name) const {
    const auto found = scope_->registers.find(name);
    return found == scope_->registers.end() ? nullptr : &found->second;
}

Builder::Symbol Builder::symbol(const std::string& name) const {
    if (const auto found = scope_->symbols.find(name); found != scope_->symbols.end()) return found->second;
    if (const auto found = shared_symbols_.find(name); found != shared_symbols_.end()) return found->second;
    if (const auto found = symbols_.find(name); found != symbols_.end()) return {Where::global, found->second};
    fail("unknown name " + name);
}

uint32_t Builder::special(const std::string& name, int bits) {
    const auto found = special_names().find(name);
    if (found == special_names().end()) return kNone;
    const bool wide = bits == 64;
    if (ticks(found->second)) volatile_special_ = true;
    const auto [at, added] = specials_.try_emplace({found->second, wide}, 0);
    if (added) {
        at->second = add_register(wide ? 64 : 32);
        kernel_->specials.push_back({found->second, at->second, wide});
    }
    return at->second;
}

uint32_t Builder::constant(uint64_t value, int bits) {
    const int kind = row_class(bits);
    if (bits < 64 && bits > 1) value &= (uint64_t{1} << bits) - 1;
    const auto [at, added] = constants_.try_emplace({value, kind}, 0);
    if (added) at->second = add_register(kind);
    return at->second;
}

uint32_t Builder::source(const ptx::Operand& operand, int bits) {
    using Kind = ptx::Operand::Kind;
    switch (operand.kind) {
        case Kind::integer:
            return constant(bits == 1 ? (operand.value != 0) : operand.value, bits);
        case Kind::f32:
            if (bits == 64)
                return constant(std::bit_cast<uint64_t>(double{std::bit_cast<float>(static_cast<uint32_t>(operand.value))}), 64);
            if (bits != 32) fail("a float literal is no operand of " + std::to_string(bits) + " bits");
            return constant(operand.value, 32);
        case Kind::f64:
            if (bits == 32)
                return constant(std::bit_cast<uint32_t>(static_cast<float>(std::bit_cast<double>(operand.value))), 32);
            if (bits != 64) fail("a float literal is no operand of " + std::to_string(bits) + " bits");
            return constant(operand.value, 64);
        case Kind::name: {
            if (const Register* r = find_register(operand.name)) {
                const bool relaxed = statement_->opcode == "cvt";
                if (row_class(r->width) != row_class(bits) && !(relaxed && r->width > bits && bits != 1))
                    fail("register " + operand.name + " has " + std::to_string(r->width) + " bits where " + std::to_string(bits) +
                         " are read");
                return r->at;
            }
            if (operand.name == "WARP_SZ") return constant(32, bits);
            if (const uint32_t at = special(operand.name, bits); at != kNone) return at;
            const Symbol s = symbol(operand.name);
            return constant(s.address + static_cast<uint64_t>(operand.value), bits);
        }
        default:
            fail("operand that is no register or constant");
    }
}

uint32_t Builder::destination(const ptx::Operand& operand, int bits) {
    if (operand.kind == ptx::Operand::Kind::sink) return kNone;
    if (operand.kind != ptx::Operand::Kind::name) fail("destination that is no register");
    const Register* r = find_register(operand.name);
    if (!r) fail("unknown register " + operand.name);
    const bool relaxed = statement_->opcode == "cvt";
    if (row_class(r->width) != row_class(bits) && !(relaxed && r->width > bits && bits != 1))
        fail("register " + operand.name + " has " + std::to_string(r->width) + " bits where " + std::to_string(bits) +
             " are written");
    return r->at;
}

int Builder::width(const ptx::Operand& operand) {
    if (operand.kind != ptx::Operand::Kind::name) return 0;
    const Register* r = find_register(operand.name);
    return r ? r->width : special_names().count(operand.name) ? 32 : 0;
}

uint32_t* Builder::list(size_t n) {
    kernel_->lists.push_back(std::make_unique<uint32_t[]>(n));
    return kernel_->lists.back().get();
}

void Builder::decode(const ptx::Statement& s) {
    statement_ = &s;
    volatile_special_ = false;
    Instruction in;
    const bool own = decode_control(s, in) || decode_barrier(s, in) || decode_memory(s, in) || decode_atomic(s, in) ||
                     decode_async(s, in) || decode_mbarrier(s, in);
    if (own) {
        in.flags |= kEndsRun;
    } else if (!decode_address(s, in) && !decode_alu(s, *this, in)) {
        fail("unknown instruction " + s.opcode);
    }
    if (in.run && volatile_special_) {
        in.opcode = static_cast<uint16_t>(Op::clock);
        in.flags |= kEndsRun;
    }
    if (in.flags & kCollective) in.flags |= kEndsRun;
    if (!s.guard.empty()) {
        const Register* r = find_register(s.guard);
        if (!r || r->width != 1) fail("guard " + s.guard + " is no predicate");
        in.guard = r->at;
        if (s.guard_negated) in.flags |= kGuardNegated;
    }
    kernel_->code.push_back(in);
    kernel_->statements.push_back(&s);
}

bool Builder::decode_control(const ptx::Statement& s, Instruction& in) {
    const auto label = [&](const std::string& name) {
        const auto found = scope_->labels.find(name);
        if (found == scope_->labels.end()) fail("unknown label " + name);
        return found->second;
    };
    const auto is = [&in](Op op) { in.opcode = static_cast<uint16_t>(op); };
    if (s.opcode == "bra") {
        if (s.operands.size() != 1 || s.operands[0].kind != ptx::Operand::Kind::name) fail("a branch needs a label");
        is(Op::branch);
        in.immediate = label(s.operands[0].name);
    } else if (s.opcode == "brx" && s.has("idx")) {
        is(Op::branch_table);
        if (s.operands.size() != 2) fail("brx.idx needs an index and a list of targets");
        in.a = source(s.operands[0], 32);
        const ptx::Function::Targets* targets = nullptr;
        for (const ptx::Function::Targets& t : scope_->function->targets)
            if (t.name == s.operands[1].name) targets = &t;
        if (!targets) fail("unknown targets " + s.operands[1].name);
        std::vector<uint32_t> table;
        for (const std::string& name : targets->labels) table.push_back(label(name));
        in.small = static_cast<uint32_t>(kernel_->tables.size());
        kernel_->tables.push_back(std::move(table));
    } else if (s.opcode == "ret") {
        is(scope_->function->entry ? Op::exit : Op::ret);
    } else if (s.opcode == "exit") {
        is(Op::exit);
    } else if (s.opcode == "trap") {
        is(Op::trap);
    } else if (s.opcode == "brkpt" || s.opcode == "nanosleep" || s.opcode == "pmevent" || s.opcode == "prefetch" ||
               s.opcode == "prefetchu" || s.opcode == "discard" || s.opcode == "applypriority" || s.opcode == "setmaxnreg") {
        is(Op::nothing);
    } else if (s.opcode == "call") {
        decode_call(s, in);
    } else {
        return false;
    }
    return true;
}

void Builder::decode_call(const ptx::Statement& s, Instruction& in) {
    using Kind = ptx::Operand::Kind;
    std::vector<ptx::Operand> results, arguments;
    std::string name;
    for (const ptx::Operand& o : s.operands) {
        if (o.kind == Kind::list)
            (name.empty() ? results : arguments) = o.parts;
        else if (o.kind == Kind::name && name.empty())
            name = o.name;
        else
            fail("call through a pointer is not served");
    }
    if (find_register(name)) fail("call through a pointer is not served");
    CallSite site;
    const auto offset = [&](const ptx::Operand& o) {
        if (o.kind != Kind::name) fail("a call passes .param variables only");
        const Symbol found = symbol(o.name);
        if (found.space != Where::call_param) fail("a call passes .param variables only");
        return static_cast<uint32_t>(found.address);
    };
    const ptx::Function* callee = function(name);
    in.small = static_cast<uint32_t>(kernel_->calls.size());
    if (callee && callee->defined) {
        in.opcode = static_cast<uint16_t>(Op::call);
        FunctionScope& target = scopes_[name];
        if (target.parameter_list.size() != arguments.size() || target.result_list.size() != results.size())
            fail("call of " + name + " with another number of parameters than it has");
        site.target = target.begin;
        for (size_t i = 0; i < arguments.size(); ++i)
            site.in.push_back({offset(arguments[i]), target.parameter_list[i].begin, target.parameter_list[i].bytes});
        for (size_t i = 0; i < results.size(); ++i)
            site.out.push_back({target.result_list[i].begin, offset(results[i]), target.result_list[i].bytes});
    } else if (name == "vprintf" && arguments.size() == 2 && results.size() == 1) {
        in.opcode = static_cast<uint16_t>(Op::print);
        site.format = offset(arguments[0]);
        site.arguments = offset(arguments[1]);
        site.out.push_back({0, offset(results[0]), 4});
    } else if (name == "__assertfail" && arguments.size() == 5) {
        in.opcode = static_cast<uint16_t>(Op::assert_fail);
        site.format = offset(arguments[0]);
    } else {
        fail("call of " + name + ", which has no body here");
    }
    kernel_->calls.push_back(std::move(site));
}

}  // namespace vgpu
