"""A kernel of a test's own around a body of PTX: for what touches memory, other threads or the launch itself.

    out = gpu.empty(64, np.uint32)
    enter(gpu, "mov.u32 %r0, %laneid; st.global.u32 [%out_g], %r0;", 1, 64, out=out)

Every argument is a register of its name. A Buffer's address is one, and where the buffer has the same bytes for every
thread of the launch, `%name_g` is the address of this thread's share. `%g` is the thread's number in the launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from harness import Buffer, Gpu, Kernel

Size = int | Sequence[int]

REGISTERS = """
.reg .pred %p<16>; .reg .b16 %h<64>; .reg .b32 %r<64>; .reg .b64 %rd<64>;
.reg .f32 %f<16>; .reg .f64 %fd<16>; .reg .b128 %q<8>; .reg .b64 %g;
"""

NUMBER = """
mov.u32 %r0, %ctaid.z; mov.u32 %r1, %nctaid.y; mov.u32 %r2, %ctaid.y; mad.lo.u32 %r0, %r0, %r1, %r2;
mov.u32 %r1, %nctaid.x; mov.u32 %r2, %ctaid.x; mad.lo.u32 %r0, %r0, %r1, %r2;
mov.u32 %r1, %ntid.z; mov.u32 %r2, %tid.z; mad.lo.u32 %r0, %r0, %r1, %r2;
mov.u32 %r1, %ntid.y; mov.u32 %r2, %tid.y; mad.lo.u32 %r0, %r0, %r1, %r2;
mov.u32 %r1, %ntid.x; mov.u32 %r2, %tid.x; mad.lo.u32 %r0, %r0, %r1, %r2; cvt.u64.u32 %g, %r0;
"""


def _threads(size: Size) -> int:
    return int(np.prod(size))


def entry_text(
    body: str, arguments: dict[str, Buffer | np.generic | bytes], threads: int, outside: str = "", target: str = "sm_90"
) -> str:
    """The module. Struct parameters (bytes) stay in parameter space, as `p_NAME`, 16-byte aligned."""
    parameters, lines = [], []
    for name, value in arguments.items():
        if isinstance(value, bytes):
            parameters.append(f".param .align 16 .b8 p_{name}[{len(value)}]")
            continue
        width = 64 if isinstance(value, Buffer) else 8 * value.itemsize
        parameters.append(f".param .b{width} p_{name}")
        lines.append(f".reg .b{max(width, 16)} %{name}; ld.param.b{width} %{name}, [p_{name}];")
        if isinstance(value, Buffer) and value.nbytes % threads == 0:
            lines.append(f".reg .b64 %{name}_g; mad.lo.u64 %{name}_g, %g, {value.nbytes // threads}, %{name};")
    head = f".version 9.0\n.target {target}\n.address_size 64\n{outside}\n"
    return (
        head
        + f".visible .entry one({', '.join(parameters)})\n{{"
        + REGISTERS
        + NUMBER
        + "\n".join([*lines, body])
        + "\nret;\n}\n"
    )


def kernel(
    gpu: Gpu, body: str, grid: Size, block: Size, outside: str = "", target: str = "sm_90", **arguments: Any
) -> Kernel:
    threads = _threads(grid) * _threads(block)
    return gpu.module(entry_text(body, arguments, threads, outside, target)).kernel("one")


def enter(
    gpu: Gpu,
    body: str,
    grid: Size,
    block: Size,
    outside: str = "",
    target: str = "sm_90",
    shared: int = 0,
    **arguments: Any,
) -> None:
    """Runs it; there must not be a fault."""
    made = kernel(gpu, body, grid, block, outside, target, **arguments)
    gpu.launch(made, grid, block, *arguments.values(), shared=shared)
    gpu.try_call("cuCtxSynchronize")
    assert gpu.faults() == [], gpu.faults()[0]


def faults(gpu: Gpu, body: str, grid: Size, block: Size, outside: str = "", **arguments: Any) -> list[dict[str, Any]]:
    """Runs it; gives what it did wrong."""
    made = kernel(gpu, body, grid, block, outside, "sm_90", **arguments)
    return gpu.faults_of(made, grid, block, *arguments.values())
