"""ik_llama.cpp, a fork of llama.cpp with CPU kernels of its own, as a peer: `versus.py --peer ik_llama.cpp`. By the
C API of the package `ik-llama-cpp-python`.

As with llama.cpp every figure is the time of the C calls alone, and what is not named here stays at its own default.
The package's wheel is built as its authors chose; what the library says of itself is printed with the figures.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import os
import time
from collections.abc import Sequence
from typing import Any

import ik_llama_cpp._ctypes_api as ik
import numpy as np
from _ids import token_chain

__all__ = ["IkLlamaCpp"]

_SEQUENCE = 0


def _bind(name: str, arguments: list[Any], result: Any) -> Any:
    """A function of the library that the package leaves out."""
    function = getattr(ik._lib, name)
    function.argtypes, function.restype = arguments, result
    return function


_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_silent = _LOG(lambda level, text, user_data: None)  # kept at module level: the library holds its address
_log_set = _bind("llama_log_set", [_LOG, ctypes.c_void_p], None)
_system_info = _bind("llama_print_system_info", [], ctypes.c_char_p)
_synchronize = _bind("llama_synchronize", [ctypes.c_void_p], None)
_forget = _bind(
    "llama_kv_cache_seq_rm", [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32], ctypes.c_bool
)
_tokenize = _bind("llama_vocab_tokenize", ik.llama_tokenize.argtypes, ctypes.c_int32)
_n_batch = _bind("llama_n_batch", [ctypes.c_void_p], ctypes.c_uint32)


@functools.cache
def _start_backend() -> None:
    _log_set(_silent, None)
    ik.llama_backend_init()


class IkLlamaCpp:
    """One model in ik_llama.cpp with one sequence; the methods are those of `llama_cpp_peer.LlamaCpp`."""

    name = "ik_llama.cpp"

    def __init__(self) -> None:
        self._model: Any = None
        self._context: Any = None
        self._vocab: Any = None
        self._batch_size = 0
        self._one = (ik.llama_token * 1)()
        self.position = 0
        self.vocab_size = 0
        self.info: dict[str, Any] = {}
        _start_backend()

    @staticmethod
    def versions() -> dict[str, str]:
        """What is being measured, by version."""
        info = _system_info().decode()
        build = [item.split("=")[0].strip() for item in info.split("|") if item.strip().endswith("= 1")]
        return {
            "ik_llama_cpp_python": importlib.metadata.version("ik-llama-cpp-python"),
            "build": " ".join(build),
        }

    def load(self, path: str, threads: int, context: int) -> float:
        """Load the model and reserve `context` tokens of cache; returns the seconds that both took."""
        self.close()
        encoded = os.fspath(path).encode()
        start = time.perf_counter()
        model_params = ik.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self._model = ik.llama_model_load_from_file(encoded, model_params)
        if not self._model:
            raise RuntimeError(f"ik_llama.cpp cannot load {path}")
        params = ik.llama_context_default_params()
        params.n_ctx = -(-context // 256) * 256
        params.n_threads = params.n_threads_batch = threads
        self._context = ik.llama_init_from_model(self._model, params)
        seconds = time.perf_counter() - start
        if not self._context:
            self.close()
            raise RuntimeError(f"ik_llama.cpp cannot make a context of {context} tokens for {path}")
        self._vocab = ik.llama_model_get_vocab(self._model)
        self._batch_size = _n_batch(self._context)
        self.vocab_size = ik.llama_vocab_n_tokens(self._vocab)
        description = ctypes.create_string_buffer(128)
        ik.llama_model_desc(self._model, description, len(description))
        self.info = {"description": description.value.decode(), "vocab_size": self.vocab_size, "context": params.n_ctx}
        return seconds

    def close(self) -> None:
        """Free the context, then the model; harmless to call twice."""
        if self._context:
            ik.llama_free(self._context)
        if self._model:
            ik.llama_free_model(self._model)
        self._context = self._model = self._vocab = None
        self.position = 0

    def reset(self) -> None:
        """Empty the cache."""
        ik.llama_kv_cache_clear(self._context)
        self.position = 0

    def rewind(self, position: int) -> None:
        """Forget every token from `position` on."""
        if position == 0:
            self.reset()
        elif not _forget(self._context, _SEQUENCE, position, -1):
            raise RuntimeError("this model's cache cannot be cut back")
        self.position = position

    def prefill(self, ids: Sequence[int]) -> float:
        """Append `ids` to the cache, logits of the last token only; returns the seconds."""
        tokens = (ik.llama_token * len(ids))(*ids)
        firsts = range(0, len(ids), self._batch_size)
        batches = [
            self._batch(
                ctypes.cast(ctypes.byref(tokens, first * ctypes.sizeof(ik.llama_token)), ik.llama_token_p),
                min(self._batch_size, len(ids) - first),
                self.position + first,
            )
            for first in firsts
        ]
        start = time.perf_counter()
        for batch in batches:
            self._run(batch)
        return time.perf_counter() - start

    def decode(self, n: int, first_id: int) -> list[float]:
        """Decode `n` tokens of `token_chain(first_id, ...)`, one a call; returns the seconds of each."""
        seconds = []
        clock = time.perf_counter
        for token in token_chain(first_id, n, self.vocab_size):
            self._one[0] = token
            batch = self._batch(ctypes.cast(self._one, ik.llama_token_p), 1, self.position)
            start = clock()
            self._run(batch)
            seconds.append(clock() - start)
        return seconds

    def logits(self) -> np.ndarray:
        """A copy of the logits of the last token."""
        pointer = ik.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(pointer, shape=(self.vocab_size,)).astype(np.float32, copy=True)

    def tokenize(self, text: str) -> list[int]:
        """The ids of `text` by the file's own tokenizer, with the special tokens that the file asks for."""
        encoded = text.encode()
        room = len(encoded) + 8
        tokens = (ik.llama_token * room)()
        count = _tokenize(self._vocab, encoded, len(encoded), tokens, room, True, False)
        if count < 0:
            raise RuntimeError(f"ik_llama.cpp needs room for {-count} tokens")
        return list(tokens[:count])

    @staticmethod
    def _batch(tokens: Any, count: int, position: int) -> Any:
        """Tokens of the one sequence from `position` on; logits of the last."""
        none = None
        return ik.llama_batch(count, tokens, none, none, none, none, none, position, 1, _SEQUENCE)

    def _run(self, batch: Any) -> None:
        status = ik.llama_decode(self._context, batch)
        _synchronize(self._context)
        if status != 0 or not ik.llama_get_logits_ith(self._context, -1):
            raise RuntimeError(f"llama_decode failed with status {status}")
        self.position += batch.n_tokens
