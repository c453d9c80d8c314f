"""The compiled module as a fixture, untyped so that these files type-check without a build."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llama_ext.sampling import SamplingParams

Draw = Callable[..., int]


@pytest.fixture(scope="session")
def core() -> Any:
    return importlib.import_module("llama_ext._core")


@pytest.fixture(scope="session")
def draw_native(core: Any) -> Draw:
    """`sample_reference`'s signature over the compiled sampler, plus level=."""

    def draw(
        logits: npt.NDArray[np.float32],
        params: SamplingParams,
        history: Sequence[int] = (),
        position: int = 0,
        draw: int = 0,
        level: str = "avx512",
    ) -> int:
        native = core.SamplingParams(**dataclasses.asdict(params))
        best = getattr(core.SampleLevel, level)
        result: int = core.sample(logits, native, np.array(history, np.int32), position, draw, level=best)
        return result

    return draw
