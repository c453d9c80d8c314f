// Kernels that say themselves that something is wrong.
#include <cassert>

extern "C" __global__ void trapped(const int* in, int* out) {
#ifdef BROKEN
    if (in[threadIdx.x] == 40) __trap();  // fault here
#endif
    out[threadIdx.x] = in[threadIdx.x];
}

extern "C" __global__ void asserted(const int* in, int* out) {
#ifdef BROKEN
    assert(in[threadIdx.x] != 40);  // fault here
#else
    assert(in[threadIdx.x] != 64);
#endif
    out[threadIdx.x] = in[threadIdx.x];
}
