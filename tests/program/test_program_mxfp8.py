"""E4M3, E8M0 and MXFP8 against tables in float64 from their specifications; and keys and values of fp8."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import tolerances
from models import (
    Bytes,
    CpuSession,
    Floats,
    build,
    deviation,
    e4m3_table,
    native_weight,
    random_ids,
    random_weights,
    tiny_config,
    to_e4m3,
)

from llama_ext import _core
from llama_ext.config import LlamaConfig
from llama_ext.program import Program
from llama_ext.reference import ReferenceSession, fp8

Doubles = npt.NDArray[np.float64]


def weight(data: Bytes, cols: int, name: str = "w") -> _core.Weight:
    return _core.Weight(name, "MXFP8", len(data), cols, np.ascontiguousarray(data))


def quantized(values: Floats) -> Bytes:
    """MXFP8 of float32 [rows, cols], in float64 from the specification (OCP Microscaling Formats v1.0, 6.3)."""
    blocks = values.astype(np.float64).reshape(len(values), -1, 32)
    _, exponent = np.frexp(np.abs(blocks).max(-1, keepdims=True))  # the largest is in [2^(exponent - 1), 2^exponent)
    scale = np.clip(np.where((blocks == 0).all(-1, keepdims=True), -127, exponent - 1 - 8), -127, 127)
    out = np.concatenate([(scale + 127).astype(np.uint8), to_e4m3(blocks * 2.0**-scale)], -1)
    return np.ascontiguousarray(out.reshape(len(values), -1))


def interesting() -> Floats:
    """Every code's value and midpoint, their neighbours in float32, and numbers of every size."""
    table = np.unique(e4m3_table()[:127])
    middles = (table[1:] + table[:-1]) / 2
    exact = np.concatenate([table, middles, [464.0, 480.0, 1e30]]).astype(np.float32)
    near = [np.nextafter(exact, np.float32(direction)) for direction in (-np.inf, np.inf)]
    rng = np.random.default_rng(5)
    sizes = 2.0 ** rng.uniform(-30, 20, 20_000) * rng.choice([-1, 1], 20_000)
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)  # infinities and NaN too
    tiny = np.array([1e-45, 1e-38, 2.0**-10, 2.0**-149], np.float32)
    positive = np.concatenate([exact, *near, tiny])
    halves[np.isnan(halves)] = np.nan  # quiet
    return np.concatenate([positive, -positive, sizes.astype(np.float32), halves])


def test_floats_to_e4m3() -> None:
    values = interesting()
    assert np.isnan(values).any() and np.isinf(values).any()
    assert np.array_equal(_core.testing.e4m3(values), to_e4m3(values.astype(np.float64)))


def test_the_oracle_rounds_ties_to_even() -> None:
    ties = np.array([2.0**-10, 3 * 2.0**-10, 1.0625, 1.1875, 432.0, 449.0])
    assert to_e4m3(ties).tolist() == [0, 2, 0x38, 0x3A, 0x7E, 0x7E]


def test_every_code_under_every_scale() -> None:
    codes = np.tile(np.arange(256, dtype=np.uint8).reshape(1, 8, 32), (256, 1, 1))
    scales = np.arange(256, dtype=np.uint8)
    data = np.concatenate([np.tile(scales[:, None, None], (1, 8, 1)), codes], -1).reshape(256, -1)
    factor = np.where(scales == 255, np.nan, 2.0 ** (scales.astype(np.float64) - 127))
    with np.errstate(over="ignore"):
        expected = (e4m3_table()[None] * factor[:, None]).astype(np.float32)
    assert np.array_equal(weight(data, 256).dequantize(), expected, equal_nan=True)


def test_quantizing() -> None:
    rng = np.random.default_rng(6)
    gauss = rng.normal(size=(40, 256)) * 2.0 ** rng.uniform(-140, 120, (40, 1))
    spread = 2.0 ** rng.uniform(-20, 0, (40, 256)) * rng.choice([-1, 1], (40, 256))
    saturated = rng.uniform(440, 512, (10, 256)) * 2.0 ** rng.integers(-100, 100, (10, 1))
    edges = np.zeros((6, 256))
    edges[0, 3], edges[1, 40], edges[2, ::7], edges[3, 5] = 2.0**-149, 3.4e38, -(2.0**-126), 2.0**-119
    edges[4, :32] = -0.0
    edges[5, :] = np.repeat(2.0 ** np.arange(-4, 4), 32)  # a power of two is 2^8 under its scale
    values = np.concatenate([gauss, spread, saturated, edges]).astype(np.float32)
    assert np.isfinite(values).all()
    for simd in _core.simd_levels():
        assert np.array_equal(_core.quantize_array(values, "MXFP8", 2, simd=simd), quantized(values))


def test_ties_and_saturation_in_a_block() -> None:
    """A block whose scale is 1 rounds as E4M3 does."""
    values = interesting()
    values = values[np.abs(values) < 500]
    blocks = np.zeros((len(values), 32), np.float32)
    blocks[:, 0], blocks[:, 9] = 256, values
    out = _core.quantize_array(blocks, "MXFP8")
    assert (out[:, 0] == 127).all()
    assert np.array_equal(out[:, 10], to_e4m3(values.astype(np.float64)))


def test_a_second_time_changes_nothing() -> None:
    values = np.random.default_rng(7).normal(size=(8, 256)).astype(np.float32)
    once = _core.quantize_array(values, "MXFP8")
    assert np.array_equal(_core.quantize_array(weight(once, 256).dequantize(), "MXFP8"), once)


def test_the_error() -> None:
    """Half a step of 3 bits below the leading one, 2^-4; beside 2^-10 of the block's largest power of two, where it is
    subnormal; and what saturates loses 1/8 at the most."""
    values = np.random.default_rng(8).normal(size=(64, 256)).astype(np.float32)
    error = np.abs(weight(_core.quantize_array(values, "MXFP8"), 256).dequantize() - values).reshape(64, 8, 32)
    size = np.abs(values).reshape(64, 8, 32)
    power = 2.0 ** np.floor(np.log2(size.max(-1, keepdims=True)))
    assert (error <= np.maximum(size * np.where(size > 1.75 * power, 1 / 8, 2.0**-4), power * 2.0**-18)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    values = np.ones((2, 64), np.float32)
    values[1, 40] = bad
    with pytest.raises(ValueError, match=r"row 1: .*column 40"):
        _core.quantize_array(values, "MXFP8")
    with pytest.raises(ValueError, match="48 columns do not fill MXFP8's blocks of 32"):
        _core.quantize_array(values[:, :48].copy(), "MXFP8")


# --- the CPU: packed as BF16 ------------------------------------------------------------------------------------------


def test_products_are_those_of_bf16() -> None:
    rng = np.random.default_rng(9)
    for outputs, cols, rows in ((1, 32, 1), (17, 96, 3), (40, 256, 5)):
        w = weight(_core.quantize_array(rng.normal(size=(outputs, cols)).astype(np.float32), "MXFP8"), cols)
        exact = native_weight("w", w.dequantize(), "BF16")
        assert np.array_equal(exact.dequantize(), w.dequantize())
        x = rng.normal(size=(rows, cols)).astype(np.float32)
        for simd in _core.simd_levels():
            assert np.array_equal(_core.testing.product(w, x, simd), _core.testing.product(exact, x, simd))


def test_every_weight_packs_exactly() -> None:
    """A product with rows of the identity gives the weights back: all but those too small for bf16."""
    scales = np.array([0, 2, 3, 4, 127, 246], np.uint8)
    data = np.zeros((len(scales), 8, 33), np.uint8)
    data[..., 0], data[..., 1:] = scales[:, None], np.arange(256, dtype=np.uint8).reshape(8, 32)
    data[:, [3, 7], 32] = 0  # not NaN
    w = weight(data.reshape(len(scales), -1), 256)
    values = w.dequantize()
    small = np.round(values.astype(np.float64) * 2.0**133) * 2.0**-133
    expected = np.where(np.abs(values) < 2.0**-126, small, values)
    for simd in _core.simd_levels():
        found = _core.testing.product(w, np.eye(256, dtype=np.float32), simd).T
        assert np.array_equal(found, expected)
    assert (expected != values).any(axis=1).tolist() == [True, True, False, False, False, False]


def mxfp8_program(config: LlamaConfig, made: bool, **options: object) -> tuple[Program, Program]:
    """The program with every matrix in MXFP8, and with the same numbers in BF16. made: bytes are made on demand."""
    mx: dict[str, Floats | _core.Weight] = {}
    bf: dict[str, Floats | _core.Weight] = {}
    for name, values in random_weights(config, seed=3).items():
        if len(values) == 1:
            mx[name] = bf[name] = values
            continue
        data = _core.quantize_array(values, "MXFP8")
        mx[name] = _core.Weight(name, "MXFP8", *values.shape, (lambda d=data: d.reshape(-1)) if made else data)
        bf[name] = native_weight(name, weight(data, values.shape[1]).dequantize(), "BF16")
    return build(config, mx, **options), build(config, bf, **options)


@pytest.mark.parametrize("made", [False, True])
def test_programs(made: bool) -> None:
    """Tied, so that the head's packed copy serves the embedding where the bytes are made."""
    config = tiny_config(hidden_size=96, intermediate_size=160, head_dim=8, num_attention_heads=12,
                         num_key_value_heads=3, tie_word_embeddings=True)  # fmt: skip
    program, same = mxfp8_program(config, made, kv_cache="f32")
    ids = random_ids(config, 40)
    logits = CpuSession(program, threads=2).logits(ids)
    assert np.array_equal(logits, CpuSession(same, threads=2).logits(ids))
    assert deviation(logits, ReferenceSession(program).logits(ids)) < tolerances.EXECUTOR_FLOAT


# --- keys and values of fp8 -------------------------------------------------------------------------------------------


def test_the_reference_rounds_to_fp8() -> None:
    import torch

    values = interesting()
    found = fp8(torch.from_numpy(values)).numpy()
    assert np.array_equal(found, e4m3_table()[to_e4m3(values.astype(np.float64))], equal_nan=True)


def test_an_fp8_cache() -> None:
    """The reference's keys and values are those numbers, and it is one byte an element."""
    config = tiny_config()
    program = build(config, random_weights(config, seed=4), kv_cache="fp8")
    assert {layer.bytes_per_slot for layer in program.native.caches} == {2 * 2 * 8}
    session = ReferenceSession(program)
    ids = random_ids(config, 20)
    logits = session.logits(ids)
    for cache in session._caches:
        for part in cache:
            kept = part[:20].numpy()
            assert np.array_equal(kept, e4m3_table()[to_e4m3(kept.astype(np.float64))])
    exact = ReferenceSession(build(config, random_weights(config, seed=4), kv_cache="f32")).logits(ids)
    assert 1e-3 < deviation(logits, exact) < 0.5  # three bits: another cache, and no other model
    with pytest.raises(ValueError, match="the CPU serves no fp8 cache, use kv_cache='q8_0'"):
        CpuSession(program)
