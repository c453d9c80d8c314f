"""A tiny model for the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "decoder"))


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tiny_model import write_tiny

    return str(write_tiny(tmp_path_factory.mktemp("cli") / "tiny.gguf"))
