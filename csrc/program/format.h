// Weight formats: how a row of a matrix is stored in a checkpoint. Blocks are ggml's, bit for bit, so that a GGUF file's
// bytes are used as they are. MXFP8 is the OCP Microscaling Formats Specification's (v1.0, 5.1), with elements E4M3: blocks of 32
// under a power of two, the scale's byte first. dequantize() is the definition; every kernel is tested against it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace llama_ext {

enum class Format : uint8_t { f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q5_k, q6_k, mxfp8 };
inline constexpr int kFormats = 12;

// What a product's input is turned into before it meets weights of a format (on a CPU).
//   f32   as it is
//   q15   blocks of 32 along the row: integers of 15 bits times one float32 scale, scale = max|x| / 16319.
//         8 bits would do for a large model's text; on a small one they move the logits by 4% of their spread.
enum class ActivationFormat : uint8_t { f32, q15 };

struct FormatInfo {
    std::string_view name;  // as in GGUF
    int block;              // weights a block
    int bytes;              // bytes a block
    ActivationFormat activation;
};

const FormatInfo& info(Format format);
Format format_from_name(std::string_view name);  // throws std::invalid_argument that lists the known names

// Bytes of `cols` weights; cols must be a multiple of the block.
inline size_t row_bytes(Format format, int64_t cols) {
    const FormatInfo& f = info(format);
    return static_cast<size_t>(cols / f.block) * static_cast<size_t>(f.bytes);
}

// source: cols / block blocks -> out [cols]
void dequantize(Format format, const std::byte* source, int64_t cols, float* out);

// The 6-bit scale and minimum of sub-block j (0..7) from the 12 packed bytes of a Q4_K or Q5_K block.
void unpack_k_scale(const uint8_t* packed, int j, uint8_t* scale, uint8_t* minimum);

}  // namespace llama_ext
