"""What tests of floating-point instructions share: operands, the modifiers' meaning, results within an error."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction

import numpy as np
import ptx_round as ieee
from harness import DriverError, Gpu
from ptx_case import FLOAT_EDGES, Bits, kernel_text, operands
from ptx_round import BF16, Format

DTYPES = {16: np.uint16, 32: np.uint32, 64: np.uint64}

BF16_EDGES = [
    0, 0x8000, 1, 0x8001, 0x7F, 0x80, 0x8080, 0x3F80, 0xBF80, 0x3F81, 0x4000, 0x3B80, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80,
    0x7FC0, 0x7F81, 0xFFFF,
]  # fmt: skip
"""As FLOAT_EDGES, which are those of f16 where 16 bits are meant."""


def sources(form: Format, arity: int, count: int = 400) -> dict[str, Bits]:
    """Edges and random bits, and numbers close enough to each other for sums to cancel, products to round."""
    random = np.random.default_rng(arity)
    edges = {16: BF16_EDGES} if form is BF16 else FLOAT_EDGES
    arrays = [list(map(int, array)) for array in operands([form.width] * arity, edges, count, seed=arity)]
    if arity > 1:
        for _ in range(count):
            few = [int(x) for x in random.integers(-3, 4, 3)]
            a, b, c = (int(x) for x in random.integers(0, 1 << form.width - 1, 3, dtype=np.uint64))
            middle = ((1 << form.exponent - 1) - 1) << form.fraction
            if arity == 2:
                b = (a & form.inf) + (few[0] << form.fraction) | b & ~form.inf if few[1] else a + few[0] ^ form.sign
            else:
                a, b = (x & ~form.inf | middle + (few[0] << form.fraction) for x in (a, b))
                c = (ieee.mul(form, a, b) + few[2]) ^ form.sign
            for array, bits in zip(arrays, (a, b, c), strict=False):
                array.append(bits & (2 * form.sign - 1))
    return {name: np.array(array, DTYPES[form.width]) for name, array in zip("abc", arrays, strict=False)}


def lanes(of: Mapping[str, Bits], function: Callable[..., int], form: Format) -> Bits:
    return np.array([function(*map(int, row)) for row in zip(*of.values(), strict=True)], DTYPES[form.width])


def saturate(form: Format, bits: int) -> int:
    """Clamped to [0.0, 1.0], a NaN to +0.0."""
    one = ((1 << form.exponent - 1) - 1) << form.fraction
    return 0 if ieee.is_nan(form, bits) or ieee.negative(form, bits) else min(bits, one)


def adjusted(
    form: Format, function: Callable[..., int], mode: str = "", ftz: bool = False, sat: bool = False
) -> Callable[..., int]:
    """Subnormal operands and results to zeros of their sign, and the result saturated."""

    def whole(*bits: int) -> int:
        bits = tuple(ieee.flush(form, b) for b in bits) if ftz else bits
        result = function(form, *bits, mode) if mode else function(form, *bits)
        result = ieee.flush(form, result) if ftz else result
        return saturate(form, result) if sat else result

    return whole


def extreme(form: Format, greater: bool, nan: bool, xorsign: bool, absolute: bool) -> Callable[..., int]:
    """min or max: a number rather than a NaN unless .NaN, and -0.0 less than +0.0."""

    def key(bits: int) -> int:
        return ~(bits & ~form.sign) if ieee.negative(form, bits) else bits

    def two(_: Format, a: int, b: int) -> int:
        sign = (a ^ b) & form.sign
        a, b = (x & ~form.sign if absolute else x for x in (a, b))
        missing = [ieee.is_nan(form, x) for x in (a, b)]
        if all(missing) or (nan and any(missing)):
            return form.nan
        numbers = [x for x, gone in zip((a, b), missing, strict=True) if not gone]
        result = (max if greater else min)(numbers, key=key)
        return result & ~form.sign | sign if xorsign else result

    def fold(_: Format, first: int, *rest: int) -> int:
        for bits in rest:
            first = two(form, first, bits)
        return first

    return fold


Exact = Fraction | float
"""A Fraction; or an infinity, a NaN, a signed zero."""


def exact_of(form: Format, bits: int) -> Exact:
    if ieee.is_nan(form, bits):
        return math.nan
    if ieee.is_inf(form, bits):
        return -math.inf if ieee.negative(form, bits) else math.inf
    if ieee.is_zero(form, bits):
        return -0.0 if ieee.negative(form, bits) else 0.0
    return ieee.value(form, bits)


def ulp(form: Format, exact: Fraction) -> Fraction:
    place = math.frexp(exact)[1] - 1 if exact else -2000
    return Fraction(2) ** max(place - form.fraction, form.least_exponent)


def within(form: Format, found: int, exact: Exact, error: Fraction, ftz: bool) -> bool:
    """Whether the bits are a special value itself, or no further from a number than the error."""
    if isinstance(exact, float) and (exact == 0 or not math.isfinite(exact)):
        if math.isnan(exact):
            return ieee.is_nan(form, found)
        sign = form.sign if math.copysign(1, exact) < 0 else 0
        return found == sign | (form.inf if exact else 0)
    exact = Fraction(exact)
    if ieee.is_nan(form, found):
        return False
    least_normal = Fraction(2) ** (form.least_exponent + form.fraction)
    if ftz and ieee.is_subnormal(form, found):
        return False
    if ftz and ieee.is_zero(form, found) and abs(exact) - error < least_normal:
        return ieee.negative(form, found) == (exact < 0)
    if ieee.is_inf(form, found):
        greatest = ieee.value(form, form.greatest)
        return abs(exact) + error > greatest and ieee.negative(form, found) == (exact < 0)
    return abs(ieee.value(form, found) - exact) <= max(error, ulp(form, Fraction(0)))


def near(
    text: str, form: Format, of: Mapping[str, Bits], found: Bits, exact: Callable[..., Exact | None],
    error: Callable[..., Fraction], ftz: bool,
) -> None:  # fmt: skip
    """Every result within its error; None where anything will do.

    Args:
        exact: of the operands (special values are floats).
        error: of the exact result, and of the operands.
    """
    for i, row in enumerate(zip(*of.values(), strict=True)):
        values = [exact_of(form, ieee.flush(form, int(bits)) if ftz else int(bits)) for bits in row]
        wanted = math.nan if any(isinstance(x, float) and math.isnan(x) for x in values) else exact(*values)
        if wanted is None:
            continue
        special = isinstance(wanted, float) and (wanted == 0 or not math.isfinite(wanted))
        allowed = Fraction(0) if special else error(Fraction(wanted), *values)
        assert within(form, int(found[i]), wanted, allowed, ftz), (
            f"{text} with {', '.join(hex(int(b)) for b in row)}: {int(found[i]):#x} instead of about {float(wanted)!r}"
        )


def power(x: Exact) -> Exact:
    if x == -math.inf or x < -3000:
        return Fraction(2) ** -3000 if math.isfinite(x) else 0.0
    return math.inf if x > 1000 else Fraction(2.0 ** float(x) if x > -1000 else 0) or Fraction(2) ** -1000


def tangent(x: Exact) -> Exact:
    if isinstance(x, float):
        return x if x == 0 else math.copysign(1.0, x)
    return x if abs(x) < Fraction(1, 1 << 40) else math.tanh(x)


def relative(exponent: float) -> Callable[..., Fraction]:
    return lambda exact, *_: Fraction(2.0**exponent) * abs(exact)


TARGETS = [75, 80, 86, 90, 100]


def accepted(gpu: Gpu, instruction: str, widths: int | dict[str, int], target: int) -> bool:
    """Whether a module for sm_<target> may have the instruction, of operands $a, $b, $c and $d in these widths."""
    names = re.findall(r"\$(\w)", instruction)
    registers = widths if isinstance(widths, dict) else dict.fromkeys(names, widths)
    into = {"d": registers["d"]}
    text = kernel_text(instruction, {n: registers[n] for n in names if n != "d"}, into, f"sm_{target}", True)
    try:
        gpu.module(text)
    except DriverError as error:
        assert re.search("unknown form|unknown instruction|number of operands", str(error)), error
        return False
    return True
