// Operations as single calls on plain arrays in device memory, for the torch operators: csrc/cpu/calls/calls.h of the CUDA side.
//
// The kernels lie in _core, the operators in _ops, which links to nothing of _core: it is handed the address of a Table of
// functions when both are loaded. Both come out of one build, and `layout` says so. Nothing here needs CUDA's headers.
//
// A call puts its launches into a stream and returns. It allocates no device memory, waits for nothing and reads nothing back, so
// that it can be captured in a graph. What lies between its launches, the caller gives as scratch.
#pragma once

#include <cstdint>

#include "program/format.h"
#include "program/instruction.h"
#include "program/route.h"

namespace llama_ext::cuda::calls {

using Pointer = uint64_t;  // in device memory; 0 is null

// How values lie in memory. Everything is computed in float32; bf16 is rounded once, when a result is written.
enum class Type : uint8_t { f32, bf16 };

// Where a call runs. Its arrays lie on this device, each on 16 bytes but where it is said; the first call on a device loads the
// kernels.
struct Place {
    int32_t device;  // an ordinal
    void* stream;    // CUstream of the device's primary context; null: the default stream
    Pointer scratch;
    uint64_t scratch_bytes;
};

// y = x / sqrt(mean(x^2) + eps) * weight
struct RmsNorm {
    Type type;  // of x and out
    Type weight_type;
    int64_t rows, n;
    float eps;
    Pointer x;       // [rows, n]
    Pointer weight;  // [n], or null: all ones
    Pointer out;     // [rows, n]
};

// Pair i of a head turned by positions[row] * inverse_frequency[i]: (2i, 2i + 1) when interleaved, else (i, i + head_dim / 2)
struct Rope {
    Type type;
    bool interleaved;
    int64_t batch, rows, heads, head_dim;
    Pointer positions;          // int64 [rows]
    Pointer inverse_frequency;  // float64 [head_dim / 2]
    Pointer x;                  // [batch, rows, heads, head_dim]
    Pointer out;                // the same
};

// out = softmax(scale q K^T over the mask's keys) V. Query r stands at first_position + r, key j at j; first_position + rows <=
// keys. head_dim is a multiple of 8 up to 256; up to 16 query heads share a key-value head.
struct Attention {
    Type type;
    int32_t heads, kv_heads, head_dim;
    int64_t rows, keys, first_position;
    Mask mask;
    float scale;
    Pointer q;  // [rows, heads, head_dim]
    Pointer k;  // [keys, kv_heads, head_dim]
    Pointer v;  // the same
    Pointer out;
};

// out = x W^T, W in a file's blocks
struct Linear {
    Type type;
    Format format;
    int64_t rows, cols, outputs;
    Pointer x;       // [rows, cols]
    Pointer weight;  // [outputs][row_bytes(format, cols)]
    Pointer out;     // [rows, outputs]
};

struct MoeRoute {
    Type type;
    int64_t rows;
    int32_t experts, top_k;
    Scoring scoring;
    Pointer logits;  // [rows, experts]
    Pointer chosen;  // int64 [rows, top_k]
    Pointer scores;  // float32 [rows, top_k]
};

// An expert that is not 0 to num_experts - 1 has no place: some of gathered and source is then not written.
struct MoeDispatch {
    Type type;
    int64_t rows, top_k, hidden, num_experts;
    Pointer x;         // [rows, hidden]
    Pointer experts;   // int64 [rows, top_k]
    Pointer scores;    // float32 [rows, top_k] or null
    Pointer gathered;  // [rows * top_k, hidden]
    Pointer offsets;   // int64 [num_experts + 1]
    Pointer source;    // int64 [rows * top_k]
};

// A choice that source lacks makes its row NaN.
struct MoeCombine {
    Type type;
    int64_t rows, top_k, hidden;
    Pointer y;       // [rows * top_k, hidden]
    Pointer source;  // int64 [rows * top_k]
    Pointer scores;  // float32 [rows, top_k] or null
    Pointer out;     // [rows, hidden]
};

// Each returns null, or the sentence that says what is wrong, which stands until the thread's next call. Kernels' faults show
// later.
template <typename Call>
struct Operation {
    // What Place::scratch_bytes must be at least; the scratch lies on 256 bytes.
    const char* (*scratch_bytes)(int32_t device, const Call* call, uint64_t* bytes);
    const char* (*run)(const Place* place, const Call* call);
};

struct Table {
    uint64_t layout;
    Operation<RmsNorm> rms_norm;
    Operation<Rope> rope;
    Operation<Attention> attention;
    Operation<Linear> linear;
    Operation<MoeRoute> moe_route;
    Operation<MoeDispatch> moe_dispatch;
    Operation<MoeCombine> moe_combine;
};

// Of a table that this header describes.
inline constexpr uint64_t kLayout = sizeof(Table) + sizeof(Place) + sizeof(RmsNorm) + sizeof(Rope) + sizeof(Attention) +
                                    sizeof(Linear) + sizeof(MoeRoute) + sizeof(MoeDispatch) + sizeof(MoeCombine);

const Table& table();  // in _core alone

}  // namespace llama_ext::cuda::calls
