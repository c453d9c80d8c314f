"""A router and what goes with it, run on the card."""

from __future__ import annotations

from typing import Any

import numpy as np
from cuda_worker import Card, cuda
from numpy.typing import NDArray

Array = NDArray[Any]

STEP = np.dtype([("position", "<i8"), ("start", "<i8"), ("rows", "<i4"), ("logit_rows", "<i4")])


def step(card: Card, rows: int) -> cuda.Buffer:
    return card.upload(np.array([(0, 0, rows, 0)], STEP))


def unwritten(card: Card, size: int) -> cuda.Buffer:
    """4-byte values that nobody has written; -1 where they are read as integers."""
    return card.output(size)


class Outputs:
    """What route() writes, for max_rows rows."""

    def __init__(self, card: Card, max_rows: int, experts: int, hidden: int, top_k: int, shared: bool) -> None:
        passes = top_k + shared
        self.max_groups = cuda.route_groups(max_rows=max_rows, top_k=top_k, experts=experts, shared=shared)
        self.buffers = {
            "n": unwritten(card, max_rows * hidden),
            "logits": unwritten(card, max_rows * experts),
            "count": unwritten(card, 1),
            "expert": unwritten(card, self.max_groups),
            "first": unwritten(card, self.max_groups + 1),
            "row": unwritten(card, max_rows * passes),
            "score": unwritten(card, max_rows * passes),
            "entry": unwritten(card, max_rows * passes),
        }

    def clear(self, card: Card) -> None:
        for buffer in self.buffers.values():
            card.stream.fill(buffer, 0xFF)

    def read(self, card: Card) -> dict[str, Array]:
        floats = {"n", "logits", "score"}
        return {
            name: card.stream.read(buffer).view(np.float32 if name in floats else np.int32)
            for name, buffer in self.buffers.items()
        }


def route(
    steps: list[Array],
    norm: Array,
    packed: Array,
    format: str,
    experts: int,
    top_k: int,
    scoring: str,
    shared: bool,
    max_rows: int,
    eps: float = 1e-5,
    captured: bool = False,
    image: bytes | None = None,
) -> list[dict[str, Array]]:
    """Step after step with one plan: each x [rows, hidden], of at most max_rows rows.  packed: the router's bytes."""
    card = Card(image)
    hidden = steps[0].shape[1]
    outputs = Outputs(card, max_rows, experts, hidden, top_k, shared)
    scratch = cuda.Buffer(card.device, cuda.route_scratch_bytes(max_rows=max_rows, experts=experts))
    card.stream.fill(scratch, 0)
    x = cuda.Buffer(card.device, 4 * max_rows * hidden)
    state = step(card, 1)
    plan = cuda.route(
        router=card.upload(packed),
        format=format,
        experts=experts,
        hidden=hidden,
        step=state,
        max_rows=max_rows,
        x=x,
        norm=card.upload(norm),
        eps=eps,
        top_k=top_k,
        scoring=scoring,
        shared=shared,
        max_groups=outputs.max_groups,
        scratch=scratch,
        **outputs.buffers,
    )
    executable = cuda.Executable(card.module, plan)
    work = card.stream.capture(executable) if captured else executable
    results = []
    for rows in steps:
        card.stream.write(x.part(0, rows.nbytes), rows)
        card.stream.write(state, np.array([(0, 0, len(rows), 0)], STEP))
        outputs.clear(card)
        card.stream.run(work)
        results.append(outputs.read(card))
    return results


def combine(
    y: Array,
    entry: Array,
    x: Array,
    rows: int,
    passes: int,
    offset: int = 0,
    captured: bool = False,
    image: bytes | None = None,
) -> Array:
    """y [max_rows * passes, hidden], entry [max_rows, passes], x [max_rows, hidden]; offset: of x, in floats"""
    card = Card(image)
    stream = card.upload(np.concatenate([np.zeros(offset, np.float32), x.reshape(-1)]))
    plan = cuda.combine(
        y=card.upload(y),
        entry=card.upload(entry),
        step=step(card, rows),
        x=stream.part(4 * offset, x.nbytes),
        max_rows=len(x),
        passes=passes,
        hidden=x.shape[1],
    )
    card.run(plan, captured)
    return card.floats(stream)[offset:].reshape(x.shape)


def norm_and_combine(x: Array, image: bytes | None = None) -> Array:
    """x + rms_norm(x): combine reads what the launch ahead of it wrote."""
    card = Card(image)
    rows, hidden = x.shape
    stream, y = card.upload(x), card.output(x.size)
    plan = cuda.rms_norm(x=stream, weight=None, y=y, rows=rows, n=hidden, eps=1e-5)
    plan += cuda.combine(
        y=y,
        entry=card.upload(np.arange(rows, dtype=np.int32)),
        step=step(card, rows),
        x=stream,
        max_rows=rows,
        passes=1,
        hidden=hidden,
    )
    card.run(plan, False)
    return card.floats(stream)


def norm_and_route(x: Array, norm: Array, packed: Array, experts: int, top_k: int, image: bytes | None = None) -> Array:
    """A router of rms_norm(x), which the launch ahead of it wrote; then a combine that adds n to it.  -> that"""
    card = Card(image)
    rows, hidden = x.shape
    normed = card.output(x.size)
    outputs = Outputs(card, rows, experts, hidden, top_k, False)
    scratch = cuda.Buffer(card.device, cuda.route_scratch_bytes(max_rows=rows, experts=experts))
    card.stream.fill(scratch, 0)
    state = step(card, rows)
    plan = cuda.rms_norm(x=card.upload(x), weight=None, y=normed, rows=rows, n=hidden, eps=1e-5)
    plan += cuda.route(
        router=card.upload(packed),
        format="F32",
        experts=experts,
        hidden=hidden,
        step=state,
        max_rows=rows,
        x=normed,
        norm=card.upload(norm),
        eps=1e-5,
        top_k=top_k,
        scoring="softmax",
        shared=False,
        max_groups=outputs.max_groups,
        scratch=scratch,
        **outputs.buffers,
    )
    plan += cuda.combine(
        y=outputs.buffers["n"],
        entry=card.upload(np.arange(rows, dtype=np.int32)),
        step=state,
        x=normed,
        max_rows=rows,
        passes=1,
        hidden=hidden,
    )
    card.run(plan, False)
    return card.floats(normed)


def wrong_route(**changes: Any) -> str:
    """The sentence that refuses a router, one of whose arguments is wrong."""
    device = cuda.Device()
    big = cuda.Buffer(device, 1 << 20)
    names = (
        "router",
        "step",
        "x",
        "norm",
        "n",
        "logits",
        "count",
        "expert",
        "first",
        "row",
        "score",
        "entry",
        "scratch",
    )
    call: dict[str, Any] = {name: big for name in names}
    call.update(
        format="F32", experts=8, hidden=64, max_rows=2, eps=1e-5, top_k=2, scoring="softmax", shared=True, max_groups=5
    )
    call.update(changes)
    for name, value in call.items():
        if isinstance(value, int) and name in names:
            call[name] = big.part(value, 4096)
    try:
        cuda.route(**call)
    except ValueError as error:
        return str(error)
    raise AssertionError("nothing was refused")
