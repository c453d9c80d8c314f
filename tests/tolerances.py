"""How far apart two computations of the same thing may lie, and why. The one table of the test suite.

All are shares of the largest magnitude of what is expected (`models.deviation`), unless they say otherwise. float32
rounds to 2^-24 = 6e-8; a sum of n terms in some order is off by about sqrt(n) roundings of its largest partial sum;
a layer adds two such results to the residual stream, and softmax multiplies a score's error by the score's size.
"""

# Reference (float32) against float64 or against itself in other steps, on models of 3 or 4 layers and sums of up to
# a few hundred terms: 4 layers x 4 products x sqrt(64) x 6e-8 = 8e-6, times 2.5 for the scores. Measured: 6e-7 to
# 2.6e-6.
REFERENCE = 2e-5

# CPU executor with float weights and a float32 cache against the reference: the same arithmetic in another order,
# and an exponential of 2 ulp. Measured, over all variants, formats and SIMD levels: 9e-7 to 3.3e-6.
EXECUTOR_FLOAT = 1e-5

# Keys and values in 16 bits, on both sides: float32 noise lets one in a few thousand round to its neighbour, 2^-10
# (f16) or 2^-7 (bf16) of one element away, one of the many in a weighted sum. Measured: up to 4.3e-4 (f16) and
# 2.2e-4 (bf16, whose flips are rarer and whose steps are eight times as large).
# In q8_0 a flip is a step of 1/127 of its block's largest magnitude, as large as bf16's 2^-7, but of small elements
# too. Measured, over shapes, masks, levels and seeds: up to 1.4e-3.
CACHE = {"f32": EXECUTOR_FLOAT, "f16": 1e-3, "bf16": 4e-3, "q8_0": 4e-3}

# Weights that meet activations of 15 bits (q15): |x - q| <= max|block| / 16319 / 2 = 3.1e-5 of the block's largest
# value, uniform, for a random block of 32 about 4e-5 of the values' rms. A product keeps that share; 7 products a
# layer over 3 layers add up as sqrt(21) to 2e-4 of the logits' rms, and the worst of some thousands lies at 4 sigma
# on a scale of 4 sigma. Measured, over all formats, levels and three seeds: 7e-5 to 1.3e-4.
EXECUTOR_Q15 = 5e-4

# transformers in float32 against either of ours: as REFERENCE, with its own order of everything. Measured: 1.3e-6
# to 4.7e-6; over the whole family (tests/family) 5e-7 to 2.5e-6.
ORACLE = 1e-4

# Real model (30 layers, Q4_1, f16 cache) against transformers in float32, on 1,100 tokens of English.
PERPLEXITY = 0.005  # relative. Measured: 0.00004
TOP1 = 0.97  # share of positions with the same best token. Measured: 0.998

# The same with a q8_0 cache. A uniform error of 1/127 of a block's largest value, some 2.5 times the typical one, has a
# size of 2.5 / 127 / sqrt(12) = 0.6% of it, four times bf16's; so is what it does to the logits: 1.2% of their spread
# against bf16's 0.28%. The bound of the perplexity holds for it too. Measured: 0.001 and 0.980; the worst token's
# likelihood 0.24 nats (bf16: 0.05).
TOP1_Q8_0 = 0.96
WORST_NATS_Q8_0 = 0.6

# One product y = W x in float32 against float64, in units of 2^-24 sum |w x|: cols + 4 roundings at the most (each
# partial sum once, the product where it is not fused, the scale's).
ROUNDING = 2.0**-24
# |x - q scale| of q15, as a share of its block's largest magnitude: half a step, and the roundings of scale and
# quotient, which move a value of 16319 steps by at most 16319 x 2^-23 = 0.002 of a step.
Q15_STEP = 0.5 / 16319 * (1 + 4e-3)

# CUDA kernels against float64, as shares of the sum of absolute values that an element is a sum of (cuda_oracles.py).
# rms_norm: a reciprocal root of 1.4e-7 (rsqrt.approx), half of the error of a sum that runs over at most some tens of
# additions a thread and ten between threads, two products.
CUDA_RMS_NORM = 1e-6
# attention: a handful of roundings, as in the operators' 1e-6, an exponential of 2 ulp, sums over up to hundreds of
# keys.
CUDA_ATTENTION = 2e-6
# A cosine or sine of the CUDA rotation tables against float64, absolute: half a unit of float32 below 1, 2^-25, and what the
# angle's reduction and the series in float64 leave, below 1e-10. Measured: 2.98e-8.
CUDA_ROTATION = 2.0**-25 + 1e-10


def cuda_product(cols: int) -> float:
    """A lane has two chains of 4 for each 256 columns, the last of them begun; then it adds the two, five times across
    lanes, and the residual."""
    return ROUNDING * (cols / 64 + 4 + 7)


# One layer's mixture of experts out of the torch operators against transformers' block in float32: three products of
# some tens of terms one after the other, then a sum over the choices. Measured, over four seeds: 1.4e-7 to 6.0e-7.
MOE_BLOCK = 2e-6

# Squared error of a K quantization as a multiple of ggml's own (no importance matrix), over a matrix. Measured, over
# the distributions of the test: Q4_K 0.71 to 1.001, Q5_K 0.42 to 0.98, Q6_K 0.87 to 1.0001.
QUANTIZE_AGAINST_GGML = 1.01
# Root mean square error of quantized Gaussian weights as a share of their own: what rounding to even steps over a
# sub-block's range leaves, step / sqrt(12). 32 of them span 4.1 deviations on the average, which Q4_K divides by 15
# and Q5_K by 31; the largest of 16 magnitudes is 2.07 and Q6_K's 32. A search for scales must do better. Measured:
# 0.0702, 0.0348, 0.0175.
QUANTIZE_ERROR = {"Q4_K": 0.079, "Q5_K": 0.0383, "Q6_K": 0.0187}

# llama.cpp in float32 (weights, keys and values) on a file of ours against transformers: as REFERENCE,
# on models of 2 layers. Measured: 2.3e-7 to 3.7e-7; rows of k of one layer in another order are off by 8e-4
# and more.
LLAMA_CPP = 1e-5

# A rotation frequency of transformers, float32, against ours in float64, relative: the power's exponent is off by half
# a unit of 2^-24, times ln(theta) = 13 for 500,000, and a blend of two such adds as much again. Measured, with the
# factors of Llama 3.1 and 3.2: 4.1e-7.
ROTATION_TABLE = 2e-6
