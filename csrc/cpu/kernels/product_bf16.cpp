// Products of BF16 weights with bfloat16 activations, for the many rows of a coarse step: two columns an instruction, where the
// machine has it. A row's sum is one chain in the order of the columns, whatever rows go along.
#include "cpu/kernels/level.h"

namespace llama_ext::cpu::LLAMA_EXT_LEVEL {
namespace {

#ifdef LLAMA_EXT_HAS_BF16_DOT
// A tile of rows of x and `count` groups that begin group_bytes apart. sums [count][kBf16Tile].
template <int count>
LLAMA_EXT_INLINE void bf16_tile(const std::byte* p, size_t group_bytes, int64_t cols, const Bf16Pair* x,
                                F32x16 (&sums)[count][kBf16Tile]) {
    for (int g = 0; g < count; ++g)
        for (int t = 0; t < kBf16Tile; ++t) sums[g][t] = zero();
    const auto add = [&](const I32x16(&w)[count]) __attribute__((always_inline)) {
        for (int t = 0; t < kBf16Tile; ++t) {
            int32_t pair;
            memcpy(&pair, x + t, sizeof pair);
            for (int g = 0; g < count; ++g) sums[g][t] = dot2_bf16(sums[g][t], w[g], pair);
        }
        x += kBf16Tile;
    };
    I32x16 w[count];
    for (int64_t k = 0; k + 2 <= cols; k += 2, p += 64) {
        for (int g = 0; g < count; ++g) w[g] = pair_columns(load_words(p + static_cast<size_t>(g) * group_bytes));
        add(w);
    }
    if (cols % 2 == 0) return;
    for (int g = 0; g < count; ++g) w[g] = pair_columns(load_half(p + static_cast<size_t>(g) * group_bytes));
    add(w);
}

// out [count][rows][16]. Tiles begin at multiples of kBf16Tile in x, wherever `row` is.
template <int count>
void bf16_rows(const std::byte* p, size_t group_bytes, int64_t cols, const Activation& x, int64_t row, int64_t rows, float* out) {
    for (int64_t tile = row / kBf16Tile; tile * kBf16Tile < row + rows; ++tile) {
        F32x16 sums[count][kBf16Tile];
        bf16_tile<count>(p, group_bytes, cols, x.bf16 + bf16_offset(tile * kBf16Tile, cols), sums);
        for (int t = 0; t < kBf16Tile; ++t) {
            const int64_t at = tile * kBf16Tile + t - row;
            if (at < 0 || at >= rows) continue;
            for (int g = 0; g < count; ++g) store(out + (g * rows + at) * kGroup, sums[g][t]);
        }
    }
}

void bf16_product(const PackedWeight& w, int64_t group, int64_t groups, const Activation& x, int64_t row, int64_t rows,
                  float* out) {
    const std::byte* p = w.data + static_cast<size_t>(group) * w.group_bytes;
    if (groups == kGroupsAtOnce)
        bf16_rows<kGroupsAtOnce>(p, w.group_bytes, w.cols, x, row, rows, out);
    else
        bf16_rows<1>(p, w.group_bytes, w.cols, x, row, rows, out);
}
#else
constexpr ProductFn bf16_product = nullptr;
#endif

}  // namespace

const ProductFn kBf16Product = bf16_product;

}  // namespace llama_ext::cpu::LLAMA_EXT_LEVEL
