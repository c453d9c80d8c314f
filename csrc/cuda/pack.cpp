#include "cuda/pack.h"

#include <cstring>
#include <stdexcept>

namespace llama_ext::cuda {
namespace {

constexpr int64_t kPlaneAlignment = 256;

int64_t up_to(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// fifth bits as ggml has them, weight i at bit i -> as packed.h has them
uint32_t spread_bits(uint32_t bits) {
    uint32_t spread = 0;
    for (int i = 0; i < kBlock; ++i) spread |= ((bits >> i) & 1) << (8 * (i % 4) + i / 4);
    return spread;
}

struct Rows {
    std::byte *quants, *high, *scales, *supers;
};

// A block of q4_0, q4_1, q5_0 or q5_1: `scale_bytes` of scales, 4 of fifth bits if `fifth`, 16 of nibbles.
void pack_nibbles(const std::byte* source, int scale_bytes, bool fifth, int64_t block, const Rows& to) {
    std::memcpy(to.scales + block * scale_bytes, source, static_cast<size_t>(scale_bytes));
    source += scale_bytes;
    if (fifth) {
        uint32_t bits;
        std::memcpy(&bits, source, sizeof bits);
        bits = spread_bits(bits);
        std::memcpy(to.high + block * 4, &bits, sizeof bits);
        source += 4;
    }
    std::memcpy(to.quants + block * 16, source, 16);
}

// A super-block of q4_K or q5_K.
void pack_k(const uint8_t* source, bool fifth, int64_t super, const Rows& to) {
    uint8_t packed[16] = {};
    std::memcpy(packed, source, 4);
    for (int j = 0; j < 8; ++j) {
        uint8_t scale, minimum;
        unpack_k_scale(source + 4, j, &scale, &minimum);
        const int bits = scale | minimum << 6;
        packed[4 + j] = static_cast<uint8_t>(bits & 0xff);
        packed[12 + j / 2] = static_cast<uint8_t>(packed[12 + j / 2] | (bits >> 8) << (4 * (j % 2)));
    }
    std::memcpy(to.supers + super * 16, packed, sizeof packed);
    const uint8_t* high = source + 16;
    const uint8_t* nibbles = source + (fifth ? 48 : 16);
    for (int j = 0; j < 8; ++j) {
        uint8_t* quants = reinterpret_cast<uint8_t*>(to.quants) + (super * 8 + j) * 16;
        uint32_t bits = 0;
        for (int i = 0; i < kBlock; ++i) {
            const int value = (nibbles[32 * (j / 2) + i] >> (4 * (j % 2))) & 15;
            quants[i % 16] = static_cast<uint8_t>(i < 16 ? value : quants[i % 16] | value << 4);
            if (fifth) bits |= static_cast<uint32_t>((high[i] >> j) & 1) << i;
        }
        if (fifth) {
            bits = spread_bits(bits);
            std::memcpy(to.high + (super * 8 + j) * 4, &bits, sizeof bits);
        }
    }
}

// A super-block of q6_K, whose order in its file is that of program/format.cpp.
void pack_q6_k(const uint8_t* source, int64_t super, const Rows& to) {
    std::memcpy(to.scales + super * 16, source + 192, 16);
    std::memcpy(to.supers + super * 2, source + 208, 2);
    for (int half = 0; half < 2; ++half) {
        for (int j = 0; j < 4; ++j) {
            const int64_t block = super * 8 + half * 4 + j;
            uint8_t* quants = reinterpret_cast<uint8_t*>(to.quants) + block * 16;
            uint32_t pairs[2] = {};
            for (int i = 0; i < kBlock; ++i) {
                const int value = (source[64 * half + 32 * (j % 2) + i] >> (4 * (j / 2))) & 15;
                const uint32_t pair = (source[128 + 32 * half + i] >> (2 * j)) & 3u;
                quants[i % 16] = static_cast<uint8_t>(i < 16 ? value : quants[i % 16] | value << 4);
                pairs[i / 16] |= pair << (8 * (i % 4) + 2 * (i / 4 % 4));
            }
            std::memcpy(to.high + block * 8, pairs, sizeof pairs);
        }
    }
}

}  // namespace

PlaneRows plane_rows(Format format, int64_t cols) {
    const int64_t blocks = cols / kBlock, supers = cols / kSuperBlock;
    switch (format) {
        case Format::f32:
            return {up_to(4 * cols, 16), 0, 0, 0};
        case Format::f16:
        case Format::bf16:
            return {up_to(2 * cols, 16), 0, 0, 0};
        case Format::q8_0:
            return {cols, 0, 2 * blocks, 0};
        case Format::mxfp8:
            return {cols, 0, blocks, 0};
        case Format::q4_0:
            return {16 * blocks, 0, 2 * blocks, 0};
        case Format::q4_1:
            return {16 * blocks, 0, 4 * blocks, 0};
        case Format::q5_0:
            return {16 * blocks, 4 * blocks, 2 * blocks, 0};
        case Format::q5_1:
            return {16 * blocks, 4 * blocks, 4 * blocks, 0};
        case Format::q4_k:
            return {16 * blocks, 0, 0, 16 * supers};
        case Format::q5_k:
            return {16 * blocks, 4 * blocks, 0, 16 * supers};
        case Format::q6_k:
            return {16 * blocks, 8 * blocks, 2 * blocks, 2 * supers};
    }
    return {};
}

Planes planes(Format format, int64_t rows, int64_t cols) {
    if (cols % info(format).block != 0)
        throw std::invalid_argument("a row of " + std::to_string(cols) + " weights does not fill blocks of " +
                                    std::to_string(info(format).block) + ", as " + std::string(info(format).name) + " has them");
    const PlaneRows row = plane_rows(format, cols);
    Planes at{};
    at.high = up_to(rows * row.quants, kPlaneAlignment);
    at.scales = at.high + up_to(rows * row.high, kPlaneAlignment);
    at.supers = at.scales + up_to(rows * row.scales, kPlaneAlignment);
    at.bytes = at.supers + up_to(rows * row.supers, kPlaneAlignment);
    return at;
}

void pack_row(Format format, int64_t rows, int64_t cols, int64_t row, const std::byte* source, std::byte* base) {
    const Planes at = planes(format, rows, cols);
    const PlaneRows bytes = plane_rows(format, cols);
    const Rows to{base + row * bytes.quants, base + at.high + row * bytes.high, base + at.scales + row * bytes.scales,
                  base + at.supers + row * bytes.supers};
    const FormatInfo& f = info(format);
    switch (format) {
        case Format::f32:
        case Format::f16:
        case Format::bf16: {
            const size_t filled = row_bytes(format, cols);
            std::memcpy(to.quants, source, filled);
            std::memset(to.quants + filled, 0, static_cast<size_t>(bytes.quants) - filled);
            return;
        }
        default:
            break;
    }
    for (int64_t i = 0; i < cols / f.block; ++i, source += f.bytes) {
        switch (format) {
            case Format::q8_0:
                std::memcpy(to.scales + i * 2, source, 2);
                std::memcpy(to.quants + i * 32, source + 2, 32);
                break;
            case Format::mxfp8:
                std::memcpy(to.scales + i, source, 1);
                std::memcpy(to.quants + i * 32, source + 1, 32);
                break;
            case Format::q4_0:
                pack_nibbles(source, 2, false, i, to);
                break;
            case Format::q4_1:
                pack_nibbles(source, 4, false, i, to);
                break;
            case Format::q5_0:
                pack_nibbles(source, 2, true, i, to);
                break;
            case Format::q5_1:
                pack_nibbles(source, 4, true, i, to);
                break;
            case Format::q4_k:
                pack_k(reinterpret_cast<const uint8_t*>(source), false, i, to);
                break;
            case Format::q5_k:
                pack_k(reinterpret_cast<const uint8_t*>(source), true, i, to);
                break;
            case Format::q6_k:
                pack_q6_k(reinterpret_cast<const uint8_t*>(source), i, to);
                break;
            case Format::f32:
            case Format::f16:
            case Format::bf16:
                break;
        }
    }
}

}  // namespace llama_ext::cuda
