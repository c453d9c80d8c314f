"""Weights of every format, and what products with them should give: float64, from the dequantized weights and the
activations in the form that the format meets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tolerances
from cuda_oracles import bf16
from models import FLOAT_FORMATS, FORMATS, random_blocks
from numpy.typing import NDArray

from llama_ext import _core

Array = NDArray[Any]

ALL = (*FORMATS, "MXFP8")
FLOATS = (*FLOAT_FORMATS, "MXFP8")
"""Those that meet float32 activations."""
MINIMA = {"Q4_1": slice(4, None), "Q5_1": slice(4, None), "Q4_K": slice(16, None), "Q5_K": slice(16, None)}
"""Formats whose blocks have a minimum, and where the quants beside it lie."""


@dataclass
class Weights:
    format: str
    data: Array  # the format's bytes
    values: Array  # float64 [rows, cols]
    parts: Array  # of each weight, the sizes that are added up one by one

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape  # type: ignore[return-value]

    @property
    def arguments(self) -> dict[str, Any]:
        rows, cols = self.shape
        return {"format": self.format, "rows": rows, "cols": cols, "data": self.data}


def from_data(format: str, rows: int, cols: int, data: Array) -> Weights:
    data = np.ascontiguousarray(data).view(np.uint8).reshape(rows, -1)
    values = _core.Weight("w", format, rows, cols, data.reshape(-1)).dequantize().astype(np.float64)
    parts = np.abs(values)
    if format in MINIMA:
        block, size, _ = _core.formats[format]
        rest = data.reshape(rows, cols // block, size).copy()
        rest[:, :, MINIMA[format]] = 0
        minima = _core.Weight("w", format, rows, cols, rest.reshape(-1)).dequantize().astype(np.float64)
        parts = np.abs(values - minima) + np.abs(minima)
    return Weights(format, data, values, parts)


def make(format: str, rows: int, cols: int, seed: int) -> Weights:
    """Random: Gaussian, or blocks of any bits."""
    random = np.random.default_rng(seed)
    if format in FLOAT_FORMATS:
        values = random.standard_normal((rows, cols), np.float32)
        return from_data(format, rows, cols, bf16(values) if format == "BF16" else
                         values.astype(np.float16 if format == "F16" else np.float32))  # fmt: skip
    if format == "MXFP8":
        data = random.integers(0, 256, (rows, cols // 32, 33), dtype=np.uint8)
        data[data & 0x7F == 0x7F] = 0x35  # no NaN
        data[:, :, 0] = random.integers(117, 121, (rows, cols // 32))
        return from_data(format, rows, cols, data)
    return from_data(format, rows, cols, random_blocks(format, rows, cols, random))


def columns(format: str) -> tuple[int, ...]:
    """Across the tails of a unit, a warp's load, the loads under way, and several rounds of those."""
    if format in FLOAT_FORMATS:
        return (1, 30, 36, 260, 1028, 1034)
    return (256, 768, 4352) if format.endswith("K") else (32, 96, 1056, 2144)


def awkward(rows: int, cols: int, seed: int) -> Array:
    """Gaussian rows with every kind of block that quantization treats apart."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((rows, cols), np.float32)
    x[0, : cols // 2] *= 1e-35  # too small to divide by
    x[min(1, rows - 1), : min(32, cols)] = 0
    x[min(2, rows - 1), cols // 2] = 3e4
    x[min(3, rows - 1)] *= np.float32(1e-30)
    x[min(4, rows - 1)] *= np.float32(1e20)
    x[min(5, rows - 1)] = 1
    return x


def activations(format: str, x: Array, norm: Array | None, eps: float) -> tuple[Array, Array]:
    """x as it meets the weights, and how far each element may lie from that (where a norm is computed in float32)."""
    if norm is None:
        if format in FLOATS:
            return x.astype(np.float64), np.zeros(x.shape)
        integers, scales, _ = _core.testing.quantize_q15(np.ascontiguousarray(x).reshape(-1), "portable")
        meets = integers.reshape(-1, 32) * scales.astype(np.float64)[:, None]
        return meets.reshape(x.shape), np.zeros(x.shape)
    wide = x.astype(np.float64)
    wide = wide / np.sqrt((wide * wide).mean(-1, keepdims=True) + eps) * norm
    off = tolerances.CUDA_RMS_NORM * np.abs(wide)
    if format not in FLOATS:
        largest = np.abs(wide).reshape(len(x), -1, 32).max(-1)
        off += (largest * tolerances.Q15_STEP).repeat(32, 1)
    return wide, off


def product(weights: Weights, x: Array, norm: Array | None = None, eps: float = 1e-5) -> tuple[Array, Array]:
    """-> W x [len(x), rows], and a bound for each element's error"""
    meets, off = activations(weights.format, x, norm, eps)
    rounding = tolerances.cuda_product(weights.format, weights.shape[1])
    bound = off @ np.abs(weights.values).T + rounding * ((np.abs(meets) + off) @ weights.parts.T)
    return meets @ weights.values.T, bound + weights.shape[1] * 1e-37  # denormal scales


def product_tiles(weights: Weights, x: Array) -> tuple[Array, Array]:
    """The same of product_tiles, which takes x as it is."""
    wide = x.astype(np.float64)
    rounding = tolerances.cuda_product_tiles(weights.format, weights.shape[1])
    # A float16 of the smaller term may be denormal: 2^-35 of the largest of the columns that share a scale.
    rows, cols = x.shape
    padded = np.pad(np.abs(wide), ((0, 0), (0, -cols % 32))).reshape(rows, -1, 32)
    largest = padded.max(-1).repeat(32, 1)[:, :cols]
    bound = (rounding * np.abs(wide) + 2.0**-35 * largest) @ weights.parts.T
    return wide @ weights.values.T, bound + cols * 1e-37  # denormal scales


def silu_times_up(value: Array, bound: Array) -> tuple[Array, Array]:
    """Of rows that are gate's and up's in turn. SiLU's slope is at most 1.1; the exponential is off by 2 ulp."""
    gate, up = value[:, ::2], value[:, 1::2]
    gate_off, up_off = bound[:, ::2], bound[:, 1::2]
    with np.errstate(over="ignore"):
        silu = gate / (1 + np.exp(-gate))
    result = silu * up
    off = 1.1 * gate_off * (np.abs(up) + up_off) + np.abs(silu) * up_off
    return result, off + 8 * tolerances.ROUNDING * (np.abs(result) + off) + 1e-37


def rotate(value: Array, bound: Array, table: Array, rotated: int) -> tuple[Array, Array]:
    """table [rows, pairs, 2]: the first `rotated` columns, a head of 2 * pairs after the other"""
    pairs = table.shape[1]
    heads = rotated // (2 * pairs)
    cosine, sine = (table[: len(value), :, i].astype(np.float64)[:, None] for i in range(2))
    of = value[:, :rotated].reshape(len(value), heads, pairs, 2)
    off = bound[:, :rotated].reshape(of.shape)
    turned = np.stack([of[..., 0] * cosine - of[..., 1] * sine, of[..., 0] * sine + of[..., 1] * cosine], -1)
    size = np.abs(of) + off
    both = (
        np.abs(cosine) * off[..., 0] + np.abs(sine) * off[..., 1],
        np.abs(sine) * off[..., 0] + np.abs(cosine) * off[..., 1],
    )
    wide = np.stack(both, -1) + 3 * tolerances.ROUNDING * size.sum(-1, keepdims=True)
    result, result_off = value.copy(), bound.copy()
    result[:, :rotated] = turned.reshape(len(value), -1)
    result_off[:, :rotated] = wide.reshape(len(value), -1)
    return result, result_off


def add(value: Array, bound: Array, start: Array) -> tuple[Array, Array]:
    return value + start, bound + tolerances.ROUNDING * (np.abs(value) + np.abs(start) + bound)


def check(actual: Array, expected: tuple[Array, Array]) -> None:
    value, bound = expected
    assert actual.shape == value.shape and actual.dtype == np.float32
    error = np.abs(actual.astype(np.float64) - value) / bound
    worst = float(np.where(np.isfinite(error), error, np.inf).max())
    assert worst <= 1, f"an element is off by {worst:.3g} times what is allowed"
