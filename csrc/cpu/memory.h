// Address space from the system: zeroed pages that cost nothing until they are touched.
#pragma once

#include <cstddef>

namespace llama_ext::cpu {

class Pages {
public:
    enum class Size { normal, huge };  // huge: 2 MiB pages where the system grants them, for what is read through and through

    Pages() = default;
    Pages(size_t bytes, Size size);  // throws std::bad_alloc
    ~Pages();
    Pages(Pages&& other) noexcept;
    Pages& operator=(Pages&& other) noexcept;

    std::byte* data() const { return data_; }
    size_t bytes() const { return bytes_; }

private:
    std::byte* data_ = nullptr;
    size_t bytes_ = 0;  // as asked for
    size_t mapped_ = 0;
    void* base_ = nullptr;
};

}  // namespace llama_ext::cpu
