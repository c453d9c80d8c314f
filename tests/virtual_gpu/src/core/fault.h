// What the virtual GPU reports: one record a fault, a sentence for people and fields for programs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace vgpu {

// The kinds, by the name that a record carries.
//   out_of_bounds  misaligned  uninitialised  use_after_free  read_only  race  async_pending
//   barrier_divergence  deadlock  livelock  invalid  trap  assert  unknown_instruction  unknown_call  launch
struct Place {  // where in a kernel something happened
    std::string kernel;
    std::string file;
    int line = 0;  // in the source; 0 without -lineinfo
    int ptx_line = 0;
    struct Caller {
        std::string file;
        int line;
    };
    std::vector<Caller> callers;  // where the line's function is inlined, innermost first
    std::string instruction;      // PTX
    uint32_t block[3] = {0, 0, 0}, thread[3] = {0, 0, 0};
};

struct Fault {
    std::string kind;
    std::string message;  // one sentence
    Place at;
    bool has_address = false;
    uint64_t address = 0;
    std::string space;       // "global", "shared", ...
    std::string access;      // "read of 4 bytes"
    std::string allocation;  // "allocation 3, 4096 bytes at 0x..., 4 bytes past its end"
    bool has_other = false;  // a race's other access
    Place other;
    std::string other_access;
};

// The faults since the last clear, at most `kMost` kept (identical ones, same kind and instruction, are counted once).
class Faults {
public:
    static constexpr size_t kMost = 64;
    void add(Fault fault);  // also printed to stderr, unless told not to (LLAMA_EXT_VGPU_QUIET=1)
    void clear();
    const std::vector<Fault>& all() const { return faults_; }
    std::string json() const;  // "[]" when empty

private:
    std::vector<Fault> faults_;
};

}  // namespace vgpu
