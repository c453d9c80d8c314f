"""mma, ldmatrix, stmatrix and movmatrix (PTX ISA 9.0, 9.7.14.5) against numpy and index formulas of fragments.

In the formulas g is groupID, lane >> 2, and t threadID_in_group, lane % 4; i counts a lane's elements from the lowest
bits of its first register. Products of small integers have to be exact. For random values every one of the k products
and k sums may be off by a unit in the last place of the accumulator, as truncation in any order would have it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from harness import Gpu
from numpy.typing import NDArray
from ptx_case import check, run

TARGET = "sm_90"
WARPS = 4
LANES = 32 * WARPS
Index = Callable[[int, int, int], tuple[int, int]]
"""(g, t, i) to (row, column)."""


@dataclass(frozen=True)
class Shape:
    """The fragments of A and B; A is m by k, B is k by n, C and D are m by n."""

    m: int
    k: int
    a: Index
    b: Index
    n: int = 8

    @property
    def c(self) -> Index:
        """Of every shape here: 8 rows apart if there are 16."""
        return lambda g, t, i: (g + 8 * (i >> 1), 2 * t + (i & 1))


SHAPES = {
    # 9.7.14.5.1, .5.5 to .5.11, by the width of an element
    (64, 4): Shape(8, 4, lambda g, t, i: (g, t), lambda g, t, i: (t, g)),
    (32, 4): Shape(16, 4, lambda g, t, i: (g + 8 * i, t), lambda g, t, i: (t, g)),
    (32, 8): Shape(16, 8, lambda g, t, i: (g + 8 * (i & 1), t + 4 * (i >> 1)), lambda g, t, i: (t + 4 * i, g)),
    (16, 8): Shape(16, 8, lambda g, t, i: (g + 8 * (i >> 1), 2 * t + (i & 1)), lambda g, t, i: (2 * t + i, g)),
    (16, 16): Shape(
        16,
        16,
        lambda g, t, i: (g if i < 2 or 4 <= i < 6 else g + 8, 2 * t + (i & 1) + (8 if i >= 4 else 0)),
        lambda g, t, i: (2 * t + (i & 1) + (8 if i >= 2 else 0), g),
    ),
    (8, 16): Shape(16, 16, lambda g, t, i: (g if i < 4 else g + 8, 4 * t + (i & 3)), lambda g, t, i: (4 * t + i, g)),
    (8, 32): Shape(
        16,
        32,
        lambda g, t, i: (g if i < 4 or 8 <= i < 12 else g + 8, 4 * t + (i & 3) + (16 if i >= 8 else 0)),
        lambda g, t, i: (4 * t + (i & 3) + (16 if i >= 4 else 0), g),
    ),
    (4, 32): Shape(16, 32, lambda g, t, i: (g if i < 8 else g + 8, 8 * t + (i & 7)), lambda g, t, i: (8 * t + i, g)),
    (4, 64): Shape(
        16,
        64,
        lambda g, t, i: (g if i < 8 or 16 <= i < 24 else g + 8, 8 * t + (i & 7) + (32 if i >= 16 else 0)),
        lambda g, t, i: (8 * t + (i & 7) + (32 if i >= 8 else 0), g),
    ),
}


def pack(matrices: NDArray[Any], width: int, index: Index) -> list[NDArray[Any]]:
    """Bit patterns [warp, row, column] to registers, one array over all lanes each."""
    elements = matrices.shape[1] * matrices.shape[2] // 32
    register = max(width, 32)
    per_register = register // width
    out = [np.zeros(LANES, f"u{register // 8}") for _ in range(elements // per_register)]
    for warp in range(WARPS):
        for lane in range(32):
            for i in range(elements):
                row, column = index(lane >> 2, lane % 4, i)
                bits = int(matrices[warp, row, column]) << (width * (i % per_register))
                out[i // per_register][32 * warp + lane] |= out[0].dtype.type(bits)
    return out


def unpack(registers: list[NDArray[Any]], width: int, index: Index, rows: int, columns: int) -> NDArray[Any]:
    """The inverse; an element that no lane has stays 0, and one that two have would be wrong in `pack` too."""
    register = 8 * registers[0].itemsize
    per_register = register // width
    found = np.zeros((WARPS, rows, columns), f"u{width // 8}")
    for warp in range(WARPS):
        for lane in range(32):
            for i in range(len(registers) * per_register):
                row, column = index(lane >> 2, lane % 4, i)
                word = int(registers[i // per_register][32 * warp + lane])
                found[warp, row, column] = word >> (width * (i % per_register)) & ((1 << width) - 1)
    return found


def vector(name: str, count: int) -> str:
    return "{" + ", ".join(f"${name}{i}" for i in range(count)) + "}"


def multiply(
    gpu: Gpu, form: str, widths: tuple[int, int], k: int, a: NDArray[Any], b: NDArray[Any], c: NDArray[Any]
) -> NDArray[Any]:
    """D's bit patterns, of those of A, B and C [warp, row, column]; `widths` of an element of A and of C."""
    width, c_width = widths
    shape = SHAPES[width, k]
    fragments = {
        name: pack(matrix, w, index)
        for name, matrix, w, index in (("a", a, width, shape.a), ("b", b, width, shape.b), ("c", c, c_width, shape.c))
    }
    sources = {f"{name}{i}": array for name, arrays in fragments.items() for i, array in enumerate(arrays)}
    count = len(fragments["c"])
    counts = {"d": count, **{name: len(arrays) for name, arrays in fragments.items()}}
    registers = ", ".join(vector(name, n) for name, n in counts.items())
    results = {f"d{i}": fragments["c"][0].dtype for i in range(count)}
    found = run(gpu, f"mma.sync.aligned.{form} {registers};", sources, results, TARGET, alone=True)
    return unpack([found[name] for name in results], c_width, shape.c, shape.m, shape.n)


def check_matrix(form: str, found: NDArray[Any], expected: NDArray[Any]) -> None:
    """Bit for bit; says where."""
    where = dict(zip(("warp", "row", "column"), np.indices(found.shape), strict=True))
    check(form, {name: index.ravel() for name, index in where.items()}, found.ravel(), expected.ravel())


# --- values to bit patterns -------------------------------------------------------------------------------------------


def fp8_table(exponent: int, fraction: int) -> NDArray[np.float64]:
    """The magnitudes of the finite values of e4m3 or e5m2, by code."""
    bias = (1 << (exponent - 1)) - 1
    codes = np.arange(0x7F if fraction == 3 else 0x7C)
    field, rest = codes >> fraction, codes & ((1 << fraction) - 1)
    return 2.0 ** (np.maximum(field, 1) - bias - fraction) * (rest + np.where(field > 0, 1 << fraction, 0))


FP8 = {"e4m3": fp8_table(4, 3), "e5m2": fp8_table(5, 2)}
FLOAT_WIDTH = {"f64": 64, "f32": 32, "tf32": 32, "f16": 16, "bf16": 16, "e4m3": 8, "e5m2": 8}


def encode(kind: str, values: NDArray[np.float64]) -> NDArray[Any]:
    """Bit patterns; what the format does not have is truncated to what it has."""
    if kind == "f64":
        return values.view(np.uint64)
    if kind == "f16":
        return values.astype(np.float16).view(np.uint16)
    if kind in FP8:
        codes = np.searchsorted(FP8[kind], np.abs(values), "right") - 1
        return (codes | np.where(np.signbit(values), 0x80, 0)).astype(np.uint8)
    words = values.astype(np.float32).view(np.uint32)
    if kind == "bf16":
        return (words >> np.uint32(16)).astype(np.uint16)
    return words & np.uint32(0xFFFFE000) if kind == "tf32" else words


def decode(kind: str, bits: NDArray[Any]) -> NDArray[np.float64]:
    if kind == "f64":
        return bits.view(np.float64)
    if kind == "f16":
        return bits.view(np.float16).astype(np.float64)
    if kind in FP8:
        return np.where(bits & 0x80, -1.0, 1.0) * FP8[kind][bits & 0x7F]
    words = bits.astype(np.uint32) << np.uint32(16) if kind == "bf16" else bits
    return words.view(np.float32).astype(np.float64)


FLOAT_FORMS = [
    *((k, kind, kind, "f32") for k in (8, 16) for kind in ("f16", "bf16")),
    (8, "f16", "f16", "f16"),
    (16, "f16", "f16", "f16"),
    (4, "tf32", "tf32", "f32"),
    (8, "tf32", "tf32", "f32"),
    (4, "f64", "f64", "f64"),
    *((32, a, b, "f32") for a in FP8 for b in FP8),
]
UNIT = {"f16": 2.0**-10, "f32": 2.0**-23, "f64": 2.0**-52}


@pytest.mark.parametrize(("k", "a_kind", "b_kind", "c_kind"), FLOAT_FORMS)
def test_mma_floats(gpu: Gpu, k: int, a_kind: str, b_kind: str, c_kind: str) -> None:
    """9.7.14.5.14: small integers exactly, random values within the bound, infinities and NaNs where they belong."""
    widths = FLOAT_WIDTH[a_kind], FLOAT_WIDTH[c_kind]
    shape = SHAPES[widths[0], k]
    form = f"m{shape.m}n8k{k}.row.col.{c_kind}.{a_kind}.{b_kind}.{c_kind}"
    generator = np.random.default_rng(k)

    def some(kind: str, rows: int, columns: int, whole: bool) -> tuple[NDArray[Any], NDArray[np.float64]]:
        size = (WARPS, rows, columns)
        drawn = generator.integers(-7, 8, size).astype(np.float64) if whole else generator.normal(size=size)
        bits = encode(kind, drawn)
        return bits, decode(kind, bits)

    for whole in (True, False):
        (a, x), (b, y), (c, z) = (
            some(kind, rows, columns, whole)
            for kind, rows, columns in ((a_kind, shape.m, k), (b_kind, k, 8), (c_kind, shape.m, 8))
        )
        found = multiply(gpu, form, widths, k, a, b, c)
        if whole:
            wanted = encode(c_kind, x @ y + z + 0.0)
            check_matrix(form, found, wanted)
        else:
            exact = x @ y + z
            bound = 2 * k * UNIT[c_kind] * (np.abs(x) @ np.abs(y) + np.abs(z))
            assert (np.abs(decode(c_kind, found) - exact) <= bound).all(), form

    if a_kind in FP8:
        return
    # One row of A with an infinity, another with a NaN; B has no zeros.
    a, b, c = (encode(kind, np.ones((WARPS, *size))) for kind, size in
               ((a_kind, (shape.m, k)), (b_kind, (k, 8)), (c_kind, (shape.m, 8))))  # fmt: skip
    a[:, 1, k - 1] = encode(a_kind, np.array([-np.inf]))[0]
    a[:, 6, 1] = encode(a_kind, np.array([np.nan]))[0]
    expected = np.full((WARPS, shape.m, 8), k + 1.0)
    expected[:, 1], expected[:, 6] = -np.inf, np.nan
    assert np.array_equal(decode(c_kind, multiply(gpu, form, widths, k, a, b, c)), expected, equal_nan=True), form


INTEGER_FORMS = [
    (width, k, f"{a}{width}", f"{b}{width}")
    for width, k in ((8, 16), (8, 32), (4, 32), (4, 64))
    for a in "su"
    for b in "su"
]


@pytest.mark.parametrize(("width", "k", "a_kind", "b_kind"), INTEGER_FORMS)
@pytest.mark.parametrize("finite", ("", ".satfinite"))
def test_mma_integers(gpu: Gpu, width: int, k: int, a_kind: str, b_kind: str, finite: str) -> None:
    """9.7.14.5.14: exact; the sum wraps, and .satfinite clamps it to s32."""
    generator = np.random.default_rng(width + k)
    size = 1 << width

    def some(kind: str, rows: int, columns: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
        bits = generator.integers(0, size, (WARPS, rows, columns))
        bits[0, : rows // 2] = size // 2 - 1 if kind[0] == "s" else size - 1
        bits[0, rows // 2 :, : columns // 2] = size // 2
        return bits, np.where((kind[0] == "s") & (bits >= size // 2), bits - size, bits)

    (a, x), (b, y) = some(a_kind, 16, k), some(b_kind, k, 8)
    z = generator.integers(-(1 << 31), 1 << 31, (WARPS, 16, 8))
    z[0, ::2], z[0, 1::2] = (1 << 31) - 1, -(1 << 31)
    exact = x @ y + z
    assert (np.abs(exact) > 1 << 31).any()
    wanted = np.clip(exact, -(1 << 31), (1 << 31) - 1) if finite else exact
    form = f"m16n8k{k}.row.col{finite}.s32.{a_kind}.{b_kind}.s32"
    found = multiply(gpu, form, (width, 32), k, a, b, z & 0xFFFFFFFF)
    check_matrix(form, found, (wanted & 0xFFFFFFFF).astype(np.uint32))


# --- matrices in shared memory ----------------------------------------------------------------------------------------


def rows_of_8(seed: int = 0) -> NDArray[np.uint16]:
    """Four matrices of 8 by 8."""
    return np.random.default_rng(seed).integers(0, 1 << 16, (4, 8, 8), np.uint16)


def fragments(matrices: NDArray[np.uint16], trans: bool) -> list[NDArray[np.uint32]]:
    """9.7.14.5.15: lane's register j holds elements 2t and 2t + 1 of row g of matrix j, or of column g with .trans."""
    lanes = np.arange(32)
    g, t = lanes >> 2, lanes % 4
    found = []
    for matrix in matrices:
        m = (matrix.T if trans else matrix).astype(np.uint32)
        found.append(m[g, 2 * t] | m[g, 2 * t + 1] << np.uint32(16))
    return found


SCATTER = np.random.default_rng(5).permutation(32).astype(np.uint32) * np.uint32(16)
"""Where in shared memory lane i's row is: rows need not be contiguous."""
OWN = "mov.u32 base, own; add.u32 base, base, $at;"
BEGIN = "{ .shared .align 16 .b8 own[512]; .reg .b32 base; " + OWN


@pytest.mark.parametrize("trans", ("", ".trans"))
@pytest.mark.parametrize("count", (1, 2, 4))
def test_ldmatrix(gpu: Gpu, count: int, trans: str) -> None:
    """9.7.14.5.15: lanes 8j to 8j + 7 have the addresses of the rows of matrix j; the other lanes' do not count."""
    matrices = rows_of_8()
    words = np.ascontiguousarray(matrices.reshape(32, 8)).view(np.uint32)
    sources: dict[str, NDArray[Any]] = {"at": SCATTER, **{f"w{i}": words[:, i].copy() for i in range(4)}}
    text = (
        f"{BEGIN} st.shared.v4.b32 [base], {vector('w', 4)}; bar.warp.sync 0xffffffff; "
        f"ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {vector('d', count)}, [base]; }}"
    )
    found = run(gpu, text, sources, {f"d{i}": np.uint32 for i in range(count)}, TARGET, alone=True)
    for i, wanted in enumerate(fragments(matrices[:count], bool(trans))):
        check(f"ldmatrix.x{count}{trans}, register {i}", {"at": SCATTER}, found[f"d{i}"], wanted)


@pytest.mark.parametrize("trans", ("", ".trans"))
@pytest.mark.parametrize("count", (1, 2, 4))
def test_stmatrix(gpu: Gpu, count: int, trans: str) -> None:
    """9.7.14.5.16: the inverse of ldmatrix; rows without a matrix keep what was there."""
    matrices = rows_of_8(1)
    parts = fragments(matrices[:count], bool(trans))
    sources: dict[str, NDArray[Any]] = {"at": SCATTER, **{f"r{i}": part for i, part in enumerate(parts)}}
    text = (
        f"{BEGIN} st.shared.v4.b32 [base], {{7, 7, 7, 7}}; bar.warp.sync 0xffffffff; "
        f"stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [base], {vector('r', count)}; "
        f"bar.warp.sync 0xffffffff; ld.shared.v4.b32 {vector('d', 4)}, [base]; }}"
    )
    found = run(gpu, text, sources, {f"d{i}": np.uint32 for i in range(4)}, TARGET, alone=True)
    words = np.ascontiguousarray(matrices.reshape(32, 8)).view(np.uint32).copy()
    words[8 * count :] = 7
    for i in range(4):
        check(f"stmatrix.x{count}{trans}, word {i}", {"at": SCATTER}, found[f"d{i}"], words[:, i])


def test_movmatrix(gpu: Gpu) -> None:
    """9.7.14.5.17: the transpose, from registers to registers."""
    matrix = rows_of_8(2)[:1]
    sources = {"a": fragments(matrix, False)[0]}
    text = "movmatrix.sync.aligned.m8n8.trans.b16 $d, $a;"
    check(text, sources, run(gpu, text, sources, {"d": np.uint32}, TARGET, alone=True)["d"], fragments(matrix, True)[0])


def test_comparison_reports(gpu: Gpu) -> None:
    """Two elements of A that have changed places, which a wrong fragment would do, are found."""
    generator = np.random.default_rng(3)
    a, b = generator.integers(0, 128, (WARPS, 16, 16)), generator.integers(0, 128, (WARPS, 16, 8))
    form, zeros = "m16n8k16.row.col.s32.s8.s8.s32", np.zeros((WARPS, 16, 8), np.int64)
    a[1, 2, 3], a[1, 2, 4], b[1, 3], b[1, 4] = 5, 9, 1, 2
    found = multiply(gpu, form, (8, 32), 16, a, b, zeros)
    a[1, 2, 3], a[1, 2, 4] = 9, 5
    with pytest.raises(AssertionError, match=r"mma with warp = 0x1, row = 0x2, column = .* instead of .* and 7 more"):
        check_matrix("mma", found, (a @ b).astype(np.uint32))
