#include "program/file_map.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <map>
#include <mutex>
#include <stdexcept>
#include <system_error>

namespace llama_ext {
namespace {

// A fault maps more than its page: what the system's cache holds in one piece with it, which since Linux 6.18 can be all that one
// table of pages spans, 2 MiB, or else what lies in the same 64 KiB.
constexpr uintptr_t kAround = 2 << 20;

struct Registry {
    std::mutex mutex;
    std::map<uintptr_t, uintptr_t> maps;  // begin -> end
};

// Never destroyed: maps may be released while the process ends.
Registry& registry() {
    static Registry& instance = *new Registry;
    return instance;
}

struct Range {
    uintptr_t begin = 0, end = 0;
};

// The map around [begin, begin + bytes), or nothing.
Range map_around(const std::byte* begin, size_t bytes) {
    Registry& r = registry();
    const std::lock_guard lock(r.mutex);
    const uintptr_t first = reinterpret_cast<uintptr_t>(begin);
    auto next = r.maps.upper_bound(first);
    if (next == r.maps.begin()) return {};
    --next;
    return first <= next->second && bytes <= next->second - first ? Range{next->first, next->second} : Range{};
}

void advise(const std::byte* begin, size_t bytes, int advice, uintptr_t around) {
    const Range map = map_around(begin, bytes);
    if (!map.end) return;
    uintptr_t first = reinterpret_cast<uintptr_t>(begin), last = first + bytes;
    first = first / around * around;
    last = (last + around - 1) / around * around;
    if (first < map.begin) first = map.begin;
    if (last > map.end) last = map.end;
    // Only advice: where it fails, pages stay or come when they are touched.
    madvise(reinterpret_cast<void*>(first), last - first, advice);
}

}  // namespace

FileMap::FileMap(const std::string& path) {
    // Not to wait for whoever writes into a pipe: it is refused below.
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0) throw std::system_error(errno, std::generic_category(), path);
    struct stat facts{};
    void* base = MAP_FAILED;
    int error = 0;
    if (fstat(file, &facts) == 0 && facts.st_size > 0 && S_ISREG(facts.st_mode)) {
        base = mmap(nullptr, static_cast<size_t>(facts.st_size), PROT_READ, MAP_SHARED, file, 0);
        error = errno;
    }
    close(file);
    if (!S_ISREG(facts.st_mode)) throw std::system_error(EINVAL, std::generic_category(), path);
    if (facts.st_size == 0) throw std::invalid_argument(path + ": the file is empty");
    if (base == MAP_FAILED) throw std::system_error(error, std::generic_category(), path);
    data_ = static_cast<const std::byte*>(base);
    bytes_ = static_cast<size_t>(facts.st_size);
    Registry& r = registry();
    const std::lock_guard lock(r.mutex);
    const uintptr_t begin = reinterpret_cast<uintptr_t>(data_);
    r.maps[begin] = begin + bytes_;
}

FileMap::~FileMap() {
    {
        Registry& r = registry();
        const std::lock_guard lock(r.mutex);
        r.maps.erase(reinterpret_cast<uintptr_t>(data_));
    }
    munmap(const_cast<std::byte*>(data_), bytes_);
}

bool is_mapped(const std::byte* begin, size_t bytes) { return map_around(begin, bytes).end != 0; }

void give_back(const std::byte* begin, size_t bytes) { advise(begin, bytes, MADV_DONTNEED, kAround); }

size_t resident_bytes(size_t bytes) { return bytes + 2 * kAround; }

void read_ahead(const std::byte* begin, size_t bytes) {
    advise(begin, bytes, MADV_WILLNEED, static_cast<uintptr_t>(sysconf(_SC_PAGESIZE)));
}

}  // namespace llama_ext
