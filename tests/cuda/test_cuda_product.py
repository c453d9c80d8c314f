"""product against float64: rows and columns across every tail, tiles of columns, several rounds, residuals."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_oracles import bf16, check_product
from cuda_worker import Remote


def inputs(rows: int, cols: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return (
        bf16(random.standard_normal((rows, cols), np.float32)),
        random.standard_normal(cols, np.float32),
        random.standard_normal(rows, np.float32),
    )


# 8 columns a load, 256 a warp, 1024 in flight.
@pytest.mark.parametrize("cols", [8, 16, 72, 248, 256, 264, 576, 1016, 1024, 1032, 2048, 2056])
@pytest.mark.parametrize("rows", [1, 7, 8, 9])
def test_shapes(card: Remote, rows: int, cols: int) -> None:
    for seed in range(2):
        weight, x, _ = inputs(rows, cols, rows * cols + seed)
        check_product(card.call("product", seed, weight=weight, x=x, residual=None), weight, x, None)


# 8192 columns lie in shared memory at a time.
@pytest.mark.parametrize("cols", [8184, 8192, 8200, 16384, 17416])
def test_tiles_of_columns(card: Remote, cols: int) -> None:
    weight, x, residual = inputs(11, cols, cols)
    y = card.call("product", cols, weight=weight, x=x, residual=residual, captured=True)
    check_product(y, weight, x, residual)


@pytest.mark.parametrize("cols", [64, 8200])
def test_more_rows_than_the_grid_has_warps(card: Remote, cols: int) -> None:
    _, _, multiprocessors = card.call("describe")
    rows = 4 * multiprocessors * 8 + 3
    if cols > 64:
        rows = min(rows, 3500)  # what does not matter to the loop would only take long
    weight, x, residual = inputs(rows, cols, 3)
    check_product(card.call("product", weight=weight, x=x, residual=residual), weight, x, residual)


@pytest.mark.parametrize("seed", range(4))
def test_residual(card: Remote, seed: int) -> None:
    weight, x, residual = inputs(19, 320, seed)
    apart = card.call("product", seed, weight=weight, x=x, residual=residual)
    check_product(apart, weight, x, residual)
    in_place = card.call("product", seed + 1, weight=weight, x=x, residual=residual, in_place=True, captured=True)
    assert in_place.tobytes() == apart.tobytes()


def test_a_rows_bits_do_not_depend_on_the_others(card: Remote) -> None:
    weight, x, _ = inputs(21, 1032, 1)
    together = card.call("product", 1, weight=weight, x=x, residual=None)
    alone = card.call("product", 2, weight=weight[13:14], x=x, residual=None)
    assert alone.tobytes() == together[13:14].tobytes()


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_launches_that_read_what_the_one_before_wrote(card: Remote, seed: int, captured: bool) -> None:
    """On sm_90 each starts before its predecessor has ended."""
    weight, x, norm = inputs(72, 72, seed)
    found = card.call("norm_and_product", seed, x=x, norm=norm, weight=weight, captured=captured)
    plain = card.call("rms_norm", x=x[None], weight=norm, eps=1e-5)[0][0]
    added = card.call("product", weight=weight, x=plain, residual=x)
    expected = card.call("rms_norm", x=added[None], weight=None, eps=1e-5)[0][0]
    assert found.tobytes() == expected.tobytes()
