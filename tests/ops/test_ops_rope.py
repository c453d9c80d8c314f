"""torch.ops.llama_ext.rope against its definition in float64 and transformers' two implementations."""

from __future__ import annotations

import ops_oracles as oracle
import pytest
import torch

from llama_ext import ops


def frequencies(head_dim: int, theta: float = 500000.0) -> torch.Tensor:
    return theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)


@pytest.mark.parametrize("dtype", oracle.DTYPES)
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("head_dim", [2, 8, 64, 80, 128])
def test_definition(head_dim: int, interleaved: bool, dtype: torch.dtype) -> None:
    x = oracle.normal(5, 3, head_dim, dtype=dtype, seed=head_dim)
    positions = torch.tensor([0, 1, 17, 8191, 10_000_000])
    inverse_frequency = frequencies(head_dim)
    result = ops.rope(x, positions, inverse_frequency, interleaved)
    oracle.check(result, oracle.rope(x, positions, inverse_frequency, interleaved), dtype)


@pytest.mark.parametrize("interleaved", [True, False])
def test_leading_dimensions_strides_and_many_rows(interleaved: bool) -> None:
    x = oracle.normal(2, 3, 4, 300, 16).transpose(2, 3)  # [2, 3, 300, 4, 16]
    positions, inverse_frequency = torch.arange(600)[::2], frequencies(32)[::2]
    result = ops.rope(x, positions, inverse_frequency, interleaved)
    assert result.is_contiguous()
    oracle.check(result, oracle.rope(x, positions, inverse_frequency, interleaved), torch.float32)


@pytest.mark.parametrize("shape", [(0, 2, 8), (3, 0, 8), (3, 2, 0), (0, 3, 2, 8)])
def test_empty(shape: tuple[int, ...]) -> None:
    x = torch.empty(shape)
    positions = torch.zeros(shape[-3], dtype=torch.int64)
    assert ops.rope(x, positions, frequencies(shape[-1]), True).shape == shape


def test_halves_as_transformers_llama() -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    x, positions, inverse_frequency = oracle.normal(7, 3, 64), torch.arange(11, 18), frequencies(64)
    angle = (positions[:, None] * inverse_frequency).repeat(1, 2)
    q = x.double().transpose(0, 1)[None]  # [1, heads, rows, head_dim]
    turned, _ = apply_rotary_pos_emb(q, q, angle.cos()[None], angle.sin()[None])
    expected = oracle.Expected(turned[0].transpose(0, 1), torch.full_like(x, 2).double() * x.abs().amax())
    oracle.check(ops.rope(x, positions, inverse_frequency, False), expected, torch.float32)


def test_interleaved_as_transformers_llama4() -> None:
    from transformers.models.llama4.modeling_llama4 import apply_rotary_emb

    x, positions, inverse_frequency = oracle.normal(7, 3, 64), torch.arange(11, 18), frequencies(64)
    angle = (positions[:, None] * inverse_frequency)[None]
    turned, _ = apply_rotary_emb(x[None], x[None], torch.polar(torch.ones_like(angle), angle).to(torch.complex64))
    expected = oracle.Expected(turned[0].double(), torch.full_like(x, 2).double() * x.abs().amax())
    oracle.check(ops.rope(x, positions, inverse_frequency, True), expected, torch.float32)


def test_the_checker_sees_a_wrong_result() -> None:
    x, positions, inverse_frequency = oracle.normal(4, 2, 16), torch.arange(1000, 1004), frequencies(16)
    for interleaved in (True, False):
        expected = oracle.rope(x, positions, inverse_frequency, interleaved)
        for wrong in (
            ops.rope(x, positions, inverse_frequency, not interleaved),
            ops.rope(x, positions + 1, inverse_frequency, interleaved),
            ops.rope(x, -positions, inverse_frequency, interleaved),
            ops.rope(x, positions, inverse_frequency.float().double(), interleaved),  # float32 angles
        ):
            assert oracle.excess(wrong, expected, torch.float32) > 1


X, POSITIONS, FREQUENCIES = torch.zeros(3, 2, 8), torch.arange(3), torch.ones(4, dtype=torch.float64)


@pytest.mark.parametrize(
    ("x", "positions", "inverse_frequency", "message"),
    [
        (X.half(), POSITIONS, FREQUENCIES, "x must be float32 or bfloat16"),
        (X[0], POSITIONS, FREQUENCIES, r"x must be \[\.\.\., rows, heads, head_dim\], not \[2, 8\]"),
        (X[..., :7], POSITIONS, FREQUENCIES, "head_dim must be even, not 7"),
        (X, POSITIONS.int(), FREQUENCIES, "positions must be Long, not Int"),
        (X, POSITIONS[:2], FREQUENCIES, r"positions must be \[3\], one a row of x, not \[2\]"),
        (X, POSITIONS[None], FREQUENCIES, r"positions must be \[3\]"),
        (X, POSITIONS, FREQUENCIES.float(), "inverse_frequency must be Double, not Float"),
        (X, POSITIONS, FREQUENCIES[:3], r"inverse_frequency must be \[4\]"),
    ],
)
def test_bad_inputs(x: torch.Tensor, positions: torch.Tensor, inverse_frequency: torch.Tensor, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^rope: {message}"):
        ops.rope(x, positions, inverse_frequency, True)
