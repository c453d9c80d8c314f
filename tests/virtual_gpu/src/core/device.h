// The machine behind the driver API: memory, loaded modules, and the running of launches. The driver layer (src/driver) knows
// contexts, streams and graphs; everything that happens on the card is here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/fault.h"
#include "core/profile.h"
#include "ptx/module.h"

namespace vgpu {

// What a launch came to. The driver layer turns it into a CUresult that sticks to the context.
enum class Outcome : uint8_t {
    success,
    illegal_address,      // CUDA_ERROR_ILLEGAL_ADDRESS
    misaligned_address,   // CUDA_ERROR_MISALIGNED_ADDRESS
    illegal_instruction,  // CUDA_ERROR_ILLEGAL_INSTRUCTION
    assertion,            // CUDA_ERROR_ASSERT
    timeout,              // CUDA_ERROR_LAUNCH_TIMEOUT: deadlock, livelock
    failed,               // CUDA_ERROR_LAUNCH_FAILED: every other fault
};

class Kernel;  // decoded code of an entry
class LoadedModule;

struct Launch {
    const Kernel* kernel = nullptr;
    uint32_t grid[3] = {1, 1, 1}, block[3] = {1, 1, 1};
    uint32_t dynamic_shared = 0;
    std::vector<std::byte> parameters;  // as ld.param sees them
    bool cooperative = false;           // every block resident at once
    // Programmatic dependent launch: may begin before its predecessor in the chain is done.
    bool programmatic = false;
    // Which launches are certain to be over before this one begins: all whose `stream_clock` entry is at most ours.
    // stream: a small number; clock[s] = the last launch number of stream s that this launch is ordered after.
    uint32_t stream = 0;
    std::vector<uint64_t> after;
};

struct KernelInfo {
    std::string name;
    uint32_t static_shared = 0;  // bytes, without the fences between variables
    uint32_t local_bytes = 0;    // a thread
    uint32_t parameter_bytes = 0;
    struct Parameter {
        uint32_t offset, bytes;
    };
    std::vector<Parameter> parameters;
    uint32_t max_threads[3] = {0, 0, 0}, required_threads[3] = {0, 0, 0};  // 0: not given
    uint32_t constant_bytes = 0;
};

class Device {
public:
    explicit Device(const Profile& profile);
    ~Device();

    const Profile& profile() const;

    // --- memory ------------------------------------------------------------------------------------------------------
    // A fenced allocation of its own, 256-byte aligned, its bytes uninitialised (and poisoned); 0: not enough memory.
    uint64_t allocate(size_t bytes);
    // The same of the host's memory, within reach of kernels at the host's own addresses; beside the card's memory.
    uint64_t allocate_host(size_t bytes);
    bool free(uint64_t address);  // false: no allocation begins there
    size_t allocated() const;     // bytes
    // The allocation that holds `address`: its begin and size; false: none.
    bool find(uint64_t address, uint64_t* begin, size_t* bytes) const;
    // True if [address, address + bytes) lies in one live allocation.
    bool holds(uint64_t address, size_t bytes) const;
    bool of_host(uint64_t address) const;  // in an allocation of allocate_host()
    // The host's copies. The caller has checked holds(). stream, after: as in Launch; a copy that is not ordered after a
    // launch that touches the bytes is a race. Reading bytes never written is a fault of kind "uninitialised".
    Outcome write(uint64_t to, const void* from, size_t bytes);
    Outcome read(void* to, uint64_t from, size_t bytes);
    Outcome copy(uint64_t to, uint64_t from, size_t bytes);  // device to device: bytes that are uninitialised stay so
    void fill(uint64_t to, const void* pattern, size_t pattern_bytes, size_t count);

    // --- code --------------------------------------------------------------------------------------------------------
    // Throws ptx::SyntaxError (unknown instruction, unresolved symbol): the message names it and its line.
    std::shared_ptr<LoadedModule> load(std::string_view ptx);

    // --- running -----------------------------------------------------------------------------------------------------
    // Runs launches of one stream, in order; those marked programmatic overlap their predecessor. The driver layer has checked
    // geometry and shared memory against the profile.
    Outcome run(std::span<const Launch> chain);
    // The order of blocks and warps, and residency, from here on.
    void seed(uint64_t seed);

    Faults& faults();
    // Counters of every launch since the last call, as the elements of a JSON array (no brackets); empties them.
    std::string take_report();

    struct Impl;

private:
    std::unique_ptr<Impl> impl_;
};

class LoadedModule {
public:
    virtual ~LoadedModule() = default;
    virtual const Kernel* kernel(std::string_view name) const = 0;  // null: none
    virtual std::vector<std::string> kernels() const = 0;
    virtual const KernelInfo& info(const Kernel* kernel) const = 0;
    // A module-scope .global or .const variable; false: none.
    virtual bool variable(std::string_view name, uint64_t* address, size_t* bytes) const = 0;
};

}  // namespace vgpu
