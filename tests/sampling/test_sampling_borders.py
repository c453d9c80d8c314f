"""Borders that no random draw hits, reached exactly: Philox is a bijection, so its output can be chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llama_ext.sampling import SamplingParams, philox, sample_reference, survivors, weights

Draw = Callable[..., int]
Logits = npt.NDArray[np.float32]
LEVELS = ("portable", "avx2", "avx512")


def counter_for(seed: int, bits: int) -> tuple[int, int]:
    """The (position, draw) at which philox's first two words are `bits`: its ten rounds, backwards."""
    mask = 0xFFFFFFFF
    inverse0, inverse1 = pow(0xD2511F53, -1, 2**32), pow(0xCD9E8D57, -1, 2**32)
    c0, c1, c2, c3 = bits & mask, bits >> 32, 1, 2
    for turn in reversed(range(10)):
        k0, k1 = ((seed & mask) + turn * 0x9E3779B9) & mask, ((seed >> 32) + turn * 0xBB67AE85) & mask
        b0, b2 = c3 * inverse0 & mask, c1 * inverse1 & mask
        c0, c1, c2, c3 = b0, c0 ^ (0xCD9E8D57 * b2 >> 32) ^ k0, b2, c2 ^ (0xD2511F53 * b0 >> 32) ^ k1
    return c1 << 32 | c0, c3 << 32 | c2


def test_the_inverse_is_one() -> None:
    seed, bits = 0x0123456789ABCDEF, 0xFEDCBA9876543210
    position, draw = counter_for(seed, bits)
    assert philox(seed, position, draw)[:2] == (bits & 0xFFFFFFFF, bits >> 32)


@pytest.mark.parametrize("options", [{}, {"top_k": 100}, {"top_p": 0.97}, {"min_p": 0.01}], ids=str)
def test_each_token_owns_exactly_its_interval(draw_native: Draw, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(8)
    logits = rng.normal(0, 2, 200).astype(np.float32)
    logits[64:128] = -np.inf  # a block of the CPU's walk that is skipped: nothing of an earlier call may show
    draw_native(np.zeros(200, np.float32), SamplingParams())
    params = SamplingParams(seed=99, **options)
    ids, w = survivors(logits, params)
    ends = np.cumsum(w).tolist()
    for i, end in enumerate(ends):
        first = -(-(end << 64) // ends[-1])  # the least r whose threshold is `end`
        for r, expected in ((first - 1, i), (first, i + 1)):
            if r == 2**64:
                continue
            position, draw = counter_for(99, r)
            assert sample_reference(logits, params, (), position, draw) == ids[expected]
            for level in LEVELS:
                assert draw_native(logits, params, (), position, draw, level) == ids[expected]


def check_kept(draw_native: Draw, logits: Logits, params: SamplingParams, ids: set[int]) -> None:
    assert set(survivors(logits, params)[0].tolist()) == ids
    for level in LEVELS:
        assert {draw_native(logits, params, (), position, 0, level) for position in range(200)} == ids


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.999999}], ids=str)
def test_min_p_keeps_a_weight_exactly_at_the_border(draw_native: Draw, options: dict[str, Any]) -> None:
    logits = np.array([0, -0.7, -1.3, -2], np.float32)
    border = int(weights(logits)[2])
    at, above = border / 2**40, (border + 0.25) / 2**40  # both exact in float64
    check_kept(draw_native, logits, SamplingParams(min_p=at, **options), {0, 1, 2})
    check_kept(draw_native, logits, SamplingParams(min_p=above, **options), {0, 1})


def test_top_p_rounds_its_target_up(draw_native: Draw) -> None:
    rng = np.random.default_rng(2)
    found = 0
    while found < 3:
        logits = np.array([0, rng.uniform(-1, -0.5), rng.uniform(-2, -1.5)], np.float32)
        w = [int(x) for x in weights(logits)]
        prefix, total = w[0] + w[1], sum(w)
        share = -(-(prefix << 32) // total)
        if share * total >> 32 != prefix or share * total % 2**32 == 0:
            continue
        found += 1  # the target lies between prefix and prefix + 1
        check_kept(draw_native, logits, SamplingParams(top_p=share / 2**32), {0, 1, 2})
        check_kept(draw_native, logits, SamplingParams(top_p=(share - 1) / 2**32), {0, 1})
