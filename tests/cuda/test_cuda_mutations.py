"""Kernels with exactly one barrier, bound or initialisation taken out: the virtual GPU reports each, at a line of it.

What this shows is that the runs of these tests would not have passed without it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_oracles import bf16
from cuda_worker import Remote
from mutation import BARRIER, BOUND, INITIALISATION, Mutation, check_reported


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def rms_norm(n: int) -> tuple[str, dict[str, Any]]:
    return "rms_norm", {"x": normal(1, n), "weight": normal(n), "eps": 1e-5}


def product(rows: int, cols: int) -> tuple[str, dict[str, Any]]:
    return "product", {"weight": bf16(normal(rows, cols)), "x": normal(cols), "residual": None}
def attention(position: int, **changes: Any) -> tuple[str, dict[str, Any]]:
    """One head of 64 or more, float32, one split unless told."""
    head_dim, heads, capacity = (
        changes.pop(name, default) for name, default in (("head_dim", 64), ("heads", 1), ("capacity", 0))
    )
    k, v = normal(position + 1, 1, head_dim), normal(position + 1, 1, head_dim) + 1
    return "attention", {
        "steps": [(position, normal(heads, head_dim), k[position], v[position])],
        "past_k": store(k[:position], "f32"),
        "past_v": store(v[:position], "f32"),
        "format": "f32",
        "capacity": capacity or position + 1,
        "splits": 1,
        "mask": ("global", 0),
        "scale": 0.125,
        **changes,
    }


def append(head_dim: int) -> tuple[str, dict[str, Any]]:
    return "append", {"k": normal(1, head_dim), "v": normal(1, head_dim), "at": 6, "format": "f32", "capacity": 7}


BARRIERS = [
    Mutation("norm_sum", "rms_norm.cu", "    __syncthreads();\n", "", rms_norm(1000)),
    Mutation("x_staged", "product.cu", "                staged = tile;\n                __syncthreads();\n",
             "                staged = tile;\n", product(8, 512)),
    Mutation("x_used", "product.cu", "                    __syncthreads();  // until every warp",
             "                    ;  // until every warp", product(8, 8704)),
    Mutation("norm_waits", "rms_norm.cu", "    wait_for_predecessor();\n", "",
             ("norm_and_product", {"x": normal(64), "norm": normal(64), "weight": bf16(normal(64, 64))}), card="sm_90"),
    Mutation("product_waits", "product.cu", "wait_for_predecessor();", ";",
             ("norm_and_product", {"x": normal(64), "norm": normal(64), "weight": bf16(normal(64, 64))}), card="sm_90"),
    Mutation("tile_there", "attention.cu", "        __syncthreads();  // everyone's copies are there\n", "",
             attention(40, heads=4)),
    Mutation("tile_used", "attention.cu", "        __syncthreads();  // everyone is through",
             "        ;  // everyone is through", attention(140, heads=4)),
    Mutation("probabilities", "attention.cu", "        __syncwarp();\n", "", attention(40)),
    Mutation("copies", "attention.cu", "        wait_for_copies<kStages - 1>();\n", "", attention(40)),
    Mutation("norm_waits", "rms_norm.cu", "    wait_for_predecessor();\n", "",
             ("norm_and_product", {"x": normal(64), "norm": normal(64), "weight": bf16(normal(64, 64))}), card="sm_90"),
    Mutation("split_waits", "attention.cu", "    wait_for_predecessor();\n", "", attention(40), card="sm_90", places=2),
    Mutation("combine_waits", "attention.cu", "    wait_for_predecessor();\n", "", attention(40), card="sm_90", which=1,
             places=2),
]  # fmt: skip
BOUNDS = [
    Mutation("norm_reads", "rms_norm.cu", "        if (at < pieces) {\n", "        {\n", rms_norm(100)),
    Mutation("norm_writes", "rms_norm.cu", "        if (at < pieces) y[at] =", "        y[at] =", rms_norm(100)),
    Mutation("weights_first", "product.cu", "                if (at < mine) in_flight[u] =",
             "                in_flight[u] =", product(8, 72)),
    Mutation("weights_next", "product.cu", "                    if (next < mine) in_flight[u] =",
             "                    in_flight[u] =", product(8, 2048)),
    Mutation("rows_read", "product.cu", "row < rows ? loads : 0", "loads", product(7, 256)),
    Mutation("rows_written", "product.cu", "if (lane == 0 && row < rows)", "if (lane == 0)", product(7, 256)),
    Mutation("last_tile", "product.cu", "min(static_cast<int64_t>(tile_cols), cols - tile)",
             "static_cast<int64_t>(tile_cols)", product(8, 8264)),
]  # fmt: skip
INITIALISATIONS = [
    Mutation("missing_warps", "rms_norm.cu", "lane < warps ? of_warp[lane] : 0.0f", "of_warp[lane]", rms_norm(1000)),
    Mutation("x_in_shared", "product.cu", "planes[i % 2 * plane + i / 2] = from[i];",
             "(void)from[i];", product(8, 512)),
    Mutation("keys_of_the_split", "attention.cu", "        if (from + key < range.count) {\n",
             "        if (from + key < INT_MAX) {\n", attention(40, capacity=200)),
    Mutation("end_of_the_ring", "attention.cu", "            if (slot >= capacity) slot -= capacity;\n", "",
             attention(75, capacity=50, mask=("sliding", 48))),
    Mutation("heads_of_the_group", "attention.cu", "            if (first_head + h < group) {\n", "            {\n",
             attention(40, heads=5), which=1, places=3),
    Mutation("values_of_any_head", "attention.cu", "                    if (kHeadDim || d < head_dim) value", "value",
             attention(31, head_dim=40)),
    Mutation("elements_combined", "attention.cu", "    if (d >= head_dim) return;\n", "", attention(40, head_dim=40)),
    Mutation("elements_appended", "attention_append.cu", "d < head_dim;", "d < int(blockDim.x);", append(40)),
]  # fmt: skip
INITIALISATIONS = [
    Mutation("missing_warps", "rms_norm.cu", "lane < warps ? of_warp[lane] : 0.0f", "of_warp[lane]", rms_norm(1000)),
    Mutation("rest_of_the_tile", "attention.cu", "            *to = make_uint4(0, 0, 0, 0);\n", "", attention(40)),
    Mutation("queries", "attention.cu", " queries[i] = q[head * head_dim + i] * (scale * kLog2E);",
             " (void)q;", attention(40)),
    Mutation("empty_splits", "attention.cu", "        if (of_split == -INFINITY) continue;\n", "",
             attention(40, splits=5)),
    Mutation("sums_of_splits", "attention.cu", "                partial_sum[at] = total;\n", "", attention(40)),
]  # fmt: skip


# The mutations, and the kinds of fault that would do as a report of one.
MUTATIONS = [
    *((mutation, BARRIER) for mutation in BARRIERS),
    *((mutation, BOUND) for mutation in BOUNDS),
    *((mutation, INITIALISATION) for mutation in INITIALISATIONS),
]


@pytest.mark.parametrize(("mutation", "kinds"), MUTATIONS, ids=[mutation.name for mutation, _ in MUTATIONS])
def test_reported(
    mutation: Mutation, kinds: set[str], card_of: Callable[[str], Remote], nvcc: str, tmp_path: Path
) -> None:
    check_reported(mutation, kinds, card_of, nvcc, tmp_path)
