#include "program/file_map.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <map>
#include <mutex>
#include <stdexcept>
#include <system_error>

namespace llama_ext {
namespace {

// A fault maps pages around it, no further than the largest page.
constexpr uintptr_t kAround = 2 << 20;

uintptr_t page() {
    static const uintptr_t size = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    return size;
}

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

size_t Resident::most_bytes() const { return bytes + 2 * page(); }

void Resident::give_back() const { advise(data, bytes, MADV_DONTNEED, page()); }

void isolate(std::vector<Resident*>* ranges) {
    std::sort(ranges->begin(), ranges->end(), [](const Resident* a, const Resident* b) { return a->data < b->data; });
    // Neighbours with different advice are different mappings: whole pages in turns of two kinds, and what two ranges share, of a
    // third. What is advised matters little, they are read ahead by hand.
    bool odd = false;
    for (const Resident* r : *ranges) {
        const Range map = map_around(r->data, r->bytes);
        const uintptr_t begin = reinterpret_cast<uintptr_t>(r->data), end = begin + r->bytes;
        const uintptr_t first = (begin + page() - 1) / page() * page(), last = end / page() * page();
        if (!map.end) continue;
        const auto mark = [](uintptr_t from, uintptr_t to, int advice) {
            if (from < to) madvise(reinterpret_cast<void*>(from), to - from, advice);
        };
        mark(first, last, odd ? MADV_SEQUENTIAL : MADV_RANDOM);
        mark(first - page(), begin < first ? first : 0, MADV_DONTDUMP);
        mark(last, last < end ? last + page() : 0, MADV_DONTDUMP);
        odd = !odd;
    }
}

void read_ahead(const std::byte* begin, size_t bytes) { advise(begin, bytes, MADV_WILLNEED, page()); }

}  // namespace llama_ext
