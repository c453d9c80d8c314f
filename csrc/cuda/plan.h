// What shall run on a device, as data: an operation makes it, a person or a test can read it, a stream carries it out.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

namespace llama_ext::cuda {

// In device memory; 0 is null.
struct Address {
    uint64_t value = 0;
};

struct Argument {
    std::string name;
    std::variant<Address, int32_t, int64_t, float> value;
};

struct Launch {
    std::string kernel;
    std::array<uint32_t, 3> grid, block;
    uint32_t shared_bytes;            // dynamic
    std::vector<Argument> arguments;  // in the kernel's order
    bool programmatic;    // may start before the launch ahead of it has ended, where the card can: the kernel waits itself
    std::string label{};  // the instruction it is part of, such as layers.3.qkv
};

// What an operation's grid and tiles are made for.
struct Card {
    int multiprocessors;
    int shared_bytes;       // of shared memory, the most that a block can opt in to
    int shared_bytes_each;  // of a multiprocessor
};

struct Plan {
    std::vector<Launch> launches;
    std::vector<std::shared_ptr<const void>> owners;  // of the memory that the addresses point into
};

// A launch a line: label: kernel<<<grid, block, shared bytes>>>(name = value, ...), and "programmatic" where it is.
std::string to_string(const Launch& launch);
std::string to_string(const Plan& plan);

}  // namespace llama_ext::cuda
