// The first launch of a step: a row of the embedding for each token, dequantized, and the cosines and sines that rotate queries
// and keys. A thread makes four elements of a row; a rotation table is a block a row.
#include "cuda/kernels/dequantize.cuh"
#include "cuda/kernels/step.h"

using namespace llama_ext;
using namespace llama_ext::cuda;

namespace {

template <Format kFormat>
__device__ __forceinline__ float4 word_of(const PackedBytes& matrix, int64_t row, int64_t cols, int64_t at) {
    return dequantize_word<kFormat>(row_of<kFormat>(matrix, row, cols), at);
}

__device__ __forceinline__ float4 word_of(Format format, const PackedBytes& matrix, int64_t row, int64_t cols, int64_t at) {
    switch (format) {
        case Format::f32:
            return word_of<Format::f32>(matrix, row, cols, at);
        case Format::f16:
            return word_of<Format::f16>(matrix, row, cols, at);
        case Format::bf16:
            return word_of<Format::bf16>(matrix, row, cols, at);
        case Format::q8_0:
            return word_of<Format::q8_0>(matrix, row, cols, at);
        case Format::q4_0:
            return word_of<Format::q4_0>(matrix, row, cols, at);
        case Format::q4_1:
            return word_of<Format::q4_1>(matrix, row, cols, at);
        case Format::q5_0:
            return word_of<Format::q5_0>(matrix, row, cols, at);
        case Format::q5_1:
            return word_of<Format::q5_1>(matrix, row, cols, at);
        case Format::q4_k:
            return word_of<Format::q4_k>(matrix, row, cols, at);
        case Format::q5_k:
            return word_of<Format::q5_k>(matrix, row, cols, at);
        case Format::q6_k:
            return word_of<Format::q6_k>(matrix, row, cols, at);
        case Format::mxfp8:
            break;
    }
    return word_of<Format::mxfp8>(matrix, row, cols, at);
}

// {cosine, sine} of an angle in radians, each within an ulp of float32. In float64: turns, whose nearest quarter is taken away
// before anything is rounded, so that an angle of millions of radians loses nothing; then Taylor's series up to an eighth of a
// turn, where the first terms left out are below 1e-11. Unlike sincos() it has no second path, and no table.
__device__ __forceinline__ float2 cosine_and_sine(double angle) {
    constexpr double kTurn = 0x1.45f306dc9c883p-3, kTurnRest = -0x1.6b01ec5417056p-57;  // 1 / (2 pi)
    constexpr double kRadians = 0x1.921fb54442d18p+2;
    const double turns = __dmul_rn(angle, kTurn);
    const double rest = fma(angle, kTurn, -turns) + angle * kTurnRest;
    const double quarter = rint(4.0 * turns);
    const double a = ((turns - 0.25 * quarter) + rest) * kRadians, b = a * a;
    double sine = fma(b, fma(b, fma(b, fma(b, -1.0 / 39916800, 1.0 / 362880), -1.0 / 5040), 1.0 / 120), -1.0 / 6);
    sine = fma(a * b, sine, a);
    double cosine =
        fma(b, fma(b, fma(b, fma(b, fma(b, 1.0 / 479001600, -1.0 / 3628800), 1.0 / 40320), -1.0 / 720), 1.0 / 24), -0.5);
    cosine = fma(b, cosine, 1.0);
    const int turned = static_cast<int>(static_cast<int64_t>(quarter) & 3);
    const float c = static_cast<float>(cosine), s = static_cast<float>(sine);
    const float x = turned & 1 ? s : c, y = turned & 1 ? c : s;
    return make_float2(turned == 1 || turned == 2 ? -x : x, turned >= 2 ? -y : y);
}

}  // namespace

// quants, high, scales, supers: the planes of a packed matrix [vocab, cols]; ids [max_rows], each below vocab; step [1]
// -> x [max_rows, cols]; rotations [gridDim.x - column_blocks] -> their tables
// PRECOND: grid (column_blocks + rotations, max_rows), block (any); column_blocks * block * 4 >= cols; quants, high, scales and
// supers on 256 bytes; x on 16 if cols % 4 == 0; max_rows >= step->rows
extern "C" __global__ void __launch_bounds__(256)
    embed(int32_t format, const uint8_t* quants, const uint8_t* high, const uint8_t* scales, const uint8_t* supers, int64_t cols,
          const int32_t* ids, const Step* step, float* x, const Rotation* rotations, int32_t column_blocks) {
    let_successor_start();
    wait_for_predecessor();
    const int row = blockIdx.y, block = blockIdx.x;
    if (row >= step->rows) return;
    if (block < column_blocks) {
        const int64_t at = static_cast<int64_t>(block) * blockDim.x + threadIdx.x;
        if (4 * at >= cols) return;
        const float4 v = word_of(static_cast<Format>(format), {quants, high, scales, supers}, ids[row], cols, at);
        float* to = x + row * cols + 4 * at;
        if (cols % 4 == 0) {
            *reinterpret_cast<float4*>(to) = v;
        } else {
            to[0] = v.x;
            if (4 * at + 1 < cols) to[1] = v.y;
            if (4 * at + 2 < cols) to[2] = v.z;
            if (4 * at + 3 < cols) to[3] = v.w;
        }
    } else {
        const Rotation rotation = rotations[block - column_blocks];
        int64_t position = step->position + row;
        if (rotation.chunk) position %= rotation.chunk;
        const double* frequency = reinterpret_cast<const double*>(rotation.inverse_frequency);
        float2* table = reinterpret_cast<float2*>(rotation.table) + static_cast<int64_t>(row) * rotation.pairs;
        for (int i = threadIdx.x; i < rotation.pairs; i += blockDim.x)
            table[i] = cosine_and_sine(static_cast<double>(position) * frequency[i]);
    }
}
