// Data races, by happens-before: for every cell of memory, who wrote it last and who has read it since.
//
// Shared memory has a cell a 4 bytes (fewer if the kernel makes smaller accesses). Its reads are one row of cells a warp, so that
// a warp's contiguous access records itself with vector stores. Entries of earlier blocks in the same slot are recognised by
// their clock and never cleared.
//
// Global memory has a record a page, made when a launch first touches it. Reads are logged, one entry an access: most pages are
// only read. Writes have cells. A page's records of launches that are over for everybody are forgotten.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "core/kernel.h"
#include "core/memory.h"

namespace vgpu {

// A past access.
struct Event {
    uint32_t serial = 0;  // of the warp; 0: none
    uint32_t clock = 0;
    uint32_t pc = 0;
    uint8_t lane = 0;
    bool write = false, strong = false;
    Scope scope = Scope::none;
};
static_assert(sizeof(Event) == 16);

// What a cell's last event does not tell, where strong writes (atomics) went over it: they do not race with each other, so the
// last of them has not come after the others, nor after the plain write before them.
struct Underneath {
    Event plain;                // serial 0: none
    std::vector<Event> strong;  // all but those that a later one came after
    static constexpr size_t kMost = 4096;
};
using UnderneathMap = std::unordered_map<uint32_t, Underneath>;  // by cell

struct SharedRaces {
    static constexpr uint32_t kStrong = 0x80000000u;  // in a read's clock word
    static constexpr uint32_t kGranuleBytes = 128;

    uint32_t cells = 0, warps = 0;
    std::vector<uint64_t> reads;    // [warps][cells]: lanes in the low half, clock and kStrong in the high half
    std::vector<uint32_t> read_pc;  // [cells]: the last reader's
    std::vector<Event> writes;      // [cells]; serial is the warp's index in its block + 1
    // Of each granule: the number of the block's full barriers at the last write and the last read. What happened before the
    // last full barrier is known to all.
    std::vector<uint64_t> write_epoch, read_epoch;
    UnderneathMap underneath;

    void prepare(uint32_t bytes, uint32_t grain_shift, uint32_t warp_count);
};

struct PageRecord {
    struct Read {
        uint32_t serial, clock, pc;
        uint32_t lanes;         // who
        uint16_t first, bytes;  // within the page; bytes up to 4096
        uint16_t unit;          // lane k of `lanes` (in order) read `unit` bytes at first + k * unit; 0: all read everything
        bool strong;
        Scope scope;
    };
    uint64_t launch = 0;   // the last launch that touched it
    uint32_t newest = 0;   // the highest serial in its records
    bool written = false;  // cells hold something
    uint8_t shift = 2;     // a cell is 1 << shift bytes
    std::vector<Read> reads;
    size_t crowded = 256;            // so many reads are worth a look for ones that say the same
    std::unique_ptr<Event[]> cells;  // [kPageBytes >> shift]
    UnderneathMap underneath;
    // sectors of 32 bytes that the launch has read: for the counters
    uint64_t sectors_launch = 0;
    uint64_t sectors[2] = {0, 0};
};

class GlobalRaces {
public:
    GlobalRaces();
    ~GlobalRaces();
    GlobalRaces(const GlobalRaces&) = delete;
    GlobalRaces& operator=(const GlobalRaces&) = delete;
    PageRecord& page(uint64_t page) {
        uint32_t& index = index_[page];
        if (index == 0) index = add();
        return *records_[index];
    }

private:
    uint32_t add();
    uint32_t* index_;  // [pages], 0: none
    std::vector<std::unique_ptr<PageRecord>> records_;
};

}  // namespace vgpu
