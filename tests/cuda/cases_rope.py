"""Rotation in place, in the card's process."""

from __future__ import annotations

import numpy as np
from cuda_worker import Array, Card, cuda


def rope(
    x: Array, table: Array, heads: int, offset: int = 0, captured: bool = False, image: bytes | None = None
) -> tuple[Array, list[str]]:
    """x [rows, stride], table [rows, pairs, 2].  offset: of x in its buffer, in floats.  -> (x, the kernels that ran)"""
    card = Card(image)
    rows, stride = x.shape
    buffer = card.upload(np.concatenate([np.zeros(offset, np.float32), x.reshape(-1)]))
    plan = cuda.rope(
        x=buffer.part(4 * offset, x.nbytes),
        table=card.upload(table),
        rows=rows,
        stride=stride,
        heads=heads,
        pairs=table.shape[1],
    )
    card.run(plan, captured)
    return card.floats(buffer)[offset:].reshape(rows, stride), plan.kernels


def norm_and_rope(x: Array, table: Array, image: bytes | None = None) -> Array:
    """What rms_norm wrote, rotated by the launch behind it: one head a row."""
    card = Card(image)
    rows, n = x.shape
    normed = card.output(x.size)
    plan = cuda.rms_norm(x=card.upload(x), weight=None, y=normed, rows=rows, n=n, eps=1e-5)
    plan += cuda.rope(x=normed, table=card.upload(table), rows=rows, stride=n, heads=1, pairs=n // 2)
    card.run(plan, captured=False)
    return card.floats(normed)


def wrong_arguments(**changes: int) -> str:
    """The sentence that refuses a plan, one of whose arguments is wrong."""
    device = cuda.Device()
    big = cuda.Buffer(device, 1 << 16)
    x = big.part(changes.pop("x", 0), 1 << 15)
    arguments = {"rows": 3, "stride": 192, "heads": 2, "pairs": 32} | changes
    try:
        cuda.rope(x=x, table=big, **arguments)
    except ValueError as error:
        return str(error)
    raise AssertionError("nothing was refused")
