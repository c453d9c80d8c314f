"""What came with sm_90 and later cards: atomics on vectors, accesses of 32 bytes, roundings to tf32, numbers of six and
four bits, scales, reductions of f32 (PTX ISA 9.0)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from harness import Gpu
from numpy.typing import NDArray
from ptx_case import FLOAT_EDGES, check, run
from ptx_entry import enter
from ptx_round import BF16, F16, F32, Format, is_inf, is_nan, negative, round_to, value

TF32 = Format("tf32", 8, 10, 0x3FFFF)
FORMS = {"f16": F16, "bf16": BF16, "f32": F32}

# --- atomics on vectors -----------------------------------------------------------------------------------------------


def whole(kind: str, numbers: NDArray[np.int64]) -> NDArray[Any]:
    """Whole numbers as bits of the type."""
    form = FORMS[kind]
    return np.asarray(np.vectorize(lambda n: round_to(form, Fraction(int(n))))(numbers), f"u{form.width // 8}")


VECTORS = [
    # type, of a pair in a register or alone, elements, operation
    *(("f32", False, n, "add") for n in (2, 4)),
    *((kind, False, n, op) for kind in ("f16", "bf16") for n in (2, 4, 8) for op in ("add", "min", "max")),
    *((kind, True, n, op) for kind in ("f16", "bf16") for n in (2, 4) for op in ("add", "min", "max")),
]


@pytest.mark.parametrize(("kind", "pairs", "count", "op"), VECTORS)
def test_atomics_on_vectors(gpu: Gpu, kind: str, pairs: bool, count: int, op: str) -> None:
    """9.7.13.5 atom and 9.7.13.6 red, .v2 .v4 .v8: each element by itself, with what was there; none gets lost."""
    blocks, threads = 2, 96
    random = np.random.default_rng(count)
    register = 32 if pairs or kind == "f32" else 16
    elements = count * (1 + pairs)
    prefix = {16: "%h", 32: "%r"}[register]
    old, given = ("{" + ", ".join(f"{prefix}{at + i}" for i in range(count)) + "}" for at in (10, 20))
    noftz = "" if kind == "f32" else ".noftz"
    form = f"global.v{count}.{kind}{'x2' * pairs}.{op}{noftz}"
    load = f"v{min(count, 4)}.b{register}"

    def moves(name: str, to: str, address: str, store: bool) -> str:
        """All `count` registers, in one access or two."""
        names = to[1:-1].split(", ")
        text = ""
        for start in range(0, count, 4):
            some = "{" + ", ".join(names[start : start + 4]) + "}"
            at = f"[%{address}+{start * register // 8}]"
            text += f"st.global.{load} {at}, {some};" if store else f"ld.global.{load} {some}, {at};"
        return text

    # Each thread a cell of its own.
    before = whole(kind, random.integers(-40, 41, (blocks * threads, elements)))
    change = whole(kind, random.integers(-2, 3, (blocks * threads, elements)))
    cell, other, found = gpu.array(before), gpu.array(change), gpu.empty(before.shape, before.dtype)
    body = moves("other", given, "other_g", False) + f"atom.{form} {old}, [%cell_g], {given};"
    body += moves("found", old, "found_g", True) + f"red.relaxed.gpu.{form} [%cell_g], {given};"
    enter(gpu, body, blocks, threads, cell=cell, other=other, found=found)
    x, y = (
        np.vectorize(lambda b: int(value(FORMS[kind], int(b))))(array).astype(np.int64) for array in (before, change)
    )
    after = x + 2 * y if op == "add" else (np.minimum if op == "min" else np.maximum)(x, y)
    assert np.array_equal(found.get(), before)
    assert np.array_equal(cell.get(), whole(kind, after)), form
    # All threads the same cell; sums stay whole numbers of the type.
    cell = gpu.array(whole(kind, np.full(elements, 3)))
    body = moves("other", given, "other_g", False) + f"red.{form} [%cell], {given};"
    change = np.where(np.abs(y) == 2, np.sign(y), y)
    enter(gpu, body, blocks, threads, cell=cell, other=gpu.array(whole(kind, change)))
    end = (
        3 + change.sum(0)
        if op == "add"
        else np.minimum(3, change.min(0))
        if op == "min"
        else np.maximum(3, change.max(0))
    )
    assert np.array_equal(cell.get(), whole(kind, end)), form


# --- accesses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["v8.b32", "v8.u32", "v8.f32", "v4.b64", "v4.s64", "v4.f64"])
def test_accesses_of_32_bytes(card: Callable[..., Gpu], form: str) -> None:
    """9.7.9.8 ld and 9.7.9.11 st: .v8 of 32 bits and .v4 of 64, in global memory, from sm_100."""
    gpu = card("sm_100")
    data = np.random.default_rng(1).integers(0, 256, (64, 32)).astype(np.uint8)
    out = gpu.empty((64, 64), np.uint8)
    count, register = int(form[1]), {"32": "%r1", "64": "%rd1"}[form[-2:]]
    if "f" in form:
        register = "%f" if count == 8 else "%fd"
    names = "{" + ", ".join(f"{register}{i}" for i in range(count)) + "}"
    body = f"ld.global.{form} {names}, [%source_g]; st.global.{form} [%out_g], {names};"
    body += f"ld.global.nc.L1::no_allocate.L2::256B.{form} {names}, [%source_g]; st.global.{form} [%out_g+32], {names};"
    enter(gpu, body, 1, 64, target="sm_100", source=gpu.array(data), out=out)
    assert np.array_equal(out.get(), np.concatenate([data, data], 1))


def test_cache_policies(gpu: Gpu) -> None:
    """9.7.9: .L2::cache_hint and its operand; applypriority: no value changes."""
    data = np.arange(32 * 4, dtype=np.uint32).reshape(32, 4)
    out, sums = gpu.empty((32, 9), np.uint32), gpu.array(np.zeros(1, np.uint32))
    body = """
    .shared .align 16 .b8 tile[512]; mov.u32 %r1, tile; mad.lo.u32 %r1, %r0, 16, %r1; mov.u64 %rd1, 0x14F0000000000000;
    applypriority.global.L2::evict_normal [%source], 128;
    ld.global.L2::cache_hint.u32 %r2, [%source_g+4], %rd1; st.global.L2::cache_hint.u32 [%out_g], %r2, %rd1;
    ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%r4, %r5, %r6, %r7}, [%source_g], %rd1;
    st.global.u32 [%out_g+4], %r4; st.global.u32 [%out_g+8], %r5; st.global.u32 [%out_g+12], %r6;
    st.global.u32 [%out_g+16], %r7;
    cp.async.cg.shared.global.L2::cache_hint [%r1], [%source_g], 16, %rd1; cp.async.wait_all;
    ld.shared.v4.u32 {%r4, %r5, %r6, %r7}, [%r1];
    st.global.u32 [%out_g+20], %r4; st.global.u32 [%out_g+24], %r5; st.global.u32 [%out_g+28], %r6;
    st.global.u32 [%out_g+32], %r7;
    red.global.add.L2::cache_hint.u32 [%sums], %r0, %rd1;
    """
    enter(gpu, body, 1, 32, source=gpu.array(data), out=out, sums=sums)
    assert np.array_equal(out.get(), np.concatenate([data[:, 1:2], data, data], 1))
    assert sums.get()[0] == np.arange(32).sum()


@pytest.mark.parametrize("space", ["global", "shared", "generic"])
@pytest.mark.parametrize("width", [16, 32, 64])
def test_compare_and_swap(gpu: Gpu, width: int, space: str) -> None:
    """9.7.13.5 atom.cas: what was there comes back; it changes only where it is equal, in all its bits."""
    count, kind, size = 64, np.dtype(f"u{width // 8}"), width // 8
    random = np.random.default_rng(width)
    old, new = (random.integers(0, (1 << width) - 1, count, np.uint64).astype(kind) for _ in range(2))
    expected = old.copy()
    expected[1::4] ^= kind.type(1)
    expected[2::4] ^= kind.type(1 << width - 1)
    cell, found = gpu.array(old), gpu.empty(count, kind)
    register, where = {16: "%h", 32: "%r1", 64: "%rd1"}[width], "" if space == "generic" else "." + space
    load = f"ld.global.b{width} {register}"
    body = f"{load}1, [%old_g]; {load}2, [%expected_g]; {load}3, [%new_g]; mov.u64 %rd1, %cell_g;"
    if space == "shared":
        body += f".shared .align 8 .b8 tile[{count * size}]; mov.u64 %rd1, tile; mad.lo.u64 %rd1, %g, {size}, %rd1;"
        body += f"st.shared.b{width} [%rd1], {register}1;"
    body += f"atom{where}.cas.b{width} {register}4, [%rd1], {register}2, {register}3;"
    body += f"ld{where}.b{width} {register}5, [%rd1]; st.global.b{width} [%cell_g], {register}5;"
    body += f"st.global.b{width} [%found_g], {register}4;"
    # The cell's own register is read after it was written: by one thread, and in order.
    enter(
        gpu,
        body,
        1,
        count,
        cell=cell,
        old=gpu.array(old),
        expected=gpu.array(expected),
        new=gpu.array(new),
        found=found,
    )
    assert np.array_equal(found.get(), old)
    assert np.array_equal(cell.get(), np.where(old == expected, new, old))


# --- conversions ------------------------------------------------------------------------------------------------------


def floats(form: Format, targets: list[Fraction], random: int = 300) -> list[int]:
    """Edges, random bits, and the targets with their neighbours on both sides."""
    generator = np.random.default_rng(len(targets))
    edges = FLOAT_EDGES[form.width]
    found = [*edges, *generator.integers(0, 1 << form.width, random, np.uint64).tolist()]
    for target in targets:
        near = round_to(form, target, "rz")
        found += [b for b in (near - 1, near, near + 1) if b & ~form.sign and near & ~form.sign]
    return [int(b) & (2 * form.sign - 1) for b in found]


@pytest.mark.parametrize("relu", ["", ".relu"])
@pytest.mark.parametrize("finite", ["", ".satfinite"])
@pytest.mark.parametrize("mode", ["rn", "rz"])
def test_tf32_by_other_roundings(card: Callable[..., Gpu], mode: str, relu: str, finite: str) -> None:
    """9.7.9.21 cvt.rn and .rz to tf32 (sm_90; .satfinite from sm_100); the 13 low bits are not told."""
    gpu = card("sm_100")
    random = np.random.default_rng(2).integers(1 << 13, 0x3FBFF, 60)
    middles = [(value(TF32, int(b)) + value(TF32, int(b) + 1)) / 2 for b in random]
    a = np.array(floats(F32, [*middles, *(-m for m in middles), value(TF32, TF32.greatest)]), np.uint32)
    wanted = []
    for bits in a.tolist():
        sign = TF32.sign if negative(F32, bits) else 0
        if is_nan(F32, bits):
            wanted.append(TF32.nan)
            continue
        exact = is_inf(F32, bits)
        result = TF32.inf | sign if exact else round_to(TF32, value(F32, bits), mode, bool(sign))
        if finite and is_inf(TF32, result):
            result = TF32.greatest | sign
        wanted.append(0 if relu and sign else result)
    text = f"cvt.{mode}{relu}{finite}.tf32.f32 $d, $a;"
    found = np.asarray(
        run(gpu, text, {"a": a}, {"d": np.uint32}, "sm_100" if finite else "sm_90")["d"], np.uint32
    ) >> np.uint32(13)
    expected = np.array(wanted, np.uint32)
    nan = (found & np.uint32(0x3FFFF) > TF32.inf) & (expected == TF32.nan)
    zero = (found & np.uint32(0x3FFFF) == 0) & (expected == 0) & bool(relu)
    check(text, {"a": a}, np.where(nan | zero, expected, found), expected)


SIX = {"e2m3": (2, 3), "e3m2": (3, 2)}


def small_value(kind: str, code: int) -> Fraction:
    """OCP 6-bit formats: no infinity and no NaN."""
    exponent, fraction = SIX[kind]
    field, rest = code >> fraction & ((1 << exponent) - 1), code & ((1 << fraction) - 1)
    m = rest + (1 << fraction if field else 0)
    return (-1 if code >> 5 & 1 else 1) * m * Fraction(2) ** (max(field, 1) - ((1 << exponent - 1) - 1) - fraction)


def small_code(kind: str, exact: Fraction, sign: bool) -> int:
    """To nearest, ties to the even code, and no further than the greatest."""
    size = abs(exact)
    best = min(range(32), key=lambda code: (abs(small_value(kind, code) - size), code & 1))
    return best | (32 if sign else 0)


@pytest.mark.parametrize("relu", ["", ".relu"])
@pytest.mark.parametrize("kind", SIX)
def test_to_six_bits(card: Callable[..., Gpu], kind: str, relu: str) -> None:
    """9.7.9.21 cvt to e2m3x2 and e3m2x2: a byte each, of which two bits are zero; a NaN becomes the greatest number."""
    gpu = card("sm_100")
    values = sorted({small_value(kind, code) for code in range(64)})
    middles = [(x + y) / 2 for x, y in itertools.pairwise(values)]
    a = np.array(floats(F32, [*values, *middles, values[-1] * 2, values[0] * 2]), np.uint32)
    b = a[::-1].copy()

    def code(bits: int) -> int:
        if is_nan(F32, bits):
            return 31
        sign = negative(F32, bits)
        exact = Fraction(10**6) if is_inf(F32, bits) else value(F32, bits)
        return 0 if relu and sign else small_code(kind, exact, sign)

    codes = np.array([code(bits) for bits in a.tolist()], np.uint16)
    text = f"cvt.rn.satfinite{relu}.{kind}x2.f32 $d, $a, $b;"
    given: dict[str, NDArray[Any]] = {"a": a, "b": b}
    found: NDArray[Any] = run(gpu, text, given, {"d": np.uint16}, "sm_100a")["d"]
    expected = codes << np.uint16(8) | codes[::-1]
    if relu:  # a zero of either sign
        for shift in (0, 8):
            zero = (found >> np.uint16(shift) & np.uint16(0xFF) == 32) & (
                expected >> np.uint16(shift) & np.uint16(0xFF) == 0
            )
            found = np.where(zero, found ^ np.uint16(32 << shift), found)
    check(text, given, found, expected)


@pytest.mark.parametrize("kind", SIX)
def test_from_six_bits(card: Callable[..., Gpu], kind: str) -> None:
    """9.7.9.21 cvt from e2m3x2 and e3m2x2: every pair, exactly."""
    gpu = card("sm_100")
    low, high = np.meshgrid(np.arange(64), np.arange(64))
    a = (high << 8 | low).ravel().astype(np.uint16)
    halves = np.array([round_to(F16, small_value(kind, c), "rn", c >= 32) for c in range(64)], np.uint32)
    text = f"cvt.rn.f16x2.{kind}x2 $d, $a;"
    expected = halves[a >> 8] << np.uint32(16) | halves[a & 0xFF]
    check(text, {"a": a}, run(gpu, text, {"a": a}, {"d": np.uint32}, "sm_100a")["d"], expected)


@pytest.mark.parametrize("finite", ["", ".satfinite"])
@pytest.mark.parametrize("mode", ["rz", "rp"])
def test_to_scales(card: Callable[..., Gpu], mode: str, finite: str) -> None:
    """9.7.9.21 cvt to ue8m0x2, of positive numbers: a power of two by its exponent, 0xff for a NaN."""
    gpu = card("sm_100")
    generator = np.random.default_rng(4)
    numbers = [0x3F800000, 0x3F800001, 0x3FFFFFFF, 0x40000000, 0x00800000, 0x00800001, 0x7F000000, 0x7E800001]
    numbers += [*generator.integers(0x00800000, 0x7F000001, 300).tolist(), 0x7FC00000]
    a = np.array(numbers, np.uint32)
    b = a[::-1].copy()

    def code(bits: int) -> int:
        if is_nan(F32, bits):
            return 0xFF
        return (bits >> 23) + (mode == "rp" and bits & 0x7FFFFF != 0)

    codes = np.array([code(bits) for bits in a.tolist()], np.uint16)
    text = f"cvt.{mode}{finite}.ue8m0x2.f32 $d, $a, $b;"
    given: dict[str, NDArray[Any]] = {"a": a, "b": b}
    check(text, given, run(gpu, text, given, {"d": np.uint16}, "sm_100a")["d"], codes << np.uint16(8) | codes[::-1])


def test_from_scales(card: Callable[..., Gpu]) -> None:
    """9.7.9.21 cvt from ue8m0x2: every pair of codes as bf16, exactly."""
    gpu = card("sm_100")
    a = np.arange(1 << 16, dtype=np.uint16)
    halves = np.array([round_to(BF16, Fraction(2) ** (c - 127)) for c in range(255)] + [BF16.nan], np.uint32)
    text = "cvt.rn.bf16x2.ue8m0x2 $d, $a;"
    found: NDArray[Any] = run(gpu, text, {"a": a}, {"d": np.uint32}, "sm_100a")["d"]
    for shift in (0, 16):  # any NaN
        half = found >> np.uint32(shift) & np.uint32(0xFFFF)
        nan = (half & np.uint32(0x7FFF) > BF16.inf) & (a >> np.uint16(shift // 2) & np.uint16(0xFF) == 0xFF)
        found = np.where(nan, found & ~np.uint32(0xFFFF << shift) | np.uint32(BF16.nan << shift), found)
    check(text, {"a": a}, found, halves[a >> 8] << np.uint32(16) | halves[a & 0xFF])


# --- reductions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["min", "max"])
@pytest.mark.parametrize("absolute", ["", ".abs"])
@pytest.mark.parametrize("nan", ["", ".NaN"])
def test_redux_of_f32(card: Callable[..., Gpu], op: str, absolute: str, nan: str) -> None:
    """9.7.13.10 redux.sync .f32: NaNs are left out unless .NaN; the canonical one where nothing else is there."""
    gpu = card("sm_100")
    random = np.random.default_rng(6)
    a = random.normal(0, 100, (24, 32)).astype(np.float32).view(np.uint32)
    a[1:4, 5], a[2, 17] = 0x7FC00000, 0xFFC00001
    a[4], a[5, ::2] = 0x7F800001, 0x7FC00000
    a[6], a[6, 9] = 0, 0x80000000
    a[7, 3], a[8, 4] = 0x7F800000, 0xFF800000
    a[9] &= 0x007FFFFF

    def reduced(row: list[int]) -> int:
        numbers = [b & 0x7FFFFFFF if absolute else b for b in row if not is_nan(F32, b)]
        if not numbers or (nan and len(numbers) < len(row)):
            return F32.nan
        return (min if op == "min" else max)(numbers, key=lambda b: ~(b & 0x7FFFFFFF) if negative(F32, b) else b)

    wanted = np.repeat(np.array([reduced(row) for row in a.tolist()], np.uint32), 32)
    text = f"redux.sync.{op}{absolute}{nan}.f32 $d, $a, 0xffffffff;"
    given = {"a": a.ravel()}
    check(text, given, run(gpu, text, given, {"d": np.uint32}, "sm_100a", alone=True)["d"], wanted)


# --- the tests' own means ---------------------------------------------------------------------------------------------


def test_the_small_formats_by_hand() -> None:
    """Values that one can look up, and a rounding that would be wrong by one code."""
    assert [small_value("e2m3", c) for c in (0, 1, 8, 31, 63)] == [
        0,
        Fraction(1, 8),
        1,
        Fraction(15, 2),
        -Fraction(15, 2),
    ]
    assert [small_value("e3m2", c) for c in (0, 1, 12, 31)] == [0, Fraction(1, 16), 1, 28]
    assert [small_code("e3m2", Fraction(n), n < 0) for n in (1, -1, 28, 100, 26, 22)] == [12, 44, 31, 31, 30, 30]
    assert whole("bf16", np.array([3, -2])).tolist() == [0x4040, 0xC000]


def test_a_wrong_value_is_reported(gpu: Gpu) -> None:
    """The other rounding of one number among hundreds."""
    a = np.array([*range(0x3F800000, 0x3F800100), 0x3F801800], np.uint32)
    text = "cvt.rn.tf32.f32 $d, $a;"
    found = np.asarray(run(gpu, text, {"a": a}, {"d": np.uint32}, "sm_90")["d"], np.uint32) >> np.uint32(13)
    check(text, {"a": a[-1:]}, found[-1:], np.array([0x1FC01], np.uint32))
    with pytest.raises(AssertionError, match=r"a = 0x3f801800: 0x1fc01 instead of 0x1fc00, and 0 more of 257"):
        check(text, {"a": a}, found, (a & np.uint32(0x7FFFE000)) >> np.uint32(13))
