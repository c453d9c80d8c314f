"""Real vocabularies as GGUF metadata, and llama.cpp as the oracle of their token ids.

A module of its own, not part of conftest.py: the tests import from it, and several folders have a conftest.
"""

from __future__ import annotations

import base64
import ctypes
import importlib.util
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llama_ext.checkpoint.gguf import GgufFile
from llama_ext.tokenizer import Tokenizer, tokenizer_from_gguf

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def _string(text: str | bytes) -> bytes:
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def write_gguf(path: Path, metadata: Mapping[str, Any]) -> Path:
    """Write a GGUF file of metadata only; lists are arrays of strings, numpy arrays int32 or float32 ones."""
    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, 0, len(metadata)))
    for key, value in metadata.items():
        out += _string(key)
        if isinstance(value, bool):
            out += struct.pack("<IB", 7, value)
        elif isinstance(value, int):
            out += struct.pack("<II", 4, value)
        elif isinstance(value, str):
            out += struct.pack("<I", 8) + _string(value)
        elif isinstance(value, list):
            out += struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_string, value))
        else:
            kind = {"i": 5, "f": 6}[value.dtype.kind]
            out += struct.pack("<IIQ", 9, kind, len(value)) + value.astype(value.dtype.kind + "4").tobytes()
    path.write_bytes(bytes(out) + bytes(-len(out) % 32))
    return path


class LlamaCpp:
    """llama.cpp's view of a vocabulary: the file is loaded with `vocab_only`."""

    def __init__(self, path: Path) -> None:
        import llama_cpp

        self._lib = llama_cpp
        parameters = llama_cpp.llama_model_default_params()
        parameters.vocab_only = True
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        assert self._model, f"llama.cpp does not load {path}"
        self.vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.size: int = llama_cpp.llama_vocab_n_tokens(self.vocab)

    def close(self) -> None:
        self._lib.llama_model_free(self._model)

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        data = text.encode()
        room = len(data) + 8
        tokens = (self._lib.llama_token * room)()
        count = self._lib.llama_tokenize(self.vocab, data, len(data), tokens, room, add_special, parse_special)
        assert count >= 0
        return list(tokens[:count])

    def piece(self, token: int, *, special: bool) -> bytes:
        buffer = ctypes.create_string_buffer(512)
        count = self._lib.llama_token_to_piece(self.vocab, token, buffer, 512, 0, special)
        assert count >= 0
        return buffer.raw[:count]

    def end_ids(self) -> set[int]:
        return {token for token in range(self.size) if self._lib.llama_vocab_is_eog(self.vocab, token)}

    def adds_bos(self) -> bool:
        return bool(self._lib.llama_vocab_get_add_bos(self.vocab))


class Pair:
    """One vocabulary, read by us and by llama.cpp."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata = GgufFile(path).metadata
        self.ours: Tokenizer = tokenizer_from_gguf(self.metadata)
        self.theirs = LlamaCpp(path)


def package_file(package: str, name: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations, f"{package} is needed: see the test dependencies"
    return Path(spec.submodule_search_locations[0]) / name


def _byte_characters() -> list[str]:
    # GPT-2's bytes_to_unicode, on its own here so that the oracle shares nothing with what it tests.
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in keep]
    table = {byte: chr(byte) for byte in keep} | {byte: chr(256 + index) for index, byte in enumerate(rest)}
    return [table[byte] for byte in range(256)]


def read_tiktoken(path: Path) -> dict[bytes, int]:
    """Token bytes -> rank, from one of Meta's `tokenizer.model` files."""
    ranks: dict[bytes, int] = {}
    for line in path.read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    return ranks


def tiktoken_metadata(path: Path, specials: list[str], pre: str) -> dict[str, Any]:
    """The metadata a converter writes for a tiktoken vocabulary: every pair of tokens that makes a token is a
    merge."""
    ranks = read_tiktoken(path)
    characters = _byte_characters()
    texts = {token: "".join(characters[byte] for byte in token) for token in ranks}
    merges: list[str] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        halves = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        pairs = [(left, right) for left, right in halves if left in ranks and right in ranks]
        pairs.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [f"{texts[left]} {texts[right]}" for left, right in pairs]
    tokens = [texts[token] for token in sorted(ranks, key=ranks.__getitem__)]
    first_special = len(tokens)
    tokens += specials
    kinds = np.array([NORMAL] * first_special + [CONTROL] * len(specials), np.int32)
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": tokens.index("<|begin_of_text|>"),
        "tokenizer.ggml.eos_token_id": tokens.index("<|end_of_text|>"),
    }


LLAMA3_SPECIALS = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    *(f"<|reserved_special_token_{index}|>" for index in range(2, 247)),
]
LLAMA4_SPECIALS = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|header_start|>",
    "<|header_end|>",
    "<|eom|>",
    "<|eot|>",
    "<|step|>",
    *(f"<|text_post_train_reserved_special_token_{index}|>" for index in range(6)),
    "<|python_start|>",
    "<|python_end|>",
    "<|finetune_right_pad|>",
    "<|image_start|>",
    "<|image_end|>",
    "<|image|>",
    "<|patch|>",
]


def sentencepiece_metadata(path: Path) -> dict[str, Any]:
    """The metadata a converter writes for a SentencePiece model."""
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_file=str(path))
    ids = range(model.vocab_size())
    kinds = [
        UNKNOWN
        if model.is_unknown(index)
        else CONTROL
        if model.is_control(index)
        else BYTE
        if model.is_byte(index)
        else NORMAL
        for index in ids
    ]
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.id_to_piece(index) for index in ids],
        "tokenizer.ggml.scores": np.array([model.get_score(index) for index in ids], np.float32),
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
