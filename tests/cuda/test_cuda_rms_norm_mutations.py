"""rms_norm with one barrier, bound, initialisation or wait taken out: the virtual GPU reports each, at a line of it.

What this shows is that the runs of these tests would not have passed without it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_oracles import bf16
from cuda_worker import Remote
from mutation import BARRIER, BOUND, INITIALISATION, KERNELS, Mutation, check_reported, compile_kernels


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def rms_norm(n: int) -> tuple[str, dict[str, Any]]:
    return "rms_norm", {"x": normal(1, n), "weight": normal(n), "eps": 1e-5}


CHAIN = ("norm_and_product", {"x": normal(64), "norm": normal(64), "weight": bf16(normal(64, 64))})

MUTATIONS = [
    (Mutation("norm_sum", "rms_norm.cu", "    __syncthreads();\n", "", rms_norm(1000)), BARRIER),
    (Mutation("norm_waits", "rms_norm.cu", "    wait_for_predecessor();\n", "", CHAIN, card="sm_90"), BARRIER),
    (Mutation("norm_reads", "rms_norm.cu", "        if (at < pieces) {\n", "        {\n", rms_norm(100)), BOUND),
    (
        Mutation("norm_writes", "rms_norm.cu", "        if (at < pieces) y[at] =", "        y[at] =", rms_norm(100)),
        BOUND,
    ),
    (
        Mutation(
            "missing_warps", "rms_norm.cu", "lane < warps ? of_warp[lane] : 0.0f", "of_warp[lane]", rms_norm(1000)
        ),
        INITIALISATION,
    ),
]


@pytest.mark.parametrize(("mutation", "kinds"), MUTATIONS, ids=[mutation.name for mutation, _ in MUTATIONS])
def test_reported(
    mutation: Mutation, kinds: set[str], card_of: Callable[[str], Remote], nvcc: str, tmp_path: Path
) -> None:
    check_reported(mutation, kinds, card_of, nvcc, tmp_path)


@pytest.mark.parametrize("captured", [False, True])
def test_older_code_on_a_newer_card_does_not_overlap(
    card_of: Callable[[str], Remote], nvcc: str, tmp_path: Path, captured: bool
) -> None:
    """Code of compute_80 does not wait for its predecessor, so it must not be launched as if it did."""
    shutil.copytree(KERNELS, tmp_path / "cuda" / "kernels")
    image = compile_kernels(nvcc, tmp_path, "sm_80", tmp_path / "cuda" / "kernels" / "rms_norm.cu")
    function, arguments = CHAIN
    card_of("sm_90").call(function, captured=captured, image=image, **arguments)
