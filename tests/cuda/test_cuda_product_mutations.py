"""The product's kernels with exactly one barrier, bound or initialisation taken out: the virtual GPU reports each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_oracles import bf16
from cuda_worker import Remote
from mutation import BARRIER, BOUND, INITIALISATION, Mutation, check_reported
from product_oracle import make

FILE = "product.cuh"


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def mutation(
    name: str,
    old: str,
    new: str,
    format: str = "BF16",
    rows: int = 7,
    cols: int = 512,
    of_x: int = 1,
    norm: bool = False,
    run: tuple[str, dict[str, Any]] | None = None,
    **changes: Any,
) -> Mutation:
    arguments = {
        **make(format, rows, cols, 1).arguments,
        "x": normal(of_x, cols),
        "norm": normal(cols) if norm else None,
    }
    run = run or ("cases_product.product", arguments)
    return Mutation(name, FILE, old, new, run, source=f"product_{format.lower()}.cu", **changes)


CHAIN = ("norm_and_product", {"x": normal(64), "norm": normal(64), "weight": bf16(normal(64, 64))})

BARRIERS = [
    mutation(
        "squares", "        __syncthreads();\n        const auto factor_of", "        const auto factor_of", norm=True
    ),
    mutation(
        "factors",
        "= factor_of(threadIdx.x);\n            __syncthreads();\n",
        "= factor_of(threadIdx.x);\n",
        norm=True,
        of_x=3,
    ),
    mutation("staged", "    stage(0, Constant<true>{});\n    __syncthreads();\n", "    stage(0, Constant<true>{});\n"),
    mutation(
        "tile_used",
        "                __syncthreads();  // until every warp",
        "                ;  // until every warp",
        "F32",
        rows=9,
        cols=4096,
        of_x=16,
        card="sm_80",
    ),
    mutation(
        "tile_staged",
        "                staged = tile;\n                __syncthreads();\n",
        "                staged = tile;\n",
        "F32",
        rows=9,
        cols=4096,
        of_x=16,
    ),
    mutation("waits", "    wait_for_predecessor();\n", "", run=CHAIN, card="sm_90"),
]
BOUNDS = [
    mutation("weights_first", "if (item < items && d * 32 + lane < units) fetch", "if (item < items) fetch", cols=72),
    mutation(
        "weights_ahead", "if (next_item < items && ahead < units) fetch", "if (next_item < items) fetch", cols=2056
    ),
    mutation("odd_rows", "min(item * kWeights + c, a.rows - 1)", "(item * kWeights + c)"),
    mutation(
        "odd_results", "        if (2 * pair + 1 < a.rows) y[2 * pair + 1] = odd;", "        y[2 * pair + 1] = odd;"
    ),
    mutation("rows_of_x", "if (from + k < rows && i < count) v[k] =", "if (i < count) v[k] =", of_x=3),
    mutation("end_of_x", "return col < cols ? reinterpret", "return true ? reinterpret", cols=12),
    mutation("rows_multiplied", "                if (kRows > 1 && t >= rows) break;\n", "", of_x=3),
    mutation("results_of_rows", "lane % kLanes != 0 || t >= rows ||", "lane % kLanes != 0 ||", of_x=3, rows=8),
]
INITIALISATIONS = [
    mutation("floats", "    reinterpret_cast<float4*>(to)[i % kPieces * plane + i / kPieces] = v;\n", ""),
    mutation(
        "low_digits",
        "    reinterpret_cast<uint32_t*>(unit + (kWholeBlocks ? 2 : 1) * plane)[j % 4] = low;\n",
        "",
        "Q4_0",
    ),
    mutation("scales", "    if (j == 0) {\n", "    if (j == 8) {\n", "Q4_0"),
    mutation(
        "squares_written",
        "if (lane % (32 / kRows) == 0) squares",
        "if (lane % (32 / kRows) == 0 && warp) squares",
        norm=True,
    ),
]

MUTATIONS = [
    *((one, BARRIER) for one in BARRIERS),
    *((one, BOUND) for one in BOUNDS),
    *((one, INITIALISATION) for one in INITIALISATIONS),
]


@pytest.mark.parametrize(("mutation", "kinds"), MUTATIONS, ids=[one.name for one, _ in MUTATIONS])
def test_reported(
    mutation: Mutation, kinds: set[str], card_of: Callable[[str], Remote], nvcc: str, tmp_path: Path
) -> None:
    check_reported(mutation, kinds, card_of, nvcc, tmp_path)
