"""What streams, memory and graphs do, on the card of this process."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import numpy as np
from cuda_worker import Card, cuda
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def host_floats(buffer: cuda.HostBuffer) -> Floats:
    return buffer.array.view(np.float32)


def norm(card: Card, x: cuda.Buffer, y: cuda.Buffer, n: int) -> cuda.Executable:
    return cuda.Executable(card.module, cuda.rms_norm(x=x, weight=None, y=y, rows=1, n=n, eps=0.0))


def replays(inputs: list[Floats]) -> list[Floats]:
    """One graph: a copy in, a norm, a copy on the device, a norm of that, a copy out. Run once an input."""
    card = Card()
    n = inputs[0].size
    source, result = (cuda.HostBuffer(card.device, 4 * n) for _ in range(2))
    host_floats(source)[:] = np.nan
    x, y, z = (card.output(n) for _ in range(3))
    first, second = norm(card, x, y, n), norm(card, z, y, n)

    def work() -> None:
        card.stream.write_async(x, source)
        card.stream.run(first)
        card.stream.copy(z, y)
        card.stream.run(second)
        card.stream.read_async(result, y)

    graph = card.stream.capture(work)
    results = []
    for values in inputs:
        host_floats(source)[:] = values
        card.stream.run(graph)
        card.stream.synchronize()
        results.append(host_floats(result).copy())
    return results


def in_place(x: Floats) -> Floats:
    """A kernel that reads and writes memory of the host; a part of it, too."""
    card = Card()
    memory = cuda.HostBuffer(card.device, 2 * x.nbytes)
    host_floats(memory)[:] = np.concatenate([x, np.zeros_like(x)])
    card.stream.run(norm(card, memory.part(0, x.nbytes), memory.part(x.nbytes, x.nbytes), x.size))
    card.stream.synchronize()
    return host_floats(memory)[x.size :].copy()


def foreign_stream(x: Floats) -> tuple[Floats, list[int]]:
    """-> y, and what the driver says of the stream when ours has gone, and when it is destroyed"""
    card = Card()
    library = ctypes.CDLL(os.environ["LLAMA_EXT_LIBCUDA"])
    context, handle = ctypes.c_void_p(), ctypes.c_void_p()
    assert library.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
    assert library.cuCtxPushCurrent_v2(context) == 0
    assert library.cuStreamCreate(ctypes.byref(handle), 1) == 0
    card.stream = cuda.Stream(card.device, foreign=handle.value)
    source, y = card.upload(x), card.output(x.size)
    card.stream.run(card.stream.capture(norm(card, source, y, x.size)))
    result = card.floats(y)
    del card
    codes = [library.cuStreamSynchronize(handle), library.cuStreamDestroy_v2(handle)]
    library.cuCtxPopCurrent_v2(ctypes.byref(context))
    library.cuDevicePrimaryCtxRelease_v2(0)
    return result, codes


def elapsed(x: Floats) -> float:
    card = Card()
    source, y = card.upload(x), card.output(x.size)
    before, after = (cuda.Event(card.device) for _ in range(2))
    card.stream.record(before)
    card.stream.run(norm(card, source, y, x.size))
    card.stream.record(after)
    return after.milliseconds_since(before)


def memory_left(bytes: int) -> tuple[int, int, int]:
    """Free bytes with nothing taken; with so many of the host's and so many of the device's; with nothing again."""
    device = cuda.Device()
    before = device.free_bytes
    host, buffer = cuda.HostBuffer(device, bytes), cuda.Buffer(device, bytes)
    between = device.free_bytes
    del host, buffer
    return before, between, device.free_bytes


def sentence(case: str, image: bytes | None = None) -> list[str]:
    """What is said of each thing that goes wrong."""
    card = Card(image)
    buffer, host = cuda.Buffer(card.device, 64), cuda.HostBuffer(card.device, 60)
    said: list[str] = []

    def attempt(call: Any, *arguments: Any) -> None:
        try:
            call(*arguments)
            said.append("nothing")
        except (RuntimeError, ValueError) as error:
            said.append(f"{type(error).__name__}: {error}")

    if case == "memory":
        attempt(cuda.Buffer, card.device, card.device.free_bytes + 1000)
        attempt(cuda.HostBuffer, card.device, 1 << 60)
    elif case == "sizes":
        attempt(card.stream.write_async, buffer, host)
        attempt(card.stream.read_async, host, buffer)
        attempt(card.stream.copy, buffer, buffer.part(0, 8))
    elif case == "capture":
        attempt(card.stream.capture, lambda: card.stream.write(buffer, np.zeros(4, np.uint8)))
        attempt(card.stream.write, buffer, np.zeros(4, np.uint8))
        attempt(cuda.Stream(card.device, foreign=0).capture, lambda: None)
    elif case == "kernel":
        x = card.upload(np.ones(8, np.float32))

        def run() -> None:
            card.stream.run(norm(card, x, x, 8))
            card.stream.synchronize()

        attempt(run)
        attempt(card.stream.synchronize)
        attempt(cuda.Buffer, card.device, 64)
    return said


def repeated(x: Floats) -> tuple[Floats, list[str], list[str], str]:
    """The second launch of a plan, three times: y, the kernels, their labels, and what is refused."""
    card = Card()
    y = card.upload(x)
    plan = cuda.rms_norm(x=y, weight=None, y=y, rows=1, n=x.size, eps=0.0)
    plan += cuda.rms_norm(x=y, weight=card.upload(np.full_like(x, 2)), y=y, rows=1, n=x.size, eps=0.0)
    three = plan.repeated(1, 3)
    card.run(three, captured=True)
    refused = ""
    try:
        plan.repeated(2, 1)
    except ValueError as error:
        refused = str(error)
    return card.floats(y), three.kernels, three.labels, refused
