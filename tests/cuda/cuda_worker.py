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


def norm_and_product(x: Array, norm: Array, weight: Array, captured: bool = False, image: bytes | None = None) -> Array:
    """x + W rms_norm(x), in place, normalised: each launch reads what the one before it wrote.  weight: bits of bf16"""
    card = Card(image)
    rows, cols = weight.shape
    stream, normed = card.upload(x), card.output(cols)
    step = card.upload(np.array([0, 0, 1], np.int64))  # of one row
    plan = cuda.rms_norm(x=stream, weight=card.upload(norm), y=normed, rows=1, n=cols, eps=1e-5)
    plan += cuda.product(
        weight=card.upload(cuda.pack(format="BF16", rows=rows, cols=cols, data=weight.view(np.uint8))),
        format="BF16",
        rows=rows,
        cols=cols,
        step=step,
        max_rows=1,
        x=normed,
        epilogue="add",
        y=stream,
    )
    plan += cuda.rms_norm(x=stream, weight=None, y=normed, rows=1, n=cols, eps=1e-5)
    card.run(plan, captured)
    return card.floats(normed)


def plans() -> dict[str, str]:
    """One plan of each operation, printed."""
    device = cuda.Device()
    buffer = cuda.Buffer(device, 1 << 20)
    return {
        "rms_norm": str(cuda.rms_norm(x=buffer, weight=None, y=buffer, rows=3, n=576, eps=1e-5)),
        "product": str(
            cuda.product(
                weight=buffer,
                format="BF16",
                rows=100,
                cols=64,
                step=buffer,
                max_rows=3,
                x=buffer,
                y=buffer,
                epilogue="add",
            )
        ),
        "attention": str(
            cuda.attention(
                **dict.fromkeys(("qkv", "step", "cache", "out", "scratch"), buffer),
                max_rows=16,
                heads=6,
                kv_heads=2,
                head_dim=64,
                format="bf16",
                mask=_core.Mask("sliding", 32),
                scale=0.125,
                splits=4,
            )
        ),
        "address": hex(buffer.address),
    }


def wrong_arguments(operation: str, **changes: Any) -> str:
    """The sentence that refuses a plan, one of whose arguments is wrong."""
    device = cuda.Device()
    big = cuda.Buffer(device, 1 << 20)
    arguments: dict[str, dict[str, Any]] = {
        "rms_norm": {"x": big, "weight": None, "y": big, "rows": 3, "n": 576, "eps": 1e-5},
        "product": {
            "weight": big, "format": "Q4_0", "rows": 100, "cols": 64, "step": big, "max_rows": 4, "x": big, "y": big
        },
        "attention": {
            "qkv": big, "step": big, "cache": big, "out": big, "scratch": big, "max_rows": 2, "heads": 6, "kv_heads": 2,
            "head_dim": 64, "format": "bf16", "mask": ("global", 0), "scale": 1.0, "splits": 4
        },
    }  # fmt: skip
    arguments["product_tiles"] = arguments["product"]
    call = arguments[operation] | changes
    for name, value in call.items():
        if isinstance(value, str) and "+" in value:  # "offset+bytes" of a buffer
            offset, size = value.split("+")
            call[name] = big.part(int(offset), int(size))
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
