"""The integer instructions of the PTX ISA 9.0 (9.7.1, 9.7.2), bit for bit against definitions in Python's integers.

A row is an instruction, the types of its sources sa, sb, ..., the types of its results r0, r1, ..., and the definition:
a function of the sources' values that gives a value, or a tuple of one a result. A value is cut to its register's
width; None is a result that the ISA leaves open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from harness import Gpu
from ptx_case import EDGES, Bits, check, operands, run

Value = int | None
Definition = Callable[..., Value | tuple[Value, ...]]

SIGNED = ("s16", "s32", "s64")
UNSIGNED = ("u16", "u32", "u64")
WORDS = ("u32", "s32", "u64", "s64")
TYPES = (*UNSIGNED, *SIGNED)

FIELDS = [0, 1, 4, 8, 31, 32, 33, 63, 64, 65, 254, 255, 256, 0x105, 0xFFFFFF08]
"""Positions and lengths: of bfe and bfi only the low 8 bits count."""


class Row(NamedTuple):
    instruction: str
    sources: str
    results: str
    definition: Definition
    fields: str = ""
    """Sources that are positions, lengths or counts."""


def width(kind: str) -> int:
    return int(kind[1:3])


def value(bits: int, kind: str) -> int:
    """The number that a register of the type holds."""
    size = width(kind)
    return bits - (1 << size) if kind[0] == "s" and bits >> (size - 1) else bits


def least(kind: str) -> int:
    return -(1 << (width(kind) - 1)) if kind[0] == "s" else 0


def greatest(kind: str) -> int:
    return (1 << (width(kind) - (kind[0] == "s"))) - 1


def clamp(number: int, kind: str) -> int:
    return min(max(number, least(kind)), greatest(kind))


def arrays(row: Row) -> dict[str, Bits]:
    kinds = row.sources.split()
    names = "abcdefgh"[: len(kinds)]
    found = operands([width(kind) for kind in kinds], seed=len(row.instruction))
    generator = np.random.default_rng(1)
    for i, name in enumerate(names):
        if name in row.fields:
            found[i] = generator.choice(np.array(FIELDS, np.uint32), len(found[i]))
    return {f"s{name}": array for name, array in zip(names, found, strict=True)}


def hold(gpu: Gpu, row: Row, target: str = "sm_90") -> None:
    """Runs a row and compares every result that is defined."""
    sources, kinds, result_kinds = arrays(row), row.sources.split(), row.results.split()
    names = [f"r{i}" for i in range(len(result_kinds))]
    results = {name: f"u{width(kind) // 8}" for name, kind in zip(names, result_kinds, strict=True)}
    found = run(gpu, row.instruction, sources, results, target=target)
    columns = [
        [value(bits, kind) for bits in array.tolist()] for array, kind in zip(sources.values(), kinds, strict=True)
    ]
    answers = [row.definition(*numbers) for numbers in zip(*columns, strict=True)]
    tuples = [answer if isinstance(answer, tuple) else (answer,) for answer in answers]
    for i, (name, kind) in enumerate(zip(names, result_kinds, strict=True)):
        defined = np.array([t[i] is not None for t in tuples])
        assert defined.any()
        cut = (1 << width(kind)) - 1
        wanted = np.array([(t[i] or 0) & cut for t in tuples], found[name].dtype)
        kept = {source: array[defined] for source, array in sources.items()}
        check(f"{row.instruction} ({name})", kept, found[name][defined], wanted[defined])


def wide(kind: str) -> str:
    return f"{kind[0]}{2 * width(kind)}"


def quotient(a: int, b: int) -> int:
    """Rounded toward zero."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def divided(kind: str, remainder: bool) -> Definition:
    """9.7.1.8, 9.7.1.9 (div, rem): by zero, or past the greatest number, any value is right; neither ends the run."""

    def definition(a: int, b: int) -> Value:
        if b == 0 or quotient(a, b) > greatest(kind):
            return None
        return a - quotient(a, b) * b if remainder else quotient(a, b)

    return definition


def arithmetic() -> Iterator[Row]:
    """9.7.1.1 to 9.7.1.13: add, sub, mul, mad, sad, div, rem, abs, neg, min, max."""
    two, three = "r0, $sa, $sb;", "r0, $sa, $sb, $sc;"
    for t in TYPES:
        n = width(t)
        yield Row(f"add.{t} ${two}", f"{t} {t}", t, lambda a, b: a + b)
        yield Row(f"sub.{t} ${two}", f"{t} {t}", t, lambda a, b: a - b)
        yield Row(f"mul.lo.{t} ${two}", f"{t} {t}", t, lambda a, b: a * b)
        yield Row(f"mul.hi.{t} ${two}", f"{t} {t}", t, lambda a, b, n=n: a * b >> n)
        yield Row(f"mad.lo.{t} ${three}", f"{t} {t} {t}", t, lambda a, b, c: a * b + c)
        yield Row(f"mad.hi.{t} ${three}", f"{t} {t} {t}", t, lambda a, b, c, n=n: (a * b >> n) + c)
        if n < 64:
            yield Row(f"mul.wide.{t} ${two}", f"{t} {t}", wide(t), lambda a, b: a * b)
            yield Row(f"mad.wide.{t} ${three}", f"{t} {t} {wide(t)}", wide(t), lambda a, b, c: a * b + c)
        yield Row(f"sad.{t} ${three}", f"{t} {t} {t}", t, lambda a, b, c: c + (b - a if a < b else a - b))
        yield Row(f"div.{t} ${two}", f"{t} {t}", t, divided(t, False))
        yield Row(f"rem.{t} ${two}", f"{t} {t}", t, divided(t, True))
        yield Row(f"min.{t} ${two}", f"{t} {t}", t, min)
        yield Row(f"max.{t} ${two}", f"{t} {t}", t, max)
    for t in SIGNED:
        yield Row(f"abs.{t} $r0, $sa;", t, t, abs)
        yield Row(f"neg.{t} $r0, $sa;", t, t, lambda a: -a)
    yield Row(f"add.sat.s32 ${two}", "s32 s32", "s32", lambda a, b: clamp(a + b, "s32"))
    yield Row(f"sub.sat.s32 ${two}", "s32 s32", "s32", lambda a, b: clamp(a - b, "s32"))
    yield Row(f"mad.hi.sat.s32 ${three}", "s32 s32 s32", "s32", lambda a, b, c: clamp((a * b >> 32) + c, "s32"))
    yield Row(f"min.relu.s32 ${two}", "s32 s32", "s32", lambda a, b: max(min(a, b), 0))
    yield Row(f"max.relu.s32 ${two}", "s32 s32", "s32", lambda a, b: max(a, b, 0))


def low24(bits: int, kind: str) -> int:
    bits &= 0xFFFFFF
    return bits - (1 << 24) if kind[0] == "s" and bits >> 23 else bits


def multiply24() -> Iterator[Row]:
    """9.7.1.5 and 9.7.1.6: mul24, mad24, of the sources' low 24 bits."""
    for t in ("u32", "s32"):
        for part, shift in (("lo", 0), ("hi", 16)):

            def product(a: int, b: int, t: str = t, shift: int = shift) -> int:
                """Bits 31 to 0 or 47 to 16, as a number of the type."""
                return value((low24(a, t) * low24(b, t) >> shift) & 0xFFFFFFFF, t)

            yield Row(f"mul24.{part}.{t} $r0, $sa, $sb;", f"{t} {t}", t, product)
            yield Row(
                f"mad24.{part}.{t} $r0, $sa, $sb, $sc;", f"{t} {t} {t}", t, lambda a, b, c, p=product: p(a, b) + c
            )
            if (part, t) == ("hi", "s32"):
                yield Row(
                    "mad24.hi.sat.s32 $r0, $sa, $sb, $sc;",
                    "s32 s32 s32",
                    "s32",
                    lambda a, b, c, p=product: clamp(p(a, b) + c, "s32"),
                )


def bits_of(number: int, size: int) -> int:
    return number & ((1 << size) - 1)


def find(a: int, size: int) -> int:
    """9.7.1.16 (bfind): the highest bit that is not the sign's, -1 for none."""
    return (a if a >= 0 else ~a).bit_length() - 1


def field(a: int, b: int, c: int, kind: str) -> int:
    """9.7.1.19 (bfe), bit by bit."""
    size = width(kind)
    msb, position, length = size - 1, b & 0xFF, c & 0xFF
    a = bits_of(a, size)
    sign = 0 if kind[0] == "u" or length == 0 else a >> min(position + length - 1, msb) & 1
    found = 0
    for i in range(size):
        found |= (a >> (position + i) & 1 if i < length and position + i <= msb else sign) << i
    return found


def insert(a: int, b: int, c: int, d: int, size: int) -> int:
    """9.7.1.20 (bfi), bit by bit."""
    position, length, found = c & 0xFF, d & 0xFF, b
    for i in range(min(length, size)):
        if position + i < size:
            found = found & ~(1 << (position + i)) | (a >> i & 1) << (position + i)
    return found


def find_nth(mask: int, base: int, offset: int) -> Value:
    """9.7.1.17 (fns); a base past 31 is undefined."""
    if base > 31:
        return None
    if offset == 0:
        return base if mask >> base & 1 else -1
    step, count = (1 if offset > 0 else -1), abs(offset) - 1
    while 0 <= base < 32:
        if mask >> base & 1:
            if count == 0:
                return base
            count -= 1
        base += step
    return -1


def extend(a: int, b: int, kind: str, mode: str) -> int:
    """9.7.1.21 (szext)."""
    count = b & 31
    if mode == "clamp" and b >= 32:
        return a
    if count == 0:
        return 0
    low = bits_of(a, count)
    return low - (1 << count) if kind[0] == "s" and low >> (count - 1) else low


def mask(a: int, b: int, mode: str) -> int:
    """9.7.1.22 (bmsk): the mask is of bits a to a + b - 1, as far as there are such bits."""
    if mode == "clamp":
        a, b = min(a, 32), min(b, 32)
    else:
        a, b = a & 31, b & 31
    return bits_of(((1 << b) - 1) << a, 32)


def bit_fields() -> Iterator[Row]:
    """9.7.1.14 to 9.7.1.22: popc, clz, bfind, fns, brev, bfe, bfi, szext, bmsk."""
    for n in (32, 64):
        u = f"u{n}"
        yield Row(f"popc.b{n} $r0, $sa;", u, "u32", lambda a: a.bit_count())
        yield Row(f"clz.b{n} $r0, $sa;", u, "u32", lambda a, n=n: n - a.bit_length())
        yield Row(f"brev.b{n} $r0, $sa;", u, u, lambda a, n=n: int(f"{a:0{n}b}"[::-1], 2))
        yield Row(
            f"bfi.b{n} $r0, $sa, $sb, $sc, $sd;",
            f"{u} {u} u32 u32",
            u,
            lambda a, b, c, d, n=n: insert(a, b, c, d, n),
            fields="cd",
        )
        for t in (f"u{n}", f"s{n}"):
            yield Row(f"bfind.{t} $r0, $sa;", t, "u32", lambda a, n=n: find(a, n))
            yield Row(
                f"bfind.shiftamt.{t} $r0, $sa;",
                t,
                "u32",
                lambda a, n=n: -1 if find(a, n) < 0 else n - 1 - find(a, n),
            )
            yield Row(
                f"bfe.{t} $r0, $sa, $sb, $sc;",
                f"{t} u32 u32",
                t,
                lambda a, b, c, t=t: field(a, b, c, t),
                fields="bc",
            )
    for mode in ("clamp", "wrap"):
        yield Row(f"bmsk.{mode}.b32 $r0, $sa, $sb;", "u32 u32", "u32", lambda a, b, m=mode: mask(a, b, m), fields="ab")
        for t in ("u32", "s32"):
            yield Row(
                f"szext.{mode}.{t} $r0, $sa, $sb;",
                f"{t} u32",
                t,
                lambda a, b, t=t, m=mode: extend(a, b, t, m),
                fields="b",
            )
    yield Row("fns.b32 $r0, $sa, $sb, $sc;", "u32 u32 s32", "u32", find_nth, fields="b")
    yield Row("fns.b32 $r0, $sa, $sb, $sc;", "u32 u32 s32", "u32", find_nth, fields="bc")
    yield Row("fns.b32 $r0, $sa, 17, -3;", "u32", "u32", lambda a: find_nth(a, 17, -3))


def part(a: int, i: int, size: int, kind: str) -> int:
    bits = a >> (size * i) & ((1 << size) - 1)
    return bits - (1 << size) if kind[0] == "s" and bits >> (size - 1) else bits


def dot_products() -> Iterator[Row]:
    """9.7.1.23 and 9.7.1.24: dp4a, dp2a."""
    for ta in ("u32", "s32"):
        for tb in ("u32", "s32"):
            t = "u32" if ta == tb == "u32" else "s32"

            def four(a: int, b: int, c: int, ta: str = ta, tb: str = tb) -> int:
                return c + sum(part(a, i, 8, ta) * part(b, i, 8, tb) for i in range(4))

            def two(a: int, b: int, c: int, ta: str = ta, tb: str = tb, first: int = 0) -> int:
                return c + sum(part(a, i, 16, ta) * part(b, i + first, 8, tb) for i in range(2))

            yield Row(f"dp4a.{ta}.{tb} $r0, $sa, $sb, $sc;", f"u32 u32 {t}", t, four)
            yield Row(f"dp2a.lo.{ta}.{tb} $r0, $sa, $sb, $sc;", f"u32 u32 {t}", t, two)
            yield Row(
                f"dp2a.hi.{ta}.{tb} $r0, $sa, $sb, $sc;", f"u32 u32 {t}", t, lambda a, b, c, f=two: f(a, b, c, first=2)
            )


def pairs() -> Iterator[Row]:
    """9.7.1.1, 9.7.1.12, 9.7.1.13 (add, min, max): two 16-bit numbers in a register, from sm_90 on."""

    def each(kind: str, one: Callable[[int, int], int]) -> Definition:
        def definition(a: int, b: int) -> int:
            lanes = [one(part(a, i, 16, kind), part(b, i, 16, kind)) & 0xFFFF for i in range(2)]
            return lanes[0] | lanes[1] << 16

        return definition

    for t in ("u16", "s16"):
        for name, one in (("add", lambda a, b: a + b), ("min", min), ("max", max)):
            yield Row(f"{name}.{t}x2 $r0, $sa, $sb;", "u32 u32", "u32", each(t, one))
    yield Row("min.relu.s16x2 $r0, $sa, $sb;", "u32 u32", "u32", each("s16", lambda a, b: max(min(a, b), 0)))
    yield Row("max.relu.s16x2 $r0, $sa, $sb;", "u32 u32", "u32", each("s16", lambda a, b: max(a, b, 0)))


def carries() -> Iterator[Row]:
    """9.7.2: a first addition or subtraction sets the flag, the instruction uses and sets it, a last one shows it."""
    for t in WORDS:
        n = width(t)
        u = f"u{n}"
        one = (1 << n) - 1

        def split(total: int, n: int = n) -> tuple[int, int]:
            return total, total >> n & 1

        def added(p: int, q: int, a: int, b: int, f: Any = split, n: int = n) -> tuple[int, int, int]:
            first, flag = f(p + q)
            return first, *f(a + b + flag)

        def subtracted(p: int, q: int, a: int, b: int) -> tuple[int, int, int]:
            borrow = p < q
            return p - q, a - b - borrow, -(a - b - borrow < 0)

        yield Row(
            f"add.cc.{t} $r0, $sa, $sb; addc.cc.{t} $r1, $sc, $sd; addc.{t} $r2, 0, 0;",
            f"{u} {u} {u} {u}",
            f"{u} {u} {u}",
            added,
        )
        yield Row(
            f"sub.cc.{t} $r0, $sa, $sb; subc.cc.{t} $r1, $sc, $sd; subc.{t} $r2, 0, 0;",
            f"{u} {u} {u} {u}",
            f"{u} {u} {u}",
            subtracted,
        )
        for half in ("lo", "hi"):

            def product(a: int, b: int, t: str = t, n: int = n, half: str = half, one: int = one) -> int:
                """A half as bits: the flag is the carry out of their addition."""
                full = value(a, t) * value(b, t)
                return full & one if half == "lo" else full >> n & one

            yield Row(
                f"mad.{half}.cc.{t} $r0, $sa, $sb, $sc; addc.{t} $r1, 0, 0;",
                f"{u} {u} {u}",
                f"{u} {u}",
                lambda a, b, c, p=product, f=split: f(p(a, b) + c),
            )
            # the flag comes from a + b
            yield Row(
                f"add.cc.{t} $r0, $sa, $sb; madc.{half}.cc.{t} $r1, $sc, $sb, $sd; addc.{t} $r2, 0, 0;",
                f"{u} {u} {u} {u}",
                f"{u} {u} {u}",
                lambda a, b, c, d, p=product, f=split: (f(a + b)[0], *f(p(c, b) + d + f(a + b)[1])),
            )
            yield Row(
                f"add.cc.{t} $r0, $sa, $sb; madc.{half}.{t} $r1, $sc, $sb, $sd;",
                f"{u} {u} {u} {u}",
                f"{u} {u}",
                lambda a, b, c, d, p=product, f=split: (a + b, p(c, b) + d + f(a + b)[1]),
            )
    # Three limbs; what has no .cc leaves the flag alone.
    yield Row(
        "add.cc.u32 $r0, $sa, $sb; add.u32 $r1, $sc, $sd; addc.u32 $r2, $se, 0;",
        "u32 u32 u32 u32 u32",
        "u32 u32 u32",
        lambda a, b, c, d, e: (a + b, c + d, e + (a + b >> 32)),
    )


def identities(rows: Sequence[Row]) -> list[Any]:
    return [pytest.param(row, id=f"{row.instruction.split(' $')[0]}-{i}") for i, row in enumerate(rows)]


ROWS = [row for table in (arithmetic, multiply24, bit_fields, dot_products, pairs, carries) for row in table()]


@pytest.mark.parametrize("row", identities(ROWS))
def test_integer(gpu: Gpu, row: Row) -> None:
    """9.7.1 and 9.7.2."""
    hold(gpu, row)


def test_product_in_limbs(gpu: Gpu) -> None:
    """9.7.2.5, 9.7.2.6: a product of 128 bits from 32-bit limbs, by a chain of mad.cc and madc."""
    count = 512
    a, b = (column[-count:] for column in operands([64, 64], random=count - 100))
    low, high = np.uint64(0xFFFFFFFF), np.uint64(32)
    sources = {}
    for name, column in (("a", a), ("b", b)):
        sources[f"{name}l"] = (column.astype(np.uint64) & low).astype(np.uint32)
        sources[f"{name}h"] = (column.astype(np.uint64) >> high).astype(np.uint32)
    # Results are read again, so that this cannot also run with results in the sources' registers.
    chain = """mul.lo.u32 $r0, $al, $bl; mul.hi.u32 $r1, $al, $bl;
        mad.lo.cc.u32 $r1, $al, $bh, $r1; madc.hi.u32 $r2, $al, $bh, 0;
        mad.lo.cc.u32 $r1, $ah, $bl, $r1; madc.hi.cc.u32 $r2, $ah, $bl, $r2; madc.hi.u32 $r3, $ah, $bh, 0;
        mad.lo.cc.u32 $r2, $ah, $bh, $r2; addc.u32 $r3, $r3, 0;"""
    found = run(gpu, chain, sources, {f"r{i}": np.uint32 for i in range(4)}, target="sm_90", alone=True)
    products = [x * y for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    for i in range(4):
        check(f"limb {i}", sources, found[f"r{i}"], np.array([p >> (32 * i) & 0xFFFFFFFF for p in products], np.uint32))


def test_wrong_value_is_reported(gpu: Gpu) -> None:
    """The comparison: a definition that is wrong in one operand of thousands is found, with its operands."""
    odd = EDGES[32][5]
    hold(gpu, Row("add.u32 $r0, $sa, $sb;", "u32 u32", "u32", lambda a, b: a + b))
    with pytest.raises(AssertionError, match=r"add.u32 .* with sa = 0x21, sb = 0x21: 0x42 instead of 0x43, and 0 more"):
        hold(gpu, Row("add.u32 $r0, $sa, $sb;", "u32 u32", "u32", lambda a, b: a + b + (a == b == odd)))
    with pytest.raises(AssertionError, match="instead of"):
        hold(gpu, Row("shr.u32 $r0, $sa, 1;", "s32", "s32", lambda a: a >> 1))
