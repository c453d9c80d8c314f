"""A row's logits depend on its ids and position, never on how a text is cut into steps: on the reference, against a
second implementation that has neither steps nor a cache."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import tolerances
import torch
from models import (
    build,
    deviation,
    llama4_config,
    plain_logits,
    random_ids,
    random_weights,
    replaced,
    stepped,
    tiny_config,
    variants,
)

from llama_ext.program import Program
from llama_ext.reference import ReferenceSession, q8_0

LENGTH = 40  # five chunks of 8, ten of 4, eight windows of 5
VARIANTS = variants()


@pytest.fixture(scope="module", params=VARIANTS, ids=str)
def case(request: pytest.FixtureRequest) -> tuple[Program, list[int], np.ndarray]:
    config = VARIANTS[request.param]
    weights = random_weights(config, seed=3)
    ids = random_ids(config, LENGTH)
    program = build(config, weights, kv_cache="f32", max_rows=16)
    return program, ids, plain_logits(config, weights, ids)


@pytest.mark.parametrize("rows", [LENGTH, 1, 2, 3, 7, 16])
def test_any_steps_equal_the_plain_implementation(case: tuple[Program, list[int], np.ndarray], rows: int) -> None:
    program, ids, expected = case
    found = stepped(ReferenceSession(program), ids, rows)
    assert deviation(found, expected) < tolerances.REFERENCE


def test_steps_of_changing_size(case: tuple[Program, list[int], np.ndarray]) -> None:
    program, ids, expected = case
    for seed in range(4):
        session, found, at = ReferenceSession(program), [], 0
        rng = np.random.default_rng(seed)
        while at < LENGTH:
            rows = int(rng.integers(1, 17))
            found.append(session.logits(ids[at : at + rows]))
            at += rows
        assert deviation(np.concatenate(found), expected) < tolerances.REFERENCE


def test_prefill_and_step_are_the_same_session(case: tuple[Program, list[int], np.ndarray]) -> None:
    program, ids, expected = case
    session = ReferenceSession(program)
    session.prefill(ids[:19])
    assert session.position == 19
    found = np.stack([session.step(token) for token in ids[19:]])
    assert deviation(found, expected[19:]) < tolerances.REFERENCE
    session.reset()
    assert session.position == 0
    assert deviation(session.logits(ids), expected) < tolerances.REFERENCE


def test_the_check_finds_planted_mistakes() -> None:
    """Each twin computes a slightly different model; the tolerance must tell it from the right one by far."""
    chunked, sliding = llama4_config(4), tiny_config(sliding_window=5)
    weights = random_weights(chunked, seed=3)
    ids = random_ids(chunked, LENGTH)
    right = plain_logits(chunked, weights, ids)
    wrong = {
        "chunk of 5": plain_logits(chunked, weights, ids, mask_shift=1),
        "temperature one late": plain_logits(chunked, weights, ids, temperature_shift=-1),
        "no temperature": plain_logits(replaced(chunked, attn_temperature_tuning=False), weights, ids),
        "no qk-norm": plain_logits(replaced(chunked, use_qk_norm=False), weights, ids),
        "a window for a chunk": plain_logits(
            replaced(chunked, layer_kinds=("sliding",) * 3 + ("global",), sliding_window=4), weights, ids
        ),
        "rope everywhere": plain_logits(replaced(chunked, rope_layers=(True,) * 4), weights, ids),
        "rope theta": plain_logits(replaced(chunked, rope_theta=9000.0), weights, ids),
        "eps": plain_logits(replaced(chunked, rms_norm_eps=1e-3), weights, ids),
    }
    for name, logits in wrong.items():
        assert deviation(logits, right) > 10 * tolerances.REFERENCE, name
    # The first chunk sees no difference between a chunk and a window: a test of one chunk would pass the wrong model.
    assert deviation(wrong["a window for a chunk"][:4], right[:4]) == 0
    weights = random_weights(sliding, seed=3)
    for shift in (-1, 1):
        twin = plain_logits(sliding, weights, ids, mask_shift=shift)
        assert deviation(twin, plain_logits(sliding, weights, ids)) > 10 * tolerances.REFERENCE


@pytest.mark.parametrize("group", [1, 3, 4, 5, 8])
def test_query_heads_share_key_value_heads_in_order(group: int) -> None:
    config = tiny_config(num_attention_heads=2 * group, num_key_value_heads=2, num_hidden_layers=2)
    weights = random_weights(config, seed=5)
    ids = random_ids(config, 9)
    found = ReferenceSession(build(config, weights, kv_cache="f32")).logits(ids)
    assert deviation(found, plain_logits(config, weights, ids)) < tolerances.REFERENCE
    if group > 1:  # key-value heads swapped
        for layer in range(2):
            for name in "kv":
                w = weights[f"layers.{layer}.{name}"]
                weights[f"layers.{layer}.{name}"] = np.concatenate([w[8:], w[:8]])
        assert deviation(found, plain_logits(config, weights, ids)) > 10 * tolerances.REFERENCE


@pytest.mark.parametrize("kv_cache", ["f16", "bf16", "q8_0"])
def test_narrow_caches_lose_only_their_rounding(kv_cache: str) -> None:
    config = llama4_config(8, head_dim=32)
    weights = random_weights(config, seed=4)
    ids = random_ids(config, 30)
    session = ReferenceSession(build(config, weights, kv_cache=kv_cache, max_rows=16))
    found = session.logits(ids)
    # One rounding of 2^-11 or 2^-8 of every key and value, or of half a step of its block, through four layers.
    rounding = {"f16": 2.0**-11, "bf16": 2.0**-8, "q8_0": 0.5 / 127}[kv_cache]
    assert rounding / 100 < deviation(found, plain_logits(config, weights, ids)) < 10 * rounding
    again = ReferenceSession(build(config, weights, kv_cache=kv_cache, max_rows=16))
    assert deviation(stepped(again, ids, 1), found) < tolerances.CACHE[kv_cache]


def test_q8_0_is_ggmls() -> None:
    """The definition against the gguf package's quantizer, for scales from f16's smallest to its largest."""
    rng = np.random.default_rng(11)
    size = 2.0 ** rng.uniform(-24, 16, (4000, 1))
    x = (rng.normal(0, 1, (4000, 96)) * size).astype(np.float32)
    x[::7, :32] = 0
    q8 = gguf.GGMLQuantizationType.Q8_0
    expected = gguf.quants.dequantize(gguf.quants.quantize(x, q8), q8)
    found = q8_0(torch.from_numpy(x)).numpy()
    # It multiplies by a rounded 1 / d where we multiply by a rounded 127 / max: a quotient next to a half may fall on
    # either side.
    apart = found != expected
    step = np.abs(x.reshape(-1, 3, 32)).max(-1).repeat(32, -1).reshape(x.shape) / 127
    assert apart.mean() < 1e-4 and (np.abs(found - expected) <= 1.1 * step)[apart].all()
    half_a_step = 0.5 * step + 127 * 2.0**-11 * step + 127 * 2.0**-25  # the quotient's, the scale's normal or subnormal
    assert (np.abs(found - x) <= half_a_step).all() and not (np.abs(found - x) <= 0.4 * step).all()


def test_q8_0_at_its_borders() -> None:
    ties = torch.zeros(1, 32)
    ties[0, :8] = torch.tensor([127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5])
    assert q8_0(ties)[0, :8].tolist() == [127, 0, 2, 2, 0, -2, -2, 126]
    for bad in (torch.nan, torch.inf, -torch.inf, 1e7):
        x = torch.ones(2, 64)
        x[1, 40] = bad
        finite = torch.isfinite(q8_0(x))
        assert not finite[1, 32:].any() and finite.sum() == 96
    for small in (0.0, 1e-38, 1e-45, 1e-7):  # nothing, and what f16's scale cannot hold
        assert (q8_0(torch.full((1, 32), small)) == 0).all()
    assert (q8_0(torch.full((1, 32), 2e-5)) > 0).all()
