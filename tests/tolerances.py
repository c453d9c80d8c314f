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
# An fp8 flip is a step of 2^-3 of one element: eight times f16's share of it, and as rare.
CACHE = {"f32": EXECUTOR_FLOAT, "f16": 1e-3, "bf16": 4e-3, "q8_0": 4e-3, "fp8": 3e-2}

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

# |x - q scale| of a q15 block of one digit, as Q15_STEP; 127 steps of quotient and scale are off by 127 x 2^-23.
Q8_STEP = 0.5 / 127 * (1 + 4e-5)

# Prompts of more than 16 rows on the CPU against the exact ones, tiny random models. Integer weights: the inputs of
# gate_up and down in one digit, 128 times EXECUTOR_Q15's rounding in 3 of 7 products of a layer. BF16 weights: half a
# unit of 8 digits, on average 2^-9 of every element, in front of all 7; those of queries and keys come back multiplied
# by the scores' size. Measured, over formats, levels and three seeds: 5e-3 to 1.2e-2, and 1.9e-2 to 3.1e-2. (On
# SmolLM2 the rms is 1.4e-2 and 5e-3 of the logits' spread; TOP1 and PERPLEXITY hold.)
COARSE = {"integers": 4e-2, "BF16": 6e-2}

# CUDA kernels against float64, as shares of the sum of absolute values that an element is a sum of (cuda_oracles.py).
# rms_norm: a reciprocal root of 1.4e-7 (rsqrt.approx), half of the error of a sum that runs over at most some tens of
# additions a thread and ten between threads, two products.
CUDA_RMS_NORM = 1e-6
# attention: a handful of roundings, as in the operators' 1e-6, an exponential of 2 ulp, sums over up to hundreds of
# keys.
CUDA_ATTENTION = 2e-6
# rope as an operator: cosine, sine, one product and a fused one, rounded once each, of |a| + |b|.
CUDA_ROPE_CALL = 1.5 * 2.0**-23
# A result rounded to bfloat16: half a unit of 8 significant bits.
BF16_ROUNDING = 2.0**-8
# rope: two products and a sum, a product rounded where it is not fused.
CUDA_ROPE = 2**-23
# attention of many rows: as CUDA_ATTENTION where a float32 goes into tensor cores as two terms of f16, 22 bits. Two
# terms of bf16 leave up to 2^-18 of a query's element and of a probability: 4e-6 more. Measured: 2.2e-7 (f32, f16,
# fp8) and 3.1e-6.
CUDA_ATTENTION_PREFILL = {"f32": 2e-6, "f16": 2e-6, "fp8": 2e-6, "bf16": 6e-6, "q8_0": 6e-6}
# A cosine or sine of the CUDA rotation tables against float64, absolute: half a unit of float32 below 1, 2^-25, and
# what the angle's reduction and the series in float64 leave, below 1e-10. Measured: 2.98e-8.
CUDA_ROTATION = 2.0**-25 + 1e-10


def cuda_product(format: str, cols: int) -> float:
    """A product's roundings, each of a partial sum. A lane adds up every 32nd unit of 16 bytes: of float weights each
    column is one rounding; of integers a unit's exact sum and its scales are rounded (4; 6 where halves of a block have
    a scale each), then added, and so is what minima give. Five more across lanes. dequantize() itself rounds minima.
    Measured: up to 0.34 of it.
    """
    unit = {"F32": 4, "F16": 8, "BF16": 8, "MXFP8": 16, "Q8_0": 16}.get(format, 32)
    units = -(-cols // unit // 32)  # of a lane
    if format in ("F32", "F16", "BF16", "MXFP8"):
        return ROUNDING * (units * unit + 5)
    minimum = format in ("Q4_1", "Q5_1", "Q4_K", "Q5_K")
    return ROUNDING * (units * (2 if minimum else 1) + 5 + 6 + 3 * minimum)


def cuda_route(hidden: int, rows: int) -> float:
    """Up to 16 rows: a thread has 8 columns of each 2048, one after the other; then there are five sums between lanes
    and seven between warps. More: 32 columns one after the other, then a sum of as many such. The norm's factor has
    half of the relative error of a sum as long, and a reciprocal root; three products round. Measured: 2.7 roundings
    for 64 columns, less than 1 for 2048 and more."""
    sums = hidden / 256 + 8 + 12 if rows <= 16 else 32 + hidden / 32
    return ROUNDING * (1.5 * sums + 8)


# attention of up to 16 rows, whose sums are chains of 8 under trees, or a step of 8 keys a link: ex2.approx is off by
# 2^-22 relatively, in weights and in their sum, QK-norm's reciprocal root by 1.4e-7 of a score. Measured, with an
# exponential that is nearly exact: 1.7e-8, with QK-norm 2.9e-8, with scores in the hundreds 6.4e-8.
CUDA_ATTENTION_DECODE = 5e-7


def cuda_product_tiles(format: str, cols: int) -> float:
    """Products on tensor cores. Each activation is two numbers of 16 bits: float16, in which the largest of 32 columns
    is 2^10 .. 2^11, misses it by 2^-22 (or 2^-35 of the largest); bfloat16, which meets bfloat16 weights, by 2^-17.
    What a step of 32 columns sums up: 64 exact products, which tensor cores add by 16 and may cut off instead of
    rounding, 2 each for 8; its scales, 3; with halves or minima 8 more, a minimum's sum of x and dequantize()'s own
    rounding among them. Then the sum over steps, one each, or two.
    Measured on the virtual GPU: 2^-21.7 of the sum of absolute values, bfloat16 2^-18.1.
    """
    twice = format in ("Q4_1", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
    of_step = 8 * 2 + 3 + (8 if twice else 0)
    terms = 2.0**-17 if format == "BF16" else 2.0**-22
    return terms + ROUNDING * (of_step + -(-cols // 32) * (1 + twice))


# A prefill on a GPU against the reference, beside what the formats cost: tensor cores take activations as two terms
# of f16, 22 bits, or of bf16, 16 bits. Those move a product as EXECUTOR_Q15's 15 bits do, by less.
CUDA_PREFILL = 1e-4

# SmolLM2-135M on a GPU against the reference, both with an f16 cache, over a prompt and eight steps: 30 layers of
# activations of 15 bits (decoding) or of 22 (prefill), and keys and values that round to a neighbour, as in CACHE.
# Measured: 2.2e-3 in the prompt and 6e-4; the CPU's own: 1.5e-3.
CUDA_SMOLLM2 = 5e-3

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
