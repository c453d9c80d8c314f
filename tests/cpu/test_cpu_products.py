"""y = W x of every weight format at every SIMD level: a bound for every single output, derived from the
activation's form, and the promise that a row's bits do not depend on its company."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import tolerances
from models import BLOCK_FORMATS, FLOAT_FORMATS, FORMATS, native_weight, random_blocks

from llama_ext import _core

LEVELS = _core.simd_levels()
OUTPUTS = (1, 15, 16, 17, 48, 100)
ROWS = 33
# Where a block's quants lie: with them zeroed, what is left is the block's minimum (or its offset).
QUANTS = {
    "Q8_0": slice(2, None),
    "Q4_0": slice(2, None),
    "Q4_1": slice(4, None),
    "Q5_0": slice(2, None),
    "Q5_1": slice(4, None),
    "Q4_K": slice(16, None),
    "Q5_K": slice(16, None),
    "Q6_K": slice(0, 192),
}


def columns(format: str) -> tuple[int, ...]:
    if format in FLOAT_FORMATS:
        return (1, 3, 31, 32, 96)
    return (256, 512) if format.endswith("K") else (32, 64, 96, 576)


def make_weight(format: str, rows: int, cols: int, rng: np.random.Generator, size: float = 1.0) -> _core.Weight:
    if format in FLOAT_FORMATS:
        return native_weight("w", rng.normal(0, size, (rows, cols)).astype(np.float32), format)
    return _core.Weight("w", format, rows, cols, random_blocks(format, rows, cols, rng, size))


def every_shape(format: str, rng: np.random.Generator) -> Iterator[tuple[_core.Weight, np.ndarray | None]]:
    """A weight of every shape, and the blocks that it is made of."""
    for outputs, cols in itertools.product(OUTPUTS, columns(format)):
        if format in FLOAT_FORMATS:
            yield make_weight(format, outputs, cols, rng), None
        else:
            data = random_blocks(format, outputs, cols, rng)
            yield _core.Weight("w", format, outputs, cols, data), data


def bound(
    format: str, data: np.ndarray | None, weight: _core.Weight, x: np.ndarray, coarse: bool = False
) -> np.ndarray:
    """How far each output [rows, weight.rows] may lie from the exact product of the dequantized weights with x;
    coarse: with activations of one digit or of BF16.
    """
    w = np.abs(weight.dequantize().astype(np.float64))
    size = np.abs(x.astype(np.float64))
    if coarse and format == "BF16":
        # Half a unit of 8 digits each, and subnormals, of x and of sums, are zeros.
        return (tolerances.BF16_ROUNDING + (weight.cols + 4) * tolerances.ROUNDING) * (size @ w.T) + (
            1.2e-38 * (w.sum(1) + weight.cols)
        )
    if format in FLOAT_FORMATS:
        return (weight.cols + 4) * tolerances.ROUNDING * (size @ w.T) + weight.cols * 1e-44
    # The activation's rounding: half a step of its block of 32. A block below 1e-33 counts as zero.
    largest = size.reshape(len(x), -1, 32).max(-1)
    half = tolerances.Q8_STEP if coarse else tolerances.Q15_STEP
    step = np.where(largest < 1e-33, largest, largest * half).repeat(32, axis=1)
    # The float32 arithmetic: a block's integer sum is exact or rounded once, its factors and its addition round;
    # quants and minima are added up apart, so their sizes add. Each partial sum is at most the sum of all sizes.
    assert data is not None
    block, nbytes, _ = _core.formats[format]
    blocks = data.reshape(weight.rows, weight.cols // block, nbytes).copy()
    blocks[:, :, QUANTS[format]] = 0
    rest = _core.Weight("rest", format, weight.rows, weight.cols, blocks.reshape(-1)).dequantize().astype(np.float64)
    parts = np.abs(weight.dequantize() - rest) + np.abs(rest)
    terms = 2 * weight.cols / 32 + 8
    return step @ w.T + terms * tolerances.ROUNDING * ((size + step) @ parts.T) + weight.cols / 32 * 1e-37


def exact(weight: _core.Weight, x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) @ weight.dequantize().astype(np.float64).T


def activations(rows: int, cols: int, rng: np.random.Generator) -> np.ndarray:
    """Gaussian rows, and rows of every awkward kind."""
    x = rng.normal(size=(rows, cols)).astype(np.float32)
    blocks = -(-cols // 32)

    def block(i: int) -> slice:
        return slice(32 * (i % blocks), 32 * (i % blocks) + 32)

    x[1 % rows] = 0
    x[2 % rows, block(0)] = 0
    x[3 % rows, block(1)] *= 1e-40  # denormal
    x[4 % rows, int(rng.integers(cols))] = 3e4  # one huge outlier
    x[5 % rows] *= 1e-30
    x[6 % rows] *= 1e25
    x[7 % rows] = np.abs(x[7 % rows]) + 1  # nothing cancels
    x[8 % rows] = 1
    x[9 % rows, block(0)] *= 1e-33
    return x


@pytest.mark.parametrize("simd", LEVELS)
@pytest.mark.parametrize("format", FORMATS)
def test_every_shape_within_its_bound(format: str, simd: str) -> None:
    rng = np.random.default_rng(21)
    for weight, data in every_shape(format, rng):
        x = activations(ROWS, weight.cols, rng)
        found = _core.testing.product(weight, x, simd)
        allowed = bound(format, data, weight, x)
        error = np.abs(found - exact(weight, x))
        assert found.shape == (ROWS, weight.rows)
        assert (error <= allowed).all(), (weight.rows, weight.cols, float((error / allowed).max()))
        # A result just past the bound must not pass.
        wrong = found + 1.5 * (allowed + error) * rng.choice([-1, 1], found.shape)
        assert not (np.abs(wrong - exact(weight, x)) <= allowed).any()


def coarse_formats(simd: str) -> tuple[str, ...]:
    return BLOCK_FORMATS + (("BF16",) if simd == "avx512_bf16" else ())


@pytest.mark.parametrize(("simd", "format"), [(simd, format) for simd in LEVELS for format in coarse_formats(simd)])
def test_coarse_products(format: str, simd: str) -> None:
    """Within their bound at every shape, past that of the exact ones, and a row's bits whatever its company."""
    rng = np.random.default_rng(29)
    past = 0
    for weight, data in every_shape(format, rng):
        x = activations(ROWS, weight.cols, rng)
        found = _core.testing.product(weight, x, simd, coarse=True)
        allowed = bound(format, data, weight, x, coarse=True)
        error = np.abs(found - exact(weight, x))
        assert (error <= allowed).all(), (weight.rows, weight.cols, float((error / allowed).max()))
        past += int((error > bound(format, data, weight, x)).sum())
        for first in (1, 7, 8, 9, 16, 32):
            assert np.array_equal(_core.testing.product(weight, x, simd, coarse=True, first=first), found[first:])
        assert np.array_equal(_core.testing.product(weight, x[:17], simd, coarse=True), found[:17])
    assert past > 100


@pytest.mark.parametrize("simd", LEVELS)
@pytest.mark.parametrize("format", ["Q4_0", "BF16"])
def test_what_is_not_finite_shows_in_coarse_products(format: str, simd: str) -> None:
    rng = np.random.default_rng(30)
    if format not in coarse_formats(simd):
        with pytest.raises(ValueError, match="no such product"):
            _core.testing.product(make_weight("BF16", 16, 32, rng), np.zeros((1, 32), np.float32), simd, coarse=True)
        return
    weight = make_weight(format, 33, 64, rng)
    x = rng.normal(size=(9, 64)).astype(np.float32)
    clean = _core.testing.product(weight, x, simd, coarse=True)
    for bits in NON_FINITE.values():
        spoilt = x.copy()
        spoilt.view(np.uint32)[3, 17] = bits
        found = _core.testing.product(weight, spoilt, simd, coarse=True)
        assert not np.isfinite(found[3]).any()
        others = np.arange(9) != 3
        assert np.array_equal(found[others], clean[others])


@pytest.mark.parametrize("simd", LEVELS)
@pytest.mark.parametrize("format", FORMATS)
def test_rows_do_not_depend_on_their_company(format: str, simd: str) -> None:
    rng = np.random.default_rng(22)
    cols = {"Q4_K": 512, "Q5_K": 512, "Q6_K": 512}.get(format, 96)
    for outputs in (17, 48):
        weight = make_weight(format, outputs, cols, rng)
        x = activations(ROWS, cols, rng)
        alone = np.concatenate([_core.testing.product(weight, x[r : r + 1], simd) for r in range(ROWS)])
        for rows in (*range(1, 18), 32, 33):
            assert np.array_equal(_core.testing.product(weight, x[:rows], simd), alone[:rows]), rows
            assert np.array_equal(_core.testing.product(weight, x[ROWS - rows :], simd), alone[ROWS - rows :]), rows


@pytest.mark.parametrize("simd", LEVELS)
@pytest.mark.parametrize("format", BLOCK_FORMATS)
def test_one_wrong_quant_is_seen(format: str, simd: str) -> None:
    """The check on a kernel that has one weight wrong: the top bit of one quant flipped moves its output past the
    bound.
    """
    rng = np.random.default_rng(23)
    cols = 256
    data = random_blocks(format, 16, cols, rng)
    weight = _core.Weight("w", format, 16, cols, data)
    x = (rng.uniform(0.5, 1.5, (1, cols)) * rng.choice([-1, 1], cols)).astype(np.float32)
    allowed, right = bound(format, data, weight, x), exact(weight, x)
    _, nbytes, _ = _core.formats[format]
    quants = np.arange(nbytes)[QUANTS[format]]
    caught = 0
    for bit in (3, 7) * 50:
        wrong = data.copy()
        row, at = int(rng.integers(16)), int(rng.choice(quants))
        wrong[row, at + nbytes * int(rng.integers(data.shape[1] // nbytes))] ^= 1 << bit
        twin = _core.testing.product(_core.Weight("w", format, 16, cols, wrong), x, simd)
        off = np.abs(twin - right) > allowed
        assert not off[:, np.arange(16) != row].any()
        caught += bool(off[0, row])
    assert caught >= 90  # the rest meet a sub-block's scale near zero


@pytest.mark.parametrize("simd", LEVELS)
@pytest.mark.parametrize("format", BLOCK_FORMATS)
@pytest.mark.parametrize("fill", [0x00, 0xFF, 0x80, 0x7F, 0x81])
def test_extreme_quants(format: str, simd: str, fill: int) -> None:
    """Every quant at one end of its range against activations at theirs: no sum may wrap."""
    rng = np.random.default_rng(24)
    data = random_blocks(format, 17, 512, rng)
    block, nbytes, _ = _core.formats[format]
    view = data.reshape(17, 512 // block, nbytes)
    view[:, :, QUANTS[format]] = fill
    if format == "Q6_K":
        view[:, :, 192:208] = fill
    if format in ("Q4_K", "Q5_K"):
        view[:, :, 4:16] = fill
    weight = _core.Weight("w", format, 17, 512, data)
    x = np.stack([np.full(512, s * v, np.float32) for v in (1.0, 0.99999, 0.5) for s in (1, -1)])
    x = np.concatenate([x, np.where(np.arange(512) % 2, 1, -1)[None].astype(np.float32)])
    error = np.abs(_core.testing.product(weight, x, simd) - exact(weight, x))
    assert (error <= bound(format, data, weight, x)).all()


NON_FINITE = {
    "nan": 0x7FC00000,
    "negative nan": 0xFFC00000,
    "nan of ones": 0xFFFFFFFF,
    "signalling": 0x7F800001,
    "inf": 0x7F800000,
    "-inf": 0xFF800000,
}


@pytest.mark.parametrize("simd", LEVELS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", NON_FINITE)
def test_what_is_not_finite_shows(format: str, simd: str, kind: str) -> None:
    """In every output of its row, whatever the position, and in no other row."""
    rng = np.random.default_rng(25)
    cols = 256
    weight = make_weight(format, 33, cols, rng)
    x = rng.normal(size=(9, cols)).astype(np.float32)
    clean = _core.testing.product(weight, x, simd)
    for row, col in ((0, 0), (3, 17), (7, 100), (8, 255)):
        spoilt = x.copy()
        spoilt.view(np.uint32)[row, col] = NON_FINITE[kind]
        found = _core.testing.product(weight, spoilt, simd)
        assert not np.isfinite(found[row]).any()
        others = np.arange(9) != row
        assert np.array_equal(found[others], clean[others])


@pytest.mark.parametrize("simd", LEVELS)
def test_q15(simd: str) -> None:
    """The integers, the scale and the sums, against their definition in float64."""
    rng = np.random.default_rng(26)
    x = activations(12, 96, rng).reshape(-1)
    x[-32:] = np.linspace(-1, 1, 32)
    integers, scales, sums = _core.testing.quantize_q15(x, simd)
    assert np.abs(integers).max() <= 16319
    assert np.array_equal(sums, integers.reshape(-1, 16).sum(1))
    largest = np.abs(x.reshape(-1, 32)).max(1).astype(np.float64)
    tiny = largest < 1e-33
    assert (scales[tiny] == 0).all() and (integers.reshape(-1, 32)[tiny] == 0).all()
    np.testing.assert_allclose(scales[~tiny], largest[~tiny] / 16319, rtol=1e-6)
    error = np.abs(integers.reshape(-1, 32) * scales[:, None].astype(np.float64) - x.reshape(-1, 32))
    assert (error[~tiny] <= (largest * tolerances.Q15_STEP)[~tiny, None]).all()
    assert np.abs(integers.reshape(-1, 32)[~tiny]).max(1).min() == 16319
    # Twin: integers one off do not pass.
    off = np.abs((integers + 1).reshape(-1, 32) * scales[:, None].astype(np.float64) - x.reshape(-1, 32))
    assert not (off[~tiny] <= (largest * tolerances.Q15_STEP)[~tiny, None]).all(1).any()


@pytest.mark.parametrize("simd", LEVELS)
def test_q15_of_one_digit(simd: str) -> None:
    """Blocks that stand out in their row, by more than twice the mean, keep two digits; the others have one."""
    rng = np.random.default_rng(31)
    x = rng.normal(size=(20, 32)).astype(np.float32)
    x[[3, 11]] *= 5
    x[7] = 0
    x[8] *= 1e-40
    exact = _core.testing.quantize_q15(x.reshape(-1), simd)
    integers, scales, sums = _core.testing.quantize_q15(x.reshape(-1), simd, coarse=True)
    integers = integers.reshape(-1, 32)
    largest = np.abs(x).max(1).astype(np.float64)
    out = largest > 2 * largest.mean()
    assert list(np.flatnonzero(out)) == [3, 11]
    assert np.array_equal(integers[out], exact[0].reshape(-1, 32)[out]) and np.array_equal(scales[out], exact[1][out])
    assert (integers[~out] % 128 == 0).all() and np.abs(integers[~out]).max() == 127 * 128
    assert np.array_equal(sums, integers.reshape(-1, 16).sum(1))
    error = np.abs(integers * scales[:, None].astype(np.float64) - x)
    assert (error <= np.where(largest < 1e-33, largest, largest * tolerances.Q8_STEP)[:, None]).all()
    assert (integers[[7, 8]] == 0).all() and (scales[[7, 8]] == 0).all()
    x[5, 5] = np.nan
    assert np.isnan(_core.testing.quantize_q15(x.reshape(-1), simd, coarse=True)[1][5])


@pytest.mark.parametrize("coarse", [False, True])
def test_all_levels_quantize_alike(coarse: bool) -> None:
    x = activations(12, 96, np.random.default_rng(27)).reshape(-1)
    first = _core.testing.quantize_q15(x, LEVELS[0], coarse)
    for simd in LEVELS[1:]:
        for ours, theirs in zip(_core.testing.quantize_q15(x, simd, coarse), first, strict=True):
            assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("simd", LEVELS)
@pytest.mark.parametrize("n", [1, 8, 15, 16, 17, 31, 63, 64, 65, 576, 2048])
def test_rms_norm(simd: str, n: int) -> None:
    rng = np.random.default_rng(n)
    weight = rng.uniform(0.5, 1.5, n).astype(np.float32)
    for size in (1.0, 1e-12, 1e12):
        x = (rng.normal(size=n) * size).astype(np.float32)
        for w in (weight, None):
            exactly = x.astype(np.float64) / np.sqrt((x.astype(np.float64) ** 2).mean() + 1e-5)
            exactly = exactly * (1.0 if w is None else w)
            # n / 64 additions and a tree of 64 lanes for the mean, halved by the root; then root, quotient, two
            # products.
            allowed = ((n / 64 + 10) / 2 + 6) * tolerances.ROUNDING * np.abs(exactly)
            found = _core.testing.rms_norm(x, w, 1e-5, simd)
            assert (np.abs(found - exactly) <= allowed + 1e-44).all()
            assert not (np.abs(found * (1 + 1e-5) - exactly) <= allowed).all()
    for bad in NON_FINITE.values():
        x = rng.normal(size=n).astype(np.float32)
        x.view(np.uint32)[n // 2] = bad
        assert np.isnan(_core.testing.rms_norm(x, None, 1e-5, simd)[n // 2])


@pytest.mark.parametrize("simd", LEVELS)
def test_silu_and_its_exponential(simd: str) -> None:
    rng = np.random.default_rng(28)
    gate = np.concatenate([np.linspace(-120, 120, 5001), rng.normal(0, 3, 5000), [0, -0.0, 1e-30, -1e-30]])
    gate = gate.astype(np.float32)
    up = rng.normal(size=len(gate)).astype(np.float32)
    wide = gate.astype(np.float64)
    with np.errstate(over="ignore"):
        expected = wide / (1 + np.exp(-wide)) * up
    # 4 ulp of the exponential, a sum, a quotient, a product; below -87 the clamp is 1e-36.
    allowed = 10 * tolerances.ROUNDING * np.abs(expected) + 1e-35 * np.abs(up)
    found = _core.testing.silu_times(gate, up, simd)
    assert (np.abs(found - expected) <= allowed).all()
    assert not (np.abs(found * (1 + 2e-6) - expected) <= allowed).all()
    for n in (1, 7, 15, 16, 17, 33):
        assert np.array_equal(_core.testing.silu_times(gate[:n], up[:n], simd), found[:n])
    for bad in NON_FINITE.values():
        spoilt = np.full(17, bad, np.uint32).view(np.float32)
        assert np.isnan(_core.testing.silu_times(np.ones(17, np.float32), spoilt, simd)).all() or np.isinf(spoilt).all()
        if np.isnan(spoilt).all():
            assert np.isnan(_core.testing.silu_times(spoilt, np.ones(17, np.float32), simd)).all()


def test_product_checks_its_shapes() -> None:
    weight = native_weight("w", np.ones((2, 8), np.float32))
    for x in (np.ones(8, np.float32), np.ones((2, 7), np.float32)):
        with pytest.raises(ValueError, match="columns"):
            _core.testing.product(weight, x, LEVELS[0])
    with pytest.raises(ValueError, match="no SIMD level"):
        _core.testing.product(weight, np.ones((1, 8), np.float32), "mmx")
