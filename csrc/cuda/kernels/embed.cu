// The first launch of a step: a row of the embedding a token, and the step's rotation tables.
//
// Angles are float64: position times inverse frequency, in turns (1 / 2 pi as two numbers, so that nothing is lost at a position
// of ten millions), less the nearest whole turn. What remains is below half a turn, and float32 takes its cosine and sine.
#include "cuda/kernels/dequantize.cuh"
#include "cuda/kernels/device.cuh"
#include "cuda/kernels/step.h"

namespace {

using namespace llama_ext::cuda;

constexpr double kTurns = 0.15915494309189535;         // 1 / (2 pi), rounded
constexpr double kTurnsRest = -9.839338337554554e-18;  // and what that leaves

__device__ __forceinline__ float2 cosine_sine(double position, double inverse_frequency) {
    const double angle = position * inverse_frequency;
    const double turns = angle * kTurns;
    const double rest = fma(angle, kTurns, -turns) + angle * kTurnsRest;
    const double part = (turns - rint(turns)) + rest;  // in about -0.5 .. 0.5
    float2 both;
    sincospif(static_cast<float>(2.0 * part), &both.y, &both.x);
    return both;
}

}  // namespace

// table: a packed matrix of `rows` rows (packed.h) with `quants_row` ... `supers_row` bytes a row in each plane;
// ids [max_rows], step [1], rotations [rotation_count] -> x [max_rows, cols], and the tables that rotations name
// PRECOND: grid (max_rows + rotation_count), block (a multiple of 32); 0 <= id < rows
extern "C" __global__ void __launch_bounds__(256)
    embed(const unsigned char* table, int format, int64_t cols, int64_t high, int64_t scales, int64_t supers, int64_t quants_row,
          int64_t high_row, int64_t scales_row, int64_t supers_row, const int32_t* ids, const Step* step, float* x, int max_rows,
          const Rotation* rotations) {
    let_successor_start();
    wait_for_predecessor();
    const int rows = step->rows;
    const int block = static_cast<int>(blockIdx.x);
    if (block < max_rows) {
        if (block >= rows) return;
        const int64_t id = ids[block];
        const PackedRow row{table + id * quants_row, table + high + id * high_row, table + scales + id * scales_row,
                            table + supers + id * supers_row};
        for (int64_t col = threadIdx.x; col < cols; col += blockDim.x) x[block * cols + col] = weight_at(format, row, col);
        return;
    }
    const Rotation rotation = rotations[block - max_rows];
    const double* const inverse_frequency = reinterpret_cast<const double*>(rotation.inverse_frequency);
    float2* const to = reinterpret_cast<float2*>(rotation.table);
    for (int i = threadIdx.x; i < rows * rotation.pairs; i += blockDim.x) {
        const int64_t position = step->position + i / rotation.pairs;
        const int64_t counted = rotation.chunk ? position % rotation.chunk : position;
        to[i] = cosine_sine(static_cast<double>(counted), inverse_frequency[i % rotation.pairs]);
    }
}
