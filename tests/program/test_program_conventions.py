"""What the family leaves open and we chose: who wins a tie among experts, in which type they are compared, and where a
norm rounds. On the reference and on the CPU executor, whose order of everything else is another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import models
import numpy as np
import numpy.typing as npt
import pytest
import tolerances
import torch
from models import (
    CpuSession,
    Floats,
    Of,
    build,
    deviation,
    mixtral_config,
    plain_feed_forward,
    plain_logits,
    random_ids,
    random_weights,
    scout_config,
    tiny_config,
)

from llama_ext import _core
from llama_ext.config import LlamaConfig
from llama_ext.program import Program
from llama_ext.reference import ReferenceSession

LENGTH = 24
SESSIONS: dict[str, Callable[[Program], Any]] = {"reference": ReferenceSession, "cpu": CpuSession}
EXPERTS = 12
MIXTURES: dict[str, LlamaConfig] = {
    "scout": scout_config(8, num_local_experts=EXPERTS),
    "scout-top3": scout_config(8, num_local_experts=EXPERTS, num_experts_per_tok=3),
    "mixtral": mixtral_config(num_local_experts=EXPERTS),
}


def bf16(x: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    rounded: npt.NDArray[np.float64] = torch.tensor(x).to(torch.bfloat16).double().numpy()
    return rounded


def routers(config: LlamaConfig, weights: dict[str, Floats], change: Callable[[Floats], Floats]) -> dict[str, Floats]:
    return weights | {name: change(w) for name, w in weights.items() if name.endswith(".router")}


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("session", SESSIONS)
def test_equal_logits_go_to_the_lowest_experts(name: str, session: str) -> None:
    """All rows of each router are the same: the first experts are chosen, and what the others hold changes no bit."""
    config, chosen = MIXTURES[name], MIXTURES[name].num_experts_per_tok
    weights = routers(config, random_weights(config, seed=5), lambda w: np.repeat(w[:1], EXPERTS, axis=0))
    ids = random_ids(config, LENGTH)

    def logits(spoilt: range | list[int]) -> Floats:
        parts = tuple(f".experts.{e}." for e in spoilt)
        changed = {n: -w if any(part in n for part in parts) else w for n, w in weights.items()}
        found: Floats = SESSIONS[session](build(config, changed, kv_cache="f32", max_rows=LENGTH)).logits(ids)
        return found

    expected = logits([])
    assert np.array_equal(logits(range(chosen, EXPERTS)), expected)
    for expert in range(chosen):
        assert deviation(logits([expert]), expected) > 100 * tolerances.EXECUTOR_FLOAT


@pytest.mark.parametrize("name", MIXTURES)
def test_near_ties_are_decided_in_float32(name: str) -> None:
    """Logits that lie 2^-12 of their size apart, in another order than the experts': bfloat16, of 2^-8, would take them
    for equal, or swap them."""
    config = MIXTURES[name]
    # 1 + k 2^-12, the largest last but three, so that neither end of the list is right for either sign.
    factors = 1 + np.array([3, 9, 1, 7, 5, 10, 4, 2, 11, 0, 8, 6])[:, None] * 2.0**-12
    weights = routers(config, random_weights(config, seed=6), lambda w: (w[:1] * factors).astype(np.float32))
    ids = random_ids(config, LENGTH)
    expected = plain_logits(config, weights, ids)
    program = build(config, weights, kv_cache="f32", max_rows=LENGTH)
    assert deviation(ReferenceSession(program).logits(ids), expected) < tolerances.REFERENCE
    assert deviation(CpuSession(program).logits(ids), expected) < tolerances.EXECUTOR_FLOAT

    def narrow(config: LlamaConfig, m: npt.NDArray[np.float64], of: Of) -> npt.NDArray[np.float64]:
        """The mixture whose choice is made in bfloat16; its scores are exact."""
        logits = m @ of("router").T
        chosen = np.argsort(-bf16(logits), axis=1, kind="stable")[:, : config.num_experts_per_tok]
        best = np.take_along_axis(logits, chosen, axis=1)
        sigmoid = config.expert_scoring == "sigmoid"
        scores = 1 / (1 + np.exp(-best)) if sigmoid else np.exp(best) / np.exp(best).sum(1, keepdims=True)
        out = plain_feed_forward(m, of, "shared.") if config.shared_expert else np.zeros_like(m)
        for row in range(len(m)):
            for e, s in zip(chosen[row], scores[row], strict=True):
                one, prefix = m[row : row + 1], f"experts.{e}."
                out[row] += (
                    plain_feed_forward(s * one, of, prefix) if sigmoid else s * plain_feed_forward(one, of, prefix)
                )[0]
        return out

    assert deviation(plain_logits(config, weights, ids, mixture=narrow), expected) > 100 * tolerances.EXECUTOR_FLOAT


@pytest.mark.parametrize("session", SESSIONS)
def test_a_norm_rounds_nowhere(session: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the weights are stored in. transformers, in bfloat16, rounds the normalised row before its weight is
    applied, and the product too."""
    config = tiny_config()
    weights = {n: bf16(w).astype(np.float32) for n, w in random_weights(config, seed=7).items()}
    ids = random_ids(config, LENGTH)
    expected = plain_logits(config, weights, ids)
    program = build(config, weights, format="BF16", kv_cache="f32", max_rows=LENGTH)
    found = SESSIONS[session](program).logits(ids)
    assert deviation(found, expected) < tolerances.REFERENCE
    exact = models.plain_norm

    def before_the_weight(config: LlamaConfig, x: npt.NDArray[np.float64], weight: Any) -> npt.NDArray[np.float64]:
        return bf16(exact(config, x, 1.0)) * weight

    def after_the_weight(config: LlamaConfig, x: npt.NDArray[np.float64], weight: Any) -> npt.NDArray[np.float64]:
        return bf16(exact(config, x, weight))

    for rounded in (before_the_weight, after_the_weight):
        monkeypatch.setattr(models, "plain_norm", rounded)
        assert deviation(found, plain_logits(config, weights, ids)) > 10 * tolerances.REFERENCE


def test_ten_million_positions_take_no_table() -> None:
    """Sines and cosines of each position would take `head_dim` floats. What grows with the context, beside the caches,
    is the partial results of attention: one of head_dim + 4 floats a head for each 128 positions."""
    sizes = {}
    for context in (256, 10_485_760):
        config = scout_config(8192, max_position_embeddings=context)
        program = build(config, random_weights(config), max_rows=LENGTH)
        assert program.native.max_context == context
        sizes[context] = _core.Executor.measure(program.native, threads=2)
    grown = sizes[10_485_760]["buffers"] - sizes[256]["buffers"]
    partials = config.num_attention_heads * (config.head_dim + 4) * 4 * (10_485_760 - 256) // 128
    assert 0 <= grown - partials < 10**6 < 10_485_760 * config.head_dim * 4
    assert {**sizes[256], "buffers": 0} == {**sizes[10_485_760], "buffers": 0}
