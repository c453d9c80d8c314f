"""Right kernels with synchronisation that is easy to mistake for wrong: the right result and no report, over 100 seeds.

The kernels are in faults/correct.cu. LLAMA_EXT_VGPU_SEEDS is the number of seeds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import Buffer, Gpu, Module, compile_cuda
from numpy.typing import NDArray

SOURCE = Path(__file__).resolve().parent / "faults" / "correct.cu"
SEEDS = int(os.environ.get("LLAMA_EXT_VGPU_SEEDS", "100"))

F, S, U = np.float32, np.int32, np.uint32
Array = NDArray[Any]
RUNS: dict[str, Callable[[Gpu, Module], None]] = {}


@cache
def ptx() -> str:
    return compile_cuda(SOURCE, arch="compute_90")


def right(run: Callable[[Gpu, Module], None]) -> Callable[[Gpu, Module], None]:
    """A function that launches the kernel of its name and holds the result against what it should be."""
    RUNS[run.__name__] = run
    return run


def same(buffer: Buffer, expected: Array) -> None:
    assert np.array_equal(buffer.get(), expected)


def numbers(n: int) -> Array:
    return np.arange(n, dtype=F)


def random(n: int, most: int) -> Array:
    return np.random.default_rng(n).integers(0, most, n).astype(S)


def mirrored(array: Array, part: int) -> Array:
    return np.ascontiguousarray(array.reshape(-1, part)[:, ::-1]).reshape(-1)


@right
def block_reduction(gpu: Gpu, module: Module) -> None:
    out = gpu.empty(1)
    gpu.launch(module.kernel("block_reduction"), 1, 256, gpu.array(numbers(1000)), out, S(1000))
    same(out, np.array([499500], F))


@right
def scan(gpu: Gpu, module: Module) -> None:
    values, out = random(128, 9), gpu.empty(128, S)
    gpu.launch(module.kernel("scan"), 1, 128, gpu.array(values), out)
    same(out, np.cumsum(values).astype(S))


@right
def transposition(gpu: Gpu, module: Module) -> None:
    matrix, out = numbers(32 * 32).reshape(32, 32), gpu.empty((32, 32))
    gpu.launch(module.kernel("transposition"), (2, 2), (16, 16), gpu.array(matrix), out, S(32))
    same(out, matrix.T)


@right
def histogram(gpu: Gpu, module: Module) -> None:
    values, bins = random(700, 16).astype(U), gpu.array(np.zeros(16, U))
    gpu.launch(module.kernel("histogram"), 4, 64, gpu.array(values), bins, S(700))
    same(bins, np.bincount(values, minlength=16).astype(U))


@right
def neighbouring_bytes(gpu: Gpu, module: Module) -> None:
    values, out = random(128, 200).astype(np.uint8), gpu.empty(128, np.uint8)
    gpu.launch(module.kernel("neighbouring_bytes"), 1, 128, gpu.array(values), out)
    same(out, values + 2)


@right
def neighbouring_halves(gpu: Gpu, module: Module) -> None:
    values, out = random(128, 200).astype(np.uint16), gpu.empty(128, np.uint16)
    gpu.launch(module.kernel("neighbouring_halves"), 1, 128, gpu.array(values), out)
    same(out, values + 1)


@right
def remaining_half(gpu: Gpu, module: Module) -> None:
    out = gpu.empty(64)
    gpu.launch(module.kernel("remaining_half"), 1, 128, gpu.array(numbers(64)), out)
    same(out, numbers(64)[::-1])


@right
def voting_barriers(gpu: Gpu, module: Module) -> None:
    values, out = np.arange(128, dtype=S), gpu.empty(128, S)
    gpu.launch(module.kernel("voting_barriers"), 1, 128, gpu.array(values), out)
    same(out, values[::-1] + 127_000 + 100_000 + 1_000_000)


@right
def double_buffer(gpu: Gpu, module: Module) -> None:
    values, out = numbers(5 * 128), gpu.empty(128)
    gpu.launch(module.kernel("double_buffer"), 1, 128, gpu.array(values), out, S(5))
    same(out, values.reshape(5, 128).sum(0)[::-1])


@right
def tree_with_syncwarp(gpu: Gpu, module: Module) -> None:
    out = gpu.empty(4)
    gpu.launch(module.kernel("tree_with_syncwarp"), 1, 128, gpu.array(numbers(128)), out)
    same(out, numbers(128).reshape(4, 32).sum(1))


@right
def warp_aggregated(gpu: Gpu, module: Module) -> None:
    values, counter = random(300, 100), gpu.array(np.zeros(1, U))
    out = gpu.array(np.full(300, -1, S))
    gpu.launch(module.kernel("warp_aggregated"), 5, 64, gpu.array(values), counter, out, S(300))
    kept = values[values % 3 == 0]
    same(counter, np.array([len(kept)], U))
    assert np.array_equal(np.sort(out.get()[: len(kept)]), np.sort(kept))


@right
def opportunistic(gpu: Gpu, module: Module) -> None:
    values, counter = random(128, 100), gpu.array(np.zeros(1, U))
    gpu.launch(module.kernel("opportunistic"), 1, 128, gpu.array(values), counter)
    same(counter, np.array([(values % 2).sum()], U))


@right
def divergent(gpu: Gpu, module: Module) -> None:
    values, out = random(32, 100), gpu.empty(32, S)
    gpu.launch(module.kernel("divergent"), 1, 32, gpu.array(values), out)
    odd = values % 2 == 1
    tile = np.where(odd, values, -values)
    same(out, np.where(odd, values[odd].sum(), values[~odd].sum()).astype(S) + tile[::-1])


@right
def uneven_loops(gpu: Gpu, module: Module) -> None:
    rounds, out = random(32, 9), gpu.empty(32, S)
    gpu.launch(module.kernel("uneven_loops"), 1, 32, gpu.array(rounds), out)
    same(out, np.roll(rounds * (rounds - 1) // 2, -1))


@right
def matching_lanes(gpu: Gpu, module: Module) -> None:
    keys, out = random(32, 5), gpu.empty(32, S)
    gpu.launch(module.kernel("matching_lanes"), 1, 32, gpu.array(keys), out)
    same(out, np.array([100 * (keys == k).sum() + np.flatnonzero(keys == k)[0] for k in keys], S))


@right
def named_barriers(gpu: Gpu, module: Module) -> None:
    values, out = numbers(6 * 64), gpu.empty(6 * 64)
    gpu.launch(module.kernel("named_barriers"), 1, 128, gpu.array(values), out, S(6))
    same(out, mirrored(values, 64))


@right
def ring(gpu: Gpu, module: Module) -> None:
    out = gpu.empty(25)
    gpu.launch(module.kernel("ring"), 1, 64, gpu.array(numbers(25)), out, S(25))
    same(out, numbers(25))


@right
def warp_hands_over(gpu: Gpu, module: Module) -> None:
    out = gpu.empty(32)
    gpu.launch(module.kernel("warp_hands_over"), 1, 64, gpu.array(numbers(32)), out)
    same(out, numbers(32)[::-1])


@right
def async_pipeline(gpu: Gpu, module: Module) -> None:
    values, out = numbers(5 * 256), gpu.empty(5 * 256)
    gpu.launch(module.kernel("async_pipeline"), 1, 64, gpu.array(values), out, S(5))
    same(out, values.reshape(5, 64, 4)[:, ::-1].reshape(-1))


@right
def async_three_stages(gpu: Gpu, module: Module) -> None:
    values, out = numbers(7 * 64), gpu.empty(7 * 64)
    gpu.launch(module.kernel("async_three_stages"), 1, 64, gpu.array(values), out, S(7))
    same(out, mirrored(values, 64))


@right
def last_block(gpu: Gpu, module: Module) -> None:
    values, arrived, out = numbers(1000), gpu.array(np.zeros(1, U)), gpu.empty(1)
    for _ in range(2):  # the counter is reset for the next launch
        gpu.launch(module.kernel("last_block"), 6, 64, gpu.array(values), gpu.empty(6), arrived, out, S(1000))
        same(out, np.array([499500], F))


@right
def split_and_combine(gpu: Gpu, module: Module) -> None:
    values, out = numbers(3 * 4 * 32), gpu.empty((3, 32))
    tickets, parts = gpu.array(np.zeros(3, U)), gpu.empty(3 * 4 * 32)
    for _ in range(2):
        gpu.launch(module.kernel("split_and_combine"), (4, 3), 32, gpu.array(values), parts, tickets, out, S(4))
        same(out, 2 * values.reshape(3, 4, 32).sum(1))


@right
def sense_reversing_barrier(gpu: Gpu, module: Module) -> None:
    words = [gpu.array(np.zeros(1, U)) for _ in range(2)]
    out = gpu.empty(5 * 32, U)
    kernel = module.kernel("sense_reversing_barrier")
    gpu.launch(kernel, 5, 32, *words, gpu.empty(5 * 32, U), out, S(4), cooperative=True)
    same(out, np.repeat(6 * (5 - np.arange(5)), 32).astype(U))


@right
def look_back(gpu: Gpu, module: Module) -> None:
    values, out = random(8 * 64, 9), gpu.empty(8 * 64, S)
    place, status = gpu.array(np.zeros(1, U)), gpu.array(np.zeros(8, U))
    gpu.launch(
        module.kernel("look_back"), 8, 64, gpu.array(values), place, status, gpu.empty(8, S), gpu.empty(8, S), out
    )
    same(out, np.cumsum(values).astype(S))


@right
def look_back_packed(gpu: Gpu, module: Module) -> None:
    values, out = random(9, 50), gpu.empty(9, S)
    state = gpu.array(np.zeros(9, np.uint64))
    gpu.launch(module.kernel("look_back_packed"), 9, 1, gpu.array(values), gpu.array(np.zeros(1, U)), state, out)
    same(out, np.cumsum(values).astype(S))


@right
def spinlock(gpu: Gpu, module: Module) -> None:
    value = gpu.array(np.zeros(2, U))
    gpu.launch(module.kernel("spinlock"), 7, 32, gpu.array(np.zeros(1, U)), value)
    same(value, np.array([7, 14], U))


@right
def spinlock_of_lanes(gpu: Gpu, module: Module) -> None:
    value = gpu.array(np.zeros(1, U))
    gpu.launch(module.kernel("spinlock_of_lanes"), 2, 32, gpu.array(np.zeros(1, U)), value)
    same(value, np.array([2 * 496], U))


@right
def release_and_acquire(gpu: Gpu, module: Module) -> None:
    out = gpu.empty((6, 32))
    kernel = module.kernel("release_and_acquire")
    gpu.launch(kernel, 6, 32, gpu.empty(6), gpu.array(np.zeros(6, U)), out, cooperative=True)
    same(out, (2.0 ** np.arange(6)[:, None] + np.arange(32)).astype(F))


@right
def hearsay(gpu: Gpu, module: Module) -> None:
    out = gpu.empty(1)
    gpu.launch(module.kernel("hearsay"), 3, 1, gpu.empty(1), gpu.array(np.zeros(2, U)), out, cooperative=True)
    same(out, np.array([42], F))


@right
def mixed_spaces(gpu: Gpu, module: Module) -> None:
    flags, data = np.arange(32, dtype=S) % 3 % 2, gpu.array(np.arange(32, dtype=S))
    gpu.launch(module.kernel("mixed_spaces"), 1, 32, gpu.array(flags), data)
    same(data, np.where(flags, 100, 0).astype(S) + np.arange(32, dtype=S) + 1)


@right
def idle_atomics(gpu: Gpu, module: Module) -> None:
    most = gpu.array(np.zeros(1, S))
    gpu.launch(module.kernel("idle_atomics"), 1, 32, most, gpu.array(np.zeros(32, S)), S(6000))
    same(most, np.zeros(1, S))


@right
def byte_flags(gpu: Gpu, module: Module) -> None:
    flags, out = gpu.array(np.zeros(4, np.uint8)), gpu.empty(1, S)
    gpu.launch(module.kernel("byte_flags"), 5, 1, gpu.empty(4, S), flags, out, cooperative=True)
    same(out, np.array([10], S))


@right
def largest(gpu: Gpu, module: Module) -> None:
    values, out = random(500, 1000).astype(F), gpu.array(np.zeros(1, F))
    gpu.launch(module.kernel("largest"), 4, 64, gpu.array(values), out, S(500))
    same(out, values.max(keepdims=True))


@right
def add_by_exchange(gpu: Gpu, module: Module) -> None:
    out = gpu.array(np.zeros(1, F))
    gpu.launch(module.kernel("add_by_exchange"), 3, 32, out)
    same(out, np.array([96], F))


@right
def first_half(gpu: Gpu, module: Module) -> None:
    """Two launches of a stream: the second knows all of the first."""
    values, parts, out = numbers(128), gpu.empty(128), gpu.empty(32)
    gpu.launch(module.kernel("first_half"), 4, 32, gpu.array(values), parts)
    gpu.launch(module.kernel("second_half"), 1, 32, parts, out, S(4))
    same(out, (values + 1).reshape(4, 32).sum(0))


@right
def mbarriers(gpu: Gpu, module: Module) -> None:
    values, out = numbers(7 * 32), gpu.empty(7 * 32)
    gpu.launch(module.kernel("mbarriers"), 1, 64, gpu.array(values), out, S(7))
    same(out, mirrored(values, 32))


@right
def mbarriers_and_copies(gpu: Gpu, module: Module) -> None:
    values, out = numbers(7 * 128), gpu.empty(7 * 128)
    gpu.launch(module.kernel("mbarriers_and_copies"), 1, 96, gpu.array(values), out, S(7))
    same(out, values.reshape(7, 32, 4)[:, ::-1].reshape(-1))


@right
def chain_first(gpu: Gpu, module: Module) -> None:
    """Three launches that overlap."""
    values, a, b, out = numbers(256), gpu.empty(256), gpu.empty(256), gpu.empty(256)
    source = gpu.array(values)
    gpu.launch(module.kernel("chain_first"), 4, 64, source, a, programmatic=True)
    gpu.launch(module.kernel("chain_second"), 4, 64, a, b, programmatic=True)
    gpu.launch(module.kernel("chain_third"), 4, 64, a, b, out, programmatic=True)
    same(out, values + 1 + 2 * (values + 1)[::-1])


@pytest.mark.parametrize("name", RUNS)
def test_right_and_silent(gpu: Gpu, name: str) -> None:
    module = gpu.module(ptx())
    for seed in range(SEEDS):
        gpu.seed(seed)
        RUNS[name](gpu, module)
        assert gpu.faults() == [], f"seed {seed}: {gpu.faults()[0]}"


def test_every_kernel_is_run() -> None:
    kernels = set(re.findall(r"__global__ void (\w+)", SOURCE.read_text()))
    assert kernels == {*RUNS, "second_half", "chain_second", "chain_third"}
