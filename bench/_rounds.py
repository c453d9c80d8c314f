"""Rounds, pairs and ratios: the arithmetic of a comparison, free of clocks and processes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

__all__ = [
    "Outcome",
    "Patience",
    "Turn",
    "collect",
    "order_of",
    "percentile",
    "ratio_of",
    "rejected",
    "select",
]


@dataclass(frozen=True)
class Turn:
    """What one system did in one round: a value, and the share of the processors that others had
    meanwhile.
    """

    value: float
    foreign: float | None = None
    details: dict[str, float] = field(default_factory=dict)


Round = dict[str, Turn]
"""One turn of every system, taken one right after the other."""


def rejected(turns: Round, bound: float) -> bool:
    """Whether others took more than `bound` of the processors in any turn: a pair is as good as its worse
    half.
    """
    return any(turn.foreign is not None and turn.foreign > bound for turn in turns.values())


def order_of(systems: Sequence[str], accepted: int) -> list[str]:
    """Who goes first: it alternates with every accepted round, so that a repeated round keeps its order."""
    return list(systems) if accepted % 2 == 0 else list(reversed(systems))


@dataclass(frozen=True)
class Outcome:
    """The rounds that count, and what became of the others."""

    kept: list[Round]
    repeated: int
    disturbed: int

    def median(self, system: str) -> float:
        """The median of a system's values."""
        return statistics.median(turns[system].value for turns in self.kept)

    def detail(self, system: str, key: str) -> float:
        """The median of one of a system's details."""
        return statistics.median(turns[system].details[key] for turns in self.kept)

    def worst_foreign(self) -> float | None:
        """The largest share that others had in a round that counts."""
        shares = [turn.foreign for turns in self.kept for turn in turns.values() if turn.foreign is not None]
        return max(shares, default=None)


def select(rounds: Sequence[Round], wanted: int, bound: float) -> Outcome:
    """The first `wanted` undisturbed rounds, filled up with the least disturbed of the others where they
    are too few.
    """
    clean = [turns for turns in rounds if not rejected(turns, bound)][:wanted]
    rest = [turns for turns in rounds if rejected(turns, bound)]
    rest.sort(key=lambda turns: max(turn.foreign or 0.0 for turn in turns.values()))
    filled = rest[: wanted - len(clean)]
    return Outcome(kept=clean + filled, repeated=len(rest) - len(filled), disturbed=len(filled))


def collect(
    systems: Sequence[str],
    turn: Callable[[str], Turn],
    wanted: int,
    retries: int,
    bound: float,
    before: Callable[[int], None] | None = None,
) -> Outcome:
    """Let the systems take turns until `wanted` rounds are undisturbed, `retries` more rounds at most.

    `before` is called before every round with the number of rounds rejected so far; it may wait.
    """
    rounds: list[Round] = []
    accepted = 0
    while accepted < wanted and len(rounds) < wanted + retries:
        if before is not None:
            before(len(rounds) - accepted)
        turns = {system: turn(system) for system in order_of(systems, accepted)}
        rounds.append(turns)
        if not rejected(turns, bound):
            accepted += 1
    return select(rounds, wanted, bound)


class Patience:
    """A stock of seconds to wait for a quiet machine with, for a whole run.

    `share` measures, for a moment, the share of the processors that others use (None where nobody can
    tell); `now` is a clock.
    """

    def __init__(self, seconds: float, share: Callable[[], float | None], now: Callable[[], float]) -> None:
        self.left = seconds
        self._share = share
        self._now = now

    def wait(self, bound: float) -> float:
        """Return once others use at most `bound`, or once the stock is used up; gives the seconds waited."""
        if self.left <= 0:
            return 0.0
        start = self._now()
        while True:
            share = self._share()
            if share is None or share <= bound:
                break
            if self._now() - start >= self.left:
                break
        waited = self._now() - start
        if share is not None and share > bound:
            self.left = 0.0
        else:
            self.left = max(0.0, self.left - waited)
        return waited


def _quotients(kept: Sequence[Round], ours: str, peer: str, value: Callable[[Turn], float]) -> Iterator[float]:
    for turns in kept:
        below = value(turns[peer])
        if below > 0:
            yield value(turns[ours]) / below


def ratio_of(
    outcome: Outcome, ours: str, peer: str, value: Callable[[Turn], float] = lambda turn: turn.value
) -> dict[str, float] | None:
    """Ours over the peer's: the median of the rounds' quotients with the lowest and the highest, or None
    without any.
    """
    if any(ours not in turns or peer not in turns for turns in outcome.kept):
        return None
    quotients = list(_quotients(outcome.kept, ours, peer, value))
    if not quotients:
        return None
    return {"median": statistics.median(quotients), "low": min(quotients), "high": max(quotients)}


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie, linear between neighbours."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
