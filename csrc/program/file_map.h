// A file mapped into memory, read-only: what weights point into when a checkpoint's own bits are used as they are.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace llama_ext {

class FileMap {
public:
    // Throws std::system_error (the file cannot be opened or mapped), std::invalid_argument (it is empty).
    explicit FileMap(const std::string& path);
    ~FileMap();
    FileMap(const FileMap&) = delete;
    FileMap& operator=(const FileMap&) = delete;

    const std::byte* data() const { return data_; }
    size_t bytes() const { return bytes_; }

private:
    const std::byte* data_ = nullptr;
    size_t bytes_ = 0;
};

// Whether [begin, begin + bytes) lies inside a file's map.
bool is_mapped(const std::byte* begin, size_t bytes);

// Takes the pages of a range out of the process's resident memory, and those around it that faults brought along; when they are
// touched again they come back, from the system's cache or the file. Nothing happens to what is in no FileMap.
void give_back(const std::byte* begin, size_t bytes);

// A range of a file that comes and goes on its own.
struct Resident {
    const std::byte* data;
    size_t bytes;

    // With the pages that it shares with its neighbours.
    size_t most_bytes() const;
    // Its own pages and no others.
    void give_back() const;
};

// A fault maps pages around it as well, as many as the system likes (a megabyte has been seen), but none of another mapping.
// This makes each of these ranges, which must not overlap, a mapping of its own. They are sorted on the way.
void isolate(std::vector<Resident*>* ranges);

// Asks the system to read a range from its file, without waiting for it.
void read_ahead(const std::byte* begin, size_t bytes);

}  // namespace llama_ext
