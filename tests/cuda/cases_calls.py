"""The torch operators' calls on raw addresses, run on the card of this process in a stream of another library's."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from cuda_worker import Card, cuda
from numpy.typing import NDArray

from llama_ext import _core

Array = NDArray[Any]

TYPES = {np.dtype(np.float32): "f32", np.dtype(np.uint16): "bf16"}
"""What an array holds: float32, or the bits of bfloat16."""


OUTPUTS = {
    "moe_route": ("chosen", "scores"),
    "moe_dispatch": ("gathered", "offsets", "source"),
}
"""Arguments that a call writes, where they are not `out` alone."""


class Foreign:
    """A stream that the driver made and not we, as torch's are."""

    def __init__(self) -> None:
        self.card = Card()
        self.library = ctypes.CDLL(os.environ["LLAMA_EXT_LIBCUDA"])
        self.context, self.handle = ctypes.c_void_p(), ctypes.c_void_p()
        assert self.library.cuDevicePrimaryCtxRetain(ctypes.byref(self.context), 0) == 0
        assert self.library.cuCtxPushCurrent_v2(self.context) == 0
        assert self.library.cuStreamCreate(ctypes.byref(self.handle), 1) == 0
        self.library.cuCtxPopCurrent_v2(ctypes.byref(self.context))
        self.stream = cuda.Stream(self.card.device, foreign=self.handle.value)
        self.kept: list[cuda.Buffer] = []
        self.outputs: list[cuda.Buffer] = []

    def up(self, array: Array | None) -> int | None:
        """The address of a copy, exactly as large."""
        if array is None:
            return None
        self.kept.append(self.card.upload(np.ascontiguousarray(array)))
        return self.kept[-1].address

    def out(self, shape: tuple[int, ...], dtype: Any) -> tuple[int, Callable[[], Array]]:
        """An address of bytes 0xff, and what reads them."""
        buffer = cuda.Buffer(self.card.device, int(np.prod(shape)) * np.dtype(dtype).itemsize)
        self.outputs.append(buffer)
        self.card.stream.fill(buffer, 0xFF)
        self.card.stream.synchronize()
        return buffer.address, lambda: self.stream.read(buffer).view(dtype).reshape(shape)

    def run(self, name: str, captured: bool, **call: Any) -> None:
        needed: int = getattr(cuda.calls, f"{name}_scratch_bytes")(**call)
        scratch = cuda.Buffer(self.card.device, needed) if needed else None
        if scratch:
            self.card.stream.fill(scratch, 0xFF)
            self.card.stream.synchronize()

        written = [call[argument] for argument in OUTPUTS.get(name, ("out",))]

        def work() -> None:
            address = scratch.address if scratch else 0
            getattr(cuda.calls, name)(stream=self.handle.value, scratch=address, scratch_bytes=needed, **call)

        work()
        self.stream.synchronize()
        if captured:  # what was run once: the driver loads no kernels meanwhile
            graph = self.stream.capture(work)
            for buffer in (*([scratch] if scratch else []), *(o for o in self.outputs if o.address in written)):
                self.stream.fill(buffer, 0xFF)
            for _ in range(2):
                self.stream.run(graph)
            self.stream.synchronize()

    def close(self) -> None:
        del self.stream
        self.library.cuCtxPushCurrent_v2(self.context)
        self.library.cuStreamDestroy_v2(self.handle)
        self.library.cuCtxPopCurrent_v2(ctypes.byref(self.context))
        self.library.cuDevicePrimaryCtxRelease_v2(0)


def rms_norm(x: Array, weight: Array | None, eps: float, captured: bool = False) -> Array:
    on = Foreign()
    out, read = on.out(x.shape, x.dtype)
    weight_type = "f32" if weight is None else TYPES[weight.dtype]
    on.run(
        "rms_norm", captured, type=TYPES[x.dtype], weight_type=weight_type, rows=x.shape[0], n=x.shape[1], eps=eps,
        x=on.up(x), weight=on.up(weight), out=out,
    )  # fmt: skip
    result = read()
    on.close()
    return result


def rope(x: Array, positions: Array, inverse_frequency: Array, interleaved: bool, captured: bool = False) -> Array:
    """x [batch, rows, heads, head_dim]"""
    on = Foreign()
    batch, rows, heads, head_dim = x.shape
    out, read = on.out(x.shape, x.dtype)
    on.run(
        "rope", captured, type=TYPES[x.dtype], interleaved=interleaved, batch=batch, rows=rows, heads=heads,
        head_dim=head_dim, positions=on.up(positions), inverse_frequency=on.up(inverse_frequency), x=on.up(x), out=out,
    )  # fmt: skip
    result = read()
    on.close()
    return result


def attention(
    q: Array, k: Array, v: Array, first_position: int, mask: tuple[str, int], scale: float, captured: bool = False
) -> Array:
    on = Foreign()
    (rows, heads, head_dim), (keys, kv_heads, _) = q.shape, k.shape
    out, read = on.out(q.shape, q.dtype)
    on.run(
        "attention", captured, type=TYPES[q.dtype], heads=heads, kv_heads=kv_heads, head_dim=head_dim, rows=rows,
        keys=keys, first_position=first_position, mask=_core.Mask(*mask), scale=scale, q=on.up(q), k=on.up(k),
        v=on.up(v), out=out,
    )  # fmt: skip
    result = read()
    on.close()
    return result


def linear(x: Array, weight: Array, format: str, outputs: int, captured: bool = False, offset: int = 0) -> Array:
    """weight: a file's bytes.  offset: where they begin behind an aligned address"""
    on = Foreign()
    rows, cols = x.shape
    out, read = on.out((rows, outputs), x.dtype)
    at = on.up(np.concatenate([np.zeros(offset, np.uint8), weight.reshape(-1).view(np.uint8)]))
    assert at is not None
    on.run(
        "linear", captured, type=TYPES[x.dtype], format=format, rows=rows, cols=cols, outputs=outputs, x=on.up(x),
        weight=at + offset, out=out,
    )  # fmt: skip
    result = read()
    on.close()
    return result


def moe(
    x: Array, logits: Array, top_k: int, scoring: str, scaled: str, captured: bool = False
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Routes, dispatches, and combines what was dispatched; the scores multiply where `scaled` says.

    -> chosen, scores, gathered, offsets, source, combined
    """
    on = Foreign()
    (rows, experts), hidden, kind = logits.shape, x.shape[1], TYPES[x.dtype]
    chosen, read_chosen = on.out((rows, top_k), np.int64)
    scores, read_scores = on.out((rows, top_k), np.float32)
    gathered, read_gathered = on.out((rows * top_k, hidden), x.dtype)
    offsets, read_offsets = on.out((experts + 1,), np.int64)
    source, read_source = on.out((rows * top_k,), np.int64)
    out, read_out = on.out(x.shape, x.dtype)
    on.run(
        "moe_route", captured, type=TYPES[logits.dtype], rows=rows, experts=experts, top_k=top_k, scoring=scoring,
        logits=on.up(logits), chosen=chosen, scores=scores,
    )  # fmt: skip
    on.run(
        "moe_dispatch", captured, type=kind, rows=rows, top_k=top_k, hidden=hidden, num_experts=experts, x=on.up(x),
        experts=chosen, scores=scores if scaled == "input" else None, gathered=gathered, offsets=offsets, source=source,
    )  # fmt: skip
    on.run(
        "moe_combine", captured, type=kind, rows=rows, top_k=top_k, hidden=hidden, y=gathered, source=source,
        scores=scores if scaled == "output" else None, out=out,
    )  # fmt: skip
    results = (read_chosen(), read_scores(), read_gathered(), read_offsets(), read_source(), read_out())
    on.close()
    return results


def repack(format: str, rows: int, cols: int, data: Array, image: bytes | None = None) -> Array:
    """A checkpoint's bytes -> packed, with zeros between the planes"""
    card = Card(image)
    packed = cuda.Buffer(card.device, len(cuda.pack(format=format, rows=rows, cols=cols, data=data)))
    card.stream.fill(packed, 0)
    card.run(cuda.repack(format=format, rows=rows, cols=cols, source=card.upload(data), packed=packed), captured=False)
    return card.stream.read(packed)


def planned(
    operation: str, arrays: dict[str, Array], out: int, call: dict[str, Any], image: bytes | None = None
) -> list[str]:
    """A call's plan, with kernels of an image.  out: bytes of the result.  -> the kernels"""
    card = Card(image)
    kept = {name: card.upload(array) for name, array in arrays.items()} | {"out": cuda.Buffer(card.device, out)}
    call = call | {name: buffer.address for name, buffer in kept.items()}
    if "mask" in call:
        call["mask"] = _core.Mask(*call["mask"])
    scratch = cuda.Buffer(card.device, getattr(cuda.calls, f"{operation}_scratch_bytes")(**call))
    plan: cuda.Plan = getattr(cuda.calls, f"{operation}_plan")(device=card.device, scratch=scratch.address, **call)
    card.run(plan, captured=False)
    return plan.kernels


def wrong(operation: str, scratch: tuple[int, int] | None = None, **changes: Any) -> str:
    """The sentence that refuses a call, one of whose arguments is wrong.  scratch: its address and bytes"""
    device = cuda.Device()
    big = cuda.Buffer(device, 1 << 20).address
    causal = _core.Mask("global", 0)
    arguments: dict[str, dict[str, Any]] = {
        "rms_norm": {
            "type": "bf16", "weight_type": "f32", "rows": 3, "n": 64, "eps": 1e-5, "x": big, "weight": None, "out": big
        },
        "rope": {
            "type": "f32", "interleaved": True, "batch": 1, "rows": 2, "heads": 2, "head_dim": 8, "positions": big,
            "inverse_frequency": big, "x": big, "out": big,
        },
        "attention": {
            "type": "f32", "heads": 4, "kv_heads": 2, "head_dim": 16, "rows": 2, "keys": 9, "first_position": 3,
            "mask": causal, "scale": 1.0, "q": big, "k": big, "v": big, "out": big,
        },
        "linear": {
            "type": "f32", "format": "Q4_0", "rows": 1, "cols": 64, "outputs": 8, "x": big, "weight": big, "out": big
        },
        "moe_route": {
            "type": "f32", "rows": 1, "experts": 4, "top_k": 2, "scoring": "softmax", "logits": big, "chosen": big,
            "scores": big,
        },
    }  # fmt: skip
    call = arguments[operation] | changes
    address, count = scratch or (big, 1 << 20)
    try:
        getattr(cuda.calls, operation)(stream=0, scratch=address, scratch_bytes=count, **call)
    except RuntimeError as error:
        return str(error)
    raise AssertionError("nothing was refused")
