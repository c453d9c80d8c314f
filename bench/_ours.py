"""`llama_ext` behind the same methods as the peer's, through the API that a user calls."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from _ids import token_chain

import llama_ext

__all__ = ["LlamaExt"]


class LlamaExt:
    """One model in `llama_ext` with one session: load, prefill, decode, rewind, free.

    A step is timed as its user sees it: the call of `Session.step` until it returns the logits as an
    array, Python's share included.
    """

    name = "llama_ext"

    def __init__(self) -> None:
        self._model: Any = None
        self._session: Any = None
        self._logits: np.ndarray | None = None
        self.vocab_size = 0
        self.info: dict[str, Any] = {}

    @staticmethod
    def versions() -> dict[str, str]:
        """What is being measured, by version."""
        return {
            "llama_ext": str(getattr(llama_ext, "__version__", "unknown")),
            "numpy": np.__version__,
            "python": platform.python_version(),
        }

    def load(self, path: str, threads: int, context: int) -> float:
        """Load the model and open a session of `context` tokens; returns the seconds that both took."""
        self.close()
        start = time.perf_counter()
        self._model = llama_ext.load(path, device="cpu", threads=threads, max_context=context)
        self._session = self._model.session()
        seconds = time.perf_counter() - start
        self.vocab_size = int(self._model.config.vocab_size)
        self.info = {"vocab_size": self.vocab_size, "context": context}
        return seconds

    def close(self) -> None:
        """Let go of the session and the model; harmless to call twice."""
        self._session = self._model = self._logits = None

    @property
    def position(self) -> int:
        """The number of tokens in the cache."""
        return int(self._session.position)

    def reset(self) -> None:
        """Empty the cache."""
        self._session.reset()

    def rewind(self, position: int) -> None:
        """Forget every token from `position` on."""
        if position == 0:
            self._session.reset()
        else:
            self._session.rollback(self._session.position - position)

    def prefill(self, ids: Sequence[int]) -> float:
        """Append `ids` to the cache, logits of the last token only; returns the seconds."""
        tokens = [int(token) for token in ids]
        start = time.perf_counter()
        self._logits = self._session.prefill(tokens)
        return time.perf_counter() - start

    def decode(self, n: int, first_id: int) -> list[float]:
        """Decode `n` tokens of `token_chain(first_id, ...)`, one a call; returns the seconds of each."""
        step = self._session.step
        clock = time.perf_counter
        seconds = []
        for token in token_chain(first_id, n, self.vocab_size):
            start = clock()
            self._logits = step(token)
            seconds.append(clock() - start)
        return seconds

    def logits(self) -> np.ndarray:
        """A copy of the logits of the last token."""
        if self._logits is None:
            raise RuntimeError("Session.prefill returned no logits")
        return np.array(self._logits, dtype=np.float32).reshape(-1)

    def tokenize(self, text: str) -> list[int]:
        """The ids of `text` by the file's own tokenizer."""
        return [int(token) for token in self._model.tokenizer.encode(text)]
