"""Rotation and temperature: formulas, borders, tables, and Hugging Face's convention turned into the program's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tolerances
import torch
from models import build, deviation, llama4_config, random_ids, random_weights, replaced, tiny_config
from transformers import LlamaConfig as HfConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from llama_ext import _core
from llama_ext.config import LlamaConfig, RopeScaling
from llama_ext.errors import CheckpointError
from llama_ext.reference import ReferenceSession, rotate, temperature


@pytest.mark.parametrize(("floor_scale", "attn_scale"), [(8192, 0.1), (4, 0.3), (1, 1.0)])
def test_temperature_is_the_formula(floor_scale: int, attn_scale: float) -> None:
    for position in (*range(3 * min(floor_scale, 40)), floor_scale - 2, floor_scale - 1, floor_scale, 10_485_759):
        expected = math.log(math.floor((position + 1) / floor_scale) + 1) * attn_scale + 1
        assert temperature(position, attn_scale, floor_scale) == pytest.approx(expected, rel=1e-15)
    changed = [p for p in range(2 * floor_scale) if temperature(p, attn_scale, floor_scale) != 1.0]
    assert changed[0] == floor_scale - 1


def test_temperature_first_shows_in_the_logits_at_floor_scale_minus_one() -> None:
    with_it = llama4_config(4, floor_scale=6)
    weights = random_weights(with_it)
    ids = random_ids(with_it, 14)
    on, off = (
        ReferenceSession(build(config, weights, kv_cache="f32")).logits(ids)
        for config in (with_it, replaced(with_it, attn_temperature_tuning=False))
    )
    assert np.array_equal(on[:5], off[:5])
    assert (np.abs(on[5:] - off[5:]).max(1) > 1e-4).all()


def test_only_nope_layers_have_temperature_and_only_rope_layers_qk_norm() -> None:
    config = llama4_config(4)
    code = build(config, random_weights(config)).code
    attention = [i for i in code if isinstance(i, _core.Attention)]
    qkv = [i for i in code if isinstance(i, _core.Qkv)]
    assert [i.qk_norm for i in attention] == [True, True, True, False]
    assert [i.temperature_scale > 0 for i in attention] == [False, False, False, True]
    assert [(i.rope, i.rope_chunk) for i in qkv] == [(0, 4), (0, 4), (0, 4), (-1, 0)]


def test_interleaved_rotation_is_hugging_faces_after_the_permutation() -> None:
    rng = np.random.default_rng(2)
    rows, heads, head_dim = 6, 3, 16
    frequencies = torch.tensor([10000.0 ** (-2 * i / head_dim) for i in range(head_dim // 2)], dtype=torch.float64)
    positions = torch.tensor([0, 1, 2, 77, 5000, 131071])
    halves = torch.from_numpy(rng.normal(size=(rows, heads, head_dim)).astype(np.float32))
    interleaved = torch.stack((halves[..., : head_dim // 2], halves[..., head_dim // 2 :]), -1).flatten(-2)
    angle = torch.cat([positions.double()[:, None] * frequencies] * 2, -1)
    theirs, _ = apply_rotary_pos_emb(
        halves.transpose(0, 1)[None], halves.transpose(0, 1)[None], angle.cos().float()[None], angle.sin().float()[None]
    )
    theirs = theirs[0].transpose(0, 1)
    back = torch.stack((theirs[..., : head_dim // 2], theirs[..., head_dim // 2 :]), -1).flatten(-2)
    ours = rotate(interleaved, positions, frequencies)
    assert torch.allclose(ours, back, atol=1e-6, rtol=0)
    # The twin: halves taken for interleaved pairs.
    assert not torch.allclose(rotate(halves, positions, frequencies), theirs, atol=1e-2, rtol=0)


@pytest.mark.parametrize("chunk", [4, 8])
def test_rotation_within_the_chunk_gives_the_same_scores(chunk: int) -> None:
    rng = np.random.default_rng(chunk)
    q, k = (torch.from_numpy(rng.normal(size=(64, 1, 8)).astype(np.float32)) for _ in range(2))
    frequencies = torch.tensor(tiny_config().inverse_frequencies(), dtype=torch.float64)
    at = torch.arange(10**7, 10**7 + 64)
    at += (-int(at[0])) % chunk  # the first row begins a chunk

    def scores(positions: torch.Tensor) -> torch.Tensor:
        return rotate(q, positions, frequencies)[:, 0] @ rotate(k, positions, frequencies)[:, 0].T

    same_chunk = (at[:, None] // chunk) == (at[None, :] // chunk)
    difference = (scores(at) - scores(at % chunk)).abs()
    assert difference[same_chunk].max() < 1e-5
    assert difference[~same_chunk].max() > 1  # across chunks they do differ: the mask never lets them meet
    # The twin: positions in float32 drift at ten million.
    drift = rotate(q, at, frequencies.float().double()) - rotate(q, at, frequencies)
    assert drift.abs().max() > 1e-2


def test_tables_are_float64() -> None:
    config = tiny_config(rope_theta=500000.0, head_dim=128)
    for i, frequency in enumerate(config.inverse_frequencies()):
        assert frequency == pytest.approx(500000.0 ** (-i / 64), rel=1e-15)
    tiny = tiny_config(rope_theta=500000.0)
    native = build(tiny, random_weights(tiny)).native
    assert native.ropes == [tiny.inverse_frequencies()]  # every bit


def _hf_table(config: LlamaConfig, scaling: RopeScaling) -> np.ndarray:
    hf = HfConfig(
        hidden_size=config.head_dim * 4,
        num_attention_heads=4,
        head_dim=config.head_dim,
        max_position_embeddings=131072,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": config.rope_theta,
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position_embeddings,
        },
    )
    table, attention_factor = ROPE_INIT_FUNCTIONS["llama3"](hf, "cpu")
    assert attention_factor == 1.0
    return table.double().numpy()


SCALINGS = {
    "3.1": (128, RopeScaling(8.0, 1.0, 4.0, 8192)),
    "3.2-1B": (64, RopeScaling(32.0, 1.0, 4.0, 8192)),
    "3.2-3B": (128, RopeScaling(32.0, 1.0, 4.0, 8192)),
    "Scout": (128, RopeScaling(16.0, 1.0, 1.0, 8192)),
}


@pytest.mark.parametrize("name", SCALINGS)
def test_llama3_scaling_is_transformers_table(name: str) -> None:
    head_dim, scaling = SCALINGS[name]
    plain = tiny_config(head_dim=head_dim, rope_theta=500000.0)
    scaled = np.array(replaced(plain, rope_scaling=scaling).inverse_frequencies())
    unscaled = np.array(plain.inverse_frequencies())
    assert np.isfinite(scaled).all()
    np.testing.assert_allclose(scaled, _hf_table(plain, scaling), rtol=1e-6)
    ratio = unscaled / scaled
    assert ratio[0] == 1 and ratio[-1] == pytest.approx(scaling.factor)
    blended = ((ratio > 1.001) & (ratio < scaling.factor * 0.999)).sum()
    assert (blended == 0) == (scaling.low_freq_factor == scaling.high_freq_factor)
    # The twin: a scaling that is parsed but unused.
    assert not np.allclose(unscaled, _hf_table(plain, scaling), rtol=1e-2)


def test_rope_factors_are_the_scaled_table() -> None:
    """GGUF stores what each frequency is divided by (rope_freqs.weight) in float32."""
    scaling = SCALINGS["3.2-1B"][1]
    plain = tiny_config(head_dim=64, hidden_size=64, rope_theta=500000.0)
    scaled = replaced(plain, rope_scaling=scaling)
    factors = (np.array(plain.inverse_frequencies()) / np.array(scaled.inverse_frequencies())).astype(np.float32)
    weights = random_weights(plain)
    by_factors = build(plain, weights, rope_factors=factors).native.ropes[0]
    np.testing.assert_allclose(by_factors, build(scaled, weights).native.ropes[0], rtol=1e-7)
    for bad in (factors[:-1], np.zeros_like(factors), -factors, np.full_like(factors, np.nan)):
        with pytest.raises(CheckpointError, match=r"rope_freqs\.weight"):
            build(plain, weights, rope_factors=bad)


def test_scaling_changes_logits_only_through_position() -> None:
    plain = tiny_config(head_dim=8)
    scaled = replaced(plain, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 64))
    weights = random_weights(plain)
    ids = random_ids(plain, 20)
    a, b = (ReferenceSession(build(c, weights, kv_cache="f32")).logits(ids) for c in (plain, scaled))
    assert deviation(a[:1], b[:1]) < tolerances.REFERENCE  # position 0 is not rotated
    assert deviation(a, b) > 1e-2


def test_native_temperature_is_the_references() -> None:
    """One head-free look at the compiled formula: a NoPE layer whose keys differ, at positions around each step."""
    config = tiny_config(
        num_hidden_layers=1, rope_layers=(False,), attn_temperature_tuning=True, floor_scale=3, attn_scale=0.7
    )
    weights = random_weights(config, seed=6)
    program = build(config, weights, kv_cache="f32")
    ids = random_ids(config, 14)
    executor = _core.Executor(program.native, threads=1)
    found = executor.run(_core.Cache(executor, poison=True), np.array(ids, np.int32), 14)
    assert deviation(found, ReferenceSession(program).logits(ids)) < tolerances.EXECUTOR_FLOAT
