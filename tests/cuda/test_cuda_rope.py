"""Rotation of heads against float64: heads at the beginning of longer rows, odd numbers of pairs, any alignment."""

from __future__ import annotations

import numpy as np
import pytest
import tolerances
from cuda_oracles import check
from cuda_worker import Remote


def run(
    card: Remote,
    *,
    rows: int = 3,
    heads: int = 2,
    pairs: int = 32,
    rest: int = 0,
    offset: int = 0,
    seed: int = 0,
    captured: bool = False,
) -> str:
    """rest: floats of a row behind its heads.  -> the kernel that ran"""
    random = np.random.default_rng(seed + rows + heads + pairs)
    x = random.standard_normal((rows, heads * 2 * pairs + rest)).astype(np.float32)
    angle = random.uniform(-4, 4, (rows, 1, pairs))
    table = np.stack([np.cos(angle[:, 0]), np.sin(angle[:, 0])], -1).astype(np.float32)
    result, kernels = card.call(
        "cases_rope.rope", seed, x=x, table=table, heads=heads, offset=offset, captured=captured
    )
    turned = heads * 2 * pairs
    assert result[:, turned:].tobytes() == x[:, turned:].tobytes()
    pair = x[:, :turned].astype(np.float64).reshape(rows, heads, pairs, 2)
    cosine, sine = (table[:, None, :, i].astype(np.float64) for i in range(2))
    value = np.stack(
        [pair[..., 0] * cosine - pair[..., 1] * sine, pair[..., 0] * sine + pair[..., 1] * cosine], -1
    ).reshape(rows, turned)
    magnitude = np.stack(
        [
            np.abs(pair[..., 0] * cosine) + np.abs(pair[..., 1] * sine),
            np.abs(pair[..., 0] * sine) + np.abs(pair[..., 1] * cosine),
        ],
        -1,
    ).reshape(rows, turned)
    check(np.ascontiguousarray(result[:, :turned]), value, magnitude, tolerances.CUDA_ROPE)
    kernel: str = kernels[0]
    return kernel


@pytest.mark.parametrize("rows", [1, 7, 40])
@pytest.mark.parametrize(("heads", "pairs"), [(1, 2), (4, 32), (6, 64), (3, 20), (33, 128)])
def test_aligned(card: Remote, rows: int, heads: int, pairs: int) -> None:
    """33 heads of 256 take more than one block a row."""
    for seed in range(2):
        assert run(card, rows=rows, heads=heads, pairs=pairs, rest=2 * pairs, seed=seed) == "rope"


@pytest.mark.parametrize(
    ("heads", "pairs", "rest", "offset"), [(1, 1, 0, 0), (3, 33, 5, 0), (2, 32, 2, 0), (2, 32, 0, 1)]
)
def test_unaligned(card: Remote, heads: int, pairs: int, rest: int, offset: int) -> None:
    for rows in (1, 5):
        assert run(card, rows=rows, heads=heads, pairs=pairs, rest=rest, offset=offset) == "rope_unaligned"


def test_captured(card: Remote) -> None:
    run(card, captured=True)


def test_wrong_arguments(card: Remote) -> None:
    def sentence(**changes: int) -> str:
        refusal: str = card.call("cases_rope.wrong_arguments", **changes)
        return refusal

    assert sentence(rows=0) == "rope: rows is 0, must be 1 to 2147483647"
    assert sentence(stride=127) == "rope: stride is 127, must be 128 to 2147483647"
    assert sentence(x=2) == "rope: x is not aligned, must be on 4 bytes"
    assert sentence(pairs=0) == "rope: pairs is 0, must be 1 to 1048576"
    assert sentence(rows=1000) == "rope: x has 32768 bytes, its shape needs 768000 bytes"
