"""IEEE arithmetic by definition: a bit pattern's exact value, and an exact value's bit pattern after one rounding.

    value(F32, bits)                    a Fraction; of finite numbers
    round_to(F32, Fraction(1, 3), "rn") the bits; the overflow goes where the rounding mode sends it
    round_sqrt(F64, Fraction(2), "rp")  the square root, likewise with one rounding

Nothing here knows the virtual GPU. An operation on special values is its caller's business, except for `add`, `mul`,
`fma`, `div` and `sqrt`, which have all of IEEE 754: signed zeros, infinities, invalid operations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache


@dataclass(frozen=True)
class Format:
    """A sign, `exponent` bits and `fraction` bits, as in IEEE 754: the top exponent is for infinities and NaNs."""

    name: str
    exponent: int
    fraction: int
    nan: int
    """The NaN that an operation gives."""

    @property
    def width(self) -> int:
        return 1 + self.exponent + self.fraction

    @property
    def sign(self) -> int:
        return 1 << (self.width - 1)

    @property
    def inf(self) -> int:
        return ((1 << self.exponent) - 1) << self.fraction

    @property
    def greatest(self) -> int:
        """The bits of the greatest finite number."""
        return self.inf - 1

    @property
    def least_exponent(self) -> int:
        """Of the last place of subnormals."""
        return 2 - (1 << (self.exponent - 1)) - self.fraction


F16 = Format("f16", 5, 10, 0x7FFF)
BF16 = Format("bf16", 8, 7, 0x7FFF)
F32 = Format("f32", 8, 23, 0x7FFFFFFF)
F64 = Format("f64", 11, 52, 0x7FF8000000000000)
FORMATS = {f.name: f for f in (F16, BF16, F32, F64)}

MODES = ("rn", "rz", "rm", "rp")


def is_nan(form: Format, bits: int) -> bool:
    return bits & ~form.sign > form.inf


def is_inf(form: Format, bits: int) -> bool:
    return bits & ~form.sign == form.inf


def is_zero(form: Format, bits: int) -> bool:
    return bits & ~form.sign == 0


def is_subnormal(form: Format, bits: int) -> bool:
    return 0 < bits & ~form.sign < 1 << form.fraction


def negative(form: Format, bits: int) -> bool:
    return bits & form.sign != 0


def flush(form: Format, bits: int) -> int:
    """A subnormal to the zero of its sign."""
    return bits & form.sign if is_subnormal(form, bits) else bits


@lru_cache(maxsize=1 << 16)
def scaled(form: Format, bits: int) -> tuple[int, int]:
    """A finite number as (m, e), exactly m * 2**e."""
    magnitude = bits & ~form.sign
    field, rest = magnitude >> form.fraction, magnitude & ((1 << form.fraction) - 1)
    if magnitude >= form.inf:
        raise ValueError(f"{bits:#x} is no finite {form.name}")
    m = rest | (1 << form.fraction if field else 0)
    return (-m if negative(form, bits) else m), form.least_exponent + max(field, 1) - 1


@lru_cache(maxsize=1 << 16)
def value(form: Format, bits: int) -> Fraction:
    """Of a finite number, exactly."""
    m, e = scaled(form, bits)
    return Fraction(m << e) if e >= 0 else Fraction(m, 1 << -e)


def _log2(exact: Fraction) -> int:
    """The k with 2**k <= exact < 2**(k + 1); exact > 0."""
    k = exact.numerator.bit_length() - exact.denominator.bit_length()
    n, d = exact.numerator, exact.denominator
    return k if (n >= d << k if k >= 0 else n << -k >= d) else k - 1


def _finish(form: Format, sign: bool, units: int, rest: int, e: int, mode: str) -> int:
    """units * 2**e and `rest` above it (-1 none, 0 less than half a unit, 1 half, 2 more) as bits; e is that of the
    last place, so units < 2**(fraction + 1)."""
    up = {"rn": rest == 2 or (rest == 1 and units & 1 == 1), "rz": False, "rm": sign, "rp": not sign}[mode]
    units += rest >= 0 and up
    # A carry out of the fraction goes on into the exponent: the encoding is monotonic.
    bits = units + ((e - form.least_exponent) << form.fraction)
    if bits >= form.inf:
        bits = form.inf if up or mode == "rn" else form.greatest
    return bits | (form.sign if sign else 0)


def round_to(form: Format, exact: Fraction, mode: str = "rn", negative_zero: bool = False) -> int:
    """The bits of an exact value after one rounding.

    Args:
        mode: rn to nearest even, rz to zero, rm down, rp up.
        negative_zero: the sign of an exact zero.
    """
    if exact == 0:
        return form.sign if negative_zero else 0
    sign, magnitude = exact < 0, abs(exact)
    e = max(_log2(magnitude) - form.fraction, form.least_exponent)
    if e - form.least_exponent >= (1 << form.exponent) - 2:
        # Past the greatest by more than one binade.
        e = form.least_exponent + (1 << form.exponent) - 3
        return _finish(form, sign, (2 << form.fraction) - 1, 2, e, mode)
    n, d = magnitude.numerator, magnitude.denominator
    n, d = (n, d << e) if e >= 0 else (n << -e, d)
    units, remainder = divmod(n, d)
    half = (2 * remainder > d) - (2 * remainder < d)
    return _finish(form, sign, units, half + 1 if remainder else -1, e, mode)


def round_sqrt(form: Format, exact: Fraction, mode: str = "rn") -> int:
    """The bits of the square root of a positive exact value after one rounding."""
    # As an integer root with many bits more than the format has, and one sticky bit below them.
    shift = 2 * (2 * form.fraction + form.width) + 2 * max(-_log2(exact), 0)
    scaled_up = (exact.numerator << shift) // exact.denominator
    root = math.isqrt(scaled_up)
    sticky = root * root != scaled_up or (exact.numerator << shift) % exact.denominator != 0
    return round_to(form, Fraction(2 * root + sticky, 2 << (shift // 2)), mode)


def fma(form: Format, a: int, b: int, c: int, mode: str = "rn") -> int:
    """a * b + c with one rounding."""
    if is_nan(form, a) or is_nan(form, b) or is_nan(form, c):
        return form.nan
    sign = negative(form, a) != negative(form, b)
    if is_inf(form, a) or is_inf(form, b):
        if is_zero(form, a) or is_zero(form, b) or (is_inf(form, c) and negative(form, c) != sign):
            return form.nan
        return form.inf | (form.sign if sign else 0)
    if is_inf(form, c):
        return c
    product_zero = is_zero(form, a) or is_zero(form, b)
    exact = value(form, a) * value(form, b) + value(form, c)
    if product_zero and is_zero(form, c) and sign == negative(form, c):
        return round_to(form, exact, mode, sign)
    # Zeros of two signs, or a sum that cancels: +0, and -0 where the rounding is down.
    return round_to(form, exact, mode, mode == "rm")


def add(form: Format, a: int, b: int, mode: str = "rn") -> int:
    one = ((1 << (form.exponent - 1)) - 1) << form.fraction
    return fma(form, a, one, b, mode)


def sub(form: Format, a: int, b: int, mode: str = "rn") -> int:
    return add(form, a, b if is_nan(form, b) else b ^ form.sign, mode)


def mul(form: Format, a: int, b: int, mode: str = "rn") -> int:
    if is_nan(form, a) or is_nan(form, b):
        return form.nan
    sign = form.sign if negative(form, a) != negative(form, b) else 0
    if is_inf(form, a) or is_inf(form, b):
        return form.nan if is_zero(form, a) or is_zero(form, b) else form.inf | sign
    return round_to(form, value(form, a) * value(form, b), mode, sign != 0)


def div(form: Format, a: int, b: int, mode: str = "rn") -> int:
    if is_nan(form, a) or is_nan(form, b):
        return form.nan
    sign = form.sign if negative(form, a) != negative(form, b) else 0
    if is_inf(form, a) or is_zero(form, b):
        invalid = is_inf(form, b) if is_inf(form, a) else is_zero(form, a)
        return form.nan if invalid else form.inf | sign
    if is_inf(form, b):
        return sign
    return round_to(form, value(form, a) / value(form, b), mode, sign != 0)


def sqrt(form: Format, a: int, mode: str = "rn") -> int:
    if is_nan(form, a):
        return form.nan
    if is_zero(form, a):
        return a
    if negative(form, a):
        return form.nan
    return a if is_inf(form, a) else round_sqrt(form, value(form, a), mode)
