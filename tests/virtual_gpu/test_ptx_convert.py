"""cvt and cvt.pack (PTX ISA 9.0, 9.7.9.21 and 9.7.9.22) against exact arithmetic.

A NaN that becomes a float may have any payload, unless .relu makes it the canonical one. The ISA says nothing
about the sign of a zero that .sat or .relu leave: both pass.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from harness import Gpu
from numpy.typing import NDArray
from ptx_case import EDGES, FLOAT_EDGES, check, run
from ptx_round import BF16, F16, F32, F64, MODES, Format, flush, is_inf, is_nan, negative, round_to, value

TARGET = "sm_90"
INTEGERS = tuple(f"{sign}{width}" for width in (8, 16, 32, 64) for sign in "us")
FLOATS = {f.name: f for f in (F16, BF16, F32, F64)}
TO_INTEGER: dict[str, Callable[[Fraction], int]] = {
    "rni": round,
    "rzi": math.trunc,
    "rmi": math.floor,
    "rpi": math.ceil,
}

Ints = list[int]


def limits(kind: str) -> tuple[int, int]:
    """The range of "s8" or the like."""
    width = int(kind[1:])
    return (-(1 << (width - 1)), (1 << (width - 1)) - 1) if kind[0] == "s" else (0, (1 << width) - 1)


def clamp(kind: str, number: int) -> int:
    low, high = limits(kind)
    return min(max(number, low), high)


def wrap(kind: str, number: int) -> int:
    """The low bits, read as the type."""
    width = int(kind[1:])
    low_bits = number & ((1 << width) - 1)
    return low_bits - (1 << width) if kind[0] == "s" and low_bits >> (width - 1) else low_bits


def bits(numbers: Iterable[int], width: int) -> NDArray[Any]:
    return np.array([n & ((1 << width) - 1) for n in numbers], f"u{width // 8}")


def integers(width: int) -> Ints:
    """Bit patterns: edges of this and all narrower widths, and random ones of every magnitude."""
    generator = np.random.default_rng(width)
    edges = [
        (sign * (1 << k) + d)
        for k in (0, 7, 8, 15, 16, 31, 32, 63)
        if k < width
        for sign in (1, -1)
        for d in (-1, 0, 1)
    ]
    random = [int(generator.integers(0, 1 << 63)) >> int(generator.integers(0, 63)) for _ in range(60)]
    rounds = [
        (1 << k) + (1 << j) + d for k in (12, 25, 54, 62) if k < width for j in (k - 11, k - 8) for d in (-1, 0, 1)
    ]
    return [n & ((1 << width) - 1) for n in [*EDGES.get(width, ()), *edges, *random, *(-n for n in random), *rounds]]


def edges(form: Format) -> Ints:
    return [e >> 16 for e in FLOAT_EDGES[32]] if form is BF16 else list(FLOAT_EDGES[form.width])


def floats(form: Format, targets: Iterable[Fraction], seed: int = 0, random: int = 60) -> Ints:
    """Bit patterns: edges, random ones, and the wanted values with their neighbours on both sides."""
    generator = np.random.default_rng(seed)
    found = [*edges(form), *(int.from_bytes(generator.bytes(form.width // 8)) for _ in range(random))]
    for target in targets:
        near = round_to(form, target, "rz", target < 0)
        found += [b for b in (near - 1, near, near + 1) if near & ~form.sign]
    return [b & (2 * form.sign - 1) for b in found]


def near_integers() -> list[Fraction]:
    """Halves and the borders of every integer type."""
    small = [Fraction(n, 4) for n in range(-14, 15)]
    powers = (7, 8, 15, 16, 31, 32, 63, 64)
    return small + [sign * ((1 << k) + Fraction(d, 2)) for k in powers for sign in (1, -1) for d in range(-3, 3)]


def near_floats(form: Format, seed: int = 1, count: int = 40) -> list[Fraction]:
    """Values of a format and the middles between two, of subnormals and of the greatest too."""
    generator = np.random.default_rng(seed)
    starts = [int(generator.integers(1, form.greatest)) for _ in range(count)]
    starts += [0, 1, 2, (1 << form.fraction) - 1, 1 << form.fraction, form.greatest - 1]
    found = []
    for i, start in enumerate(starts):
        sign = -1 if i % 3 == 0 else 1
        a, b = value(form, start), value(form, start + 1)
        found += [sign * a, sign * (a + b) / 2]
    top, below = value(form, form.greatest), value(form, form.greatest - 1)
    return [*found, top, top + (top - below) / 2, -top - (top - below) / 2, 2 * top, Fraction(1), Fraction(-1)]


def same_float(
    form: Format, canonical: bool, unsigned_zero: bool, found: NDArray[Any], wanted: NDArray[Any]
) -> NDArray[Any]:
    """What was found, replaced by what was wanted where the difference is of no account."""
    low = found & found.dtype.type(form.sign - 1)
    high = wanted & wanted.dtype.type(form.sign - 1)
    free = np.zeros(len(found), bool)
    if not canonical:
        free |= (low > form.inf) & (high > form.inf)
    if unsigned_zero:
        free |= (low == 0) & (high == 0)
    return np.where(free, wanted, found)


def check_float(
    gpu: Gpu,
    instruction: str,
    a: NDArray[Any],
    wanted: Ints,
    form: Format,
    canonical: bool = False,
    clamped: bool = False,
) -> None:
    dtype = f"u{form.width // 8}"
    found = run(gpu, instruction, {"a": a}, {"d": dtype}, TARGET)["d"]
    expected = bits(wanted, form.width)
    check(instruction, {"a": a}, same_float(form, canonical, clamped, found, expected), expected)


# --- integers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", INTEGERS)
def test_integer_to_integer(gpu: Gpu, source: str) -> None:
    """Extension by the source's type, truncation, .sat. Registers may be wider (9.4.1): a source's upper bits do not
    count, a destination's are zeros or signs by its type."""
    width = int(source[1:])
    for destination, sat in itertools.product(INTEGERS, ("", ".sat")):
        (low, high), (least, most) = limits(source), limits(destination)
        if sat and least <= low and high <= most:
            continue  # where nothing can saturate, .sat is not allowed
        out = int(destination[1:])
        for in_register, out_register in {
            (max(width, 16), max(out, 16)),
            (32 if width < 32 else 64, 32 if out < 32 else 64),
        }:
            a = integers(in_register)
            numbers = [wrap(source, n) for n in a]
            wanted = [clamp(destination, n) if sat else wrap(destination, n) for n in numbers]
            text = f"cvt{sat}.{destination}.{source} $d, $a;"
            operands = {"a": bits(a, in_register)}
            found = run(gpu, text, operands, {"d": f"u{out_register // 8}"}, TARGET)["d"]
            check(f"{text} ({in_register} to {out_register})", operands, found, bits(wanted, out_register))


@pytest.mark.parametrize("source", INTEGERS)
def test_integer_to_float(gpu: Gpu, source: str) -> None:
    """One rounding, overflow included; .sat gives [0, 1]."""
    register = max(int(source[1:]), 16)
    a = integers(register)
    numbers = [wrap(source, n) for n in a]
    for form, mode in itertools.product(FLOATS.values(), MODES):
        if form is BF16 and source in ("u8", "s8"):
            continue  # no such form in ptxas
        wanted = [round_to(form, Fraction(n), mode) for n in numbers]
        check_float(gpu, f"cvt.{mode}.{form.name}.{source} $d, $a;", bits(a, register), wanted, form)
    for form in (F16, F32, F64):
        wanted = [round_to(form, Fraction(min(max(n, 0), 1))) for n in numbers]
        check_float(gpu, f"cvt.rn.sat.{form.name}.{source} $d, $a;", bits(a, register), wanted, form)


def float_to_integer(form: Format, kind: str, mode: str, a: int) -> int:
    """Clamped; a NaN is 0, but 1 << (width - 1) where the source is f64 or the result of 64 bits."""
    if is_nan(form, a):
        return 1 << (int(kind[1:]) - 1) if form is F64 or kind[1:] == "64" else 0
    if is_inf(form, a):
        return limits(kind)[0 if negative(form, a) else 1]
    return clamp(kind, TO_INTEGER[mode](value(form, a)))


@pytest.mark.parametrize("source", FLOATS)
def test_float_to_integer(gpu: Gpu, source: str) -> None:
    """rni rzi rmi rpi; clamping whether or not .sat is there; .ftz makes a subnormal zero before it is rounded."""
    form = FLOATS[source]
    a = floats(form, near_integers())
    flushed = [flush(form, x) for x in a]
    operands = {"a": bits(a, form.width)}
    for kind, mode in itertools.product(INTEGERS, TO_INTEGER):
        if form is BF16 and kind in ("u8", "s8"):
            continue
        # ptxas takes .sat (redundant here) of f32 and f64 alone
        forms = ["", ".sat", ".ftz"] if form is F32 else ["", ".sat"] if mode == "rzi" and form is F64 else [""]
        for extra in forms:
            wanted = [
                wrap(kind, float_to_integer(form, kind, mode, x)) for x in (flushed if extra == ".ftz" else a)
            ]  # an 8-bit result is sign- or zero-extended
            width = max(int(kind[1:]), 16)
            text = f"cvt.{mode}{extra}.{kind}.{source} $d, $a;"
            check(text, operands, run(gpu, text, operands, {"d": f"u{width // 8}"}, TARGET)["d"], bits(wanted, width))


# --- floats -----------------------------------------------------------------------------------------------------------


def float_to_float(
    form: Format,
    into: Format,
    a: int,
    mode: str,
    ftz: bool = False,
    sat: bool = False,
    relu: bool = False,
    finite: bool = False,
) -> int:
    """By definition: flush, round (to an integer for rni and the like), flush, clamp."""
    if ftz and form is F32:
        a = flush(form, a)
    sign = negative(form, a)
    if is_nan(form, a):
        return 0 if sat else into.nan
    if is_inf(form, a):
        bound = into.greatest if finite else into.inf
        result = bound | (into.sign if sign else 0)
    else:
        exact = value(form, a)
        whole = mode in TO_INTEGER
        result = round_to(into, Fraction(TO_INTEGER[mode](exact)) if whole else exact, "rn" if whole else mode, sign)
        if finite and is_inf(into, result):
            result = into.greatest | (into.sign if sign else 0)
    if ftz and into is F32:
        result = flush(into, result)
    if sat:
        one = round_to(into, Fraction(1))
        return 0 if sign else min(result, one)
    return 0 if relu and sign else result


WIDENING = (("f16", "f32"), ("f16", "f64"), ("f32", "f64"), ("bf16", "f32"), ("bf16", "f64"), *((f, f) for f in FLOATS))
NARROWING = (
    ("f32", "f16"),
    ("f64", "f16"),
    ("f64", "f32"),
    ("f64", "bf16"),
    ("f32", "bf16"),
    ("f16", "bf16"),
    ("bf16", "f16"),
)


@pytest.mark.parametrize(("source", "into"), (*WIDENING, *NARROWING))
def test_float_to_float(gpu: Gpu, source: str, into: str) -> None:
    """Every rounding where one is due, .sat (not of bf16), .ftz where f32 takes part; same type: to integers."""
    form, target = FLOATS[source], FLOATS[into]
    a = floats(form, near_floats(target) if source != into else near_integers())
    if (source, into) == ("f64", "f32"):
        # Whether a result is tiny before or after its rounding is not said: not what rounds up to the least normal.
        a = [x for x in a if is_nan(form, x) or is_inf(form, x) or not 0 < 2**-126 - abs(value(form, x)) < 2**-149]
    if source == into:
        modes: tuple[str, ...] = ("rni", "rzi", "rmi", "rpi")
    elif (source, into) in NARROWING:
        modes = MODES
    else:
        modes = ("",)
    sat_modes = ("", ".sat") if "bf16" not in (source, into) else ("",)
    ftz_modes = ("", ".ftz") if "f32" in (source, into) else ("",)
    for mode, ftz, sat in itertools.product(modes, ftz_modes, sat_modes):
        wanted = [float_to_float(form, target, x, mode or "rn", bool(ftz), bool(sat)) for x in a]
        text = f"cvt{'.' if mode else ''}{mode}{ftz}{sat}.{into}.{source} $d, $a;"
        check_float(gpu, text, bits(a, form.width), wanted, target, clamped=bool(sat))


@pytest.mark.parametrize("into", ("f16", "bf16"))
def test_f32_to_half(gpu: Gpu, into: str) -> None:
    """.relu and .satfinite with canonical NaNs, alone and in pairs: the first source is the upper half."""
    target = FLOATS[into]
    a = floats(F32, near_floats(target))
    b = a[::-1]
    for mode, relu, finite in itertools.product(("rn", "rz"), ("", ".relu"), ("", ".satfinite")):
        one = [float_to_float(F32, target, x, mode, relu=bool(relu), finite=bool(finite)) for x in a]
        canonical = clamped = bool(relu)
        name = f"cvt.{mode}{relu}{finite}.{into}"
        check_float(gpu, f"{name}.f32 $d, $a;", bits(a, 32), one, target, canonical, clamped)
        operands = {"a": bits(a, 32), "b": bits(b, 32)}
        text = f"{name}x2.f32 $d, $a, $b;"
        found = run(gpu, text, operands, {"d": np.uint32}, TARGET)["d"]
        for half, wanted in ((found >> 16, one), (found & 0xFFFF, one[::-1])):
            expected = bits(wanted, 16)
            check(text, operands, same_float(target, canonical, clamped, half.astype(np.uint16), expected), expected)


TF32 = Format("tf32", 8, 10, 0x3FFFF)


@pytest.mark.parametrize("finite", ("", ".satfinite"))
def test_tf32(gpu: Gpu, finite: str) -> None:
    """.rna: to nearest, ties away from zero. What the 13 low bits hold is not defined (5.2.3)."""
    a = floats(F32, near_floats(TF32), random=400)
    wanted = []
    for x in a:
        magnitude = x & 0x7FFFFFFF
        if magnitude > F32.inf:
            wanted.append(TF32.nan)
            continue
        # Adding half of the last place and dropping the rest is rounding half away; its carry may reach infinity.
        rounded = min((magnitude + 0x1000) >> 13, TF32.inf)
        wanted.append((min(rounded, TF32.greatest) if finite else rounded) | (x >> 31) << 18)
    text = f"cvt.rna{finite}.tf32.f32 $d, $a;"
    operands = {"a": bits(a, 32)}
    found = run(gpu, text, operands, {"d": np.uint32}, TARGET)["d"] >> np.uint32(13)
    expected = bits(wanted, 32)
    check(text, operands, same_float(TF32, False, False, found, expected), expected)


# --- fp8 --------------------------------------------------------------------------------------------------------------


def fp8_value(kind: str, code: int) -> float:
    """OCP 8-bit formats (5.2.3): e4m3 has no infinity and one NaN a sign, e5m2 is as IEEE 754."""
    fraction, bias = (3, 7) if kind == "e4m3" else (2, 15)
    field, rest = (code & 0x7F) >> fraction, code & ((1 << fraction) - 1)
    sign = -1.0 if code & 0x80 else 1.0
    if kind == "e4m3" and code & 0x7F == 0x7F:
        return math.nan
    if kind == "e5m2" and field == 31:
        return math.nan if rest else sign * math.inf
    scale = 2.0 ** (max(field, 1) - bias - fraction)
    return sign * scale * (rest + (1 << fraction if field else 0))


def fp8_codes(kind: str, numbers: NDArray[np.float64], relu: bool) -> NDArray[np.uint32]:
    """To nearest even and finite; NaN is 0x7f."""
    greatest = 0x7E if kind == "e4m3" else 0x7B
    table = np.array([fp8_value(kind, code) for code in range(greatest + 1)])
    middles = (table[1:] + table[:-1]) / 2
    magnitude = np.abs(numbers)
    code = np.searchsorted(middles, magnitude, "left").astype(np.uint32)
    tie = (code < greatest) & (magnitude == middles[np.minimum(code, greatest - 1)])
    code += (tie & (code % 2 == 1)).astype(np.uint32)
    sign = np.signbit(numbers)
    code = np.where(sign, np.uint32(0) if relu else code | 0x80, code)
    return np.where(np.isnan(numbers), 0x7F, code).astype(np.uint32)


def check_fp8(
    text: str, operands: dict[str, NDArray[Any]], found: NDArray[Any], upper: Any, lower: Any, relu: bool
) -> None:
    found, expected = found.astype(np.uint32), (upper << 8 | lower).astype(np.uint32)
    if relu:
        for shift in (0, 8):  # a zero of either sign
            found = np.where(
                (found >> shift & 0xFF == 0x80) & (expected >> shift & 0xFF == 0), found ^ (0x80 << shift), found
            )
    check(text, operands, found, expected)


@pytest.mark.parametrize("kind", ("e4m3", "e5m2"))
@pytest.mark.parametrize("relu", ("", ".relu"))
def test_to_fp8(gpu: Gpu, kind: str, relu: str) -> None:
    """From pairs of f32 and from every f16; the first source, or the upper half, becomes the upper byte."""
    text = f"cvt.rn.satfinite{relu}.{kind}x2.f16x2 $d, $a;"
    every = np.arange(1 << 16, dtype=np.uint32)
    other = every * np.uint32(40503) & np.uint32(0xFFFF)
    codes = fp8_codes(kind, every.astype(np.uint16).view(np.float16).astype(np.float64), bool(relu))
    operands: dict[str, NDArray[Any]] = {"a": every << np.uint32(16) | other}
    found = run(gpu, text, operands, {"d": np.uint16}, TARGET)["d"]
    check_fp8(text, operands, found, codes[every], codes[other], bool(relu))

    values = [Fraction(fp8_value(kind, c)) for c in range(256) if math.isfinite(fp8_value(kind, c))]
    middles = [(x + y) / 2 for x, y in itertools.pairwise(sorted(values))]
    a = bits(floats(F32, [*values, *middles, Fraction(464), Fraction(-480), Fraction(61440)], random=400), 32)
    b = a[::-1].copy()
    text = f"cvt.rn.satfinite{relu}.{kind}x2.f32 $d, $a, $b;"
    with np.errstate(invalid="ignore"):
        codes = fp8_codes(kind, a.view(np.float32).astype(np.float64), bool(relu))
    operands = {"a": a, "b": b}
    found = run(gpu, text, operands, {"d": np.uint16}, TARGET)["d"]
    check_fp8(text, operands, found, codes, codes[::-1], bool(relu))


@pytest.mark.parametrize("kind", ("e4m3", "e5m2"))
@pytest.mark.parametrize("relu", ("", ".relu"))
def test_from_fp8(gpu: Gpu, kind: str, relu: str) -> None:
    """Every pair of bytes to f16x2, exactly."""
    values = np.array([fp8_value(kind, code) for code in range(256)])
    halves = values.astype(np.float16).view(np.uint16)
    if relu:
        halves = np.where(np.isnan(values), 0x7FFF, np.where(np.signbit(values), 0, halves)).astype(np.uint16)
    every = np.arange(1 << 16, dtype=np.uint16)
    text = f"cvt.rn{relu}.f16x2.{kind}x2 $d, $a;"
    found = run(gpu, text, {"a": every}, {"d": np.uint32}, TARGET)["d"]
    for half, code in ((found >> 16, every >> 8), (found & 0xFFFF, every & 0xFF)):
        wanted = halves[code]
        check(text, {"a": every}, same_float(F16, bool(relu), bool(relu), half.astype(np.uint16), wanted), wanted)


# --- packing, and the comparison itself -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ("u16", "s16", "u8", "s8", "u4", "s4", "u2", "s2"))
def test_cvt_pack(gpu: Gpu, kind: str) -> None:
    """9.7.9.22: a above b, both clamped; below 16 bits, c follows above them."""
    width = int(kind[1:])
    edge = [0, 1, -1, *limits(kind), limits(kind)[0] - 1, limits(kind)[1] + 1, (1 << 31) - 1, -(1 << 31), 100, -77, 5]
    pairs = list(itertools.product(edge, edge))
    generator = np.random.default_rng(width)
    operands = {"a": bits((p[0] for p in pairs), 32), "b": bits((p[1] for p in pairs), 32)}
    mask = (1 << width) - 1
    wanted = [(clamp(kind, a) & mask) << width | clamp(kind, b) & mask for a, b in pairs]
    if width < 16:
        operands["c"] = generator.integers(0, 1 << 32, len(pairs), np.uint32)
        wanted = [w | int(c) << (2 * width) for w, c in zip(wanted, operands["c"], strict=True)]
    text = f"cvt.pack.sat.{kind}.s32" + (".b32 $d, $a, $b, $c;" if width < 16 else " $d, $a, $b;")
    check(text, operands, run(gpu, text, operands, {"d": np.uint32}, TARGET)["d"], bits(wanted, 32))


def test_comparison_reports(gpu: Gpu) -> None:
    """One wrong bit, a NaN for a number, and a zero's sign are reported; another NaN payload is not."""
    a = bits([0x3F800001, 0x7F800001, 0x80000000], 32)
    right = [0x3FF0000020000000, F64.nan, 1 << 63]
    check_float(gpu, "cvt.f64.f32 $d, $a;", a, right, F64)
    check_float(gpu, "cvt.f64.f32 $d, $a;", a, [right[0], F64.nan | 5, right[2]], F64)
    for i, wrong in ((0, right[0] ^ 1), (0, F64.nan), (1, F64.inf), (2, 0)):
        with pytest.raises(AssertionError, match=r"cvt\.f64\.f32 .* instead of"):
            check_float(gpu, "cvt.f64.f32 $d, $a;", a, [*right[:i], wrong, *right[i + 1 :]], F64)
