"""Attention of many rows against float64: what it appends, to the bit, and what it attends to.

Slots that hold no position are NaN, or were never written.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tolerances
from attention_oracle import Case, load, normed, visible_from
from cuda_oracles import check
from cuda_worker import Remote

Array = np.ndarray[Any, Any]

FORMATS = ["f32", "f16", "bf16", "q8_0", "fp8"]
TENSOR_CORES = ["f16", "bf16", "q8_0", "fp8"]


class Prefill(Case):
    """As its base, run by append and prefill. key_size, value_size: what the step's own are multiplied with."""

    def __init__(
        self, *, key_size: float = 1.0, value_size: float = 1.0, group: int = 2, kv_heads: int = 1, **case: Any
    ):
        case.setdefault("max_rows", case.get("rows", 1))
        super().__init__(heads=group * kv_heads, kv_heads=kv_heads, **case)
        q, kv = self.heads * self.head_dim, kv_heads * self.head_dim
        self.qkv[:, q : q + kv] *= np.float32(key_size)
        self.qkv[:, q + kv :] *= np.float32(value_size)
        del self.arguments["splits"]

    def check_row(self, out: Array, planes: list[Array], position: int, row: Array) -> None:
        q = self.parts(row)[0].astype(np.float64)
        if self.qk_norm:
            q = normed(q, self.eps)
        if self.temperature_scale:
            q = q * (np.log(np.floor((position + 1) / self.temperature_floor) + 1) * self.temperature_scale + 1)
        first = max(self.start, position - 2 * self.capacity)
        keys = (first + visible_from(position, first, self.mask)) % self.capacity
        group = self.heads // self.kv_heads
        k, v = (
            load([plane[:, keys] for plane in planes[which::2]], self.format).repeat(group, 0) for which in range(2)
        )
        scores = np.einsum("hd,hkd->hk", q, k) * self.scale
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        # A score's own error, a share of what it is a sum of, moves its weight by as much, relatively.
        size = (np.einsum("hd,hkd->hk", np.abs(q), np.abs(k)) * self.scale).max(-1, keepdims=True)
        magnitude = np.einsum("hk,hkd->hd", weights, np.abs(v)) * (1 + size)
        tolerance = tolerances.CUDA_ATTENTION_PREFILL[self.format]
        check(out, np.einsum("hk,hkd->hd", weights, v), magnitude, tolerance)

    def run(
        self, card: Remote, seed: int = 0, captured: bool = False, unwritten: bool = False
    ) -> list[tuple[Array, list[Array]]]:
        arguments = {**self.arguments, "held": self.held if unwritten else None}
        results: list[tuple[Array, list[Array]]] = card.call(
            "cases_attention_prefill.prefill", seed, captured=captured, **arguments
        )
        self.check(results)
        return results


def head_dims(format: str) -> list[int]:
    return [32, 64, 96, 128, 256] if format == "q8_0" else [8, 40, 64, 80, 128, 256]


# A block has 64 queries on tensor cores and 16 without, a tile 32 or 64 keys.
@pytest.mark.parametrize(("format", "head_dim"), [(f, d) for f in FORMATS for d in head_dims(f)])
def test_formats_and_head_dims(card: Remote, format: str, head_dim: int) -> None:
    for seed, (rows, group, position) in enumerate([(1, 3, 0), (17, 4, 0), (33, 1, 40), (70, 1, 5)]):
        Prefill(position=position, rows=rows, group=group, head_dim=head_dim, format=format).run(card, seed)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("group", [1, 3, 4, 5, 8, 16])
def test_groups(card: Remote, format: str, group: int) -> None:
    """Two key-value heads; a query's row and head come from its number, whatever the group."""
    Prefill(position=30, rows=19, group=group, kv_heads=2, head_dim=64, format=format).run(card, group)


MASKS = [("chunked", 8), ("chunked", 48), ("chunked", 100), ("sliding", 8), ("sliding", 48), ("sliding", 100)]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("format", ["f32", "f16", "q8_0"])
def test_masks(card: Remote, mask: tuple[str, int], format: str) -> None:
    """Rings just as large as the mask needs; rows cross from one chunk into the next, windows leave tiles behind."""
    for position, rows in ((0, 70), (33, 33), (81, 17), (130, 70), (1000, 33)):
        capacity = min(position + rows, mask[1] + rows)
        case = Prefill(position=position, rows=rows, group=3, head_dim=64, format=format, mask=mask, capacity=capacity)
        case.run(card, position)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("mask", [("global", 0), ("chunked", 48), ("sliding", 48)])
def test_sequences_that_begin_late(card: Remote, format: str, mask: tuple[str, int]) -> None:
    """Nothing lies before the start, and slots without a position were never written."""
    far = 10_000_000
    for start, position in ((far, far), (far, far + 9), (5, 40)):
        case = Prefill(
            position=position,
            rows=33,
            head_dim=64,
            format=format,
            mask=mask,
            start=start,
            capacity=position - start + 40,
        )
        case.run(card, unwritten=True)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_norm_and_temperature(card: Remote, format: str, head_dim: int) -> None:
    for temperature in ((0.0, 0), (0.1, 16), (0.5, 3)):
        Prefill(
            position=20, rows=17, group=4, head_dim=head_dim, format=format, qk_norm=True, temperature=temperature
        ).run(card)


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("format", ["f32", "bf16", "fp8"])
def test_one_plan_for_every_step(card: Remote, format: str, captured: bool) -> None:
    """Rows, position and start move in device memory; blocks without rows end at once."""
    for rows in (1, 17):
        Prefill(position=30, rows=rows, steps=3, max_rows=70, group=4, kv_heads=2, head_dim=64, format=format).run(
            card, rows, captured
        )


@pytest.mark.parametrize("format", FORMATS)
def test_sizes(card: Remote, format: str) -> None:
    """Queries, keys and values far from 1: no term of a split falls out of its type's range."""
    small = 1e-2 if format == "fp8" else 1e-4
    for size, key_size, value_size in (
        (1e-20, 1.0, 1.0),
        (3e4, 1.0, 1.0),
        (1e6, small, 1.0),
        (1.0, 1.0, small),
        (0.1, 1.0, 400.0),
    ):
        Prefill(
            position=0, rows=40, head_dim=64, format=format, size=size, key_size=key_size, value_size=value_size
        ).run(card)


def test_bits_do_not_depend_on_the_order_of_blocks(card: Remote) -> None:
    case = Prefill(position=50, rows=33, group=4, kv_heads=2, head_dim=64, format="bf16")
    first, *others = (case.run(card, seed)[0][0].tobytes() for seed in range(4))
    assert all(other == first for other in others)


@pytest.mark.parametrize("format", TENSOR_CORES)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_counters(card: Remote, format: str, head_dim: int) -> None:
    """No bank conflict, and a block reads each key and value once."""
    case = Prefill(position=100, rows=28, head_dim=head_dim, format=format)  # one block
    launches = card.call("report", function="cases_attention_prefill.prefill", arguments=case.arguments)
    (launch,) = (launch for launch in launches if launch["kernel"].startswith("attention_prefill"))
    assert launch["shared_bank_conflicts"] == 0
    copied = sum(access["bytes"] for access in launch["accesses"] if access["opcode"].startswith("cp.async"))
    assert copied == sum(plane.nbytes for plane in case.planes)


def test_plans(card: Remote) -> None:
    assert card.call("cases_attention_prefill.plans").splitlines() == [
        "attention_append_bf16<<<(70, 1, 1), 128, 0>>>(qkv = ADDRESS, step = ADDRESS, cache = ADDRESS, heads = 6, "
        "kv_heads = 2, head_dim = 64, qk_norm = 0, qk_norm_eps = 0) programmatic",
    ]


def test_wrong_arguments(card: Remote) -> None:
    def sentence(operation: str, **changes: Any) -> str:
        refusal: str = card.call("cases_attention_prefill.wrong_arguments", operation=operation, **changes)
        return refusal

    for operation in ("attention_append", "attention_prefill"):
        assert sentence(operation, max_rows=0) == f"{operation}: max_rows is 0, must be 1 to 65535"
        assert sentence(operation, heads=5) == f"{operation}: heads is 5, must be a multiple of kv_heads, 2"
        assert sentence(operation, heads=34) == f"{operation}: heads is 34, must be 2 to 32"
        assert sentence(operation, head_dim=60).endswith("head_dim is 60, must be a multiple of 8 for a cache in bf16")
        assert sentence(operation, head_dim=264) == f"{operation}: head_dim is 264, must be 8 to 256"
        assert sentence(operation, format="q8_0", head_dim=80).endswith(
            "head_dim is 80, must be a multiple of 32 for a cache in q8_0"
        )
        assert sentence(operation, qkv="8+1000000") == f"{operation}: qkv is not aligned, must be on 16 bytes"
        assert sentence(operation, step="0+16") == f"{operation}: step has 16 bytes, its shape needs 24 bytes"
        assert sentence(operation, qk_norm_eps=-1.0).endswith("qk_norm_eps is -1.000000, must be 0 or more")
    assert sentence("attention_prefill", mask=("sliding", 0)).endswith("the mask's extent is 0, must be positive")
    assert sentence("attention_prefill", temperature_scale=0.1).endswith("temperature_floor is 0, must be positive")
    assert sentence("attention_prefill", out="4+1000000") == "attention_prefill: out is not aligned, must be on 8 bytes"
