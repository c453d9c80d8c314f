"""torch.ops.llama_ext.linear in every weight format against gguf's dequantization and a float64 product."""

from __future__ import annotations

import gguf
import numpy as np
import ops_oracles as oracle
import pytest
import torch

from llama_ext import _core, ops


@pytest.mark.parametrize("dtype", oracle.DTYPES)
@pytest.mark.parametrize("format", oracle.FORMATS)
def test_every_format(format: str, dtype: torch.dtype) -> None:
    for n, k, rows in ((1, 256, 1), (15, 512, 2), (16, 256, 3), (37, 768, 17), (64, 512, 70)):
        weight, values = oracle.random_weight(format, n, k, seed=n)
        x = oracle.normal(rows, k, dtype=dtype, seed=k)
        oracle.check(ops.linear(x, weight, format), oracle.linear(x, values, format), dtype)


@pytest.mark.parametrize("format", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantized_by_gguf(format: str) -> None:
    source = oracle.normal(33, 96).numpy()
    raw = gguf.quants.quantize(source, gguf.GGMLQuantizationType[format])
    values = torch.from_numpy(gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[format])).double()
    x = oracle.normal(4, 96, seed=1)
    result = ops.linear(x, torch.from_numpy(raw), format)
    oracle.check(result, oracle.linear(x, values, format), torch.float32)
    bits = {"Q8_0": 7, "Q4_0": 3, "Q4_1": 4, "Q5_0": 4, "Q5_1": 5}[format]
    error = (result.double() - x.double() @ torch.from_numpy(source).double().T).std()
    assert error < 96**0.5 * 2 ** -(bits - 1.5)  # it is the weight that was meant


@pytest.mark.parametrize("format", oracle.FLOAT_FORMATS)
def test_float_weights_as_bytes(format: str) -> None:
    weight, _ = oracle.random_weight(format, 19, 21)
    x = oracle.normal(3, 21)
    assert torch.equal(ops.linear(x, weight.view(torch.uint8), format), ops.linear(x, weight, format))


@pytest.mark.parametrize("format", ["F32", "BF16", "Q4_K", "Q8_0"])
def test_a_row_is_the_same_bits_in_any_company(format: str) -> None:
    weight, _ = oracle.random_weight(format, 40, 512)
    x = oracle.normal(100, 512)
    together = ops.linear(x, weight, format)
    for first, last in ((0, 1), (3, 5), (10, 26), (63, 66)):
        assert torch.equal(ops.linear(x[first:last], weight, format), together[first:last])


@pytest.mark.parametrize("format", ["F16", "Q5_0"])
def test_shapes_strides_threads_and_empty(format: str) -> None:
    weight, values = oracle.random_weight(format, 600, 64)
    x = oracle.normal(64, 5, 3).permute(1, 2, 0)  # [5, 3, 64]
    result = ops.linear(x, weight, format)
    assert result.is_contiguous() and result.shape == (5, 3, 600)
    oracle.check(result, oracle.linear(x, values, format), torch.float32)
    assert torch.equal(ops.linear(x, weight[::2], format), result[..., ::2])
    assert torch.equal(ops.linear(x[0, 0], weight, format), result[0, 0])
    threads = torch.get_num_threads()
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            assert torch.equal(ops.linear(x, weight, format), result)
    finally:
        torch.set_num_threads(threads)
    assert ops.linear(x[:0], weight, format).shape == (0, 3, 600)
    assert ops.linear(x, weight[:0], format).shape == (5, 3, 0)
    assert torch.equal(ops.linear(x[..., :0], weight[:, :0], format), torch.zeros(5, 3, 600))


def test_blocks_of_zeros_and_not_a_number() -> None:
    weight, values = oracle.random_weight("Q4_0", 16, 96)
    x = oracle.normal(2, 96)
    x[0, 32:64] = 0
    oracle.check(ops.linear(x, weight, "Q4_0"), oracle.linear(x, values, "Q4_0"), torch.float32)
    x[1, 40] = torch.nan
    result = ops.linear(x, weight, "Q4_0")
    assert result[0].isfinite().all() and result[1].isnan().all()


@pytest.mark.parametrize("format", oracle.FORMATS)
def test_the_checker_sees_a_wrong_result(format: str) -> None:
    weight, values = oracle.random_weight(format, 20, 512)
    x = oracle.normal(3, 512)
    expected = oracle.linear(x, values, format)
    wrong = [ops.linear(x, weight.roll(1, 0), format), ops.linear(x.roll(1, -1), weight, format)]
    wrong.append(ops.linear(x.bfloat16(), weight, format).float())
    if format in oracle.BLOCK_FORMATS:
        blocks = x.unflatten(-1, (-1, 32))
        step = blocks.abs().amax(-1, keepdim=True) / 127
        eight_bits = ((blocks / step).round() * step).flatten(1)
        wrong.append(ops.linear(eight_bits, weight, format))
        damaged = weight.clone()
        damaged[7, oracle.BLOCK_FORMATS[format][1] + 16] ^= 4  # one bit of one quant
        wrong.append(ops.linear(x, damaged, format))
    for result in wrong:
        assert oracle.excess(result, expected, torch.float32) > 1


X, W = torch.zeros(2, 64), torch.zeros(3, 36, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("x", "weight", "format", "message"),
    [
        (X.half(), W, "Q4_0", "x must be float32 or bfloat16"),
        (torch.tensor(1.0), W, "Q4_0", r"x must be \[\.\.\., k\]"),
        (X, W[0], "Q4_0", r"weight must be \[n, bytes of a row\]"),
        (X, W, "Q2_K", "unknown weight format 'Q2_K'; known: F32, F16"),
        (X, W, "", "unknown weight format ''"),
        (X[:, :48], W, "Q4_0", "Q4_0 weights come in blocks of 32, which k = 48"),
        (X, W, "Q4_K", "Q4_K weights come in blocks of 256"),
        (X, W[:, :34], "Q4_0", r"a row of 64 Q4_0 weights has 36 bytes; weight is \[3, 34\]"),
        (X, X, "Q4_0", "weight of dtype Float does not hold Q4_0"),
        (X, X, "F16", "weight of dtype Float does not hold F16"),
        (X, X.to(torch.int8), "Q8_0", "weight of dtype Char does not hold Q8_0"),
        (X, X[:, :60], "F32", r"weight must be \[n, 64\]"),
    ],
)
def test_bad_inputs(x: torch.Tensor, weight: torch.Tensor, format: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^linear: {message}"):
        ops.linear(x, weight, format)


def test_formats_are_gguf_s() -> None:
    for name, (per_block, block_bytes, _) in oracle.BLOCK_FORMATS.items():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]] == (per_block, block_bytes)


def test_mxfp8() -> None:
    """Its numbers are bfloat16's, and so is its product."""
    values = np.random.default_rng(3).normal(size=(40, 96)).astype(np.float32)
    data = _core.quantize_array(values, "MXFP8")
    exact = torch.from_numpy(_core.Weight("w", "MXFP8", 40, 96, data).dequantize())
    x = oracle.normal(3, 96)
    ours = ops.linear(x, torch.from_numpy(data), "MXFP8")
    assert torch.equal(ours, ops.linear(x, exact.bfloat16(), "BF16"))
