"""moe_route, moe_dispatch and moe_combine on plain arrays, to the bit (scores to an ulp).

llama_ext/ops.py says what they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_oracles import bf16, load
from cuda_worker import Remote
from numpy.typing import NDArray
from test_cuda_route import choose, scores_of

Array = NDArray[Any]


def values(type: str, random: np.random.Generator, *shape: int) -> Array:
    array = random.standard_normal(shape, np.float32)
    return array if type == "F32" else bf16(array)


def wide(array: Array) -> Array:
    """float32 of either type"""
    return array if array.dtype == np.float32 else load(array, "bf16").astype(np.float32)


def narrow(array: Array, type: str) -> Array:
    return array if type == "F32" else bf16(array)


@pytest.mark.parametrize("type", ["F32", "BF16"])
@pytest.mark.parametrize("experts", [1, 8, 31, 32, 33, 128, 300, 1000])
def test_route(card: Remote, type: str, experts: int) -> None:
    random = np.random.default_rng(experts)
    for rows in (1, 3, 4, 9):
        for top_k in {1, min(2, experts), min(33, experts), experts if experts < 200 else 1}:
            logits = values(type, random, rows, experts)
            logits[0, ::3] = logits[0, 0]  # ties
            if rows == 3:
                logits[1, experts // 2] = np.nan if type == "F32" else 0xFFC0
                logits[2, :] = -np.inf if type == "F32" else 0xFF80
            for scoring in ("softmax", "sigmoid"):
                chosen, scores = card.call(
                    "cases_moe.moe_route",
                    rows,
                    logits=logits,
                    type=type,
                    top_k=top_k,
                    scoring=scoring,
                    captured=rows == 3,
                )
                for r in range(rows):
                    expected = choose(wide(logits)[r], top_k)
                    assert (chosen[r] == expected).all()
                    wanted = scores_of(wide(logits)[r], expected, scoring)
                    assert (np.isnan(wanted) == np.isnan(scores[r])).all()
                    assert (np.isnan(wanted) | (np.abs(wanted - scores[r]) <= np.spacing(np.abs(wanted)))).all()


@pytest.mark.parametrize("type", ["F32", "BF16"])
@pytest.mark.parametrize("hidden", [1, 4, 7, 128, 512, 516])
@pytest.mark.parametrize(("rows", "top_k", "experts"), [(1, 1, 1), (1, 3, 5), (7, 2, 4), (40, 8, 130), (90, 3, 3)])
def test_dispatch_and_combine(card: Remote, type: str, hidden: int, rows: int, top_k: int, experts: int) -> None:
    random = np.random.default_rng(hidden + rows)
    x = values(type, random, rows, hidden)
    chosen = np.stack([random.permutation(experts)[:top_k] for _ in range(rows)]).astype(np.int64)
    some = random.standard_normal((rows, top_k), np.float32)
    for scores in (None, some):
        gathered, offsets, source = card.call(
            "cases_moe.moe_dispatch", hidden, x=x, type=type, experts=chosen, num_experts=experts, scores=scores,
            captured=scores is None,
        )  # fmt: skip
        order = np.argsort(chosen.reshape(-1), kind="stable")
        assert (source == order).all()
        assert (offsets == np.searchsorted(np.sort(chosen.reshape(-1)), np.arange(experts + 1))).all()
        expected = wide(x)[order // top_k]
        if scores is not None:
            expected = expected * scores.reshape(-1)[order, None]
        assert gathered.tobytes() == (x[order // top_k] if scores is None else narrow(expected, type)).tobytes()

        y = values(type, random, rows * top_k, hidden)
        out = card.call(
            "cases_moe.moe_combine",
            hidden,
            y=y,
            type=type,
            source=source,
            rows=rows,
            scores=scores,
            captured=scores is None,
        )
        place = np.argsort(source).reshape(rows, top_k)
        total = np.zeros((rows, hidden), np.float32)
        for i in range(top_k):
            result = wide(y)[place[:, i]]
            if scores is not None:
                result = result * scores[:, i, None]
            total = result if i == 0 else total + result
        assert out.tobytes() == narrow(total, type).tobytes()


def test_an_expert_more_than_once_in_a_row(card: Remote) -> None:
    chosen = np.array([[2, 2, 0], [2, 0, 0]], np.int64)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    _, offsets, source = card.call(
        "cases_moe.moe_dispatch", x=x, type="F32", experts=chosen, num_experts=4, scores=None
    )
    assert source.tolist() == [2, 4, 5, 0, 1, 3] and offsets.tolist() == [0, 3, 3, 6, 6]


def test_many_experts_and_none_chosen(card: Remote) -> None:
    chosen = np.array([[699], [3]], np.int64)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    gathered, offsets, source = card.call(
        "cases_moe.moe_dispatch", x=x, type="F32", experts=chosen, num_experts=700, scores=None
    )
    assert source.tolist() == [1, 0] and (gathered == x[::-1]).all()
    assert offsets.tolist() == [0] * 4 + [1] * 696 + [2]


def test_no_permutation(card: Remote) -> None:
    """A choice that source lacks makes its row NaN; nothing is read where nothing lies."""
    y = np.ones((4, 4), np.float32)
    for source, broken in (
        ([0, 0, 2, 3], [True, False]),
        ([0, 1, 2, 1 << 40], [False, True]),
        ([-1, 1, 2, 3], [True, False]),
    ):
        out = card.call(
            "cases_moe.moe_combine",
            y=y,
            type="F32",
            source=np.array(source, np.int64),
            rows=2,
            scores=None,
            written=True,
        )
        assert np.isnan(out).all(1).tolist() == broken
