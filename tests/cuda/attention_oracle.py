"""Attention and the formats of its cache in float64, from the definitions in program/instruction.h and program/program.h."""

from __future__ import annotations

from typing import Any

import numpy as np
import tolerances
from cuda_oracles import bf16, check_attention
from cuda_worker import Remote
from numpy.typing import NDArray

Array = NDArray[Any]


def _e4m3_values() -> NDArray[np.float64]:
    """Of the bytes 0 to 0x7e."""
    byte = np.arange(0x7F)
    exponent, fraction = byte >> 3, byte & 7
    return np.where(exponent == 0, fraction / 8 * 2.0**-6, (1 + fraction / 8) * 2.0 ** (exponent - 7))


E4M3 = _e4m3_values()


def e4m3(values: Array) -> NDArray[np.uint8]:
    """The nearest value of the table, ties to the even byte; a NaN is 0x7f."""
    size = np.minimum(np.abs(values.astype(np.float64)), 448)
    above = np.clip(np.searchsorted(E4M3, size), 1, 0x7E)
    up, down = E4M3[above] - size, size - E4M3[above - 1]
    byte = np.where((up < down) | ((up == down) & (above % 2 == 0)), above, above - 1)
    byte = np.where(np.isnan(values), 0x7F, byte)
    return (byte | np.where(np.signbit(values), 0x80, 0)).astype(np.uint8)


def store(values: Array, format: str) -> list[Array]:
    """[..., head_dim] as a cache of the format holds it: its elements, and for q8_0 its scales [..., head_dim / 32]."""
    values = np.ascontiguousarray(values, np.float32)
    if format == "q8_0":
        blocks = values.reshape(*values.shape[:-1], values.shape[-1] // 32, 32)
        largest = np.abs(blocks).max(-1)
        with np.errstate(divide="ignore", over="ignore"):
            to_int = np.where(largest < 1e-30, np.float32(0), np.float32(127) / largest)
        elements = np.rint(blocks * to_int[..., None]).astype(np.int8)
        return [elements.reshape(values.shape), (largest / np.float32(127)).astype(np.float16)]
    if format == "bf16":
        return [bf16(values)]
    with np.errstate(over="ignore"):
        return [e4m3(values) if format == "fp8" else values.astype(np.float16 if format == "f16" else np.float32)]


def load(planes: list[Array], format: str) -> NDArray[np.float64]:
    elements = planes[0]
    if format == "q8_0":
        blocks = elements.reshape(*elements.shape[:-1], -1, 32).astype(np.float64)
        return (blocks * planes[1].astype(np.float64)[..., None]).reshape(elements.shape)
    if format == "bf16":
        return (elements.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if format == "fp8":
        table = np.concatenate([E4M3, [np.nan]])
        wide: NDArray[np.float64] = table[elements & 0x7F] * np.where(elements & 0x80, -1.0, 1.0)
        return wide
    return elements.astype(np.float64)


def normed(values: Array, eps: float) -> NDArray[np.float64]:
    wide = values.astype(np.float64)
    result: NDArray[np.float64] = wide / np.sqrt((wide * wide).mean(-1, keepdims=True) + eps)
    return result


class Case:
    """A sequence whose cache holds its positions up to a first step's, in the format, and the arguments of a call."""

    def __init__(
        self,
        *,
        position: int,
        rows: int = 1,
        steps: int = 1,
        heads: int = 2,
        kv_heads: int = 1,
        head_dim: int = 64,
        format: str = "f32",
        capacity: int | None = None,
        splits: int = 3,
        mask: tuple[str, int] = ("global", 0),
        start: int = 0,
        max_rows: int = 16,
        qk_norm: bool = False,
        temperature: tuple[float, int] = (0.0, 0),
        size: float = 1.0,
        seed: int = 0,
    ) -> None:
        random = np.random.default_rng(seed + position)
        self.format, self.heads, self.kv_heads, self.head_dim = format, heads, kv_heads, head_dim
        self.position, self.rows, self.mask, self.start = position, rows, mask, start
        self.capacity = capacity or position - start + rows * steps
        self.scale, self.qk_norm, self.eps = head_dim**-0.5, qk_norm, 1e-5
        self.temperature_scale, self.temperature_floor = temperature
        # What came before, as far as the cache remembers it.
        past = np.arange(max(start, position - self.capacity), position)
        self.held = np.zeros(self.capacity, bool)
        self.held[past % self.capacity] = True
        self.planes: list[Array] = [np.empty(0)] * (4 if format == "q8_0" else 2)
        for which in range(2):
            values = random.standard_normal((kv_heads, len(past), head_dim), np.float32)
            for i, stored in enumerate(store(values, format)):
                plane = np.empty((kv_heads, self.capacity, stored.shape[-1]), stored.dtype)
                plane.view(np.uint8).fill(0xFF)
                plane[:, past % self.capacity] = stored
                self.planes[2 * i + which] = plane
        width = (heads + 2 * kv_heads) * head_dim
        qkv = random.standard_normal((rows * steps, width), np.float32)
        qkv[:, : heads * head_dim] *= size
        self.qkv = qkv
        self.arguments: dict[str, Any] = {
            "steps": [(position + i * rows, qkv[i * rows : (i + 1) * rows]) for i in range(steps)],
            "planes": self.planes,
            "held": None,
            "format": format,
            "heads": heads,
            "kv_heads": kv_heads,
            "head_dim": head_dim,
            "max_rows": max_rows,
            "splits": splits,
            "mask": mask,
            "scale": self.scale,
            "start": start,
            "qk_norm": qk_norm,
            "qk_norm_eps": self.eps,
            "temperature_scale": self.temperature_scale,
            "temperature_floor": self.temperature_floor,
        }

    def parts(self, qkv: Array) -> tuple[Array, Array, Array]:
        """q [heads, head_dim], k, v [kv_heads, head_dim] of a row."""
        of_head = qkv.reshape(-1, self.head_dim)
        return of_head[: self.heads], of_head[self.heads : -self.kv_heads], of_head[-self.kv_heads :]

    def check_appended(self, before: list[Array], after: list[Array], position: int, rows: Array) -> None:
        """The rows' slots hold their keys and values, to the bit; no other slot has changed."""
        expected = [plane.copy() for plane in before]
        for i, row in enumerate(rows):
            slot = (position + i) % self.capacity
            _, k, v = self.parts(row)
            for which, values in enumerate((k, v)):
                if which == 0 and self.qk_norm:
                    self.check_normed_key([plane[:, slot] for plane in after[::2]], k)
                    for plane, found in zip(expected[::2], after[::2], strict=True):
                        plane[:, slot] = found[:, slot]
                else:
                    for plane, stored in zip(expected[which::2], store(values, self.format), strict=True):
                        plane[:, slot] = stored
        for found, plane in zip(after, expected, strict=True):
            assert found.tobytes() == plane.tobytes()

    def check_normed_key(self, stored: list[Array], k: Array) -> None:
        """A value between two of the format may be rounded to either: what is stored is what a value near it becomes."""
        exact, found = normed(k, self.eps), load(stored, self.format)
        if self.format == "q8_0":  # half an integer, and half a unit of the scale
            largest = np.abs(exact).reshape(len(exact), -1, 32).max(-1).repeat(32, -1)
            assert (np.abs(found - exact) <= 0.501 / 127 * largest + 2.0**-11 * np.abs(exact)).all()
            return
        error = tolerances.CUDA_RMS_NORM
        one, other = (load(store(exact * factor, self.format), self.format) for factor in (1 - error, 1 + error))
        assert (found >= np.minimum(one, other)).all() and (found <= np.maximum(one, other)).all()

    def check_row(self, out: Array, planes: list[Array], position: int, row: Array) -> None:
        q = self.parts(row)[0].astype(np.float64)
        if self.qk_norm:
            q = normed(q, self.eps)
        if self.temperature_scale:
            q = q * (np.log(np.floor((position + 1) / self.temperature_floor) + 1) * self.temperature_scale + 1)
        first = max(self.start, position - 2 * self.capacity)
        keys = first + visible_from(position, first, self.mask)
        k, v = (load([plane[:, keys % self.capacity] for plane in planes[which::2]], self.format) for which in range(2))
        check_attention(out, q, k.transpose(1, 0, 2), v.transpose(1, 0, 2), np.arange(len(keys)), self.scale)

    def check(self, results: list[tuple[Array, list[Array]]]) -> None:
        before = self.planes
        for (position, rows), (out, after) in zip(self.arguments["steps"], results, strict=True):
            if after:
                self.check_appended(before, after, position, rows)
            else:  # what the cache must hold now
                after = [plane.copy() for plane in before]
                for i, row in enumerate(rows):
                    for which, values in enumerate(self.parts(row)[1:]):
                        for plane, stored in zip(after[which::2], store(values, self.format), strict=True):
                            plane[:, (position + i) % self.capacity] = stored
            for i, row in enumerate(rows):
                self.check_row(out[i], after, position + i, row)
            before = after

    def run(
        self, card: Remote, seed: int = 0, captured: bool = False, unwritten: bool = False
    ) -> list[tuple[Array, list[Array]]]:
        """Each step, checked. unwritten: slots without a position were never written; else they are NaN."""
        arguments = {**self.arguments, "held": self.held if unwritten else None}
        results: list[tuple[Array, list[Array]]] = card.call(
            "cases_attention.attention", seed, captured=captured, **arguments
        )
        self.check(results)
        return results


def visible_from(position: int, first: int, mask: tuple[str, int]) -> NDArray[np.int64]:
    """The keys from `first` on that a query sees, counted from it, straight from the definition of each mask."""
    kind, extent = mask
    keys = np.arange(first, position + 1)
    if kind == "chunked":
        keys = keys[keys // extent == position // extent]
    if kind == "sliding":
        keys = keys[position - keys < extent]
    return keys - first
