"""The kernels of a mixture with exactly one barrier, fence, bound,
initialisation or wait taken out: each is reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_worker import Remote
from mutation import BARRIER, BOUND, INITIALISATION, Mutation, check_reported

from llama_ext import _core

Run = tuple[str, dict[str, Any]]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def packed(experts: int, hidden: int) -> np.ndarray:
    weights = normal(experts, hidden).view(np.uint8).reshape(-1)
    return _core.cuda.pack(format="F32", rows=experts, cols=hidden, data=weights) if _core.cuda.built else weights


def route(rows: int, hidden: int, experts: int = 3, max_rows: int = 0) -> Run:
    return "cases_route.route", {
        "steps": [normal(rows, hidden)],
        "norm": normal(hidden),
        "packed": packed(experts, hidden),
        "format": "F32",
        "experts": experts,
        "top_k": 2,
        "scoring": "softmax",
        "shared": True,
        "max_rows": max_rows or rows,
    }


def behind_norm(rows: int) -> Run:
    arguments = {"x": normal(rows, 64), "norm": normal(64), "packed": packed(3, 64), "experts": 3, "top_k": 2}
    return "cases_route.norm_and_route", arguments


def combine(rows: int, max_rows: int, hidden: int) -> Run:
    entry = np.full((max_rows, 2), 1 << 20, np.int32)
    entry[:rows] = np.arange(2 * rows).reshape(rows, 2)
    arguments = {"y": normal(2 * max_rows, hidden), "entry": entry, "x": normal(max_rows, hidden)}
    return "cases_route.combine", {**arguments, "rows": rows, "passes": 2}


def fetch(size: int, steps: list[tuple[int, list[int]]], slots: int = 3) -> Run:
    slot_bytes = (size + 255) // 256 * 256
    arguments = {"layers": 1, "experts": 6, "slots": slots, "sizes": [size], "slot_bytes": slot_bytes}
    return "cases_fetch.fetch", {"steps": steps, **arguments}


def dispatch(hidden: int) -> Run:
    experts = (np.arange(600).reshape(300, 2) % 7).astype(np.int64)
    arguments = {"x": normal(300, hidden), "type": "F32", "experts": experts, "num_experts": 7, "scores": None}
    return "cases_moe.moe_dispatch", arguments


def added(hidden: int) -> Run:
    source = np.arange(6, dtype=np.int64)[::-1].copy()
    return "cases_moe.moe_combine", {"y": normal(6, hidden), "type": "F32", "source": source, "rows": 3, "scores": None}


ARRIVAL = "    __threadfence();\n    __syncwarp();"
BARRIERS = [
    Mutation("sums", "route.cu", "    __syncthreads();  // sums of warps are there\n    const auto", "    const auto",
             route(1, 64)),
    Mutation("fence_before_the_counter", "route.cuh", ARRIVAL, "    __syncwarp();", route(1, 64), places=2,
             source="route.cu"),
    Mutation("fence_behind_the_counter", "route.cuh", ARRIVAL, "    __syncwarp();", route(1, 64), which=1, places=2,
             source="route.cu"),
    Mutation("chosen_one", "route.cu", "    });\n    __syncwarp();\n", "    });\n", route(1, 64)),
    Mutation("chosen", "route.cu", "    __syncthreads();  // choices are there\n", "", route(5, 64)),
    Mutation("places", "route.cu", "    __syncthreads();  // places are there\n", "", route(5, 64)),
    Mutation("route_waits", "route.cu", "    wait_for_predecessor();\n", "", behind_norm(1), card="sm_90"),
    Mutation("tiles_there", "route_large.cu", "        __syncthreads();  // the tiles are there\n", "", route(17, 64)),
    Mutation("tiles_used", "route_large.cu", "        if (column) __syncthreads();  // the tiles before are used\n", "",
             route(17, 64)),
    Mutation("logits_wait", "route_large.cu", "    wait_for_predecessor();\n", "", behind_norm(17), card="sm_90",
             places=4),
    Mutation("choice_waits", "route_large.cu", "    wait_for_predecessor();\n", "", behind_norm(17), card="sm_90",
             which=2,
             places=4),
    Mutation("combine_waits", "combine.cu", "    wait_for_predecessor();\n", "",
             ("cases_route.norm_and_combine", {"x": normal(2, 64)}), card="sm_90"),
    Mutation("no_slot_yet", "fetch.cu", "    __syncthreads();  // no slot is in use yet\n", "",
             fetch(64, [(0, [1, 2]), (0, [1, 2])])),
    Mutation("missed", "fetch.cu", "    __syncthreads();  // what is missed is known\n", "", fetch(64, [(0, [1])])),
    Mutation("firsts_of_warps", "fetch.cu", "        __syncthreads();  // each warp's first is there\n", "",
             fetch(64, [(0, [1])])),
    Mutation("fence_before_arrival", "fetch.cu", "            __threadfence();\n            is_last",
             "            is_last",
             fetch(8208, [(0, [1, 2])])),
    Mutation("fence_behind_arrival", "fetch.cu", "            __threadfence();\n        }", "        }",
             fetch(8208, [(0, [1, 2])])),
    Mutation("victims", "fetch.cu", "    __syncthreads();  // victims are known\n", "", fetch(64, [(0, [1])])),
    Mutation("fetch_waits", "fetch.cu", "    wait_for_predecessor();\n", "", ("cases_fetch.count_and_fetch", {}),
             card="sm_90"),
    Mutation("counts_of_warps", "grouping.cuh", "    __syncthreads();  // counts of warps are there\n", "", dispatch(4),
             source="moe_dispatch.cu"),
    Mutation("gather_waits", "moe_dispatch.cu", "    wait_for_predecessor();\n", "", dispatch(4), card="sm_90",
             places=2),
    Mutation("places_wait", "moe_combine.cu", "    wait_for_predecessor();\n", "", added(4), card="sm_90", places=2),
]  # fmt: skip
BOUNDS = [
    Mutation("weights", "route.cu", "        if (at < pieces) in_flight[u].load", "        in_flight[u].load",
             route(1, 64)),
    Mutation("half_a_piece", "route.cu", "whole ? from[1] : make_float4(0, 0, 0, 0)", "from[1]", route(1, 36)),
    Mutation("rows_of_the_step", "route_large.cu", "row < rows && column < router.cols", "column < router.cols",
             route(18, 64)),
    Mutation("last_columns", "route_large.cu", "expert < experts && column < router.cols ?", "expert < experts ?",
             route(17, 36)),
    Mutation("last_experts", "route_large.cu", "            if (row < rows && expert < experts) logits",
             "            if (row < rows) logits", route(1, 36, max_rows=17)),
    Mutation("rows_combined", "combine.cu", "    if (at >= pieces || row >= step->rows) return;\n",
             "    if (at >= pieces) return;\n", combine(2, 3, 64)),
    Mutation("columns_combined", "combine.cu", "    if (at >= pieces || row >= step->rows) return;\n",
             "    if (row >= step->rows) return;\n", combine(2, 2, 64)),
    Mutation("bytes_fetched", "fetch.cu", "                if (at + u * stride < pieces) held[u]",
             "                held[u]",
             fetch(8208, [(0, [1])])),
    Mutation("end_of_a_row", "moe.cuh", "            if (at + i < hidden) narrow", "            narrow", added(5),
             source="moe_combine.cu"),
]  # fmt: skip
INITIALISATIONS = [
    Mutation("rows_of_experts", "route.cu", "    if (kRows > 1) rows_of[threadIdx.x] = 0;\n", "", route(5, 64)),
    Mutation("slots_in_use", "fetch.cu", "in_use[i] = 0;", ";", fetch(64, [(0, [1])])),
    Mutation("place_of_choices", "moe_combine.cu", "    if (choice >= 0 && choice < choices)\n",
             "    if (choice < 0)\n", added(4)),
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
