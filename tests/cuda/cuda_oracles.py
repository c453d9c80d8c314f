"""What the kernels should give, in float64 from the definitions, and how far a result may lie from it.

A comparison is made element by element: |actual - value| <= tolerance * magnitude, where magnitude is the sum of the
absolute values of what the element is a sum of, so that cancellation is allowed for. The tolerances are in
tests/tolerances.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tolerances
from numpy.typing import NDArray

Array = NDArray[Any]


def check(actual: Array, value: Array, magnitude: Array, tolerance: float) -> None:
    assert actual.shape == value.shape and actual.dtype == np.float32
    error = np.abs(actual.astype(np.float64) - value) / (tolerance * magnitude + 1e-30)
    worst = float(np.where(np.isfinite(error), error, np.inf).max())
    assert worst <= 1, f"an element is off by {worst:.3g} times what is allowed"


def bf16(values: Array) -> NDArray[np.uint16]:
    """Rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def store(values: Array, format: str) -> Array:
    """As a cache of the format holds them."""
    if format == "bf16":
        return bf16(values)
    return np.ascontiguousarray(values, np.float16 if format == "f16" else np.float32)


def load(stored: Array, format: str) -> NDArray[np.float64]:
    if format == "bf16":
        return (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return stored.astype(np.float64)


def check_rms_norm(actual: Array, x: Array, weight: Array | None, eps: float) -> None:
    wide = x.astype(np.float64)
    value = wide / np.sqrt((wide * wide).mean(-1, keepdims=True) + eps)
    if weight is not None:
        value = value * weight
    check(actual, value, np.abs(value), tolerances.CUDA_RMS_NORM)


def visible(position: int, mask: str, extent: int) -> NDArray[np.int64]:
    """The keys that a query at `position` sees, straight from the definition of each mask."""
    keys = np.arange(position + 1)
    if mask == "chunked":
        return keys[keys // extent == position // extent]
    if mask == "sliding":
        return keys[position - keys < extent]
    return keys


def check_attention(
    actual: Array,
    q: Array,
    k: Array,
    v: Array,
    keys: Array,
    scale: float,
    tolerance: float = tolerances.CUDA_ATTENTION,
) -> None:
    """q [heads, head_dim], k and v [positions, kv_heads, head_dim] in float64, keys: the visible positions."""
    group = len(q) // k.shape[1]
    q, k, v = q.astype(np.float64), k[keys].repeat(group, 1), v[keys].repeat(group, 1)
    scores = np.einsum("hd,khd->hk", q, k) * scale
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    # A score's own float32 error moves its weight by as much, relatively.
    size = (np.einsum("hd,khd->hk", np.abs(q), np.abs(k)) * scale).max(-1, keepdims=True)
    magnitude = np.einsum("hk,khd->hd", weights, np.abs(v)) * (1 + size)
    check(actual, np.einsum("hk,khd->hd", weights, v), magnitude, tolerance)
