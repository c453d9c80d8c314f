"""What sessions and commands ask of an executor, whichever device it runs on."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from llama_ext import _core

__all__ = ["Executor", "KvCache", "describe"]


class KvCache(Protocol):
    """Keys and values of one sequence, and its position."""

    @property
    def start(self) -> int: ...
    @property
    def position(self) -> int: ...
    @property
    def max_rollback(self) -> int: ...
    @property
    def bytes_used(self) -> int: ...
    @property
    def bytes_reserved(self) -> int: ...
    def rollback(self, n: int) -> None: ...
    def reset(self) -> None: ...


class Executor(Protocol):
    """Runs a program: `_core.Executor` on the CPU, `_core.cuda.Executor` on a CUDA device. A cache is of the executor
    that made it."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights as they lie in the device's memory."""

    def make_cache(self, poison: bool = False, *, start: int = 0) -> KvCache:
        """An empty cache whose first token has the position `start`."""

    def run(self, cache: Any, ids: npt.NDArray[np.int32], logit_rows: int = 0) -> npt.NDArray[np.float32]:
        """Appends ids [rows], int32, and returns the logits [logit_rows, vocab] of the last so many of them."""

    def run_and_draw(
        self, cache: Any, ids: npt.NDArray[np.int32], params: _core.SamplingParams, history: npt.NDArray[np.int32]
    ) -> int:
        """Appends ids and draws the token that follows; history: ids [n], int32, for the repetition penalty."""

    def read_seconds(self, bytes: int) -> float:
        """Seconds that the device takes to move so many bytes of its memory: the measure of a step's bytes a second."""


def describe(executor: Executor) -> str:
    """Where a program runs: "cpu with 2 threads (avx512)", "cuda on NVIDIA H100 (sm_90)"."""
    if isinstance(executor, _core.Executor):
        return f"cpu with {executor.threads} thread{'s' if executor.threads > 1 else ''} ({executor.simd})"
    assert isinstance(executor, _core.cuda.Executor)
    major, minor = executor.device.compute_capability
    return f"cuda on {executor.device.name} (sm_{major}{minor})"
