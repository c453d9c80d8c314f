// Every kernel in one translation unit: one fatbin, one module that a device loads once. It compiles in well under a minute, and
// the kernels share nothing but device.cuh and geometry.h.
#include "cuda/kernels/attention.cu"
#include "cuda/kernels/attention_append.cu"
#include "cuda/kernels/product.cu"
#include "cuda/kernels/rms_norm.cu"
