"""One PTX instruction on many operands: what every test of the instruction set is made of.

    results = run(gpu, "shf.l.clamp.b32 $d, $a, $b, $c;", {"a": a, "b": b, "c": c}, {"d": np.uint32})

Sources are arrays of one length, bit patterns all: a uint16, uint32 or uint64 array fills a register of that width,
a bool array a predicate. Thread i takes element i. Unless told otherwise the instruction runs three times, and `run`
holds the three against each other: plainly; under a guard that half of the lanes fail, whose destinations must keep
what was in them; and with the destination also the first source of its width. So a test looks at values only.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from harness import Gpu
from numpy.typing import DTypeLike, NDArray

THREADS = 128
KEPT = 0xDEADBEEFCAFEF00D
"""What a destination holds before; its low bits for a narrow one."""

Bits = NDArray[np.generic]


def _width(dtype: DTypeLike) -> int:
    dtype = np.dtype(dtype)
    return 1 if dtype == np.bool_ else 8 * dtype.itemsize


def _register(width: int) -> str:
    return ".pred" if width == 1 else f".b{width}"


def _cell(width: int) -> int:
    """Bytes in memory: a predicate is a word."""
    return 4 if width == 1 else width // 8


def _load(register: str, width: int, parameter: str) -> str:
    if width == 1:
        return f"ld.global.u32 %word, [%{parameter}]; setp.ne.u32 {register}, %word, 0;"
    return f"ld.global.b{width} {register}, [%{parameter}];"


def _store(register: str, width: int, parameter: str) -> str:
    if width == 1:
        return f"selp.u32 %word, 1, 0, {register}; st.global.u32 [%{parameter}], %word;"
    return f"st.global.b{width} [%{parameter}], {register};"


def _preset(register: str, width: int) -> str:
    if width == 1:
        return f"setp.ne.u32 {register}, 1, 0;"
    return f"mov.b{width} {register}, {KEPT & ((1 << width) - 1):#x};"


def kernel_text(
    instruction: str, sources: Mapping[str, int], results: Mapping[str, int], target: str, alone: bool
) -> str:
    """The module; widths in bits, 1 for a predicate."""
    names = [*sources, *results]
    widths = {**sources, **results}
    forms = ["plain"] if alone else ["plain", "guarded", "aliased"]
    parameters = ["count", *(f"in_{s}" for s in sources), *(f"out_{f}_{r}" for f in forms for r in results)]
    lines = [
        ".version 9.0",
        f".target {target}",
        ".address_size 64",
        ".visible .entry one(" + ", ".join(f".param .u64 p_{p}" for p in parameters) + ")",
        "{",
        ".reg .b32 %thread, %block, %size, %word, %odd_bit; .reg .b64 %index, %offset, %limit; .reg .pred %odd, %past;",
        *(f".reg .b64 %{p};" for p in parameters),
        *(f".reg {_register(widths[n])} %s_{n}, %g_{n}, %a_{n};" for n in names),
        "mov.u32 %thread, %tid.x; mov.u32 %block, %ctaid.x; mov.u32 %size, %ntid.x;",
        "mad.lo.u32 %word, %block, %size, %thread; cvt.u64.u32 %index, %word;",
        *(f"ld.param.u64 %{p}, [p_{p}];" for p in parameters),
        "setp.ge.u64 %past, %index, %count;",
        "@%past bra DONE;" if not alone else "",
        "and.b32 %odd_bit, %thread, 1; setp.ne.u32 %odd, %odd_bit, 0;",
    ]
    for name, width in widths.items():
        for parameter in parameters[1:]:
            if parameter.endswith(f"_{name}"):
                lines.append(f"mad.lo.u64 %{parameter}, %index, {_cell(width)}, %{parameter};")
    for name, width in sources.items():
        lines.append(_load(f"%s_{name}", width, f"in_{name}"))
    for form in forms:
        prefix = {"plain": "s", "guarded": "g", "aliased": "a"}[form]
        rename = {r: f"%{prefix}_{r}" for r in results} | {s: f"%s_{s}" for s in sources}
        lines += [_preset(rename[r], w) for r, w in results.items()]
        if form == "aliased":
            for result, width in results.items():
                for source in sources:
                    if sources[source] == width and width != 1 and rename[source] == f"%s_{source}":
                        rename[result] = rename[source] = f"%a_{source}"
                        lines.append(f"mov.b{width} %a_{source}, %s_{source};")
                        break
        text = re.sub(r"\$(\w+)", lambda m, names=rename: names[m.group(1)], instruction)  # type: ignore[misc]
        if form == "guarded":
            text = "\n".join(f"@%odd {part.strip()}" if part.strip() else "" for part in re.split(r"(?<=;)", text))
        lines.append(text)
        lines += [_store(rename[r], w, f"out_{form}_{r}") for r, w in results.items()]
    return "\n".join([*lines, "DONE:", "ret;", "}", ""])


def run(
    gpu: Gpu,
    instruction: str,
    sources: Mapping[str, Bits],
    results: Mapping[str, DTypeLike],
    target: str = "sm_80",
    alone: bool = False,
) -> dict[str, Bits]:
    """The results, an array each.

    Args:
        instruction: with $name for each operand; several statements are allowed, and braces for vectors.
        sources, results: name -> array, name -> dtype. No name is the end of another after "_".
        target: of the module; the card has to be at least as new.
        alone: run plainly and nothing else, with all lanes of every warp (collectives); the arrays are then a multiple
            of 32 long.

    Raises:
        AssertionError: a fault, a lane that was held back and has changed, or aliasing that makes a difference.
    """
    count = len(next(iter(sources.values())))
    assert all(len(array) == count for array in sources.values())
    assert not alone or count % 32 == 0
    widths = {name: _width(array.dtype) for name, array in sources.items()}
    out_widths = {name: _width(dtype) for name, dtype in results.items()}
    text = kernel_text(instruction, widths, out_widths, target, alone)
    kernel = gpu.module(text).kernel("one")
    forms = ["plain"] if alone else ["plain", "guarded", "aliased"]
    inputs = [gpu.array(array.astype(np.uint32) if array.dtype == np.bool_ else array) for array in sources.values()]
    cells = {name: np.uint32 if out_widths[name] == 1 else np.dtype(dtype) for name, dtype in results.items()}
    outputs = {(form, name): gpu.empty(count, cells[name]) for form in forms for name in results}
    threads = min(THREADS, count) if alone else THREADS
    while count % threads and alone:
        threads -= 32
    gpu.launch(kernel, -(-count // threads), threads, np.uint64(count), *inputs, *outputs.values())
    gpu.synchronize()
    assert gpu.faults() == [], gpu.faults()[0]
    found = {key: buffer.get() for key, buffer in outputs.items()}
    if not alone:
        odd = np.arange(count) % THREADS % 2 == 1
        for name in results:
            plain, guarded, aliased = (found[form, name] for form in forms)
            kept = 1 if out_widths[name] == 1 else KEPT & ((1 << out_widths[name]) - 1)
            assert np.array_equal(guarded[odd], plain[odd]), f"{instruction}: another {name} under a guard"
            assert (guarded[~odd] == kept).all(), f"{instruction}: {name} of a lane that was held back has changed"
            assert np.array_equal(aliased, plain), f"{instruction}: another {name} where it is a source too"
    return {
        name: found["plain", name].astype(np.bool_) if out_widths[name] == 1 else found["plain", name]
        for name in results
    }


def check(instruction: str, sources: Mapping[str, Bits], found: Bits, expected: Bits) -> None:
    """Bit for bit; says which operands gave what."""
    wrong = np.flatnonzero(found != expected)
    if wrong.size:
        i = wrong[0]
        operands = ", ".join(f"{name} = {int(array[i]):#x}" for name, array in sources.items())
        raise AssertionError(
            f"{instruction} with {operands}: {int(found[i]):#x} instead of {int(expected[i]):#x}, and "
            f"{wrong.size - 1} more of {len(found)}"
        )


EDGES = {
    16: [0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0x8001, 0xFFFE, 0xFFFF, 0x5555, 0xAAAA],
    32: [
        0,
        1,
        2,
        31,
        32,
        33,
        0xFF,
        0xFFFF,
        0x10000,
        0x7FFFFFFE,
        0x7FFFFFFF,
        0x80000000,
        0x80000001,
        0xFFFFFFFE,
        0xFFFFFFFF,
    ],
    64: [0, 1, 2, 63, 64, 65, 0xFFFFFFFF, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 63) + 1, (1 << 64) - 2, (1 << 64) - 1],
}
"""Integers by width."""

FLOAT_EDGES = {
    # zeros, least and greatest subnormal, least normal, ones, greatest, infinities, quiet and signalling NaNs
    16: [
        0, 0x8000, 1, 0x8001, 0x3FF, 0x400, 0x3C00, 0xBC00, 0x3C01, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0x7D01,
        0xFFFF,
    ],
    32: [
        0, 0x80000000, 1, 0x80000001, 0x7FFFFF, 0x807FFFFF, 0x800000, 0x80800000, 0x3F800000, 0xBF800000, 0x3F800001,
        0x40000000, 0x34000000, 0x4B800000, 0x5F000000, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000,
        0x7F800001, 0xFFFFFFFF,
    ],
    64: [
        0, 1 << 63, 1, (1 << 63) | 1, 0xFFFFFFFFFFFFF, 0x10000000000000, 0x3FF0000000000000, 0xBFF0000000000000,
        0x3FF0000000000001, 0x4000000000000000, 0x3CB0000000000000, 0x4340000000000000, 0x7FEFFFFFFFFFFFFF,
        0xFFEFFFFFFFFFFFFF, 0x7FF0000000000000, 0xFFF0000000000000, 0x7FF8000000000000, 0x7FF0000000000001,
        (1 << 64) - 1,
    ],
}  # fmt: skip
"""Bit patterns of floats by width."""


def operands(
    widths: Sequence[int], edges: Mapping[int, Iterable[int]] = EDGES, random: int = 400, seed: int = 0
) -> list[Bits]:
    """An array a width: every combination of edges (thinned where there are more than 4,096), then random bits."""
    table = [list(edges[w]) for w in widths]
    combinations = list(itertools.product(*table))
    generator = np.random.default_rng(seed)
    if len(combinations) > 4096:
        combinations = [combinations[i] for i in generator.choice(len(combinations), 4096, replace=False)]
    arrays = []
    for i, width in enumerate(widths):
        dtype = np.dtype(f"u{width // 8}")
        fixed = np.array([c[i] for c in combinations], dtype)
        arrays.append(
            np.concatenate(
                [
                    fixed,
                    generator.integers(0, 1 << width, random, dtype=dtype, endpoint=False)
                    if width < 64
                    else generator.integers(0, (1 << 64) - 1, random, np.uint64, True),
                ]
            )
        )
    return arrays
