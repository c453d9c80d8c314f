"""product_tiles against float64: every format, rows of x and of W and columns across every tail of a tile, what stands
behind them, mixtures, rows of any size, and what it asks of memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_worker import Remote
from models import FLOAT_FORMATS
from product_oracle import ALL, add, awkward, check, from_data, make, product_tiles
from product_oracle import silu_times_up as times_up

FORMATS = tuple(format for format in ALL if format != "F32")


def gaussian(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def run(card: Remote, seed: int = 0, **arguments: Any) -> Any:
    return card.call("cases_product.product", seed, operation="product_tiles", **arguments)


def columns(format: str) -> tuple[int, ...]:
    """Fewer steps than there are stages, as many, more; and the ends of a piece, a copy and a step."""
    if format in FLOAT_FORMATS:
        return (1, 8, 30, 36, 72, 144, 261)
    return (256, 512) if format.endswith("K") else (32, 64, 96, 128, 288)


# Rows of W by rows of x: one, half a tile, a tile, and what is beside them.
SHAPES = ((1, 1), (2, 40), (31, 32), (33, 17), (64, 64), (65, 33), (100, 8), (129, 65), (139, 70))


@pytest.mark.parametrize("format", FORMATS)
def test_shapes(card: Remote, format: str) -> None:
    for i, cols in enumerate(columns(format)):
        for outputs, rows in SHAPES[i % 2 :: 2]:
            weights, x = make(format, outputs, cols, cols + outputs), awkward(rows, cols, cols)
            check(run(card, rows + cols, **weights.arguments, x=x), product_tiles(weights, x))


@pytest.mark.parametrize("format", ["BF16", "Q4_K"])
def test_every_number_of_rows(card: Remote, format: str) -> None:
    """Of a launch that is made for 70; a row is the same bits whoever goes along."""
    cols = 256 if format == "Q4_K" else 40
    weights, x = make(format, 10, cols, 1), gaussian(2, 70, cols)
    steps = [(rows, 0) for rows in range(1, 71)]
    found = run(card, **weights.arguments, x=x, steps=steps)
    check(found[-1], product_tiles(weights, x))
    for (rows, _), y in zip(steps, found, strict=True):
        assert y[:rows].tobytes() == found[-1][:rows].tobytes()
        assert np.isnan(y[rows:]).all()


@pytest.mark.parametrize("format", FORMATS)
def test_epilogues(card: Remote, format: str) -> None:
    outputs, rows, cols = 70, 35, 256 if format.endswith("K") else 96
    weights, x = make(format, outputs, cols, 1), gaussian(2, rows, cols)
    plain = product_tiles(weights, x)
    call = {**weights.arguments, "x": x, "max_rows": 66, "extra": 3, "steps": [(rows, 0)]}
    (y,) = run(card, **call, captured=True)
    check(y[:rows, :outputs], plain)
    assert np.isnan(y[:, outputs:]).all() and np.isnan(y[rows:]).all()

    start = gaussian(8, 66, outputs + 3)
    (y,) = run(card, 1, **call, epilogue="add", start=start)
    check(y[:rows, :outputs], add(*plain, start[:rows, :outputs]))
    assert np.array_equal(y[:, outputs:], start[:, outputs:]) and np.array_equal(y[rows:], start[rows:])

    (y,) = run(card, 2, **call, epilogue="silu_times_up")
    check(y[:rows, : outputs // 2], times_up(*plain))
    assert np.isnan(y[:, outputs // 2 :]).all() and np.isnan(y[rows:]).all()


def test_rows_that_ask_for_logits(card: Remote) -> None:
    weights, x = make("Q6_K", 9, 256, 1), gaussian(2, 70, 256)
    steps = [(70, 70), (70, 1), (70, 0), (69, 66), (1, 1), (40, 33)]
    found = run(card, **weights.arguments, x=x, which="logits", steps=steps)
    for (rows, logits), y in zip(steps, found, strict=True):
        if logits:
            check(y[:logits], product_tiles(weights, x[rows - logits : rows]))
        assert np.isnan(y[logits:]).all()


@pytest.mark.parametrize("format", FORMATS)
def test_rows_of_any_size(card: Remote, format: str) -> None:
    """Large, small, none, one column above all others: next to each other."""
    cols = 256
    weights, x = make(format, 40, cols, 1), gaussian(2, 33, cols)
    for row, size in enumerate((1e5, 1e-5, 0, 1e30, 1e-30, 65504, 65520, 2.0**-126)):
        x[row] *= np.float32(size)
    x[8, 100] = 1e5
    x[9, ::2] *= np.float32(1e-6)
    for seed in range(3):
        check(run(card, seed, **weights.arguments, x=x), product_tiles(weights, x))


@pytest.mark.parametrize("format", [format for format in FORMATS if format not in FLOAT_FORMATS])
def test_extreme_quants(card: Remote, format: str) -> None:
    """Every bit of the quants alike."""
    cols = 256
    x = np.stack([np.full(cols, v, np.float32) for v in (1, -1, 0.5)] + [np.where(np.arange(cols) % 2, 1.0, -1.0)])
    x = x.astype(np.float32)
    from_byte = {"Q4_1": 4, "Q5_1": 4, "Q4_K": 4, "Q5_K": 4, "Q6_K": 0, "MXFP8": 1}.get(format, 2)
    for fill in (0x00, 0xFF, 0x80, 0x7E, 0x81):
        if format == "MXFP8" and fill == 0xFF:
            continue  # NaN
        weights = make(format, 6, cols, 1)
        size = weights.data.size // 6 // (1 if format.endswith("K") else cols // 32)
        blocks = weights.data.copy().reshape(6, -1, size)
        blocks[:, :, from_byte : 208 if format == "Q6_K" else None] = fill
        weights = from_data(format, 6, cols, blocks)
        check(run(card, **weights.arguments, x=x), product_tiles(weights, x))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("format", FORMATS)
def test_what_is_not_finite_shows(card: Remote, format: str, value: float) -> None:
    """In every result of its row, and in no other row."""
    weights, x = make(format, 9, 256, 1), gaussian(2, 17, 256)
    clean = run(card, **weights.arguments, x=x)
    x[2, 200] = value
    found = run(card, **weights.arguments, x=x)
    assert not np.isfinite(found[2]).any()
    assert np.delete(found, 2, 0).tobytes() == np.delete(clean, 2, 0).tobytes()


def expert_case(seed: int, entries: list[int], rows: int) -> list[tuple[int, list[int], list[float]]]:
    """Groups of so many entries, of any of 9 experts in ascending order, each of different rows."""
    random = np.random.default_rng(seed)
    chosen = np.sort(random.permutation(9)[: len(entries)])
    return [
        (int(e), np.sort(random.permutation(rows)[:n]).tolist(), random.uniform(0.1, 1, n).astype(np.float32).tolist())
        for e, n in zip(chosen, entries, strict=True)
    ]


@pytest.mark.parametrize("format", FORMATS)
def test_experts(card: Remote, format: str) -> None:
    """Groups of one entry, of all rows, of none; fewer than the launch is made for, and no group at all."""
    outputs, cols = 66, 256 if format.endswith("K") else 64
    weights = [make(format, outputs, cols, i) for i in range(9)]
    for rows, entries in ((20, [1, 20]), (70, [3, 0, 70, 33])):
        groups = expert_case(rows, entries, rows)
        for gathered, scaled, epilogue in (
            (True, False, "store"),
            (True, True, "silu_times_up"),
            (False, True, "store"),
        ):
            token = gaussian(rows, rows if gathered else sum(entries), cols)
            y = card.call("cases_product.experts", rows, operation="product_tiles", format=format, rows=outputs,
                          cols=cols, data=[w.data for w in weights], x=token, groups=groups, max_rows=rows,
                          max_groups=len(entries) + 2, offset=512 * scaled, gathered=gathered, scaled=scaled,
                          epilogue=epilogue, captured=rows == 20)  # fmt: skip
            at = 0
            for expert, of_rows, scores in groups:
                x = token[of_rows] if gathered else token[at : at + len(of_rows)]
                if not len(x):
                    continue
                value, bound = product_tiles(weights[expert], x)
                if scaled:
                    score = np.array(scores)[:, None]
                    value, bound = value * score, bound * score + 2.0**-24 * np.abs(value * score)
                expected = times_up(value, bound) if epilogue == "silu_times_up" else (value, bound)
                check(y[at : at + len(of_rows)], expected)
                at += len(of_rows)
    y = card.call("cases_product.experts", operation="product_tiles", format=format, rows=outputs, cols=cols,
                  data=[w.data for w in weights], x=token, groups=[], max_rows=70, max_groups=2)  # fmt: skip
    assert np.isnan(y).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("captured", [False, True])
def test_a_launch_that_reads_what_the_one_before_wrote(card: Remote, seed: int, captured: bool) -> None:
    """On sm_90 it starts before its predecessor has ended."""
    weights, x, norm = make("BF16", 72, 72, seed), gaussian(seed, 20, 72), gaussian(seed + 9, 72)
    y = card.call("cases_product_tiles.norm_and_product", seed, format="BF16", x=x, norm=norm, data=weights.data,
                  captured=captured)  # fmt: skip
    plain, _ = card.call("rms_norm", x=x, weight=norm, eps=1e-5)
    assert y.tobytes() == run(card, **weights.arguments, x=plain, epilogue="add", start=x).tobytes()


@pytest.mark.parametrize("format", FORMATS)
def test_what_it_asks_of_memory(card: Remote, format: str) -> None:
    """No bank of shared memory twice in a pass; x is read in whole sectors, once a tile of W."""
    weights, x = make(format, 128, 512, 1), gaussian(2, 64, 512)
    (launch,) = card.call("report", function="cases_product.product",
                          arguments={"operation": "product_tiles", "x": x, **weights.arguments})  # fmt: skip
    assert launch["shared_bank_conflicts"] == 0
    for entry in launch["accesses"]:
        assert entry["wavefronts"] == entry["wavefronts_ideal"], entry
    of_x = [entry for entry in launch["accesses"] if entry["instruction"].startswith("ld.global.v4")]
    assert sum(entry["bytes"] for entry in of_x) == 2 * x.nbytes  # for two tiles of rows
    assert all(entry["sectors"] == entry["sectors_ideal"] for entry in of_x)


def test_a_lost_term_is_seen() -> None:
    """The bound is tight enough to tell x from its nearest float16."""
    weights, x = make("Q4_0", 40, 64, 1), gaussian(1, 20, 64)
    value, bound = product_tiles(weights, x)
    assert (np.abs(x.astype(np.float16).astype(np.float64) @ weights.values.T - value) > 3 * bound).mean() > 0.9


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format": "F32"}, "product_tiles: format is F32, must be of 16 bits or fewer"),
        ({"norm": "0+256"}, "product_tiles: norm is an address, must be null"),
        (
            {"epilogue": "rotate", "table": "0+4096", "pairs": 1},
            "product_tiles: epilogue is rotate, must be",
        ),
        ({"max_rows": 0}, "product_tiles: max_rows is 0, must be 1 to"),
        ({"cols": 33}, "product_tiles: cols is 33, must be a multiple of 32"),
        ({"rows": 99, "epilogue": "silu_times_up"}, "product_tiles: rows is 99, must be even"),
    ],
)
def test_wrong_arguments(card_of: Any, changes: dict[str, Any], sentence: str) -> None:
    assert card_of("sm_90").call("wrong_arguments", operation="product_tiles", **changes).startswith(sentence)
