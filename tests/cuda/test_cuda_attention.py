"""Attention over a cache against float64: heads, groups, lengths, masks, rings that have wrapped, empty splits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_oracles import check_attention, load, store, visible
from cuda_worker import Remote


def run(
    card: Remote,
    *,
    position: int,
    heads: int = 2,
    kv_heads: int = 1,
    head_dim: int = 64,
    format: str = "f32",
    capacity: int | None = None,
    splits: int = 3,
    mask: tuple[str, int] = ("global", 0),
    steps: int = 1,
    seed: int = 0,
    captured: bool = False,
    size: float = 1.0,
) -> list[np.ndarray]:
    """`steps` tokens from `position` on, each checked. The cache holds what came before, rounded to its format."""
    random = np.random.default_rng(seed + position)
    total = position + steps
    q = (random.standard_normal((steps, heads, head_dim)) * size).astype(np.float32)
    k, v = (random.standard_normal((total, kv_heads, head_dim), np.float32) for _ in range(2))
    stored_k, stored_v = store(k, format), store(v, format)
    results: list[np.ndarray] = card.call(
        "attention",
        seed,
        steps=[(position + i, q[i], k[position + i], v[position + i]) for i in range(steps)],
        past_k=stored_k[:position],
        past_v=stored_v[:position],
        format=format,
        capacity=capacity or total,
        splits=splits,
        mask=mask,
        scale=head_dim**-0.5,
        captured=captured,
    )
    for i, result in enumerate(results):
        keys = visible(position + i, *mask)
        check_attention(result, q[i], load(stored_k, format), load(stored_v, format), keys, head_dim**-0.5)
    return results


# A tile has 32 keys, and 3 splits share the tiles.
@pytest.mark.parametrize("position", [0, 1, 30, 31, 32, 33, 63, 64, 95, 96, 97, 250])
@pytest.mark.parametrize("format", ["f32", "f16", "bf16"])
def test_lengths(card: Remote, position: int, format: str) -> None:
    for seed in range(2):
        run(card, position=position, format=format, seed=seed)


@pytest.mark.parametrize("splits", [1, 2, 5, 16])
def test_splits(card: Remote, splits: int) -> None:
    """16 splits of 5 tiles: eleven have no key."""
    run(card, position=140, splits=splits, seed=splits)


@pytest.mark.parametrize("head_dim", [8, 24, 64, 72, 80, 128, 136, 256])
@pytest.mark.parametrize("format", ["f32", "f16", "bf16"])
def test_head_dims(card: Remote, head_dim: int, format: str) -> None:
    run(card, position=70, head_dim=head_dim, format=format, splits=2)


@pytest.mark.parametrize("group", range(1, 17))
def test_groups(card: Remote, group: int) -> None:
    for head_dim in (64, 40):
        run(card, position=45, heads=group * 2, kv_heads=2, head_dim=head_dim, splits=2, seed=group)


@pytest.mark.parametrize("mask", [("chunked", 48), ("sliding", 48)])
@pytest.mark.parametrize("position", [0, 46, 47, 48, 49, 95, 96, 130, 400])
def test_masks_in_a_ring(card: Remote, mask: tuple[str, int], position: int) -> None:
    """50 slots: every range of positions sooner or later runs over the end of the ring."""
    run(card, position=position, mask=mask, capacity=50, heads=4, kv_heads=2, splits=2, format="bf16")


@pytest.mark.parametrize("mask", [("chunked", 48), ("sliding", 48)])
def test_masks_in_a_cache_of_the_whole_context(card: Remote, mask: tuple[str, int]) -> None:
    run(card, position=130, mask=mask)


@pytest.mark.parametrize("mask", [("global", 0), ("chunked", 8), ("sliding", 8)])
@pytest.mark.parametrize("captured", [False, True])
def test_one_plan_for_every_position(card: Remote, mask: tuple[str, int], captured: bool) -> None:
    """A graph is captured once; positions move in device memory, from one chunk to the next and around the ring."""
    capacity = 41 if mask[0] == "global" else 9
    for seed in range(2):
        results = run(
            card, position=30, steps=11, mask=mask, capacity=capacity, heads=3, splits=2, seed=seed, captured=captured
        )
        assert len(results) == 11


def test_the_first_positions_of_all(card: Remote) -> None:
    run(card, position=0, steps=5, heads=4, kv_heads=2, splits=4, captured=True)


def test_bits_do_not_depend_on_the_order_of_blocks(card: Remote) -> None:
    arguments: dict[str, Any] = {"position": 200, "heads": 6, "kv_heads": 2, "splits": 5}
    first = run(card, seed=0, **arguments)[0]
    random = np.random.default_rng(200)
    q = random.standard_normal((1, 6, 64)).astype(np.float32)
    k, v = (random.standard_normal((201, 2, 64), np.float32) for _ in range(2))
    for seed in range(1, 4):
        again = card.call(
            "attention",
            seed,
            steps=[(200, q[0], k[200], v[200])],
            past_k=k[:200],
            past_v=v[:200],
            format="f32",
            capacity=201,
            splits=5,
            mask=("global", 0),
            scale=0.125,
        )[0]
        assert again.tobytes() == first.tobytes()


def test_large_scores(card: Remote) -> None:
    """Far beyond what an exponential takes without its maximum being subtracted."""
    run(card, position=100, size=200.0, splits=2)


@pytest.mark.parametrize("format", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("head_dim", [8, 64, 72, 256])
def test_append(card: Remote, format: str, head_dim: int) -> None:
    random = np.random.default_rng(head_dim)
    k, v = (random.standard_normal((3, head_dim), np.float32) for _ in range(2))
    for at in (0, 6, 7, 20):
        keys, values = card.call("append", k=k, v=v, at=at, format=format, capacity=7)
        for found, given in ((keys, k), (values, v)):
            assert found[:, at % 7].tobytes() == store(given, format).tobytes()
            assert (np.delete(found, at % 7, 1).view(np.uint8) == 0xFF).all()
