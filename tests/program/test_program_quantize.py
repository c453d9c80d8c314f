"""Quantizing: bytes against ggml's quantizers where ours shall be the same, errors where we search for the scales."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import tolerances
from models import BLOCK_FORMATS, FORMATS, Bytes, Floats, native_weight

from llama_ext import _core

LEGACY = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
K = ("Q4_K", "Q5_K", "Q6_K")
COLS = 1024

Quantizer = Callable[[str, Floats], Bytes]


@pytest.fixture(scope="module")
def ggml() -> Quantizer:
    """ggml_quantize_chunk of the library that llama-cpp-python brings."""
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent / "lib"
    (path,) = (p for p in folder.iterdir() if p.name in ("libggml-base.so", "libggml-base.dylib"))
    chunk = ctypes.CDLL(str(path)).ggml_quantize_chunk
    chunk.restype = ctypes.c_size_t
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    chunk.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]

    def quantize(format: str, values: Floats) -> Bytes:
        rows, cols = values.shape
        block, nbytes, _ = _core.formats[format]
        out = np.zeros((rows, cols // block * nbytes), np.uint8)
        kind = int(gguf.GGMLQuantizationType[format])
        assert chunk(kind, values.ctypes.data, out.ctypes.data, 0, rows, cols, None) == out.size
        return out

    return quantize


def _decode(format: str, data: Bytes, cols: int) -> Floats:
    return _core.Weight("w", format, len(data), cols, np.ascontiguousarray(data)).dequantize()


def _squared_error(format: str, data: Bytes, values: Floats) -> float:
    return float(np.square(_decode(format, data, values.shape[1]).astype(np.float64) - values).sum())


def _distributions(rows: int) -> dict[str, Floats]:
    rng = np.random.default_rng(21)
    shape = (rows, COLS)
    gauss = rng.normal(size=shape)
    made = {
        "gauss": gauss,
        "like weights": gauss * 0.02,
        "heavy tails": rng.standard_t(3, shape),
        "heavier tails": rng.lognormal(0, 2, shape) * rng.choice([-1, 1], shape),
        "uniform": rng.uniform(-1, 1, shape),
        "positive": rng.uniform(0, 1, shape),
        "negative": rng.uniform(-3, -2, shape),
        "off centre": gauss + 1,
        "mostly zeros": np.where(rng.random(shape) < 0.1, gauss, 0),
        "an outlier a block": np.where(np.arange(COLS) % 32 == 7, 40 * gauss, gauss),
        "blocks of all sizes": gauss * 10 ** rng.uniform(-4, 1, (rows, COLS // 32)).repeat(32, 1),
        "large": gauss * 1e4,
    }
    return {name: np.ascontiguousarray(values, np.float32) for name, values in made.items()}


DISTRIBUTIONS = _distributions(12)


# --- bytes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("format", LEGACY)
def test_bytes_are_ggmls(format: str, name: str, ggml: Quantizer) -> None:
    values = DISTRIBUTIONS[name]
    ours = _core.quantize_array(values, format)
    assert np.array_equal(ours, ggml(format, values))
    assert (
        np.array_equal(ours, gguf.quants.quantize(values, gguf.GGMLQuantizationType[format])) or name == "mostly zeros"
    )


def _edges() -> Floats:
    """Rows of 32: zeros of both signs, ties between steps, equal magnitudes of both signs, constants, a lone value, and
    scales from f16's least to its greatest.
    """
    rng = np.random.default_rng(22)
    zeros = np.zeros(32)
    signs = np.where(np.arange(32) % 3, -0.0, 0.0)
    rows = [zeros, -zeros, signs, -signs]
    for most in (127, 8, 16, 15, 31):  # the quants' extremes: values at half steps, rounded to either side
        for d in (1.0, -1.0, 0.3):
            half_steps = rng.integers(-2 * most, 2 * most + 1, 32) / 2
            half_steps[rng.integers(32)] = most
            rows += [half_steps * d, np.abs(half_steps) * d]
    for first in (1.0, -1.0):
        rows += [np.where(np.arange(32) == 5, first, np.where(np.arange(32) == 20, -first, 0.1))]
        rows += [
            np.full(32, first),
            np.where(np.arange(32) == 31, first, 0.0),
            np.where(np.arange(32) == 0, first, -0.0),
        ]
        # A minimum or a maximum of zero, of either sign.
        rows += [np.where(np.arange(32) == 9, 0.0, first), np.where(np.arange(32) == 9, -0.0, first)]
    gauss = rng.normal(size=32)
    gauss /= np.abs(gauss).max()
    rows += [gauss * size for size in (1e-3, 1e-5, 1e-6, 3e-7, 6e-8, 1e-8, 1e-20, 1e-30, 4e-37, 6e4, 65503)]
    return np.array(rows, np.float32)


@pytest.mark.parametrize("format", LEGACY)
def test_bytes_are_ggmls_at_the_edges(format: str, ggml: Quantizer) -> None:
    values = _edges()
    assert np.array_equal(_core.quantize_array(values, format), ggml(format, values))
    # gguf.quants takes the sign of a zero from elsewhere than ggml does.
    plain = values[~np.any((values == 0) & np.signbit(values), axis=1) & np.any(values != 0, axis=1)]
    theirs = gguf.quants.quantize(plain, gguf.GGMLQuantizationType[format])
    assert np.array_equal(_core.quantize_array(plain, format), theirs)


@pytest.mark.parametrize("format", ["Q8_0", "Q4_0", "Q5_0"])
def test_largest_scales(format: str, ggml: Quantizer) -> None:
    """The largest magnitudes whose scale f16 still holds, and the next, which it does not."""
    steps = {"Q8_0": 127, "Q4_0": 8, "Q5_0": 16}[format]
    limit = np.nextafter(np.float32(65520), np.float32(0)) * np.float32(steps)
    values = np.zeros((2, 64), np.float32)
    values[0, 40], values[1, 3] = limit, -limit
    ours = _core.quantize_array(values, format)
    assert np.array_equal(ours, ggml(format, values))
    assert np.isfinite(_decode(format, ours, 64)).all()
    values[1, 3] = np.float32(-65520) * np.float32(steps)
    with pytest.raises(ValueError, match=rf"^row 1: a weight of magnitude .* is too large for {format}, .*BF16 or F32"):
        _core.quantize_array(values, format)


def test_f16_rounds_to_nearest_even() -> None:
    """Every finite f16, what lies halfway to the next, and its neighbours on both sides."""
    bits = np.arange(0x7C00, dtype=np.uint16)
    floats = bits.view(np.float16).astype(np.float32)
    middles = ((floats[:-1].astype(np.float64) + floats[1:]) / 2).astype(np.float32)
    values = np.concatenate(
        [floats, middles, np.nextafter(middles, np.float32(0)), np.nextafter(middles, np.float32(1e9))]
    )
    values = np.concatenate([values, [65519.996, 1e-45, 2e-38]]).astype(np.float32)
    values = np.stack([values, -values])
    assert np.array_equal(_core.quantize_array(values, "F16"), values.astype(np.float16).view(np.uint8))


def test_bf16_rounds_to_nearest_even() -> None:
    high = np.arange(0, 0x7F80, 3, dtype=np.uint32)[:, None] << 16
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    values = (high | low).reshape(1, -1).view(np.float32)
    values = np.concatenate([values, -values])
    values = values[:, np.abs(values[0]) < 3.3961776e38]
    assert np.array_equal(_core.quantize_array(values, "BF16"), native_weight_bytes(values, "BF16"))
    theirs = gguf.quants.quantize(values, gguf.GGMLQuantizationType.BF16)
    assert np.array_equal(_core.quantize_array(values, "BF16"), theirs)


def native_weight_bytes(values: Floats, format: str) -> Bytes:
    bits = np.ascontiguousarray(values).view(np.uint32)
    assert format == "BF16"
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).view(np.uint8)


def test_f32_is_copied() -> None:
    values = DISTRIBUTIONS["gauss"]
    assert np.array_equal(_core.quantize_array(values, "F32"), values.view(np.uint8))


@pytest.mark.parametrize("format", LEGACY)
def test_a_second_time_changes_nothing(format: str) -> None:
    """What a block decodes to has the block's own extremes, and its scale comes out of them again. That need not be
    so where f16 or float32 rounds an extreme away: a Q4_1 block with a minimum far larger than its scale, or a scale of
    zero over quants that are not. Of the K formats it is not asked: their factors are fitted anew, to values that the
    first fit has moved.
    """
    values = DISTRIBUTIONS["like weights"]
    once = _core.quantize_array(values, format)
    assert np.array_equal(_core.quantize_array(_decode(format, once, COLS), format), once)


# --- the search -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("format", K)
def test_error_is_no_worse_than_ggmls(format: str, name: str, ggml: Quantizer) -> None:
    values = DISTRIBUTIONS[name]
    ours = _squared_error(format, _core.quantize_array(values, format), values)
    assert ours <= tolerances.QUANTIZE_AGAINST_GGML * _squared_error(format, ggml(format, values), values)


@pytest.mark.parametrize("format", K)
def test_error_by_itself(format: str) -> None:
    values = DISTRIBUTIONS["gauss"]
    error = _squared_error(format, _core.quantize_array(values, format), values)
    assert np.sqrt(error / np.square(values).sum()) <= tolerances.QUANTIZE_ERROR[format]


@pytest.mark.parametrize("format", K)
def test_the_error_bounds_see_a_worse_scale(format: str, ggml: Quantizer) -> None:
    """The two tests above on wrong answers: a factor d that is 2% off, and one sub-block's quants that are 1 off."""
    values = DISTRIBUTIONS["gauss"]
    nbytes = _core.formats[format][1]
    right = _core.quantize_array(values, format)
    at = 208 if format == "Q6_K" else 0
    off = right.reshape(-1, nbytes).copy()
    off[:, at : at + 2] = (off[:, at : at + 2].copy().view(np.float16) * np.float16(1.02)).view(np.uint8)
    shifted = right.reshape(-1, nbytes).copy()
    quants = slice(0, 32) if format == "Q6_K" else slice(nbytes - 128, nbytes - 96)
    shifted[:, quants] ^= 1
    for wrong in (off, shifted):
        error = _squared_error(format, wrong.reshape(right.shape), values)
        assert error > tolerances.QUANTIZE_AGAINST_GGML * _squared_error(format, ggml(format, values), values)


@pytest.mark.parametrize("format", K)
def test_small_weights_keep_their_digits(format: str) -> None:
    """Down to 1e-6, where f16's steps are coarse, the error stays within twice that of weights of size 1."""
    gauss = DISTRIBUTIONS["gauss"]
    for size in (1e-4, 2e-5, 5e-6, 1e-6):
        values = (gauss * np.float32(size)).astype(np.float32)
        error = _squared_error(format, _core.quantize_array(values, format), values)
        assert np.sqrt(error / np.square(values.astype(np.float64)).sum()) <= 2 * tolerances.QUANTIZE_ERROR[format]


@pytest.mark.parametrize("format", K)
def test_any_power_of_two_scales_along(format: str) -> None:
    """Weights times 2^n quantize to the same integers under a factor times 2^n, while f16 holds that as a normal."""
    values = DISTRIBUTIONS["gauss"]
    one = _decode(format, _core.quantize_array(values, format), COLS)
    for power in (-2, 3, 10):
        scaled = np.ldexp(values, power).astype(np.float32)
        assert np.array_equal(_decode(format, _core.quantize_array(scaled, format), COLS), np.ldexp(one, power))


# --- every format -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_threads_and_levels_change_no_bit(format: str) -> None:
    rng = np.random.default_rng(23)
    values = np.concatenate(list(_distributions(16).values()))
    values = values[rng.permutation(len(values))]
    one = _core.quantize_array(values, format)
    assert one.dtype == np.uint8 and one.shape == (
        len(values),
        COLS // _core.formats[format][0] * _core.formats[format][1],
    )
    for threads in (2, 3, 7, 1000):
        assert np.array_equal(_core.quantize_array(values, format, threads), one)
    for simd in _core.simd_levels():
        assert np.array_equal(_core.quantize_array(values, format, simd=simd), one), simd
    by_row = np.concatenate([_core.quantize_array(row[None], format) for row in values])
    assert np.array_equal(by_row, one)


@pytest.mark.parametrize("format", FORMATS)
def test_zeros(format: str) -> None:
    data = _core.quantize_array(np.zeros((2, 256), np.float32), format)
    assert np.array_equal(_decode(format, data, 256), np.zeros((2, 256)))


@pytest.mark.parametrize("format", BLOCK_FORMATS)
@pytest.mark.parametrize("size", [1e-9, 1e-30, 1.1e-38, 1e-40, 1e-45])
def test_tiny_weights_are_zeros(format: str, size: float) -> None:
    """Their scales are zero in f16. From 1e-40 on a scale's reciprocal overflows, where ggml converts infinities to
    integers: there the quants are those of zeros.
    """
    values = (np.random.default_rng(24).choice([-1, 0, 1], (4, 512)) * np.float32(size)).astype(np.float32)
    data = _core.quantize_array(values, format)
    assert np.array_equal(_decode(format, data, 512), np.zeros((4, 512)))
    if size <= 1e-40 and format in LEGACY:
        nbytes, factors = _core.formats[format][1], 4 if format.endswith("_1") else 2
        zeros = _core.quantize_array(np.zeros_like(values), format)
        assert np.array_equal(data.reshape(-1, nbytes)[:, factors:], zeros.reshape(-1, nbytes)[:, factors:])


@pytest.mark.parametrize("format", FORMATS)
def test_tiny_weights_beside_others(format: str) -> None:
    values = np.full((1, 512), 1e-45, np.float32)
    values[0, 3::32] = 1.0
    decoded = _decode(format, _core.quantize_array(values, format), 512)
    assert np.abs(decoded - values).max() <= 1e-3


@pytest.mark.parametrize("format", FORMATS)
def test_huge_weights(format: str) -> None:
    """Either they come back finite and near, or an error says that they do not fit."""
    refused = []
    for size in (6e4, 7e4, 1e6, 9e6, 3e8, 1e20, 3.39e38, 3.4e38):
        values = (np.random.default_rng(25).uniform(-1, 1, (3, 256)) * size).astype(np.float32)
        values[1, 100] = -size
        try:
            decoded = _decode(format, _core.quantize_array(values, format), 256)
        except ValueError as error:
            assert f"is too large for {format}, which " in str(error)
            refused.append(size)
        else:
            assert not refused
            assert np.abs(decoded.astype(np.float64) - values).max() <= 0.15 * size
    fits = {"F32": 8, "BF16": 7, "F16": 1, "Q8_0": 3, "Q4_K": 3, "Q5_K": 3, "Q6_K": 4}.get(format)
    assert fits is None or len(refused) == 8 - fits


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("bad", "said"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
def test_not_finite(format: str, bad: float, said: str) -> None:
    for col in (0, 131, 255):
        values = np.ones((3, 256), np.float32)
        values[1, col] = bad
        with pytest.raises(ValueError, match=f"^row 1: column {col} is {said}; only finite weights can be quantized$"):
            _core.quantize_array(values, format)
        for source in ("F32", "F16", "BF16"):
            raw = values.astype(np.float16) if source == "F16" else values
            data = (
                raw.view(np.uint8)
                if source != "BF16"
                else (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
            )
            weight = _core.Weight("layers.3.up", source, 3, 256, data)
            with pytest.raises(ValueError, match=f"^layers.3.up: row 1: column {col} is {said}; "):
                _core.quantize(weight, format, 2)


def test_a_nan_scale_of_a_quantized_weight() -> None:
    data = _core.quantize_array(np.ones((5, 512), np.float32), "Q4_0")
    data[3, 18:20] = np.float16(np.nan).reshape(1).view(np.uint8)
    for format in FORMATS:  # its own, too, whose bytes are else copied
        with pytest.raises(ValueError, match=r"^embed: row 3: column 32 is NaN; "):
            _core.quantize(_core.Weight("embed", "Q4_0", 5, 512, data), format)


def test_the_first_of_several_bad_rows_is_named() -> None:
    """Also where another thread comes upon a later one first, or after it. Threads take 16 of these rows at a time."""
    values = np.ones((160, 1024), np.float32)
    values[15::16, 5] = np.nan
    for _ in range(20):
        with pytest.raises(ValueError, match=r"^row 15: column 5 is NaN"):
            _core.quantize_array(values, "Q4_K", 4)
    values[15, 5] = 1
    values[16, 7] = np.inf
    for _ in range(20):
        with pytest.raises(ValueError, match=r"^row 16: column 7 is infinite"):
            _core.quantize_array(values, "Q4_K", 4)


@pytest.mark.parametrize("source", FORMATS)
def test_a_weight_of_any_format(source: str) -> None:
    values = DISTRIBUTIONS["like weights"]
    weight = _core.Weight("w", source, len(values), COLS, _core.quantize_array(values, source))
    for format in FORMATS:
        expected = _core.quantize_array(weight.dequantize(), format)
        if format == source:
            expected = _core.quantize_array(values, source)  # the bytes themselves
        for threads in (1, 3):
            assert np.array_equal(_core.quantize(weight, format, threads), expected)


@pytest.mark.parametrize(
    ("format", "cols", "mend"),
    [
        ("Q4_K", 288, "use Q8_0, Q5_1, Q5_0, Q4_1 or Q4_0, whose blocks hold 32, or F16"),
        ("Q6_K", 100, "use F16, BF16 or F32, which take any number"),
        ("Q8_0", 33, "use F16, BF16 or F32, which take any number"),
    ],
)
def test_columns_that_fill_no_block(format: str, cols: int, mend: str) -> None:
    block = _core.formats[format][0]
    message = f"{cols} columns do not fill {format}'s blocks of {block}; {mend}"
    with pytest.raises(ValueError) as caught:
        _core.quantize(native_weight("layers.0.down", np.ones((2, cols), np.float32)), format)
    assert str(caught.value) == f"layers.0.down: {message}"
    with pytest.raises(ValueError) as caught:
        _core.quantize_array(np.ones((2, cols), np.float32), format)
    assert str(caught.value) == message


def test_float_formats_take_any_columns() -> None:
    values = np.random.default_rng(26).normal(size=(3, 37)).astype(np.float32)
    for format in ("F32", "F16", "BF16"):
        assert np.abs(_decode(format, _core.quantize_array(values, format, 2), 37) - values).max() <= 2.0**-8 * 4


def test_arguments() -> None:
    weight = native_weight("head", np.ones((2, 256), np.float32))
    with pytest.raises(ValueError, match=r"^head: unknown weight format 'Q3_K'; known: F32, "):
        _core.quantize(weight, "Q3_K")
    for threads in (0, -1):
        with pytest.raises(ValueError, match=rf"^head: threads must be 1 or more, is {threads}$"):
            _core.quantize(weight, "Q8_0", threads)
    with pytest.raises(ValueError, match=r"^head: simd='avx9' is no SIMD level"):
        _core.quantize(weight, "Q8_0", simd="avx9")
    with pytest.raises(ValueError, match=r"^values must be \[rows, cols\], has 1 dimensions"):
        _core.quantize_array(np.ones(256, np.float32), "Q8_0")
    with pytest.raises(TypeError):
        _core.quantize_array(np.ones((2, 256)), "Q8_0")  # float64
    assert _core.quantize_array(np.ones((0, 256), np.float32), "Q4_K").shape == (0, 144)
    assert _core.quantize_array(np.ones((3, 0), np.float32), "Q4_K", 2).shape == (3, 0)


def test_strided_values() -> None:
    values = np.random.default_rng(27).normal(size=(512, 64)).astype(np.float32)
    for view in (values.T, values.T[::2], values.T[:, ::-1]):
        assert np.array_equal(
            _core.quantize_array(view, "Q4_K"), _core.quantize_array(np.ascontiguousarray(view), "Q4_K")
        )
