// Device memory: one reserved range of the host's address space, so a device address is a host address in it. Every
// allocation is fenced; a byte of shadow beside every byte says whether it may be touched and whether it was ever written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

namespace vgpu {

// What the shadow knows of a byte.
inline constexpr uint8_t kAddressable = 1, kInitialised = 2, kPending = 4, kReadOnly = 8;
inline constexpr uint8_t kReady = kAddressable | kInitialised;

inline constexpr uint64_t kPageBytes = 4096;
inline constexpr uint64_t kFence = 256;

struct Allocation {
    uint64_t begin = 0;
    size_t bytes = 0;
    int number = 0;  // in order of allocation
    bool live = true;
    std::string name;   // a module's variable; empty: allocated by the host
    bool host = false;  // memory of the host that kernels reach
};

// The shadow of `n` bytes, tested at a stroke.
bool all_ready(const uint8_t* shadow, size_t n);

class Memory {
public:
    explicit Memory(uint64_t capacity);  // bytes that may be allocated at a time
    ~Memory();
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    uint64_t allocate(size_t bytes, std::string name = "");  // 0: no room
    // Of the host, within reach of kernels: it takes nothing of the card's memory, and as the host writes it without a word to
    // us, its bytes count as initialised.
    uint64_t allocate_host(size_t bytes);
    bool free(uint64_t begin);
    size_t allocated() const { return allocated_; }
    const Allocation* at(uint64_t address) const;       // the live allocation that holds it, or null
    const Allocation* nearest(uint64_t address) const;  // live or freed: for a report
    std::string describe(uint64_t address, size_t bytes) const;

    bool inside(uint64_t address) const { return address - base_ < kRange; }
    bool inside(uint64_t address, size_t bytes) const { return inside(address) && bytes <= kRange - (address - base_); }
    uint64_t page(uint64_t address) const { return (address - base_) / kPageBytes; }
    uint8_t* shadow(uint64_t address) const { return shadow_ + (address - base_); }

    // True if every byte may be read: addressable, initialised, nothing in flight. The caller has checked inside().
    bool ready(uint64_t address, size_t bytes) {
        const uint64_t first = page(address), last = page(address + bytes - 1);
        if (full_[first] == kFull && full_[last] == kFull && last - first <= 1) return true;
        return ready_slowly(address, bytes);
    }
    // True if every byte may be written: addressable, writable, nothing in flight.
    bool writable(uint64_t address, size_t bytes) const;
    void mark_written(uint64_t address, size_t bytes);  // initialised from now on
    void mark_read_only(uint64_t address, size_t bytes);
    uint64_t base() const { return base_; }
    void mark_uninitialised(uint64_t address, size_t bytes);

    static constexpr uint64_t kRange = uint64_t{1} << 38;
    static constexpr uint64_t kPages = kRange / kPageBytes;

private:
    static constexpr uint8_t kFull = 255;  // every byte of the page is ready; below: how often that was looked for
    bool ready_slowly(uint64_t address, size_t bytes);
    uint64_t place(Allocation allocation, uint64_t alignment);  // 0: no addresses left

    uint64_t base_ = 0, next_ = 0;
    uint8_t* shadow_ = nullptr;
    uint8_t* full_ = nullptr;
    size_t capacity_, allocated_ = 0;
    int number_ = 0;
    std::map<uint64_t, Allocation> allocations_;  // by begin, freed ones too
};

}  // namespace vgpu
