// Programmatic dependent launch: the second kernel may begin while the first runs; griddepcontrol.wait is what orders them.
#include "ptx.cuh"

#if __CUDA_ARCH__ >= 900
extern "C" __global__ void produce(float* data) {
    launch_dependents();
    data[blockIdx.x * blockDim.x + threadIdx.x] = blockIdx.x * blockDim.x + threadIdx.x;
}

extern "C" __global__ void consume(const float* data, float* out) {
    launch_dependents();
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    wait_for_predecessors();
    out[i] = 2 * data[i];
}

extern "C" __global__ void reads_too_early(const float* data, float* out) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
#ifdef BROKEN
    const float value = data[i];  // fault here
    wait_for_predecessors();
#else
    wait_for_predecessors();
    const float value = data[i];
#endif
    out[i] = 2 * value;
}

extern "C" __global__ void never_waits(const float* data, float* out) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
#ifndef BROKEN
    wait_for_predecessors();
#endif
    out[i] = 2 * data[i];  // fault here
}

// `data` is what the predecessor (`consume`) still reads.
extern "C" __global__ void writes_too_early(float* data, float* out) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
#ifdef BROKEN
    data[i] = -1;  // fault here
    wait_for_predecessors();
#else
    wait_for_predecessors();
    data[i] = -1;
#endif
    out[i] = out[i] + 1;
}

// One warp waits, the other does not.
extern "C" __global__ void one_warp_waits(const float* data, float* out) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
#ifdef BROKEN
    if (threadIdx.x < 32) wait_for_predecessors();
#else
    wait_for_predecessors();
#endif
    out[i] = 2 * data[i];  // fault here
}

// A link of the chain that does not wait: its successor waits for it, but not for the one before.
extern "C" __global__ void middle(float* unrelated) {
#ifndef BROKEN
    wait_for_predecessors();
#endif
    launch_dependents();
    unrelated[blockIdx.x * blockDim.x + threadIdx.x] = 1;
}
extern "C" __global__ void chain_broken(const float* data, float* out) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    wait_for_predecessors();
    out[i] = 2 * data[i];  // fault here
}
#endif
