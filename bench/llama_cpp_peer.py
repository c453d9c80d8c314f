"""llama.cpp as a peer to measure against, through the low-level C API of `llama-cpp-python`.

Every figure is the time of the C calls alone: `llama_decode`, `llama_synchronize` and the look at the
pointer of the logits. Batches are prepared and results are read outside of the clock; a call through
ctypes costs some microseconds. Everything that is not named here stays at llama.cpp's own default:
flash attention, the key and value cache's type, the batch sizes, mapping of the file, repacking of
weights at load, and the threads' way of waiting (its own pool or OpenMP, whichever the library was
built with).

Run as a script, it measures a file with llama.cpp alone: `python bench/llama_cpp_peer.py MODEL
--threads 2`.
"""

from __future__ import annotations

import argparse
import atexit
import ctypes
import functools
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import llama_cpp as lc
import numpy as np
from _ids import token_chain

__all__ = ["LlamaCpp", "llama_cpp_versions"]


@lc.llama_log_callback
def _silent(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
    """Swallow a line of llama.cpp's log (kept at module level: llama.cpp holds its address)."""


@functools.cache
def _start_backend() -> None:
    """Silence the log and start llama.cpp once in a process; it is taken down at exit."""
    lc.llama_log_set(_silent, ctypes.c_void_p(0))
    lc.llama_backend_init()
    atexit.register(lc.llama_backend_free)


def llama_cpp_versions() -> dict[str, str]:
    """The versions of the Python package, of llama.cpp and of ggml, and what the CPU library was built
    for.
    """
    versions = {"llama_cpp_python": str(lc.__version__)}
    if hasattr(lc, "llama_version"):
        versions["llama_cpp"] = lc.llama_version().decode()
    info = lc.llama_print_system_info().decode()
    versions["build"] = " ".join(
        item.split("=")[0].strip() for item in info.replace("CPU :", "").split("|") if item.strip().endswith("1")
    )
    for library in sorted((Path(lc.__file__).parent / "lib").glob("libggml-base.so*")):
        base = ctypes.CDLL(str(library))
        for key in ("ggml_version", "ggml_commit"):
            if hasattr(base, key):
                function = getattr(base, key)
                function.restype = ctypes.c_char_p
                versions[key] = function().decode()
        break
    return versions


class LlamaCpp:
    """One model in llama.cpp with one sequence: load, prefill, decode, rewind, free.

    The methods are those of the adapter of our own engine (`_ours.LlamaExt`), so that a harness treats
    both alike.
    """

    name = "llama.cpp"

    def __init__(self) -> None:
        self._model: Any = None
        self._context: Any = None
        self._vocab: Any = None
        self._batch_size = 0
        self._one = (lc.llama_token * 1)()
        self.vocab_size = 0
        self.info: dict[str, Any] = {}
        _start_backend()

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def versions() -> dict[str, str]:
        """What is being measured, by version."""
        return llama_cpp_versions()

    def load(self, path: str, threads: int, context: int) -> float:
        """Load the model and reserve `context` tokens of cache; returns the seconds that both took.

        The file is mapped (llama.cpp's default), so part of its reading may fall into the first pass.
        """
        self.close()
        encoded = os.fspath(path).encode()
        start = time.perf_counter()
        model_params = lc.llama_model_default_params()
        model_params.n_gpu_layers = 0  # a build with a GPU backend still answers for the CPU here
        self._model = lc.llama_model_load_from_file(encoded, model_params)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        params = lc.llama_context_default_params()
        params.n_ctx = -(-context // 256) * 256
        params.n_threads = threads
        params.n_threads_batch = threads
        self._context = lc.llama_init_from_model(self._model, params)
        seconds = time.perf_counter() - start
        if not self._context:
            self.close()
            raise RuntimeError(f"llama.cpp cannot make a context of {context} tokens for {path}")
        self._vocab = lc.llama_model_get_vocab(self._model)
        self._batch_size = lc.llama_n_batch(self._context)
        self.vocab_size = lc.llama_vocab_n_tokens(self._vocab)
        description = ctypes.create_string_buffer(128)
        lc.llama_model_desc(self._model, description, len(description))
        self.info = {
            "description": description.value.decode(),
            "parameters": int(lc.llama_model_n_params(self._model)),
            "weight_bytes": int(lc.llama_model_size(self._model)),
            "layers": int(lc.llama_model_n_layer(self._model)),
            "vocab_size": self.vocab_size,
            "context": int(lc.llama_n_ctx(self._context)),
        }
        return seconds

    def close(self) -> None:
        """Free the context, then the model; harmless to call twice."""
        if self._context:
            lc.llama_free(self._context)
        if self._model:
            lc.llama_model_free(self._model)
        self._context = self._model = self._vocab = None

    @property
    def position(self) -> int:
        """The number of tokens in the cache."""
        return int(lc.llama_memory_seq_pos_max(lc.llama_get_memory(self._context), 0)) + 1

    def reset(self) -> None:
        """Empty the cache."""
        lc.llama_memory_clear(lc.llama_get_memory(self._context), False)

    def rewind(self, position: int) -> None:
        """Forget every token from `position` on."""
        if position == 0:
            self.reset()
        elif not lc.llama_memory_seq_rm(lc.llama_get_memory(self._context), 0, position, -1):
            raise RuntimeError("this model's cache cannot be cut back")

    def prefill(self, ids: Sequence[int]) -> float:
        """Append `ids` to the cache, logits of the last token only; returns the seconds."""
        tokens = (lc.llama_token * len(ids))(*ids)
        batches = [
            lc.llama_batch_get_one(
                ctypes.cast(ctypes.byref(tokens, first * ctypes.sizeof(lc.llama_token)), lc.llama_token_p),
                min(self._batch_size, len(ids) - first),
            )
            for first in range(0, len(ids), self._batch_size)
        ]
        start = time.perf_counter()
        for batch in batches:
            self._run(batch)
        return time.perf_counter() - start

    def decode(self, n: int, first_id: int) -> list[float]:
        """Decode `n` tokens, one a call, from the present position; returns the seconds of each.

        The ids fed are `token_chain(first_id, ...)`: fixed, so that every system does the same work,
        also where tokens choose experts.
        """
        batch = lc.llama_batch_get_one(self._one, 1)
        seconds = []
        clock = time.perf_counter
        for token in token_chain(first_id, n, self.vocab_size):
            self._one[0] = token
            start = clock()
            self._run(batch)
            seconds.append(clock() - start)
        return seconds

    def logits(self) -> np.ndarray:
        """A copy of the logits of the last token."""
        pointer = lc.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(pointer, shape=(self.vocab_size,)).astype(np.float32, copy=True)

    def tokenize(self, text: str) -> list[int]:
        """The ids of `text` by the file's own tokenizer, with the special tokens that the file asks for."""
        encoded = text.encode()
        room = len(encoded) + 8
        tokens = (lc.llama_token * room)()
        count = lc.llama_tokenize(self._vocab, encoded, len(encoded), tokens, room, True, False)
        if count < 0:
            raise RuntimeError(f"llama.cpp needs room for {-count} tokens")
        return list(tokens[:count])

    def _run(self, batch: Any) -> None:
        """One `llama_decode`, waited for, its logits in reach."""
        status = lc.llama_decode(self._context, batch)
        lc.llama_synchronize(self._context)
        logits = lc.llama_get_logits(self._context)
        if status != 0 or not logits:
            raise RuntimeError(f"llama_decode failed with status {status}")


def main(arguments: Sequence[str] | None = None, out: Callable[[str], None] = print) -> int:
    """Measure one file with llama.cpp alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--decode", type=int, default=64)
    options = parser.parse_args(arguments)
    for key, value in llama_cpp_versions().items():
        out(f"{key:18} {value}")
    with LlamaCpp() as peer:
        loaded = peer.load(options.model, options.threads, options.prompt + options.decode)
        out(f"{'model':18} {peer.info['description']}, {peer.info['weight_bytes'] / 1e6:.0f} MB of weights")
        out(f"{'load':18} {loaded:.3f} s")
        ids = token_chain(1, options.prompt, peer.vocab_size)
        for _ in range(2):  # the first pass also reads the file
            peer.reset()
            seconds = peer.prefill(ids)
        out(f"{'prefill':18} {len(ids) / seconds:.1f} tok/s")
        peer.reset()
        steps = peer.decode(options.decode, 1)
        out(f"{'decode':18} {len(steps) / sum(steps):.1f} tok/s (median token {1e3 * float(np.median(steps)):.2f} ms)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
