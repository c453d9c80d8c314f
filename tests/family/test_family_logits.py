"""Every generation computes what transformers computes: whole prompts, token by token, in steps of several rows, and
after drafts that were taken back at the borders of the masks."""

from __future__ import annotations

import numpy as np
import pytest
import tolerances
from family_models import FAMILY, LENGTH, MAX_ROWS, Case, case
from models import CpuSession, deviation, plain_logits, stepped

from llama_ext import _core
from llama_ext import program as programs
from llama_ext.checkpoint.hf import HfSource
from llama_ext.reference import ReferenceSession

# Hundreds of times what float32 leaves of a router's logits; below it, another expert could be the better one.
APART = 1e-4


@pytest.fixture(params=FAMILY)
def model(request: pytest.FixtureRequest) -> Case:
    return case(request.param)


def test_the_model_is_the_one_meant(model: Case) -> None:
    """A field that transformers ignored, or a model in which nothing matters, would make the comparison empty."""
    config, hf = model.config, model.hf
    assert isinstance(model.source, HfSource) and len(model.program.code) > 3 and model.source.unused() == []
    for field in ("num_attention_heads", "num_key_value_heads", "head_dim", "tie_word_embeddings", "rms_norm_eps"):
        assert getattr(config, field) == getattr(hf, field), field
    scaled = hf.rope_parameters["rope_type"] == "llama3"
    assert (config.rope_scaling is not None) == scaled == model.name.startswith(("llama3.", "scout"))
    assert config.rope_theta == hf.rope_parameters["rope_theta"]
    assert config.num_local_experts == getattr(hf, "num_local_experts", 0)
    assert config.sliding_window == (getattr(hf, "sliding_window", None) or 0)
    if config.model_type == "llama4":
        assert set(config.layer_kinds) == {"chunked", "global"} and 3 * config.attention_chunk_size < LENGTH
        assert 3 * config.floor_scale < LENGTH and config.attn_scale == 0.3 and config.attn_temperature_tuning
        assert config.use_qk_norm == model.name.startswith("scout")
        assert all(config.moe_layers) == model.name.startswith("scout") and config.shared_expert
    elif config.sliding_window:
        assert 3 * config.sliding_window < LENGTH and set(config.layer_kinds) == {"sliding"}

    _, attention, routers = model.truth
    for weights in attention:
        rows = weights[:, 4:]
        seen = (rows > 0).sum(-1)
        sharp = rows.max(-1)[seen >= 4].mean()
        assert 1.5 / seen[seen >= 4].mean() < sharp < 0.95  # neither a mean over all keys nor a copy of one
    assert len(routers) == sum(config.moe_layers)
    for logits in routers:
        best = -np.sort(-logits, axis=1)
        chosen = config.num_experts_per_tok
        assert (best[:, chosen - 1] - best[:, chosen]).min() > APART
        assert len(set(np.argmax(logits, axis=1))) > 4  # experts take turns
        assert 1 / (1 + np.exp(-best[:, 0].mean())) < 0.9


def test_transformers_computes_the_definition(model: Case) -> None:
    """Both could be wrong in the same way, by the position of a temperature or of a mask: float64 from the definitions,
    full matrices and absolute positions, decides."""
    assert deviation(model.expected, plain_logits(model.config, model.weights, model.ids)) < tolerances.ORACLE


@pytest.mark.parametrize("rows", [MAX_ROWS, 1])
def test_reference(model: Case, rows: int) -> None:
    found = stepped(ReferenceSession(model.program), model.ids, rows)
    assert deviation(found, model.expected) < tolerances.ORACLE


def test_cpu_executor(model: Case) -> None:
    """One row, several, a border's worth and one more; on one thread and on two: all of them the same bits, too."""
    first = CpuSession(model.program).logits(model.ids, 1)
    assert deviation(first, model.expected) < tolerances.ORACLE
    for rows in sorted({3, min(model.border, MAX_ROWS - 1), min(model.border + 1, MAX_ROWS), MAX_ROWS}):
        assert np.array_equal(CpuSession(model.program, threads=2).logits(model.ids, rows), first), rows


def test_cpu_executor_in_one_step(model: Case) -> None:
    whole = programs.build(model.config, model.source, kv_cache="f32", max_rows=LENGTH)
    assert deviation(CpuSession(whole, threads=2).logits(model.ids), model.expected) < tolerances.ORACLE


@pytest.mark.parametrize("simd", _core.simd_levels())
@pytest.mark.parametrize("name", ["llama3.1-gqa4", "scout-chunk4", "maverick", "mixtral-window"])
def test_simd_levels(name: str, simd: str) -> None:
    found = CpuSession(case(name).program, simd=simd).logits(case(name).ids, 5)
    assert deviation(found, case(name).expected) < tolerances.ORACLE


def test_prompts_that_end_at_a_border(model: Case) -> None:
    """A prompt up to one position before, at and after a border, then token by token over the next ones."""
    for border in (model.border, 2 * model.border, 3 * model.border):
        for length in (border - 1, border, border + 1):
            session = CpuSession(model.program)
            found = [session.logits(model.ids[:length], MAX_ROWS), session.logits(model.ids[length:], 1)]
            assert deviation(np.concatenate(found), model.expected) < tolerances.ORACLE


def drafted(session: CpuSession | ReferenceSession, model: Case, at: int, count: int, rows: int) -> np.ndarray:
    """Logits of all ids, when wrong ids were drafted from position `at` on and taken back."""
    vocab = model.config.vocab_size
    found = [stepped(session, model.ids[:at], rows)]
    wrong = [(token + 1) % vocab for token in model.ids[at : at + count]]
    session.logits(wrong)
    assert session.position == at + len(wrong)
    session.rollback(len(wrong))
    assert session.position == at
    found.append(stepped(session, model.ids[at:], rows))
    return np.concatenate(found)


@pytest.mark.parametrize("rows", [1, 5])
def test_drafts_taken_back_at_a_border(model: Case, rows: int) -> None:
    """Ids that were wrong, over a border and back to one before, at and after it, leave nothing behind."""
    expected = CpuSession(model.program).logits(model.ids, MAX_ROWS)
    for border in (model.border, 3 * model.border):
        for at in (border - 1, border, border + 1):
            for count in (1, 2, 6):
                found = drafted(CpuSession(model.program), model, at, count, rows)
                assert np.array_equal(found, expected), (at, count)


@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_drafts_taken_back_by_the_reference(model: Case, offset: int) -> None:
    found = drafted(ReferenceSession(model.program), model, 3 * model.border + offset, 6, MAX_ROWS)
    assert deviation(found, model.expected) < tolerances.ORACLE
