"""Positions around ten million give the logits of float64, in layers that rotate by the position and in chunks.

A session that begins there (`Cache(..., start=P)`) has nothing before P: a chunk that begins at P needs nothing, and
for the other masks the keys before P do not exist, on both sides of the comparison. The slots are those of a session
that has come all the way: a global layer's lie gigabytes into its address space.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tolerances
import torch
from family_models import case
from models import (
    CpuSession,
    Floats,
    build,
    deviation,
    llama4_config,
    maverick_config,
    plain_logits,
    random_ids,
    random_weights,
    scout_config,
    stepped,
    tiny_config,
)

from llama_ext import _core
from llama_ext.config import LlamaConfig, RopeScaling
from llama_ext.errors import OptionError
from llama_ext.program import Program
from llama_ext.reference import ReferenceSession

FAR = 10_000_000  # a multiple of both chunks
CONTEXT = FAR + 64
LENGTH = 30
MAX_ROWS = 8
SIZE: dict[str, Any] = {"max_position_embeddings": 10_485_760, "rope_theta": 500000.0}

MODELS: dict[str, LlamaConfig] = {
    # The last head's slots lie past 2^32 bytes.
    "global": tiny_config(**SIZE, num_hidden_layers=2, num_key_value_heads=4, head_dim=32),
    "global-scaled": tiny_config(**SIZE, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192), head_dim=16),
    "sliding": tiny_config(**SIZE, sliding_window=7),
    "llama4": llama4_config(8, **SIZE, floor_scale=3),
    "scout": scout_config(8, **SIZE, floor_scale=8192, rope_scaling=RopeScaling(16.0, 1.0, 1.0, 8192)),
    "maverick": maverick_config(4, **SIZE),
    # Rotation by the position itself within chunks, too: the table's angles are as large as those of global layers.
    "chunks-and-global": llama4_config(8, **SIZE, rope_layers=(True,) * 4),
}
# The first position: at a border, before one and after one. (A chunk that has begun before it lacks its first keys.)
STARTS = [FAR, FAR - 1, FAR + 1, FAR - 8]


class FarSession(CpuSession):
    """A session of the CPU executor that begins at `start`."""

    def __init__(self, program: Program, start: int, threads: int = 1) -> None:
        self.executor = _core.Executor(program.native, threads=threads, poison=False)
        self.cache = _core.Cache(self.executor, start=start)


def test_the_last_slots_are_far() -> None:
    """Past what 32 bits count, in bytes."""
    last = built("global")[0].native.caches[-1]
    assert last.kv_heads * last.capacity * last.bytes_per_slot // 2 // last.kv_heads > 2**32


def built(name: str) -> tuple[Program, dict[str, Floats], list[int]]:
    config = MODELS[name]
    weights = random_weights(config, seed=3)
    program = build(config, weights, kv_cache="f32", max_rows=MAX_ROWS, max_context=CONTEXT)
    return program, weights, random_ids(config, LENGTH, seed=5)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", MODELS)
def test_logits_of_float64(name: str, start: int) -> None:
    program, weights, ids = built(name)
    expected = plain_logits(program.config, weights, ids, start=start)
    for rows in (MAX_ROWS, 1, 3):
        assert deviation(FarSession(program, start, threads=2).logits(ids, rows), expected) < tolerances.REFERENCE, rows
        session = ReferenceSession(program, start=start)
        assert deviation(stepped(session, ids, rows), expected) < tolerances.REFERENCE, rows


@pytest.mark.parametrize("name", ["global", "global-scaled", "sliding", "chunks-and-global"])
def test_angles_of_float32_do_not(name: str) -> None:
    """At ten million a float32 is whole numbers: so would be the angle of the fastest pair, in radians."""
    program, weights, ids = built(name)
    twin = plain_logits(program.config, weights, ids, start=FAR, angles=np.float32)
    assert deviation(FarSession(program, FAR).logits(ids, 1), twin) > 100 * tolerances.REFERENCE
    near = plain_logits(program.config, weights, ids, angles=np.float32)
    assert (
        deviation(FarSession(program, 0).logits(ids, 1), near) < tolerances.REFERENCE
    )  # where they would go unnoticed


@pytest.mark.parametrize("name", ["llama4", "scout", "maverick"])
@pytest.mark.parametrize("mistake", [{"start": FAR + 1}, {"temperature_shift": -FAR}, {"mask_shift": 1}])
def test_positions_that_are_off(name: str, mistake: dict[str, int]) -> None:
    program, weights, ids = built(name)
    twin = plain_logits(program.config, weights, ids, **{"start": FAR} | mistake)
    assert deviation(FarSession(program, FAR).logits(ids, 1), twin) > 10 * tolerances.REFERENCE


def test_transformers_is_no_oracle_there() -> None:
    """Its angles are float32: why this comparison is with float64, and what it is worth."""
    import transformers as tf

    model = case("llama3-gqa8")
    config = model.config
    hf = tf.AutoModelForCausalLM.from_pretrained(model.folder, attn_implementation="eager", dtype=torch.float32)
    far = torch.arange(FAR, FAR + len(model.ids))[None]
    with torch.inference_mode():
        theirs = hf(torch.tensor([model.ids]), position_ids=far, use_cache=False).logits[0].numpy()
    exact = plain_logits(config, model.weights, model.ids, start=FAR)
    assert deviation(model.expected, plain_logits(config, model.weights, model.ids)) < tolerances.ORACLE
    assert deviation(theirs, exact) > 100 * tolerances.ORACLE


@pytest.mark.parametrize("name", MODELS)
def test_a_far_session_is_a_session(name: str) -> None:
    """Rollback and reset stay behind its start, and leave nothing behind."""
    program, _, ids = built(name)
    for session in (FarSession(program, FAR - 1), ReferenceSession(program, start=FAR - 1)):
        first = session.logits(ids[:MAX_ROWS])
        assert session.position == FAR - 1 + MAX_ROWS
        with pytest.raises((OptionError, ValueError), match=f"cannot roll back {MAX_ROWS + 1} of {MAX_ROWS} positions"):
            session.rollback(MAX_ROWS + 1)
        session.rollback(MAX_ROWS)
        assert session.position == FAR - 1
        again = stepped(session, ids[:MAX_ROWS], 1)
        assert deviation(again, first) < tolerances.EXECUTOR_FLOAT
        session.reset()
        assert session.position == FAR - 1
        assert np.array_equal(session.logits(ids[:MAX_ROWS]), first)


def test_a_start_is_a_position() -> None:
    program, _, ids = built("llama4")
    executor = _core.Executor(program.native, threads=1)
    for start in (-1, CONTEXT + 1):
        with pytest.raises(
            ValueError, match=f"a cache starts at a position from 0 to max_context {CONTEXT}, not {start}"
        ):
            _core.Cache(executor, start=start)
        with pytest.raises(OptionError, match=f"start={start} is out of range"):
            ReferenceSession(program, start=start)
    cache = _core.Cache(executor, start=CONTEXT - 1)
    assert cache.start == cache.position == CONTEXT - 1 and cache.bytes_used == cache.max_rollback == 0
    executor.run(cache, np.array(ids[:1], np.int32))
    assert cache.bytes_used == sum(layer.bytes_per_slot for layer in program.native.caches)
    with pytest.raises(ValueError, match="past max_context"):
        executor.run(cache, np.array(ids[:1], np.int32))


def test_no_slot_before_the_start_is_read() -> None:
    """With poison, which would fill the memory of a far global layer."""
    config = MODELS["llama4"]
    weights, ids = random_weights(config, seed=3), random_ids(config, LENGTH, seed=5)
    program = build(config, weights, kv_cache="f32", max_rows=MAX_ROWS, max_context=100)
    for start in (16, 17, 23):
        executor = _core.Executor(program.native, threads=2, poison=True)
        cache = _core.Cache(executor, poison=True, start=start)
        found = np.concatenate([executor.run(cache, np.array([token], np.int32), 1) for token in ids])
        expected = plain_logits(config, weights, ids, start=start)
        assert deviation(found, expected) < tolerances.REFERENCE
