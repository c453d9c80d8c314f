"""embed: rows of every format, bit for bit as `dequantize` defines them, and rotation tables against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tolerances
from cuda_worker import Remote

from llama_ext import _core

VOCAB, MAX_ROWS = 37, 32
FORMATS = list(_core.formats)


def table(format: str, rows: int, cols: int, seed: int) -> np.ndarray:
    """Any bits at all: subnormal scales, infinities, NaNs and both zeros are among them."""
    block, size, _ = _core.formats[format]
    return np.random.default_rng(seed).integers(0, 256, rows * cols // block * size, np.uint8)


def dequantized(format: str, rows: int, cols: int, data: np.ndarray) -> np.ndarray:
    return _core.Weight("table", format, rows, cols, data).dequantize().reshape(rows, cols)


def check_rows(found: np.ndarray, expected: np.ndarray) -> None:
    """The same bits; a NaN's payload is not defined."""
    rows = len(expected)
    assert (found[rows:] == 0xFFFFFFFF).all(), "a row was written that the step does not have"
    nan = np.isnan(expected)
    assert (np.isnan(found[:rows].view(np.float32)) == nan).all()
    different = (found[:rows] != expected.view(np.uint32)) & ~nan
    assert not different.any(), np.argwhere(different)[:4]


def check_table(found: np.ndarray, position: int, rows: int, inverse_frequency: np.ndarray, chunk: int) -> None:
    assert np.isnan(found[rows:]).all(), "a row was written that the step does not have"
    positions = position + np.arange(rows)
    angles = (positions % chunk if chunk else positions).astype(np.float64)[:, None] * inverse_frequency
    for of, function in enumerate((np.cos, np.sin)):
        error = np.abs(found[:rows, :, of] - function(angles))
        assert error.max(initial=0) <= tolerances.CUDA_ROTATION, error.max()


# 4 weights a thread, 1024 a block.
COLS = {1: [1, 3, 4, 30, 1021, 1024, 1028, 2051], 32: [32, 96, 1024, 1056], 256: [256, 768, 1280]}


@pytest.mark.parametrize("format", FORMATS)
def test_every_format(card: Remote, format: str) -> None:
    for cols in COLS[_core.formats[format][0]]:
        data = table(format, VOCAB, cols, cols)
        random = np.random.default_rng(cols)
        ids = [np.array([VOCAB - 1]), np.array([0, VOCAB - 1, 0]), random.integers(0, VOCAB, 17)]
        steps = [(0, of_step) for of_step in ids]
        captured = bool(cols % 8)
        made = card.call(
            "cases_embed.embed", cols, format=format, data=data, rows=VOCAB, cols=cols, steps=steps, max_rows=MAX_ROWS,
            rotations=[], captured=captured,
        )  # fmt: skip
        expected = dequantized(format, VOCAB, cols, data)
        for (x, _), of_step in zip(made, ids, strict=True):
            check_rows(x, expected[of_step])


@pytest.mark.parametrize("format", ["MXFP8", "F16", "Q8_0", "Q6_K"])
def test_every_value(card: Remote, format: str) -> None:
    """All bytes of E4M3 under all scales; all bits of f16; each value under each scale there is, and so on."""
    block, size, _ = _core.formats[format]
    if format == "MXFP8":
        blocks = np.zeros((256, 8, 33), np.uint8)
        blocks[..., 0] = np.arange(256)[:, None]
        blocks[..., 1:] = np.arange(256).reshape(8, 32)
        data, rows = blocks.reshape(-1), 256
    elif format == "F16":
        data, rows = np.arange(65536, dtype=np.uint16).view(np.uint8), 256
    elif format == "Q8_0":
        blocks = np.zeros((64, 8, 34), np.uint8)
        blocks[..., 2:] = np.arange(256).reshape(8, 32)
        scales = np.random.default_rng(1).standard_normal(64).astype(np.float16)
        blocks[..., :2] = scales.view(np.uint8).reshape(64, 1, 2)
        data, rows = blocks.reshape(-1), 64
    else:
        data, rows = table(format, 256, 256, 5), 256
        data = data.reshape(256, 210)
        data[:, 192:208] = np.arange(256)[:, None]  # every scale
        data = np.ascontiguousarray(data).reshape(-1)
    cols = data.size // rows // size * block
    ids = np.arange(rows)
    ((x, _),) = card.call(
        "cases_embed.embed", 1, format=format, data=data, rows=rows, cols=cols, steps=[(0, ids)], max_rows=rows,
        rotations=[],
    )  # fmt: skip
    check_rows(x, dequantized(format, rows, cols, data))


@pytest.mark.parametrize("position", [0, 1, 8190, 8191, 10_000_003])
def test_rotations(card: Remote, position: int) -> None:
    """A table of all positions, one of chunks that the step's rows cross the end of, and odd numbers of pairs."""
    plain = 500_000.0 ** -(np.arange(64) / 64)
    odd = 10_000.0 ** -(np.arange(17) / 17)
    many = np.exp(np.random.default_rng(3).uniform(-20, 0.7, 300))  # more than a block has threads
    rotations: list[tuple[np.ndarray, int]] = [(plain, 0), (odd, 8192), (many, 0), (np.array([1.0]), 3)]
    data = table("BF16", VOCAB, 8, 1)
    ids = [np.array([5]), np.arange(3), np.arange(17)]
    made = card.call(
        "cases_embed.embed", position, format="BF16", data=data, rows=VOCAB, cols=8,
        steps=[(position, of_step) for of_step in ids], max_rows=MAX_ROWS, rotations=rotations, captured=True,
    )  # fmt: skip
    for (x, tables), of_step in zip(made, ids, strict=True):
        check_rows(x, dequantized("BF16", VOCAB, 8, data)[of_step])
        for found, (inverse_frequency, chunk) in zip(tables, rotations, strict=True):
            check_table(found, position, len(of_step), inverse_frequency, chunk)


def test_quarters_of_a_turn(card: Remote) -> None:
    """Angles at and beside the borders between quarters and eighths, and of many turns."""
    turns = np.concatenate([np.arange(33) / 32, np.arange(9) / 8 + 1e-9, np.arange(1, 9) / 8 - 1e-9])
    inverse = np.concatenate([2 * np.pi * turns, 2 * np.pi * (turns + 12345), [0.0, 1e-300, 1e-9]])
    data = table("F32", VOCAB, 4, 1)
    ((_, (found,)),) = card.call(
        "cases_embed.embed", format="F32", data=data, rows=VOCAB, cols=4, steps=[(1, np.arange(3))], max_rows=3,
        rotations=[(inverse, 0)],
    )  # fmt: skip
    check_table(found, 1, 3, inverse, 0)


@pytest.mark.parametrize("seed", range(4))
def test_between_launches(card: Remote, seed: int) -> None:
    data = np.random.default_rng(seed).standard_normal((VOCAB, 1028)).astype(np.float32)
    ids = np.array([3, VOCAB - 1])
    found = card.call(
        "cases_embed.norm_after", seed, format="F32", data=data.view(np.uint8), rows=VOCAB, cols=1028, ids=ids
    )
    alone = card.call("rms_norm", x=data[ids], weight=None, eps=1e-5)[0]
    assert found.tobytes() == alone.tobytes()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rows": 0}, "embed: rows of the table is 0, must be 1 to 2147483647"),
        ({"cols": 60}, "embed: cols of the table is 60, must be a multiple of 32, a block of Q4_0"),
        ({"max_rows": 0}, "embed: max_rows is 0, must be 1 to 65535"),
        ({"rows": 10_000}, "embed: table has 4096 bytes, its shape needs 360192 bytes"),
        ({"rotation_count": 3}, "embed: rotations is null, must be an address"),
        ({"x": 4}, "embed: x is not aligned, must be on 16 bytes"),
        ({"table": 16}, "embed: table is not aligned, must be on 256 bytes"),
    ],
)
def test_wrong_arguments(card: Remote, changes: dict[str, Any], sentence: str) -> None:
    assert card.call("cases_embed.refused", changes=changes) == sentence
