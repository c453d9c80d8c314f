// Preconditions of the operations: each failure is one sentence that names the operation, the argument and what it must be.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/plan.h"

namespace llama_ext::cuda {

inline void require(bool holds, const char* operation, const char* argument, const std::string& is, const std::string& must) {
    if (!holds) throw std::invalid_argument(std::string(operation) + ": " + argument + " is " + is + ", must be " + must);
}

inline void require_range(const char* operation, const char* argument, int64_t value, int64_t low, int64_t high) {
    require(low <= value && value <= high, operation, argument, std::to_string(value),
            std::to_string(low) + " to " + std::to_string(high));
}

inline bool aligned(Address address, uint64_t bytes) { return address.value % bytes == 0; }

// Not null, and on a multiple of `bytes`.
inline void require_address(const char* operation, const char* argument, Address address, uint64_t bytes) {
    require(address.value != 0, operation, argument, "null", "an address");
    require(aligned(address, bytes), operation, argument, "not aligned", "on " + std::to_string(bytes) + " bytes");
}

}  // namespace llama_ext::cuda
