"""fetch against a model of a cache that drops what was used longest ago: which slots, which addresses, which bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_worker import Remote

Steps = list[tuple[int, list[int]]]


class Model:
    """A pool of slots: the definition."""

    def __init__(self, slots: int) -> None:
        self.owner: list[tuple[int, int] | None] = [None] * slots
        self.last_used = [0] * slots
        self.time = self.hits = self.misses = 0

    def step(self, layer: int, chosen: list[int]) -> None:
        self.time += 1
        wanted = [(layer, expert) for expert in chosen]
        for slot, owner in enumerate(self.owner):
            if owner in wanted:
                self.last_used[slot] = self.time
        missing = [pair for pair in wanted if pair not in self.owner]
        self.hits += len(wanted) - len(missing)
        self.misses += len(missing)
        for pair in missing:
            slot = min(range(len(self.owner)), key=lambda s: (self.last_used[s], s))
            if self.last_used[slot] == self.time:
                return  # this step's own: the rest stays where it is
            self.owner[slot], self.last_used[slot] = pair, self.time

    def slots(self, layers: int, experts: int) -> list[list[int]]:
        places = {pair: slot for slot, pair in enumerate(self.owner)}
        return [[places.get((layer, expert), -1) for expert in range(experts)] for layer in range(layers)]


def check(card: Remote, steps: Steps, experts: int, slots: int, sizes: list[int], seed: int = 0, **more: Any) -> Model:
    model = Model(slots)
    slot_bytes = (max(sizes) + 255) // 256 * 256
    results = card.call(
        "cases_fetch.fetch", seed, steps=steps, layers=len(sizes), experts=experts, slots=slots, sizes=sizes,
        slot_bytes=slot_bytes, **more,
    )  # fmt: skip
    for (layer, chosen), result in zip(steps, results, strict=True):
        model.step(layer, [e for e in chosen if e < experts])
        assert result["slots"] == model.slots(len(sizes), experts)
        assert result["right"]
        used = sum(owner is not None for owner in model.owner)
        assert result["facts"] == {"used": used, "hits": model.hits, "misses": model.misses}
    return model


def random_steps(count: int, layers: int, experts: int, most: int, seed: int) -> Steps:
    """Layer after layer, as a program has them; some experts are liked better. Often the shared one follows."""
    random = np.random.default_rng(seed)
    weights = 1.0 / (1 + np.arange(experts))
    steps = []
    for i in range(count):
        chosen = random.choice(experts, random.integers(1, most + 1), False, weights / weights.sum())
        steps.append((i % layers, [*sorted(int(e) for e in chosen), *([experts] if random.random() < 0.5 else [])]))
    return steps


# Bits of slots are words of 32, a block's threads 256, experts are looked up 32 at a time. A block has 4096 bytes at a
# time, and there is one for each of those: 1, 2 and 3 of them here.
@pytest.mark.parametrize("slots", [1, 2, 3, 7, 31, 32, 33, 70])
def test_slots(card: Remote, slots: int) -> None:
    for seed in range(2):
        check(card, random_steps(15, 3, 9, 4, seed), 9, slots, [272, 8192, 8208], seed, captured=bool(seed))


def test_more_slots_than_threads(card: Remote) -> None:
    steps: Steps = [(0, list(range(250))), (1, list(range(200, 250))), (0, [3, 249]), (1, [0, 1, 2, 248])]
    model = check(card, steps, 250, 299, [16, 16])
    assert None not in model.owner and model.hits == 3


@pytest.mark.parametrize("experts", [1, 31, 32, 33, 64, 100])
def test_more_experts_than_slots(card: Remote, experts: int) -> None:
    """What gets no slot is read at home; the step after takes what it can."""
    everything = list(range(experts))
    steps: Steps = [(0, everything), (0, everything), (0, everything[-2:]), (0, [*everything, experts])]
    check(card, steps, experts, 5, [32])


# There are no more blocks than multiprocessors: four rounds of each are in flight.
@pytest.mark.parametrize("rounds", [0.5, 1.0, 1.5, 4.0, 5.5])
def test_sizes(card: Remote, rounds: float) -> None:
    _, _, multiprocessors = card.call("describe")
    size = 16 + int(rounds * multiprocessors) * 256 * 16
    check(card, [(0, [1]), (0, [0, 1]), (0, [2])], 3, 2, [size])


def test_no_expert_and_the_shared_one_alone(card: Remote) -> None:
    check(card, [(0, []), (0, [3]), (0, [1, 3]), (0, [])], 3, 2, [64])


def test_a_victims_layer_has_its_home_again(card: Remote) -> None:
    model = check(card, [(0, [0, 1]), (1, [2]), (0, [1]), (1, [2, 3])], 4, 2, [64, 48])
    assert model.owner == [(1, 2), (1, 3)] or model.owner == [(1, 3), (1, 2)]


@pytest.mark.parametrize("seed", range(6))
def test_orders_of_blocks(card: Remote, seed: int) -> None:
    check(card, random_steps(12, 2, 12, 6, seed), 12, 8, [20000, 20480], seed, captured=True)


@pytest.mark.parametrize("seed", range(4))
def test_behind_a_router(card: Remote, seed: int) -> None:
    """Each launch reads what the one before it wrote."""
    pool, home = card.call("cases_fetch.count_and_fetch", seed)
    assert (pool == home).all()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"layer": 2}, "fetch: layer is 2, must be 0 to 1"),
        ({"slots": 0}, "fetch: slots is 0, must be 1 to 65536"),
        ({"slot_bytes": 500}, "fetch: slot_bytes is 500, must be a multiple of 256"),
        ({"bytes": 528}, "fetch: bytes is 528, must be 16 to 512"),
        ({"bytes": 24}, "fetch: bytes is 24, must be a multiple of 16"),
        ({"expert_count": 0}, "fetch: expert_count is 0, must be 1 to 1023"),
        ({"max_groups": 1025}, "fetch: the groups' max_groups is 1025, must be 1 to 1024"),
        ({"pool": 8}, "fetch: pool is not aligned, must be on 16 bytes"),
    ],
)
def test_wrong_arguments(card_of: Any, changes: dict[str, Any], sentence: str) -> None:
    assert card_of("sm_80").call("cases_fetch.wrong_fetch", **changes) == sentence
