#include "core/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <stdexcept>

namespace vgpu {
namespace {

std::byte* reserve(uint64_t bytes) {
    void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) throw std::runtime_error("the virtual GPU cannot reserve its address space");
    // Sparse by nature: a huge page would commit 2 MiB of shadow for every small allocation.
    madvise(at, bytes, MADV_NOHUGEPAGE);
    return static_cast<std::byte*>(at);
}

uint64_t round_up(uint64_t value, uint64_t to) { return (value + to - 1) / to * to; }

// The part of [begin, end) that is whole pages goes back to the system and reads as zero afterwards.
void discard(uint64_t begin, uint64_t end) {
    const uint64_t first = round_up(begin, kPageBytes), last = end / kPageBytes * kPageBytes;
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

constexpr size_t kLarge = 1 << 20;

}  // namespace

bool all_ready(const uint8_t* shadow, size_t n) {
    uint8_t all = kReady | kPending;
    uint8_t any = 0;
    for (size_t i = 0; i < n; ++i) {
        all &= shadow[i];
        any |= shadow[i];
    }
    return (all & kReady) == kReady && (any & kPending) == 0;
}

Memory::Memory(uint64_t capacity) : capacity_(capacity) {
    base_ = reinterpret_cast<uint64_t>(reserve(kRange));
    shadow_ = reinterpret_cast<uint8_t*>(reserve(kRange));
    full_ = reinterpret_cast<uint8_t*>(reserve(kPages));
    next_ = base_ + kPageBytes;
}

Memory::~Memory() {
    munmap(reinterpret_cast<void*>(base_), kRange);
    munmap(shadow_, kRange);
    munmap(full_, kPages);
}

uint64_t Memory::allocate(size_t bytes, std::string name) {
    if (bytes == 0 || bytes > capacity_ - std::min(capacity_, allocated_)) return 0;
    const uint64_t begin = place({.bytes = bytes, .name = std::move(name)}, kFence);
    if (begin) allocated_ += bytes;
    return begin;
}

uint64_t Memory::allocate_host(size_t bytes) {
    const uint64_t begin = bytes ? place({.bytes = bytes, .host = true}, kPageBytes) : 0;
    if (begin) std::memset(shadow(begin), kReady, bytes);
    return begin;
}

uint64_t Memory::place(Allocation allocation, uint64_t alignment) {
    const size_t bytes = allocation.bytes;
    // Addresses are not used twice, so that a stale pointer is always found out, until the range is used up.
    uint64_t begin = round_up(next_ + kFence, alignment);
    const uint64_t end = base_ + kRange - kPageBytes;
    if (begin > end || bytes > end - begin) {
        for (auto at = allocations_.begin();; ++at) {
            if (at == allocations_.end()) return 0;
            if (!at->second.live && at->second.bytes >= bytes && at->first % alignment == 0) {
                begin = at->first;
                break;
            }
        }
    } else {
        next_ = begin + bytes;
    }
    allocation.begin = begin;
    allocation.number = number_++;
    allocations_[begin] = std::move(allocation);
    std::memset(shadow(begin), kAddressable, bytes);
    if (bytes < kLarge) std::memset(reinterpret_cast<void*>(begin), 0xcd, bytes);  // poison
    return begin;
}

bool Memory::free(uint64_t begin) {
    const auto found = allocations_.find(begin);
    if (found == allocations_.end() || !found->second.live) return false;
    Allocation& allocation = found->second;
    allocation.live = false;
    if (!allocation.host) allocated_ -= allocation.bytes;
    std::memset(shadow(begin), 0, allocation.bytes);
    const uint64_t end = begin + allocation.bytes;
    std::memset(full_ + page(begin), 0, page(end - 1) - page(begin) + 1);
    discard(begin, end);
    const uint64_t of_shadow = reinterpret_cast<uint64_t>(shadow(begin));
    discard(of_shadow, of_shadow + allocation.bytes);
    return true;
}

const Allocation* Memory::at(uint64_t address) const {
    auto after = allocations_.upper_bound(address);
    if (after == allocations_.begin()) return nullptr;
    const Allocation& candidate = std::prev(after)->second;
    return candidate.live && address - candidate.begin < candidate.bytes ? &candidate : nullptr;
}

const Allocation* Memory::nearest(uint64_t address) const {
    if (allocations_.empty()) return nullptr;
    const auto after = allocations_.upper_bound(address);
    if (after == allocations_.begin()) return &after->second;
    const Allocation& below = std::prev(after)->second;
    if (after == allocations_.end()) return &below;
    const uint64_t from_below = address < below.begin + below.bytes ? 0 : address - (below.begin + below.bytes);
    return from_below <= after->first - address ? &below : &after->second;
}

std::string Memory::describe(uint64_t address, size_t bytes) const {
    const Allocation* allocation = nearest(address);
    if (!allocation) return "no allocation anywhere";
    char text[256];
    const char* kind = allocation->host ? "host allocation" : allocation->name.empty() ? "allocation" : "variable";
    const std::string name = allocation->name.empty() ? std::to_string(allocation->number) : allocation->name;
    const uint64_t end = allocation->begin + allocation->bytes;
    char where[96];
    if (address >= end)
        std::snprintf(where, sizeof where, "%llu bytes past its end", static_cast<unsigned long long>(address - end));
    else if (address < allocation->begin)
        std::snprintf(where, sizeof where, "%llu bytes before its begin",
                      static_cast<unsigned long long>(allocation->begin - address));
    else if (address + bytes > end)
        std::snprintf(where, sizeof where, "across its end");
    else
        std::snprintf(where, sizeof where, "at offset %llu", static_cast<unsigned long long>(address - allocation->begin));
    std::snprintf(text, sizeof text, "%s %.80s (%zu bytes at 0x%llx%s), %s", kind, name.c_str(), allocation->bytes,
                  static_cast<unsigned long long>(allocation->begin), allocation->live ? "" : ", freed", where);
    return text;
}

bool Memory::ready_slowly(uint64_t address, size_t bytes) {
    if (!all_ready(shadow(address), bytes)) return false;
    // Worth remembering if the whole page is ready; looked for ever more rarely while it is not.
    for (uint64_t p = page(address); p <= page(address + bytes - 1); ++p) {
        if (full_[p] == kFull) continue;
        if (full_[p] < kFull - 1) ++full_[p];
        const uint8_t tries = full_[p];
        if ((tries & (tries - 1)) == 0 && all_ready(shadow_ + p * kPageBytes, kPageBytes)) full_[p] = kFull;
    }
    return true;
}

bool Memory::writable(uint64_t address, size_t bytes) const {
    const uint8_t* s = shadow(address);
    uint8_t all = kAddressable, any = 0;
    for (size_t i = 0; i < bytes; ++i) {
        all &= s[i];
        any |= s[i];
    }
    return (all & kAddressable) && !(any & (kPending | kReadOnly));
}

void Memory::mark_written(uint64_t address, size_t bytes) {
    if (full_[page(address)] == kFull && full_[page(address + bytes - 1)] == kFull && bytes <= kPageBytes) return;
    std::memset(shadow(address), kReady, bytes);
    for (uint64_t p = page(address); bytes >= kPageBytes && p <= page(address + bytes - 1); ++p)
        if (all_ready(shadow_ + p * kPageBytes, kPageBytes)) full_[p] = kFull;
}

void Memory::mark_read_only(uint64_t address, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i) *shadow(address + i) |= kReadOnly;
}

void Memory::mark_uninitialised(uint64_t address, size_t bytes) {
    std::memset(shadow(address), kAddressable, bytes);
    std::memset(full_ + page(address), 0, page(address + bytes - 1) - page(address) + 1);
}

}  // namespace vgpu
