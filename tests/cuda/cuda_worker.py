"""A process with one card of the virtual GPU, and what the tests run on it.

The driver reads its card when it starts and stays for the life of a process, so each card has a process of its own:
requests come pickled through its standard input, answers go back through its standard output.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from llama_ext import _core

Array = NDArray[Any]
cuda = _core.cuda

STORED = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}
"""Format of a cache -> what numpy holds it in."""


class Card:
    """The card in this process."""

    def __init__(self, image: bytes | None = None) -> None:
        self.device = cuda.Device()
        self.stream = cuda.Stream(self.device)
        self.module = cuda.Module(self.device, image)

    def upload(self, array: Array) -> cuda.Buffer:
        buffer = cuda.Buffer(self.device, array.nbytes)
        self.stream.write(buffer, array)
        return buffer

    def output(self, count: int) -> cuda.Buffer:
        """float32, NaN until it is written."""
        buffer = cuda.Buffer(self.device, 4 * count)
        self.stream.fill(buffer, 0xFF)
        return buffer

    def floats(self, buffer: cuda.Buffer) -> NDArray[np.float32]:
        return self.stream.read(buffer).view(np.float32)

    def run(self, plan: cuda.Plan, captured: bool) -> None:
        executable = cuda.Executable(self.module, plan)
        self.stream.run(self.stream.capture(executable) if captured else executable)
        self.stream.synchronize()


def describe() -> tuple[str, tuple[int, int], int]:
    device = cuda.Device()
    return device.name, device.compute_capability, device.multiprocessors


def rms_norm(
    x: Array, weight: Array | None, eps: float, offset: int = 0, captured: bool = False, image: bytes | None = None
) -> tuple[Array, list[str]]:
    """offset: of x in its buffer, in floats.  -> (y, the kernels that ran)"""
    card = Card(image)
    rows, n = x.shape
    source = card.upload(np.concatenate([np.zeros(offset, np.float32), x.reshape(-1)]))
    y = card.output(x.size)
    plan = cuda.rms_norm(
        x=source.part(4 * offset, x.nbytes),
        weight=None if weight is None else card.upload(weight),
        y=y,
        rows=rows,
        n=n,
        eps=eps,
    )
    card.run(plan, captured)
    return card.floats(y).reshape(rows, n), plan.kernels


def product(
    weight: Array,
    x: Array,
    residual: Array | None,
    in_place: bool = False,
    captured: bool = False,
    image: bytes | None = None,
) -> Array:
    """weight: uint16, the bits of bf16.  in_place: the residual is also the result."""
    card = Card(image)
    rows, cols = weight.shape
    added = None if residual is None else card.upload(residual)
    y = added if in_place and added else card.output(rows)
    plan = cuda.product(weight=card.upload(weight), x=card.upload(x), residual=added, y=y, rows=rows, cols=cols)
    card.run(plan, captured)
    return card.floats(y)


def norm_and_product(x: Array, norm: Array, weight: Array, captured: bool = False, image: bytes | None = None) -> Array:
    """x + W rms_norm(x), in place: each launch reads what the one before it wrote."""
    card = Card(image)
    rows, cols = weight.shape
    stream, normed = card.upload(x), card.output(cols)
    plan = cuda.rms_norm(x=stream, weight=card.upload(norm), y=normed, rows=1, n=cols, eps=1e-5)
    plan += cuda.product(weight=card.upload(weight), x=normed, residual=stream, y=stream, rows=rows, cols=cols)
    plan += cuda.rms_norm(x=stream, weight=None, y=normed, rows=1, n=cols, eps=1e-5)
    card.run(plan, captured)
    return card.floats(normed)


def attention(
    steps: list[tuple[int, Array, Array, Array]],
    past_k: Array,
    past_v: Array,
    format: str,
    capacity: int,
    splits: int,
    mask: tuple[str, int],
    scale: float,
    captured: bool = False,
    image: bytes | None = None,
) -> list[Array]:
    """Appends and attends, step after step, with one plan.

    steps: (position, q [heads, head_dim], k, v [kv_heads, head_dim]).  past_k, past_v [positions, kv_heads, head_dim]
    in the cache's format: positions 0 to the first step's.  Only slots that hold a position are ever written.
    """
    card = Card(image)
    heads, head_dim = steps[0][1].shape
    kv_heads = past_k.shape[1]
    size = past_k.itemsize * head_dim
    caches = [cuda.Buffer(card.device, kv_heads * capacity * size) for _ in range(2)]
    kept = np.arange(max(0, len(past_k) - capacity), len(past_k))
    for buffer, past in zip(caches, (past_k, past_v), strict=True):
        for run in np.split(kept, np.flatnonzero(kept % capacity == 0)):  # does not wrap
            for head in range(kv_heads) if len(run) else ():
                rows = np.ascontiguousarray(past[run, head])
                card.stream.write(buffer.part((head * capacity + run[0] % capacity) * size, rows.nbytes), rows)
    q, out = cuda.Buffer(card.device, 4 * heads * head_dim), card.output(heads * head_dim)
    k, v = (cuda.Buffer(card.device, 4 * kv_heads * head_dim) for _ in range(2))
    position = cuda.Buffer(card.device, 8)
    bytes_ = cuda.attention_scratch_bytes(heads=heads, head_dim=head_dim, splits=splits)
    cache = _core.CacheLayer(kv_heads=kv_heads, head_dim=head_dim, capacity=capacity, format=format)
    plan = cuda.attention_append(k=k, v=v, position=position, keys=caches[0], values=caches[1], cache=cache)
    plan += cuda.attention(
        q=q,
        keys=caches[0],
        values=caches[1],
        position=position,
        scratch=cuda.Buffer(card.device, bytes_),
        out=out,
        cache=cache,
        heads=heads,
        splits=splits,
        mask=_core.Mask(*mask),
        scale=scale,
    )
    executable = cuda.Executable(card.module, plan)
    work = card.stream.capture(executable) if captured else executable
    results = []
    for at, q_now, k_now, v_now in steps:
        card.stream.write(position, np.array([at], np.int64))
        for buffer, array in ((q, q_now), (k, k_now), (v, v_now)):
            card.stream.write(buffer, array)
        card.stream.fill(out, 0xFF)
        card.stream.run(work)
        results.append(card.floats(out).reshape(heads, head_dim))
    return results


def append(
    k: Array, v: Array, at: int, format: str, capacity: int, captured: bool = False, image: bytes | None = None
) -> tuple[Array, Array]:
    """-> keys, values [kv_heads, capacity, head_dim], of 0xff where nothing was written"""
    card = Card(image)
    kv_heads, head_dim = k.shape
    size = kv_heads * capacity * head_dim * np.dtype(STORED[format]).itemsize
    caches = [cuda.Buffer(card.device, size) for _ in range(2)]
    for buffer in caches:
        card.stream.fill(buffer, 0xFF)
    cache = _core.CacheLayer(kv_heads=kv_heads, head_dim=head_dim, capacity=capacity, format=format)
    plan = cuda.attention_append(
        k=card.upload(k),
        v=card.upload(v),
        position=card.upload(np.array([at], np.int64)),
        keys=caches[0],
        values=caches[1],
        cache=cache,
    )
    card.run(plan, captured)
    keys, values = (
        card.stream.read(buffer).view(STORED[format]).reshape(kv_heads, capacity, head_dim) for buffer in caches
    )
    return keys, values


def plans() -> dict[str, str]:
    """One plan of each operation, printed."""
    device = cuda.Device()
    buffer = cuda.Buffer(device, 1 << 20)
    cache = _core.CacheLayer(kv_heads=2, head_dim=64, capacity=100, format="bf16")
    at = {"keys": buffer, "values": buffer, "position": buffer, "cache": cache}
    return {
        "rms_norm": str(cuda.rms_norm(x=buffer, weight=None, y=buffer, rows=3, n=576, eps=1e-5)),
        "product": str(cuda.product(weight=buffer, x=buffer, y=buffer, rows=100, cols=64)),
        "attention": str(
            cuda.attention_append(k=buffer, v=buffer, **at)
            + cuda.attention(
                q=buffer,
                scratch=buffer,
                out=buffer,
                heads=6,
                splits=4,
                mask=_core.Mask("sliding", 32),
                scale=0.125,
                **at,
            )
        ),
        "address": hex(buffer.address),
    }


def wrong_arguments(operation: str, **changes: Any) -> str:
    """The sentence that refuses a plan, one of whose arguments is wrong."""
    device = cuda.Device()
    big = cuda.Buffer(device, 1 << 20)
    layer = {"kv_heads": 2, "head_dim": 64, "capacity": 100, "format": "bf16"}
    at: dict[str, Any] = {"keys": big, "values": big, "position": big}
    arguments: dict[str, dict[str, Any]] = {
        "rms_norm": {"x": big, "weight": None, "y": big, "rows": 3, "n": 576, "eps": 1e-5},
        "product": {"weight": big, "x": big, "y": big, "rows": 100, "cols": 64},
        "attention_append": {"k": big, "v": big, **at},
        "attention": {
            "q": big, "scratch": big, "out": big, "heads": 6, "splits": 4, "mask": ("global", 0), "scale": 1.0, **at
        },
    }  # fmt: skip
    call = arguments[operation] | {name: value for name, value in changes.items() if name not in layer}
    for name, value in call.items():
        if isinstance(value, str):  # "offset+bytes" of a buffer
            offset, size = value.split("+")
            call[name] = big.part(int(offset), int(size))
    if operation.startswith("attention"):
        call["cache"] = _core.CacheLayer(
            **{**layer, **{name: value for name, value in changes.items() if name in layer}}
        )
    if "mask" in call:
        call["mask"] = _core.Mask(*call["mask"])
    try:
        getattr(cuda, operation)(**call)
    except ValueError as error:
        return str(error)
    raise AssertionError("nothing was refused")


def driver_error(case: str, image: bytes = b"") -> str:
    """What the driver's refusal reads like."""
    try:
        if case == "ordinal":
            cuda.Device(7)
        device = cuda.Device()
        buffer = cuda.Buffer(device, 4096)
        if case == "part":
            buffer.part(4000, 97)
        if case == "write":
            cuda.Stream(device).write(buffer.part(0, 8), np.zeros(9, np.uint8))
        cuda.Module(device, image)
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("nothing was refused")


def report(function: str, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """The counters of each launch of another function here."""
    library = virtual_gpu()
    library.vgpuReport()  # what ran before
    find(function)(**arguments)
    launches: list[dict[str, Any]] = json.loads(library.vgpuReport())
    return launches


class Remote:
    """A worker, seen from the tests."""

    def __init__(self, library: Path, card: str) -> None:
        environment = {**os.environ, "LLAMA_EXT_LIBCUDA": str(library)}
        if card != "real":
            environment["LLAMA_EXT_VGPU_CARD"] = card
        environment.pop("LLAMA_EXT_VGPU_REPORT", None)
        self.card = card
        # -P: not this folder's neighbours, the installed package.
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )

    def _ask(self, function: str, seed: int, arguments: dict[str, Any]) -> tuple[Any, str, list[dict[str, Any]]]:
        assert self.process.stdin and self.process.stdout
        pickle.dump((function, seed, arguments), self.process.stdin)
        self.process.stdin.flush()
        try:
            answer: tuple[Any, str, list[dict[str, Any]]] = pickle.load(self.process.stdout)
        except EOFError:
            raise AssertionError(f"the worker of {self.card} died with {self.process.wait()} in {function}") from None
        return answer

    def call(self, function: str, /, seed: int = 0, **arguments: Any) -> Any:
        """The function's result; the card has seen no fault."""
        if function == "report":
            self.need_faults()
        result, error, faults = self._ask(function, seed, arguments)
        assert not faults, f"{function} on {self.card}, seed {seed}: {faults[0]}"
        assert not error, error
        return result

    def faults(self, function: str, /, seed: int = 0, **arguments: Any) -> list[dict[str, Any]]:
        """The faults of a run that is wrong."""
        self.need_faults()
        return self._ask(function, seed, arguments)[2]

    def need_faults(self) -> None:
        """Skips the test where the card is a real one, which reports none and does not survive them."""
        if self.card == "real":
            import pytest

            pytest.skip("a driver reports no faults")

    def outcome(self, function: str, /, seed: int = 0, **arguments: Any) -> tuple[Any, list[str]]:
        """The result of a run that deals with what goes wrong, and the kinds of the faults."""
        self.need_faults()
        result, error, faults = self._ask(function, seed, arguments)
        assert not error, error
        return result, [fault["kind"] for fault in faults]

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(timeout=60)


def virtual_gpu() -> ctypes.CDLL:
    library = ctypes.CDLL(os.environ["LLAMA_EXT_LIBCUDA"])
    for name in ("vgpuFaults", "vgpuReport"):
        getattr(library, name).restype = ctypes.c_char_p
    library.vgpuSetSeed.argtypes = (ctypes.c_uint64,)
    return library


def find(function: str) -> Callable[..., Any]:
    """ "module.function" of this folder, or a function of this file."""
    module, _, name = function.rpartition(".")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name) if module else globals()[name]
    return found


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    real = os.environ.get("LLAMA_EXT_TEST_CUDA") == "real"
    library = ctypes.CDLL(os.environ["LLAMA_EXT_LIBCUDA"]) if real else virtual_gpu()
    while True:
        try:
            function, seed, arguments = pickle.load(requests)
        except EOFError:
            return
        if not real:
            library.vgpuReset()
            library.vgpuSetSeed(seed)
        result, error = None, ""
        try:
            result = find(function)(**arguments)
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
        current = ctypes.c_void_p()
        library.cuCtxGetCurrent(ctypes.byref(current))
        if current.value:
            error = error or f"{function} has left a context current"
        pickle.dump((result, error, [] if real else json.loads(library.vgpuFaults())), answers)
        answers.flush()
        if not real:
            library.vgpuReset()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    sys.modules["cuda_worker"] = sys.modules["__main__"]
    answers_ = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed
    serve(sys.stdin.buffer, answers_)
