#include <cmath>
#include <vector>

#include "cpu/calls/calls.h"

namespace llama_ext::cpu {

void rope(const Kernels& kernels, const RopeCall& call, const Parallel& parallel) {
    const int64_t half = call.head_dim / 2;
    std::vector<float> cosine(static_cast<size_t>(call.rows * half)), sine(cosine.size());
    parallel(call.rows, grain(half * 64), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            for (int64_t i = 0; i < half; ++i) {
                const double angle = static_cast<double>(call.positions[r]) * call.inverse_frequency[i];
                cosine[static_cast<size_t>(r * half + i)] = static_cast<float>(std::cos(angle));
                sine[static_cast<size_t>(r * half + i)] = static_cast<float>(std::sin(angle));
            }
        }
    });

    const int64_t width = call.heads * call.head_dim;
    parallel(call.batch * call.rows, grain(2 * width), [&](int64_t begin, int64_t end) {
        std::vector<float> head(static_cast<size_t>(call.head_dim)), pairs(head.size());
        for (int64_t n = begin; n < end; ++n) {
            const float* c = cosine.data() + n % call.rows * half;
            const float* s = sine.data() + n % call.rows * half;
            for (int64_t h = 0; h < call.heads; ++h) {
                const int64_t first = n * width + h * call.head_dim;
                widen(call.type, at(call.x, call.type, first), call.head_dim, head.data());
                if (call.interleaved) {
                    kernels.rotate(head.data(), c, s, call.head_dim);
                } else {
                    // The kernel turns neighbours: halves are brought side by side and taken apart again.
                    for (int64_t i = 0; i < half; ++i) {
                        pairs[static_cast<size_t>(2 * i)] = head[static_cast<size_t>(i)];
                        pairs[static_cast<size_t>(2 * i + 1)] = head[static_cast<size_t>(i + half)];
                    }
                    kernels.rotate(pairs.data(), c, s, call.head_dim);
                    for (int64_t i = 0; i < half; ++i) {
                        head[static_cast<size_t>(i)] = pairs[static_cast<size_t>(2 * i)];
                        head[static_cast<size_t>(i + half)] = pairs[static_cast<size_t>(2 * i + 1)];
                    }
                }
                narrow(call.type, head.data(), call.head_dim, at(call.out, call.type, first));
            }
        }
    });
}

}  // namespace llama_ext::cpu
