"""Matrix products of a warp and the moves of their fragments (PTX ISA 9.0, 9.7.14, "Matrix instructions").

The tables of 9.7.14.5 all have one shape. With group = lane / 4 and t = lane % 4, and E elements in a register:

    A  register r, element e    row group + 8 * (r % 2), column 4 * E * (r / 2) + E * t + e     (m16)
    A  register r, element e    row group,               column 4 * E * r       + E * t + e     (m8)
    B  register r, element e    row 4 * E * r + E * t + e, column group
    C  element i                row group + 8 * (i / 2), column 2 * t + i % 2
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from harness import Gpu
from numpy.typing import NDArray
from ptx_case import Bits, check, run
from ptx_entry import enter

WARPS = 8
LANE = np.arange(32)
GROUP, T = LANE // 4, LANE % 4
Matrix = NDArray[Any]


# --- fragments --------------------------------------------------------------------------------------------------------


def places_a(m: int, k: int, each: int) -> tuple[Matrix, Matrix]:
    """Row and column of [lane, register, element] of A."""
    registers = m * k // (32 * each)
    lane, r, e = np.ix_(LANE, np.arange(registers), np.arange(each))
    high = r % 2 if m == 16 else 0 * r
    block = r // 2 if m == 16 else r
    return np.broadcast_arrays(GROUP[lane] + 8 * high, 4 * each * block + each * T[lane] + e)  # type: ignore[return-value]


def places_b(k: int, each: int) -> tuple[Matrix, Matrix]:
    """Row and column of [lane, register, element] of B, which has eight columns."""
    lane, r, e = np.ix_(LANE, np.arange(k * 8 // (32 * each)), np.arange(each))
    return np.broadcast_arrays(4 * each * r + each * T[lane] + e, GROUP[lane])  # type: ignore[return-value]


def places_c(m: int) -> tuple[Matrix, Matrix]:
    """Row and column of [lane, element] of C and D."""
    lane, i = np.ix_(LANE, np.arange(m // 4))
    return GROUP[lane] + 8 * (i // 2), 2 * T[lane] + i % 2


def packed(elements: Matrix, bits: int, register: int) -> Matrix:
    """[..., element] into [...]: the first element lowest."""
    wide = elements.astype(np.uint64) & np.uint64((1 << bits) - 1)
    shifts = np.arange(elements.shape[-1], dtype=np.uint64) * np.uint64(bits)
    return np.asarray(np.bitwise_or.reduce(wide << shifts, axis=-1), f"u{register // 8}")


def unpacked(words: Matrix, bits: int, count: int) -> Matrix:
    """[...] into [..., element]"""
    shifts = np.arange(count, dtype=np.uint64) * np.uint64(bits)
    return (words[..., None].astype(np.uint64) >> shifts) & np.uint64((1 << bits) - 1)


# --- formats ----------------------------------------------------------------------------------------------------------


def minifloat(exponent: int, fraction: int) -> Callable[[Matrix], Matrix]:
    """Finite values of a small format, as float64."""

    def value(bits: Matrix) -> Matrix:
        bits = bits.astype(np.int64)
        sign = np.where(bits >> (exponent + fraction) & 1, -1.0, 1.0)
        field, rest = bits >> fraction & ((1 << exponent) - 1), bits & ((1 << fraction) - 1)
        m = rest + np.where(field > 0, 1 << fraction, 0)
        return np.asarray(
            sign * np.ldexp(m.astype(np.float64), np.maximum(field, 1) - ((1 << exponent - 1) - 1) - fraction)
        )

    return value


FLOATS: dict[str, tuple[int, int, int]] = {
    # bits in a register, exponent, fraction
    "f16": (16, 5, 10),
    "bf16": (16, 8, 7),
    "tf32": (32, 8, 23),
    "e4m3": (8, 4, 3),
    "e5m2": (8, 5, 2),
    "e3m2": (8, 3, 2),
    "e2m3": (8, 2, 3),
    "e2m1": (8, 2, 1),
    "f64": (64, 11, 52),
    "f32": (32, 8, 23),
}


def decode(kind: str, bits: Matrix) -> Matrix:
    if kind == "f64":
        return bits.astype(np.uint64).view(np.float64)
    _, exponent, fraction = FLOATS[kind]
    return minifloat(exponent, fraction)(bits)


def integers(kind: str, bits: Matrix) -> Matrix:
    """ "s8", "u4" and so on, as int64"""
    width = int(kind[1:])
    value = bits.astype(np.int64) & ((1 << width) - 1)
    return value - ((value >> (width - 1)) << width) if kind[0] == "s" else value


def small(kind: str, shape: tuple[int, ...], random: np.random.Generator) -> Matrix:
    """Bits of whole numbers and halves of little size: their sums of products are exact in any order."""
    width, exponent, fraction = FLOATS[kind]
    halves = random.integers(-12, 13, shape)
    if kind == "f64":
        return (halves / 2).view(np.uint64)
    table = np.arange(1 << width, dtype=np.uint64) if width <= 16 else np.zeros(0, np.uint64)
    if width == 32:
        return (halves / 2).astype(np.float32).view(np.uint32)
    finite = table[(table >> np.uint64(fraction)) & np.uint64((1 << exponent) - 1) != (1 << exponent) - 1]
    where = {v: int(b) for v, b in zip(minifloat(exponent, fraction)(finite).tolist(), finite, strict=True)}
    halves = np.vectorize(lambda h: h if h / 2 in where else h // 4)(halves)  # not every format has a 5.5
    return np.array([where[h / 2] for h in halves.ravel().tolist()], np.uint64).reshape(shape)


def ordinary(kind: str, shape: tuple[int, ...], random: np.random.Generator) -> Matrix:
    """Bits of all signs and fractions, exponents within a few of 1.0; tf32 with its lower 13 bits clear."""
    _, exponent, fraction = FLOATS[kind]
    middle = (1 << exponent - 1) - 1
    spread = min(6, middle - 1)
    bits = random.integers(0, 2, shape, np.uint64) << np.uint64(exponent + fraction)
    bits |= random.integers(middle - spread, middle + spread, shape, np.uint64) << np.uint64(fraction)
    bits |= random.integers(0, 1 << fraction, shape, np.uint64)
    return bits & ~np.uint64(0x1FFF) if kind == "tf32" else bits


# --- the product ------------------------------------------------------------------------------------------------------


def names(letter: str, count: int) -> list[str]:
    return [f"{letter}{i}" for i in range(count)]


def vector(registers: list[str]) -> str:
    return "{" + ", ".join(f"${r}" for r in registers) + "}"


def multiply(
    gpu: Gpu,
    opcode: str,
    a: Matrix,
    b: Matrix,
    c: Matrix,
    widths: tuple[int, int, int, int],
    target: str,
) -> Matrix:
    """D as bits [warp, m, 8], of A [warp, m, k], B [warp, k, 8] and C [warp, m, 8] as bits. Runs twice: with C's own
    registers, and with D in C's.

    Args:
        widths: bits of an element of A, of B, of C, of D; 64-bit ones have a register each.
    """
    warps, m, k = a.shape
    wa, wb, wc, wd = widths
    ra, rc, rd = (64 if w == 64 else 32 for w in (wa, wc, wd))
    each = ra // wa
    row_a, column_a = places_a(m, k, each)
    row_b, column_b = places_b(k, each)
    row_c, column_c = places_c(m)
    sources: dict[str, Bits] = {}
    for letter, registers in (
        ("a", packed(a[:, row_a, column_a], wa, ra)),
        ("b", packed(b[:, row_b, column_b], wb, ra)),
        ("c", packed(c[:, row_c, column_c].reshape(warps, 32, -1, rc // wc), wc, rc)),
    ):
        flat = registers.reshape(warps * 32, -1)
        sources |= {f"{letter}{i}": np.ascontiguousarray(flat[:, i]) for i in range(flat.shape[1])}
    count = m // 4 * wd // rd
    d, e, inputs = names("d", count), names("e", count), {x: [n for n in sources if n[0] == x] for x in "abc"}
    operands = f"{vector(inputs['a'])}, {vector(inputs['b'])}"
    text = f"{opcode} {vector(d)}, {operands}, {vector(inputs['c'])};"
    if rc == rd and wc == wd:
        text += "".join(f"mov.b{rd} ${x}, ${y};" for x, y in zip(e, inputs["c"], strict=True))
        text += f"{opcode} {vector(e)}, {operands}, {vector(e)};"
    else:
        e = d
    results = dict.fromkeys([*d, *e], np.dtype(f"u{rd // 8}"))
    found = run(gpu, text, sources, results, target, alone=True)
    for x, y in zip(d, e, strict=True):
        check(f"{opcode}, D in C's registers", sources, found[y], found[x])
    out = np.zeros((warps, m, 8), np.uint64)
    fragments = unpacked(np.stack([found[x] for x in d], -1).reshape(warps, 32, count), wd, rd // wd)
    out[:, row_c, column_c] = fragments.reshape(warps, 32, -1)
    return out


def assert_matrix(opcode: str, found: Matrix, expected: Matrix, tolerance: Matrix | float = 0.0) -> None:
    """Element by element; `tolerance` is absolute."""
    wrong = np.argwhere(~(np.abs(found - expected) <= tolerance))
    if len(wrong):
        warp, row, column = wrong[0]
        at = (warp, row, column)
        raise AssertionError(
            f"{opcode}: D[{row}, {column}] is {found[at]} instead of {expected[at]}, "
            f"and {len(wrong) - 1} more of {found.size}"
        )


FP8 = ("e4m3", "e5m2")
NARROW = (*FP8, "e3m2", "e2m3", "e2m1")
MMA: list[tuple[str, int, int, str, str, str, str]] = [
    # target, m, k, D, A, B, C
    *(("sm_80", 16, k, d, "f16", "f16", d) for k in (8, 16) for d in ("f32", "f16")),
    *(("sm_80", 16, k, "f32", "bf16", "bf16", "f32") for k in (8, 16)),
    *(("sm_80", 16, k, "f32", "tf32", "tf32", "f32") for k in (4, 8)),
    *(("sm_89", 16, k, d, a, b, d) for k in (16, 32) for d in ("f32", "f16") for a in FP8 for b in FP8),
    ("sm_80", 8, 4, "f64", "f64", "f64", "f64"),
    *(("sm_90", 16, k, "f64", "f64", "f64", "f64") for k in (4, 8, 16)),
]  # fmt: skip


@pytest.mark.parametrize(("target", "m", "k", "d", "a", "b", "c"), MMA)
def test_float_products(gpu: Gpu, target: str, m: int, k: int, d: str, a: str, b: str, c: str) -> None:
    """9.7.14.5.14 mma: exact sums bit for bit, which holds every element in its place; others within the rounding of
    k sums of the accumulator's precision, since their order is not stated."""
    opcode = f"mma.sync.aligned.m{m}n8k{k}.row.col.{d}.{a}.{b}.{c}"
    widths = (FLOATS[a][0], FLOATS[b][0], FLOATS[c][0], FLOATS[d][0])
    random = np.random.default_rng(m + k)
    for make in (small, ordinary):
        left, right = make(a, (WARPS, m, k), random), make(b, (WARPS, k, 8), random)
        start = make(c, (WARPS, m, 8), random)
        found = decode(d, multiply(gpu, opcode, left, right, start, widths, target))
        x, y, z = decode(a, left), decode(b, right), decode(c, start)
        exact = np.einsum("wik,wkj->wij", x, y) + z
        if make is small:
            assert_matrix(opcode, found, exact)
        else:
            fraction = min(FLOATS[d][2], FLOATS[c][2])
            size = np.einsum("wik,wkj->wij", abs(x), abs(y)) + abs(z)
            assert_matrix(
                opcode, found, exact, size * (k + 1) * 2.0 ** -(fraction - 1 if fraction > 10 else fraction + 1)
            )


def test_one_element_at_a_time(gpu: Gpu) -> None:
    """9.7.14.5: a single one in A and a single one in B meet in a single element, or not at all."""
    opcode = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
    places = [(i, k, j) for i in (0, 5, 7, 8, 15) for k in range(16) for j in (0, 3, 7)]
    left, right = np.zeros((len(places), 16, 16), np.uint64), np.zeros((len(places), 16, 8), np.uint64)
    expected = np.zeros((len(places), 16, 8))
    for warp, (i, k, j) in enumerate(places):
        left[warp, i, k] = right[warp, k, j] = 0x3F80
        expected[warp, i, j] = 1
    start = np.zeros_like(expected).astype(np.uint64)
    assert_matrix(opcode, decode("f32", multiply(gpu, opcode, left, right, start, (16, 16, 32, 32), "sm_80")), expected)


@pytest.mark.parametrize(("a", "d"), [("f16", "f32"), ("f16", "f16"), ("bf16", "f32"), ("tf32", "f32")])
def test_special_values(gpu: Gpu, a: str, d: str) -> None:
    """9.7.14.5.14: infinities and NaNs of A, B or C come out where they belong, and in no other element. What becomes
    of subnormal operands is not stated."""
    width, exponent, fraction = FLOATS[a]
    k = 16 if width == 16 else 8
    opcode = f"mma.sync.aligned.m16n8k{k}.row.col.{d}.{a}.{a}.{d}"
    inf, one = ((1 << exponent) - 1) << fraction, ((1 << exponent - 1) - 1) << fraction
    sign = 1 << width - 1
    left, right = np.full((6, 16, k), one, np.uint64), np.full((6, k, 8), one, np.uint64)
    start = np.zeros((6, 16, 8), np.uint64)
    expected = np.full((6, 16, 8), float(k))
    left[0, 3, 1] = inf
    expected[0, 3, :] = math.inf
    right[1, 2, 4] = inf | sign
    expected[1, :, 4] = -math.inf
    left[2, 9, 0], right[2, 0, 5] = inf, 0
    expected[2] -= np.arange(8) == 5
    expected[2, 9, :] = math.inf
    expected[2, 9, 5] = math.nan
    start[3, 15, 7], start[3, 14, 6], start[3, 13, 5] = (
        (0x7F800000, 0xFF800000, 0x7FC00000) if d == "f32" else (0x7C00, 0xFC00, 0x7E00)
    )
    expected[3, 15, 7], expected[3, 14, 6], expected[3, 13, 5] = math.inf, -math.inf, math.nan
    left[4, 4, 4], left[4, 4, 5] = inf, inf | sign
    expected[4, 4, :] = math.nan
    left[5, 11, 2] = inf | 1 << fraction - 1
    expected[5, 11, :] = math.nan
    size = FLOATS[d][0]
    found = multiply(gpu, opcode, left, right, start, (width, width, size, size), "sm_80").astype(f"u{size // 8}")
    values = found.view(f"f{size // 8}").astype(np.float64)
    assert np.array_equal(values, expected, equal_nan=True), np.argwhere(~((values == expected) | np.isnan(expected)))


def test_f64_rounds_like_fma(gpu: Gpu) -> None:
    """9.7.14.5.14: for .f64 "the precision of the element-wise multiplication and addition operation is identical to
    that of .f64 precision fused multiply-add"; with one product that is not zero there is but one way."""
    opcode = "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64"
    random = np.random.default_rng(3)
    left, right = ordinary("f64", (WARPS, 8, 4), random), ordinary("f64", (WARPS, 4, 8), random)
    left[:, :, 1:] = 0
    start = ordinary("f64", (WARPS, 8, 8), random)
    found = decode("f64", multiply(gpu, opcode, left, right, start, (64, 64, 64, 64), "sm_80"))
    x, y, z = decode("f64", left), decode("f64", right), decode("f64", start)
    for w, i, j in np.ndindex(found.shape):
        exact = Fraction(x[w, i, 0].item()) * Fraction(y[w, 0, j].item()) + Fraction(z[w, i, j].item())
        # A Fraction becomes a float with one rounding, to nearest even.
        assert found[w, i, j] == float(exact), (w, i, j)


INTEGERS = [
    # target, m, k, widths of A and B
    *(("sm_80", m, k, 8) for m, k in ((8, 16), (16, 16), (16, 32))),
    *(("sm_80", m, k, 4) for m, k in ((8, 32), (16, 32), (16, 64))),
]


@pytest.mark.parametrize("signs", ["ss", "uu", "su", "us"])
@pytest.mark.parametrize(("target", "m", "k", "width"), INTEGERS)
def test_integer_products(gpu: Gpu, target: str, m: int, k: int, width: int, signs: str) -> None:
    """9.7.14.5.14 mma: s8 and u8, s4 and u4 in any pair; a sum wraps, or stays at an end with .satfinite."""
    a, b = (f"{s}{width}" for s in signs)
    random = np.random.default_rng(k + width)
    left, right = (random.integers(0, 1 << width, s, np.uint64) for s in ((WARPS, m, k), (WARPS, k, 8)))
    left[0], right[0] = 1 << width - 1, 1 << width - 1
    left[1], right[1] = (1 << width) - 1, (1 << width) - 1
    start = random.integers(0, 1 << 32, (WARPS, m, 8), np.uint64)
    start[::3] = np.uint64(0x7FFFFFF0)
    start[1::3] = np.uint64(0x8000000F)
    exact = np.einsum("wik,wkj->wij", integers(a, left), integers(b, right)) + integers("s32", start)
    for saturates in (False, True):
        opcode = f"mma.sync.aligned.m{m}n8k{k}.row.col{'.satfinite' * saturates}.s32.{a}.{b}.s32"
        found = integers("s32", multiply(gpu, opcode, left, right, start, (width, width, 32, 32), target))
        low, high = -(1 << 31), (1 << 31) - 1
        expected = exact.clip(low, high) if saturates else (exact - low) % (1 << 32) + low
        assert_matrix(opcode, found, expected)


@pytest.mark.parametrize("a", NARROW)
@pytest.mark.parametrize("b", NARROW)
def test_narrow_float_products(card: Callable[..., Gpu], a: str, b: str) -> None:
    """9.7.14.5.14 mma .kind::f8f6f4: any pair of formats of 8, 6 and 4 bits, each in a byte; 6 bits at the byte's lower
    end, 4 bits in its middle, and what pads them has no say."""
    gpu = card("sm_120")
    opcode = f"mma.sync.aligned.m16n8k32.row.col.kind::f8f6f4.f32.{a}.{b}.f32"
    random = np.random.default_rng(7)
    left, right = small(a, (WARPS, 16, 32), random), small(b, (WARPS, 32, 8), random)
    start = small("f32", (WARPS, 16, 8), random)
    exact = np.einsum("wik,wkj->wij", decode(a, left), decode(b, right)) + decode("f32", start)
    padded = []
    for kind, bits in ((a, left), (b, right)):
        width = 1 + FLOATS[kind][1] + FLOATS[kind][2]
        shift = 2 if width == 4 else 0
        padding = ~(((1 << width) - 1) << shift) & 0xFF
        noise = random.integers(0, 256, bits.shape, np.uint64) & np.uint64(padding)
        padded.append(bits << np.uint64(shift) | noise)
    found = multiply(gpu, opcode, padded[0], padded[1], start, (8, 8, 32, 32), "sm_120a")
    assert_matrix(opcode, decode("f32", found), exact)


# --- moves of fragments -----------------------------------------------------------------------------------------------


def matrices(count: int, warps: int = 4) -> Matrix:
    """[warp, matrix, row, column] of 16 bits, all different"""
    return (
        np.random.default_rng(count)
        .permutation(1 << 16)[: warps * count * 64]
        .reshape(warps, count, 8, 8)
        .astype(np.uint16)
    )


def fragments(of: Matrix, transposed: bool) -> Matrix:
    """9.7.14.5.15: register i of lane l has the elements 2 * (l % 4) and the one after it of row l / 4 of matrix i."""
    turned = of.swapaxes(-1, -2) if transposed else of
    return packed(turned.reshape(*of.shape[:2], 32, 2), 16, 32).swapaxes(1, 2)


def place(stride: int, scramble: int) -> str:
    """%r6: the row that lane i points to, which is row i % 8 of matrix i / 8; `stride` bytes each, out of order."""
    return f"""
    .shared .align 16 .b8 tile[{4 * 32 * stride}];
    mov.u32 %r1, %laneid; mov.u32 %r3, tile; mov.u32 %r4, %tid.x; shr.u32 %r4, %r4, 5;
    mul.lo.u32 %r5, %r4, {32 * stride}; add.u32 %r5, %r5, %r3;
    xor.b32 %r6, %r1, {scramble}; mad.lo.u32 %r6, %r6, {stride}, %r5;
    """


def unused(count: int) -> str:
    """%r6 becomes nonsense where the instruction must not look at it."""
    return f"setp.ge.u32 %p1, %r1, {8 * count}; selp.b32 %r6, 0x7ffffff1, %r6, %p1;\n"


@pytest.mark.parametrize("address", ["u32", "u64", "generic"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix(gpu: Gpu, count: int, transposed: bool, address: str) -> None:
    """9.7.14.5.15 ldmatrix: .x1 .x2 .x4, .trans; lanes from 8 * count on give no address that counts."""
    stride, scramble = 48, 5
    of = matrices(count)
    # Lane i of warp w puts row i % 8 of matrix i / 8 in its place itself.
    source = gpu.array(np.concatenate([of.reshape(4, -1, 8), np.zeros((4, 32 - 8 * count, 8), np.uint16)], 1))
    out = gpu.empty((128, count), np.uint32)
    registers = "{" + ", ".join(f"%r{10 + i}" for i in range(count)) + "}"
    space = "" if address == "generic" else ".shared"
    pointer = "%r6" if address == "u32" else "%rd1"
    widen = "cvt.u64.u32 %rd1, %r6;" + ("cvta.shared.u64 %rd1, %rd1;" if address == "generic" else "")
    body = (
        place(stride, scramble)
        + "ld.global.v4.b32 {%r20, %r21, %r22, %r23}, [%source_g]; st.shared.v4.b32 [%r6], {%r20, %r21, %r22, %r23};"
        + "bar.warp.sync -1;"
        + unused(count)
        + widen
        + f"ldmatrix.sync.aligned.m8n8.x{count}{'.trans' * transposed}{space}.b16 {registers}, [{pointer}];"
        + "".join(f"st.global.u32 [%out_g+{4 * i}], %r{10 + i};" for i in range(count))
    )
    enter(gpu, body, 1, 128, target="sm_80", source=source, out=out)
    assert np.array_equal(out.get(), fragments(of, transposed).reshape(128, count))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_stmatrix(gpu: Gpu, count: int, transposed: bool) -> None:
    """9.7.14.5.16 stmatrix, the other way round: it writes the rows that are pointed to, and nothing else."""
    stride, scramble = 32, 3
    of = matrices(count)
    source = gpu.array(fragments(of, transposed).reshape(128, count))
    out = gpu.empty((128, 8), np.uint16)
    registers = "{" + ", ".join(f"%r{10 + i}" for i in range(count)) + "}"
    body = (
        place(stride, scramble)
        + "mov.b32 %r20, 0xabcdabcd; st.shared.v4.b32 [%r6], {%r20, %r20, %r20, %r20};"
        + "mov.b32 %r7, %r6; bar.warp.sync -1;"
        + unused(count)
        + "".join(f"ld.global.u32 %r{10 + i}, [%source_g+{4 * i}];" for i in range(count))
        + f"stmatrix.sync.aligned.m8n8.x{count}{'.trans' * transposed}.shared.b16 [%r6], {registers};"
        + "bar.warp.sync -1;"
        + "ld.shared.v4.b32 {%r20, %r21, %r22, %r23}, [%r7]; st.global.v4.b32 [%out_g], {%r20, %r21, %r22, %r23};"
    )
    enter(gpu, body, 1, 128, source=source, out=out)
    expected = np.full((4, 32, 8), 0xABCD, np.uint16)
    expected[:, : 8 * count] = of.reshape(4, 8 * count, 8)
    assert np.array_equal(out.get().reshape(4, 32, 8), expected)


def test_movmatrix(gpu: Gpu) -> None:
    """9.7.14.5.17 movmatrix: an 8 x 8 matrix transposed over the warp's registers, also onto itself."""
    of = matrices(1, warps=8)
    given = {"a": fragments(of, False).reshape(-1)}
    text = "movmatrix.sync.aligned.m8n8.trans.b16 $d, $a; mov.b32 $e, $a; movmatrix.sync.aligned.m8n8.trans.b16 $e, $e;"
    found = run(gpu, text, given, {"d": np.uint32, "e": np.uint32}, alone=True)
    for name in "de":
        check("movmatrix", given, found[name], fragments(of, True).reshape(-1))


# --- the tests' own means ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "k", "each"), [(8, 4, 1), (16, 4, 1), (16, 8, 1), (16, 16, 2), (16, 32, 4), (8, 32, 8)])
def test_every_element_has_one_place(m: int, k: int, each: int) -> None:
    """The formulas cover each matrix exactly once."""
    for (row, column), shape in ((places_a(m, k, each), (m, k)), (places_b(k, each), (k, 8)), (places_c(m), (m, 8))):
        seen = np.zeros(shape, np.intp)
        np.add.at(seen, (row, column), 1)
        assert (seen == 1).all()


Index = Callable[[int, int, int], tuple[int, int]]
"""Group, t and element to row and column."""

AS_PRINTED: list[tuple[int, int, int, Index, Index]] = [
    # m, k, elements a register, the formulas for A and for B of 9.7.14.5.1 to 9.7.14.5.13, written out
    (8, 4, 1, lambda g, t, i: (g, t), lambda g, t, i: (t, g)),
    (16, 4, 1, lambda g, t, i: (g + 8 * i, t), lambda g, t, i: (t, g)),
    (
        16, 8, 1,
        lambda g, t, i: (g if i in (0, 2) else g + 8, t if i < 2 else t + 4),
        lambda g, t, i: (t if i == 0 else t + 4, g),
    ),
    (
        16, 16, 1,
        lambda g, t, i: (g, i * 2 + t) if i % 2 == 0 else (g + 8, i * 2 - 2 + t),
        lambda g, t, i: (t + i * 4, g),
    ),
    (
        16, 8, 2,
        lambda g, t, i: (g if i < 2 else g + 8, 2 * t + (i & 1)),
        lambda g, t, i: (2 * t + i, g),
    ),
    (
        16, 16, 2,
        lambda g, t, i: (g if i < 2 or 4 <= i < 6 else g + 8, 2 * t + (i & 1) + (8 if i >= 4 else 0)),
        lambda g, t, i: (2 * t + (i & 1) + (8 if i >= 2 else 0), g),
    ),
    (8, 16, 4, lambda g, t, i: (g, 4 * t + i), lambda g, t, i: (4 * t + i, g)),
    (16, 16, 4, lambda g, t, i: (g if i < 4 else g + 8, 4 * t + (i & 3)), lambda g, t, i: (4 * t + i, g)),
    (
        16, 32, 4,
        lambda g, t, i: (g if i < 4 or 8 <= i < 12 else g + 8, 4 * t + (i & 3) + (16 if i >= 8 else 0)),
        lambda g, t, i: (4 * t + (i & 3) + (16 if i >= 4 else 0), g),
    ),
    (8, 32, 8, lambda g, t, i: (g, 8 * t + i), lambda g, t, i: (8 * t + i, g)),
    (16, 32, 8, lambda g, t, i: (g if i < 8 else g + 8, 8 * t + (i & 7)), lambda g, t, i: (8 * t + i, g)),
    (
        16, 64, 8,
        lambda g, t, i: (g if i < 8 or 16 <= i < 24 else g + 8, 8 * t + (i & 7) + (32 if i >= 16 else 0)),
        lambda g, t, i: (8 * t + (i & 7) + (32 if i >= 8 else 0), g),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("m", "k", "each", "a", "b"), AS_PRINTED)
def test_fragments_as_printed(m: int, k: int, each: int, a: Index, b: Index) -> None:
    """The one rule that is used here against the formulas that the ISA gives for every shape."""
    for (row, column), index in ((places_a(m, k, each), a), (places_b(k, each), b)):
        for lane in range(32):
            found = list(zip(row[lane].ravel().tolist(), column[lane].ravel().tolist(), strict=True))
            assert found == [index(lane >> 2, lane % 4, i) for i in range(len(found))]


def test_elements_that_changed_places_are_told(gpu: Gpu) -> None:
    """Two elements of A that have changed places, as a wrong fragment would have it, are found in the product."""
    opcode = "mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32"
    random = np.random.default_rng(3)
    left, right = (random.integers(0, 100, s, np.uint64) for s in ((WARPS, 16, 16), (WARPS, 16, 8)))
    left[1, 2, 3], left[1, 2, 4], right[1, 3], right[1, 4] = 5, 9, 1, 2
    start = np.zeros((WARPS, 16, 8), np.uint64)
    found = integers("s32", multiply(gpu, opcode, left, right, start, (8, 8, 32, 32), "sm_80"))
    assert_matrix(opcode, found, integers("s32", left @ right))
    left[1, 2, 3], left[1, 2, 4] = 9, 5
    with pytest.raises(AssertionError, match=re.escape("D[2, 0] is") + ".* and 7 more"):
        assert_matrix(opcode, found, integers("s32", left @ right))


def test_a_wrong_element_is_told() -> None:
    """One element, by its place; the fragments of two matrices that differ in one."""
    right = np.zeros((2, 16, 8))
    wrong = right.copy()
    wrong[1, 3, 5] = 2.0**-20
    with pytest.raises(AssertionError, match=re.escape("D[3, 5] is 9.5367431640625e-07 instead of 0.0, and 0 more")):
        assert_matrix("mma", wrong, right)
    assert_matrix("mma", wrong, right, 2.0**-20)
    wrong[1, 3, 5] = math.nan
    with pytest.raises(AssertionError, match="is nan"):
        assert_matrix("mma", wrong, right, 1.0)
    of = matrices(1)
    other = of.copy()
    other[0, 0, 2, 3] ^= 1
    assert (fragments(of, False) != fragments(other, False)).sum() == 1
    assert not np.array_equal(fragments(of, False), fragments(of, True))
