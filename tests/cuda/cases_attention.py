"""Attention of up to 16 rows, in the card's process."""

from __future__ import annotations

from typing import Any

import numpy as np
from cuda_worker import Array, Card, cuda

from llama_ext import _core

STEP = np.dtype([("position", np.int64), ("start", np.int64), ("rows", np.int32), ("logit_rows", np.int32)])


class HeldCache:
    """A cache of these planes, keys, values and for q8_0 their scales, [kv_heads, capacity, ...].

    held [capacity]: the slots to write; the others stay unwritten. None: all are.
    """

    def __init__(self, card: Card, planes: list[Array], held: Array | None) -> None:
        self._card, self._planes, self._all = card, planes, held is None
        self._buffers = []
        for plane in planes:
            buffer = cuda.Buffer(card.device, plane.nbytes)
            if held is None:
                card.stream.write(buffer, plane)
            else:
                size = plane[0, 0].nbytes
                for head, slot in np.ndindex(plane.shape[:2]):
                    if held[slot]:
                        part = buffer.part((head * plane.shape[1] + slot) * size, size)
                        card.stream.write(part, plane[head, slot])
            self._buffers.append(buffer)
        addresses = [buffer.address for buffer in self._buffers] + [0] * (4 - len(planes))
        self.state = card.upload(np.array([*addresses, planes[0].shape[1]], np.uint64))

    def planes(self) -> list[Array]:
        """As they are now; empty unless all were written."""
        if not self._all:
            return []
        return [
            self._card.stream.read(buffer).view(plane.dtype).reshape(plane.shape)
            for buffer, plane in zip(self._buffers, self._planes, strict=True)
        ]


def run_steps(
    card: Card,
    plan: Any,
    steps: list[tuple[int, Array]],
    start: int,
    step: Any,
    qkv: Any,
    out: Any,
    shape: tuple[int, int, int],
    cache: HeldCache,
    captured: bool,
) -> list[tuple[Array, list[Array]]]:
    """One plan, or graph, for all steps of (position, qkv [rows, width]). shape: of out, (max_rows, heads, head_dim)
    -> of each step out [rows, heads, head_dim], and the cache's planes after it
    """
    executable = cuda.Executable(card.module, plan)
    work = card.stream.capture(executable) if captured else executable
    results = []
    for position, rows in steps:
        card.stream.write(step, np.array([(position, start, len(rows), 1)], STEP))
        card.stream.write(qkv, rows)
        card.stream.fill(out, 0xFF)
        card.stream.run(work)
        found = card.floats(out).reshape(shape)
        assert np.isnan(found[len(rows) :]).all(), "rows that the step does not have were written"
        results.append((found[: len(rows)], cache.planes()))
    return results


def attention(
    steps: list[tuple[int, Array]],
    planes: list[Array],
    held: Array | None,
    format: str,
    heads: int,
    kv_heads: int,
    head_dim: int,
    max_rows: int,
    splits: int,
    mask: tuple[str, int],
    scale: float,
    start: int = 0,
    launches: int = 1,
    captured: bool = False,
    image: bytes | None = None,
    **options: Any,
) -> list[tuple[Array, list[Array]]]:
    """One plan, or graph, for steps of (position, qkv [rows, width]).

    planes: keys, values and for q8_0 their scales, [kv_heads, capacity, ...].  held [capacity]: the slots to write
    before; the others stay unwritten. None: all are.
    -> of each step out [rows, heads, head_dim], and the planes after it, empty unless all were written
    """
    card = Card(image)
    cache = HeldCache(card, planes, held)
    scratch = cuda.Buffer(
        card.device,
        cuda.attention_scratch_bytes(max_rows=max_rows, heads=heads, head_dim=head_dim, splits=splits),
    )
    card.stream.fill(scratch.part(0, 64 * heads), 0)  # counters; partial results are read only where they were written
    qkv = cuda.Buffer(card.device, 4 * max_rows * (heads + 2 * kv_heads) * head_dim)
    out, step = card.output(max_rows * heads * head_dim), cuda.Buffer(card.device, STEP.itemsize)
    plan = cuda.attention(
        qkv=qkv,
        step=step,
        cache=cache.state,
        out=out,
        scratch=scratch,
        max_rows=max_rows,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        format=format,
        mask=_core.Mask(*mask),
        scale=scale,
        splits=splits,
        **options,
    )
    for _ in range(launches - 1):
        plan += plan  # the same again, which may start early
    return run_steps(card, plan, steps, start, step, qkv, out, (max_rows, heads, head_dim), cache, captured)


def plans_in_turn(widths: list[int], steps: list[tuple[int, Array]], **arguments: Any) -> list[Array]:
    """The same step by plans for other numbers of rows, one after the other over the same scratch. -> out of each"""
    card = Card()
    ((position, rows),) = steps
    heads, kv_heads, head_dim = (arguments[name] for name in ("heads", "kv_heads", "head_dim"))
    planes, mask = arguments.pop("planes"), arguments.pop("mask")
    start, _, _ = arguments.pop("start"), arguments.pop("held"), arguments.pop("max_rows")
    cache = HeldCache(card, planes, held=None)
    sizes = {"heads": heads, "head_dim": head_dim, "splits": arguments["splits"]}
    scratch = cuda.Buffer(card.device, cuda.attention_scratch_bytes(max_rows=max(widths), **sizes))
    card.stream.fill(scratch.part(0, 64 * heads), 0)
    results = []
    for max_rows in widths:
        width = (heads + 2 * kv_heads) * head_dim
        qkv, out = cuda.Buffer(card.device, 4 * max_rows * width), card.output(max_rows * heads * head_dim)
        card.stream.write(qkv, rows)
        plan = cuda.attention(
            qkv=qkv,
            step=card.upload(np.array([(position, start, len(rows), 1)], STEP)),
            cache=cache.state,
            out=out,
            scratch=scratch,
            max_rows=max_rows,
            mask=_core.Mask(*mask),
            **arguments,
        )
        card.run(plan, captured=False)
        results.append(card.floats(out).reshape(max_rows, heads, head_dim)[: len(rows)])
    return results
