"""Puts this folder on the path for `harness`, and gives every test a card without faults."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = str(Path(__file__).resolve().parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)

import harness  # noqa: E402


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Without a virtual GPU, or without nvcc, what needs them fails: a skip would look like success."""
    if not {"gpu", "card"} & set(getattr(item, "fixturenames", ())):
        return
    if not harness.library_path().exists():
        pytest.fail(f"{harness.library_path()} is not there: run `make virtual-gpu`")
    if harness.find_nvcc() is None:
        pytest.fail("no nvcc: set CUDACXX or PATH, or install nvidia-cuda-nvcc")


@pytest.fixture
def gpu() -> Iterator[harness.Gpu]:
    """An sm_90 card of the test's own."""
    card = harness.Gpu("sm_90", seed=0)
    yield card
    card.reset()


@pytest.fixture
def card() -> Iterator[Callable[..., harness.Gpu]]:
    """`card("sm_86", seed=3)`: a card of another kind, or another order; one at a time."""
    made: list[harness.Gpu] = []

    def make(name: str = "sm_90", seed: int = 0) -> harness.Gpu:
        made.append(harness.Gpu(name, seed))
        return made[-1]

    yield make
    if made:
        made[-1].reset()
