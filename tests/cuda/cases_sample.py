"""What the tests of the sampler run on a card."""

from __future__ import annotations

from typing import Any

import numpy as np
from cuda_worker import Array, Card, cuda

from llama_ext import _core

STEP = np.dtype([("position", "<i8"), ("start", "<i8"), ("rows", "<i4"), ("logit_rows", "<i4")])
UNTOUCHED = -77


def sample(
    draws: list[dict[str, Any]],
    offset: int = 0,
    captured: bool = False,
    between: bool = False,
    image: bytes | None = None,
) -> list[int]:
    """Draws one after the other with one plan and one scratch memory, each with state of its own.

    A draw: logits [vocab], params, history, position (of the token drawn), rows, draw, wanted.  offset: of logits in
    their buffer, in floats.  between: launches that read and write the logits lie around the sampler's, in one plan.
    """
    card = Card(image)
    vocab = len(draws[0]["logits"])
    logits = cuda.Buffer(card.device, 4 * (offset + vocab)).part(4 * offset, 4 * vocab)
    step, state, id_ = (cuda.Buffer(card.device, size) for size in (STEP.itemsize, len(draw_state(draws[0], None)), 4))
    scratch = cuda.Buffer(card.device, cuda.sample_scratch_bytes(vocab=vocab))
    card.stream.fill(scratch, 0)
    plan = cuda.sample(logits=logits, vocab=vocab, step=step, draw=state, scratch=scratch, id=id_)
    if between:
        # Norms of single values with a large eps: the signs of the logits, shrunk. Then two draws of the same.
        norm = cuda.rms_norm(x=logits, weight=None, y=logits, rows=vocab, n=1, eps=1.0)
        plan = norm + plan + plan + norm
    executable = cuda.Executable(card.module, plan)
    work = card.stream.capture(executable) if captured else executable
    ids = []
    for one in draws:
        seen = np.asarray(one.get("history", ()), np.int32)
        history = card.upload(seen) if len(seen) else None
        rows = one.get("rows", 1)
        card.stream.write(logits, one["logits"])
        card.stream.write(state, draw_state(one, history))
        card.stream.write(step, np.array([(one.get("position", 0) - rows, 0, rows, 1)], STEP))
        card.stream.write(id_, np.array([UNTOUCHED], np.int32))
        card.stream.run(work)
        ids.append(int(card.stream.read(id_).view(np.int32)[0]))
        if not between:
            assert card.stream.read(logits).tobytes() == one["logits"].tobytes()
    # Nothing is left behind but the count of blocks, which goes around with the grid.
    left = card.stream.read(scratch.part(0, cuda.sample_state_bytes))
    assert not left.any(), np.flatnonzero(left)
    return ids


def draw_state(one: dict[str, Any], history: cuda.Buffer | None) -> Array:
    params = _core.SamplingParams(**one.get("params", {}))
    return cuda.draw_state(params=params, draw=one.get("draw", 0), history=history, wanted=one.get("wanted", True))
