// y = a x + y, and the sum of an array: a block at a time, then the blocks' sums by one more block.
// With -DFORGET_BARRIER the sum has a mistake that a GPU may let pass.

extern "C" __global__ void saxpy(float a, const float* x, float* y, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i] + y[i];
}

// x [n] -> sums [gridDim.x]; blockDim.x is a power of 2, the dynamic shared memory blockDim.x floats
extern "C" __global__ void block_sum(const float* x, float* sums, int n) {
    extern __shared__ float part[];
    float sum = 0.0f;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += x[i];
    part[threadIdx.x] = sum;
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
#ifndef FORGET_BARRIER
        __syncthreads();
#endif
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = part[0];
}
