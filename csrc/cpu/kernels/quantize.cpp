// Activations into the form that products with integer weights take (activation.h).
#include "cpu/kernels/level.h"

namespace llama_ext::cpu::LLAMA_EXT_LEVEL {

namespace {

struct Largest {
    float value;
    bool tiny, finite;
};

// The largest magnitude of a block by its bits: as integers they order as the floats do, and a NaN is above them all. A block so
// small that a division by it would overflow counts as zeros. A NaN or an infinity stays visible in the scale; the integers under
// it are zeros, so that no sum of them wraps.
LLAMA_EXT_INLINE Largest largest_of(const F32x16 (&values)[2]) {
    const int32_t bits = reduce_max(max(f32_to_bits(abs(values[0])), f32_to_bits(abs(values[1]))));
    float value;
    memcpy(&value, &bits, sizeof value);
    return {value, value < 1e-33f, bits < 0x7f800000};
}

// How far above the mean of a row's blocks a block's largest value stands out. bench/NOTES.md has what other factors did.
constexpr float kStandsOut = 2;

}  // namespace

void quantize_q15(const float* x, int64_t n, Q15Block* out, int64_t stride, bool coarse) {
    float of_one_digit = -1;  // the largest value of such a block at the most
    if (coarse) {
        float sum = 0;
        for (int64_t i = 0; i < n; i += 32) {
            const F32x16 values[2] = {load(x + i), load(x + i + 16)};
            sum += largest_of(values).value;
        }
        of_one_digit = kStandsOut * (sum / static_cast<float>(n / 32));
    }
    for (int64_t i = 0; i < n; i += 32, out += stride) {
        const F32x16 values[2] = {load(x + i), load(x + i + 16)};
        const Largest largest = largest_of(values);
        const bool one_digit = largest.value <= of_one_digit;
        const float steps = one_digit ? 127 : kLargestQ15;
        const float to_int = largest.tiny ? 0.0f : steps / largest.value;
        const float scale = largest.tiny ? 0.0f : largest.value / steps;
        out->scale = one_digit ? scale * (1.0f / (1 << kDigitShift)) : scale;
        out->two_digits = !one_digit;
        for (int half = 0; half < 2; ++half) {
            I32x16 q = largest.finite ? round_to_i32(values[half] * broadcast(to_int)) : broadcast(0);
            if (one_digit) q = shift_left<kDigitShift>(q);
            const I32x16 high = shift_right_signed<kDigitShift>(q + broadcast(int32_t{1} << (kDigitShift - 1)));
            store_i8(out->high + 16 * half, high);
            store_i8(out->low + 16 * half, q - shift_left<kDigitShift>(high));
            out->minus_of[half] = -reduce_add(q);
        }
        out->minus_sum = out->minus_of[0] + out->minus_of[1];
        out->scaled_sum = out->scale * static_cast<float>(-out->minus_sum);
    }
}

void round_bf16(const float* x, int64_t n, Bf16Pair* out, int64_t stride) {
    const auto rounded = [](uint32_t bits) {
        // A NaN stays one: rounding could carry it into an infinity.
        if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
        return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    };
    for (int64_t i = 0; i < n; i += 2, out += stride) {
        uint32_t bits[2] = {0, 0};
        memcpy(bits, x + i, (n - i < 2 ? 1 : 2) * sizeof(float));
        *out = {{rounded(bits[0]), rounded(bits[1])}};
    }
}

}  // namespace llama_ext::cpu::LLAMA_EXT_LEVEL
