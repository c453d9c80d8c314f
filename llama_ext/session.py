"""The small decoding API: one KV cache, one position."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from llama_ext import _core
from llama_ext.errors import ContextError, LlamaExtError, OptionError
from llama_ext.executor import Executor
from llama_ext.program import Program
from llama_ext.sampling import SamplingParams

__all__ = ["Progress", "Session", "TokenIds", "check_progress", "progress_bar", "token_ids"]

Progress: TypeAlias = bool | Callable[[int, int], None] | None
"""True: a bar on stderr where that is a terminal. A function: called with (done, total). Else: silence."""

TokenIds: TypeAlias = Iterable[int] | npt.NDArray[np.integer]


def check_progress(progress: object) -> None:
    """Raises:
    OptionError: it is no `Progress`.
    """
    if progress is not None and not isinstance(progress, bool) and not callable(progress):
        raise OptionError(f"progress must be True, False, None or a function of (done, total), not {progress!r:.60}.")


@contextmanager
def progress_bar(progress: Progress, label: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Gives a function to report (done, total) to, as `progress` wishes."""
    check_progress(progress)
    if progress is None or progress is False:
        yield lambda done, total: None
    elif progress is True:
        from tqdm import tqdm  # type: ignore[import-untyped]

        with tqdm(desc=label, unit=unit, unit_scale=True, total=1, disable=None, leave=False, delay=0.5) as bar:

            def report(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            yield report
    else:
        yield progress


def token_ids(ids: TokenIds, vocab: int) -> npt.NDArray[np.int32]:
    """`ids` as an array int32 [n], once it is certain that they are token ids.

    Raises:
        OptionError: they are no integers from 0 to vocab - 1, in one dimension.
    """
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise OptionError(f"token ids must be a list or an array of integers, not {ids!r:.60}.")
    if not hasattr(ids, "__array__"):
        ids = list(ids)
        if not ids:
            return np.empty(0, np.int32)
    try:
        array = np.asarray(ids)
    except ValueError:  # rows of different length
        array = np.empty((0, 0))
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise OptionError(f"token ids must be a list or an array [n] of integers, not {ids!r:.60}.")
    wrong = np.flatnonzero((array < 0) | (array >= vocab))
    if len(wrong):
        at = int(wrong[0])
        raise OptionError(f"there is no token {array[at]} (at index {at}); ids go from 0 to {vocab - 1}.")
    return np.ascontiguousarray(array, np.int32)


@functools.lru_cache(maxsize=16)
def _native_params(params: SamplingParams) -> _core.SamplingParams:
    return _core.SamplingParams(**dataclasses.asdict(params))


class Session:
    """A sequence of tokens with its keys and values: `llm.session()`.

    Logits are the same to the last bit however the tokens are divided among steps of up to 16; longer ones round
    more, unless the model was loaded with `exact_prompt` (`llama_ext.load`). One session belongs to one thread at a
    time; different sessions of a model may run in different threads (the model takes their steps one after the
    other).

    Ctrl-C during a long call is heard between steps of at most `program.native.max_rows` tokens; the session
    then holds what was processed (`position` says how much) and stays usable.
    """

    def __init__(self, program: Program, executor: Executor) -> None:
        self._program = program
        self._native = program.native
        self._executor = executor
        try:
            self._cache = executor.make_cache()
        except (MemoryError, RuntimeError):
            held = self._native.max_context
            raise LlamaExtError(
                f"there is no room for {held:,} positions of keys and values "
                f"({program.cache_bytes(held) / 1e9:.1f} GB); load with a smaller max_context."
            ) from None
        # What stands past the position is stale: ids are written before the step that makes them valid.
        self._tokens = np.zeros(min(1024, self._native.max_context), np.int32)
        self._one = np.zeros(1, np.int32)

    def __repr__(self) -> str:
        return f"<Session at position {self.position:,} of {self.max_context:,}>"

    @property
    def position(self) -> int:
        """The number of tokens in the cache, which is the position of the next one."""
        return self._cache.position

    @property
    def max_context(self) -> int:
        """The number of tokens that the cache can hold."""
        return self._native.max_context

    @property
    def max_rows(self) -> int:
        """The number of tokens that one pass takes at the most."""
        return self._native.max_rows

    @property
    def max_rollback(self) -> int:
        """How many tokens `rollback` can take back now: all of them, unless layers with a window have
        overwritten theirs."""
        return self._cache.max_rollback

    @property
    def ids(self) -> list[int]:
        """The tokens in the cache."""
        ids: list[int] = self._tokens[: self.position].tolist()
        return ids

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values in use."""
        return self._cache.bytes_used

    def prefill(self, ids: TokenIds, *, progress: Progress = None) -> npt.NDArray[np.float32]:
        """Appends tokens.

        Args:
            ids: at least one token id: a list, a numpy array [n] of an integer type, any iterable of ints.
            progress: reported in tokens; see `Progress`.

        Returns:
            The logits [vocab], float32, of the token that follows the last of `ids`.

        Raises:
            OptionError: `ids` is empty or holds what is no token id; nothing has changed.
            ContextError: they do not fit into the context; nothing has changed.
        """
        array = self._checked(ids)
        if not len(array):
            raise OptionError("there are no tokens to process; give at least one.")
        logits = np.empty((0, 0), np.float32)
        with progress_bar(progress, "prompt", " tokens") as report:
            for start, piece in self._pieces(array):
                done = start + len(piece)
                logits = self._executor.run(self._cache, piece, int(done == len(array)))
                report(done, len(array))
        last: npt.NDArray[np.float32] = logits[0]
        return last

    def step(self, token: int) -> npt.NDArray[np.float32]:
        """Appends one token and returns the logits [vocab], float32, of the one that follows.

        Raises:
            OptionError: it is no token id. ContextError: the context is full. Nothing has changed then.
        """
        self._note(token)
        logits: npt.NDArray[np.float32] = self._executor.run(self._cache, self._one, 1)[0]
        return logits

    def draw(self, token: int, params: SamplingParams) -> int:
        """Appends one token and draws the one that follows: `sample(step(token), params)` as one run of the
        program, whose logits stay where they are.

        Raises:
            As `step` and `sample`.
        """
        self._note(token)
        seen = self.position + 1 if params.repetition_penalty != 1 else 0
        native = _native_params(params)
        return self._executor.run_and_draw(self._cache, self._one, native, self._tokens[:seen])

    def verify(self, token: int, draft: TokenIds, params: SamplingParams) -> tuple[list[int], npt.NDArray[np.float32]]:
        """Appends one token and, in the same pass, those of `draft` that would be drawn after it one by one.

        Exactly those for a draft of up to 15 tokens; a longer one's pass rounds as a prompt's does (see `Session`).

        Returns:
            What was drawn, [n]: the accepted tokens of `draft`, which are its first n - 1, and the one that follows,
            which is not appended, as with `draw`; and the logits [n, vocab], float32, that they were drawn from.

        Raises:
            As `step`, also for the tokens of `draft`, and as `sample`: nothing has changed then.
        """
        ids = self._checked([token, *draft])
        if len(ids) > self.max_rows:
            raise OptionError(f"a draft of {len(ids) - 1} tokens is too long: a pass takes {self.max_rows}.")
        position = self._room(len(ids))
        self._tokens[position : position + len(ids)] = ids
        logits = self._executor.run(self._cache, ids, len(ids))
        drawn: list[int] = []
        kept = 0
        try:
            while len(drawn) < len(ids):
                drawn.append(self._sample(logits[len(drawn)], params, position + len(drawn) + 1))
                if len(drawn) < len(ids) and drawn[-1] != ids[len(drawn)]:
                    break
            kept = len(drawn)
        finally:
            self._cache.rollback(len(ids) - kept)
        return drawn, logits[:kept]

    def logits(self, ids: TokenIds, *, progress: Progress = None) -> npt.NDArray[np.float32]:
        """Appends n tokens and returns the logits [n, vocab], float32, of what follows each.

        That takes 4 * n * vocab bytes: 0.5 GB for 1,000 tokens of a vocabulary of 128,000. `iter_logits`
        gives them block by block.

        Raises:
            As `prefill`; no ids give logits [0, vocab].
        """
        array = self._checked(ids)
        vocab = self._native.vocab
        try:
            out = np.empty((len(array), vocab), np.float32)
        except MemoryError:
            raise OptionError(
                f"the logits of {len(array):,} tokens take {4e-9 * len(array) * vocab:.1f} GB, more than "
                "there is memory; use iter_logits, which gives them block by block."
            ) from None
        at = 0
        with progress_bar(progress, "logits", " tokens") as report:
            for block in self._blocks(array):
                out[at : at + len(block)] = block
                at += len(block)
                report(at, len(array))
        return out

    def iter_logits(self, ids: TokenIds) -> Iterator[npt.NDArray[np.float32]]:
        """Like `logits`, as blocks [rows, vocab] in order, of at most `program.native.max_rows` rows.

        The tokens of a block are appended when the block is asked for; ids are checked at once.
        """
        return self._blocks(self._checked(ids))

    def rollback(self, n: int) -> None:
        """Forgets the last `n` tokens.

        Raises:
            OptionError: there are fewer, or layers with a window no longer hold what came before them
                (`max_rollback`); nothing has changed.
        """
        if isinstance(n, bool) or not isinstance(n, int | np.integer):
            raise OptionError(f"rollback takes a number of tokens, not {n!r:.60}.")
        if not 0 <= n <= self.position:
            raise OptionError(f"cannot roll back {n!r:.60} tokens: the cache holds {self.position:,}; give 0 to that.")
        try:
            self._cache.rollback(int(n))
        except ValueError as error:
            raise OptionError(f"{error}.") from None

    def reset(self) -> None:
        """Forgets all tokens; always possible."""
        self._cache.reset()

    def sample(self, logits: npt.NDArray[np.float32], params: SamplingParams) -> int:
        """Draws the token at `position` from logits [vocab], float32.

        The repetition penalty looks at all tokens in the cache. The same logits, tokens, parameters and
        position give the same token.

        Raises:
            OptionError: the logits are no float32 [vocab]. LlamaExtError: they hold a NaN.
        """
        shape = (self._native.vocab,)
        if not isinstance(logits, np.ndarray) or logits.dtype != np.float32 or logits.shape != shape:
            raise OptionError(f"sample takes float32 logits [{shape[0]}], as prefill and step give them.")
        return self._sample(np.ascontiguousarray(logits), params, self.position)

    def _sample(self, logits: npt.NDArray[np.float32], params: SamplingParams, position: int) -> int:
        seen = position if params.repetition_penalty != 1 else 0
        return _core.sample(logits, _native_params(params), self._tokens[:seen], position)

    def shared_prefix(self, ids: TokenIds) -> int:
        """How many tokens the cache and `ids` have in common at their beginning."""
        array = token_ids(ids, self._native.vocab)
        length = min(self.position, len(array))
        different = np.flatnonzero(self._tokens[:length] != array[:length])
        return int(different[0]) if len(different) else length

    def keep_prefix(self, ids: TokenIds) -> int:
        """Leaves in the cache what `ids` begins with, at most all but its last token, whose logits are needed; returns
        how many tokens that is."""
        array = token_ids(ids, self._native.vocab)
        keep = min(self.shared_prefix(array), len(array) - 1)
        forget = self.position - keep
        if forget > self.max_rollback:
            self.reset()
            return 0
        self.rollback(forget)
        return keep

    def _note(self, token: int) -> None:
        """Puts one token where the next step finds it, once it is certain that it is one and fits."""
        if type(token) is not int:
            if isinstance(token, bool) or not isinstance(token, np.integer):
                raise OptionError(f"a token id must be an integer, not {token!r:.60}.")
            token = int(token)
        if not 0 <= token < self._native.vocab:
            raise OptionError(f"there is no token {token}; ids go from 0 to {self._native.vocab - 1}.")
        position = self._room(1)
        self._tokens[position] = self._one[0] = token

    def _blocks(self, array: npt.NDArray[np.int32]) -> Iterator[npt.NDArray[np.float32]]:
        for _, piece in self._pieces(array):
            yield self._executor.run(self._cache, piece, len(piece))

    def _pieces(self, array: npt.NDArray[np.int32]) -> Iterator[tuple[int, npt.NDArray[np.int32]]]:
        """Steps' worth of `array`, each noted as what stands at the current position."""
        for start in range(0, len(array), self._native.max_rows):
            piece = array[start : start + self._native.max_rows]
            position = self._room(len(piece))
            self._tokens[position : position + len(piece)] = piece
            yield start, piece

    def _room(self, count: int) -> int:
        """The position, once it is certain that `count` more tokens fit."""
        position = self.position
        needed = position + count
        limit, trained = self._native.max_context, self._program.config.max_position_embeddings
        if needed > limit:
            after = f" after the {position:,} in the cache" if position else ""
            reset = " or reset the session" if position else ""
            more = f", or load with max_context up to {trained:,}" if limit < trained else ""
            raise ContextError(
                f"{count:,} token{'s do' if count > 1 else ' does'} not fit{after}: the context holds "
                f"{limit:,}; shorten the text{reset}{more}."
            )
        if needed > len(self._tokens):
            grown = np.zeros(min(max(needed, 2 * len(self._tokens)), limit), np.int32)
            grown[:position] = self._tokens[:position]
            self._tokens = grown
        return position

    def _checked(self, ids: TokenIds) -> npt.NDArray[np.int32]:
        array = token_ids(ids, self._native.vocab)
        self._room(len(array))
        return array
