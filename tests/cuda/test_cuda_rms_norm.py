"""rms_norm against float64: every tail, both kernels, plain and captured."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_oracles import check_rms_norm
from cuda_worker import Remote


def inputs(rows: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.standard_normal((rows, n), np.float32) * 3, random.standard_normal(n, np.float32)


# 4 * 4 * 1024 floats are held in registers, 4 * 1024 by the kernel without alignment.
@pytest.mark.parametrize("n", [1, 3, 4, 31, 32, 33, 100, 128, 132, 1000, 2048, 4097, 4500, 16384, 16388, 20000])
def test_lengths(card: Remote, n: int) -> None:
    for seed in range(2):
        x, weight = inputs(2, n, n + seed)
        y, kernels = card.call("rms_norm", seed, x=x, weight=weight, eps=1e-5, captured=bool(seed))
        assert kernels == ["rms_norm" if n % 4 == 0 else "rms_norm_unaligned"]
        check_rms_norm(y, x, weight, 1e-5)


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("offset", [0, 1, 4])
def test_rows_weights_and_alignment(card: Remote, rows: int, offset: int) -> None:
    x, weight = inputs(rows, 576, rows)
    for given in (weight, None):
        y, kernels = card.call("rms_norm", rows, x=x, weight=given, eps=1e-6, offset=offset)
        assert kernels == ["rms_norm" if offset % 4 == 0 else "rms_norm_unaligned"]
        check_rms_norm(y, x, given, 1e-6)


def test_zeros_and_eps(card: Remote) -> None:
    y, _ = card.call("rms_norm", x=np.zeros((1, 64), np.float32), weight=None, eps=1e-5)
    assert not y.any()
    x = np.full((1, 64), 1e-4, np.float32)
    y, _ = card.call("rms_norm", x=x, weight=None, eps=1.0)
    check_rms_norm(y, x, None, 1.0)


def test_a_rows_bits_do_not_depend_on_its_neighbours(card: Remote) -> None:
    x, weight = inputs(5, 1000, 1)
    together, _ = card.call("rms_norm", 1, x=x, weight=weight, eps=1e-5)
    for row in range(5):
        alone, _ = card.call("rms_norm", 2, x=x[row : row + 1], weight=weight, eps=1e-5)
        assert alone.tobytes() == together[row : row + 1].tobytes()
