// Turns an entry of a PTX module, and what it calls, into a Kernel.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/kernel.h"
#include "core/machine.h"

namespace vgpu {

// Where module-scope variables lie: address for .global and .const.
using GlobalSymbols = std::unordered_map<std::string, uint64_t>;

class Builder final : public Operands {
public:
    Builder(const ptx::Module& module, const GlobalSymbols& symbols, const Windows& windows, int reserved_shared);
    // Throws ptx::SyntaxError.
    std::unique_ptr<Kernel> build(const ptx::Function& entry);

    uint32_t source(const ptx::Operand& operand, int bits) override;
    uint32_t destination(const ptx::Operand& operand, int bits) override;
    uint32_t constant(uint64_t value, int bits) override;
    int width(const ptx::Operand& operand) override;
    uint32_t* list(size_t n) override;
    int target() const override { return module_.target; }

private:
    struct Register {
        uint32_t at;
        int width;
    };
    struct Symbol {
        Where space;
        uint64_t address;  // device address; offset in shared memory, the frame or the parameters
    };
    struct FunctionScope {
        const ptx::Function* function;
        std::unordered_map<std::string, Register> registers;
        std::unordered_map<std::string, Symbol> symbols;
        std::unordered_map<std::string, uint32_t> labels;  // index into code
        uint32_t begin = 0;
        std::map<uint32_t, uint32_t> results, parameters;  // frame offsets, in order: offset -> bytes
        std::vector<Variable> parameter_list, result_list;
    };

    [[noreturn]] void fail(const std::string& what) const;
    const ptx::Function* function(const std::string& name) const;
    void collect(const ptx::Function& function);
    void check_recursion(const std::string& name, std::set<std::string>& above) const;
    void lay_out_shared();
    void declare(FunctionScope& scope);
    uint32_t add_register(int bits);
    uint32_t special(const std::string& name, int bits);
    Symbol symbol(const std::string& name) const;
    const Register* find_register(const std::string& name) const;
    uint32_t in_frame(const std::string& name, uint64_t bytes, uint64_t align, bool checked);

    void decode(const ptx::Statement& statement);
    bool decode_control(const ptx::Statement& s, Instruction& in);
    bool decode_memory(const ptx::Statement& s, Instruction& in);
    bool decode_atomic(const ptx::Statement& s, Instruction& in);
    bool decode_async(const ptx::Statement& s, Instruction& in);
    bool decode_mbarrier(const ptx::Statement& s, Instruction& in);
    bool decode_barrier(const ptx::Statement& s, Instruction& in);
    bool decode_address(const ptx::Statement& s, Instruction& in);  // cvta, isspacep
    void decode_call(const ptx::Statement& s, Instruction& in);
    // Reads an address operand; `generic` space becomes call_param where the name is a function's parameter.
    void address(const ptx::Operand& operand, Where& space, uint32_t& reg, bool& wide, int64_t& offset);
    void grain(Where space, uint32_t bytes);

    const ptx::Module& module_;
    const GlobalSymbols& symbols_;
    const Windows& windows_;
    int reserved_shared_;
    std::unique_ptr<Kernel> kernel_;
    std::vector<const ptx::Function*> functions_;  // the entry first
    std::unordered_map<std::string, FunctionScope> scopes_;
    FunctionScope* scope_ = nullptr;
    const ptx::Statement* statement_ = nullptr;
    std::map<std::pair<uint64_t, int>, uint32_t> constants_;  // value, class
    std::map<std::pair<Special, bool>, uint32_t> specials_;
    std::unordered_map<std::string, Symbol> shared_symbols_;  // of module scope
    uint32_t next_register_ = 0;
    bool decoding_ = false;
    bool volatile_special_ = false;
};

}  // namespace vgpu
