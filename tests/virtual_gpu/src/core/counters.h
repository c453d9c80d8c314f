// What a launch did, counted: the figures that a kernel's speed stands on. None of them is a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace vgpu {

class Kernel;

// A memory instruction's share.
struct AccessCount {
    uint64_t requests = 0;                          // warp instructions that had a lane to serve
    uint64_t bytes = 0;                             // of active lanes
    uint64_t sectors = 0;                           // global: 32-byte sectors touched, a warp instruction each
    uint64_t sectors_ideal = 0;                     // the fewest that could carry as many distinct bytes
    uint64_t unique = 0;                            // sectors that no access of the launch had read before
    uint64_t wavefronts = 0, wavefronts_ideal = 0;  // shared: passes over the 32 banks
    uint8_t space = 0;                              // Where, of the last one
};

struct Counters {
    std::vector<uint64_t> executed, lanes;  // of each instruction: warps, lanes
    std::vector<AccessCount> accesses;      // of each instruction
    uint64_t barriers = 0;                  // completed
    void reset(size_t instructions) {
        executed.assign(instructions, 0);
        lanes.assign(instructions, 0);
        accesses.assign(instructions, {});
        barriers = 0;
    }
};

// Passes that shared memory needs for the lanes of `mask`, each touching `unit` bytes at address[lane]: 128 bytes a pass, wide
// accesses by halves and quarters of the warp, lanes of the same word for nothing.
struct Wavefronts {
    uint32_t taken, ideal;
};
Wavefronts wavefronts(const uint64_t* address, uint32_t mask, uint32_t unit);

// 32-byte sectors that the lanes touch, and the fewest that as many distinct bytes could lie in.
struct Sectors {
    uint32_t touched, ideal;
};
Sectors sectors(const uint64_t* address, uint32_t mask, uint32_t unit);

}  // namespace vgpu
