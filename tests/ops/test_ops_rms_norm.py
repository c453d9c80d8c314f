"""torch.ops.llama_ext.rms_norm against its definition in float64."""

from __future__ import annotations

import ops_oracles as oracle
import pytest
import torch

from llama_ext import ops


@pytest.mark.parametrize("dtype", oracle.DTYPES)
@pytest.mark.parametrize("n", [1, 15, 16, 17, 63, 64, 65, 80, 576, 4096])
def test_definition(n: int, dtype: torch.dtype) -> None:
    x, weight = oracle.normal(3, n, dtype=dtype, seed=n), oracle.normal(n, dtype=dtype, seed=n + 1)
    oracle.check(ops.rms_norm(x, weight, 1e-5), oracle.rms_norm(x, weight, 1e-5), dtype)
    oracle.check(ops.rms_norm(x, None, 1e-6), oracle.rms_norm(x, None, 1e-6), dtype)


@pytest.mark.parametrize("dtype", oracle.DTYPES)
@pytest.mark.parametrize("shape", [(40,), (2, 3, 40), (300, 1000)])
def test_shapes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = oracle.normal(*shape, dtype=dtype)
    oracle.check(ops.rms_norm(x, None, 1e-5), oracle.rms_norm(x, None, 1e-5), dtype)


@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e-3, 1e6])
def test_scales(scale: float) -> None:
    x = oracle.normal(2, 96) * scale
    oracle.check(ops.rms_norm(x, None, 1e-5), oracle.rms_norm(x, None, 1e-5), torch.float32)


@pytest.mark.parametrize(("x_type", "weight_type"), [oracle.DTYPES, oracle.DTYPES[::-1]])
def test_weight_of_another_dtype(x_type: torch.dtype, weight_type: torch.dtype) -> None:
    x, weight = oracle.normal(2, 48, dtype=x_type), oracle.normal(48, dtype=weight_type, seed=1)
    oracle.check(ops.rms_norm(x, weight, 1e-5), oracle.rms_norm(x, weight, 1e-5), x_type)


def test_strides_and_empty() -> None:
    x, weight = oracle.normal(40, 6).T, oracle.normal(80)[::2]
    result = ops.rms_norm(x, weight, 1e-5)
    assert result.is_contiguous()
    oracle.check(result, oracle.rms_norm(x, weight, 1e-5), torch.float32)
    assert ops.rms_norm(torch.empty(0, 8), torch.ones(8), 1e-5).shape == (0, 8)
    assert ops.rms_norm(torch.empty(2, 0), torch.ones(0), 1e-5).shape == (2, 0)


def test_matches_torch() -> None:
    x, weight = oracle.normal(5, 576), oracle.normal(576, seed=1)
    torch.testing.assert_close(
        ops.rms_norm(x, weight, 1e-5),
        torch.nn.functional.rms_norm(x, (576,), weight, 1e-5),
        rtol=1e-5,
        atol=1e-6,
    )


def test_the_checker_sees_a_wrong_result() -> None:
    x, weight = oracle.normal(3, 64), oracle.normal(64, seed=1)
    expected = oracle.rms_norm(x, weight, 1e-5)
    good = ops.rms_norm(x, weight, 1e-5)
    assert oracle.excess(good, expected, torch.float32) <= 1
    for wrong in (ops.rms_norm(x, weight, 1e-4), ops.rms_norm(x, None, 1e-5), good * (1 + 3e-6)):
        assert oracle.excess(wrong, expected, torch.float32) > 1
    good[1, 5] = torch.nan
    assert oracle.excess(good, expected, torch.float32) > 1


@pytest.mark.parametrize(
    ("x", "weight", "message"),
    [
        (torch.zeros(2, 4, dtype=torch.float16), None, "x must be float32 or bfloat16, not Half"),
        (torch.zeros(2, 4, dtype=torch.float64), None, "x must be float32 or bfloat16"),
        (torch.tensor(1.0), None, r"x must be \[\.\.\., n\]"),
        (torch.zeros(2, 4), torch.zeros(5), r"weight must be \[4\] as x's last dimension, not \[5\]"),
        (torch.zeros(2, 4), torch.zeros(1, 4), r"weight must be \[4\]"),
        (torch.zeros(2, 4), torch.zeros(4, dtype=torch.int64), "weight must be float32 or bfloat16"),
    ],
)
def test_bad_inputs(x: torch.Tensor, weight: torch.Tensor | None, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^rms_norm: {message}"):
        ops.rms_norm(x, weight, 1e-5)
