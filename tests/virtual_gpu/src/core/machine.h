// The state of what runs: grids of blocks of warps of lanes, and the machine that schedules them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/clock.h"
#include "core/counters.h"
#include "core/device.h"
#include "core/kernel.h"
#include "core/memory.h"
#include "core/race.h"

namespace vgpu {

struct Machine;
struct Grid;
struct Block;
struct Warp;

// Windows of the generic address space, as a device has them: the same addresses mean another block's or lane's memory.
struct Windows {
    uint64_t shared = 0, local = 0, param = 0, global = 0;
    static constexpr uint64_t kBytes = uint64_t{1} << 24;
};

enum class Waits : uint8_t { nothing, barrier, warp_barrier, collective, predecessors };

// Lanes of a warp that are at the same instruction.
struct Split {
    uint32_t pc = 0, mask = 0;
    Waits waits = Waits::nothing;
    uint32_t member = 0;            // who has to come: warp_barrier and collective
    uint8_t barrier = 0;            // which
    std::vector<uint32_t> returns;  // addresses
};

struct AsyncCopy {
    uint8_t lane, bytes;
    uint32_t to;    // in shared memory
    uint64_t from;  // in global memory
    uint32_t from_bytes;
    uint32_t group;  // of its lane
    uint32_t pc;
    std::array<uint8_t, 16> data;
};

// cp.async.mbarrier.arrive: an arrival once the lane's copies before it have landed.
struct AsyncArrival {
    uint32_t address, lane;
    uint32_t group;  // copies of earlier groups belong to it
    uint32_t clock;  // the lane's, when it was issued
    ClockPtr knowledge;
};

// A fence that lanes of a warp have passed, and what they knew then; made into a Clock when something is published.
struct FenceRecord {
    ClockPtr whole;  // if set, it is all: made by a barrier of a part of the warp
    ClockPtr base;
    std::array<ClockPtr, 32> extra;
    uint32_t extra_mask = 0;
    uint32_t now = 0, synced = 0;
    std::shared_ptr<std::array<LaneClocks, 32>> pairs;
};

struct Warp {
    Block* block = nullptr;
    uint32_t index = 0;   // in the block
    uint32_t serial = 0;  // of the device
    uint32_t live = 0;    // lanes that have not exited
    std::vector<Split> splits;
    size_t current = 0;
    std::vector<std::byte> storage;
    std::byte* registers = nullptr;
    std::vector<uint8_t> frame, frame_shadow;  // local memory: [lanes][frame_bytes]

    // Clocks
    uint32_t now = 0, start = 0;                        // start: when this block took the slot
    uint32_t synced = 0;                                // every lane knows of every other's accesses before this
    std::shared_ptr<std::array<LaneClocks, 32>> pairs;  // pairs[i].lane[j]: what i knows of j, where that is more
    ClockPtr base;                                      // what every lane knows
    std::array<ClockPtr, 32> extra;
    uint32_t extra_mask = 0;
    // What fences have made ready to be published: [0] to the block, [1] to the device
    std::array<ClockPtr, 2> released_base;
    std::array<std::shared_ptr<const FenceRecord>, 32> released[2];
    uint32_t released_mask[2] = {0, 0};
    // What strong reads have seen, known from the next fence on: of the block, of the device
    std::array<ClockPtr, 32> pending;
    uint32_t pending_mask = 0;
    struct Seen {
        uint32_t lanes;  // whose; after a barrier all, since one has seen it for all
        std::shared_ptr<PublishedLog> log;
        size_t size;
    };
    std::vector<Seen> pending_device;
    void see(uint32_t lanes, const ClockPtr& of_block);
    void see(uint32_t lanes, const std::shared_ptr<PublishedLog>& log, size_t size);

    std::vector<AsyncCopy> copies;     // in flight
    std::array<uint32_t, 32> group{};  // the open group of each lane
    std::vector<AsyncArrival> arrivals;

    uint64_t priority = 0;
    bool gives_way = false;       // its next turn begins with another split
    bool polls = false;           // has made a strong access since the last progress
    uint64_t polls_progress = 0;  // the progress then

    bool runnable() const;
    // What lane l knows, accesses of its own included.
    ClockPtr snapshot(uint32_t lane);
    ClockPtr publishable(uint32_t lane, int scope) const;
    void learn(uint32_t lane, const ClockPtr& clock);
    bool knows(uint32_t lane, const Event& event) const;
};

struct HardwareBarrier {
    uint32_t expected = 0;  // threads; 0: nobody is here
    uint32_t arrived = 0;
    bool whole = true;              // every thread of the block takes part
    ClockPtr knowledge;             // of those that have only arrived
    std::vector<uint32_t> waiting;  // warps
    uint32_t count = 0, all = 0;    // bar.red: true predicates, threads
};

struct MBarrier {
    uint32_t expected = 0, pending = 0;
    int64_t transactions = 0;
    uint64_t phase = 0;
    ClockPtr arriving, completed[2];
};

struct Block {
    Grid* grid = nullptr;
    uint64_t index = 0;
    uint32_t id[3] = {0, 0, 0};
    uint32_t first_serial = 0;
    uint32_t live_warps = 0;
    std::vector<Warp> warps;
    uint32_t warp_count = 0;
    std::vector<uint8_t> shared, shadow;
    uint32_t shared_bytes = 0;
    SharedRaces races;
    uint64_t full_barriers = 1;  // rises over the slot's life
    std::array<HardwareBarrier, 16> barriers;
    std::unordered_map<uint32_t, MBarrier> mbarriers;
    bool left_early = false;  // a thread has exited
    Event left{};             // the first one that did
};

struct Grid {
    const Launch* launch = nullptr;
    const Kernel* kernel = nullptr;
    uint64_t number = 0;  // of the launch on this device
    uint32_t first_serial = 0, last_serial = 0;
    uint32_t floor = 0;                                     // what has a smaller serial is over for everybody here
    std::vector<std::pair<uint32_t, uint32_t>> concurrent;  // serials that are not known to be over
    std::vector<const Grid*> predecessors;                  // in the chain: known after griddepcontrol.wait
    uint64_t blocks = 0, next_block = 0, done_blocks = 0, triggered_blocks = 0;
    uint64_t stride = 1, offset = 0;  // block order: (i * stride + offset) % blocks
    uint32_t resident_limit = 1;
    std::vector<std::unique_ptr<Block>> resident;
    std::vector<bool> triggered;  // of each block: launch_dependents
    uint32_t warps_per_block = 0;
    bool waited = false;  // a thread has come past griddepcontrol.wait
    Counters counters;
    bool finished() const { return done_blocks == blocks; }
};

// The clock of an address that strong operations publish to.
struct Published {
    std::shared_ptr<PublishedLog> device;
    std::map<uint32_t, ClockPtr> blocks;  // what was published within a block, by its first serial
};

struct Stop {  // thrown to end a launch
    Outcome outcome;
};

struct Machine {
    explicit Machine(const Profile& p);
    ~Machine();

    const Profile& profile;
    Memory memory;
    GlobalRaces races;
    Faults faults;
    Windows windows;
    std::mt19937_64 random;
    uint64_t seed = 0;
    uint32_t next_serial = 1;
    uint64_t launches = 0;
    struct Past {
        uint32_t first, last, stream;
        uint64_t number;  // of its stream
    };
    std::vector<Past> past;                             // launches that may not be over for a later one
    std::map<uint32_t, uint64_t> stream_counts;         // launches of each stream
    std::unordered_map<uint64_t, Published> published;  // by address of a global cell, or block serial and shared cell
    std::vector<std::unique_ptr<Block>> slots;          // free ones
    std::string report;
    uint64_t progress = 0;  // rises whenever something changes that another warp can see
    bool raced = false;     // the running launch has a report
    uint64_t clock_ticks = 0;
    uint64_t instructions = 0;
    uint32_t pending_sources = 0;  // cp.async in flight, all warps
    std::vector<Grid*> active;

    Outcome run(std::span<const Launch> chain);

    // --- schedule.cpp
    void begin(Grid& grid);
    void admit(Grid& grid);
    void start_block(Grid& grid, uint64_t index);
    void finish_block(Grid& grid, size_t slot);
    void stuck();
    void start_warp(Block& block, uint32_t index);

    // --- run.cpp
    void run_warp(Warp& warp, uint64_t quantum);
    bool slow(Warp& warp, Split& split, const Instruction& in, uint32_t mask);  // false: the warp has to stop here
    bool gather(Warp& warp, Split& split, uint32_t member, const Instruction& in, uint32_t* mask);
    uint64_t last_priority = 0;  // of the warps that poll
    uint64_t idle = 0;           // instructions since the last progress
    uint32_t polls_left = 0;     // of the running warp, until it gives way
    void leave(Warp& warp, uint32_t lanes, uint32_t pc);
    bool predecessors_done(const Grid& grid) const;
    void meet_predecessors(Warp& warp, uint32_t mask);
    void trigger(Block& block);

    // --- print.cpp
    void print(Warp& warp, const Instruction& in, uint32_t lane);
    std::string assertion(Warp& warp, const Instruction& in, uint32_t lane);
    std::string text(uint64_t address, size_t most) const;

    // --- access.cpp
    void load(Warp& warp, const Instruction& in, uint32_t mask, uint32_t pc);
    void store(Warp& warp, const Instruction& in, uint32_t mask, uint32_t pc);
    void load_matrix(Warp& warp, const Instruction& in, uint32_t mask, uint32_t pc);
    void store_matrix(Warp& warp, const Instruction& in, uint32_t mask, uint32_t pc);
    // Addresses of `access` in 32 lanes.
    void addresses(const Warp& warp, uint32_t reg, bool wide, int64_t offset, uint64_t* out) const;
    // The host's pointer to each lane's bytes after all checks, races recorded; faults stop the launch.
    struct Target {
        uint64_t address[32];
        uint8_t* host[32];
        Where space;
        bool contiguous;  // the full warp's lanes lie one after the other, host[0] on
    };
    enum class Use : uint8_t { read, write, modify };
    uint32_t same_space(const Warp& warp, const Access& access, uint32_t mask) const;  // of the lowest lane
    void resolve(Warp& warp, const Access& access, uint32_t mask, uint32_t pc, Use use, Target& target);
    void resolve_as(Warp& warp, const Access& access, Where space, uint32_t mask, uint32_t pc, Use use, Target& target,
                    uint32_t unit);
    void touch_shared(Warp& warp, const Target& t, uint32_t mask, uint32_t unit, uint32_t pc, bool write, const Access& access,
                      bool contiguous);
    void thin_out(PageRecord& p, const Grid& current) const;
    void touch_global(Warp& warp, const Target& t, uint32_t mask, uint32_t unit, uint32_t pc, bool write, const Access& access,
                      bool contiguous);
    void count(Warp& warp, const Target& t, uint32_t mask, uint32_t unit, uint32_t pc, bool write);
    void write_pending(Warp& warp, uint32_t lane, uint64_t address, uint32_t unit, uint32_t pc);
    [[noreturn]] void bad_address(Warp& warp, uint32_t pc, uint32_t lane, Where space, uint64_t address, uint32_t unit,
                                  bool write, const char* kind);

    // --- atomic.cpp
    void atomic(Warp& warp, const Instruction& in, uint32_t mask, uint32_t pc);

    // --- sync.cpp
    bool barrier(Warp& warp, Split& split, const Instruction& in, uint32_t mask);
    void complete(Block& block, uint32_t which);
    void warp_synced(Warp& warp, uint32_t mask);
    void fence(Warp& warp, uint32_t mask, Scope scope);
    void publish(Warp& warp, uint32_t lane, uint64_t key, const Access& access, bool read_modify_write);
    void observe(Warp& warp, uint32_t lane, uint64_t key, const Access& access);
    uint64_t key(const Warp& warp, Where space, uint64_t address) const;
    void mbarrier(Warp& warp, const Instruction& in, uint32_t mask, uint32_t pc);
    void arrive(Warp& warp, uint32_t pc, uint32_t lane, MBarrier& barrier, uint32_t count, bool drop, const ClockPtr& clock);
    MBarrier& find_mbarrier(Warp& warp, uint32_t pc, uint32_t lane, uint32_t address);
    void settle(Block& block, uint32_t address);  // copies' arrivals that the mbarrier waits for
    void advance(MBarrier& barrier);

    // --- async.cpp
    void copy_async(Warp& warp, const Instruction& in, uint32_t mask, uint32_t pc);
    void copy_arrive(Warp& warp, const Instruction& in, uint32_t mask, uint32_t pc);
    void copy_wait(Warp& warp, uint32_t mask, uint32_t keep);
    void land(Warp& warp, const AsyncCopy& copy, uint32_t clock);
    uint32_t landing_clock(const Warp& warp, const AsyncCopy& copy) const;

    // --- report
    Place place(const Warp& warp, uint32_t pc, uint32_t lane) const;
    Place place(const Event& event) const;
    void fault(Warp& warp, uint32_t pc, uint32_t lane, Fault fault);
    void race(Warp& warp, uint32_t pc, uint32_t lane, const Event& other, Where space, uint64_t address, uint32_t unit,
              bool write, const char* why = nullptr);
    [[noreturn]] void stop(Warp& warp, uint32_t pc, uint32_t lane, Fault fault, Outcome outcome);
    std::string describe(const Warp& warp, Where space, uint64_t address, uint32_t unit) const;
    void write_report(const Grid& grid);

    uint64_t random_below(uint64_t n) { return n ? random() % n : 0; }
};

}  // namespace vgpu
