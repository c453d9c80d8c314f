"""Products on a card of the virtual GPU (cuda_worker.py), in the card's process."""

from __future__ import annotations

from typing import Any

import numpy as np
from cuda_worker import Array, Card, cuda


def step_of(rows: int, logit_rows: int = 0, position: int = 0) -> Array:
    """struct Step of csrc/cuda/kernels/step.h"""
    return np.array(
        [(position, 0, rows, logit_rows)],
        np.dtype([("position", "<i8"), ("start", "<i8"), ("rows", "<i4"), ("logit", "<i4")]),
    )


def packed(format: str, rows: int, cols: int, data: Array) -> Array:
    """data: a checkpoint's bytes -> the bytes of a packed matrix"""
    return cuda.pack(format=format, rows=rows, cols=cols, data=np.ascontiguousarray(data).view(np.uint8))


def product(
    format: str,
    rows: int,
    cols: int,
    data: Array,
    x: Array,
    steps: list[tuple[int, int]] | None = None,
    max_rows: int = 0,
    which: str = "all",
    norm: Array | None = None,
    eps: float = 1e-5,
    epilogue: str = "store",
    start: Array | None = None,
    extra: int = 0,
    table: Array | None = None,
    rotated: int = 0,
    captured: bool = False,
    image: bytes | None = None,
) -> Any:
    """W x by one plan, one step (rows, logit_rows) after another.

    start: what y holds in the beginning, else NaN.  extra: floats between the rows of y.  table [max_rows, pairs, 2]
    -> y [max_rows, results + extra] of each step; of the only step where `steps` is not given
    """
    card = Card(image)
    most = max_rows or len(x)
    results = rows // 2 if epilogue == "silu_times_up" else rows
    y = card.output(most * (results + extra))
    step = cuda.Buffer(card.device, 24)
    plan = cuda.product(
        weight=card.upload(packed(format, rows, cols, data)),
        format=format,
        rows=rows,
        cols=cols,
        step=step,
        max_rows=most,
        which=which,
        x=card.upload(np.concatenate([x, np.full((most - len(x), cols), np.nan, np.float32)])),
        norm=None if norm is None else card.upload(norm),
        eps=eps,
        epilogue=epilogue,
        y=y,
        y_stride=results + extra,
        table=None if table is None else card.upload(table),
        rotated=rotated,
        pairs=0 if table is None else table.shape[1],
    )
    executable = cuda.Executable(card.module, plan)
    work = card.stream.capture(executable) if captured else executable
    found = []
    for now in steps or [(len(x), 0)]:
        card.stream.write(step, step_of(*now))
        card.stream.fill(y, 0xFF)
        if start is not None:
            card.stream.write(y, start)
        card.stream.run(work)
        found.append(card.floats(y).reshape(most, results + extra))
    return found if steps else found[0]


def kernels_of(max_rows: int, **arguments: Any) -> str:
    """A plan, printed."""
    device = cuda.Device()
    buffer = cuda.Buffer(device, 1 << 22)
    call = {
        "weight": buffer,
        "format": "Q4_0",
        "rows": 64,
        "cols": 64,
        "step": buffer,
        "x": buffer,
        "y": buffer,
    } | arguments
    return str(cuda.product(max_rows=max_rows, **call))


def experts(
    format: str,
    rows: int,
    cols: int,
    data: list[Array],
    x: Array,
    groups: list[tuple[int, list[int], list[float]]],
    max_rows: int,
    max_groups: int,
    offset: int = 0,
    gathered: bool = True,
    scaled: bool = False,
    epilogue: str = "store",
    captured: bool = False,
    image: bytes | None = None,
) -> Array:
    """groups: (expert, rows of its entries, their scores).  An expert that no group has lies nowhere.
    -> y [entries, results]
    """
    card = Card(image)
    entries = sum(len(entry_rows) for _, entry_rows, _ in groups)
    results = rows // 2 if epilogue == "silu_times_up" else rows
    chosen = {expert for expert, _, _ in groups}
    weights = {
        expert: card.upload(np.concatenate([np.zeros(offset, np.uint8), packed(format, rows, cols, data[expert])]))
        for expert in chosen
    }
    addresses = np.array([weights[i].address if i in chosen else 0 for i in range(len(data))], np.uint64)
    first = np.cumsum([0, *(len(entry_rows) for _, entry_rows, _ in groups)]).astype(np.int32)

    def partly(values: Array, count: int) -> cuda.Buffer:
        """The values at the beginning of a buffer, nothing behind them."""
        buffer = cuda.Buffer(card.device, 4 * count)
        if len(values):
            card.stream.write(buffer, np.ascontiguousarray(values))
        return buffer

    y = card.output(max(1, entries) * results)
    plan = cuda.product(
        format=format,
        rows=rows,
        cols=cols,
        step=card.upload(step_of(max_rows)),
        max_rows=max_rows,
        x=card.upload(x),
        epilogue=epilogue,
        y=y,
        groups={
            "count": card.upload(np.array([len(groups)], np.int32)),
            "expert": partly(np.array([expert for expert, _, _ in groups], np.int32), max_groups),
            "first": partly(first, max_groups + 1),
            "row": partly(np.array([r for _, entry_rows, _ in groups for r in entry_rows], np.int32), max(1, entries)),
            "score": partly(np.array([s for _, _, scores in groups for s in scores], np.float32), max(1, entries)),
            "max_groups": max_groups,
        },
        experts=card.upload(addresses),
        offset=offset,
        gathered=gathered,
        scaled=scaled,
    )
    card.run(plan, captured)
    return card.floats(y).reshape(-1, results)
