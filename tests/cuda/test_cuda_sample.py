"""The sampler gives the ids of the CPU's, draw by draw: every filter, tail of a slice, ties, infinities, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cases_sample import UNTOUCHED
from cuda_worker import Remote

from llama_ext import LlamaExtError, _core
from llama_ext.sampling import SamplingParams, sample_reference

INF = np.inf
NAN_FOUND, BAD_HISTORY = -1, -2

Draw = dict[str, Any]


def expected(draw: Draw) -> int:
    """What the CPU draws; where it raises, the code that stands for the error."""
    if not draw.get("wanted", True):
        return UNTOUCHED
    params, position, index = draw.get("params", {}), draw.get("position", 0), draw.get("draw", 0)
    history = np.asarray(draw.get("history", ()), np.int32)
    try:
        return _core.sample(draw["logits"], _core.SamplingParams(**params), history, position, index)
    except LlamaExtError:
        return NAN_FOUND
    except ValueError:
        return BAD_HISTORY


def check(card: Remote, draws: list[Draw], seed: int = 0, **options: Any) -> list[int]:
    found: list[int] = card.call("cases_sample.sample", seed, draws=draws, **options)
    for i, (id_, draw) in enumerate(zip(found, draws, strict=True)):
        assert id_ == expected(draw), (i, {name: value for name, value in draw.items() if name != "logits"})
    return found


def random_logits(random: np.random.Generator, vocab: int) -> np.ndarray:
    x = random.standard_normal(vocab)
    kind = random.integers(0, 13)
    if kind <= 4:
        x *= (0.01, 0.5, 2, 5, 12)[kind]
    elif kind == 5:
        x = np.round(x * 2)  # many ties
    elif kind == 6:
        x[:] = x[0]
    elif kind == 7:
        x = np.sort(x * 4)[:: random.choice([-1, 1])]
    elif kind == 8:
        x = np.where(random.random(vocab) < 0.9, -INF, x * 3)
    elif kind == 9:
        x *= random.choice([1e38, 1e-42])  # infinities, subnormals
    elif kind == 10:
        x[random.integers(0, vocab, 1 + vocab // 50)] = INF
    elif kind == 11:
        x = np.where(random.random(vocab) < 0.5, 0.0, -0.0)
    else:
        x[:] = -INF
        if random.random() < 0.7:
            x[random.integers(0, vocab)] = 1
    with np.errstate(over="ignore"):
        return x.astype(np.float32)


def random_draw(random: np.random.Generator, vocab: int) -> Draw:
    def sometimes(off: float, *values: float) -> float:
        return off if random.random() < 0.5 else float(random.choice(values))

    draw: Draw = {"logits": random_logits(random, vocab)}
    draw["params"] = {
        "temperature": float(random.choice([0, 1, 1, 0.8, 0.8, 0.3, 1.7, 100, 1e-3, 1e-42, 1e300])),
        "top_k": int(sometimes(0, 1, 2, 40, 300, 900, max(1, vocab // 2), max(1, vocab - 1), vocab, 2 * vocab)),
        "top_p": sometimes(1, 0.99, 0.95, 0.9, 0.5, 0.1, 1e-12, 1 - 1e-9),
        "min_p": sometimes(0, 0.05, 0.001, 0.5, 0.999999),
        "repetition_penalty": sometimes(1, 1.1, 2, 0.5, 1e-6, 1e6),
        "seed": int(random.integers(0, 2**64, dtype=np.uint64)),
    }
    draw["history"] = random.integers(0, vocab, int(random.choice([0, 1, 7, 600])))
    draw["position"] = int(random.choice([1, 8191, 10_000_003]))
    draw["rows"] = int(random.choice([1, 5]))
    draw["draw"] = int(random.choice([0, 1, 2**63 + 5]))
    draw["wanted"] = bool(random.random() < 0.97)
    if random.random() < 0.04:
        draw["logits"][random.integers(0, vocab)] = np.nan
    if len(draw["history"]) and random.random() < 0.04:
        draw["history"][-1] = random.choice([-1, vocab, 2**31 - 1])
    return draw


# A thread has 4 logits, a warp 128, a block 2048.
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("vocab", [1, 2, 3, 31, 127, 128, 129, 1025, 2047, 2048, 2049, 4101, 10_007])
def test_draws(card: Remote, vocab: int, seed: int) -> None:
    random = np.random.default_rng([vocab, seed])
    draws = [random_draw(random, vocab) for _ in range(40 if vocab > 4000 else 80)]
    check(card, draws, seed, captured=bool(seed), offset=int(random.integers(0, 4)))


def test_draws_of_the_reference(card: Remote) -> None:
    """Not by way of the CPU's sampler, but from the definition."""
    random = np.random.default_rng(5)
    draws = []
    while len(draws) < 40:
        draw = random_draw(random, 1500)
        if draw["wanted"] and expected(draw) >= 0:
            draws.append(draw)
    found = card.call("cases_sample.sample", 3, draws=draws)
    for id_, draw in zip(found, draws, strict=True):
        params = SamplingParams(**draw["params"])
        assert id_ == sample_reference(draw["logits"], params, draw["history"], draw["position"], draw["draw"])


@pytest.mark.parametrize("vocab", [128_256, 262_144])
def test_large_vocabularies(card_of: Callable[[str], Remote], vocab: int) -> None:
    random = np.random.default_rng(vocab)
    peaked = (random.standard_normal(vocab) * 2.5).astype(np.float32)
    peaked[random.integers(0, vocab, 20)] += 15
    flat = np.zeros(vocab, np.float32)
    draws: list[Draw] = [
        {"logits": peaked, "params": {"temperature": 0.0}},
        {"logits": flat, "params": {"temperature": 0.0}},
        {"logits": flat, "params": {"seed": 3}},
        {"logits": flat, "params": {"top_p": 0.7, "seed": 9}},
        {"logits": peaked, "params": {"temperature": 0.8, "top_p": 0.95}},
        {"logits": peaked, "params": {"temperature": 3.0, "top_p": 0.9, "top_k": 100_000, "min_p": 1e-4}},
        {"logits": peaked, "params": {"top_k": 40, "repetition_penalty": 1.1}, "history": [5, vocab - 1, 5]},
    ]
    card = card_of("sm_90" if vocab == 128_256 else "sm_80")
    assert len(set(check(card, draws, 1))) > 3


def test_one_bit_apart(card: Remote) -> None:
    """Limits that fall between neighbours of the smallest possible distance, and among equals."""
    random = np.random.default_rng(8)
    top = np.float32(17.25)
    ladder = top - np.arange(600) * np.spacing(top)  # a float32 each
    draws = []
    for i in range(60):
        logits = np.full(5000, -3, np.float32)
        places = random.permutation(5000)[:900]
        logits[places[:600]] = ladder[random.integers(0, 600, 600)] if i % 2 else ladder
        logits[places[600:]] = 17.25 if i % 3 else 11
        params: dict[str, Any] = {"seed": i}
        if i % 4 < 3:
            params["top_k"] = int(random.integers(1, 900))
        if i % 4 > 1:
            params["top_p"] = float(random.random())
        draws += [{"logits": logits, "params": params, "position": p} for p in range(1, 4)]
    assert len(set(check(card, draws, 2))) > 100


def test_ties_go_to_the_lowest_id(card: Remote) -> None:
    logits = np.full(7000, 2.5, np.float32)
    logits[:2100] = -1
    greedy: Draw = {"logits": logits, "params": {"temperature": 0.0}}
    first: Draw = {"logits": logits, "params": {"top_k": 1}}
    penalised: Draw = {**greedy, "params": {"temperature": 0.0, "repetition_penalty": 1.5}, "history": [2100, 2101] * 9}
    zeros = np.zeros(4100, np.float32)
    zeros[:4099] = -0.0
    assert check(card, [greedy, first, penalised], 1) == [2100, 2100, 2102]
    assert check(card, [{"logits": zeros, "params": {"temperature": 0.0}}], 1) == [0]


def test_errors(card: Remote) -> None:
    """A history beats a NaN, as on the CPU; and neither outlives its draw."""
    fine = np.arange(3000, dtype=np.float32)
    nan = fine.copy()
    nan[2500] = np.nan
    penalty = {"repetition_penalty": 2.0}
    draws: list[Draw] = []
    for params in ({"temperature": 0.0}, {}, {"top_p": 0.5}):
        draws += [
            {"logits": fine, "params": params},
            {"logits": nan, "params": params},
            {"logits": nan, "params": {**params, **penalty}, "history": [3000]},
            {"logits": fine, "params": params, "history": [-5]},  # not read
            {"logits": fine, "params": {**params, **penalty}, "history": [7, -5, 8]},
            {"logits": fine, "params": {**params, **penalty}, "history": [7]},
        ]
    found = check(card, draws, 4)
    assert found[:6] == [2999, NAN_FOUND, BAD_HISTORY, 2999, BAD_HISTORY, 2999]


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_between_launches(card: Remote, seed: int, captured: bool) -> None:
    """Neighbours write the logits: on sm_90 they overlap, and so do two launches of the sampler itself."""
    random = np.random.default_rng(seed)
    logits = random.standard_normal(4500).astype(np.float32) * 4
    draws: list[Draw] = []
    for params in ({"temperature": 0.0}, {"seed": seed}, {"top_p": 0.3}, {"top_k": 50, "repetition_penalty": 1.3}):
        draws.append({"logits": logits, "params": params, "history": [3, 4, 5]})
    found = card.call("cases_sample.sample", seed, draws=draws, captured=captured, between=True)
    shrunk = card.call("rms_norm", x=logits[:, None], weight=None, eps=1.0)[0][:, 0]
    assert found == [expected({**draw, "logits": shrunk}) for draw in draws]


@pytest.mark.parametrize("seed", range(6))
def test_every_order_of_blocks(card: Remote, seed: int) -> None:
    random = np.random.default_rng(77)
    draws = [random_draw(random, 9000) for _ in range(10)]
    check(card, draws, seed + 100, captured=True)
