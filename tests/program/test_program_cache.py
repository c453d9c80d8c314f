"""Rings: how many slots, which slot, what a slot without a position holds, and how far back one can go."""

from __future__ import annotations

from typing import Any

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
    tiny_config,
    variants,
)

from llama_ext import _core
from llama_ext._core import Mask
from llama_ext.errors import ContextError, OptionError
from llama_ext.program import Program
from llama_ext.reference import ReferenceSession, first_key

VARIANTS = variants()
RINGS = {
    "chunked8": llama4_config(8),
    "sliding5": tiny_config(sliding_window=5),
    "mixed": VARIANTS["mixed"],
}


def test_capacity() -> None:
    for max_rows in (1, 2, 16, 256):
        assert _core.cache_capacity(Mask("global"), 1000, max_rows) == 1000
        for kind in ("chunked", "sliding"):
            assert _core.cache_capacity(Mask(kind, 100), 10**7, max_rows) == 100 + max_rows
            assert _core.cache_capacity(Mask(kind, 100), 90, max_rows) == 90
            assert _core.cache_capacity(Mask(kind, 100), 100, max_rows) == 100
    program = build(RINGS["mixed"], random_weights(RINGS["mixed"]), max_context=50, max_rows=7)
    assert [layer.capacity for layer in program.native.caches] == [5 + 7, 50, 8 + 7, 50]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_step_overwrites_no_key_that_it_reads(name: str) -> None:
    """For every position and number of rows: after the append, each row's keys lie in their slots. And one slot fewer
    than the rule's would not do."""
    config, max_rows = VARIANTS[name], 6
    program = build(config, random_weights(config), max_rows=max_rows).native

    def lost(capacity: int, mask: Mask) -> bool:
        held: dict[int, int] = {}
        for start in range(60):
            for rows in range(1, max_rows + 1):
                slots = dict(held)
                for p in range(start, start + rows):
                    slots[p % capacity] = p
                for p in range(start, start + rows):
                    if any(slots.get(k % capacity) != k for k in range(first_key(mask, p), p + 1)):
                        return True
            held[start % capacity] = start
        return False

    for i in program.code:
        if isinstance(i, _core.Attention) and i.mask.kind != "global":
            capacity = program.caches[i.cache].capacity
            assert not lost(capacity, i.mask)
            assert lost(i.mask.extent + max_rows - 2, i.mask)


@pytest.mark.parametrize("name", VARIANTS)
def test_slots_and_poison(name: str) -> None:
    """Position p lies in slot p % capacity; the rest is NaN, before the ring is full and after a rollback."""
    config = VARIANTS[name]
    session = ReferenceSession(build(config, random_weights(config), kv_cache="f32", max_rows=4))
    ids = random_ids(config, 33)

    def filled() -> list[list[int]]:
        return [torch.isfinite(keys).all(-1).all(-1).nonzero().flatten().tolist() for keys, _ in session._caches]

    assert filled() == [[] for _ in session._caches]
    for at, token in enumerate(ids):
        logits = session.step(token)
        assert np.isfinite(logits).all()
        for (keys, values), slots in zip(session._caches, filled(), strict=True):
            assert slots == list(range(min(at + 1, len(keys))))
            assert torch.equal(torch.isfinite(keys), torch.isfinite(values))
    session.rollback(2)
    for (keys, _), slots in zip(session._caches, filled(), strict=True):
        gone = {31 % len(keys), 32 % len(keys)}
        assert slots == [s for s in range(min(33, len(keys))) if s not in gone]
    session.reset()
    assert filled() == [[] for _ in session._caches]


def test_a_read_past_the_valid_length_would_show() -> None:
    """The twin: a mask that begins one key too late or early meets NaN or changes the result."""
    config = tiny_config(sliding_window=5)
    session = ReferenceSession(build(config, random_weights(config), kv_cache="f32", max_rows=4))
    session.prefill(random_ids(config, 3))
    for keys, _ in session._caches:
        keys[1] = torch.nan  # as if position 1 had never been written
    assert np.isnan(session.step(5)).all()


@pytest.mark.parametrize("border", [8, 16, 24, 5, 10, 12])
@pytest.mark.parametrize("name", RINGS)
def test_rollback_then_other_tokens_equals_a_fresh_session(name: str, border: int) -> None:
    config = RINGS[name]
    weights = random_weights(config, seed=8)
    program = build(config, weights, kv_cache="f32", max_rows=6)
    ids, others = random_ids(config, 40), random_ids(config, 40, seed=1)
    for at in (border - 1, border, border + 1):
        for n in (1, 2, 3, 6):
            if n >= at:
                continue
            session = ReferenceSession(program)
            session.prefill(ids[: at - n])
            session.logits(ids[at - n : at])
            session.rollback(n)
            assert session.position == at - n
            text = ids[: at - n] + others[:9]
            found = session.logits(others[:9])
            assert deviation(found, plain_logits(config, weights, text)[at - n :]) < tolerances.REFERENCE


def _reach(program: Program, ids: list[int], rows: int) -> ReferenceSession:
    session = ReferenceSession(program)
    for at in range(0, len(ids), rows):
        session.logits(ids[at : at + rows])
    return session


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("name", RINGS)
def test_max_rollback_is_exact(name: str, rows: int) -> None:
    """As far as it says works and is right; one further would miss a key, and the reference refuses it."""
    config = RINGS[name]
    weights = random_weights(config, seed=8)
    program = build(config, weights, kv_cache="f32", max_rows=4)
    ids, others = random_ids(config, 40), random_ids(config, 9, seed=1)
    for length in range(1, 37):
        furthest = program.native.max_rollback(length)
        assert furthest >= min(length, 4)  # a rejected draft always fits
        for n in {furthest, furthest - 1} - {-1}:
            session = _reach(program, ids[:length], rows)
            session.rollback(n)
            text = ids[: length - n] + others
            expected = plain_logits(config, weights, text)[length - n :]
            assert deviation(session.logits(others), expected) < tolerances.REFERENCE, (length, n)
        session = _reach(program, ids[:length], rows)
        with pytest.raises(OptionError, match="roll back"):
            session.rollback(furthest + 1)
        assert session.position == length  # nothing changed
        if furthest < length:
            # Past the check: the key is gone, and the poison shows it.
            session._native = _Permissive(session._native)
            session.rollback(furthest + 1)
            assert np.isnan(session.logits(others[:1])).any(), length


class _Permissive:
    """A program that allows any rollback."""

    def __init__(self, native: Any) -> None:
        self._native = native

    def __getattr__(self, name: str) -> Any:
        return getattr(self._native, name)

    def max_rollback(self, *_: int) -> int:
        return 10**9


@pytest.mark.parametrize("name", RINGS)
def test_what_a_rolled_back_position_overwrote_stays_lost(name: str) -> None:
    """Two rollbacks in a row: together no further than one from the furthest point reached."""
    config = RINGS[name]
    weights = random_weights(config, seed=8)
    program = build(config, weights, kv_cache="f32", max_rows=4)
    ids, others = random_ids(config, 40), random_ids(config, 9, seed=1)
    session = _reach(program, ids[:35], 4)
    furthest = program.native.max_rollback(35)
    assert furthest < 35
    session.rollback(furthest - 1)
    assert program.native.max_rollback(35 - (furthest - 1), 35) == 1
    with pytest.raises(OptionError):
        session.rollback(2)
    session.rollback(1)
    expected = plain_logits(config, weights, ids[: 35 - furthest] + others)[35 - furthest :]
    assert deviation(session.logits(others), expected) < tolerances.REFERENCE
    # Beyond the old furthest point the rings are as after any other text of that length.
    session.logits(others * 2)
    assert session.position > 35
    session.rollback(4)


def test_rollback_out_of_range() -> None:
    config = tiny_config()
    session = ReferenceSession(build(config, random_weights(config)))
    session.prefill(random_ids(config, 20))
    for n in (-1, 21, 10**12):
        with pytest.raises(OptionError, match="roll back"):
            session.rollback(n)
    session.rollback(0)
    session.rollback(20)  # a global layer goes all the way
    assert session.position == 0


def test_the_context_ends() -> None:
    config = tiny_config()
    session = ReferenceSession(build(config, random_weights(config), max_context=10))
    session.prefill(random_ids(config, 9))
    with pytest.raises(ContextError, match="max_context 10"):
        session.logits([1, 2])
    assert session.position == 9
    session.step(1)
    with pytest.raises(ContextError):
        session.step(1)
