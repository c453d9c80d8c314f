"""`perplexity`: windows, strides, and the sum itself against a plain computation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tiny_model import VOCAB

import llama_ext
from llama_ext.perplexity import perplexity


def plain(llm: llama_ext.Llama, ids: list[int], window: int, stride: int) -> tuple[float, int]:
    """Every window whole, then pick: Hugging Face's loop."""
    total, scored, reached = 0.0, 0, 0
    for start in range(0, len(ids), stride):
        end = min(start + window, len(ids))
        logits = llm.session().logits(ids[start:end]).astype(np.float64)
        for index in range(max(reached, start + 1), end):
            row = logits[index - start - 1]
            total -= row[ids[index]] - np.log(np.exp(row).sum())
            scored += 1
        reached = end
        if end == len(ids):
            break
    return total / scored, scored


@pytest.mark.parametrize(
    ("count", "window", "stride"),
    [
        (2, 2048, None),
        (300, 2048, None),
        (300, 100, None),
        (301, 100, None),
        (300, 64, 16),
        (40, 10, 1),
        (9, 2, 1),
    ],
)
def test_against_a_plain_computation(tiny: llama_ext.Llama, count: int, window: int, stride: int | None) -> None:
    ids: list[int] = np.random.default_rng(count).integers(0, VOCAB, count).tolist()
    seen: list[tuple[int, int]] = []
    result = perplexity(
        tiny, ids, window=window, stride=stride, progress=lambda done, total: seen.append((done, total))
    )
    nll, scored = plain(tiny, ids, window, stride or window)
    assert result.nll == pytest.approx(nll, rel=1e-9) and result.scored == scored
    assert result.perplexity == pytest.approx(np.exp(nll), rel=1e-9) and result.tokens == count
    assert seen == sorted(seen) and seen[-1] == (count, count)


def test_counts(tiny: llama_ext.Llama) -> None:
    result = perplexity(tiny, "x" * 300, window=100)
    assert (result.windows, result.scored, result.tokens, result.stride) == (3, 297, 300, 100)
    assert perplexity(tiny, "x" * 301, window=100).windows == 3  # the last one would score nothing
    assert perplexity(tiny, "x" * 300, window=100, stride=50).scored == 299
    assert perplexity(tiny, "xy").window == 2048


def test_a_sensible_text_is_likelier(smollm2: llama_ext.Llama) -> None:
    good = perplexity(smollm2, "The cat sat on the mat and looked at the birds outside.")
    bad = perplexity(smollm2, "The mat sat at the birds and cat outside on the looked.")
    assert 10 < good.perplexity < 200 < bad.perplexity


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"window": 1}, "window must be from 2 to the context, 2048, not 1"),
        ({"window": 4096}, "window must be"),
        ({"window": 2.5}, "window must be"),
        ({"window": 10, "stride": 11}, "stride must be from 1 to the window, 10, not 11"),
        ({"stride": 0}, "stride must be"),
    ],
)
def test_bad_windows(tiny: llama_ext.Llama, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(llama_ext.OptionError, match=sentence):
        perplexity(tiny, "hello", **options)


def test_too_short(tiny: llama_ext.Llama) -> None:
    texts: list[str | list[int]] = ["", "x", []]
    for text in texts:
        with pytest.raises(llama_ext.OptionError, match="give at least two"):
            perplexity(tiny, text)
