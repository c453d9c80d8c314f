"""Drawn tokens follow the exact softmax after the filters: a chi-square test, and samplers it must reject."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from llama_ext.sampling import SamplingParams

Draw = Callable[..., int]
DRAWS = 20_000
LOGITS = np.random.default_rng(5).normal(0, 2, 200).astype(np.float32)
CASES = [
    SamplingParams(),
    SamplingParams(temperature=0.7),
    SamplingParams(top_k=30),
    SamplingParams(top_p=0.8),
    SamplingParams(min_p=0.05),
    SamplingParams(temperature=1.3, top_k=60, top_p=0.9, min_p=0.02),
]


def exact(params: SamplingParams) -> npt.NDArray[np.float64]:
    """Probabilities [vocab] in float64, written without the code under test. LOGITS has no ties."""
    order = np.argsort(-LOGITS)
    p = np.exp((LOGITS[order].astype(np.float64) - LOGITS.max()) / params.temperature)
    if params.top_k:
        p[params.top_k :] = 0
    before = np.cumsum(p) - p
    p[before >= params.top_p * p.sum()] = 0
    p[p < params.min_p * p[0]] = 0
    out = np.zeros(len(p))
    out[order] = p / p.sum()
    return out


def fits(ids: npt.NDArray[np.int64], p: npt.NDArray[np.float64]) -> bool:
    """Pearson's chi-square, cells of at least 5 expected draws; a right sampler fails once in a million."""
    seen = np.bincount(ids, minlength=len(p)).astype(float)
    if seen[p == 0].any():
        return False
    expected = p * len(ids)
    rare = expected < 5
    if expected[rare].sum() >= 5:
        expected = np.append(expected[~rare], expected[rare].sum())
        seen = np.append(seen[~rare], seen[rare].sum())
    else:
        expected, seen = expected[~rare], seen[~rare]
    statistic = float(((seen - expected) ** 2 / expected).sum())
    freedom = len(expected) - 1
    tail = 4.7534  # of a standard normal, with probability 1e-6; made a chi-square's after Wilson and Hilferty
    bound = freedom * (1 - 2 / (9 * freedom) + tail * (2 / (9 * freedom)) ** 0.5) ** 3
    return bool(statistic < bound)


def drawn(sampler: Callable[[int], int]) -> npt.NDArray[np.int64]:
    return np.array([sampler(i) for i in range(DRAWS)])


@pytest.mark.parametrize("params", CASES, ids=range(len(CASES)))
def test_positions_draw_from_the_exact_distribution(draw_native: Draw, params: SamplingParams) -> None:
    assert fits(drawn(lambda i: draw_native(LOGITS, params, (), i)), exact(params))


def test_draws_and_seeds_do_too(draw_native: Draw) -> None:
    params = SamplingParams(top_k=30)
    assert fits(drawn(lambda i: draw_native(LOGITS, params, (), 3, i)), exact(params))
    assert fits(drawn(lambda i: draw_native(LOGITS, SamplingParams(top_k=30, seed=i), (), 3)), exact(params))


def test_successive_positions_are_independent(draw_native: Draw) -> None:
    logits = LOGITS[:6]
    ids = drawn(lambda i: draw_native(logits, SamplingParams(), (), i))
    p = np.exp(logits.astype(np.float64))
    p /= p.sum()
    assert fits(ids[:-1:2] * 6 + ids[1::2], np.outer(p, p).ravel())


def test_wrong_samplers_are_rejected(draw_native: Draw) -> None:
    params, p = SamplingParams(), exact(SamplingParams())
    warm = SamplingParams(temperature=1.1)
    assert not fits(drawn(lambda i: draw_native(LOGITS, warm, (), i)), p)
    assert not fits(drawn(lambda i: draw_native(LOGITS, params, (), i % 1000)), p)  # a counter that wraps
    one_more = SamplingParams(top_k=31)
    assert not fits(drawn(lambda i: draw_native(LOGITS, one_more, (), i)), exact(SamplingParams(top_k=30)))
    ids = drawn(lambda i: draw_native(LOGITS, params, (), i))
    assert not fits(np.minimum(ids + 1, 199), p)  # a walk that stops one token late
