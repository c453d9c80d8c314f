"""f16, f16x2, bf16 and bf16x2 against PTX ISA 9.0, section 9.7.4, "Half Precision Floating Point Instructions"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from itertools import product

import numpy as np
import ptx_round as ieee
import pytest
from harness import Gpu
from ptx_case import Bits, check, run
from ptx_float_case import TARGETS, Exact, accepted, adjusted, extreme, lanes, near, power, sources, tangent
from ptx_round import BF16, F16, Format

FORMS = [F16, BF16]
PACKED = [False, True]


def both(array: Bits) -> Bits:
    """Each element below the one before it: the halves of a register have nothing to do with each other."""
    return array.astype(np.uint32) | np.roll(array, 1).astype(np.uint32) << np.uint32(16)


def found_by(
    gpu: Gpu, opcode: str, of: Mapping[str, Bits], form: Format, packed: bool, target: str
) -> tuple[str, Bits]:
    """The instruction, and its results as 16 bits each; both halves of a packed one have to agree."""
    text = f"{opcode}.{form.name}{'x2' * packed} $d, {', '.join(f'${name}' for name in of)};"
    if not packed:
        return text, run(gpu, text, of, {"d": np.uint16}, target)["d"]
    registers = run(gpu, text, {name: both(array) for name, array in of.items()}, {"d": np.uint32}, target)["d"]
    low, high = registers.astype(np.uint16), (registers >> np.uint32(16)).astype(np.uint16)
    check(f"{text} (upper half)", of, np.roll(high, -1), low)
    return text, low


def hold(
    gpu: Gpu, opcode: str, of: Mapping[str, Bits], form: Format, packed: bool, function: Callable[..., int], target: str
) -> None:
    text, found = found_by(gpu, opcode, of, form, packed, target)
    check(text, of, found, lanes(of, function, form))


def relu(form: Format, function: Callable[..., int]) -> Callable[..., int]:
    """.relu: 0 for what is negative; NaN stays the canonical one."""

    def clamped(*bits: int) -> int:
        result = function(*bits)
        return 0 if not ieee.is_nan(form, result) and ieee.negative(form, result) else result

    return clamped


@pytest.mark.parametrize("packed", PACKED, ids=["one", "x2"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("name", ["add", "sub", "mul"])
def test_sums_and_products(gpu: Gpu, name: str, form: Format, packed: bool) -> None:
    """9.7.4.1 to 9.7.4.3: rounded once, .rn said or not; .ftz and .sat of f16."""
    of = sources(form, 2, 1500)
    function = {"add": ieee.add, "sub": ieee.sub, "mul": ieee.mul}[name]
    for rn, ftz, sat in product([False, True], repeat=3):
        if form is BF16 and (ftz or sat):
            continue
        opcode = f"{name}{'.rn' * rn}{'.ftz' * ftz}{'.sat' * sat}"
        target = "sm_80" if form is F16 else "sm_90"
        hold(gpu, opcode, of, form, packed, adjusted(form, function, "rn", ftz, sat), target)


@pytest.mark.parametrize("packed", PACKED, ids=["one", "x2"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_fma(gpu: Gpu, form: Format, packed: bool) -> None:
    """9.7.4.4: rounded once; .ftz with .sat or .relu of f16, .relu of bf16."""
    of = sources(form, 3, 1500)
    # Sums next to a tie, which a float in between would take for one: an odd 1 + ulp and a bit less than half an ulp; a
    # product that is a tie, and the least number on either side of it.
    one = ((1 << form.exponent - 1) - 1) << form.fraction
    below = one - 2 - ((form.fraction + 1) << form.fraction)
    half = one | 1 << form.fraction - 1
    close = [(one + 1, below, one + 1), (one + 1, half, 1), (one + 1, half, 0x8001), (one + 3, half, 0x8001)]
    of = {
        name: np.append(of[name], np.array(column, np.uint16))
        for name, column in zip("abc", zip(*close, strict=True), strict=True)
    }
    for ftz, sat, clamped in product([False, True], repeat=3):
        if (form is BF16 and (ftz or sat)) or (sat and clamped):
            continue
        function = adjusted(form, ieee.fma, "rn", ftz, sat)
        opcode = f"fma.rn{'.ftz' * ftz}{'.sat' * sat}{'.relu' * clamped}"
        hold(gpu, opcode, of, form, packed, relu(form, function) if clamped else function, "sm_80")


@pytest.mark.parametrize("packed", PACKED, ids=["one", "x2"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("name", ["neg", "abs"])
def test_signs(gpu: Gpu, name: str, form: Format, packed: bool) -> None:
    """9.7.4.5 and 9.7.4.6, every number there is: .ftz of f16; of a NaN any NaN."""
    of = {"a": np.arange(1 << 16, dtype=np.uint16)}
    numbers = ~np.isin(of["a"] & np.uint16(0x7FFF), np.arange(form.inf + 1, 0x8000, dtype=np.uint16))
    expected = of["a"] & np.uint16(0x7FFF) if name == "abs" else of["a"] ^ np.uint16(0x8000)
    for ftz in [False, True] if form is F16 else [False]:
        subnormal = (of["a"] & np.uint16(0x7FFF)) < np.uint16(1 << form.fraction)
        wanted = np.where(subnormal, expected & np.uint16(0x8000), expected) if ftz else expected
        text, found = found_by(gpu, f"{name}{'.ftz' * ftz}", of, form, packed, "sm_80")
        check(text, {"a": of["a"][numbers]}, found[numbers], wanted[numbers])
        assert (found[~numbers] & np.uint16(0x7FFF) > form.inf).all(), f"{text}: a NaN became a number"


@pytest.mark.parametrize("packed", PACKED, ids=["one", "x2"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("name", ["min", "max"])
def test_extremes(gpu: Gpu, name: str, form: Format, packed: bool) -> None:
    """9.7.4.7 and 9.7.4.8: .ftz of f16; .NaN, .xorsign.abs."""
    of = sources(form, 2)
    for ftz, nan, xorsign in product([False, True] if form is F16 else [False], [False, True], [False, True]):
        function = adjusted(form, extreme(form, name == "max", nan, xorsign, xorsign), "", ftz)
        opcode = f"{name}{'.ftz' * ftz}{'.NaN' * nan}{'.xorsign.abs' * xorsign}"
        hold(gpu, opcode, of, form, packed, function, "sm_86" if xorsign else "sm_80")


APPROXIMATE: list[tuple[str, Format, Callable[[Exact], Exact], Callable[[Fraction], float], str]] = [
    ("tanh.approx", F16, tangent, lambda exact: 2.0**-10.987, "sm_80"),
    ("tanh.approx", BF16, tangent, lambda exact: 2.0**-8, "sm_90"),
    ("ex2.approx", F16, power, lambda exact: 2.0**-9.9 * float(exact), "sm_80"),
    ("ex2.approx.ftz", BF16, power, lambda exact: 2.0**-7 * float(exact), "sm_90"),
]
"""Opcode, type, function, maximum error, target."""


@pytest.mark.parametrize("packed", PACKED, ids=["one", "x2"])
@pytest.mark.parametrize("case", APPROXIMATE, ids=lambda case: f"{case[0]}-{case[1].name}")
def test_approximations(
    gpu: Gpu, case: tuple[str, Format, Callable[[Exact], Exact], Callable[[Fraction], float], str], packed: bool
) -> None:
    """9.7.4.9 and 9.7.4.10: within the stated error, and the tables of special values."""
    opcode, form, exact, error, target = case
    of = {"a": np.concatenate([sources(form, 1)["a"], np.arange(0, 1 << 16, 9, dtype=np.uint16)])}
    text, found = found_by(gpu, opcode, of, form, packed, target)
    near(text, form, of, found, exact, lambda wanted, _: Fraction(error(wanted)), "ftz" in opcode)


NEWEST = [
    # opcode, operands, the first target that has it as f16, as bf16
    ("add.rn", 2, 75, 90),
    ("sub", 2, 75, 90),
    ("mul.rn", 2, 75, 90),
    ("fma.rn", 3, 75, 80),
    ("fma.rn.relu", 3, 80, 80),
    ("neg", 1, 75, 80),
    ("abs", 1, 75, 80),
    ("min", 2, 80, 80),
    ("max.NaN", 2, 80, 80),
    ("max.xorsign.abs", 2, 86, 86),
    ("tanh.approx", 1, 75, 90),
]


def spelled(opcode: str, form: Format, packed: bool, arity: int) -> str:
    return f"{opcode}.{form.name}{'x2' * packed} " + ", ".join(f"${name}" for name in "dabc"[: arity + 1]) + ";"


@pytest.mark.parametrize("packed", PACKED, ids=["one", "x2"])
def test_target(card: Callable[..., Gpu], packed: bool) -> None:
    """Each instruction's "Target ISA Notes"."""
    gpu = card("sm_100")
    table = [(opcode, arity, F16, first) for opcode, arity, first, _ in NEWEST]
    table += [(opcode, arity, BF16, first) for opcode, arity, _, first in NEWEST]
    table += [("ex2.approx", 1, F16, 75), ("ex2.approx.ftz", 1, BF16, 90)]
    for opcode, arity, form, first in table:
        text = spelled(opcode, form, packed, arity)
        found = [target for target in TARGETS if accepted(gpu, text, 32 if packed else 16, target)]
        assert found == [target for target in TARGETS if target >= first], text


@pytest.mark.parametrize("packed", PACKED, ids=["one", "x2"])
def test_no_such_form(card: Callable[..., Gpu], packed: bool) -> None:
    """What each instruction's "Syntax" leaves out is an error, not a guess."""
    gpu = card("sm_100")
    for opcode, arity, forms in (
        ("add.rz", 2, FORMS),
        ("fma", 3, FORMS),
        ("fma.rn.sat.relu", 3, FORMS),
        ("min", 3, FORMS),
        ("min.abs", 2, FORMS),
        ("min.xorsign", 2, FORMS),
        ("div.rn", 2, FORMS),
        ("lg2.approx", 1, FORMS),
        ("tanh.approx.ftz", 1, FORMS),
        ("ex2.approx.ftz", 1, [F16]),
        ("ex2.approx", 1, [BF16]),
        ("add.rn.sat", 2, [BF16]),
        ("mul.ftz", 2, [BF16]),
        ("fma.rn.ftz", 3, [BF16]),
        ("fma.rn.sat", 3, [BF16]),
        ("min.ftz", 2, [BF16]),
        ("neg.ftz", 1, [BF16]),
    ):
        for form in forms:
            text = spelled(opcode, form, packed, arity)
            assert not accepted(gpu, text, 32 if packed else 16, 100), text


def test_a_wrong_value_is_reported(gpu: Gpu) -> None:
    """Two roundings instead of one, and a half that another half's operands gave."""
    # 1 + 2**-11 + 2**-20: to nearest above 1, but 1 by way of a product rounded first.
    of = {name: np.array([bits], np.uint16) for name, bits in zip("abc", (0x1001, 0x3C00, 0x3C00), strict=True)}
    once = ieee.fma(F16, 0x1001, 0x3C00, 0x3C00)
    assert once == 0x3C01
    with pytest.raises(AssertionError, match=r"fma with a = 0x1001.*0x3c00 instead of 0x3c01"):
        check("fma", of, np.array([0x3C00], np.uint16), np.array([once], np.uint16))
    with pytest.raises(AssertionError, match=r"add\.rn\.f16x2"):
        hold(gpu, "add.rn", sources(F16, 2, 20), F16, True, adjusted(F16, ieee.sub, "rn"), "sm_80")
