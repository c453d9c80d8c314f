"""What the operators should give: float64 definitions, and how far a result may lie from them.

The tolerances stand here and nowhere else. Every comparison has an expected value and, element by element, a
bound:

    bound = FLOAT32 * magnitude + (one rounding of the result to its dtype)

where `magnitude` is the sum of the absolute values that the element is a sum of: cancellation is allowed for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import gguf
import numpy as np
import torch
from torch import Tensor

# A handful of float32 roundings (2^-24 each) of a value or of the terms of a sum.
FLOAT32 = 1e-6
# Half a unit in the last place: 8 significant bits.
BFLOAT16 = 2.0**-8
# Half the step of activations that meet integer weights, in units of the largest of a block of 32.
Q15 = 1 / (2 * 16319)

DTYPES = (torch.float32, torch.bfloat16)
FLOAT_FORMATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# name: (weights a block, bytes a block, offsets of the f16 scales)
BLOCK_FORMATS = {
    "Q8_0": (32, 34, (0,)),
    "Q4_0": (32, 18, (0,)),
    "Q4_1": (32, 20, (0, 2)),
    "Q5_0": (32, 22, (0,)),
    "Q5_1": (32, 24, (0, 2)),
    "Q4_K": (256, 144, (0, 2)),
    "Q5_K": (256, 176, (0, 2)),
    "Q6_K": (256, 210, (208,)),
}
FORMATS = (*FLOAT_FORMATS, *BLOCK_FORMATS)


@dataclass(frozen=True)
class Expected:
    value: Tensor  # float64
    magnitude: Tensor  # broadcasts against value; its float32 error is FLOAT32 times this
    extra: Tensor | float = 0.0  # error that has nothing to do with float32


def excess(actual: Tensor, expected: Expected, dtype: torch.dtype) -> float:
    """The largest error in units of what is allowed; above 1 (or inf, for a NaN) is wrong."""
    assert actual.dtype == dtype
    assert actual.shape == expected.value.shape
    if actual.numel() == 0:
        return 0.0
    bound = FLOAT32 * expected.magnitude + expected.extra
    if dtype == torch.bfloat16:
        bound = bound + BFLOAT16 * (expected.value.abs() + bound)
    ratio = (actual.double() - expected.value).abs() / (bound + 1e-30)
    return float(torch.where(ratio.isfinite(), ratio, math.inf).max())


def check(actual: Tensor, expected: Expected, dtype: torch.dtype) -> None:
    worst = excess(actual, expected, dtype)
    assert worst <= 1, f"an element is off by {worst:.3g} times what is allowed"


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Expected:
    x = x.double()
    value = x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)
    if weight is not None:
        value = value * weight.double()
    return Expected(value, value.abs())


def rope(x: Tensor, positions: Tensor, inverse_frequency: Tensor, interleaved: bool) -> Expected:
    x = x.double()
    angle = (positions.double()[:, None] * inverse_frequency)[:, None, :]
    half = x.shape[-1] // 2
    first = slice(0, None, 2) if interleaved else slice(0, half)
    second = slice(1, None, 2) if interleaved else slice(half, None)
    a, b = x[..., first], x[..., second]
    value, magnitude = torch.empty_like(x), torch.empty_like(x)
    value[..., first] = a * angle.cos() - b * angle.sin()
    value[..., second] = a * angle.sin() + b * angle.cos()
    magnitude[..., first] = magnitude[..., second] = a.abs() + b.abs()
    return Expected(value, magnitude)


def visible(rows: int, keys: int, first_position: int, mask: str, extent: int) -> Tensor:
    """[rows, keys] bool, straight from the definition of each mask."""
    position = torch.arange(first_position, first_position + rows)[:, None]
    key = torch.arange(keys)[None, :]
    seen = key <= position
    if mask == "chunked":
        seen &= key // extent == position // extent
    elif mask == "sliding":
        seen &= position - key < extent
    return seen


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    first_position: int,
    mask: str,
    extent: int = 0,
    scale: float | None = None,
) -> Expected:
    group = q.shape[1] // k.shape[1]
    q, k, v = q.double(), k.double().repeat_interleave(group, 1), v.double().repeat_interleave(group, 1)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    seen = visible(q.shape[0], k.shape[0], first_position, mask, extent)[None]  # a head first
    scores = torch.einsum("rhd,khd->hrk", q, k) * factor
    weights = torch.softmax(torch.where(seen, scores, -math.inf), -1)
    # A score's own float32 error moves its weight by as much, relatively.
    size = torch.where(seen, torch.einsum("rhd,khd->hrk", q.abs(), k.abs()) * abs(factor), 0).amax(-1)
    value = torch.einsum("hrk,khd->rhd", weights, v)
    magnitude = torch.einsum("hrk,khd->rhd", weights, v.abs()) * (1 + size.T[..., None])
    return Expected(value, magnitude)


def random_weight(format: str, n: int, k: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight as `linear` takes it (random bytes with sane scales), and what it stands for, in float64."""
    if format in FLOAT_FORMATS:
        weight = normal(n, k, dtype=FLOAT_FORMATS[format], seed=seed)
        return weight, weight.double()
    per_block, block_bytes, scales = BLOCK_FORMATS[format]
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (n, k // per_block, block_bytes), np.uint8)
    for offset in scales:
        values = random.uniform(-0.1, 0.1, (n, k // per_block, 1)).astype(np.float16)
        blocks[..., offset : offset + 2] = values.view(np.uint8)
    raw = blocks.reshape(n, -1)
    values = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[format])
    return torch.from_numpy(raw), torch.from_numpy(np.asarray(values)).double().reshape(n, k)


def linear(x: Tensor, values: Tensor, format: str) -> Expected:
    """values: [n, k] float64, the weights dequantized."""
    x = x.double()
    n, k = values.shape
    value = x @ values.T
    if format in FLOAT_FORMATS:
        # One lane adds k products in a row; their roundings are random, so they grow as sqrt(k).
        return Expected(value, x.abs() @ values.abs().T * (1 + math.sqrt(k) / 8))
    # Half a step at the most; as the halves point either way, six standard deviations of a sum are less.
    step = 2 * Q15 * x.unflatten(-1, (k // 32, 32)).abs().amax(-1)
    blocks = values.reshape(n, k // 32, 32)
    worst = step / 2 @ blocks.abs().sum(-1).T
    usual = 6 * torch.sqrt(step.square() / 12 @ blocks.square().sum(-1).T)
    # A weight is itself a difference of larger numbers where a format has minima.
    parts = 4 * blocks.abs().amax(-1).repeat_interleave(32, 1)
    return Expected(value, x.abs() @ parts.T, torch.minimum(worst, usual))


def moe_route(logits: Tensor, top_k: int, scoring: str) -> tuple[Tensor, Expected]:
    """A stable sort keeps equals in the order of their indices."""
    in_order = logits.double().sort(dim=1, descending=True, stable=True)
    chosen = in_order.values[:, :top_k]
    value = chosen.sigmoid() if scoring == "sigmoid" else chosen.softmax(1)
    return in_order.indices[:, :top_k], Expected(value, value, 2.0**-149)  # float32's smallest step


def moe_dispatch(x: Tensor, experts: Tensor, num_experts: int, scores: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(gathered, offsets, source), exactly: nothing is computed but one product, rounded once."""
    choices = experts.reshape(-1)
    source = choices.argsort(stable=True)
    offsets = torch.cat((torch.zeros(1, dtype=torch.int64), choices.bincount(minlength=num_experts).cumsum(0)))
    gathered = x[source // experts.shape[1]]
    if scores is not None:
        gathered = (gathered.float() * scores.reshape(-1)[source, None]).to(x.dtype)
    return gathered, offsets, source


def moe_combine(y: Tensor, source: Tensor, rows: int, scores: Tensor | None) -> Expected:
    top_k = len(y) // rows
    factor = torch.ones(len(y), dtype=torch.float64) if scores is None else scores.double().reshape(-1)[source]
    terms, row = y.double() * factor[:, None], source // top_k
    zeros = torch.zeros(rows, y.shape[1], dtype=torch.float64)
    # A sum of top_k terms in a row: its roundings are random, so they grow as the root.
    magnitude = zeros.index_add(0, row, terms.abs()) * (1 + math.sqrt(top_k) / 8)
    return Expected(zeros.index_add(0, row, terms), magnitude)
