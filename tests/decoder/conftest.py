"""SmolLM2 and a tiny random model, loaded once."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_model import write_tiny

import llama_ext


@pytest.fixture(scope="session")
def smollm2() -> llama_ext.Llama:
    return llama_ext.load("smollm2", threads=2)


@pytest.fixture(scope="session")
def smollm2_exact() -> llama_ext.Llama:
    """Rows are the same bits in steps of any size."""
    return llama_ext.load("smollm2", threads=2, exact_prompt=True)


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def tiny(tiny_path: Path) -> llama_ext.Llama:
    return llama_ext.load(tiny_path, threads=1)
