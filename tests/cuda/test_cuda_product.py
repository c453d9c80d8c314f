"""product against float64: every format, rows and columns across every tail, tiles of columns, several rounds, what
stands in front and behind, and the promise that a row's bits do not depend on its company.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_worker import Remote
from mutation import KERNELS, compile_kernels
from product_oracle import ALL, FLOATS, activations, add, awkward, check, columns, from_data, make, product, rotate
from product_oracle import silu_times_up as times_up

ROWS = (1, 2, 5, 16)
"""Of x: one for each kernel, and not all that a kernel holds."""


def gaussian(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def run(card: Remote, seed: int = 0, **arguments: Any) -> Any:
    return card.call("cases_product.product", seed, **arguments)


@pytest.mark.parametrize("format", ALL)
def test_shapes(card: Remote, format: str) -> None:
    for cols in columns(format):
        for outputs, rows in ((1, 1), (2, 2), (7, 5), (9, 1), (10, 16)):
            weights = make(format, outputs, cols, cols + outputs)
            x = awkward(rows, cols, cols)
            check(run(card, rows + cols, **weights.arguments, x=x), product(weights, x))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("format", ALL)
def test_norm_and_epilogues(card: Remote, format: str, rows: int) -> None:
    outputs, cols = 22, 512 if format.endswith("K") else 544
    weights = make(format, outputs, cols, rows)
    x, norm = gaussian(rows, rows, cols) * 30, gaussian(7, cols)
    plain = product(weights, x, norm)
    call = {**weights.arguments, "x": x, "norm": norm, "captured": rows == 2, "extra": 3}
    y = run(card, **call)
    check(y[:, :outputs], plain)
    assert np.isnan(y[:, outputs:]).all()

    start = gaussian(8, rows, outputs + 3)
    y = run(card, 1, **call, epilogue="add", start=start)
    check(y[:, :outputs], add(*plain, start[:, :outputs]))
    assert np.array_equal(y[:, outputs:], start[:, outputs:])

    y = run(card, 2, **call, epilogue="silu_times_up")
    check(y[:, : outputs // 2], times_up(*plain))
    assert np.isnan(y[:, outputs // 2 :]).all()

    table = gaussian(9, rows, 3, 2)
    y = run(card, 3, **call, epilogue="rotate", table=table, rotated=18)
    check(y[:, :outputs], rotate(*plain, table, 18))


def test_rotations_end_in_the_middle_of_a_block(card: Remote) -> None:
    """Heads of 2 and of 8, all rows or none turned."""
    weights, x = make("BF16", 48, 64, 1), gaussian(2, 3, 64)
    for pairs, rotated in ((1, 48), (4, 48), (4, 0), (4, 8), (24, 48)):
        table = gaussian(pairs, 3, pairs, 2)
        y = run(card, **weights.arguments, x=x, epilogue="rotate", table=table, rotated=rotated)
        check(y, rotate(*product(weights, x), table, rotated))


@pytest.mark.parametrize("format", ["F32", "BF16", "Q4_0", "Q6_K", "MXFP8"])
def test_norms_of_every_length(card: Remote, format: str) -> None:
    """A thread keeps 4 pieces of 4 columns of a single row, so 4,096 columns are held."""
    for cols in (4096, 4352, 5120) if format != "F32" else (5, 4094, 4097, 5121):
        weights, norm = make(format, 3, cols, cols), gaussian(cols, cols)
        for rows in (1, 2):
            x = gaussian(rows, rows, cols)
            check(run(card, **weights.arguments, x=x, norm=norm, eps=0.1), product(weights, x, norm, 0.1))


@pytest.mark.parametrize("format", ALL)
def test_a_rows_bits_do_not_depend_on_the_others(card: Remote, format: str) -> None:
    outputs, cols = 21, 1536
    weights = make(format, outputs, cols, 3)
    x, norm = awkward(16, cols, 4), gaussian(5, cols)
    for changes in ({}, {"norm": norm, "epilogue": "silu_times_up"}):
        weights = make(format, 20, cols, 3) if changes else weights
        together = run(card, 1, **weights.arguments, x=x, **changes)
        for rows in (slice(0, 1), slice(15, 16), slice(2, 4), slice(3, 10)):
            alone = run(card, 2, **weights.arguments, x=x[rows], **changes)
            assert alone.tobytes() == together[rows].tobytes(), (changes, rows)
        # Fewer rows than the launch is made for.
        few = run(card, 3, **weights.arguments, x=x[:3], max_rows=16, **changes)
        assert few[:3].tobytes() == together[:3].tobytes() and np.isnan(few[3:]).all()


@pytest.mark.parametrize("captured", [False, True])
def test_one_plan_serves_every_step(card: Remote, captured: bool) -> None:
    weights, x = make("Q4_0", 10, 96, 1), gaussian(2, 9, 96)
    steps = [(9, 0), (1, 1), (4, 2), (9, 9), (9, 1), (2, 0)]
    value, bound = product(weights, x)
    call = {**weights.arguments, "x": x, "steps": steps, "captured": captured}
    for which in ("all", "logits"):
        for (rows, logits), y in zip(steps, run(card, which=which, **call), strict=True):
            taken = slice(0, rows) if which == "all" else slice(rows - logits, rows)
            count = taken.stop - taken.start
            if count:
                check(y[:count], (value[taken], bound[taken]))
            assert np.isnan(y[count:]).all()


# 16 rows of x do not fit into shared memory as a whole, so the columns go by tiles, of which the last is not full.
@pytest.mark.parametrize(
    ("format", "cols"),
    [("F32", 4090), ("BF16", 4100), ("Q8_0", 7200), ("Q4_0", 6176), ("Q6_K", 6144), ("MXFP8", 3936)],
)
def test_tiles_of_columns(card: Remote, format: str, cols: int) -> None:
    plan = card.call("cases_product.kernels_of", max_rows=16, format=format, rows=9, cols=cols)
    units = int(plan.split("tile_units = ")[1].split(",")[0])
    assert units * {"F32": 4, "BF16": 8, "Q8_0": 16, "MXFP8": 16}.get(format, 32) < cols
    weights, x, norm = make(format, 9, cols, 1), awkward(16, cols, 2), gaussian(3, cols)
    plain = run(card, **weights.arguments, x=x)
    check(plain, product(weights, x))
    normed = run(card, 1, **weights.arguments, x=x, norm=norm)
    for row in (0, 11):
        assert run(card, **weights.arguments, x=x[row : row + 1]).tobytes() == plain[row].tobytes()
        alone = run(card, **weights.arguments, x=x[row : row + 1], norm=norm)
        assert alone.tobytes() == normed[row].tobytes()


@pytest.mark.parametrize(
    ("format", "cols", "rows"), [("F32", 768, 16), ("Q4_0", 3904, 16), ("F32", 8300, 5), ("BF16", 4800, 12)]
)
def test_shared_memory_to_the_last_bytes(card: Remote, format: str, cols: int, rows: int) -> None:
    """Beside all of x the kernel's own arrays do not fit a card of 163 or 227 KB, or the 48 KB that need no asking."""
    weights, x, norm = make(format, 3, cols, 1), gaussian(2, rows, cols), gaussian(3, cols)
    check(run(card, **weights.arguments, x=x, norm=norm), product(weights, x, norm))


@pytest.mark.parametrize(
    ("format", "cols", "rows"), [("F32", 60004, 1), ("Q4_0", 96160, 1), ("F32", 15002, 4), ("Q4_K", 24576, 4)]
)
def test_tiles_of_few_rows(card: Remote, format: str, cols: int, rows: int) -> None:
    weights, x, norm = make(format, 3, cols, 1), awkward(rows, cols, 2), gaussian(3, cols)
    check(run(card, **weights.arguments, x=x), product(weights, x))
    normed = run(card, 1, **weights.arguments, x=x, norm=norm)
    check(normed, product(weights, x, norm))
    if rows == 4:  # all of x fits
        assert run(card, **weights.arguments, x=x[2:3], norm=norm).tobytes() == normed[2].tobytes()


@pytest.mark.parametrize(("format", "rows"), [("BF16", 1), ("BF16", 16), ("Q4_0", 1), ("Q4_K", 3), ("MXFP8", 5)])
def test_more_rows_than_the_grid_has_warps(card: Remote, format: str, rows: int) -> None:
    """Several rounds of a block; the last has some of its warps only."""
    _, _, multiprocessors = card.call("describe")
    cols = 256 if format == "Q4_K" else 96
    outputs = 2 * multiprocessors * 8 * (4 if rows > 4 and format in FLOATS else 2) + 5 * multiprocessors + 3
    weights, x = make(format, outputs, cols, 3), gaussian(4, rows, cols)
    start = gaussian(5, rows, outputs)
    y = run(card, **weights.arguments, x=x, epilogue="add", start=start)
    check(y, add(*product(weights, x), start))


def test_rounds_of_tiles(card: Remote) -> None:
    """Tiles are staged anew for each round. Held against the kernel of one row, for which all of x fits."""
    _, _, multiprocessors = card.call("describe")
    weights = make("Q4_0", 2 * multiprocessors * 8 * 2 + 37, 6176, 1)
    x = gaussian(2, 2, 6176)
    y = run(card, **weights.arguments, x=x, max_rows=16)
    for row in range(2):
        assert y[row].tobytes() == run(card, **weights.arguments, x=x[row : row + 1]).tobytes()


@pytest.mark.parametrize("format", ALL)
def test_extreme_quants(card: Remote, format: str) -> None:
    """Every bit of the quants alike, activations at the ends of their range: no sum wraps."""
    cols = 512
    x = np.stack([np.full(cols, v, np.float32) for v in (1, -1, 0.5)] + [np.where(np.arange(cols) % 2, 1, -1)])
    for fill in (0x00, 0xFF, 0x80, 0x7E, 0x81):
        weights = make(format, 6, cols, 1)
        data = weights.data.copy().reshape(6, -1)
        if format in ("F32", "F16", "BF16"):
            continue
        if format == "MXFP8" and fill == 0xFF:
            continue  # NaN
        size = {"Q6_K": 210}.get(format, data.shape[1])
        blocks = (
            data.reshape(6, -1, size)
            if format == "Q6_K"
            else data.reshape(6, cols // (256 if "K" in format else 32), -1)
        )
        from_byte = {"Q4_1": 4, "Q5_1": 4, "Q4_K": 4, "Q5_K": 4, "Q6_K": 0, "MXFP8": 1}.get(format, 2)
        blocks[:, :, from_byte : 208 if format == "Q6_K" else None] = fill
        weights = from_data(format, 6, cols, blocks)
        check(run(card, **weights.arguments, x=x.astype(np.float32)), product(weights, x.astype(np.float32)))


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("format", ALL)
def test_what_is_not_finite_shows(card: Remote, format: str, value: float) -> None:
    """In every result of its row, and in no other row."""
    cols = 256
    weights, x = make(format, 9, cols, 1), gaussian(2, 5, cols)
    clean = run(card, **weights.arguments, x=x)
    x[2, 200] = value
    found = run(card, **weights.arguments, x=x)
    assert not np.isfinite(found[2]).any()
    assert np.delete(found, 2, 0).tobytes() == np.delete(clean, 2, 0).tobytes()


@pytest.mark.parametrize("name", ["sm_80", "sm_89", "sm_90"])
def test_every_e4m3(card_of: Any, nvcc: str, name: str, tmp_path: Path) -> None:
    """The card converts them where its code is for 89 or later; a trick does elsewhere. Both give dequantize's bits."""
    image = None
    if name == "sm_89":  # of which a build need not have PTX
        image = compile_kernels(nvcc, tmp_path, name, KERNELS / "product_mxfp8.cu")
        assert b"e4m3x2" in image
    for scale in (0, 1, 100, 127, 240, 255):
        data = np.empty((256, 1, 33), np.uint8)
        data[:, 0, 0] = scale
        data[:, 0, 1:] = np.arange(256)[:, None]
        weights = from_data("MXFP8", 256, 32, data)
        for x in np.split(np.eye(32, dtype=np.float32), 2):
            y = card_of(name).call("cases_product.product", **weights.arguments, x=x, image=image)
            expected = weights.values[:, :16].T.astype(np.float32) + np.float32(0)
            assert np.array_equal(y, expected, equal_nan=True)


def expert_case(seed: int, entries: list[int], rows: int) -> list[tuple[int, list[int], list[float]]]:
    """Groups of so many entries, of any of 9 experts in ascending order, each of different rows."""
    random = np.random.default_rng(seed)
    chosen = np.sort(random.permutation(9)[: len(entries)])
    return [
        (int(e), np.sort(random.permutation(rows)[:n]).tolist(), random.uniform(0.1, 1, n).astype(np.float32).tolist())
        for e, n in zip(chosen, entries, strict=True)
    ]


@pytest.mark.parametrize("format", ALL)
def test_experts(card: Remote, format: str) -> None:
    cols = 512
    weights = [make(format, 10, cols, i) for i in range(9)]
    for rows, entries in ((1, [1, 1]), (4, [1, 4, 2]), (16, [3, 16, 1, 7, 2])):
        groups = expert_case(rows, entries, rows)
        for gathered, scaled, epilogue in (
            (True, False, "store"),
            (True, True, "silu_times_up"),
            (False, True, "store"),
        ):
            token = gaussian(rows, rows if gathered else sum(entries), cols)
            y = card.call(
                "cases_product.experts",
                rows,
                format=format,
                rows=10,
                cols=cols,
                data=[w.data for w in weights],
                x=token,
                groups=groups,
                max_rows=rows,
                max_groups=len(entries) + 2,
                offset=512 * scaled,
                gathered=gathered,
                scaled=scaled,
                epilogue=epilogue,
                captured=rows == 4,
            )
            at = 0
            for expert, of_rows, scores in groups:
                x = token[of_rows] if gathered else token[at : at + len(of_rows)]
                value, bound = product(weights[expert], x)
                if scaled:
                    score = np.array(scores)[:, None]
                    value, bound = value * score, bound * score + 2.0**-24 * np.abs(value * score)
                expected = times_up(value, bound) if epilogue == "silu_times_up" else (value, bound)
                check(y[at : at + len(of_rows)], expected)
                at += len(of_rows)


def test_experts_share_the_grid(card: Remote) -> None:
    """One group of many that the launch is made for, and none; more pairs than the grid has warps."""
    _, _, multiprocessors = card.call("describe")
    outputs = 2 * multiprocessors * 8 * 2 + 7
    weights = [make("Q4_0", outputs, 32, i) for i in range(3)]
    x = gaussian(1, 4, 32)
    call = {"format": "Q4_0", "rows": outputs, "cols": 32, "data": [w.data for w in weights], "x": x, "max_rows": 4}
    for groups in ([(1, [0, 2], [1.0, 1.0])], [(0, [3], [1.0]), (2, [0, 1, 2], [1.0, 1.0, 1.0])]):
        y = card.call("cases_product.experts", groups=groups, max_groups=3, **call)
        expected = [product(weights[expert], x[rows]) for expert, rows, _ in groups]
        check(y, (np.concatenate([value for value, _ in expected]), np.concatenate([bound for _, bound in expected])))
    y = card.call("cases_product.experts", groups=[], max_groups=3, **call)
    assert np.isnan(y).all()


def test_a_wrong_digit_is_seen() -> None:
    """The bound is tight enough to tell an activation that is one of its 16,319 steps off."""
    weights, x = make("Q4_0", 40, 64, 1), gaussian(1, 1, 64)
    _, bound = product(weights, x)
    meets, _ = activations("Q4_0", x, None, 0)
    step = np.abs(meets[:, :32]).max() / 16319
    off = np.abs(weights.values[:, 5] * step)
    assert (off > 2 * bound[0])[np.abs(weights.values[:, 5]) > 0.5].all()


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_launches_that_read_what_the_one_before_wrote(card: Remote, seed: int, captured: bool) -> None:
    """On sm_90 each starts before its predecessor has ended."""
    weights, x, norm = make("BF16", 72, 72, seed), gaussian(seed, 72), gaussian(seed + 9, 72)
    found = card.call("norm_and_product", seed, x=x, norm=norm, weight=weights.data.view(np.uint16), captured=captured)
    plain = card.call("rms_norm", x=x[None], weight=norm, eps=1e-5)[0]
    added = run(card, **weights.arguments, x=plain, epilogue="add", start=x[None])
    expected = card.call("rms_norm", x=added, weight=None, eps=1e-5)[0][0]
    assert found.tobytes() == expected.tobytes()
