"""The definition in numpy: its corner cases, and its filters against transformers' logits processors."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llama_ext.errors import LlamaExtError
from llama_ext.sampling import WEIGHT_ONE, SamplingParams, log_softmax, sample_reference, survivors

INF = np.inf


def kept(logits: list[float], history: tuple[int, ...] = (), **options: Any) -> list[int]:
    ids: list[int] = survivors(logits, SamplingParams(**options), history)[0].tolist()
    return ids


def huggingface(logits: npt.NDArray[np.float32], params: SamplingParams, history: list[int]) -> npt.NDArray[np.float64]:
    """Probabilities [vocab] after transformers' processors in the order of its own generate(), in float64."""
    chain: list[LogitsProcessor] = [RepetitionPenaltyLogitsProcessor(params.repetition_penalty)]
    chain.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        chain.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        chain.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        chain.append(MinPLogitsWarper(params.min_p))
    ids = torch.tensor([history], dtype=torch.int64)
    scores = torch.tensor(logits, dtype=torch.float64)[None]
    for processor in chain:
        scores = processor(ids, scores)
    probabilities: npt.NDArray[np.float64] = torch.softmax(scores[0], -1).numpy()
    return probabilities


@pytest.mark.parametrize("case", range(60))
def test_filters_keep_what_transformers_keeps(case: int) -> None:
    rng = np.random.default_rng(case)
    vocab = int(rng.choice([3, 50, 1000, 5000]))
    # Between -8 and 8 and T >= 0.6 every z lies above our cutoff, which transformers does not have.
    logits = rng.permutation(np.linspace(-8, 8, vocab) + rng.uniform(-1e-4, 1e-4, vocab)).astype(np.float32)
    history = rng.integers(0, vocab, 20).tolist()
    params = SamplingParams(
        temperature=float(rng.uniform(0.6, 1.5)),
        top_k=int(rng.choice([0, 1, 2, 40, vocab, vocab + 7])),
        top_p=float(rng.choice([1.0, 0.95, 0.5, 0.1, 1e-9])),
        min_p=float(rng.choice([0.0, 0.05, 0.3])),
        repetition_penalty=float(rng.choice([1.0, 1.1, 0.9])),
    )
    expected = huggingface(logits, params, history)
    ids, weight = survivors(logits, params, history)
    assert ids.tolist() == np.flatnonzero(expected).tolist()
    np.testing.assert_allclose(weight / weight.sum(), expected[ids], rtol=2e-5, atol=1e-11)


def test_greedy_takes_the_lowest_of_equals_whatever_the_filters() -> None:
    assert kept([1, 3, 3, 2], temperature=0) == [1]
    assert kept([1, 3, 3, 2], temperature=0, top_k=2, top_p=0.1, min_p=0.9) == [1]
    assert kept([-0.0, 0.0], temperature=0) == [0]


def test_penalty_counts_an_id_once_and_by_sign() -> None:
    assert kept([2, 1.5, -1], (0, 0, 0), temperature=0, repetition_penalty=1.2) == [0]  # 2 / 1.2 > 1.5 > 2 / 1.2^3
    assert kept([-1, -1.5], (0,), temperature=0, repetition_penalty=2) == [1]


def test_ties_are_kept_by_the_lowest_id() -> None:
    assert kept([1, 5, 5, 5], top_k=2) == [1, 2]
    assert kept([0, 0, 0, 0], top_p=0.5) == [0, 1]
    assert kept([0, 0, 0, 0], top_p=0.5000001) == [0, 1, 2]
    assert kept([0, 0, 0, 0], top_k=3, top_p=0.5) == [0, 1]  # of what top-k kept
    assert kept([0, 0, 0, 0], min_p=0.99) == [0, 1, 2, 3]


def test_at_least_one_token_survives() -> None:
    assert kept([0, 1, 0], top_k=1, top_p=1e-300, min_p=0.999) == [1]


def test_infinities() -> None:
    assert kept([-INF, 0, -INF]) == [1]
    assert kept([-INF, -INF]) == [0, 1]
    assert kept([-INF, -INF], temperature=0) == [0]
    assert kept([-INF, -INF, -INF], top_k=2) == [0, 1]
    assert kept([3, INF, -INF, INF]) == [1, 3]
    assert kept([3, INF, -INF, INF], temperature=0) == [1]
    assert kept([-INF, 1, 1], temperature=1e300) == [1, 2]


def test_extreme_temperatures() -> None:
    assert kept([1, 2, 2, 1.99], temperature=1e-320) == [1, 2]
    assert kept([-3e38, 3e38], temperature=1) == [1]
    _, weight = survivors([-50.0, 50.0], SamplingParams(temperature=1e300))
    assert weight.tolist() == [WEIGHT_ONE, WEIGHT_ONE]


def test_nan_is_the_models_fault() -> None:
    for temperature in (0, 1):
        with pytest.raises(LlamaExtError, match="NaN"):
            sample_reference([0, np.nan, 1], SamplingParams(temperature=temperature), [], 0)


def test_wrong_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[vocab\], not \[2, 2\]"):
        survivors(np.zeros((2, 2)), SamplingParams())
    with pytest.raises(ValueError, match=r"\[vocab\], not \[0\]"):
        survivors([], SamplingParams())
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match="outside the vocabulary of 3"):
            survivors([0, 0, 0], SamplingParams(repetition_penalty=1.1), [wrong])


def test_the_callers_logits_stay_as_they_are() -> None:
    logits = np.ones(4, np.float32)
    sample_reference(logits, SamplingParams(repetition_penalty=2), [0, 1], 0)
    assert logits.tolist() == [1, 1, 1, 1]


def test_log_softmax_is_torchs() -> None:
    logits = np.random.default_rng(0).normal(0, 30, (3, 500)).astype(np.float32)
    np.testing.assert_allclose(log_softmax(logits), torch.tensor(logits).double().log_softmax(-1).numpy(), 1e-12, 1e-14)
    assert log_softmax([1e30, -INF]).tolist() == [0, -INF]
    np.testing.assert_allclose(log_softmax([INF, 0, INF]), [-np.log(2), -INF, -np.log(2)])
