"""More than one token a pass: a drafter guesses tokens, one pass of the model over all of them tells which are right.

What is drawn at a position depends on the logits, the seed, the position and the tokens before it, and logits do not
depend on how tokens are divided among passes. So a drafted token is right if it is the one that would have been drawn,
and the text is that of plain decoding, greedy or sampled, token by token: drafting changes the time alone. (The
rejection sampling of Leviathan et al. 2023, arXiv:2211.17192, keeps the distribution; this keeps the draws too. For a
drafter that is sure of its guess, as prompt lookup is, both accept with the probability that the model gives it.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from llama_ext import _core
from llama_ext.errors import LlamaExtError

if TYPE_CHECKING:
    from llama_ext.executor import Executor
    from llama_ext.sampling import SamplingParams
    from llama_ext.session import Session

__all__ = ["MOST_DRAFTED", "Drafter", "Drafting", "ModelDrafter", "Pace", "PromptLookup", "draws", "row_cost"]

MOST_DRAFTED = 15
"""Tokens that are drafted for a pass at the most: with the one that is certain they are 16 rows, up to which
logits are those of single rows."""

_ROW_COST = {"cpu": 0.35, "cuda": 0.03}


def row_cost(executor: Executor) -> float:
    """What a further row adds to a pass of one, as a share of that pass: little where memory bounds it, as on a GPU; on
    a CPU the arithmetic of a row counts. Measured on two cores with AVX-512 (bench/NOTES.md)."""
    return _ROW_COST["cpu" if isinstance(executor, _core.Executor) else "cuda"]


class Drafter(Protocol):
    """Guesses how a sequence goes on. It belongs to one generation.

    Attributes:
        cost: of a token that it drafts, as a share of a pass of the model.
    """

    cost: float

    def propose(self, ids: Sequence[int], count: int, params: SamplingParams) -> list[int]:
        """At most `count` tokens that may follow `ids`; none if it has no guess."""


class PromptLookup:
    """Guesses that the text goes on as it did after the same last tokens before: prompt lookup decoding (Saxena 2023).

    Args:
        longest, shortest: tokens that have to be the same, of which the longest match counts, and of several the last.
    """

    cost = 0.0

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        self._lengths = range(longest, shortest - 1, -1)
        self._follows: dict[tuple[int, ...], int] = {}  # the last tokens -> the index of what followed them last
        self._seen = 0  # indices below are in _follows

    def propose(self, ids: Sequence[int], count: int, params: SamplingParams) -> list[int]:
        for at in range(self._seen, len(ids)):
            for length in self._lengths:
                if at >= length:
                    self._follows[tuple(ids[at - length : at])] = at
        self._seen = max(self._seen, len(ids))
        for length in self._lengths:
            follows = self._follows.get(tuple(ids[len(ids) - length :])) if len(ids) >= length else None
            if follows is not None:
                guess: list[int] = []
                for at in range(follows, follows + count):  # past the end it repeats what it has guessed itself
                    guess.append(ids[at] if at < len(ids) else guess[at - len(ids)])
                return guess
        return []


class ModelDrafter:
    """Lets a smaller model with the same vocabulary go ahead. It draws with the same seed at the same positions, so the
    same logits would give the same tokens."""

    def __init__(self, session: Session, cost: float) -> None:
        self._session, self.cost = session, cost

    def propose(self, ids: Sequence[int], count: int, params: SamplingParams) -> list[int]:
        session = self._session
        count = min(count, session.max_context - len(ids))
        if count <= 0:
            return []
        kept = session.keep_prefix(ids)
        try:
            guess = [session.sample(session.prefill(ids[kept:]), params)]
            while len(guess) < count:
                guess.append(session.draw(guess[-1], params))
        except LlamaExtError:  # NaN logits: no guess
            return []
        return guess


class Pace:
    """How many tokens to draft: as many as pay.

    A k-th drafted token is right with probability p**k, p estimated from what came of the last ones, and saves a share
    of a pass then; it always costs a row. Estimates fade, so that a drafter that failed is tried again.

    Args:
        cost: of a drafted token, as a share of a pass of one row: drafting it, and its row.
        most: never more.
    """

    def __init__(self, cost: float, most: int) -> None:
        self._cost, self._most = cost, most
        self._right, self._wrong = 0.0, 0.0

    @property
    def share(self) -> float:
        """The estimated probability that a drafted token is right, if those before it are."""
        return (self._right + 2) / (self._right + self._wrong + 3)  # two of three, until anything is known

    def count(self) -> int:
        """The number with the most tokens a second to be expected; 0 where none pays."""
        best, best_rate, tokens, right = 0, 1.0, 1.0, 1.0
        for count in range(1, self._most + 1):
            right *= self.share
            tokens += right
            rate = tokens / (1 + self._cost * count)
            if rate > best_rate:
                best, best_rate = count, rate
        return best

    def note(self, drafted: int, accepted: int) -> None:
        """What came of a draft."""
        fade = 0.95 ** (accepted + 1)
        self._right = self._right * fade + accepted
        self._wrong = self._wrong * fade + (accepted < drafted)

    def note_none(self) -> None:
        """A pass went by without a draft."""
        self._right *= 0.98
        self._wrong *= 0.98


@dataclass(slots=True)
class Drafting:
    """Of one generation.

    Attributes:
        drafter: None: every pass draws one token.
        pace: how many tokens to draft.
        passes: of the model, behind the prompt.
        drafted, accepted: tokens.
    """

    drafter: Drafter | None
    pace: Pace
    passes: int = 0
    drafted: int = 0
    accepted: int = 0

    def propose(self, ids: Sequence[int], room: int, params: SamplingParams) -> list[int]:
        """What to verify in the next pass: at most `room` tokens, perhaps none."""
        count = min(self.pace.count(), room) if self.drafter else 0
        guess = self.drafter.propose(ids, count, params) if self.drafter and count > 0 else []
        self.passes += 1
        if not guess:
            self.pace.note_none()
        return guess

    def note(self, drafted: int, accepted: int) -> None:
        """What came of it."""
        self.drafted += drafted
        self.accepted += accepted
        self.pace.note(drafted, accepted)


def draws(
    session: Session,
    logits: npt.NDArray[np.float32],
    params: SamplingParams,
    drafting: Drafting,
    *,
    limit: int,
    want_logits: bool,
) -> Iterator[tuple[int, npt.NDArray[np.float32] | None]]:
    """The tokens that follow a session's, one by one, each with the logits [vocab] that it was drawn from if those are
    wanted: at most `limit`, the first from `logits`, and no more than the context holds.

    A pass is run when its first token is asked for. The session then holds all that came before the pass's last token,
    also what has not been asked for yet.
    """
    token = session.sample(logits, params)
    yield token, logits
    done = 1
    ids = session.ids
    while done < limit and session.position < session.max_context:
        ids.append(token)
        room = min(limit - done, session.max_context - session.position, session.max_rows)
        guess = drafting.propose(ids, room - 1, params)
        if guess:
            drawn, rows = session.verify(token, guess, params)
            drafting.note(len(guess), len(drawn) - 1)
        elif want_logits:
            rows = session.step(token)[np.newaxis]
            drawn = [session.sample(rows[0], params)]
        else:
            rows, drawn = None, [session.draw(token, params)]
        for at, each in enumerate(drawn):
            done += 1
            yield each, rows[at] if want_logits and rows is not None else None
        ids += drawn[:-1]
        token = drawn[-1]
