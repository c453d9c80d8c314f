"""Logic, shifts, bytes, comparisons, selection and moves of the PTX ISA 9.0, bit for bit against their definitions.

Sections 9.7.6 and 9.7.7 (comparison and selection, also of half precision), 9.7.8 (logic and shift), and mov and prmt
of 9.7.9. Expected values are numpy's or Python's, from the ISA's text.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from harness import Gpu
from ptx_case import EDGES, FLOAT_EDGES, Bits, check, operands, run

AMOUNTS = np.array([0, 1, 7, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 255, 256, 0x80000000, 0xFFFFFFFF], np.uint32)
"""Shift amounts, past every width."""


def dtype_of(width: int) -> str:
    return f"u{width // 8}"


def sources(*widths: int, seed: int = 0) -> dict[str, Bits]:
    """ "a", "b", ...: bit patterns of the widths; 1 is a predicate."""
    real = operands([w for w in widths if w > 1], seed=seed)
    generator = np.random.default_rng(seed + 1)
    count = len(real[0])
    columns = iter(real)
    return {
        name: generator.integers(0, 2, count).astype(np.bool_) if width == 1 else next(columns)
        for name, width in zip("abcdefgh", widths, strict=False)
    }


def hold(
    gpu: Gpu, instruction: str, given: Mapping[str, Bits], definition: Callable[..., Any], *widths: int, **options: Any
) -> None:
    """Runs with $a, $b, ... and $r0, $r1, ... of the widths; the definition gives a lane's int, or a tuple of them."""
    results = {f"r{i}": np.bool_ if w == 1 else dtype_of(w) for i, w in enumerate(widths)}
    found = run(gpu, instruction, given, results, target="sm_90", **options)
    answers = [definition(*lane) for lane in zip(*(array.tolist() for array in given.values()), strict=True)]
    tuples = [answer if isinstance(answer, tuple) else (answer,) for answer in answers]
    for i, (name, width) in enumerate(zip(results, widths, strict=True)):
        wanted = np.array([int(t[i]) & ((1 << width) - 1) for t in tuples], found[name].dtype)
        check(f"{instruction} ({name})", given, found[name], wanted)


def signed(bits: int, width: int) -> int:
    return bits - (1 << width) if bits >> (width - 1) else bits


# --- 9.7.8: logic and shift -------------------------------------------------------------------------------------------

BOOLEAN: dict[str, Callable[[Any, Any], Any]] = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}


@pytest.mark.parametrize("width", [16, 32, 64])
def test_bitwise(gpu: Gpu, width: int) -> None:
    """and, or, xor, not, cnot."""
    two, one = sources(width, width), sources(width)
    for name, operation in BOOLEAN.items():
        hold(gpu, f"{name}.b{width} $r0, $a, $b;", two, operation, width)
    hold(gpu, f"not.b{width} $r0, $a;", one, lambda a: ~a, width)
    hold(gpu, f"cnot.b{width} $r0, $a;", one, lambda a: a == 0, width)


def test_predicates(gpu: Gpu) -> None:
    """and, or, xor, not and mov of predicates, also negated and constant ones."""
    bits = np.arange(64)
    given = {name: (bits >> i & 1).astype(np.bool_) for i, name in enumerate("ab")}
    for name, operation in BOOLEAN.items():
        hold(gpu, f"{name}.pred $r0, $a, $b;", given, operation, 1)
        hold(gpu, f"{name}.pred $r0, $a, !$b;", given, lambda a, b, o=operation: o(a, not b), 1)
        hold(gpu, f"{name}.pred $r0, $a, 1;", given, lambda a, b, o=operation: o(a, True), 1)
    hold(gpu, "not.pred $r0, $a;", given, lambda a, b: not a, 1)
    hold(gpu, "mov.pred $r0, $a;", given, lambda a, b: a, 1)
    hold(gpu, "mov.pred $r0, 1; mov.pred $r1, 0;", given, lambda a, b: (True, False), 1, 1)


@pytest.mark.parametrize("width", [16, 32, 64])
def test_shifts(gpu: Gpu, width: int) -> None:
    """shl, shr: an amount past the width counts as the width."""
    pairs = [*itertools.product([*EDGES[width], 0x1234_5678_9ABC_DEF0 % (1 << width)], AMOUNTS.tolist())]
    given: dict[str, Bits] = {
        "a": np.array([a for a, _ in pairs], dtype_of(width)),
        "b": np.array([b for _, b in pairs], np.uint32),
    }
    for suffix in ("b", "u", "s"):
        hold(
            gpu,
            f"shr.{suffix}{width} $r0, $a, $b;",
            given,
            lambda a, b, s=suffix: (signed(a, width) if s == "s" else a) >> min(b, width),
            width,
        )
    hold(gpu, f"shl.b{width} $r0, $a, $b;", given, lambda a, b: a << min(b, width), width)
    for amount in (0, 3, width - 1, width, width + 1, 255):
        hold(gpu, f"shl.b{width} $r0, $a, {amount};", {"a": given["a"]}, lambda a, n=amount: a << n, width)
        hold(gpu, f"shr.u{width} $r0, $a, {amount};", {"a": given["a"]}, lambda a, n=amount: a >> n, width)
        hold(
            gpu, f"shr.s{width} $r0, $a, {amount};", {"a": given["a"]}, lambda a, n=amount: signed(a, width) >> n, width
        )


@pytest.mark.parametrize("mode", ["clamp", "wrap"])
def test_funnel_shift(gpu: Gpu, mode: str) -> None:
    """shf: of the 64 bits b:a, the upper half of a left shift, the lower half of a right shift."""
    given = sources(32, 32)
    given["c"] = np.random.default_rng(3).choice(AMOUNTS, len(given["a"]))

    def amount(c: int) -> int:
        return c & 31 if mode == "wrap" else min(c, 32)

    def left(a: int, b: int, c: int) -> int:
        return ((b << 32 | a) << amount(c)) >> 32

    def right(a: int, b: int, c: int) -> int:
        return (b << 32 | a) >> amount(c)

    hold(gpu, f"shf.l.{mode}.b32 $r0, $a, $b, $c;", given, left, 32)
    hold(gpu, f"shf.r.{mode}.b32 $r0, $a, $b, $c;", given, right, 32)
    two = {name: given[name] for name in "ab"}
    for c in (0, 5, 31, 32, 40):
        hold(gpu, f"shf.l.{mode}.b32 $r0, $a, $b, {c};", two, lambda a, b, c=c: left(a, b, c), 32)
        hold(gpu, f"shf.r.{mode}.b32 $r0, $a, $b, {c};", two, lambda a, b, c=c: right(a, b, c), 32)


def looked_up(table: int, a: Any, b: Any, c: Any) -> Any:
    """lop3 by its minterms: bit 4a + 2b + c of the table."""
    found = a & 0
    for index in range(8):
        if table >> index & 1:
            found = found | ((a if index & 4 else ~a) & (b if index & 2 else ~b) & (c if index & 1 else ~c))
    return found


def test_lop3(gpu: Gpu) -> None:
    """lop3: all 256 tables; and its form that also combines "not zero" with a predicate."""
    generator = np.random.default_rng(4)
    given: dict[str, Bits] = {name: generator.integers(0, 1 << 32, 64, np.uint32) for name in "abc"}
    for name, pattern in (("a", 0xF0F0F0F0), ("b", 0xCCCCCCCC), ("c", 0xAAAAAAAA)):
        given[name][0] = pattern
        given[name][1:4] = [0, 0xFFFFFFFF, pattern & 0xFFFF]
    for table in range(256):
        instruction = f"lop3.b32 $r0, $a, $b, $c, {table:#x};"
        found = run(gpu, instruction, given, {"r0": np.uint32})["r0"]
        assert int(found[0]) == table * 0x01010101
        check(instruction, given, found, looked_up(table, given["a"], given["b"], given["c"]))
    given["d"] = generator.integers(0, 2, 64).astype(np.bool_)
    for name, table in itertools.product(("and", "or"), (0, 0x80, 0x3C, 0xFE)):

        def both(a: int, b: int, c: int, d: bool, name: str = name, table: int = table) -> tuple[int, bool]:
            found = looked_up(table, a, b, c) & 0xFFFFFFFF
            return found, BOOLEAN[name](found != 0, d)

        hold(gpu, f"lop3.{name}.b32 $r0|$r1, $a, $b, $c, {table}, $d;", given, both, 32, 1)
        hold(
            gpu,
            f"lop3.{name}.b32 _|$r0, $a, $b, $c, {table}, !$d;",
            given,
            lambda a, b, c, d, f=both: f(a, b, c, not d)[1],
            1,
        )


# --- 9.7.9: prmt and mov ----------------------------------------------------------------------------------------------

PERMUTE_MODES = {
    # bytes of b:a for selectors 0 to 3, the most significant first
    "f4e": ("3210", "4321", "5432", "6543"),
    "b4e": ("5670", "6701", "7012", "0123"),
    "rc8": ("0000", "1111", "2222", "3333"),
    "ecl": ("3210", "3211", "3222", "3333"),
    "ecr": ("0000", "1110", "2210", "3210"),
    "rc16": ("1010", "3232", "1010", "3232"),
}


def test_prmt_default(gpu: Gpu) -> None:
    """prmt: every selector of the default mode; its top bit replicates the byte's sign."""
    selectors = np.arange(1 << 16, dtype=np.uint32)
    generator = np.random.default_rng(5)
    upper = generator.integers(0, 1 << 16, len(selectors), np.uint32) << np.uint32(16)
    given = {name: generator.integers(0, 1 << 32, len(selectors), np.uint32) for name in "ab"}
    given["c"] = selectors | upper
    found = run(gpu, "prmt.b32 $r0, $a, $b, $c;", given, {"r0": np.uint32})["r0"]
    pool = given["a"].astype(np.uint64) | given["b"].astype(np.uint64) << np.uint64(32)
    wanted = np.zeros(len(selectors), np.uint64)
    for i in range(4):
        nibble = (selectors >> np.uint32(4 * i) & np.uint32(15)).astype(np.uint64)
        byte = pool >> (nibble & np.uint64(7)) * np.uint64(8) & np.uint64(0xFF)
        sign = np.where(byte >= 0x80, np.uint64(0xFF), np.uint64(0))
        wanted |= np.where(nibble & np.uint64(8), sign, byte) << np.uint64(8 * i)
    check("prmt.b32", given, found, wanted.astype(np.uint32))
    for selector in (0x5410, 0x0123, 0x89BA, 0x7632):
        one = {name: given[name][:128] for name in "ab"}
        immediate = run(gpu, f"prmt.b32 $r0, $a, $b, {selector:#x};", one, {"r0": np.uint32})["r0"]
        one["c"] = np.full(128, selector, np.uint32)
        check("prmt.b32", one, immediate, run(gpu, "prmt.b32 $r0, $a, $b, $c;", one, {"r0": np.uint32})["r0"])


@pytest.mark.parametrize("mode", PERMUTE_MODES)
def test_prmt_mode(gpu: Gpu, mode: str) -> None:
    """prmt with a mode: the two low bits of c select."""
    given = sources(32, 32, 32)

    def permuted(a: int, b: int, c: int) -> int:
        pool = (b << 32 | a).to_bytes(8, "little")
        return int.from_bytes(bytes(pool[int(i)] for i in PERMUTE_MODES[mode][c & 3]), "big")

    hold(gpu, f"prmt.b32.{mode} $r0, $a, $b, $c;", given, permuted, 32)


def test_pack(gpu: Gpu) -> None:
    """mov of a vector to a scalar: the first element is the least significant."""
    hold(gpu, "mov.b32 $r0, {$a, $b};", sources(16, 16), lambda a, b: a | b << 16, 32)
    hold(gpu, "mov.b64 $r0, {$a, $b};", sources(32, 32), lambda a, b: a | b << 32, 64)
    four = sources(16, 16, 16, 16)
    hold(gpu, "mov.b64 $r0, {$a, $b, $c, $d};", four, lambda a, b, c, d: a | b << 16 | c << 32 | d << 48, 64)
    hold(gpu, "mov.b32 $r0, {0, $a};", sources(16), lambda a: a << 16, 32)
    hold(gpu, "mov.b32 $r0, {$a, -2};", sources(16), lambda a: a | 0xFFFE << 16, 32)
    hold(gpu, "mov.b64 $r0, {$a, 7};", sources(32), lambda a: a | 7 << 32, 64)
    hold(gpu, "mov.b32 $r0, {$a, $a};", sources(16), lambda a: a | a << 16, 32)


def test_unpack(gpu: Gpu) -> None:
    """mov of a scalar to a vector; "_" takes what nobody wants."""
    word, long = sources(32), sources(64)
    hold(gpu, "mov.b32 {$r0, $r1}, $a;", word, lambda a: (a, a >> 16), 16, 16)
    hold(gpu, "mov.b32 {_, $r0}, $a;", word, lambda a: a >> 16, 16)
    hold(gpu, "mov.b32 {$r0, _}, $a;", word, lambda a: a, 16)
    hold(gpu, "mov.b64 {$r0, $r1}, $a;", long, lambda a: (a, a >> 32), 32, 32)
    hold(gpu, "mov.b64 {_, $r0}, $a;", long, lambda a: a >> 32, 32)
    hold(gpu, "mov.b64 {$r0, $r1, $r2, $r3}, $a;", long, lambda a: (a, a >> 16, a >> 32, a >> 48), 16, 16, 16, 16)
    hold(gpu, "mov.b64 {$r0, _, _, $r1}, $a;", long, lambda a: (a, a >> 48), 16, 16)
    # And back, crosswise.
    swapped = "mov.b32 $r0, {$a, $b}; mov.b32 {$r2, $r1}, $r0;"
    hold(gpu, swapped, sources(16, 16), lambda a, b: (a | b << 16, b, a), 32, 16, 16)


def test_mov_wide(gpu: Gpu) -> None:
    """mov of a vector to a scalar of 128 bits and back."""
    given = {name: array[-256:] for name, array in sources(64, 64).items()}
    text = "{ .reg .b128 %wide; mov.b128 %wide, {$a, $b}; mov.b128 {$r0, $r1}, %wide; }"
    hold(gpu, text, given, lambda a, b: (a, b), 64, 64, alone=True)


def test_mov(gpu: Gpu) -> None:
    """mov between registers of every type of a width."""
    for width, kinds in ((16, ("b", "u", "s")), (32, ("b", "u", "s", "f")), (64, ("b", "u", "s", "f"))):
        for kind in kinds:
            hold(gpu, f"mov.{kind}{width} $r0, $a;", sources(width), lambda a: a, width)


IMMEDIATES = [
    # 4.5: literals and what they are
    ("mov.u32 $r0, 0xffffffff;", 32, 0xFFFFFFFF),
    ("mov.u32 $r0, 4294967295U;", 32, 0xFFFFFFFF),
    ("mov.s32 $r0, -2147483648;", 32, 0x80000000),
    ("mov.u32 $r0, 0777;", 32, 0o777),
    ("mov.u32 $r0, 0b1011;", 32, 0b1011),
    ("mov.s16 $r0, -3;", 16, 0xFFFD),
    ("mov.b64 $r0, -1;", 64, (1 << 64) - 1),
    ("mov.u64 $r0, 0xFFFFFFFFFFFFFFFF;", 64, (1 << 64) - 1),
    ("mov.u64 $r0, 0x123456789abcdef0;", 64, 0x123456789ABCDEF0),
    ("mov.f32 $r0, 0f3F800001;", 32, 0x3F800001),
    ("mov.f32 $r0, 0F7fc00000;", 32, 0x7FC00000),
    ("mov.f32 $r0, 1.5;", 32, 0x3FC00000),
    ("mov.f32 $r0, -0.1;", 32, int(np.float32(-0.1).view(np.uint32))),
    ("mov.f32 $r0, 0d3FF8000000000000;", 32, 0x3FC00000),
    ("mov.f64 $r0, 0d3FF0000000000001;", 64, 0x3FF0000000000001),
    ("mov.f64 $r0, -2.5e3;", 64, int(np.float64(-2.5e3).view(np.uint64))),
    ("mov.b16 $r0, 0x7FC0;", 16, 0x7FC0),
]


def test_immediates(gpu: Gpu) -> None:
    """4.5 and 6.1: constants as operands, cut or extended to the instruction's type."""
    for instruction, width, wanted in IMMEDIATES:
        hold(gpu, instruction, sources(32), lambda a, w=wanted: w, width)
    word, long, half = sources(32), sources(64), sources(16)
    hold(gpu, "add.s32 $r0, $a, -7;", word, lambda a: a - 7, 32)
    hold(gpu, "sub.s64 $r0, 5, $a;", long, lambda a: 5 - a, 64)
    hold(gpu, "and.b64 $r0, $a, -16;", long, lambda a: a & -16, 64)
    hold(gpu, "mul.lo.s64 $r0, $a, -5;", long, lambda a: a * -5, 64)
    hold(gpu, "mul.wide.s32 $r0, $a, -5;", word, lambda a: signed(a, 32) * -5, 64)
    hold(gpu, "mul.wide.u16 $r0, $a, 0xFFFF;", half, lambda a: a * 0xFFFF, 32)
    hold(gpu, "xor.b16 $r0, $a, -1;", half, lambda a: ~a, 16)
    hold(gpu, "min.u16 $r0, $a, -2;", half, lambda a: min(a, 0xFFFE), 16)
    hold(gpu, "max.s16 $r0, $a, -2;", half, lambda a: max(signed(a, 16), -2), 16)
    hold(gpu, "setp.gt.s64 $r0, $a, -1;", long, lambda a: signed(a, 64) > -1, 1)
    hold(gpu, "setp.lt.u32 $r0, $a, -1;", word, lambda a: a < 0xFFFFFFFF, 1)
    hold(gpu, "setp.eq.s16 $r0, $a, -1;", half, lambda a: a == 0xFFFF, 1)
    hold(gpu, "selp.b64 $r0, -1, 9, $b;", sources(64, 1), lambda a, b: -1 if b else 9, 64)


# --- 9.7.6 and 9.7.7: comparison and selection ------------------------------------------------------------------------

ORDERED: dict[str, Callable[[Any, Any], bool]] = {
    name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")
}
UNSIGNED = {"lo": operator.lt, "ls": operator.le, "hi": operator.gt, "hs": operator.ge}
KINDS = [f"{t}{w}" for w in (16, 32, 64) for t in "bus"] + ["f32", "f64", "f16", "bf16"]


def unordered(a: float, b: float) -> bool:
    return math.isnan(a) or math.isnan(b)


def ordered(name: str) -> Callable[[float, float], bool]:
    """False with a NaN, also ne; the twin that ends in u is true then."""
    return lambda a, b: not unordered(a, b) and ORDERED[name](a, b)


def or_unordered(name: str) -> Callable[[float, float], bool]:
    return lambda a, b: unordered(a, b) or ORDERED[name](a, b)


FLOATING: dict[str, Callable[[float, float], bool]] = {
    **{name: ordered(name) for name in ORDERED},
    **{f"{name}u": or_unordered(name) for name in ORDERED},
    "num": lambda a, b: not unordered(a, b),
    "nan": unordered,
}


def comparisons(kind: str) -> dict[str, Callable[[Any, Any], bool]]:
    """Of a type: bits are equal or not, lo ls hi hs are of unsigned integers, the ones with u of floats."""
    if kind[0] == "b" and kind != "bf16":
        return {name: ORDERED[name] for name in ("eq", "ne")}
    return {"u": ORDERED | UNSIGNED, "s": ORDERED}.get(kind[0], FLOATING)


def width_of(kind: str) -> int:
    return int(kind.lstrip("busf"))


BFLOAT_EDGES = [bits >> 16 for bits in FLOAT_EDGES[32]] + [0x7F81, 0x0001, 0x8001]


def number(kind: str) -> Callable[[int], Any]:
    """What bits mean."""
    width = width_of(kind)
    if kind == "bf16":
        return lambda bits: float(np.uint32(bits << 16).view(np.float32))
    if kind[0] == "f":
        return lambda bits: float(np.dtype(f"u{width // 8}").type(bits).view(f"f{width // 8}"))
    return (lambda bits: signed(bits, width)) if kind[0] == "s" else (lambda bits: bits)


def flushed(kind: str) -> Callable[[int], Any]:
    """.ftz: a subnormal is a zero."""
    least = {"f32": 2.0**-126, "f16": 2.0**-14}[kind]
    plain = number(kind)
    return lambda bits: 0.0 if abs(plain(bits)) < least else plain(bits)


def compared(kind: str, meaning: Callable[[int], Any] | None = None) -> tuple[dict[str, Bits], list[Any], list[Any]]:
    """Operands a, b and a predicate c, and the numbers that a and b are."""
    width = width_of(kind)
    edges = {16: BFLOAT_EDGES} if kind == "bf16" else FLOAT_EDGES if kind[0] == "f" else EDGES
    a, b = operands([width, width], edges, random=60)
    a[-30:] = b[-30:]
    given: dict[str, Bits] = {"a": a, "b": b, "c": np.random.default_rng(6).integers(0, 2, len(a)).astype(np.bool_)}
    read = meaning or number(kind)
    return given, [read(bits) for bits in a.tolist()], [read(bits) for bits in b.tolist()]


@pytest.mark.parametrize("kind", KINDS)
def test_setp(gpu: Gpu, kind: str) -> None:
    """setp: every comparison; with and, or, xor of a predicate or its negation; the complement as second result."""
    given, a, b = compared(kind)
    two = {name: given[name] for name in "ab"}
    half = kind in ("f16", "bf16")
    for name, compare in comparisons(kind).items():
        t = np.array([compare(x, y) for x, y in zip(a, b, strict=True)])
        instruction = f"setp.{name}.{kind} $p, $a, $b;"
        check(instruction, two, run(gpu, instruction, two, {"p": np.bool_}, "sm_90")["p"], t)
        if not half:
            instruction = f"setp.{name}.{kind} $p|$q, $a, $b;"
            found = run(gpu, instruction, two, {"p": np.bool_, "q": np.bool_}, "sm_90")
            check(instruction, two, found["p"], t)
            check(instruction, two, found["q"], ~t)
        for (operation, combine), negated in itertools.product(BOOLEAN.items(), (False, True)):
            c = given["c"] ^ negated
            results = {"p": np.bool_} if half else {"p": np.bool_, "q": np.bool_}
            instruction = f"setp.{name}.{operation}.{kind} {'$p' if half else '$p|$q'}, $a, $b, {'!' * negated}$c;"
            found = run(gpu, instruction, given, results, "sm_90")
            check(instruction, given, found["p"], combine(t, c))
            if not half:
                check(instruction, given, found["q"], combine(~t, c))


def test_setp_sink(gpu: Gpu) -> None:
    """setp: "_" for either result."""
    given = sources(32, 32)
    hold(gpu, "setp.lt.s32 $r0|_, $a, $b;", given, lambda a, b: signed(a, 32) < signed(b, 32), 1)
    hold(gpu, "setp.lt.s32 _|$r0, $a, $b;", given, lambda a, b: signed(a, 32) >= signed(b, 32), 1)


@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_setp_flushes(gpu: Gpu, kind: str) -> None:
    """setp and set with .ftz."""
    given, a, b = compared(kind, flushed(kind))
    two = {name: given[name] for name in "ab"}
    for name, compare in FLOATING.items():
        t = np.array([compare(x, y) for x, y in zip(a, b, strict=True)])
        instruction = f"setp.{name}.ftz.{kind} $p, $a, $b;"
        check(instruction, two, run(gpu, instruction, two, {"p": np.bool_}, "sm_90")["p"], t)
        instruction = f"set.{name}.ftz.u32.{kind} $r0, $a, $b;"
        found = run(gpu, instruction, two, {"r0": np.uint32}, "sm_90")["r0"]
        check(instruction, two, found, np.where(t, np.uint32(0xFFFFFFFF), np.uint32(0)))


TRUE = {
    "u32": 0xFFFFFFFF, "s32": 0xFFFFFFFF, "u16": 0xFFFF, "s16": 0xFFFF, "f32": 0x3F800000, "f16": 0x3C00, "bf16": 0x3F80
}  # fmt: skip
"""What set writes for true, by the type of the result."""


@pytest.mark.parametrize("kind", KINDS)
def test_set(gpu: Gpu, kind: str) -> None:
    """set: all ones or 1.0; the types of half precision are of 9.7.7."""
    given, a, b = compared(kind)
    two = {name: given[name] for name in "ab"}
    results = ["u32", "s32", *(("u16", "s16", kind) if kind in ("f16", "bf16") else ("f32", "f16", "bf16"))]
    for name, compare in comparisons(kind).items():
        t = np.array([compare(x, y) for x, y in zip(a, b, strict=True)])
        for result in results:
            dtype = np.dtype(dtype_of(width_of(result)))
            instruction = f"set.{name}.{result}.{kind} $r0, $a, $b;"
            found = run(gpu, instruction, two, {"r0": dtype}, "sm_90")["r0"]
            check(instruction, two, found, np.where(t, TRUE[result], 0).astype(dtype))
        for (operation, combine), negated in itertools.product(BOOLEAN.items(), (False, True)):
            instruction = f"set.{name}.{operation}.u32.{kind} $r0, $a, $b, {'!' * negated}$c;"
            found = run(gpu, instruction, given, {"r0": np.uint32}, "sm_90")["r0"]
            wanted = np.where(combine(t, given["c"] ^ negated), np.uint32(0xFFFFFFFF), np.uint32(0))
            check(instruction, given, found, wanted)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_compare_pairs(gpu: Gpu, kind: str) -> None:
    """9.7.7: setp of two halves gives a predicate each; set a half of the result each."""
    halves, a, b = compared(kind)
    count = len(a) // 2

    def packed(column: Bits) -> Bits:
        return column[:count].astype(np.uint32) | column[count : 2 * count].astype(np.uint32) << np.uint32(16)

    given: dict[str, Bits] = {"a": packed(halves["a"]), "b": packed(halves["b"]), "c": halves["c"][:count]}
    two = {name: given[name] for name in "ab"}
    predicates = {"p": np.bool_, "q": np.bool_}
    for name, compare in FLOATING.items():
        t = np.array([compare(x, y) for x, y in zip(a, b, strict=True)])
        low, high = t[:count], t[count : 2 * count]
        cases = [(f"setp.{name}.{kind}x2 $p|$q, $a, $b;", two, low, high)]
        for (operation, combine), negated in itertools.product(BOOLEAN.items(), (False, True)):
            instruction = f"setp.{name}.{operation}.{kind}x2 $p|$q, $a, $b, {'!' * negated}$c;"
            c = given["c"] ^ negated
            cases.append((instruction, given, combine(low, c), combine(high, c)))
        for instruction, operands_, p, q in cases:
            found = run(gpu, instruction, operands_, predicates, "sm_90")
            check(f"{instruction} (p)", operands_, found["p"], p)
            check(f"{instruction} (q)", operands_, found["q"], q)
        for result, one in ((f"{kind}x2", TRUE[kind]), ("u32", 0xFFFF), ("s32", 0xFFFF)):
            instruction = f"set.{name}.{result}.{kind}x2 $r0, $a, $b;"
            wanted = np.where(low, np.uint32(one), np.uint32(0)) | np.where(high, np.uint32(one << 16), np.uint32(0))
            check(instruction, two, run(gpu, instruction, two, {"r0": np.uint32}, "sm_90")["r0"], wanted)


@pytest.mark.parametrize("kind", [f"{t}{w}" for w in (16, 32, 64) for t in "bus"] + ["f32", "f64"])
def test_select(gpu: Gpu, kind: str) -> None:
    """selp; slct by the sign of an s32 or an f32: zeros of both signs take a, a NaN takes b."""
    width = width_of(kind)
    hold(gpu, f"selp.{kind} $r0, $a, $b, $c;", sources(width, width, 1), lambda a, b, c: a if c else b, width)
    three = sources(width, width, 32)
    hold(gpu, f"slct.{kind}.s32 $r0, $a, $b, $c;", three, lambda a, b, c: a if signed(c, 32) >= 0 else b, width)
    three["c"] = np.random.default_rng(7).choice(np.array(FLOAT_EDGES[32], np.uint32), len(three["a"]))
    plain, flush = number("f32"), flushed("f32")
    hold(gpu, f"slct.{kind}.f32 $r0, $a, $b, $c;", three, lambda a, b, c: a if plain(c) >= 0 else b, width)
    hold(gpu, f"slct.ftz.{kind}.f32 $r0, $a, $b, $c;", three, lambda a, b, c: a if flush(c) >= 0 else b, width)


def test_wrong_value_is_reported(gpu: Gpu) -> None:
    """The comparison: one lane of thousands, one bit, and a predicate."""
    given = sources(32, 32)
    with pytest.raises(AssertionError, match="a = 0x21, b = 0x21: 0x21 instead of 0x20, and 0 more"):
        hold(gpu, "and.b32 $r0, $a, $b;", given, lambda a, b: (a & b) ^ (a == b == 33), 32)
    with pytest.raises(AssertionError, match="a = 0x21, b = 0x21: 0x1 instead of 0x0, and 0 more"):
        hold(gpu, "setp.eq.b32 $r0, $a, $b;", given, lambda a, b: a == b and a != 33, 1)
