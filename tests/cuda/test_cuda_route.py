"""route against program/route.h's rules: logits in float64; choices, groups and entries exactly, given the kernel's own
logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tolerances
from cuda_oracles import bf16, check, check_rms_norm, load
from cuda_worker import Remote
from numpy.typing import NDArray

from llama_ext import _core

Array = NDArray[Any]


def choose(logits: Array, top_k: int) -> Array:
    """NaN above every number, then descending; equals in the order of their indices."""
    keys = [(0 if np.isnan(v) else 1, 0.0 if np.isnan(v) else -float(v), i) for i, v in enumerate(logits)]
    return np.array([i for *_, i in sorted(keys)[:top_k]])


def scores_of(logits: Array, chosen: Array, scoring: str) -> Array:
    picked = logits[chosen].astype(np.float64)
    with np.errstate(all="ignore"):
        if scoring == "sigmoid":
            return (1 / (1 + np.exp(-picked))).astype(np.float32)
        powers = np.exp(picked - picked[0])
        total = 0.0
        for power in powers:
            total += power
        return (powers / total).astype(np.float32)


def check_sorted(out: dict[str, Array], rows: int, experts: int, top_k: int, scoring: str, shared: bool) -> None:
    """Groups and entries are those of the logits that are there."""
    passes = top_k + shared
    logits = out["logits"][: rows * experts].reshape(rows, experts)
    pairs = []  # (expert, row, choice, score)
    for r in range(rows):
        chosen = choose(logits[r], top_k)
        pairs += [
            (e, r, i, s) for i, (e, s) in enumerate(zip(chosen, scores_of(logits[r], chosen, scoring), strict=True))
        ]
        if shared:
            pairs.append((experts, r, top_k, np.float32(1)))
    pairs.sort(key=lambda pair: pair[:2])
    active = sorted({pair[0] for pair in pairs})
    assert out["count"][0] == len(active)
    assert out["expert"][: len(active)].tolist() == active
    starts = [next(n for n, pair in enumerate(pairs) if pair[0] == e) for e in active]
    assert out["first"][: len(active) + 1].tolist() == [*starts, len(pairs)]
    assert out["row"][: len(pairs)].tolist() == [pair[1] for pair in pairs]
    entry = np.full((rows, passes), -1)
    for n, (_, r, i, _) in enumerate(pairs):
        entry[r, i] = n
    assert (out["entry"][: rows * passes].reshape(rows, passes) == entry).all()
    expected = np.array([pair[3] for pair in pairs], np.float32)
    actual = out["score"][: len(pairs)]
    assert (np.isnan(expected) == np.isnan(actual)).all()
    near = np.abs(expected - actual) <= np.spacing(np.abs(expected))
    assert (near | np.isnan(expected) | (expected == actual)).all()


def router(format: str, experts: int, hidden: int, random: np.random.Generator) -> tuple[Array, Array]:
    """-> the matrix in float64, and its packed bytes"""
    values = random.standard_normal((experts, hidden), np.float32)
    if format == "F32":
        source, wide = values, values.astype(np.float64)
    elif format == "F16":
        source = values.astype(np.float16)
        wide = source.astype(np.float64)
    elif format == "BF16":
        source = bf16(values)
        wide = load(source, "bf16")
    else:
        source = np.zeros((experts, hidden // 32), np.dtype([("d", "<f2"), ("q", "i1", 32)]))
        source["d"] = np.abs(values[:, ::32]) / 64
        source["q"] = random.integers(-127, 128, (experts, hidden // 32, 32))
        wide = (source["q"] * source["d"].astype(np.float64)[..., None]).reshape(experts, hidden)
    packed = _core.cuda.pack(format=format, rows=experts, cols=hidden, data=source.reshape(-1).view(np.uint8))
    return wide, packed


def check_logits(out: dict[str, Array], x: Array, norm: Array, wide: Array, eps: float, max_rows: int) -> None:
    rows, (experts, hidden) = len(x), wide.shape
    check_rms_norm(out["n"][: rows * hidden].reshape(rows, hidden), x, norm, eps)
    n = x.astype(np.float64)
    n = n / np.sqrt((n * n).mean(-1, keepdims=True) + eps) * norm
    actual = out["logits"][: rows * experts].reshape(rows, experts)
    check(actual, n @ wide.T, np.abs(n) @ np.abs(wide.T), tolerances.cuda_route(hidden, max_rows))


def case(
    card: Remote,
    format: str,
    rows: int,
    experts: int,
    top_k: int,
    hidden: int,
    seed: int,
    max_rows: int = 0,
    scoring: str = "softmax",
    shared: bool = False,
    captured: bool = False,
) -> dict[str, Array]:
    random = np.random.default_rng(seed + 1000 * experts + rows)
    x, norm = random.standard_normal((rows, hidden), np.float32) * 2, random.standard_normal(hidden, np.float32)
    wide, packed = router(format, experts, hidden, random)
    arguments = {"norm": norm, "packed": packed, "format": format, "experts": experts, "top_k": top_k}
    (out,) = card.call(
        "cases_route.route",
        seed,
        steps=[x],
        max_rows=max_rows or rows,
        scoring=scoring,
        shared=shared,
        captured=captured,
        **arguments,
    )
    check_logits(out, x, norm, wide, 1e-5, max_rows or rows)
    check_sorted(out, rows, experts, top_k, scoring, shared)
    # What is not of a row of the step stays as it was.
    for name, used in (("n", rows * hidden), ("logits", rows * experts), ("row", rows * (top_k + shared))):
        assert (out[name][used:].view(np.uint32) == 0xFFFFFFFF).all()
    return out


@pytest.mark.parametrize("rows", [1, 2, 7, 16, 17, 100])
@pytest.mark.parametrize("experts", [1, 2, 8, 16, 127, 128, 200, 256])
def test_shapes(card: Remote, experts: int, rows: int) -> None:
    several = (1, 2, 6, experts) if rows in (1, 7, 17) else (2, 6)
    for top_k in sorted({min(top_k, experts) for top_k in several}):
        if rows == 17 and top_k > 128:
            continue
        shared, scoring = top_k % 2 == 0, "sigmoid" if top_k == 1 else "softmax"
        case(card, "F32", rows, experts, top_k, 32, top_k, scoring=scoring, shared=shared, captured=shared)


# 2048 columns are a round of a block's; of one row, four rounds are in flight.
@pytest.mark.parametrize("hidden", [4, 8, 12, 36, 100, 1028, 2048, 2052, 8192, 8196, 10240])
@pytest.mark.parametrize("format", ["F32", "BF16", "F16", "Q8_0"])
def test_columns(card: Remote, format: str, hidden: int) -> None:
    if format == "Q8_0" and hidden % 32:
        hidden = (hidden + 31) // 32 * 32
    for rows in (1, 3, 18) if hidden < 2048 else (1, 2):
        case(card, format, rows, 3, 2, hidden, rows, shared=True)


def test_tiles_of_rows_and_experts(card: Remote) -> None:
    for rows, experts in ((32, 64), (33, 65), (31, 63), (64, 128)):
        case(card, "BF16", rows, experts, 3, 72, 1)


@pytest.mark.parametrize(("rows", "max_rows"), [(1, 2), (3, 16), (16, 16), (1, 40), (17, 40), (33, 70)])
def test_fewer_rows_than_there_is_room_for(card: Remote, rows: int, max_rows: int) -> None:
    case(card, "BF16", rows, 20, 3, 64, 1, max_rows=max_rows, scoring="sigmoid", shared=True, captured=True)


@pytest.mark.parametrize("seed", range(6))
def test_orders_of_blocks(card: Remote, seed: int) -> None:
    for rows in (1, 5, 20):
        case(card, "BF16", rows, 16, 4, 128, seed, shared=True)


@pytest.mark.parametrize("format", ["F32", "BF16"])
def test_a_rows_bits_do_not_depend_on_the_others(card: Remote, format: str) -> None:
    random = np.random.default_rng(5)
    x, norm = random.standard_normal((16, 2056), np.float32), random.standard_normal(2056, np.float32)
    _, packed = router(format, 9, 2056, random)
    arguments = {"norm": norm, "packed": packed, "format": format, "experts": 9, "top_k": 2}
    arguments |= {"scoring": "softmax", "shared": False}
    (together,) = card.call("cases_route.route", 1, steps=[x], max_rows=16, **arguments)
    alone = card.call("cases_route.route", 2, steps=[x[r : r + 1] for r in range(16)], max_rows=1, **arguments)
    for r in range(16):
        for name in ("logits", "n"):
            width = together[name].size // 16
            assert alone[r][name].tobytes() == together[name][r * width : (r + 1) * width].tobytes()
    (some,) = card.call("cases_route.route", 3, steps=[x[3:8]], max_rows=7, **arguments)
    assert some["logits"][:45].tobytes() == together["logits"][27:72].tobytes()


@pytest.mark.parametrize("max_rows", [1, 4, 20])
def test_one_plan_for_many_steps(card: Remote, max_rows: int) -> None:
    """The counters are as they were: a captured plan serves step after step."""
    random = np.random.default_rng(max_rows)
    norm = random.standard_normal(64, np.float32)
    wide, packed = router("F32", 12, 64, random)
    steps = [random.standard_normal((rows, 64), np.float32) for rows in (1, max_rows, max(1, max_rows - 1), max_rows)]
    results = card.call(
        "cases_route.route", max_rows, steps=steps, norm=norm, packed=packed, format="F32", experts=12, top_k=3,
        scoring="softmax", shared=True, max_rows=max_rows, captured=True,
    )  # fmt: skip
    for x, out in zip(steps, results, strict=True):
        check_logits(out, x, norm, wide, 1e-5, max_rows)
        check_sorted(out, len(x), 12, 3, "softmax", True)


def exact(card: Remote, wanted: Array, top_k: int, scoring: str, seed: int = 0) -> dict[str, Array]:
    """A router whose logits are close to `wanted` [experts], signs, infinities and NaN included, for every row.

    x is a one and zeros, so that each logit is one product, by the norm's factor, of the router's first column.
    """
    experts, hidden = len(wanted), 8
    weights = np.zeros((experts, hidden), np.float32)
    weights[:, 0] = wanted
    packed = _core.cuda.pack(format="F32", rows=experts, cols=hidden, data=weights.view(np.uint8).reshape(-1))
    norm = np.zeros(hidden, np.float32)
    norm[0] = 1
    found = []
    for rows in (1, 3, 17):
        x = np.zeros((rows, hidden), np.float32)
        x[:, 0] = 1
        (out,) = card.call(
            "cases_route.route", seed, steps=[x], norm=norm, packed=packed, format="F32", experts=experts, top_k=top_k,
            scoring=scoring, shared=False, max_rows=rows,
        )  # fmt: skip
        check_sorted(out, rows, experts, top_k, scoring, False)
        found.append(out)
    return found[0]


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_ties_nan_infinities_and_signed_zeros(card: Remote, scoring: str) -> None:
    nan, inf = np.nan, np.inf
    out = exact(card, np.full(40, 1.5, np.float32), 5, scoring)
    assert out["expert"][:5].tolist() == [0, 1, 2, 3, 4]
    out = exact(card, np.array([-1, -0.0, 0.0, -0.0, 0.0, -2], np.float32), 3, scoring)
    assert out["expert"][:3].tolist() == [1, 2, 3]
    out = exact(card, np.array([1, inf, nan, 2, -inf, nan], np.float32), 4, scoring)
    assert out["logits"][0] > 0 and np.isnan(out["logits"][2])
    assert out["entry"][:4].tolist() == [1, 3, 0, 2]  # NaN 2, NaN 5, infinity 1, then 3
    exact(card, np.array([-inf, -inf, -inf, 3, -inf], np.float32), 5, scoring)
    exact(card, np.full(33, -inf, np.float32), 33, scoring)
    exact(card, np.full(40, nan, np.float32), 3, scoring)
    # Small and large differences: scores that underflow, or are all but one.
    exact(card, np.array([-300, 300, 0.001, 0, 88, -88, 20], np.float32), 7, scoring)
    negative_nan = np.array([1, 2, 3], np.float32)
    negative_nan.view(np.uint32)[0] = 0xFFC00001
    assert exact(card, negative_nan, 1, scoring)["expert"][0] == 0


def test_rows_of_zeros_and_of_nan(card: Remote) -> None:
    random = np.random.default_rng(3)
    _, packed = router("F32", 10, 32, random)
    for rows in (1, 4, 19):
        for value in (0.0, np.nan, np.inf):
            x = np.full((rows, 32), value, np.float32)
            (out,) = card.call(
                "cases_route.route", steps=[x], norm=np.ones(32, np.float32), packed=packed, format="F32", experts=10,
                top_k=2, scoring="softmax", shared=True, max_rows=rows,
            )  # fmt: skip
            check_sorted(out, rows, 10, 2, "softmax", True)
            assert (np.isnan(out["logits"]) == (value != 0)).all()


@pytest.mark.parametrize("rows", [1, 5, 20])
def test_launches_that_read_what_the_one_before_wrote(card: Remote, rows: int) -> None:
    random = np.random.default_rng(rows)
    x, norm = random.standard_normal((rows, 64), np.float32), random.standard_normal(64, np.float32)
    _, packed = router("F32", 6, 64, random)
    for seed in range(3):
        out = card.call("cases_route.norm_and_route", seed, x=x, norm=norm, packed=packed, experts=6, top_k=2)
        normed = card.call("rms_norm", x=x, weight=None, eps=1e-5)[0]
        n = normed.astype(np.float64)
        value = n / np.sqrt((n * n).mean(-1, keepdims=True) + 1e-5) * norm
        check(out.reshape(rows, 64), normed + value, np.abs(normed) + np.abs(value), tolerances.CUDA_RMS_NORM)


def test_what_it_asks_of_memory(card: Remote) -> None:
    """No bank conflict; rows and weights are read in whole sectors, the weights once a tile of rows."""
    random = np.random.default_rng(1)
    _, packed = router("BF16", 64, 512, random)
    for rows in (1, 6, 40):
        x, norm = random.standard_normal((rows, 512), np.float32), random.standard_normal(512, np.float32)
        arguments = {"steps": [x], "norm": norm, "packed": packed, "format": "BF16", "experts": 64, "top_k": 2}
        arguments |= {"scoring": "softmax", "shared": True, "max_rows": rows}
        launches = card.call("report", function="cases_route.route", arguments=arguments)
        assert [launch["kernel"] for launch in launches] == (
            ["route_bf16_1" if rows == 1 else "route_bf16_16"]
            if rows <= 16
            else ["route_large_norm", "route_large_logits_bf16", "route_large_choose", "route_large_sort"]
        )
        for launch in launches:
            assert launch["shared_bank_conflicts"] == 0
            if launch["kernel"] == "route_large_logits_bf16":
                read = 2 * 64 * 512 * 2 + rows * 512 * 4  # two tiles of rows, one of experts
                assert launch["global_load_sectors_requested"] == launch["global_load_sectors_ideal"]
                assert read <= launch["global_load_bytes"] <= read + 4096


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format": "Q4_0"}, "route: the router's format is Q4_0, must be F32, F16, BF16 or Q8_0"),
        ({"experts": 257}, "route: experts is 257, must be 1 to 256"),
        ({"hidden": 66}, "route: hidden is 66, must be a multiple of 4"),
        ({"max_rows": 0}, "route: max_rows is 0, must be 1 to 8355967"),
        ({"top_k": 9}, "route: top_k is 9, must be 1 to 8"),
        ({"top_k": 0}, "route: top_k is 0, must be 1 to 8"),
        ({"eps": -1.0}, "route: eps is -1.000000, must be 0 or more"),
        ({"scoring": "tanh"}, "route: scoring is 'tanh', must be softmax or sigmoid"),
        ({"max_groups": 4}, "route: the groups' max_groups is 4, must be at least 5"),
        ({"x": 4}, "route: x is not aligned, must be on 16 bytes"),
        ({"router": 16}, "route: router is not aligned, must be on 256 bytes"),
    ],
)
def test_wrong_arguments(card_of: Any, changes: dict[str, Any], sentence: str) -> None:
    assert card_of("sm_80").call("cases_route.wrong_route", **changes) == sentence
