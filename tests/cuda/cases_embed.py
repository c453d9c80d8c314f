"""What the tests of a step's first launch run on a card."""

from __future__ import annotations

from typing import Any

import numpy as np
from cases_sample import STEP
from cuda_worker import Array, Card, cuda

ROTATION = np.dtype(
    [("inverse_frequency", "<u8"), ("table", "<u8"), ("chunk", "<i8"), ("pairs", "<i4"), ("padding", "<i4")]
)


def embed(
    format: str,
    data: Array,
    rows: int,
    cols: int,
    steps: list[tuple[int, Array]],
    max_rows: int,
    rotations: list[tuple[Array, int]],
    captured: bool = False,
    image: bytes | None = None,
) -> list[tuple[Array, list[Array]]]:
    """One plan, run step after step.

    data: a checkpoint's bytes of [rows, cols].  steps: (position, ids).  rotations: (inverse_frequency, chunk).
    -> of each step x uint32 [max_rows, cols], the bits, and tables float32 [max_rows, pairs, 2]; 0xff where nothing was
    written.
    """
    card = Card(image)
    step, ids = cuda.Buffer(card.device, STEP.itemsize), cuda.Buffer(card.device, 4 * max_rows)
    x = card.output(max_rows * cols)
    frequencies = [card.upload(inverse) for inverse, _ in rotations]
    tables = [card.output(max_rows * len(inverse) * 2) for inverse, _ in rotations]
    records = [
        (frequency.address, table.address, chunk, len(inverse), 0)
        for frequency, table, (inverse, chunk) in zip(frequencies, tables, rotations, strict=True)
    ]
    plan = cuda.embed(
        table=card.upload(cuda.pack(format=format, rows=rows, cols=cols, data=data)),
        format=format,
        rows=rows,
        cols=cols,
        ids=ids,
        step=step,
        x=x,
        max_rows=max_rows,
        rotations=card.upload(np.array(records, ROTATION)) if records else None,
        rotation_count=len(records),
    )
    executable = cuda.Executable(card.module, plan)
    work = card.stream.capture(executable) if captured else executable
    results = []
    for position, tokens in steps:
        for buffer in (x, *tables):
            card.stream.fill(buffer, 0xFF)
        card.stream.write(step, np.array([(position, 0, len(tokens), 0)], STEP))
        card.stream.write(ids.part(0, 4 * len(tokens)), np.asarray(tokens, np.int32))
        card.stream.run(work)
        found = card.stream.read(x).view(np.uint32).reshape(max_rows, cols)
        results.append((found, [card.floats(table).reshape(max_rows, -1, 2) for table in tables]))
    return results


def norm_after(format: str, data: Array, rows: int, cols: int, ids: Array, image: bytes | None = None) -> Array:
    """A norm that writes x, the embedding over it, and a norm that reads it: each waits for the one before."""
    card = Card(image)
    x, y = card.upload(np.ones((len(ids), cols), np.float32)), card.output(len(ids) * cols)
    before = cuda.rms_norm(x=x, weight=None, y=x, rows=len(ids), n=cols, eps=1e-5)
    plan = before + cuda.embed(
        table=card.upload(cuda.pack(format=format, rows=rows, cols=cols, data=data)),
        format=format,
        rows=rows,
        cols=cols,
        ids=card.upload(np.asarray(ids, np.int32)),
        step=card.upload(np.array([(0, 0, len(ids), 0)], STEP)),
        x=x,
        max_rows=len(ids),
    )
    card.run(plan + cuda.rms_norm(x=x, weight=None, y=y, rows=len(ids), n=cols, eps=1e-5), False)
    return card.floats(y).reshape(len(ids), cols)


def refused(changes: dict[str, Any]) -> str:
    """The sentence that refuses a plan, one of whose arguments is wrong; a buffer is given by its offset."""
    device = cuda.Device()
    call: dict[str, Any] = {"format": "Q4_0", "rows": 3, "cols": 64, "max_rows": 2, "rotation_count": 0}
    call |= {name: 0 for name in ("table", "ids", "step", "x")} | changes
    for name in ("table", "ids", "step", "x"):
        call[name] = cuda.Buffer(device, 4096 + call[name]).part(call[name], 4096)
    try:
        cuda.embed(**call)
    except ValueError as error:
        return str(error)
    raise AssertionError("nothing was refused")
