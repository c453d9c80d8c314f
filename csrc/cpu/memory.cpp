#include "cpu/memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>
#include <utility>

namespace llama_ext::cpu {

Pages::Pages(size_t bytes, Size size) : bytes_(bytes) {
    if (bytes == 0) return;
    constexpr size_t kHuge = size_t{2} << 20;
    if (bytes > SIZE_MAX / 2) throw std::bad_alloc();
    const size_t alignment = size == Size::huge ? kHuge : 4096;
    mapped_ = (bytes + alignment - 1) / alignment * alignment + (size == Size::huge ? kHuge : 0);
    base_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base_ == MAP_FAILED) {
        base_ = nullptr;
        throw std::bad_alloc();
    }
    const uintptr_t start = (reinterpret_cast<uintptr_t>(base_) + alignment - 1) / alignment * alignment;
    data_ = reinterpret_cast<std::byte*>(start);
#ifdef MADV_HUGEPAGE
    // Only advice: a kernel without huge pages serves small ones. A cache that starts small must not be given big ones.
    madvise(base_, mapped_, size == Size::huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#endif
}

Pages::~Pages() {
    if (base_) munmap(base_, mapped_);
}

Pages::Pages(Pages&& other) noexcept { *this = std::move(other); }

Pages& Pages::operator=(Pages&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(mapped_, other.mapped_);
    std::swap(base_, other.base_);
    return *this;
}

}  // namespace llama_ext::cpu
