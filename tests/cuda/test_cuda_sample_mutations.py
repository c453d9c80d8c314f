"""The sampler and the embedding with one barrier, bound, fence or initialisation taken out: each is reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_worker import Remote
from mutation import BARRIER, BOUND, INITIALISATION, Mutation, check_reported


def sample(vocab: int, history: int = 0, between: bool = False, **params: Any) -> tuple[str, dict[str, Any]]:
    logits = np.random.default_rng(vocab).standard_normal(vocab).astype(np.float32)
    return "cases_sample.sample", {
        "draws": [{"logits": logits, "params": params, "history": np.arange(history)}],
        "between": between,
    }


def embed(cols: int, pairs: int = 0, vocab: int = 3, max_rows: int = 2) -> tuple[str, dict[str, Any]]:
    return "cases_embed.embed", {
        "format": "F32",
        "data": np.zeros(vocab * cols * 4, np.uint8),
        "rows": vocab,
        "cols": cols,
        "steps": [(7, np.array([vocab - 1]))],
        "max_rows": max_rows,
        "rotations": [(np.ones(pairs), 0)] if pairs else [],
    }


NORM_AFTER = (
    "cases_embed.norm_after",
    {"format": "F32", "data": np.zeros(64 * 4, np.uint8), "rows": 1, "cols": 64, "ids": np.zeros(1)},
)

BARRIERS = [
    Mutation("ticket", "sample.cu", "    __syncthreads();  // the ticket is there, and taken\n", "",
             sample(3000, temperature=0.0)),
    Mutation("stage_before", "sample.cu", "    __syncthreads();  // the stage before is through\n", "", sample(3000)),
    Mutation("results", "sample.cu", "    __syncthreads();  // everyone's results are written\n", "",
             sample(3000, top_p=0.5)),
    Mutation("release", "sample.cu", "atom.acq_rel.gpu", "atom.acquire.gpu", sample(3000)),
    Mutation("last_acquires", "sample.cu", "atom.acq_rel.gpu", "atom.release.gpu", sample(9000)),
    Mutation("acquire", "sample.cu", "ld.acquire.gpu", "ld.relaxed.gpu", sample(9000)),
    Mutation("buckets_full", "sample.cu", "    __syncthreads();  // all are full\n", "",
             sample(3000, top_k=9), places=2),
    Mutation("warps_sums", "sample.cu", "    __syncthreads();  // the warps' sums are there\n", "", sample(3000)),
    Mutation("gathered", "sample.cu", "    __syncthreads();  // all are\n", "", sample(3000, top_k=9)),
    Mutation("bits_set", "sample.cu", "        __syncthreads();  // no bit is set\n", "",
             sample(3000, history=2000, repetition_penalty=2.0)),
    Mutation("all_read", "sample.cu", "    __syncthreads();  // all is read\n", "", sample(3000, temperature=0.0)),
    Mutation("sample_waits", "sample.cu", "    wait_for_predecessor();\n", "",
             sample(3000, between=True), card="sm_90"),
    Mutation("embed_waits", "embed.cu", "    wait_for_predecessor();\n", "", NORM_AFTER, card="sm_90"),
]  # fmt: skip
BOUNDS = [
    Mutation("whole_quads", "sample.cu", "if (first + 4 <= vocab && ", "if (", sample(2051)),
    Mutation("single_logits", "sample.cu", "            if (first + j < vocab) quad.v[j]", "            quad.v[j]",
             sample(2051)),
    Mutation("history", "sample.cu", "i < size; i += kSampleThreads) {\n            const uint32_t seen",
             "i <= size; i += kSampleThreads) {\n            const uint32_t seen",
             sample(100, history=6, repetition_penalty=2.0)),
    Mutation("candidates", "sample.cu", "    for (uint32_t i = threadIdx.x; i < size; i += kSampleThreads) {\n"
             "        const uint64_t order = list[i];\n        if ((order - low)",
             "    for (uint32_t i = threadIdx.x; i < kSampleThreads; i += kSampleThreads) {\n"
             "        const uint64_t order = list[i];\n        if ((order - low)", sample(3000, top_k=9)),
    Mutation("columns", "embed.cu", "        if (4 * at >= cols) return;\n", "", embed(100),
             reported_in="dequantize.cuh"),
    Mutation("last_columns", "embed.cu", "if (4 * at + 3 < cols) ", "", embed(103, max_rows=1)),
    Mutation("rows", "embed.cu", "    if (row >= step->rows) return;\n", "", embed(64)),
    Mutation("pairs", "embed.cu", "i < rotation.pairs;", "i < int(blockDim.x);", embed(64, pairs=17)),
]  # fmt: skip
INITIALISATIONS = [
    Mutation("buckets", "sample.cu", "    if (own < kSampleBuckets) s.counts[own] =",
             "    if (own == 0) s.counts[own] =",
             sample(3000, top_k=9)),
    Mutation("bits", "sample.cu", "        if (threadIdx.x < kSampleSlice / 32) s.penalised[threadIdx.x] = 0;\n", "",
             sample(3000, history=9, repetition_penalty=2.0)),
    Mutation("slices_sum", "sample.cu", "    if (threadIdx.x == 0) *sum = all;\n", "", sample(3000), places=2),
]  # fmt: skip

# What lies behind the logits and the lists is scratch of the same sampler, which others write meanwhile.
OF_SCRATCH = BOUND | {"race"}

MUTATIONS = [
    *((mutation, BARRIER) for mutation in BARRIERS),
    *((mutation, OF_SCRATCH) for mutation in BOUNDS),
    *((mutation, INITIALISATION) for mutation in INITIALISATIONS),
]


@pytest.mark.parametrize(("mutation", "kinds"), MUTATIONS, ids=[mutation.name for mutation, _ in MUTATIONS])
def test_reported(
    mutation: Mutation, kinds: set[str], card_of: Callable[[str], Remote], nvcc: str, tmp_path: Path
) -> None:
    check_reported(mutation, kinds, card_of, nvcc, tmp_path)
