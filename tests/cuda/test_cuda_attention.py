"""Attention of up to 16 rows against float64: formats, heads, lengths, masks, rings that have wrapped, splits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from attention_oracle import Case, store
from cuda_worker import Remote

FORMATS = ["f32", "f16", "bf16", "q8_0", "fp8"]


# A step has 8 keys; with 2 query heads a block has 8 key sets, and up to 2 steps each are one block's.
@pytest.mark.parametrize("position", [0, 1, 7, 8, 9, 63, 64, 126, 127, 128, 129, 200, 391])
def test_lengths(card: Remote, position: int) -> None:
    for seed in range(2):
        Case(position=position, seed=seed).run(card, seed, unwritten=seed == 1)


@pytest.mark.parametrize("head_dim", [8, 32, 40, 64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize("format", FORMATS)
def test_head_dims(card: Remote, format: str, head_dim: int) -> None:
    """Long enough for several blocks, whatever their number of key sets; the formats' bits are compared on the way."""
    if format == "q8_0" and head_dim % 32:
        pytest.skip("q8_0 has blocks of 32")
    for heads, rows, splits in ((4, 2, 2), (1, 1, 3)) if head_dim % 3 else ((8, 5, 3),):
        case = Case(position=150, head_dim=head_dim, format=format, heads=heads, rows=rows, splits=splits)
        case.run(card, head_dim)


@pytest.mark.parametrize("group", range(1, 17))
@pytest.mark.parametrize("format", ["bf16", "q8_0"])
def test_groups(card: Remote, format: str, group: int) -> None:
    for head_dim, position in ((64, 45), (96, 150)):
        case = Case(position=position, heads=group * 2, kv_heads=2, head_dim=head_dim, format=format, splits=2, rows=2)
        case.run(card, group, unwritten=True)


@pytest.mark.parametrize(("splits", "rows"), [(1, 1), (1, 16), (2, 1), (3, 1), (3, 16), (16, 1), (16, 5), (256, 1)])
def test_splits(card: Remote, splits: int, rows: int) -> None:
    """19 to 21 steps: of 16 splits some have two, of 256 most have none."""
    for seed in range(2):
        Case(position=150, splits=splits, rows=rows, heads=8, kv_heads=2, seed=seed).run(card, seed)


@pytest.mark.parametrize("mask", [("chunked", 48), ("sliding", 48)])
@pytest.mark.parametrize("format", ["bf16", "q8_0"])
@pytest.mark.parametrize("rows", [1, 5, 16])
def test_masks_in_a_ring(card: Remote, mask: tuple[str, int], format: str, rows: int) -> None:
    """64 slots: every range sooner or later runs over the ring's end, and rows lie on both sides of a border."""
    for position in (0, 46, 47, 48, 49, 95, 96, 130, 400):
        case = Case(position=position, mask=mask, capacity=64, heads=4, kv_heads=2, splits=2, format=format, rows=rows)
        case.run(card, position, unwritten=position % 2 == 1)


@pytest.mark.parametrize("mask", [("chunked", 200), ("sliding", 200)])
@pytest.mark.parametrize("position", [199, 200, 201, 375, 399, 400, 590])
def test_masks_over_several_splits(card: Remote, mask: tuple[str, int], position: int) -> None:
    Case(position=position, mask=mask, capacity=203, rows=3, splits=3, max_rows=3).run(card, position)


@pytest.mark.parametrize("mask", [("chunked", 48), ("sliding", 48)])
def test_masks_in_a_cache_of_the_whole_context(card: Remote, mask: tuple[str, int]) -> None:
    Case(position=130, mask=mask, rows=2).run(card)


@pytest.mark.parametrize("mask", [("global", 0), ("chunked", 64), ("sliding", 64)])
@pytest.mark.parametrize("start", [1, 100, 10_000_000])
def test_a_sequence_that_starts_later(card: Remote, mask: tuple[str, int], start: int) -> None:
    """Nothing lies before its start, which no mask reaches past."""
    for after in (0, 3, 70, 200):
        case = Case(
            position=start + after,
            start=start,
            mask=mask,
            rows=2,
            heads=4,
            capacity=mask[1] and 80,
            splits=2,
            max_rows=2,
        )
        case.run(card, after, unwritten=True)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("head_dim", [64, 128, 96])
@pytest.mark.parametrize("rows", [1, 16])
def test_norm_and_temperature(card: Remote, format: str, head_dim: int, rows: int) -> None:
    """At ten million, where Llama 4's temperature is 1.7; and rows on both sides of a step of it."""
    for position, floor in ((10_000_000, 8192), (8190, 8192), (40, 8)):
        case = Case(
            position=position,
            start=max(0, position - 40),
            rows=rows,
            heads=5,
            head_dim=head_dim,
            format=format,
            mask=("sliding", 64),
            capacity=80,
            qk_norm=True,
            temperature=(0.1, floor),
            size=4.0,
        )
        case.run(card, position)


def test_norm_alone_and_temperature_alone(card: Remote) -> None:
    Case(position=20, rows=2, qk_norm=True, size=1e-4).run(card)
    Case(position=20, rows=2, temperature=(0.1, 4)).run(card)


@pytest.mark.parametrize("mask", [("global", 0), ("chunked", 16), ("sliding", 16)])
@pytest.mark.parametrize("captured", [False, True])
def test_one_plan_for_every_position(card: Remote, mask: tuple[str, int], captured: bool) -> None:
    """A graph is captured once; positions move in device memory, from one block to several and around the ring."""
    for seed, rows in enumerate((1, 3)):
        case = Case(
            position=120,
            rows=rows,
            steps=11,
            mask=mask,
            capacity=mask[1] and 20,
            heads=3,
            splits=2,
            max_rows=4,
            seed=seed,
        )
        assert len(case.run(card, seed, captured=captured)) == 11


@pytest.mark.parametrize("captured", [False, True])
def test_the_first_positions_of_all(card: Remote, captured: bool) -> None:
    Case(position=0, steps=5, heads=4, kv_heads=2, splits=4).run(card, captured=captured, unwritten=True)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("head_dim", "heads", "mask"), [(64, 4, ("global", 0)), (128, 5, ("sliding", 140)), (96, 1, ("chunked", 144))]
)
def test_rows_do_not_depend_on_their_company(
    card: Remote, format: str, head_dim: int, heads: int, mask: tuple[str, int]
) -> None:
    """16 rows at once, and one by one: the same bits, although rows in company take keys of the step out of qkv."""
    options: dict[str, Any] = {
        "position": 140,
        "heads": heads,
        "head_dim": head_dim,
        "format": format,
        "mask": mask,
        "capacity": 160,
        "splits": 5,
        "qk_norm": True,
        "temperature": (0.1, 8),
        "size": 3.0,
    }
    together = Case(rows=16, **options)
    (all_rows, planes), *_ = together.run(card)
    for rows, max_rows in ((1, 1), (1, 16), (4, 5)):
        alone = Case(rows=rows, steps=16 // rows, max_rows=max_rows, **options)
        assert alone.qkv.tobytes() == together.qkv.tobytes()
        results = alone.run(card, seed=max_rows)
        assert np.concatenate([out for out, _ in results]).tobytes() == all_rows.tobytes()
        assert [plane.tobytes() for plane in results[-1][1]] == [plane.tobytes() for plane in planes]


def test_bits_do_not_depend_on_the_order_of_blocks(card: Remote) -> None:
    case = Case(position=200, heads=6, kv_heads=2, splits=5, rows=2)
    first = case.run(card, seed=0)[0][0]
    for seed in range(1, 6):
        assert case.run(card, seed)[0][0].tobytes() == first.tobytes()


def test_plans_of_other_row_counts_share_scratch(card: Remote) -> None:
    """What a launch for 16 rows leaves there does not disturb one for a single row, nor the other way round."""
    case = Case(position=150, rows=3, heads=4, splits=4)
    found = card.call(
        "cases_attention.plans_in_turn",
        widths=[1, 16, 3, 1, 16],
        **{**case.arguments, "steps": [(150, case.qkv[:1])]},
    )
    assert all(out.tobytes() == found[0].tobytes() for out in found)
    case.check_row(found[0][0], case.run(card)[0][1], 150, case.qkv[0])


def test_large_scores(card: Remote) -> None:
    """Far beyond what an exponential takes without its maximum being subtracted."""
    Case(position=200, size=200.0, splits=2).run(card)


@pytest.mark.parametrize("format", FORMATS)
def test_values_at_the_ends_of_the_formats(card: Remote, format: str) -> None:
    """Ties, subnormals, what saturates or becomes infinite, blocks of zeros: the cache's bits."""
    for head_dim in (64, 96):
        case = Case(position=0, rows=8, head_dim=head_dim, format=format, heads=1, capacity=8)
        random = np.random.default_rng(head_dim)
        keys = case.qkv[:, head_dim:]
        scale = np.float32([1e-38, 1e-30, 1e-6, 2.0**-9, 2.0**-6, 1.0, 100.0, 1e5])[:, None]
        keys[:] = random.integers(-64, 65, keys.shape).astype(np.float32) / 16 * scale
        keys[5, ::3] = 0.0
        keys[5, 32:64] = 0.0
        case.arguments["steps"] = [(0, case.qkv)]
        ((_, planes),) = card.call("cases_attention.attention", **case.arguments)
        case.check_appended(case.planes, planes, 0, case.qkv)


@pytest.mark.parametrize("format", ["f16", "bf16", "fp8", "q8_0", "f32"])
def test_what_is_not_finite_stays_so(card: Remote, format: str) -> None:
    """A value that is not a number reaches the results of the rows that see it, and of no other."""
    case = Case(position=3, rows=3, format=format)
    case.qkv[1, -1] = np.nan
    ((out, _),) = card.call("cases_attention.attention", **case.arguments)
    assert np.isfinite(out[0]).all()
    assert np.isnan(out[1:, :, -1]).all() and (format == "q8_0" or np.isfinite(out[1:, :, :32]).all())


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("format", ["f32", "f16", "bf16"])
def test_scores_of_minus_infinity_weigh_nothing(card: Remote, format: str, splits: int) -> None:
    """As those far below the others do, also where the first keys of all, or all keys of a block, have them."""
    found = []
    for element in (-np.inf, -60000.0):
        case = Case(position=200, format=format, splits=splits)
        case.qkv[:, :: case.head_dim] = 1.0  # the first element of each query, key and value
        keys = np.zeros((1, case.head_dim), np.float32)
        keys[0, 0] = element
        case.planes[0][:, :150] = store(keys, format)[0]
        ((out, _),) = card.call("cases_attention.attention", **case.arguments)
        found.append(out)
    assert np.isfinite(found[0]).all() and np.array_equal(*found)
