#include "core/race.h"

#include <sys/mman.h>

#include <algorithm>
#include <stdexcept>

namespace vgpu {

void SharedRaces::prepare(uint32_t bytes, uint32_t grain_shift, uint32_t warp_count) {
    cells = (bytes + (1u << grain_shift) - 1) >> grain_shift;
    warps = warp_count;
    const size_t granules = bytes / kGranuleBytes + 1;
    if (reads.size() < size_t{cells} * warps) reads.resize(size_t{cells} * warps);
    if (writes.size() < cells) {
        writes.resize(cells);
        read_pc.resize(cells);
    }
    if (write_epoch.size() < granules) {
        write_epoch.resize(granules);
        read_epoch.resize(granules);
    }
}

GlobalRaces::GlobalRaces() {
    void* at = mmap(nullptr, Memory::kPages * sizeof(uint32_t), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) throw std::runtime_error("the virtual GPU cannot reserve its address space");
    index_ = static_cast<uint32_t*>(at);
    records_.emplace_back();  // 0 stands for none
}

GlobalRaces::~GlobalRaces() { munmap(index_, Memory::kPages * sizeof(uint32_t)); }

uint32_t GlobalRaces::add() {
    records_.push_back(std::make_unique<PageRecord>());
    return static_cast<uint32_t>(records_.size() - 1);
}

}  // namespace vgpu
