// A kernel as the interpreter runs it: the code of an entry and of every function that it calls, one after the other.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "alu/alu.h"
#include "core/device.h"
#include "ptx/module.h"

namespace vgpu {

// The interpreter's own instructions.
enum class Op : uint16_t {
    alu,
    load,
    store,
    atomic,  // atom and red
    branch,
    branch_table,
    call,
    print,
    assert_fail,
    ret,
    exit,
    trap,
    barrier,
    warp_barrier,
    fence,
    copy_async,
    copy_commit,
    copy_wait,
    copy_arrive,  // cp.async.mbarrier.arrive
    mbarrier,
    load_matrix,
    store_matrix,
    wait_predecessors,  // griddepcontrol.wait
    launch_dependents,
    clock,  // an ALU instruction that reads %clock or its like
    nothing,
};

// More of Instruction::flags
inline constexpr uint8_t kEndsRun = 4;  // the straight run ends here: it may change the program counter or the masks

enum class Where : uint8_t { generic, global, shared, local, param, constant, call_param };
enum class Scope : uint8_t { none, cta, gpu, sys };
// release and acquire are sets of two bits
inline constexpr uint8_t kAcquire = 1, kRelease = 2;

enum class AtomicOp : uint8_t { add, min, max, inc, dec, exch, cas, logic_and, logic_or, logic_xor };
enum class Number : uint8_t { u32, s32, u64, s64, b16, b32, b64, b128, f32, f64, f16, f16x2, bf16, bf16x2 };

// A memory instruction's operands, beside its Instruction.
struct Access {
    Where space = Where::generic;
    uint8_t bytes = 4;    // of an element
    uint8_t count = 1;    // elements of the vector
    bool sign = false;    // extend with the sign
    bool strong = false;  // volatile, relaxed, acquire, release: no data race with its like
    bool non_coherent = false;
    bool modifies = false;  // reads and writes in one (atom, red)
    uint8_t order = 0;      // kAcquire, kRelease
    Scope scope = Scope::none;
    uint32_t address = kNone;  // register of the address; kNone: `offset` alone
    bool wide = true;          // the register has 64 bits
    int64_t offset = 0;
    std::array<uint32_t, 8> registers{};  // of the elements; kNone: the sink
    std::array<uint8_t, 8> widths{};      // their width classes
    // atom, red
    AtomicOp op = AtomicOp::add;
    Number number = Number::u32;
    uint32_t b = kNone, c = kNone;
    std::array<uint32_t, 8> more{};  // sources of a vector atomic
    // cp.async, mbarrier, ldmatrix
    uint32_t second = kNone;  // source address (cp.async), a count or phase (mbarrier)
    bool second_wide = true;
    int64_t second_offset = 0;
    Where second_space = Where::global;
    uint32_t size = kNone;  // cp.async's src-size
    uint8_t what = 0;       // which mbarrier operation, .trans
    uint32_t unit() const { return static_cast<uint32_t>(bytes) * count; }
};

enum : uint8_t {
    kMbarInit,
    kMbarInvalidate,
    kMbarArrive,
    kMbarArriveDrop,
    kMbarExpectTx,
    kMbarCompleteTx,
    kMbarTestState,
    kMbarTestParity
};

struct CallSite {
    uint32_t target = 0;  // index into code
    struct Copy {         // parameters, in the thread's frame
        uint32_t from, to, bytes;
    };
    std::vector<Copy> in, out;
    uint32_t format = 0, arguments = 0;  // vprintf: frame offsets of its two parameters; assert: of the first
};

struct Variable {  // in shared memory or a thread's frame
    std::string name;
    uint32_t begin, bytes;
    bool checked = true;  // a call's parameters are the compiler's own affair
};

enum class Special : uint8_t {
    tid_x,
    tid_y,
    tid_z,
    ntid_x,
    ntid_y,
    ntid_z,
    ctaid_x,
    ctaid_y,
    ctaid_z,
    nctaid_x,
    nctaid_y,
    nctaid_z,
    laneid,
    warpid,
    nwarpid,
    smid,
    nsmid,
    gridid,
    lanemask_eq,
    lanemask_le,
    lanemask_lt,
    lanemask_ge,
    lanemask_gt,
    clock,
    clock64,
    clock_hi,
    globaltimer,
    globaltimer_lo,
    globaltimer_hi,
    dynamic_smem_size,
    total_smem_size,
    aggr_smem_size,
    one,
    zero,  // clusters of one block
};

class Kernel {
public:
    KernelInfo info;
    const ptx::Module* module = nullptr;
    std::vector<Instruction> code;
    std::vector<const ptx::Statement*> statements;  // of each instruction
    std::vector<Access> accesses;                   // Instruction::small indexes these, for memory instructions,
    std::vector<CallSite> calls;                    // these for calls,
    std::vector<std::vector<uint32_t>> tables;      // and these for branch_table
    uint32_t register_bytes = 0;                    // of a warp
    uint32_t constants_begin = 0;                   // registers from here on are filled from `constants` when a warp starts
    std::vector<std::byte> constants;
    struct SpecialRegister {
        Special which;
        uint32_t at;
        bool wide;
    };
    std::vector<SpecialRegister> specials;
    std::vector<Variable> shared;  // the kernel's static variables
    uint32_t shared_begin = 0, dynamic_begin = 0;
    std::vector<Variable> frame;  // a thread's local memory
    uint32_t frame_bytes = 0;
    uint32_t shared_grain_shift = 2;  // bytes of the smallest access to shared memory, as a shift, at most 2
    std::vector<std::unique_ptr<uint32_t[]>> lists;
};

}  // namespace vgpu
