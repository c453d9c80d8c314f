// Turns pairs of neighbours in place: x[2i], x[2i + 1] by the angle whose cosine and sine the table has. A thread turns one piece,
// two pairs where everything lies on 16 bytes, else one; a row's table is shared by its heads and stays in the cache.
#include "cuda/kernels/device.cuh"

namespace {

// x {x0, y0, x1, y1}, angles {cosine0, sine0, cosine1, sine1}
__device__ __forceinline__ float4 turn(float4 x, float4 angles) {
    return make_float4(x.x * angles.x - x.y * angles.y, x.x * angles.y + x.y * angles.x, x.z * angles.z - x.w * angles.w,
                       x.z * angles.w + x.w * angles.z);
}

}  // namespace

// x [rows, 4 * stride], of which each row begins with `heads` heads of `pieces` pieces, table [rows, pieces] -> x
// PRECOND: grid (rows, ceil(heads * pieces / block)), block (any); x and table on 16 bytes
extern "C" __global__ void __launch_bounds__(256) rope(float4* x, const float4* table, int64_t stride, int heads, int pieces) {
    const int at = blockIdx.y * blockDim.x + threadIdx.x;
    let_successor_start();
    wait_for_predecessor();
    if (at >= heads * pieces) return;
    const int64_t row = blockIdx.x;
    float4* const piece = x + row * stride + at;
    *piece = turn(*piece, table[row * pieces + at % pieces]);
}

// The same for any number of pairs and any float pointer: x [rows, stride], table [rows, pairs].
// PRECOND: grid (rows, ceil(heads * pairs / block)), block (any); table on 8 bytes
extern "C" __global__ void __launch_bounds__(256)
    rope_unaligned(float* x, const float2* table, int64_t stride, int heads, int pairs) {
    const int at = blockIdx.y * blockDim.x + threadIdx.x;
    let_successor_start();
    wait_for_predecessor();
    if (at >= heads * pairs) return;
    const int64_t row = blockIdx.x;
    float* const pair = x + row * stride + 2 * int64_t{at};
    const float2 angle = table[row * pairs + at % pairs];
    const float4 turned = turn(make_float4(pair[0], pair[1], 0.0f, 0.0f), make_float4(angle.x, angle.y, 0.0f, 0.0f));
    pair[0] = turned.x;
    pair[1] = turned.y;
}
