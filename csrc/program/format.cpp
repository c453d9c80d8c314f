#include "program/format.h"

#include <array>
#include <cstring>
#include <stdexcept>

#include "program/half.h"

namespace llama_ext {
namespace {

constexpr std::array<FormatInfo, kFormats> kInfo = {{
    {"F32", 1, 4, ActivationFormat::f32},
    {"F16", 1, 2, ActivationFormat::f32},
    {"BF16", 1, 2, ActivationFormat::f32},
    {"Q8_0", 32, 34, ActivationFormat::q15},
    {"Q4_0", 32, 18, ActivationFormat::q15},
    {"Q4_1", 32, 20, ActivationFormat::q15},
    {"Q5_0", 32, 22, ActivationFormat::q15},
    {"Q5_1", 32, 24, ActivationFormat::q15},
    {"Q4_K", 256, 144, ActivationFormat::q15},
    {"Q5_K", 256, 176, ActivationFormat::q15},
    {"Q6_K", 256, 210, ActivationFormat::q15},
    {"MXFP8", 32, 33, ActivationFormat::f32},
}};

uint16_t u16_at(const uint8_t* p) {
    uint16_t value;
    std::memcpy(&value, p, sizeof value);
    return value;
}

uint32_t u32_at(const uint8_t* p) {
    uint32_t value;
    std::memcpy(&value, p, sizeof value);
    return value;
}

float f16_at(const uint8_t* p) { return f32_from_f16(u16_at(p)); }

// Blocks of 32: element i sits in the low nibble of byte i, element i + 16 in its high nibble.
// offset: what is subtracted from the stored unsigned value; high: the fifth bits, element i at bit i, or 0.
void block32(const uint8_t* nibbles, uint32_t high, float scale, float minimum, int offset, float* out) {
    for (int i = 0; i < 16; ++i) {
        const int low_value = (nibbles[i] & 15) | static_cast<int>((high >> i) & 1) << 4;
        const int high_value = (nibbles[i] >> 4) | static_cast<int>((high >> (i + 16)) & 1) << 4;
        out[i] = static_cast<float>(low_value - offset) * scale + minimum;
        out[i + 16] = static_cast<float>(high_value - offset) * scale + minimum;
    }
}

void block_q8_0(const uint8_t* p, float* out) {
    const float scale = f16_at(p);
    for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(static_cast<int8_t>(p[2 + i])) * scale;
}

// Q4_K and Q5_K: 256 weights = 8 sub-blocks of 32, each with a 6-bit scale and minimum under two f16 factors.
// high: 32 bytes, bit j of byte i is the fifth bit of element i of sub-block j; null for Q4_K.
void block_k(const uint8_t* p, const uint8_t* high, const uint8_t* nibbles, float* out) {
    const float d = f16_at(p), dmin = f16_at(p + 2);
    for (int j = 0; j < 8; ++j) {
        uint8_t scale, minimum;
        unpack_k_scale(p + 4, j, &scale, &minimum);
        const float d_j = d * static_cast<float>(scale), m_j = dmin * static_cast<float>(minimum);
        for (int i = 0; i < 32; ++i) {
            int value = (nibbles[32 * (j / 2) + i] >> (4 * (j % 2))) & 15;
            if (high) value |= ((high[i] >> j) & 1) << 4;
            out[32 * j + i] = static_cast<float>(value) * d_j - m_j;
        }
    }
}

// Q6_K: low nibbles [128], high bit pairs [64], int8 scales [16] (one for 16 weights), f16 d. In each half of 128 weights,
// element 32 j + i takes nibble j / 2 of byte 32 (j % 2) + i and bit pair j of byte i.
void block_q6_k(const uint8_t* p, float* out) {
    const float d = f16_at(p + 208);
    const int8_t* scales = reinterpret_cast<const int8_t*>(p + 192);
    for (int half = 0; half < 2; ++half) {
        const uint8_t* low = p + 64 * half;
        const uint8_t* high = p + 128 + 32 * half;
        for (int j = 0; j < 4; ++j) {
            for (int i = 0; i < 32; ++i) {
                const int nibble = (low[32 * (j % 2) + i] >> (4 * (j / 2))) & 15;
                const int value = nibble | ((high[i] >> (2 * j)) & 3) << 4;
                const float scale = d * static_cast<float>(scales[8 * half + 2 * j + i / 16]);
                out[128 * half + 32 * j + i] = static_cast<float>(value - 32) * scale;
            }
        }
    }
}

// MXFP8: a scale of E8M0 (2^(byte - 127); 255 is NaN), then 32 elements of E4M3.
void block_mxfp8(const uint8_t* p, float* out) {
    const float scale = f32_from_e8m0(p[0]);
    for (int i = 0; i < 32; ++i) out[i] = f32_from_e4m3(p[1 + i]) * scale;
}

}  // namespace

const FormatInfo& info(Format format) { return kInfo[static_cast<size_t>(format)]; }

Format format_from_name(std::string_view name) {
    std::string known;
    for (int i = 0; i < kFormats; ++i) {
        if (kInfo[i].name == name) return static_cast<Format>(i);
        known += (i ? ", " : "") + std::string(kInfo[i].name);
    }
    throw std::invalid_argument("unknown weight format '" + std::string(name) + "'; known: " + known);
}

void unpack_k_scale(const uint8_t* packed, int j, uint8_t* scale, uint8_t* minimum) {
    if (j < 4) {
        *scale = packed[j] & 63;
        *minimum = packed[j + 4] & 63;
    } else {
        *scale = static_cast<uint8_t>((packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4);
        *minimum = static_cast<uint8_t>((packed[j + 4] >> 4) | (packed[j] >> 6) << 4);
    }
}

void dequantize(Format format, const std::byte* source, int64_t cols, float* out) {
    const FormatInfo& f = info(format);
    const uint8_t* p = reinterpret_cast<const uint8_t*>(source);
    for (int64_t i = 0; i < cols; i += f.block, p += f.bytes, out += f.block) {
        switch (format) {
            case Format::f32:
                std::memcpy(out, p, 4);
                break;
            case Format::f16:
                *out = f16_at(p);
                break;
            case Format::bf16:
                *out = f32_from_bf16(u16_at(p));
                break;
            case Format::q8_0:
                block_q8_0(p, out);
                break;
            case Format::q4_0:
                block32(p + 2, 0, f16_at(p), 0, 8, out);
                break;
            case Format::q4_1:
                block32(p + 4, 0, f16_at(p), f16_at(p + 2), 0, out);
                break;
            case Format::q5_0:
                block32(p + 6, u32_at(p + 2), f16_at(p), 0, 16, out);
                break;
            case Format::q5_1:
                block32(p + 8, u32_at(p + 4), f16_at(p), f16_at(p + 2), 0, out);
                break;
            case Format::q4_k:
                block_k(p, nullptr, p + 16, out);
                break;
            case Format::q5_k:
                block_k(p, p + 16, p + 48, out);
                break;
            case Format::q6_k:
                block_q6_k(p, out);
                break;
            case Format::mxfp8:
                block_mxfp8(p, out);
                break;
        }
    }
}

}  // namespace llama_ext
