"""The operators' kernels with exactly one barrier or bound taken out: the virtual GPU reports each, at a line of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_oracles import bf16
from cuda_worker import Remote
from mutation import BARRIER, BOUND, Mutation, check_reported

Run = tuple[str, dict[str, Any]]


def repack(format: str, rows: int, cols: int, size: int) -> Run:
    data = np.arange(rows * size, dtype=np.uint8)
    return "cases_calls.repack", {"format": format, "rows": rows, "cols": cols, "data": data}


def planned(operation: str, arrays: dict[str, np.ndarray], out: int, **call: Any) -> Run:
    return "cases_calls.planned", {"operation": operation, "arrays": arrays, "out": out, "call": call}


def rms_norm() -> Run:
    call = {"type": "bf16", "weight_type": "f32", "rows": 1, "n": 21, "eps": 1e-5, "weight": None}
    return planned("rms_norm", {"x": bf16(np.ones((1, 21)))}, 42, **call)


def rope() -> Run:
    arrays = {"x": np.ones((1, 3, 5, 6), np.float32), "positions": np.arange(3), "inverse_frequency": np.ones(3)}
    call = {"type": "f32", "interleaved": False, "batch": 1, "rows": 3, "heads": 5, "head_dim": 6}
    return planned("rope", arrays, 360, **call)


def attention(type: str) -> Run:
    drawn = np.random.default_rng(1).standard_normal((9, 2, 24), np.float32)
    x = drawn if type == "f32" else bf16(drawn)
    call = {"type": type, "heads": 2, "kv_heads": 2, "head_dim": 24, "rows": 9, "keys": 9, "first_position": 0,
            "mask": ("global", 0), "scale": 0.2}  # fmt: skip
    return planned("attention", {"q": x, "k": x, "v": x}, x.nbytes, **call)


NO_MORE = "    if (block >= blocks) return;\n"

BARRIERS = [Mutation("staged", "repack.cu", "    __syncthreads();\n", "", repack("Q6_K", 3, 256, 210))]
BOUNDS = [
    Mutation("bytes", "repack.cu", NO_MORE, "", repack("Q8_0", 5, 32, 34), places=4),
    Mutation("nibbles", "repack.cu", NO_MORE, "", repack("Q5_1", 5, 32, 24), which=1, places=4),
    Mutation("k", "repack.cu", NO_MORE, "", repack("Q4_K", 5, 256, 144), which=2, places=4),
    Mutation("q6_k", "repack.cu", NO_MORE, "", repack("Q6_K", 5, 256, 210), which=3, places=4),
    Mutation("source_end", "repack.cu", "if (first + at + 16 <= all)", "if (true)", repack("Q4_0", 5, 32, 18)),
    Mutation("float_pieces", "repack.cu", "    if (at >= rows * pieces) return;\n", "", repack("F32", 3, 5, 20)),
    Mutation("float_tail", "repack.cu", "col + i < cols ?", "true ?", repack("F16", 3, 5, 10)),
    Mutation("widened", "convert.cu", "if (at + kConvertEach <= n)", "if (at < n)", rms_norm(), places=2),
    Mutation("narrowed", "convert.cu", "if (at + kConvertEach <= n)", "if (at < n)", rms_norm(), which=1, places=2),
    Mutation("turned", "rope_call.cu", "    if (at >= count) return;\n", "", rope()),
    Mutation("angles", "rope_call.cu", "    if (at >= rows * pairs) return;\n", "", rope()),
    Mutation("cache", "call.cu", "    if (at >= keys * heads * pieces) return;\n", "", attention("f32")),
    Mutation("rows_f32", "call.cu", "    if (at < rows * pieces) y", "    y", attention("f32")),
    Mutation("rows_bf16", "call.cu", "    if (at >= rows * pieces) return;\n", "", attention("bf16")),
]  # fmt: skip


@pytest.mark.parametrize("mutation", BARRIERS, ids=lambda m: m.name)
def test_a_missing_barrier(mutation: Mutation, card_of: Callable[[str], Remote], nvcc: str, tmp_path: Path) -> None:
    check_reported(mutation, BARRIER, card_of, nvcc, tmp_path)


@pytest.mark.parametrize("mutation", BOUNDS, ids=lambda m: m.name)
def test_a_missing_bound(mutation: Mutation, card_of: Callable[[str], Remote], nvcc: str, tmp_path: Path) -> None:
    check_reported(mutation, BOUND, card_of, nvcc, tmp_path)
