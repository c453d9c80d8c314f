"""The mended twins of faults/*.cu compute what they should, in any order; and all that is marked there is in a table.

The launches are those of test_vgpu_faults.py; here is what each leaves behind, by numpy.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import Buffer, DriverError, Gpu, Module
from test_vgpu_faults import CASES, FAULTS, SEEDS, Case, marked, ptx

N = np.arange
# Of which argument, what; from the arguments as the host hands them over (an array, a number, or a shape of nothing).
Wanted = Callable[[list[Any]], dict[int, Any]]


def swapped(x: Any) -> Any:
    return x.reshape(-1, 2)[:, ::-1].ravel()


def quads(x: Any) -> Any:
    return np.r_[x, np.zeros(-len(x) % 4, x.dtype)].reshape(-1, 4).sum(1)


def mirrored(x: Any, part: int = 256) -> Any:
    """Rows of 64 elements of 4 numbers, each row backwards."""
    return x.reshape(-1, part // 4, 4)[:, ::-1].ravel()


def shifted(x: Any, by: int) -> Any:
    return np.r_[x[1:], 0] if by == 1 else np.r_[0, x[:-1]]


def first_bytes(count: int) -> Any:
    return np.r_[np.zeros(3, np.uint8), N(count, dtype="<u4").view(np.uint8)]


RESULTS: dict[str, Wanted] = {
    # memory.cu
    "global_write_above": lambda a: {0: N(20)},
    "global_write_below": lambda a: {0: N(20)},
    "global_read_above": lambda a: {1: a[0] + shifted(a[0], 1)},
    "global_read_below": lambda a: {1: a[0] + shifted(a[0], -1)},
    "vector_read_above": lambda a: {1: quads(a[0])},
    "atomic_above": lambda a: {0: np.bincount(N(32) % 20, minlength=20)},
    "null_pointer": lambda a: {0: np.zeros(32)},
    "index_wraps": lambda a: {0: np.ones(32)},
    "shared_above": lambda a: {0: 2 * np.roll(N(64), -1)},
    "shared_below": lambda a: {0: 2 * np.roll(N(64), 1)},
    "shared_dynamic_above": lambda a: {0: N(20)[::-1]},
    "shared_dynamic_below": lambda a: {0: N(32)[::-1]},
    "misaligned_vector": lambda a: {1: quads(a[0][:128])},
    "misaligned_store": lambda a: {0: first_bytes(32)},
    "misaligned_shared": lambda a: {0: 6 * N(32) + 1},
    "uninitialised_global": lambda a: {1: N(32) + 1},
    "uninitialised_tail": lambda a: {1: np.ones(40)},
    "uninitialised_shared": lambda a: {1: a[0][::-1]},
    "uninitialised_between_blocks": lambda a: {0: np.tile(N(32)[::-1], 8)},
    "uninitialised_local": lambda a: {1: a[0]},
    "uninitialised_bytes": lambda a: {1: np.full(32, 0x04030201)},
    # barriers.cu
    "missing_block_barrier": lambda a: {1: a[0][::-1]},
    "overwritten_too_early": lambda a: {1: a[0].reshape(4, 128)[:, ::-1].sum(0)},
    "double_buffer_off_by_one": lambda a: {1: a[0].reshape(5, 128)[:4, ::-1].sum(0)},
    "reduction_without_barriers": lambda a: {1: [a[0].sum()]},
    "barrier_within_warp": lambda a: {1: a[0] * (63 - N(64))},
    "barrier_after_return": lambda a: {1: a[0][::-1]},
    "barrier_in_uneven_loop": lambda a: {1: np.full(64, a[0][0] * (a[0][0] - 1) // 2)},
    "named_barrier_miscounted": lambda a: {0: N(64)[::-1]},
    "crossed_barriers": lambda a: {0: np.ones(64)},
    "producer_announces_too_early": lambda a: {1: swapped(a[0])},
    "producer_does_not_wait": lambda a: {1: swapped(a[0])},
    # warps.cu
    "missing_syncwarp": lambda a: {1: a[0][::-1]},
    "tree_without_syncwarp": lambda a: {1: [a[0].sum()]},
    "shuffle_is_no_fence": lambda a: {1: swapped(a[0]) + a[0][::-1]},
    "syncwarp_of_too_few": lambda a: {1: np.r_[a[0][:16], 2 * swapped(a[0])[:16]][::-1]},
    "missing_syncwarp_global": lambda a: {1: N(32) ^ 1},
    "shuffle_mask_too_small": lambda a: {1: swapped(a[0])},
    "shuffle_of_absent_lanes": lambda a: {1: np.where(N(32) < 16, a[0] + swapped(a[0]), a[0])},
    "syncwarp_of_absent_lanes": lambda a: {0: (N(32) + N(32) % 2)[::-1]},
    # grid.cu
    "fence_of_thread_zero": lambda a: {2: np.full(64, 28)},
    "missing_grid_fence": lambda a: {2: [28]},
    "missing_acquire": lambda a: {2: np.full(64, 28)},
    "fence_of_block_scope": lambda a: {2: [28]},
    "atomic_of_block_scope": lambda a: {0: [128]},
    "volatile_flag": lambda a: {2: [42]},
    "relaxed_wait": lambda a: {2: [42]},
    "nobody_sets_the_flag": lambda a: {1: [1]},
    "turn_never_passed": lambda a: {1: [6]},
    "plain_update": lambda a: {0: [128]},
    "plain_update_in_block": lambda a: {0: np.full(32, 2)},
    "plain_update_shared": lambda a: {1: np.bincount(a[0] % 8, minlength=8)},
    "atomic_and_plain_read": lambda a: {0: [4]},
    "atomic_and_plain_write": lambda a: {0: [4]},
    "atomic_and_plain_shared": lambda a: {0: np.full(64, 2016)},
    "stencil_in_place": lambda a: {1: shifted(a[0], -1) * 0.5 + 0.5},
    "overlapping_blocks": lambda a: {0: np.repeat(N(4), 32)},
    "lock_without_fence": lambda a: {0: [0], 1: [4]},
    "lock_taken_twice": lambda a: {0: [0], 1: [2]},
    "grid_barrier_without_residency": lambda a: {2: N(12)[::-1]},
    "non_coherent_read": lambda a: {1: N(64) ^ 1},
    # async.cu
    "async_without_wait": lambda a: {1: a[0]},
    "async_without_commit": lambda a: {1: a[0]},
    "async_without_barrier": lambda a: {1: mirrored(a[0])},
    "async_barrier_before_wait": lambda a: {1: mirrored(a[0])},
    "async_source_above": lambda a: {1: a[0]},
    "async_misaligned": lambda a: {1: a[0][:128:4]},
    "mbarrier_wrong_parity": lambda a: {1: swapped(a[0])},
    "mbarrier_not_yet_there": lambda a: {0: N(64)[::-1]},
    "mbarrier_miscounted": lambda a: {0: N(64)},
    "mbarrier_without_copies": lambda a: {1: mirrored(a[0])},
    # dependent.cu
    "reads_too_early": lambda a: {1: 2 * N(256)},
    "never_waits": lambda a: {1: 2 * N(256)},
    "one_warp_waits": lambda a: {1: 2 * N(256)},
    "writes_too_early": lambda a: {0: np.full(256, -1), 1: 2 * a[0] + 1},
    "chain_broken": lambda a: {1: 2 * N(256)},
    # endings.cu
    "trapped": lambda a: {1: a[0]},
    "asserted": lambda a: {1: a[0]},
}


@pytest.mark.parametrize("case", [case for case in CASES if case.kernel in RESULTS], ids=str)
def test_mended_twin_is_right(gpu: Gpu, case: Case) -> None:
    given = case.arguments()
    for seed in range(max(1, SEEDS // 10)):
        gpu.seed(seed)
        buffers = case.run(gpu, broken=False)
        for k, value in RESULTS[case.kernel](given).items():
            np.testing.assert_array_equal(buffers[k].get().ravel(), value, err_msg=f"seed {seed}")


# --- launches that the table cannot say -------------------------------------------------------------------------------


def two_streams(gpu: Gpu, module: Module, ordered: bool) -> Buffer:
    """A launch in a stream, and one in another that reads what it writes."""
    first, second = gpu.stream(), gpu.stream()
    data, out = gpu.array(np.zeros(32, np.float32)), gpu.empty(32)
    gpu.synchronize()
    gpu.launch(module.kernel("stream_first"), 1, 32, data, stream=first)
    if ordered:
        event = gpu.event()
        event.record(first)
        second.wait(event)
    gpu.launch(module.kernel("stream_second"), 1, 32, data, out, stream=second)
    gpu.try_call("cuCtxSynchronize")
    return out


def test_two_streams(gpu: Gpu) -> None:
    module = gpu.module(ptx("grid.cu", "compute_80", True))
    for seed in range(SEEDS):
        gpu.seed(seed)
        out = two_streams(gpu, module, ordered=True)
        assert gpu.faults() == [], f"seed {seed}"
        assert np.array_equal(out.get(), N(32))
    for seed in range(max(1, SEEDS // 5)):
        gpu.reset()
        gpu.seed(seed)
        two_streams(gpu, module, ordered=False)
        faults = gpu.faults()
        assert faults and all(fault["kind"] == "race" for fault in faults), f"seed {seed}: {faults}"
        assert {fault["kernel"] for fault in faults} <= {"stream_first", "stream_second"}
    gpu.reset()


def test_write_to_constant(gpu: Gpu) -> None:
    module = gpu.module(ptx("memory.cu", "compute_80", True))
    kernel = module.kernel("write_to_constant")
    to = module.variable("variable", 32, np.float32)
    gpu.launch(kernel, 1, 32, to)
    assert gpu.faults() == [] and np.array_equal(to.get(), np.ones(32))
    (fault,) = gpu.faults_of(kernel, 1, 32, module.variable("table", 32, np.float32))
    assert fault["kind"] == "read_only" and fault["line"] in marked("memory.cu", "write_to_constant")


def test_grid_barrier_without_fence(gpu: Gpu) -> None:
    for seed in range(max(1, SEEDS // 5)):
        for broken in (True, False):
            kernel = gpu.module(ptx("grid.cu", "compute_80", broken)).kernel("grid_barrier_without_fence")
            gpu.seed(seed)
            arrived, data, out = (gpu.array(np.zeros(n, np.uint32)) for n in (1, 8, 8))
            faults = gpu.faults_of(kernel, 8, 32, arrived, data, out, cooperative=True)
            if broken:
                lines = {place["line"] for fault in faults for place in (fault, fault.get("other", fault))}
                assert {fault["kind"] for fault in faults} == {"race"} and lines & marked("grid.cu", kernel.name)
            else:
                assert faults == [] and np.array_equal(out.get(), N(8)[::-1]), f"seed {seed}"


def test_a_grid_that_does_not_fit(gpu: Gpu) -> None:
    """A block takes one of 132 multiprocessors for itself: refused as a cooperative launch, a livelock as another."""
    shared = 200 * 1024
    kernel = gpu.module(ptx("grid.cu", "compute_80", False)).kernel("grid_barrier_without_residency")
    kernel.allow_shared(shared)
    given = [gpu.array(np.zeros(n, np.uint32)) for n in (1, 200, 200)]
    with pytest.raises(DriverError, match="COOPERATIVE_LAUNCH_TOO_LARGE"):
        gpu.launch(kernel, 200, 1, *given, shared=shared, cooperative=True)
    (fault,) = gpu.faults_of(kernel, 200, 1, *given, shared=shared)
    assert fault["kind"] == "livelock" and fault["kernel"] == kernel.name


def test_every_marked_kernel_is_in_a_table() -> None:
    """What is marked and run by nobody would look like success."""
    here = {"stream_second", "write_to_constant", "grid_barrier_without_fence", "use_after_free"}
    for file in sorted(FAULTS.glob("*.cu")):
        for body in re.split(r'^extern "C" __global__ ', file.read_text(), flags=re.M)[1:]:
            if "// fault here" in body:
                name = body[: body.index("(")].split()[-1]
                assert name in here | {case.kernel for case in CASES}, Path(file).name
