"""A system under measurement in a process of its own, which is stopped whenever it is not its turn.

Engines keep teams of threads that wait by spinning, for a while or for ever. Beside another engine in
one process, or in a process that merely idles, such a team takes cores and memory bandwidth from the
one that is being timed. A process that got SIGSTOP runs nothing at all, however its threads wait; and
one process a system gives each its own runtimes (two copies of OpenMP do not meet), its own peak of
memory and its own processor time.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from _machine import CpuWindow, memory_of_this_process
from _rounds import percentile

__all__ = ["SYSTEMS", "System", "Worker", "WorkerError"]

WARM_TOKENS = 8

SYSTEMS = ("llama_ext", "llama.cpp", "ik_llama.cpp")


class WorkerError(RuntimeError):
    """The process of a system failed; the text says how."""


def _die_with_parent() -> None:
    """Ask Linux to end this process with its parent, also while it is stopped."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


class System:
    """The commands that a worker obeys: an engine, and the clock and the processor accounts around it."""

    def __init__(self, name: str) -> None:
        if name == "llama.cpp":
            from llama_cpp_peer import LlamaCpp

            self.engine: Any = LlamaCpp()
        elif name == "ik_llama.cpp":
            from ik_llama_cpp_peer import IkLlamaCpp

            self.engine = IkLlamaCpp()
        elif name == "llama_ext":
            from _ours import LlamaExt

            self.engine = LlamaExt()
        else:
            raise ValueError(f"no such system: {name}")
        self.threads = 1

    def versions(self) -> dict[str, str]:
        """The versions of what is measured."""
        return self.engine.versions()

    def load(self, path: str, threads: int, context: int, prompt: int) -> dict[str, Any]:
        """Load, then run a first prompt: what a fresh process pays until its first token."""
        before = memory_of_this_process().get("VmRSS", 0)
        self.threads = threads
        window = CpuWindow()
        seconds = self.engine.load(path, threads, context)
        first = self._first_token(self._prompt(prompt))
        account = window.close(threads)
        return {
            "seconds": seconds,
            "cold_first_token": seconds + first,
            "memory_before": before,
            "info": self.engine.info,
            **account,
        }

    def tokenize(self, text: str) -> list[int]:
        """The ids of a text."""
        return self.engine.tokenize(text)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """The logits after a prompt."""
        self.engine.reset()
        self.engine.prefill(ids)
        return self.engine.logits()

    def fill(self, position: int) -> float:
        """Bring the cache to `position` tokens; returns the seconds."""
        self.engine.reset()
        return self.engine.prefill(self._prompt(position)) if position else 0.0

    def turn_prefill(self, prompt: int) -> dict[str, Any]:
        """A prompt from an empty cache, timed until its logits are there and until the first id is chosen."""
        ids = self._prompt(prompt)
        self.engine.reset()
        self.engine.decode(WARM_TOKENS, 1)
        self.engine.reset()
        window = CpuWindow()
        seconds = self.engine.prefill(ids)
        account = window.close(self.threads)
        start = time.perf_counter()
        int(np.argmax(self.engine.logits()))
        chosen = time.perf_counter() - start
        return {"value": prompt / seconds, "first_token": seconds + chosen, **account}

    def turn_decode(self, position: int, n: int) -> dict[str, Any]:
        """`n` tokens, one a call, after `position` tokens that are in the cache already."""
        self.engine.rewind(position)
        self.engine.decode(WARM_TOKENS, 1)
        self.engine.rewind(position)
        window = CpuWindow()
        seconds = self.engine.decode(n, 1)
        account = window.close(self.threads)
        return {
            "value": n / sum(seconds),
            "token_p50": percentile(seconds, 0.5),
            "token_p95": percentile(seconds, 0.95),
            **account,
        }

    def memory(self) -> dict[str, int]:
        """What the process holds and held."""
        return memory_of_this_process()

    def _prompt(self, n: int) -> list[int]:
        from _ids import token_chain

        return token_chain(2, n, self.engine.vocab_size)

    def _first_token(self, ids: Sequence[int]) -> float:
        start = time.perf_counter()
        self.engine.prefill(ids)
        int(np.argmax(self.engine.logits()))
        return time.perf_counter() - start


def _serve(connection: Connection, name: str) -> None:
    """The life of a worker: answer commands until the pipe closes or `None` comes."""
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    try:
        system = System(name)
        connection.send((True, None))
    except Exception as error:
        connection.send((False, f"{type(error).__name__}: {error}"))
        return
    while True:
        try:
            command = connection.recv()
        except EOFError:
            break
        if command is None:
            break
        method, arguments = command
        try:
            connection.send((True, getattr(system, method)(*arguments)))
        except Exception as error:
            connection.send((False, f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))
    system.engine.close()


class Worker:
    """The parent's end: starts the process, wakes it for a command, stops it again."""

    def __init__(self, system: str, label: str | None = None) -> None:
        self.label = label or system
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, system), name=self.label, daemon=True)
        self._process.start()
        theirs.close()
        try:
            self._receive()
            self._stop()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, method: str, *arguments: Any) -> Any:
        """Wake the process, run one command of `System`, stop the process, return the answer."""
        self._signal(signal.SIGCONT)
        self._connection.send((method, arguments))
        answer = self._receive()
        self._stop()
        return answer

    def close(self) -> None:
        """End the process, gently first."""
        if self._process.is_alive():
            self._signal(signal.SIGCONT)
            with contextlib.suppress(OSError):
                self._connection.send(None)
            self._process.join(5)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
        self._connection.close()

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process.pid is not None
        return self._process.pid

    def stopped(self) -> bool | None:
        """Whether the process is stopped (None where the system does not tell)."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        except OSError:
            return None

    def _receive(self) -> Any:
        try:
            good, answer = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join(5)
            raise WorkerError(f"{self.label}: the process ended with status {self._process.exitcode}") from None
        if not good:
            raise WorkerError(f"{self.label}: {answer}")
        return answer

    def _stop(self) -> None:
        self._signal(signal.SIGSTOP)
        until = time.monotonic() + 1
        while self.stopped() is False and time.monotonic() < until:
            time.sleep(0.0005)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
