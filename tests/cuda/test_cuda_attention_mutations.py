"""Attention's kernels with exactly one barrier, fence, bound or initialisation taken out: the virtual GPU reports each.

What this shows is that the runs of these tests would not have passed without it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attention_oracle import Case
from cuda_worker import Remote
from mutation import BARRIER, BOUND, INITIALISATION, Mutation, check_reported


def attention(position: int, launches: int = 1, **options: Any) -> tuple[str, dict[str, Any]]:
    """One row unless told; slots without a position were never written."""
    case = Case(position=position, **{"heads": 4, "splits": 1, "max_rows": 1, **options})
    return "cases_attention.attention", {**case.arguments, "held": case.held, "launches": launches}


def change(
    name: str, old: str, new: str, run: tuple[str, dict[str, Any]], format: str = "f32", **options: Any
) -> Mutation:
    source = f"attention_decode_{format}.cu"
    return Mutation(name, "attention_decode.cuh", old, new, run, source=source, **options)


FORMAT = "attention_format.cuh"  # where the accesses to keys and values are
SPLITS = attention(200, splits=3)
RING = attention(75, capacity=50, mask=("sliding", 48))
LAST = "    if (threadIdx.x == 0) {\n        __threadfence();\n"

BARRIERS = [
    change("copies", "            wait_for_copies<kStages - 2>();\n", "", attention(40), reported_in=FORMAT),
    change("step_there", "            if (sharing == 1)\n                __syncwarp();\n            else\n",
           "            if (sharing > 1)\n", attention(140), reported_in=FORMAT),
    change("step_there_of_two_warps", 'asm volatile("bar.sync %0, %1;"', 'asm volatile(""',
           attention(140, heads=5), reported_in=FORMAT),
    change("probabilities", "        highest = now;\n        __syncwarp();\n", "        highest = now;\n",
           attention(40)),
    change("results_over_steps", "    __syncthreads();  // everyone is through", "    ;  // everyone is through",
           attention(140, heads=16)),
    change("partial_results", "    __syncthreads();\n" + LAST, LAST, SPLITS),
    change("fence_before_the_counter", LAST, "    if (threadIdx.x == 0) {\n", SPLITS),
    change("fence_after_the_counter", "        __threadfence();\n    }\n", "    }\n", SPLITS),
    change("predecessor", "    wait_for_predecessor();\n", "", attention(40, launches=2), card="sm_90",
           reported_in=FORMAT),
]  # fmt: skip
BOUNDS = [
    change("end_of_the_split", "fresh = key < left && of_row", "fresh = of_row", attention(40)),
    change("end_of_the_ring", "            if (at >= capacity) at -= capacity;\n", "", RING),
    change("keys_of_the_step", " && range.first_row + from + kStepKeys <= 0", "", attention(39)),
    change("rows_of_the_step", "    if (row >= this_step.rows) return;\n", "", attention(40, max_rows=2)),
    change("elements_of_any_head", "kHeadDim || unit < units;", "true;", attention(40, head_dim=40)),
]  # fmt: skip
INITIALISATIONS = [
    change("rest_of_a_step", "if (has_unit) F::store(to_row, unit, units, typename F::Unit{});", ";", attention(40),
           reported_in=FORMAT),
    change("sums_of_splits", "if (piece == 0) all_stats[h * gridDim.x + blockIdx.x] =", "(void)", SPLITS),
    change("row_in_the_cache", "if (of_row == row) {", "if (of_row > row) {", attention(40, steps=2)),
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
