"""Every fault that the virtual GPU has to report, on a kernel that has it; silence on the same kernel mended.

The kernels are in faults/: each is compiled twice, with BROKEN and without. Every broken one is reported on every seed,
with its kernel, one of the lines marked `// fault here`, and an address where there is one. LLAMA_EXT_VGPU_SEEDS is the
number of seeds (100; broken kernels take a fifth of them).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import DriverError, Gpu, Module, compile_cuda

FAULTS = Path(__file__).resolve().parent / "faults"
SEEDS = int(os.environ.get("LLAMA_EXT_VGPU_SEEDS", "100"))

F, S, U = np.float32, np.int32, np.uint32


@cache
def ptx(file: str, arch: str, broken: bool) -> str:
    return compile_cuda(FAULTS / file, arch=arch, defines=("BROKEN",) if broken else ())


@cache
def marked(file: str, kernel: str) -> frozenset[int]:
    """The lines of a kernel that carry the mark; those of the device functions before it that it calls, too."""
    lines = (FAULTS / file).read_text().splitlines()
    begin = next(i for i, line in enumerate(lines) if re.search(rf"__global__ void.* {kernel}\(", line))
    end = next(i for i in range(begin, len(lines)) if lines[i].startswith("}"))
    own = {i + 1 for i in range(begin, end) if "// fault here" in lines[i]}
    helpers = re.findall(r"grid_barrier", "\n".join(lines[begin:end]))
    if helpers:
        at = next(i for i, line in enumerate(lines) if "inline void grid_barrier(" in line)
        own |= set(range(at + 1, next(i for i in range(at, len(lines)) if lines[i].startswith("}")) + 1))
    assert own, f"{file} marks no line of {kernel}"
    return frozenset(own)


@dataclass(frozen=True)
class Case:
    """How a kernel is launched. Of the arguments an array is copied, ("empty", n) never written, an int an int32."""

    file: str
    kernel: str
    kinds: str  # accepted, with spaces between
    arguments: Callable[[], list[Any]]
    grid: int = 1
    block: int = 32
    shared: int = 0
    arch: str = "compute_80"
    addressed: bool = True
    cooperative: bool = False
    cooperative_when_mended: bool = False
    before: Callable[[Gpu, Module, list[Any]], None] | None = None
    programmatic: bool = False

    def __str__(self) -> str:
        return self.kernel

    def run(self, gpu: Gpu, broken: bool) -> list[Any]:
        module = gpu.module(ptx(self.file, self.arch, broken))
        arguments = [convert(gpu, a) for a in self.arguments()]
        own = list(arguments)
        if self.before:
            self.before(gpu, module, arguments)
        try:
            gpu.launch(
                module.kernel(self.kernel),
                self.grid,
                self.block,
                *own,
                shared=self.shared,
                cooperative=self.cooperative or (self.cooperative_when_mended and not broken),
                programmatic=self.programmatic,
            )
            gpu.synchronize()
        except DriverError:
            if not broken:
                raise
        return arguments


def convert(gpu: Gpu, argument: Any) -> Any:
    if isinstance(argument, np.ndarray):
        return gpu.array(argument)
    if isinstance(argument, tuple):
        return gpu.empty(argument[1], argument[2] if len(argument) > 2 else F)
    return S(argument) if isinstance(argument, int) else argument


def floats(n: int) -> np.ndarray:
    return np.arange(n, dtype=F)


def zeros(n: int, dtype: Any = F) -> np.ndarray:
    return np.zeros(n, dtype)


def half_written(gpu: Gpu, module: Module, arguments: list[Any]) -> None:
    """Only the first 32 of 64 elements."""
    gpu.call("cuMemcpyHtoD_v2", arguments[0].address, floats(32).ctypes.data, 128)


def freed(gpu: Gpu, module: Module, arguments: list[Any]) -> None:
    arguments[0].free()


def producer(gpu: Gpu, module: Module, arguments: list[Any]) -> None:
    gpu.launch(module.kernel("produce"), 4, 64, arguments[0])


def consumer(gpu: Gpu, module: Module, arguments: list[Any]) -> None:
    gpu.launch(module.kernel("consume"), 4, 64, arguments[0], arguments[1])


def chain_of_two(gpu: Gpu, module: Module, arguments: list[Any]) -> None:
    unrelated = gpu.array(zeros(256))  # a copy would wait for what runs
    arguments.append(unrelated)
    producer(gpu, module, arguments)
    gpu.launch(module.kernel("middle"), 4, 64, unrelated, programmatic=True)


def pattern(n: int, period: int = 8) -> np.ndarray:
    return (np.arange(n) % period).astype(S)


M, B, W, G, A, D = "memory.cu", "barriers.cu", "warps.cu", "grid.cu", "async.cu", "dependent.cu"
FLAGS = (np.arange(64) % 2).astype(S)
UNEVEN = np.where(np.arange(64) < 40, 2, 3).astype(S)


def quads(n: int) -> np.ndarray:
    return floats(4 * n)


CASES = [
    Case(M, "global_write_above", "out_of_bounds", lambda: [("empty", 20), 20]),
    Case(M, "global_write_below", "out_of_bounds", lambda: [("empty", 20), 20]),
    Case(M, "global_read_above", "out_of_bounds", lambda: [floats(20), ("empty", 20), 20]),
    Case(M, "global_read_below", "out_of_bounds", lambda: [floats(20), ("empty", 20), 20]),
    Case(M, "vector_read_above", "out_of_bounds", lambda: [floats(30), ("empty", 8), 30]),
    Case(M, "atomic_above", "out_of_bounds", lambda: [zeros(20, U), 20]),
    Case(M, "null_pointer", "out_of_bounds", lambda: [("empty", 32), np.uint64(0)]),
    Case(M, "null_pointer_of_one_thread", "out_of_bounds", lambda: [("empty", 32)]),
    Case(M, "index_wraps", "out_of_bounds", lambda: [("empty", 32), 65537, 65535]),
    Case(M, "shared_above", "out_of_bounds", lambda: [("empty", 64), 0], block=64),
    Case(M, "shared_below", "out_of_bounds", lambda: [("empty", 64), 0], block=64),
    Case(M, "shared_dynamic_above", "out_of_bounds", lambda: [("empty", 20), 20], shared=80),
    Case(M, "shared_dynamic_below", "out_of_bounds", lambda: [("empty", 32), 32], shared=128),
    Case(M, "local_above", "out_of_bounds", lambda: [pattern(32), ("empty", 32)]),
    Case(M, "local_below", "out_of_bounds", lambda: [pattern(32), ("empty", 32)]),
    Case(M, "misaligned_vector", "misaligned", lambda: [floats(132), ("empty", 32)]),
    Case(M, "misaligned_store", "misaligned", lambda: [zeros(131, np.uint8), 3]),
    Case(M, "misaligned_shared", "misaligned", lambda: [("empty", 32), 3], shared=4 * 32 * 6),
    Case(M, "uninitialised_global", "uninitialised", lambda: [("empty", 64), ("empty", 32)], before=half_written),
    Case(M, "uninitialised_tail", "uninitialised", lambda: [("empty", 40), ("empty", 40), 40], block=64),
    Case(M, "uninitialised_shared", "uninitialised", lambda: [floats(64), ("empty", 64)], block=64),
    Case(M, "uninitialised_between_blocks", "uninitialised", lambda: [("empty", 256)], grid=8),
    Case(M, "uninitialised_local", "uninitialised", lambda: [pattern(32), ("empty", 32), 8]),
    Case(M, "uninitialised_bytes", "uninitialised", lambda: [("empty", 128, np.uint8), ("empty", 32, U)]),
    Case(B, "missing_block_barrier", "race uninitialised", lambda: [floats(128), ("empty", 128)], block=128),
    Case(B, "overwritten_too_early", "race", lambda: [floats(512), ("empty", 128), 4], block=128),
    Case(B, "double_buffer_off_by_one", "race", lambda: [floats(640), ("empty", 128), 4], block=128),
    Case(B, "reduction_without_barriers", "race", lambda: [floats(256), ("empty", 1)], block=256),
    Case(B, "barrier_in_branch", "barrier_divergence", lambda: [("empty", 64)], block=64, addressed=False),
    Case(B, "barrier_within_warp", "barrier_divergence", lambda: [FLAGS, ("empty", 64)], block=64, addressed=False),
    Case(
        B,
        "barrier_after_return",
        "barrier_divergence",
        lambda: [floats(100), ("empty", 100), 100],
        block=128,
        addressed=False,
    ),
    Case(
        B, "barrier_in_uneven_loop", "barrier_divergence", lambda: [UNEVEN, ("empty", 64, S)], block=64, addressed=False
    ),
    Case(B, "named_barrier_miscounted", "deadlock", lambda: [("empty", 64)], block=96, addressed=False),
    Case(B, "crossed_barriers", "deadlock", lambda: [("empty", 64)], block=64, addressed=False),
    Case(B, "producer_announces_too_early", "race uninitialised", lambda: [floats(160), ("empty", 160), 5], block=64),
    Case(
        B,
        "producer_does_not_wait",
        "race invalid deadlock",
        lambda: [floats(160), ("empty", 160), 5],
        block=64,
        addressed=False,
    ),
    Case(W, "missing_syncwarp", "race", lambda: [floats(32), ("empty", 32)]),
    Case(W, "tree_without_syncwarp", "race", lambda: [floats(32), ("empty", 1)]),
    Case(W, "shuffle_is_no_fence", "race", lambda: [floats(32), ("empty", 32)]),
    Case(W, "syncwarp_of_too_few", "race uninitialised", lambda: [floats(32), ("empty", 32)]),
    Case(W, "missing_syncwarp_global", "race", lambda: [("empty", 32), ("empty", 32)]),
    Case(W, "bytes_of_a_word", "race uninitialised", lambda: [("empty", 8, S), ("empty", 32, S)]),
    Case(W, "shuffle_mask_too_small", "invalid", lambda: [pattern(32), ("empty", 32, S)], addressed=False),
    Case(W, "shuffle_of_absent_lanes", "deadlock", lambda: [pattern(32), ("empty", 32, S)], addressed=False),
    Case(W, "syncwarp_of_absent_lanes", "deadlock", lambda: [("empty", 32, S)], addressed=False),
    Case(W, "vote_of_absent_lanes", "deadlock", lambda: [pattern(32), ("empty", 32, S)], addressed=False),
    Case(G, "fence_of_thread_zero", "race", lambda: [("empty", 512), zeros(1, U), ("empty", 64)], grid=8, block=64),
    Case(G, "missing_grid_fence", "race", lambda: [("empty", 8), zeros(1, U), ("empty", 1)], grid=8),
    Case(G, "missing_acquire", "race", lambda: [("empty", 512), zeros(1, U), ("empty", 64)], grid=8, block=64),
    Case(G, "fence_of_block_scope", "race", lambda: [("empty", 8), zeros(1, U), ("empty", 1)], grid=8),
    Case(G, "atomic_of_block_scope", "race", lambda: [zeros(1, U)], grid=4),
    Case(
        G, "volatile_flag", "race", lambda: [("empty", 1), zeros(1, U), ("empty", 1)], grid=2, block=1, cooperative=True
    ),
    Case(
        G, "relaxed_wait", "race", lambda: [("empty", 1), zeros(1, U), ("empty", 1)], grid=2, block=1, cooperative=True
    ),
    Case(
        G,
        "nobody_sets_the_flag",
        "livelock",
        lambda: [zeros(1, U), ("empty", 1, U)],
        grid=2,
        block=1,
        addressed=False,
        cooperative_when_mended=True,
    ),
    Case(
        G,
        "turn_never_passed",
        "livelock",
        lambda: [zeros(1, U), zeros(1, U)],
        grid=4,
        block=1,
        addressed=False,
        cooperative_when_mended=True,
    ),
    Case(
        G, "release_by_a_stranger", "race", lambda: [("empty", 1), zeros(1, U), ("empty", 1)], grid=2, cooperative=True
    ),
    Case(G, "plain_read_before_atomic", "race", lambda: [zeros(1, U), ("empty", 1, U)], grid=2, block=1),
    Case(G, "plain_update", "race", lambda: [zeros(1, U)], grid=4),
    Case(G, "plain_update_in_block", "race", lambda: [zeros(32, U)], block=64),
    Case(G, "plain_update_shared", "race", lambda: [pattern(64).astype(U), ("empty", 8, U)], block=64),
    Case(G, "atomic_and_plain_read", "race", lambda: [zeros(1, U), ("empty", 4, U)], grid=4, block=1),
    Case(G, "atomic_and_plain_write", "race", lambda: [zeros(1, U)], grid=4, block=1),
    Case(G, "atomic_and_plain_shared", "race", lambda: [("empty", 64, U)], block=64),
    Case(G, "stencil_in_place", "race", lambda: [floats(128), floats(128)], grid=4),
    Case(G, "overlapping_blocks", "race", lambda: [("empty", 128)], grid=4),
    Case(G, "lock_without_fence", "race", lambda: [zeros(1, U), zeros(1, U)], grid=4),
    Case(G, "lock_taken_twice", "livelock", lambda: [zeros(1, U), zeros(1, U)], grid=2, block=1, addressed=False),
    Case(
        G,
        "grid_barrier_without_residency",
        "livelock",
        lambda: [zeros(1, U), ("empty", 12, U), ("empty", 12, U)],
        grid=12,
        block=1,
        addressed=False,
        cooperative_when_mended=True,
    ),
    Case(G, "non_coherent_read", "race", lambda: [("empty", 64), ("empty", 64)], block=64),
    Case(A, "async_without_wait", "async_pending", lambda: [quads(32), ("empty", 128)]),
    Case(A, "async_without_commit", "async_pending", lambda: [quads(32), ("empty", 128)]),
    Case(A, "async_wait_off_by_one", "async_pending", lambda: [quads(128), ("empty", 512), 4]),
    Case(A, "async_without_barrier", "race async_pending uninitialised", lambda: [quads(64), ("empty", 256)], block=64),
    Case(
        A,
        "async_barrier_before_wait",
        "race async_pending uninitialised",
        lambda: [quads(64), ("empty", 256)],
        block=64,
    ),
    Case(
        A,
        "async_overwritten_too_early",
        "race async_pending uninitialised",
        lambda: [quads(256), ("empty", 1024), 4],
        block=64,
    ),
    Case(
        A,
        "async_issued_before_barrier",
        "race async_pending uninitialised",
        lambda: [quads(384), ("empty", 1536), 6],
        block=64,
    ),
    Case(A, "async_destination_written", "async_pending", lambda: [quads(32), ("empty", 128)]),
    Case(A, "async_source_written", "async_pending", lambda: [quads(32), ("empty", 128)]),
    Case(A, "async_source_above", "out_of_bounds", lambda: [quads(20), ("empty", 80), 20]),
    Case(A, "async_misaligned", "misaligned", lambda: [quads(33), ("empty", 32)]),
    Case(
        A,
        "mbarrier_wrong_parity",
        "race uninitialised livelock",
        lambda: [floats(160), ("empty", 160), 5],
        block=64,
        arch="compute_90",
        addressed=False,
    ),
    Case(
        A, "mbarrier_not_yet_there", "race uninitialised invalid", lambda: [("empty", 64)], block=64, arch="compute_90"
    ),
    Case(A, "mbarrier_miscounted", "livelock", lambda: [("empty", 64)], block=64, arch="compute_90", addressed=False),
    Case(
        A,
        "mbarrier_without_copies",
        "race async_pending uninitialised",
        lambda: [quads(64), ("empty", 256)],
        block=64,
        arch="compute_90",
    ),
    Case(
        D,
        "reads_too_early",
        "race uninitialised",
        lambda: [("empty", 256), ("empty", 256)],
        4,
        64,
        arch="compute_90",
        before=producer,
        programmatic=True,
    ),
    Case(
        D,
        "never_waits",
        "race uninitialised",
        lambda: [("empty", 256), ("empty", 256)],
        4,
        64,
        arch="compute_90",
        before=producer,
        programmatic=True,
    ),
    Case(
        D,
        "writes_too_early",
        "race",
        lambda: [floats(256), ("empty", 256)],
        4,
        64,
        arch="compute_90",
        before=consumer,
        programmatic=True,
    ),
    Case(
        D,
        "one_warp_waits",
        "race uninitialised",
        lambda: [("empty", 256), ("empty", 256)],
        4,
        64,
        arch="compute_90",
        before=producer,
        programmatic=True,
    ),
    Case(
        D,
        "chain_broken",
        "race",
        lambda: [("empty", 256), ("empty", 256)],
        4,
        64,
        arch="compute_90",
        before=chain_of_two,
        programmatic=True,
    ),
    Case(
        "endings.cu", "trapped", "trap", lambda: [np.arange(64, dtype=S), ("empty", 64, S)], block=64, addressed=False
    ),
    Case(
        "endings.cu",
        "asserted",
        "assert",
        lambda: [np.arange(64, dtype=S), ("empty", 64, S)],
        block=64,
        addressed=False,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_broken_is_reported(gpu: Gpu, case: Case) -> None:
    lines = marked(case.file, case.kernel)
    for seed in range(max(1, SEEDS // 5)):
        gpu.reset()
        gpu.seed(seed)
        case.run(gpu, broken=True)
        faults = gpu.faults()
        assert faults, f"seed {seed}: nothing was reported"
        assert {f["kind"] for f in faults} <= set(case.kinds.split()), f"seed {seed}: {faults}"
        fault = faults[0]
        places = [fault, fault["other"]] if "other" in fault else [fault]
        named = [
            (Path(at["file"]).name, at["line"])
            for p in places
            if p["kernel"] == case.kernel
            for at in (p, *p["callers"])
        ]
        assert any(file == case.file and line in lines for file, line in named), f"seed {seed}: {fault}"
        if case.addressed:
            assert int(fault["address"], 16) >= 0 and fault["allocation"] and fault["access"], fault
        size = case.block
        assert all(0 <= p["thread"][0] < size for p in places if p["kernel"] == case.kernel)
    gpu.reset()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_mended_is_silent(gpu: Gpu, case: Case) -> None:
    for seed in range(SEEDS):
        gpu.seed(seed)
        case.run(gpu, broken=False)
        assert gpu.faults() == [], f"seed {seed}"


def test_use_after_free(gpu: Gpu) -> None:
    case = Case(M, "use_after_free", "use_after_free", lambda: [floats(32), ("empty", 32)])
    case.run(gpu, broken=False)
    assert gpu.faults() == []
    late = Case(M, "use_after_free", "use_after_free", lambda: [floats(32), ("empty", 32)], before=freed)
    late.run(gpu, broken=True)
    (fault,) = gpu.faults()
    assert fault["kind"] == "use_after_free" and fault["line"] in marked(M, "use_after_free")
    gpu.reset()
