"""The compiled sampler gives the reference's ids, case by case, at every SIMD level."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llama_ext.errors import LlamaExtError
from llama_ext.sampling import SamplingParams, sample_reference

Draw = Callable[..., int]
INF = np.inf
LEVELS = ("portable", "avx2", "avx512")  # a level that the CPU lacks falls back to the next


def random_logits(rng: np.random.Generator, vocab: int) -> npt.NDArray[np.float32]:
    """Shapes that take different paths: peaked, flat, tied, sorted, sparse, huge, tiny, infinite."""
    x = rng.standard_normal(vocab)
    kind = rng.integers(0, 14)
    if kind <= 3:
        x *= (0.5, 2, 5, 12)[kind]
    elif kind == 4:
        x = np.round(x * 2)  # many ties
    elif kind == 5:
        x[:] = x[0]  # all tied
    elif kind == 6:
        x = np.sort(x * 4)
    elif kind == 7:
        x = -np.sort(x * 4)
    elif kind == 8:
        x = np.where(rng.random(vocab) < 0.9, -INF, x * 3)
    elif kind == 9:
        x *= 1e38
    elif kind == 10:
        x *= 1e-42  # subnormal
    elif kind == 11:
        x[rng.integers(0, vocab, 1 + vocab // 50)] = INF
    elif kind == 12:
        x = np.where(rng.random(vocab) < 0.5, 0.0, -0.0)
    else:
        x[:] = -INF
        if rng.random() < 0.7:
            x[rng.integers(0, vocab)] = 1
    with np.errstate(over="ignore"):
        logits: npt.NDArray[np.float32] = x.astype(np.float32)
    return logits


def random_params(rng: np.random.Generator, vocab: int) -> SamplingParams:
    def sometimes(off: float, *values: float) -> float:
        return off if rng.random() < 0.5 else float(rng.choice(values))

    return SamplingParams(
        temperature=float(rng.choice([0, 1, 1, 0.8, 0.8, 0.3, 1.7, 100, 1e-3, 1e-42, 1e300])),
        top_k=int(sometimes(0, 1, 2, 40, 300, 900, max(1, vocab // 2), max(1, vocab - 1), vocab, 2 * vocab)),
        top_p=sometimes(1, 0.99, 0.95, 0.9, 0.5, 0.1, 1e-12, 1 - 1e-12),
        min_p=sometimes(0, 0.01, 0.05, 0.5, 0.999, 1e-11, 1e-15),
        repetition_penalty=sometimes(1, 1.1, 0.7, 5, 1e-6, 1e6),
        seed=int(rng.integers(0, 2**64, dtype=np.uint64)),
    )


@pytest.mark.parametrize(
    ("vocab", "cases"), [(1, 200), (2, 1000), (63, 1000), (64, 1000), (100, 5000), (4099, 2000), (49152, 400)]
)
def test_same_ids_as_the_reference(draw_native: Draw, vocab: int, cases: int) -> None:
    rng = np.random.default_rng(vocab)
    for case in range(cases):
        logits = random_logits(rng, vocab)
        params = random_params(rng, vocab)
        history = rng.integers(0, vocab, rng.integers(0, 30)).tolist()
        position, draw = rng.integers(0, 2**64, 2, dtype=np.uint64).tolist()
        expected = sample_reference(logits, params, history, position, draw)
        for level in LEVELS:
            got = draw_native(logits, params, history, position, draw, level)
            assert got == expected, f"case {case}, {level}: {params}"


def test_a_larger_vocabulary_after_a_smaller_one_and_back(draw_native: Draw) -> None:
    rng = np.random.default_rng(3)
    for vocab in (10, 128256, 65, 262144, 7):
        logits = rng.normal(0, 3, vocab).astype(np.float32)
        for params in (
            SamplingParams(top_p=0.9),
            SamplingParams(top_k=5),
            SamplingParams(repetition_penalty=1.3),
        ):
            history = [vocab - 1, 0, vocab - 1]
            assert draw_native(logits, params, history, vocab) == sample_reference(logits, params, history, vocab)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("where", [0, 63, 64, 99])
@pytest.mark.parametrize("sign", [1, -1])
def test_nan_is_the_models_fault(draw_native: Draw, level: str, where: int, sign: int) -> None:
    logits = np.zeros(100, np.float32)
    logits[where] = np.copysign(np.nan, sign)
    for params in (
        SamplingParams(),
        SamplingParams(temperature=0),
        SamplingParams(top_k=3),
        SamplingParams(top_p=0.5),
    ):
        with pytest.raises(LlamaExtError, match="NaN"):
            draw_native(logits, params, [], 0, 0, level)


def test_wrong_arguments_are_refused(core: Any) -> None:
    params, history = core.SamplingParams(repetition_penalty=1.5), np.zeros(0, np.int32)
    with pytest.raises(TypeError, match="logits must be a C-contiguous numpy array of float32"):
        core.sample(np.zeros(4), params, history, 0)
    with pytest.raises(TypeError, match="logits must be a C-contiguous numpy array of float32"):
        core.sample(np.zeros(8, np.float32)[::2], params, history, 0)
    with pytest.raises(ValueError, match="logits must have one dimension, not 2"):
        core.sample(np.zeros((2, 2), np.float32), params, history, 0)
    with pytest.raises(ValueError, match="logits must hold 1 to 4194304 values, not 0"):
        core.sample(np.zeros(0, np.float32), params, history, 0)
    with pytest.raises(TypeError, match="history must be a C-contiguous numpy array of int32"):
        core.sample(np.zeros(4, np.float32), params, np.zeros(1, np.int64), 0)
    for wrong in (-1, 4):
        with pytest.raises(ValueError, match="outside the vocabulary of 4"):
            core.sample(np.zeros(4, np.float32), params, np.array([wrong], np.int32), 0)


def test_the_callers_logits_stay_as_they_are(draw_native: Draw) -> None:
    logits = np.ones(100, np.float32)
    logits.flags.writeable = False
    draw_native(logits, SamplingParams(repetition_penalty=2, top_k=4, top_p=0.9), [0, 1])


def test_same_seed_same_ids_and_another_seed_others(draw_native: Draw) -> None:
    logits = np.random.default_rng(0).normal(0, 2, 1000).astype(np.float32)

    def text(seed: int, draw: int = 0) -> list[int]:
        return [draw_native(logits, SamplingParams(seed=seed), [], position, draw) for position in range(50)]

    assert text(1) == text(1)
    texts = [text(1), text(2), text(1 << 32), text(1, 1)]
    for i, one in enumerate(texts):
        for other in texts[:i]:
            assert sum(a == b for a, b in zip(one, other, strict=True)) < 15
