"""f32 and f64 against PTX ISA 9.0, section 9.7.3, "Floating Point Instructions": one rounding, or the stated error."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from itertools import product

import numpy as np
import ptx_round as ieee
import pytest
from harness import Gpu
from ptx_case import FLOAT_EDGES, Bits, check, operands, run
from ptx_float_case import (
    DTYPES,
    TARGETS,
    Exact,
    accepted,
    adjusted,
    extreme,
    lanes,
    near,
    power,
    relative,
    saturate,
    sources,
    tangent,
    ulp,
    within,
)  # fmt: skip
from ptx_round import BF16, F16, F32, F64, FORMATS, MODES, Format

PI = 3.14159265358979


def hold(
    gpu: Gpu, instruction: str, of: Mapping[str, Bits], form: Format, function: Callable[..., int], target: str
) -> None:
    """Bit for bit. A NaN of f32 is canonical; one of f64 is quiet, and an operand's payload if there is one."""
    found = run(gpu, instruction, of, {"d": DTYPES[form.width]}, target)["d"]
    if form is F64:
        nan = np.isnan(found.view(np.float64))
        given = [np.isnan(array.view(np.float64)) for array in of.values()]
        quiet = [np.where(g, array | np.uint64(1 << 51), 0) for g, array in zip(given, of.values(), strict=True)]
        fresh = nan & ~np.logical_or.reduce(given)
        taken = np.logical_or.reduce([found == q for q in quiet])
        assert (taken | fresh)[nan].all(), f"{instruction}: a NaN with a payload of its own"
        assert ((found[nan] >> np.uint64(51)) & np.uint64(1) == 1).all(), f"{instruction}: a signalling NaN"
        found = np.where(nan, np.uint64(form.nan), found)
    check(instruction, of, found, lanes(of, function, form))


def reciprocal(form: Format, a: int, mode: str) -> int:
    return ieee.div(form, ((1 << form.exponent - 1) - 1) << form.fraction, a, mode)


EXACT: dict[str, tuple[Callable[..., int], int, bool]] = {
    # instruction: definition, operands, whether f32 has .sat
    "add": (ieee.add, 2, True),
    "sub": (ieee.sub, 2, True),
    "mul": (ieee.mul, 2, True),
    "fma": (ieee.fma, 3, True),
    "mad": (ieee.fma, 3, True),
    "div": (ieee.div, 2, False),
    "rcp": (reciprocal, 1, False),
    "sqrt": (ieee.sqrt, 1, False),
}


@pytest.mark.parametrize("type_", ["f32", "f64"])
@pytest.mark.parametrize("name", EXACT)
def test_exactly_rounded(gpu: Gpu, name: str, type_: str) -> None:
    """9.7.3.3 to 9.7.3.8, 9.7.3.13, 9.7.3.15: .rn .rz .rm .rp, .ftz, .sat; add, sub, mul also without a mode."""
    form = FORMATS[type_]
    function, arity, clamps = EXACT[name]
    of = sources(form, arity, 400 if arity < 3 else 300)
    if arity == 3:
        of = {key: array[::3] for key, array in of.items()}
    modes = [*MODES, ""] if name in ("add", "sub", "mul") else MODES
    for mode, ftz, sat in product(modes, [False, True], [False, True]):
        if (form is F64 and (ftz or sat)) or (sat and not clamps):
            continue
        suffix = f"{'.' * bool(mode)}{mode}{'.ftz' * ftz}{'.sat' * sat}.{type_}"
        text = f"{name}{suffix} " + ", ".join(f"${x}" for x in "dabc"[: arity + 1]) + ";"
        hold(gpu, text, of, form, adjusted(form, function, mode or "rn", ftz, sat), "sm_80")


@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma"])
def test_pairs_of_f32(card: Callable[..., Gpu], name: str) -> None:
    """9.7.3.3 to 9.7.3.6: .f32x2, two sums in a register of 64 bits, from sm_100."""
    gpu = card("sm_100")
    function, arity, _ = EXACT[name]
    low = {key: array[:: arity * arity] for key, array in sources(F32, arity).items()}
    low = {key: array[: len(array) // 2 * 2] for key, array in low.items()}
    both = {
        key: array.astype(np.uint64) | np.roll(array, 1).astype(np.uint64) << np.uint64(32)
        for key, array in low.items()
    }
    for mode, ftz in product(MODES, [False, True]):
        text = f"{name}.{mode}{'.ftz' * ftz}.f32x2 " + ", ".join(f"${x}" for x in "dabc"[: arity + 1]) + ";"
        found = run(gpu, text, both, {"d": np.uint64}, "sm_100")["d"]
        expected = lanes(low, adjusted(F32, function, mode, ftz), F32).astype(np.uint64)
        check(text, both, found, expected | np.roll(expected, 1) << np.uint64(32))


@pytest.mark.parametrize("type_", ["f16", "bf16"])
@pytest.mark.parametrize("name", ["add", "sub", "fma"])
def test_mixed_precision(card: Callable[..., Gpu], name: str, type_: str) -> None:
    """9.7.5, "Mixed Precision Floating Point Instructions": f16 or bf16 operands, an f32 sum, from sm_100."""
    gpu = card("sm_100")
    form = FORMATS[type_]
    arity = EXACT[name][1]
    narrow = [form.width] * (arity - 1)
    arrays = [array[:: arity - 1] for array in operands([*narrow, 32], FLOAT_EDGES, 600)]
    of = dict(zip("abc" if arity == 3 else "ac", arrays, strict=True))

    def widened(bits: int) -> int:
        if ieee.is_nan(form, bits):
            return F32.nan
        if ieee.is_inf(form, bits):
            return F32.inf | (F32.sign if ieee.negative(form, bits) else 0)
        return ieee.round_to(F32, ieee.value(form, bits), "rn", ieee.negative(form, bits))

    def exact(*bits: int) -> int:
        return EXACT[name][0](F32, *map(widened, bits[:-1]), bits[-1], mode)

    for mode, sat in product(MODES, [False, True]):
        text = f"{name}.{mode}{'.sat' * sat}.f32.{type_} $d, {', '.join(f'${x}' for x in of)};"
        found = run(gpu, text, of, {"d": np.uint32}, "sm_100")["d"]
        check(text, of, found, lanes(of, lambda *b, s=sat: saturate(F32, exact(*b)) if s else exact(*b), F32))


@pytest.mark.parametrize("name", ["min", "max"])
def test_extremes(gpu: Gpu, name: str) -> None:
    """9.7.3.11 and 9.7.3.12: .ftz, .NaN, .xorsign.abs."""
    of = sources(F32, 2)
    for ftz, nan, xorsign in product([False, True], repeat=3):
        text = f"{name}{'.ftz' * ftz}{'.NaN' * nan}{'.xorsign.abs' * xorsign}.f32 $d, $a, $b;"
        function = adjusted(F32, extreme(F32, name == "max", nan, xorsign, xorsign), "", ftz)
        hold(gpu, text, of, F32, function, "sm_86")
    of = sources(F64, 2)
    hold(
        gpu,
        f"{name}.f64 $d, $a, $b;",
        of,
        F64,
        adjusted(F64, extreme(F64, name == "max", False, False, False)),
        "sm_80",
    )


@pytest.mark.parametrize("name", ["min", "max"])
def test_extremes_of_three(card: Callable[..., Gpu], name: str) -> None:
    """9.7.3.11 and 9.7.3.12: three operands, .ftz, .NaN, .abs, from sm_100."""
    gpu = card("sm_100")
    of = {key: array[::2] for key, array in sources(F32, 3).items()}
    for ftz, nan, absolute in product([False, True], repeat=3):
        text = f"{name}{'.ftz' * ftz}{'.NaN' * nan}{'.abs' * absolute}.f32 $d, $a, $b, $c;"
        function = adjusted(F32, extreme(F32, name == "max", nan, False, absolute), "", ftz)
        hold(gpu, text, of, F32, function, "sm_100")


@pytest.mark.parametrize("form", [F32, F64], ids=lambda form: form.name)
def test_signs(gpu: Gpu, form: Format) -> None:
    """9.7.3.2, 9.7.3.9, 9.7.3.10: copysign (of the first operand onto the second), abs, neg; their NaN is any NaN."""
    of = sources(form, 2)
    text = f"copysign.{form.name} $d, $a, $b;"
    dtype = DTYPES[form.width]
    expected = of["a"] & dtype(form.sign) | of["b"] & dtype(form.sign - 1)
    check(text, of, run(gpu, text, of, {"d": dtype})["d"], expected)
    one = {"a": of["a"]}
    for name, ftz in product(["abs", "neg"], [False, True] if form is F32 else [False]):
        text = f"{name}{'.ftz' * ftz}.{form.name} $d, $a;"

        def exact(_: Format, bits: int, name: str = name) -> int:
            if ieee.is_nan(form, bits):
                return form.nan
            return bits & ~form.sign if name == "abs" else bits ^ form.sign

        found = run(gpu, text, one, {"d": dtype})["d"]
        found = np.array([form.nan if ieee.is_nan(form, int(x)) else x for x in found], dtype)
        check(text, one, found, lanes(one, adjusted(form, exact, "", ftz), form))


@pytest.mark.parametrize("form", [F32, F64], ids=lambda form: form.name)
def test_testp(gpu: Gpu, form: Format) -> None:
    """9.7.3.1: a zero is a normal number."""
    of = {"a": sources(form, 1)["a"]}
    kinds: dict[str, Callable[[int], bool]] = {
        "finite": lambda x: x & ~form.sign < form.inf,
        "infinite": lambda x: ieee.is_inf(form, x),
        "number": lambda x: not ieee.is_nan(form, x),
        "notanumber": lambda x: ieee.is_nan(form, x),
        "normal": lambda x: x & ~form.sign < form.inf and not ieee.is_subnormal(form, x),
        "subnormal": lambda x: ieee.is_subnormal(form, x),
    }
    for kind, function in kinds.items():
        text = f"testp.{kind}.{form.name} $d, $a;"
        check(text, of, run(gpu, text, of, {"d": np.bool_})["d"], np.array([function(int(x)) for x in of["a"]]))


# --- approximations ---------------------------------------------------------------------------------------------------


def _inverse(x: Exact) -> Exact:
    if isinstance(x, float):
        return math.copysign(math.inf if x == 0 else 0.0, x)
    return 1 / x


def _root(x: Exact) -> Exact:
    if isinstance(x, float):
        return math.nan if x == -math.inf else x
    # An even power of two apart: the numerator's root with 40 bits more than a double has.
    return Fraction(math.isqrt((x.numerator << 1400) // x.denominator), 1 << 700) if x > 0 else math.nan


def _inverse_root(x: Exact) -> Exact:
    root = _root(x)
    return root if isinstance(root, float) and math.isnan(root) else _inverse(root)


def _log(x: Exact) -> Exact:
    if x == 0:
        return -math.inf
    return x if x == math.inf else math.nan if x < 0 else math.log2(x)


def _sine(x: Exact) -> Exact | None:
    if isinstance(x, float) and x == 0:
        return x
    return math.nan if math.isinf(x) else math.sin(x) if abs(x) <= 100 * PI else None


def _cosine(x: Exact) -> Exact | None:
    return math.nan if math.isinf(x) else math.cos(x) if abs(x) <= 100 * PI else None


def ulps(count: int) -> Callable[..., Fraction]:
    return lambda exact, *_: count * ulp(F32, exact)


def circular(exact: Fraction, x: Exact) -> Fraction:
    return Fraction(2.0**-20.5 if abs(x) <= 2 * PI else 2.0**-14.7)


def logarithmic(exact: Fraction, x: Exact) -> Fraction:
    return Fraction(2.0**-22) * (1 if 0.5 < x < 2 else abs(exact))


APPROXIMATE: dict[str, tuple[Callable[..., Exact | None], Callable[..., Fraction]]] = {
    "rcp": (_inverse, ulps(1)),
    "sqrt": (_root, relative(-23)),
    "rsqrt": (_inverse_root, relative(-22.9)),
    "ex2": (power, ulps(2)),
    "lg2": (_log, logarithmic),
    "sin": (_sine, circular),
    "cos": (_cosine, circular),
    "tanh": (tangent, relative(-11)),
}


def spread(form: Format) -> Bits:
    """Edges, random bits, and values in the ranges that functions are used in."""
    random = np.random.default_rng(5)
    some = [random.uniform(-w, w, 150) for w in (0.01, 2, 2 * PI, 160, 300)]
    if form is F64:
        return np.concatenate([sources(F64, 1)["a"], np.concatenate(some).view(np.uint64)])
    return np.concatenate([sources(F32, 1)["a"], np.concatenate(some).astype(np.float32).view(np.uint32)])


@pytest.mark.parametrize("name", APPROXIMATE)
def test_approximations(gpu: Gpu, name: str) -> None:
    """9.7.3.13 to 9.7.3.21: the stated maximum error, and the tables of special values."""
    of = {"a": spread(F32)}
    exact, error = APPROXIMATE[name]
    for ftz in [False, True] if name != "tanh" else [False]:
        text = f"{name}.approx{'.ftz' * ftz}.f32 $d, $a;"
        near(text, F32, of, run(gpu, text, of, {"d": np.uint32})["d"], exact, error, ftz)


def _quotient(x: Exact, y: Exact) -> Exact:
    sign = math.copysign(1, x) * math.copysign(1, y)
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return x / y
    if x == 0 or (isinstance(y, float) and math.isinf(y)):
        bad = x == y == 0 or (isinstance(x, float) and math.isinf(x))
        return math.nan if bad else 0.0 * sign
    return math.inf * sign


@pytest.mark.parametrize("kind", ["approx", "full"])
def test_approximate_division(gpu: Gpu, kind: str) -> None:
    """9.7.3.8: 2 ulp; .approx only for 2**-126 <= |b| <= 2**126: above it the quotient is 0, or NaN of an infinity."""

    def exact(x: Exact, y: Exact) -> Exact | None:
        if kind == "approx" and isinstance(y, Fraction) and abs(y) < Fraction(2) ** -126:
            return None
        return _quotient(x, y)

    of = sources(F32, 2)
    size = of["b"] & np.uint32(0x7FFFFFFF)
    large = (size > 0x7E800000) & (size < F32.inf) if kind == "approx" else np.zeros(len(size), np.bool_)
    for ftz in [False, True]:
        text = f"div.{kind}{'.ftz' * ftz}.f32 $d, $a, $b;"
        found = run(gpu, text, of, {"d": np.uint32})["d"]
        near(text, F32, {k: v[~large] for k, v in of.items()}, found[~large], exact, ulps(2), ftz)
        for a, d in zip(of["a"][large], found[large], strict=True):
            finite = int(a) & ~F32.sign < F32.inf
            assert ieee.is_zero(F32, int(d)) if finite else ieee.is_nan(F32, int(d)), f"{text} of {int(a):#x} by much"


@pytest.mark.parametrize("name", ["rcp", "rsqrt"])
def test_gross_approximations_of_f64(gpu: Gpu, name: str) -> None:
    """9.7.3.14 and 9.7.3.17: 20 bits of mantissa go in and come out, the lower word is zero."""
    of = {"a": spread(F64)}
    text = f"{name}.approx.ftz.f64 $d, $a;"
    found = run(gpu, text, of, {"d": np.uint64})["d"]
    assert (found & np.uint64(0xFFFFFFFF) == 0).all(), text
    # A NaN is one by its upper word, too; a subnormal is a zero.
    near(text, F64, of, found, APPROXIMATE[name][0], relative(-19), True)


def test_rsqrt_of_f64(gpu: Gpu) -> None:
    """9.7.3.16: subnormals are supported; no error is stated, and 2 ulp are what a program counts on."""
    of = {"a": spread(F64)}
    text = "rsqrt.approx.f64 $d, $a;"
    near(text, F64, of, run(gpu, text, of, {"d": np.uint64})["d"], _inverse_root, relative(-51), False)


def test_target(card: Callable[..., Gpu]) -> None:
    """Each instruction's "Target ISA Notes"."""
    gpu = card("sm_100")
    mixed = {"a": 16, "b": 16, "c": 32, "d": 32}
    for instruction, widths, first in (
        ("add.rn.f32x2 $d, $a, $b;", 64, 100),
        ("mul.f32x2 $d, $a, $b;", 64, 100),
        ("fma.rz.ftz.f32x2 $d, $a, $b, $c;", 64, 100),
        ("min.f32 $d, $a, $b, $c;", 32, 100),
        ("max.xorsign.abs.f32 $d, $a, $b;", 32, 86),
        ("max.NaN.f32 $d, $a, $b;", 32, 80),
        ("add.f32.f16 $d, $a, $c;", mixed, 100),
        ("fma.rm.f32.bf16 $d, $a, $b, $c;", mixed, 100),
        ("tanh.approx.f32 $d, $a;", 32, 75),
    ):
        found = [target for target in TARGETS if accepted(gpu, instruction, widths, target)]
        assert found == [target for target in TARGETS if target >= first], instruction


def test_no_such_form(card: Callable[..., Gpu]) -> None:
    """What each instruction's "Syntax" leaves out is an error, not a guess."""
    gpu = card("sm_100")
    for instruction, width in (
        ("div.f32 $d, $a, $b;", 32),  # a rounding is needed
        ("fma.f32 $d, $a, $b, $c;", 32),
        ("mad.f64 $d, $a, $b, $c;", 64),
        ("sqrt.f32 $d, $a;", 32),
        ("sin.f32 $d, $a;", 32),  # .approx is needed
        ("div.full.rn.f32 $d, $a, $b;", 32),
        ("div.rn.sat.f32 $d, $a, $b;", 32),
        ("tanh.approx.ftz.f32 $d, $a;", 32),
        ("add.ftz.f64 $d, $a, $b;", 64),
        ("add.sat.f64 $d, $a, $b;", 64),
        ("rcp.approx.f64 $d, $a;", 64),  # only with .ftz
        ("min.NaN.f64 $d, $a, $b;", 64),
        ("min.xorsign.f32 $d, $a, $b;", 32),  # .abs belongs to it, and it to two operands
        ("min.abs.f32 $d, $a, $b;", 32),
        ("min.xorsign.abs.f32 $d, $a, $b, $c;", 32),
        ("add.rn.sat.f32x2 $d, $a, $b;", 64),
        ("div.rn.f32x2 $d, $a, $b;", 64),
        ("mul.rn.f32.f16 $d, $a, $b;", {"a": 16, "b": 32, "d": 32}),
    ):
        assert not accepted(gpu, instruction, width, 100), instruction


# --- the tests' own means ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [F16, BF16, F32, F64], ids=lambda form: form.name)
def test_rounding_helper(form: Format) -> None:
    """A value rounds to itself; rm and rp are its neighbours, rz the lesser, rn the nearer; numpy agrees."""
    bits = [int(x) & ~form.sign for x in sources(form, 1)["a"]]
    for low in (x for x in bits if x < form.greatest):
        a, b = ieee.value(form, low), ieee.value(form, low + 1)
        assert {ieee.round_to(form, a, mode) for mode in MODES} == {low}
        for part in (Fraction(1, 1000), Fraction(1, 2), Fraction(999, 1000)):
            x = a + (b - a) * part
            nearest = low + (low & 1 if part == Fraction(1, 2) else part > Fraction(1, 2))
            assert [ieee.round_to(form, x, mode) for mode in MODES] == [nearest, low, low, low + 1]
            minus = [nearest, low, low + 1, low]
            assert [ieee.round_to(form, -x, mode) for mode in MODES] == [form.sign | y for y in minus]
        if low:
            below, above = (ieee.value(form, ieee.sqrt(form, low, mode)) for mode in ("rm", "rp"))
            assert below * below <= a <= above * above
    assert [ieee.round_to(form, Fraction(10) ** 999, m) & 1 for m in MODES] == [form.inf & 1, 1, 1, form.inf & 1]


def test_a_wrong_value_is_reported(gpu: Gpu) -> None:
    """One bit, one ulp too many, one special value: each is found, and said with its operands."""
    of = {"a": np.array([0x3F800000, 0x40000000], np.uint32), "b": np.array([0x3F800001, 0x34000000], np.uint32)}
    with pytest.raises(AssertionError, match=r"a = 0x40000000, b = 0x34000000.*0 more of 2"):
        check(
            "add",
            of,
            lanes(of, lambda a, b: ieee.add(F32, a, b) ^ (a == 0x40000000), F32),
            lanes(of, lambda a, b: ieee.add(F32, a, b), F32),
        )
    with pytest.raises(AssertionError, match=r"add\.rn\.f32"):
        hold(gpu, "add.rn.f32 $d, $a, $b;", of, F32, adjusted(F32, ieee.add, "rp"), "sm_80")
    third = Fraction(1, 3)
    right = ieee.round_to(F32, third)
    assert within(F32, right, third, ulp(F32, third), False)
    assert not within(F32, right + 2, third, ulp(F32, third), False)
    assert not within(F32, F32.sign, 0.0, Fraction(0), False)
    assert not within(F32, F32.nan, math.inf, Fraction(0), False)
    with pytest.raises(AssertionError, match=r"about 0\.5"):
        near("rcp", F32, {"a": of["a"][1:]}, np.array([0x3F000002], np.uint32), _inverse, ulps(1), False)
