"""The torch operators' CUDA side, through the table that they call, on raw addresses: against float64."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import product_oracle
import pytest
import tolerances
from cuda_oracles import bf16, load, visible
from cuda_worker import Array, Remote

from llama_ext import _core

TYPES = ["f32", "bf16"]


def values(type: str, *shape: int, seed: int = 0) -> Array:
    """float32, or the bits of bfloat16"""
    drawn = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return drawn if type == "f32" else bf16(drawn)


def wide(array: Array) -> Array:
    return load(array, "bf16" if array.dtype == np.uint16 else "f32")


def close(actual: Array, value: Array, bound: Array) -> None:
    """Each element within its bound; bfloat16 is rounded once more, at the end."""
    assert actual.shape == value.shape
    if actual.dtype == np.uint16:
        bound = bound + tolerances.BF16_ROUNDING * (np.abs(value) + bound)
    error = np.abs(wide(actual) - value) / (bound + 1e-37)
    worst = float(np.where(np.isfinite(error), error, np.inf).max())
    assert worst <= 1, f"an element is off by {worst:.3g} times what is allowed"


# --- rms_norm


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("n", [1, 7, 8, 100, 2049])
def test_rms_norm(card: Remote, type: str, n: int) -> None:
    for seed, weight in enumerate((None, values("f32", n, seed=1), values("bf16", n, seed=2))):
        x = values(type, 3, n, seed=n)
        y = card.call("cases_calls.rms_norm", seed, x=x, weight=weight, eps=1e-5, captured=seed == 2)
        value = wide(x) / np.sqrt((wide(x) ** 2).mean(-1, keepdims=True) + 1e-5)
        if weight is not None:
            value = value * wide(weight)
        close(y, value, tolerances.CUDA_RMS_NORM * np.abs(value))


def test_bfloat16_is_rounded_to_nearest_and_even(card: Remote) -> None:
    """A norm of ones is the weight itself."""
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0xBF818000, 0x3F80FFFF, 0x3FFFFFFF, 0], np.uint32)
    weight = np.tile(bits.view(np.float32), 3)[:21]
    y = card.call("cases_calls.rms_norm", x=bf16(np.ones((1, 21))), weight=weight, eps=0.0)
    assert (y == bf16(weight)).all()


# --- rope


def turned(x: Array, positions: Array, frequency: Array, interleaved: bool) -> tuple[Array, Array]:
    angle = (positions.astype(np.float64)[:, None] * frequency)[:, None, :]
    half = x.shape[-1] // 2
    first = slice(0, None, 2) if interleaved else slice(0, half)
    second = slice(1, None, 2) if interleaved else slice(half, None)
    a, b = wide(x)[..., first], wide(x)[..., second]
    value, size = np.empty(x.shape), np.empty(x.shape)
    value[..., first] = a * np.cos(angle) - b * np.sin(angle)
    value[..., second] = a * np.sin(angle) + b * np.cos(angle)
    size[..., first] = size[..., second] = np.abs(a) + np.abs(b)
    return value, size


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("head_dim", [2, 16, 130])
def test_rope(card: Remote, type: str, interleaved: bool, head_dim: int) -> None:
    frequency = 500000.0 ** (-np.arange(head_dim // 2) / (head_dim // 2))
    for seed, positions in enumerate(
        (np.array([0, 1, 2]), np.array([9_999_999, 3, 131_071]), np.array([1 << 40, -5, 7]))
    ):
        x = values(type, 2, 3, 5, head_dim, seed=seed)
        y = card.call(
            "cases_calls.rope", seed, x=x, positions=positions, inverse_frequency=frequency, interleaved=interleaved,
            captured=seed == 1,
        )  # fmt: skip
        value, size = turned(x, positions, frequency, interleaved)
        close(y, value, tolerances.CUDA_ROPE_CALL * size)


# --- attention


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize(
    ("rows", "heads", "kv_heads", "head_dim", "keys", "first", "mask"),
    [
        (1, 4, 2, 64, 40, 39, ("global", 0)),
        (1, 4, 1, 128, 300, 280, ("global", 0)),
        (3, 2, 2, 24, 50, 40, ("sliding", 9)),
        (5, 6, 2, 64, 70, 60, ("chunked", 32)),
        (17, 2, 1, 16, 17, 0, ("global", 0)),
        (35, 4, 2, 32, 60, 20, ("chunked", 16)),
        (18, 2, 1, 64, 90, 70, ("sliding", 21)),
        (16, 2, 2, 8, 30, 5, ("sliding", 1)),
    ],
)
def test_attention(
    card: Remote, type: str, rows: int, heads: int, kv_heads: int, head_dim: int, keys: int, first: int,
    mask: tuple[str, int],
) -> None:  # fmt: skip
    q = values(type, rows, heads, head_dim, seed=keys)
    k, v = (values(type, keys, kv_heads, head_dim, seed=keys + i) for i in (1, 2))
    scale = head_dim**-0.5
    out = card.call(
        "cases_calls.attention", rows, q=q, k=k, v=v, first_position=first, mask=mask, scale=scale, captured=rows == 5
    )
    group = heads // kv_heads
    for row in range(rows):
        seen = visible(first + row, *mask)
        wide_q, wide_k, wide_v = wide(q)[row], wide(k)[seen].repeat(group, 1), wide(v)[seen].repeat(group, 1)
        scores = np.einsum("hd,khd->hk", wide_q, wide_k) * scale
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        size = (np.einsum("hd,khd->hk", np.abs(wide_q), np.abs(wide_k)) * scale).max(-1, keepdims=True)
        magnitude = np.einsum("hk,khd->hd", weights, np.abs(wide_v)) * (1 + size)
        many = tolerances.CUDA_ATTENTION_PREFILL[type]
        tolerance = tolerances.CUDA_ATTENTION if rows <= 16 else many
        close(out[row], np.einsum("hk,khd->hd", weights, wide_v), tolerance * magnitude)


# --- linear


def test_repack(card: Remote) -> None:
    """A file's bytes, packed on the card, are to the bit what the host packs: across what a block of threads takes."""
    for format, (block, size, _) in _core.formats.items():
        for rows, blocks in ((1, 1), (3, 5), (7, 37)):
            cols = blocks * block
            data = np.random.default_rng(rows).integers(0, 256, rows * blocks * size, np.uint8)
            packed = card.call("cases_calls.repack", rows, format=format, rows=rows, cols=cols, data=data)
            expected = np.asarray(_core.cuda.pack(format=format, rows=rows, cols=cols, data=data))
            assert packed.tobytes() == expected.tobytes(), (format, rows, cols)


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("format", product_oracle.ALL)
def test_linear(card: Remote, type: str, format: str) -> None:
    cols = 36 if format in product_oracle.FLOAT_FORMATS else 256
    weights = product_oracle.make(format, 19, cols, 3)
    for rows in (1, 16, 17, 66):  # more than 16 meet tensor cores, but for float32 weights
        x = values(type, rows, cols, seed=rows)
        y = card.call(
            "cases_calls.linear", rows, x=x, weight=weights.data, format=format, outputs=19, captured=rows == 17
        )
        oracle = product_oracle.product if rows <= 16 or format == "F32" else product_oracle.product_tiles
        close(y, *oracle(weights, wide(x).astype(np.float32)))


@pytest.mark.parametrize("offset", [0, 16])
def test_float_weights_are_taken_where_they_lie(card: Remote, offset: int) -> None:
    """Rows that are whole pieces of 16 bytes at an aligned address are not copied; others are."""
    weights, x = product_oracle.make("BF16", 5, 40, 1), values("f32", 2, 40)
    y = card.call("cases_calls.linear", x=x, weight=weights.data, format="BF16", outputs=5, offset=offset)
    close(y, *product_oracle.product(weights, x))


# --- mixtures


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize(("scoring", "scaled"), [("softmax", "output"), ("sigmoid", "input")])
def test_moe(card: Remote, type: str, scoring: str, scaled: str) -> None:
    x, logits = values(type, 9, 36, seed=1), values(type, 9, 5, seed=2)
    chosen, scores, gathered, offsets, source, out = card.call(
        "cases_calls.moe", 1, x=x, logits=logits, top_k=3, scoring=scoring, scaled=scaled, captured=scoring == "sigmoid"
    )
    order = np.argsort(-wide(logits), axis=1, kind="stable")[:, :3]
    assert (chosen == order).all()
    best = np.take_along_axis(wide(logits), order, 1)
    powers = np.exp(best - best[:, :1])
    expected = 1 / (1 + np.exp(-best)) if scoring == "sigmoid" else powers / powers.sum(1, keepdims=True)
    close(scores, expected, tolerances.ROUNDING * expected * 1.01)
    choices = chosen.reshape(-1)
    assert (source == np.argsort(choices, kind="stable")).all()
    assert (offsets == np.concatenate([[0], np.bincount(choices, minlength=5).cumsum()])).all()
    factor = scores.astype(np.float64).reshape(-1)
    placed = wide(x)[source // 3] * (factor[source, None] if scaled == "input" else 1)
    close(gathered, placed, tolerances.ROUNDING * np.abs(placed) * 1.01)
    terms = np.empty((27, 36))
    terms[source] = wide(gathered)
    if scaled == "output":
        terms *= factor[:, None]
    terms = terms.reshape(9, 3, 36)
    close(out, terms.sum(1), 5 * tolerances.ROUNDING * np.abs(terms).sum(1))


# --- errors


@pytest.mark.parametrize(
    ("operation", "changes", "said"),
    [
        ("rms_norm", {"rows": 0}, r"rms_norm: rows is 0, must be 1 to \d+"),
        ("rms_norm", {"x": 0}, "x is null, must be an address"),
        ("rms_norm", {"scratch": (0, 0)}, "a call: scratch is null, must be an address"),
        ("rms_norm", {"scratch": (256, 700)}, "a call: scratch is of 700 bytes, must be 768 or more"),
        ("rms_norm", {"device": 7}, "there is no CUDA device 7: the driver reports 1, counted from 0"),
        ("rope", {"head_dim": 7}, "rope: head_dim is 7, must be even"),
        ("rope", {"rows": -1}, "rope: positions is of a size of -1, must be 0 or more"),
        ("attention", {"head_dim": 12}, "attention: head_dim is 12, must be a multiple of 8"),
        ("attention", {"rows": 7}, "attention: rows is 7, must be 1 to 6"),
        ("attention", {"heads": 3}, "attention: heads is 3, must be a multiple of kv_heads, 2"),
        ("linear", {"cols": 40}, "a row of 40 weights does not fill blocks of 32, as Q4_0 has them"),
        ("linear", {"weight": 8}, "linear: weight is not aligned, must be on 16 bytes"),
        ("moe_route", {"top_k": 5}, "moe_route: top_k is 5, must be 1 to 4"),
    ],
)
def test_errors(card_of: Callable[[str], Remote], operation: str, changes: dict[str, Any], said: str) -> None:
    assert re.search(said, card_of("sm_80").call("cases_calls.wrong", operation=operation, **changes))
