"""dequantize() of every weight format against ggml's own Python (gguf.quants), bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from models import BLOCK_FORMATS, FORMATS, native_weight, random_blocks

from llama_ext import _core


def _theirs(format: str, data: np.ndarray) -> np.ndarray:
    return gguf.quants.dequantize(data, gguf.GGMLQuantizationType[format]).astype(np.float32)


def _ours(format: str, rows: int, cols: int, data: np.ndarray) -> np.ndarray:
    return _core.Weight("w", format, rows, cols, np.ascontiguousarray(data).view(np.uint8)).dequantize()


def test_the_formats_are_ggmls() -> None:
    assert tuple(_core.formats) == (*FORMATS, "MXFP8")  # which is none of ggml's
    for name in FORMATS:
        block, nbytes, _ = _core.formats[name]
        assert (block, nbytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]


@pytest.mark.parametrize("format", BLOCK_FORMATS)
@pytest.mark.parametrize("size", [1.0, 1e-6, 3e4])
def test_random_blocks(format: str, size: float) -> None:
    rng = np.random.default_rng(11)
    data = random_blocks(format, 40, 512, rng, size)
    assert np.array_equal(_ours(format, 40, 512, data), _theirs(format, data))


@pytest.mark.parametrize("format", BLOCK_FORMATS)
@pytest.mark.parametrize("fill", [0x00, 0xFF, 0x80, 0x0F, 0xF0, 0x7F])
def test_extreme_quants_and_scales(format: str, fill: int) -> None:
    """Every quant the same extreme value (-128 in Q8_0, all ones in nibbles), under every kind of factor."""
    block, nbytes, _ = _core.formats[format]
    factors = np.array([0.0, -0.0, 6e-8, -6e-8, 6.1e-5, 1.0, -1.0, 65504.0, -65504.0], np.float16)
    data = np.full((len(factors), 512 // block * nbytes), fill, np.uint8)
    halves = {"Q6_K": (208,)}.get(format, (0, 2) if format in ("Q4_1", "Q5_1", "Q4_K", "Q5_K") else (0,))
    for at in halves:
        for start in range(0, data.shape[1], nbytes):
            data[:, start + at : start + at + 2] = factors[:, None].view(np.uint8)
    assert np.array_equal(_ours(format, len(factors), 512, data), _theirs(format, data))


@pytest.mark.parametrize("format", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_blocks_that_ggml_made(format: str) -> None:
    rng = np.random.default_rng(12)
    values = (rng.normal(size=(8, 256)) * rng.choice([1e-3, 1, 100], (8, 1))).astype(np.float32)
    data = gguf.quants.quantize(values, gguf.GGMLQuantizationType[format])
    ours = _ours(format, 8, 256, data)
    assert np.array_equal(ours, _theirs(format, data))
    step = {"Q8_0": 1 / 127, "Q4_0": 1 / 8, "Q4_1": 1 / 8, "Q5_0": 1 / 16, "Q5_1": 1 / 16}[format]
    assert np.abs(ours - values).max() <= 1.1 * step * np.abs(values).max()


@pytest.mark.parametrize("format", BLOCK_FORMATS)
def test_a_flipped_bit_is_seen(format: str) -> None:
    """The check of this file on a wrong answer: any bit of a block changes some weight."""
    nbytes = _core.formats[format][1]
    data = random_blocks(format, 1, 256, np.random.default_rng(13))
    right = _theirs(format, data)
    for at in range(nbytes):
        for bit in range(8):
            wrong = data.copy()
            wrong[0, at] ^= 1 << bit
            assert not np.array_equal(_ours(format, 1, 256, wrong), right, equal_nan=True), (at, bit)


def test_half_floats_exactly() -> None:
    """All 65,536 patterns of f16 and bf16."""
    bits = np.arange(65536, dtype=np.uint16)
    with np.errstate(invalid="ignore"):
        expected = bits.view(np.float16).astype(np.float32)
    assert np.array_equal(_ours("F16", 1, 65536, bits)[0], expected, equal_nan=True)
    expected = (bits.astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(_ours("BF16", 1, 65536, bits)[0], expected, equal_nan=True)


def test_native_weight_rounds_as_it_says() -> None:
    values = np.random.default_rng(14).normal(size=(3, 7)).astype(np.float32)
    assert np.array_equal(native_weight("w", values).dequantize(), values)
    assert np.array_equal(native_weight("w", values, "F16").dequantize(), values.astype(np.float16))
    assert np.abs(native_weight("w", values, "BF16").dequantize() - values).max() <= 2.0**-9 * 4
