"""product_tiles with exactly one barrier, wait, bound or initialisation taken out: the virtual GPU reports each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_worker import Remote
from mutation import BARRIER, BOUND, INITIALISATION, Mutation, check_reported
from product_oracle import make

FILE = "product_tiles.cuh"
COPIES = {"async_pending", "race", "uninitialised"}


def gaussian(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def run(format: str, outputs: int, cols: int, rows: int, **more: Any) -> tuple[str, dict[str, Any]]:
    weights = make(format, outputs, cols, 1)
    call = {"operation": "product_tiles", **weights.arguments, "x": gaussian(rows, cols), **more}
    return "cases_product.product", call


def after_norm() -> tuple[str, dict[str, Any]]:
    weights = make("Q8_0", 64, 64, 1)
    call = {"format": "Q8_0", "x": gaussian(20, 64), "norm": gaussian(64), "data": weights.data}
    return "cases_product_tiles.norm_and_product", call


def experts() -> tuple[str, dict[str, Any]]:
    weights = make("Q4_0", 66, 64, 1)
    groups = [(0, list(range(20)), [0.5] * 20)]
    return "cases_product.experts", {
        "operation": "product_tiles", "format": "Q4_0", "rows": 66, "cols": 64, "data": [weights.data],
        "x": gaussian(20, 64), "groups": groups, "max_rows": 20, "max_groups": 3,
    }  # fmt: skip


def of(name: str, old: str, new: str, call: tuple[str, dict[str, Any]], source: str, card: str = "sm_80") -> Mutation:
    return Mutation(name, FILE, old, new, call, card=card, source=f"product_tiles_{source}.cu")


MUTATIONS = [
    (of("tile_made", "        __syncthreads();  // this step's", "        // this step's",
        run("Q4_0", 64, 96, 64), "block"), BARRIER),
    (of("copies", "            wait_for_copies<kTileStages - 1>();\n", "", run("Q5_1", 64, 160, 20), "block"), COPIES),
    (of("first_copies", "    wait_for_copies<kTileStages - 1>();\n    put_weights(0", "    put_weights(0",
        run("Q4_K", 64, 256, 20), "k"), COPIES),
    (of("waits_for_one_less", "            wait_for_copies<kTileStages - 1>();\n",
        "            wait_for_copies<kTileStages>();\n", run("F16", 64, 160, 20), "float"), COPIES),
    (of("predecessor", "    wait_for_predecessor();\n", "", after_norm(), "block", "sm_90"), BARRIER),
    (of("rows_of_weights", "min(row_tile * kTileWeights + my_row, a.rows - 1)", "row_tile * kTileWeights + my_row",
        run("Q8_0", 65, 64, 20), "block"), BOUND),
    (of("columns_of_weights", "const bool there = unit + i < units;", "const bool there = true;",
        run("F16", 16, 8, 20), "float"), BOUND),
    (of("rows_of_x", "min(32 * i + 8 * warp + of_eight, count - 1)", "32 * i + 8 * warp + of_eight",
        run("Q8_0", 64, 64, 20), "block"), BOUND),
    (of("steps_of_x", "        if (step + 1 < steps) fetch_tokens(step + 1);", "        fetch_tokens(step + 1);",
        run("Q8_0", 64, 64, 20), "block"), BOUND),
    (of("steps_of_weights", "        if (step < steps) {\n            unsigned char*",
        "        {\n            unsigned char*", run("Q8_0", 64, 64, 20), "block"), BOUND),
    (of("tokens_written", "if (row >= a.rows || token + i >= count) continue;", "if (row >= a.rows) continue;",
        run("Q6_K", 64, 256, 19), "k"), BOUND),
    (of("rows_written", "if (row >= a.rows || token + i >= count) continue;", "if (token + i >= count) continue;",
        run("Q6_K", 63, 256, 20), "k"), BOUND),
    (of("pairs_written", "if (row < a.rows && token + up < count)", "if (row < a.rows)",
        run("Q6_K", 64, 256, 19, epilogue="silu_times_up"), "k"), BOUND),
    (of("groups", "if (group >= *a.group_count) return;", "", experts(), "block"), BOUND | {"race"}),
    (of("factors", "if (half == 0) factors[buffer][0][my_row] = w.scale(sub);", "(void)sub;",
        run("Q4_0", 64, 64, 20), "block"), INITIALISATION),
    (of("halves", "factors[buffer][half][my_row] =", "factors[buffer][0][my_row] =",
        run("Q6_K", 64, 256, 20), "k"), INITIALISATION | {"race"}),
    (of("of_tokens", "if (part == 0) of_tokens[buffer][token] =", "if (part > 3) of_tokens[buffer][token] =",
        run("MXFP8", 64, 64, 20), "float"), INITIALISATION),
    (of("terms", "for (int t = 0; t < kTerms; ++t) {\n                uint2* const",
        "for (int t = 0; t < 1; ++t) {\n                uint2* const",
        run("BF16", 64, 64, 20), "float"), INITIALISATION),
]  # fmt: skip


@pytest.mark.parametrize(("mutation", "kinds"), MUTATIONS, ids=[mutation.name for mutation, _ in MUTATIONS])
def test_reported(
    mutation: Mutation, kinds: set[str], card_of: Callable[[str], Remote], nvcc: str, tmp_path: Path
) -> None:
    check_reported(mutation, kinds, card_of, nvcc, tmp_path)
