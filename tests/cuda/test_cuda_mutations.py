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
