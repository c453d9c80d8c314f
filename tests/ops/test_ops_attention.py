"""torch.ops.llama_ext.attention against its float64 definition and PyTorch's scaled_dot_product_attention."""

from __future__ import annotations

import ops_oracles as oracle
import pytest
import torch

from llama_ext import ops

MASKS = [
    ("causal", 0),
    ("chunked", 1),
    ("chunked", 16),
    ("chunked", 100),
    ("sliding", 1),
    ("sliding", 17),
    ("sliding", 128),
]


def inputs(
    rows: int, keys: int, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return (
        oracle.normal(rows, heads, head_dim, dtype=dtype, seed=seed),
        oracle.normal(keys, kv_heads, head_dim, dtype=dtype, seed=seed + 1),
        oracle.normal(keys, kv_heads, head_dim, dtype=dtype, seed=seed + 2),
    )


@pytest.mark.parametrize("dtype", oracle.DTYPES)
@pytest.mark.parametrize("head_dim", [1, 8, 64, 80, 128])
@pytest.mark.parametrize("keys", [1, 2, 15, 16, 17, 129, 300])
def test_keys_and_head_dims(keys: int, head_dim: int, dtype: torch.dtype) -> None:
    for rows in sorted({1, min(keys, 5), min(keys, 17)}):
        q, k, v = inputs(rows, keys, 6, 2, head_dim, dtype, seed=keys)
        result = ops.attention(q, k, v, keys - rows, "causal")
        oracle.check(result, oracle.attention(q, k, v, keys - rows, "causal"), dtype)


@pytest.mark.parametrize(("mask", "extent"), MASKS)
def test_masks(mask: str, extent: int) -> None:
    """Every position from 0 on, so chunk borders, the first full window and both sides of a block of 128."""
    q, k, v = inputs(300, 300, 2, 1, 16, torch.float32)
    expected = oracle.attention(q, k, v, 0, mask, extent)
    oracle.check(ops.attention(q, k, v, 0, mask, extent), expected, torch.float32)
    # Any part of the rows gives the same bits.
    whole = ops.attention(q, k, v, 0, mask, extent)
    for first, last in ((0, 1), (15, 17), (99, 102), (120, 140), (255, 300)):
        part = ops.attention(q[first:last], k[: last + 1], v[: last + 1], first, mask, extent)
        assert torch.equal(part, whole[first:last])


@pytest.mark.parametrize("dtype", oracle.DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (9, 3), (8, 1), (14, 2), (20, 4)])
def test_grouped_heads(heads: int, kv_heads: int, dtype: torch.dtype) -> None:
    q, k, v = inputs(3, 40, heads, kv_heads, 32, dtype)
    for mask, extent in (("causal", 0), ("sliding", 20)):
        result = ops.attention(q, k, v, 30, mask, extent, 0.3)
        oracle.check(result, oracle.attention(q, k, v, 30, mask, extent, 0.3), dtype)


@pytest.mark.parametrize(("mask", "extent"), MASKS)
def test_as_scaled_dot_product_attention(mask: str, extent: int) -> None:
    q, k, v = inputs(20, 150, 6, 2, 64, torch.float32)
    seen = oracle.visible(20, 150, 130, mask, extent)
    heads_first = [t.double().transpose(0, 1)[None] for t in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(
        heads_first[0], heads_first[1], heads_first[2], attn_mask=seen, enable_gqa=True
    )[0].transpose(0, 1)
    ours = oracle.attention(q, k, v, 130, mask, extent)
    torch.testing.assert_close(ours.value, expected)  # the oracle and PyTorch agree
    oracle.check(ops.attention(q, k, v, 130, mask, extent), oracle.Expected(expected, ours.magnitude), torch.float32)


def test_large_scores() -> None:
    q, k, v = inputs(4, 200, 2, 2, 64, torch.float32)
    q = q * 50
    oracle.check(ops.attention(q, k, v, 196, "causal"), oracle.attention(q, k, v, 196, "causal"), torch.float32)


def test_unseen_keys_do_not_matter() -> None:
    q, k, v = inputs(1, 200, 2, 1, 16, torch.float32)
    expected = ops.attention(q, k[:150], v[:150], 149, "sliding", 30)
    k[:120], v[:120], k[150:], v[150:] = (torch.nan,) * 4
    assert torch.equal(ops.attention(q, k, v, 149, "sliding", 30), expected)


def test_strides_threads_and_empty() -> None:
    q, k, v = (t.transpose(0, 1).contiguous().transpose(0, 1) for t in inputs(70, 300, 4, 2, 64, torch.float32))
    assert not q.is_contiguous()
    result = ops.attention(q, k, v, 230, "causal")
    assert result.is_contiguous()
    oracle.check(result, oracle.attention(q, k, v, 230, "causal"), torch.float32)
    threads = torch.get_num_threads()
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            assert torch.equal(ops.attention(q, k, v, 230, "causal"), result)
    finally:
        torch.set_num_threads(threads)
    assert ops.attention(q[:0], k, v, 0, "causal").shape == (0, 4, 64)
    assert ops.attention(q[..., :0], k[..., :0], v[..., :0], 0, "causal").shape == (70, 4, 0)
    assert ops.attention(q[:, :0], k[:, :0], v[:, :0], 0, "causal").shape == (70, 0, 64)


def test_the_checker_sees_a_wrong_result() -> None:
    for dtype in oracle.DTYPES:
        q, k, v = inputs(4, 150, 4, 2, 64, dtype)
        expected = oracle.attention(q, k, v, 146, "sliding", 100)
        swapped = q[:, [0, 2, 1, 3]]
        for wrong in (
            ops.attention(q, k, v, 146, "sliding", 99),
            ops.attention(q, k, v, 145, "sliding", 100),
            ops.attention(q, k, v, 146, "causal"),
            ops.attention(q, k, v, 146, "sliding", 100, 0.13),
            ops.attention(swapped, k, v, 146, "sliding", 100)[:, [0, 2, 1, 3]],
        ):
            assert oracle.excess(wrong, expected, dtype) > 1


Q, K = torch.zeros(2, 4, 8), torch.zeros(5, 2, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((Q.half(), K.half(), K.half(), 0, "causal"), "q must be float32 or bfloat16"),
        ((Q, K.bfloat16(), K, 0, "causal"), "k must be Float, not BFloat16"),
        ((Q, K, K.bfloat16(), 0, "causal"), "v must be Float, not BFloat16"),
        ((Q[0], K, K, 0, "causal"), r"q must be \[rows, heads, head_dim\]"),
        ((Q, K[0], K, 0, "causal"), r"k must be \[keys, kv_heads, head_dim\]"),
        ((Q, K, K[:4], 0, "causal"), r"v must have k's shape \[5, 2, 8\], not \[4, 2, 8\]"),
        ((Q, K[..., :4], K[..., :4], 0, "causal"), "k must have q's head_dim 8, not 4"),
        ((Q[:, :3], K, K, 0, "causal"), "3 heads cannot share 2 key-value heads evenly"),
        ((Q, K[:, :0], K[:, :0], 0, "causal"), "4 heads cannot share 0"),
        ((Q, K, K, 4, "causal"), "2 queries from position 4 on .* only 5 keys"),
        ((Q, K, K, 2**63 - 1, "causal"), "2 queries from position"),
        ((Q, K[:1], K[:1], 0, "causal"), "2 queries from position 0 on"),
        ((Q, K[:0], K[:0], 0, "causal"), "2 queries from position 0 on"),
        ((Q, K, K, -1, "causal"), "first_position must be 0 or more, not -1"),
        ((Q, K, K, 0, "full"), "mask must be 'causal', 'chunked' or 'sliding', not 'full'"),
        ((Q, K, K, 0, "causal", 3), "extent belongs to chunked and sliding masks"),
        ((Q, K, K, 0, "sliding"), "a sliding mask needs an extent of 1 or more, not 0"),
        ((Q, K, K, 0, "chunked", -2), "a chunked mask needs an extent of 1 or more, not -2"),
    ],
)
def test_bad_inputs(arguments: tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, str], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^attention: {message}"):
        ops.attention(*arguments)
