"""The operators of a mixture on plain arrays, run on the card."""

from __future__ import annotations

from typing import Any

import numpy as np
from cuda_worker import Card, cuda
from numpy.typing import NDArray

Array = NDArray[Any]

DTYPE = {"F32": np.float32, "BF16": np.uint16}


def moe_route(
    logits: Array, type: str, top_k: int, scoring: str, captured: bool = False, image: bytes | None = None
) -> tuple[Array, Array]:
    """logits [rows, experts]: float32, or uint16 with the bits of bf16"""
    card = Card(image)
    rows, experts = logits.shape
    chosen, scores = card.output(2 * rows * top_k), card.output(rows * top_k)
    plan = cuda.moe_route(
        type=type, rows=rows, experts=experts, top_k=top_k, scoring=scoring, logits=card.upload(logits), chosen=chosen,
        scores=scores,
    )  # fmt: skip
    card.run(plan, captured)
    return card.stream.read(chosen).view(np.int64).reshape(rows, top_k), card.floats(scores).reshape(rows, top_k)


def moe_dispatch(
    x: Array,
    type: str,
    experts: Array,
    num_experts: int,
    scores: Array | None,
    captured: bool = False,
    image: bytes | None = None,
) -> tuple[Array, Array, Array]:
    card = Card(image)
    (rows, top_k), hidden = experts.shape, x.shape[1]
    gathered = cuda.Buffer(card.device, rows * top_k * hidden * x.itemsize)
    offsets, source = card.output(2 * (num_experts + 1)), card.output(2 * rows * top_k)
    card.stream.fill(gathered, 0xFF)
    plan = cuda.moe_dispatch(
        type=type,
        rows=rows,
        top_k=top_k,
        hidden=hidden,
        num_experts=num_experts,
        x=card.upload(x),
        experts=card.upload(experts),
        scores=None if scores is None else card.upload(scores),
        gathered=gathered,
        offsets=offsets,
        source=source,
    )
    card.run(plan, captured)
    read = card.stream.read
    return (
        read(gathered).view(DTYPE[type]).reshape(rows * top_k, hidden),
        read(offsets).view(np.int64),
        read(source).view(np.int64),
    )


def moe_combine(
    y: Array,
    type: str,
    source: Array,
    rows: int,
    scores: Array | None,
    captured: bool = False,
    written: bool = False,
    image: bytes | None = None,
) -> Array:
    """written: place holds something already, as memory of torch's does."""
    card = Card(image)
    choices, hidden = y.shape
    out, place = cuda.Buffer(card.device, rows * hidden * y.itemsize), cuda.Buffer(card.device, 8 * choices)
    card.stream.fill(out, 0xFF)
    if written:
        card.stream.fill(place, 0)
    plan = cuda.moe_combine(
        type=type,
        rows=rows,
        top_k=choices // rows,
        hidden=hidden,
        y=card.upload(y),
        source=card.upload(source),
        scores=None if scores is None else card.upload(scores),
        place=place,
        out=out,
    )
    card.run(plan, captured)
    return card.stream.read(out).view(DTYPE[type]).reshape(rows, hidden)
