"""The virtual GPU's counters, on kernels whose figures can be told beforehand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import Gpu, Kernel, compile_cuda, library_path

# --- global memory ----------------------------------------------------------------------------------------------------

# `unit` bytes a lane, lane i at (base + i * stride) units.
GLOBAL = r"""
template <typename T> __device__ __forceinline__ void copy(const T *in, T *out, int base, int stride) {
    out[blockIdx.x * blockDim.x + threadIdx.x] = in[base + (blockIdx.x * blockDim.x + threadIdx.x) * stride];
}
extern "C" __global__ void copy4(const float *in, float *out, int base, int stride) { copy(in, out, base, stride); }
extern "C" __global__ void copy8(const float2 *in, float2 *out, int base, int stride) { copy(in, out, base, stride); }
extern "C" __global__ void copy16(const float4 *in, float4 *out, int base, int stride) { copy(in, out, base, stride); }
extern "C" __global__ void scatter(const float *in, float *out, int base, int stride) {
    out[base + threadIdx.x * stride] = in[threadIdx.x];
}
extern "C" __global__ void few(const float *in, float *out, int lanes, int again) {
    float sum = 0;
    if (threadIdx.x < lanes)
        for (int k = 0; k < again; ++k) sum += *(const volatile float *)(in + threadIdx.x);
    out[threadIdx.x] = sum;
}
"""


def floats(gpu: Gpu, count: int) -> Any:
    return gpu.array(np.arange(count, dtype=np.float32))


def run(gpu: Gpu, kernel: Kernel, grid: int, block: int, *args: Any, **options: Any) -> dict[str, Any]:
    """The launch's record; nothing was reported."""
    gpu.synchronize()
    gpu.report()
    gpu.launch(kernel, grid, block, *args, **options)
    gpu.synchronize()
    assert gpu.faults() == []
    (record,) = gpu.report()
    return record


def access(record: dict[str, Any], opcode: str) -> dict[str, Any]:
    """The record of the one memory instruction that begins so."""
    (found,) = (entry for entry in record["accesses"] if entry["instruction"].startswith(opcode))
    return found


def loads(record: dict[str, Any]) -> tuple[int, int, int]:
    """Sectors that were asked for, different ones, and the fewest that the bytes need."""
    return tuple(record[f"global_load_sectors_{kind}"] for kind in ("requested", "unique", "ideal"))  # type: ignore[return-value]


@pytest.fixture
def copies(gpu: Gpu) -> Any:
    return gpu.module(compile_cuda(GLOBAL))


@pytest.mark.parametrize("unit", [4, 8, 16])
def test_coalesced(gpu: Gpu, copies: Any, unit: int) -> None:
    size = 4 * 96 * unit // 4  # floats of 4 blocks of 96 threads
    record = run(
        gpu,
        copies.kernel(f"copy{unit}"),
        4,
        96,
        floats(gpu, size),
        gpu.empty(size, np.float32),
        np.int32(0),
        np.int32(1),
    )
    sectors = 4 * 96 * unit // 32
    assert loads(record) == (sectors, sectors, sectors)
    assert record["global_store_sectors_requested"] == record["global_store_sectors_ideal"] == sectors
    assert record["global_load_bytes"] == record["global_store_bytes"] == 4 * 96 * unit
    assert record["global_load_requests"] == record["global_store_requests"] == 4 * 3
    assert record["shared_load_wavefronts"] == record["shared_store_wavefronts"] == record["shared_bank_conflicts"] == 0


# A warp's 32 lanes: sectors that it asks for, and that its bytes would fill.
@pytest.mark.parametrize(
    ("unit", "base", "stride", "requested", "ideal"),
    [
        (4, 1, 1, 5, 4),  # an element off: one sector more
        (4, 8, 1, 4, 4),  # a sector off
        (8, 1, 1, 9, 8),
        (16, 1, 1, 17, 16),
        (4, 0, 2, 8, 4),
        (4, 0, 8, 32, 4),  # a sector a lane
        (4, 3, 1024, 32, 4),  # a page a lane
        (8, 0, 2, 16, 8),
        (16, 0, 2, 32, 16),  # half of each sector
        (4, 5, 0, 1, 1),  # all the same
    ],
)
def test_patterns(gpu: Gpu, copies: Any, unit: int, base: int, stride: int, requested: int, ideal: int) -> None:
    data = floats(gpu, (base + 31 * stride + 1) * unit // 4)
    out = gpu.empty(32 * unit // 4, np.float32)
    record = run(gpu, copies.kernel(f"copy{unit}"), 1, 32, data, out, np.int32(base), np.int32(stride))
    assert loads(record) == (requested, requested, ideal)
    assert record["global_load_bytes"] == 32 * unit


@pytest.mark.parametrize(("base", "stride", "requested"), [(0, 1, 4), (1, 1, 5), (0, 2, 8), (0, 8, 32)])
def test_stores(gpu: Gpu, copies: Any, base: int, stride: int, requested: int) -> None:
    out = gpu.empty(base + 31 * stride + 1, np.float32)
    record = run(gpu, copies.kernel("scatter"), 1, 32, floats(gpu, 32), out, np.int32(base), np.int32(stride))
    assert (record["global_store_sectors_requested"], record["global_store_sectors_ideal"]) == (requested, 4)


def test_a_misaligned_warp_shares_sectors_with_its_neighbours(gpu: Gpu, copies: Any) -> None:
    """8 warps of 5 sectors each, where 33 sectors hold all that they read."""
    record = run(
        gpu,
        copies.kernel("copy4"),
        4,
        64,
        floats(gpu, 257),
        gpu.empty(256, np.float32),
        np.int32(1),
        np.int32(1),
    )
    assert loads(record) == (40, 33, 32)


@pytest.mark.parametrize(("lanes", "again"), [(1, 1), (5, 3), (9, 2), (31, 1), (32, 4)])
def test_lanes_that_stay_away_and_repeated_reads(gpu: Gpu, copies: Any, lanes: int, again: int) -> None:
    out = gpu.empty(32, np.float32)
    record = run(gpu, copies.kernel("few"), 1, 32, floats(gpu, 32), out, np.int32(lanes), np.int32(again))
    sectors = -(-lanes // 8)
    assert loads(record) == (again * sectors, sectors, again * sectors)
    assert (record["global_load_requests"], record["global_load_bytes"]) == (again, again * lanes * 4)


def test_unique_sectors_are_of_one_launch(gpu: Gpu, copies: Any) -> None:
    data, out = floats(gpu, 32), gpu.empty(32, np.float32)
    for _ in range(2):
        record = run(gpu, copies.kernel("copy4"), 1, 32, data, out, np.int32(0), np.int32(1))
        assert loads(record) == (4, 4, 4)


# --- shared memory ----------------------------------------------------------------------------------------------------

# A lane reads `unit` bytes at index (lane * stride) % period; the stores before it lie in a row.
SHARED = r"""
extern "C" __global__ void read(float *out, int unit, int stride, int period) {
    __shared__ float4 tile[512];
    float *words = reinterpret_cast<float *>(tile);
    for (int i = threadIdx.x; i < 2048; i += 32) words[i] = i;
    __syncthreads();
    const int index = threadIdx.x * stride % period;
    const unsigned at = __cvta_generic_to_shared(tile) + index * unit;
    float a = 0, b = 0, c = 0, d = 0;
    // The compiler would load no more than is used.
    if (unit == 4)
        asm volatile("ld.shared.f32 %0, [%1];" : "=f"(a) : "r"(at) : "memory");
    else if (unit == 8)
        asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(a), "=f"(b) : "r"(at) : "memory");
    else
        asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                     : "=f"(a), "=f"(b), "=f"(c), "=f"(d) : "r"(at) : "memory");
    out[threadIdx.x] = a;
}
template <typename T, int N> __device__ __forceinline__ void write(float *out, int stride) {
    __shared__ T tile[N];
    T value;
    *reinterpret_cast<float *>(&value) = threadIdx.x;
    tile[threadIdx.x * stride] = value;
    __syncthreads();
    out[threadIdx.x] = *reinterpret_cast<float *>(&tile[threadIdx.x * stride]);
}
extern "C" __global__ void write4(float *out, int stride) { write<float, 1024>(out, stride); }
"""


# unit, stride and period in elements -> passes over the banks, and the fewest
@pytest.mark.parametrize(
    ("unit", "stride", "period", "taken", "ideal"),
    [
        (4, 1, 2048, 1, 1),
        (4, 2, 2048, 2, 1),  # every other bank, twice
        (4, 3, 2048, 1, 1),  # an odd stride meets every bank
        (4, 4, 2048, 4, 1),
        (4, 32, 2048, 32, 1),  # all in one bank
        (4, 33, 2048, 1, 1),  # a padded row
        (4, 0, 2048, 1, 1),  # one word for all
        (4, 1, 4, 1, 1),  # four words
        (4, 32, 64, 2, 1),  # two words of one bank
        (8, 1, 1024, 2, 2),  # half a warp a pass
        (8, 2, 1024, 4, 2),
        (8, 0, 1024, 2, 2),
        (8, 16, 1024, 32, 2),
        (8, 17, 1024, 2, 2),
        (16, 1, 512, 4, 4),  # a quarter of a warp a pass
        (16, 2, 512, 8, 4),
        (16, 8, 512, 32, 4),  # a row of 128 bytes a lane
        (16, 9, 512, 4, 4),  # and one of 144
        (16, 0, 512, 4, 4),
        (16, 8, 16, 8, 4),  # two pieces of one group of banks, in every quarter
    ],
)
def test_banks(gpu: Gpu, unit: int, stride: int, period: int, taken: int, ideal: int) -> None:
    kernel = gpu.module(compile_cuda(SHARED)).kernel("read")
    record = run(gpu, kernel, 1, 32, gpu.empty(32, np.float32), np.int32(unit), np.int32(stride), np.int32(period))
    found = access(record, "ld.shared")
    assert (found["wavefronts"], found["wavefronts_ideal"], found["bytes_per_lane"]) == (taken, ideal, unit)
    assert (record["shared_load_wavefronts"], record["shared_bank_conflicts"]) == (taken, taken - ideal)
    assert record["shared_store_wavefronts"] == 8192 // 128


@pytest.mark.parametrize(("stride", "taken"), [(1, 1), (2, 2), (32, 32)])
def test_bank_conflicts_of_stores(gpu: Gpu, stride: int, taken: int) -> None:
    kernel = gpu.module(compile_cuda(SHARED)).kernel("write4")
    record = run(gpu, kernel, 1, 32, gpu.empty(32, np.float32), np.int32(stride))
    assert record["shared_store_wavefronts"] == taken
    assert record["shared_bank_conflicts"] == record["shared_load_wavefronts"] - 1 + taken - 1


def test_matrices_by_ldmatrix(gpu: Gpu) -> None:
    """Rows of 16 bytes: in a row of 128 bytes each they meet in the same banks, in one of 144 they do not."""
    source = r"""
    extern "C" __global__ void matrices(unsigned *out, int row) {
        __shared__ __align__(16) unsigned char tile[32 * 144];
        for (int i = threadIdx.x; i < sizeof tile / 4; i += 32) reinterpret_cast<unsigned *>(tile)[i] = i;
        __syncwarp();
        unsigned a, b, c, d;
        unsigned at = __cvta_generic_to_shared(tile + threadIdx.x * row);
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(a), "=r"(b), "=r"(c), "=r"(d) : "r"(at) : "memory");
        out[threadIdx.x] = a ^ b ^ c ^ d;
    }"""
    kernel = gpu.module(compile_cuda(source)).kernel("matrices")
    for row, taken in ((16, 4), (128, 32), (144, 4)):
        record = run(gpu, kernel, 1, 32, gpu.empty(32, np.uint32), np.int32(row))
        found = access(record, "ldmatrix")
        assert (found["wavefronts"], found["wavefronts_ideal"]) == (taken, 4), row


# --- instructions, barriers, atomics ----------------------------------------------------------------------------------

STRAIGHT = r"""
.version 8.0
.target sm_80
.address_size 64
.visible .entry straight(.param .u64 out, .param .u32 n)
{
    .reg .pred %p;
    .reg .b32 %r<4>;
    .reg .b64 %d<3>;
    ld.param.u64 %d0, [out];
    ld.param.u32 %r0, [n];
    mov.u32 %r1, %tid.x;
    setp.lt.u32 %p, %r1, %r0;
    @!%p bra done;
    mul.wide.u32 %d1, %r1, 4;
    add.s64 %d2, %d0, %d1;
    add.u32 %r2, %r1, 1;
    add.u32 %r3, %r2, %r1;
    st.global.u32 [%d2], %r3;
done:
    ret;
}
"""


@pytest.mark.parametrize(("threads", "n"), [(64, 64), (64, 40), (64, 32), (48, 48), (7, 3)])
def test_instructions(gpu: Gpu, threads: int, n: int) -> None:
    """4 instructions and a return by every lane, 5 more by those below n, the branch by the others."""
    kernel = gpu.module(STRAIGHT).kernel("straight")
    out = gpu.empty(n, np.uint32)
    record = run(gpu, kernel, 1, threads, out, np.uint32(n))
    assert out.get().tolist() == [2 * i + 1 for i in range(n)]
    warps, working = -(-threads // 32), -(-n // 32)
    # A warp that parts at the branch meets again at the return.
    assert record["lane_instructions"] == 5 * threads + 5 * n + (threads - n)
    assert record["instructions"] == 6 * warps + 5 * working
    assert record["by_kind"] == {
        "ld": 2 * warps,
        "mov": warps,
        "setp": warps,
        "bra": warps,  # also where no lane takes it
        "mul": working,
        "add": 3 * working,
        "st": working,
        "ret": warps,
    }
    (store,) = record["accesses"]
    text = STRAIGHT.splitlines()
    assert text[store["ptx_line"] - 1].strip() == store["instruction"] == "st.global.u32 [%d2], %r3;"
    assert (store["space"], store["bytes_per_lane"], store["requests"], store["bytes"]) == ("global", 4, working, 4 * n)
    assert record["lines"] == [
        {
            "file": "",
            "line": 0,
            "instructions": record["instructions"],
            "lane_instructions": record["lane_instructions"],
        }
    ]


def test_lines_of_the_source(gpu: Gpu, tmp_path: Path) -> None:
    source = tmp_path / "lines.cu"
    source.write_text(
        'extern "C" __global__ void lines(const float *in, float *out) {\n'
        "    float value = in[threadIdx.x];\n"
        "    for (int k = 0; k < 3; ++k) value = sqrtf(value + k);\n"
        "    out[threadIdx.x] = value;\n"
        "}\n"
    )
    kernel = gpu.module(compile_cuda(source)).kernel("lines")
    record = run(gpu, kernel, 1, 64, floats(gpu, 64), gpu.empty(64, np.float32))
    lines = {entry["line"]: entry for entry in record["lines"] if entry["file"].endswith("lines.cu")}
    assert set(lines) <= {0, 1, 2, 3, 4, 5} and {2, 3, 4} <= set(lines)
    assert access(record, "ld.global")["line"] == 2
    assert access(record, "st.global")["line"] == 4
    assert sum(entry["instructions"] for entry in record["lines"]) == record["instructions"]
    assert sum(entry["lane_instructions"] for entry in record["lines"]) == record["lane_instructions"]
    assert record["lane_instructions"] == 32 * record["instructions"]


def test_barriers_and_shape(gpu: Gpu) -> None:
    source = r"""
    extern "C" __global__ void barriers(float *out, int rounds) {
        __shared__ float tile[64];
        extern __shared__ float more[];
        more[threadIdx.x] = 0;
        for (int k = 0; k < rounds; ++k) {
            tile[threadIdx.x] = k;
            __syncthreads();
            more[threadIdx.x] += tile[threadIdx.x ^ 33];
            __syncthreads();
        }
        out[(blockIdx.y * gridDim.x + blockIdx.x) * 64 + threadIdx.x] = more[threadIdx.x];
    }"""
    kernel = gpu.module(compile_cuda(source)).kernel("barriers")
    out = gpu.empty(6 * 64, np.float32)
    gpu.report()
    gpu.launch(kernel, (3, 2), 64, out, np.int32(5), shared=512)
    gpu.synchronize()
    (record,) = gpu.report()
    assert (out.get() == 10).all()
    assert record["kernel"] == "barriers" and record["grid"] == [3, 2, 1] and record["block"] == [64, 1, 1]
    assert (record["static_shared"], record["dynamic_shared"]) == (256, 512)
    assert record["barriers"] == 6 * 5 * 2  # completed, whatever the number of warps
    assert record["atomics"] == 0


def test_atomics(gpu: Gpu) -> None:
    """Warp instructions, in shared and in global memory; a reduction without a result counts too."""
    source = r"""
    extern "C" __global__ void count(unsigned *bins, unsigned *old) {
        __shared__ unsigned mine[32];
        if (threadIdx.x < 32) mine[threadIdx.x] = 0;
        __syncthreads();
        atomicAdd(&mine[threadIdx.x % 32], 1u);
        __syncthreads();
        if (threadIdx.x < 32) atomicAdd(&bins[threadIdx.x], mine[threadIdx.x]);
        if (threadIdx.x == 0) old[blockIdx.x] = atomicExch(&bins[32], blockIdx.x + 1);
    }"""
    kernel = gpu.module(compile_cuda(source)).kernel("count")
    bins = gpu.array(np.zeros(33, np.uint32))
    record = run(gpu, kernel, 4, 96, bins, gpu.empty(4, np.uint32))
    assert (bins.get()[:32] == 12).all()
    assert record["atomics"] == 4 * (3 + 1 + 1)
    assert record["global_store_requests"] == 4 * (1 + 1 + 1)
    assert record["global_store_bytes"] == 4 * (32 + 1 + 1) * 4
    assert record["global_store_sectors_requested"] == 4 * (4 + 1 + 1)
    assert record["global_load_requests"] == 0


def test_records_of_accesses(gpu: Gpu, copies: Any) -> None:
    """Of each memory instruction: its text and line, and its share of the totals."""
    record = run(
        gpu,
        copies.kernel("copy16"),
        2,
        64,
        floats(gpu, 4 * 129),
        gpu.empty(4 * 128, np.float32),
        np.int32(1),
        np.int32(1),
    )
    load, store = access(record, "ld.global"), access(record, "st.global")
    assert len(record["accesses"]) == 2
    assert (load["opcode"], store["opcode"]) == ("ld", "st")
    assert load["instruction"].startswith("ld.global.v4.u32 {")
    assert {
        key: load[key] for key in ("bytes_per_lane", "requests", "bytes", "sectors", "sectors_ideal", "sectors_unique")
    } == {
        "bytes_per_lane": 16,
        "requests": 4,
        "bytes": 2048,
        "sectors": 68,
        "sectors_ideal": 64,
        "sectors_unique": 65,
    }
    assert (store["bytes_per_lane"], store["sectors"], store["wavefronts"]) == (16, 64, 0)
    assert load["sectors"] == record["global_load_sectors_requested"]


def test_copies_that_run_on_their_own(gpu: Gpu) -> None:
    """cp.async counts as a load of its source."""
    source = r"""
    extern "C" __global__ void staged(const float4 *in, float4 *out, int base) {
        __shared__ float4 tile[64];
        unsigned to = __cvta_generic_to_shared(&tile[threadIdx.x]);
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(to), "l"(in + base + threadIdx.x) : "memory");
        asm volatile("cp.async.commit_group;\ncp.async.wait_group 0;" ::: "memory");
        out[threadIdx.x] = tile[threadIdx.x];
    }"""
    kernel = gpu.module(compile_cuda(source)).kernel("staged")
    for base, sectors in ((0, 32), (1, 34)):
        record = run(gpu, kernel, 1, 64, floats(gpu, 4 * 65), gpu.empty(4 * 64, np.float32), np.int32(base))
        found = access(record, "cp.async")
        assert (found["space"], found["bytes_per_lane"], found["requests"]) == ("global", 16, 2)
        assert (found["sectors"], found["sectors_ideal"]) == (sectors, 32)
        assert (record["global_load_sectors_requested"], record["global_load_bytes"]) == (sectors, 1024)


def test_seeds_change_no_figure(card: Callable[..., Gpu]) -> None:
    found = set()
    for seed in range(4):
        gpu = card("sm_90", seed)
        kernel = gpu.module(compile_cuda(GLOBAL)).kernel("copy4")
        record = run(gpu, kernel, 7, 96, floats(gpu, 2048), gpu.empty(7 * 96, np.float32), np.int32(1), np.int32(3))
        found.add(json.dumps(record))
    assert len(found) == 1


# --- the report -------------------------------------------------------------------------------------------------------


def test_report_in_a_file(gpu: Gpu, tmp_path: Path) -> None:
    """LLAMA_EXT_VGPU_REPORT: every launch and every fault of a process, written when it ends."""
    path, ptx = tmp_path / "report.json", tmp_path / "kernels.ptx"
    ptx.write_text(compile_cuda(GLOBAL, "compute_80"))
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).resolve().parent)!r})
import numpy as np
from harness import Gpu
gpu = Gpu("sm_89", seed=5)
kernel = gpu.module(open({str(ptx)!r}).read()).kernel("copy4")
out = gpu.empty(32, np.float32)
gpu.launch(kernel, 1, 32, gpu.array(np.ones(32, np.float32)), out, np.int32(0), np.int32(1))
gpu.synchronize()
gpu.report()  # what was asked for before is in the file all the same
gpu.launch(kernel, 1, 32, gpu.empty(32, np.float32), out, np.int32(0), np.int32(1))
"""
    environment = {**os.environ, "LLAMA_EXT_VGPU_REPORT": str(path), "LLAMA_EXT_LIBCUDA": str(library_path())}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=120)
    report = json.loads(path.read_text())
    assert set(report) == {"card", "launches", "faults"} and report["card"] == "sm_89"
    assert [launch["kernel"] for launch in report["launches"]] == ["copy4", "copy4"]
    assert report["launches"][0]["global_load_sectors_requested"] == 4
    (fault,) = report["faults"]
    assert (fault["kind"], fault["kernel"], fault["space"]) == ("uninitialised", "copy4", "global")
