// Activations into the form that products with integer weights take (activation.h).
#include "cpu/kernels/level.h"

namespace llama_ext::cpu::LLAMA_EXT_LEVEL {

void quantize_q15(const float* x, int64_t n, Q15Block* out, int64_t stride) {
    for (int64_t i = 0; i < n; i += 32, out += stride) {
        const F32x16 values[2] = {load(x + i), load(x + i + 16)};
        // The largest magnitude by its bits: as integers they order as the floats do, and a NaN is above them all.
        const int32_t largest_bits = reduce_max(max(f32_to_bits(abs(values[0])), f32_to_bits(abs(values[1]))));
        float largest;
        memcpy(&largest, &largest_bits, sizeof largest);
        // A block so small that the division would overflow counts as zeros. A NaN or an infinity stays visible in the scale; the
        // integers under it are zeros, so that no sum of them wraps.
        const bool tiny = largest < 1e-33f, finite = largest_bits < 0x7f800000;
        const float to_int = tiny ? 0.0f : kLargestQ15 / largest;
        out->scale = tiny ? 0.0f : largest / kLargestQ15;
        for (int half = 0; half < 2; ++half) {
            const I32x16 q = finite ? round_to_i32(values[half] * broadcast(to_int)) : broadcast(0);
            const I32x16 high = shift_right_signed<kDigitShift>(q + broadcast(int32_t{1} << (kDigitShift - 1)));
            store_i8(out->high + 16 * half, high);
            store_i8(out->low + 16 * half, q - shift_left<kDigitShift>(high));
            out->minus_of[half] = -reduce_add(q);
        }
        out->minus_sum = out->minus_of[0] + out->minus_of[1];
        out->scaled_sum = out->scale * static_cast<float>(-out->minus_sum);
    }
}

}  // namespace llama_ext::cpu::LLAMA_EXT_LEVEL
