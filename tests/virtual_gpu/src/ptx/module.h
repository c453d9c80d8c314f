// A PTX module as it is written: directives, symbols, statements. Syntax only; what an instruction means is decided later.
// PTX ISA 9.0, https://docs.nvidia.com/cuda/parallel-thread-execution/
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace vgpu::ptx {

// A module that is no PTX, or PTX that this parser does not know: names the line.
struct SyntaxError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

enum class Space : uint8_t { reg, param, shared, local, global, constant };

// An element type of a declaration: "b8" .. "f64", "pred"; the number of bytes (pred: 0).
struct Type {
    std::string name;
    int bytes = 0;
};

// .global .align 8 .b8 name[4][2] = {...}
struct Variable {
    std::string name;  // unique in its function or module: a nested scope's names are renamed by the parser
    Space space;
    Type type;
    int vector = 1;                  // .v2, .v4
    uint64_t align = 0;              // 0: that of the type
    uint64_t count = 1;              // elements; 0 for an unsized array (extern shared memory)
    bool is_extern = false;          // .extern
    std::vector<std::byte> initial;  // bytes of the initialiser, shorter than the variable if the rest is zero
    // Initialisers that are addresses: 8 bytes at `offset` hold the address of `symbol` plus `addend`.
    struct Address {
        uint64_t offset;
        std::string symbol;
        int64_t addend;
        bool generic;  // generic(symbol): the generic address
    };
    std::vector<Address> addresses;

    uint64_t bytes() const { return count * static_cast<uint64_t>(vector) * static_cast<uint64_t>(type.bytes); }
    uint64_t alignment() const { return align ? align : static_cast<uint64_t>(vector) * static_cast<uint64_t>(type.bytes); }
};

struct Operand {
    enum class Kind : uint8_t {
        name,     // a register, special register (%tid.x), variable, label or function: `name`
        integer,  // `value`, two's complement in 64 bits
        f32,
        f64,      // 0fXXXXXXXX, 0dXXXXXXXXXXXXXXXX or a decimal literal (f64): bits in `value`
        address,  // [name + offset], [offset], name empty then; `name` a register or variable
        vector,   // {a, b, ...}: `parts`
        pair,     // a|b: `parts`
        sink,     // _
        list,     // (a, b, ...): the arguments of a call: `parts`
    };
    Kind kind;
    std::string name;
    uint64_t value = 0;    // integer and float bits; an address's offset; what is added to a name (sym+4), mostly 0
    bool negated = false;  // !%p
    std::vector<Operand> parts;
};

// Where in the source a statement comes from: the innermost place that is not in one of the toolkit's headers.
struct Location {
    int32_t file = -1;  // index into Module::files, -1: no .loc
    int32_t line = 0;
};

// A place and who inlined it.
struct Frame {
    Location here;
    int32_t caller = -1;  // index into Module::frames; -1: nobody
};

struct Statement {
    // "ld.global.nc.v4.u32" is opcode "ld" and modifiers {"global", "nc", "v4", "u32"}; a "::" belongs to its modifier:
    // "L1::no_allocate", "shared::cta".
    std::string opcode;
    std::vector<std::string> modifiers;
    std::vector<Operand> operands;  // as written, destinations first
    std::string guard;              // predicate register of @p, empty: none
    bool guard_negated = false;     // @!p
    Location where;                 // in the source
    int32_t frame = -1;             // index into Module::frames: the innermost place; -1: none
    int32_t line = 0;               // in the PTX text

    bool has(std::string_view modifier) const {
        for (const std::string& m : modifiers)
            if (m == modifier) return true;
        return false;
    }
    std::string text() const;  // as it would be written
};

struct Function {
    std::string name;
    bool entry = false;                // a kernel
    bool defined = false;              // has a body
    std::vector<Variable> parameters;  // Space::param, or Space::reg
    std::vector<Variable> results;     // of a .func
    std::vector<Variable> registers;   // %r<8> is eight of them: %r0 .. %r7
    std::vector<Variable> variables;   // .shared, .local, .param, .global declared inside
    std::vector<Statement> code;
    struct Label {
        std::string name;
        uint32_t at;  // index into code; code.size() at the end
    };
    std::vector<Label> labels;
    // name: .branchtargets L1, L2;  for brx.idx
    struct Targets {
        std::string name;
        std::vector<std::string> labels;
    };
    std::vector<Targets> targets;
    // .maxntid, .reqntid (1 where not given), .minnctapersm, .maxnreg; 0: not given
    uint32_t max_threads[3] = {0, 0, 0}, required_threads[3] = {0, 0, 0};
    uint32_t min_blocks = 0, max_registers = 0;
    uint32_t line = 0;
};

struct Module {
    int version_major = 0, version_minor = 0;  // .version 9.0
    int target = 0;                            // .target sm_90a: 90
    std::string target_suffix;                 // "a", "f" or empty
    std::vector<std::string> files;            // by .file's number
    std::vector<Frame> frames;                 // of all statements
    std::vector<Variable> variables;           // module scope
    std::vector<Function> functions;           // declarations without a body too, unless the body follows
};

// Throws SyntaxError. Debug sections (.section) are skipped.
std::unique_ptr<Module> parse(std::string_view text);

}  // namespace vgpu::ptx
