// Q4_K, Q5_K and Q6_K in groups of 16 rows (pack.h). In a file the bits of a sub-block of 32 weights are spread over the block,
// several sub-blocks to a byte; packed, each sub-block has vectors of its own, read once, one after the other.
#pragma once

#include <cstddef>
#include <cstdint>

#include "program/format.h"

namespace llama_ext::cpu {

// The first `blocks` blocks of 16 rows.
void pack_k(Format format, int64_t blocks, const std::byte* const* rows, std::byte* out);

// Row r of a packed group as it stands in a file.
void unpack_k(Format format, int64_t blocks, const std::byte* group, int r, std::byte* out);

}  // namespace llama_ext::cpu
