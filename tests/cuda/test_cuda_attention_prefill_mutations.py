"""rope, attention_append and attention_prefill with exactly one barrier, bound or initialisation taken out: the virtual
GPU reports each, at a line of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attention_oracle import Case
from cuda_worker import Remote
from mutation import BARRIER, BOUND, INITIALISATION, Mutation, check_reported

TILES = "attention_prefill_tiles.cuh"
ANY = "attention_prefill_any.cu"
SHARED = "attention_prefill.cuh"
FORMAT = "attention_format.cuh"


def rope(pairs: int, heads: int = 1, follows: bool = False) -> tuple[str, dict[str, Any]]:
    random = np.random.default_rng(pairs)
    x = random.standard_normal((2, heads * 2 * pairs), np.float32)
    arguments: dict[str, Any] = {"x": x, "table": random.standard_normal((2, pairs, 2), np.float32)}
    return ("cases_rope.norm_and_rope", arguments) if follows else ("cases_rope.rope", {**arguments, "heads": heads})


def prefill(
    format: str = "bf16", unwritten: bool = False, after_norm: bool = False, **case: Any
) -> tuple[str, dict[str, Any]]:
    """28 rows of two heads behind 100 keys, unless told."""
    case = {"position": 100, "rows": 28, "max_rows": case.get("rows", 28), **case}
    made = Case(format=format, **case)
    held = made.held if unwritten else None
    arguments = {name: value for name, value in made.arguments.items() if name != "splits"}
    return "cases_attention_prefill.prefill", arguments | {"held": held, "after_norm": after_norm}


BARRIERS = [
    Mutation("rope_waits", "rope.cu", "    wait_for_predecessor();\n", "", rope(32, follows=True), card="sm_90",
             places=2),
    Mutation("append_waits", "attention_append.cu", "    wait_for_predecessor();\n", "", prefill(after_norm=True),
             card="sm_90"),
    Mutation("tiles_wait", TILES, "    wait_for_predecessor();\n", "", prefill(), card="sm_90",
             source="attention_prefill_bf16.cu"),
    Mutation("any_waits", ANY, "    wait_for_predecessor();\n", "", prefill("f32"), card="sm_90",
             reported_in=FORMAT),
    Mutation("copies", TILES, "        wait_for_copies();\n", "", prefill(), source="attention_prefill_bf16.cu"),
    Mutation("tile_there", TILES, "        __syncthreads();  // everyone's copies are there", "        ;  //",
             prefill(), source="attention_prefill_bf16.cu"),
    Mutation("bytes_there", TILES, "        wait_for_copies();\n", "", prefill("fp8"),
             source="attention_prefill_fp8.cu"),
    Mutation("widened", TILES, "            __syncthreads();  // until everyone has widened\n", "", prefill("q8_0"),
             source="attention_prefill_q8_0.cu"),
    Mutation("any_tile_used", ANY, "        __syncthreads();  // everyone is through", "        ;  //", prefill("f32")),
    Mutation("any_tile_there", ANY, "        __syncthreads();\n", "", prefill("f32")),
    Mutation("any_probabilities", ANY, "        __syncwarp();\n", "", prefill("f32")),
]  # fmt: skip
BOUNDS = [
    Mutation("pieces_turned", "rope.cu", "    if (at >= heads * pieces) return;\n", "", rope(40)),
    Mutation("pairs_turned", "rope.cu", "    if (at >= heads * pairs) return;\n", "", rope(33)),
    Mutation("rows_appended", "attention_append.cu", "row >= step->rows || ", "", prefill(rows=5, max_rows=6)),
    Mutation("heads_appended", "attention_append.cu", " || head >= 2 * kv_heads", "", prefill(rows=1),
             reported_in=FORMAT),
    Mutation("elements_appended", "attention_append.cu", "    if (lane >= units) return;\n", "", prefill(rows=1),
             reported_in=FORMAT),
    Mutation("keys_copied", TILES, "            const bool there = from + key < queries.count;\n",
             "            const bool there = true;\n", prefill(rows=20, capacity=200, unwritten=True),
             source="attention_prefill_bf16.cu", places=2),
    Mutation("queries_read", TILES, "        const bool there = query < queries.end;\n",
             "        const bool there = true;\n", prefill(), source="attention_prefill_bf16.cu"),
    Mutation("queries_written", TILES, "        if (query >= queries.end) continue;\n", "", prefill(),
             source="attention_prefill_bf16.cu"),
    Mutation("end_of_the_ring", SHARED, "        return at < capacity ? at : at - capacity;\n", "        return at;\n",
             prefill(capacity=80, mask=("sliding", 40)), source="attention_prefill_bf16.cu",
             reported_in=TILES),
    Mutation("before_the_start", SHARED, "    return max(first, start);\n", "    return first;\n",
             prefill(capacity=200, start=90, unwritten=True), source="attention_prefill_bf16.cu", reported_in=TILES),
    Mutation("any_keys", ANY, "        if (from + key < queries.count) {\n", "        {\n",
             prefill("f32", rows=20, capacity=200, unwritten=True), reported_in=FORMAT),
    Mutation("any_queries", ANY, "        if (query < queries.end) {\n", "        if (query < INT_MAX) {\n",
             prefill("f32", rows=30)),
]  # fmt: skip
INITIALISATIONS = [
    Mutation("second_terms", TILES, "            tiles.query_low[s][threadIdx.x] =", "            (void)",
             prefill(head_dim=128), source="attention_prefill_bf16.cu"),
    Mutation("scales", TILES, "this->scales[which][b][key] = __half2float", "(void)__half2float", prefill("q8_0"),
             source="attention_prefill_q8_0.cu"),
    Mutation("any_missing_queries", ANY,
             "for (int d = lane; d < fours; d += 32) query_rows[i * fours + d] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);",
             ";", prefill("f32", rows=30)),
]  # fmt: skip

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
