"""Every option out of range is refused in one sentence that names the option, the value and the range."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from llama_ext.errors import OptionError
from llama_ext.sampling import SamplingParams

NAN, INF = math.nan, math.inf

WRONG = [
    ("temperature", -1, "a finite number of at least 0 (0 is greedy), not -1"),
    ("temperature", -1e-9, "a finite number of at least 0 (0 is greedy), not -1e-09"),
    ("temperature", NAN, "a finite number of at least 0 (0 is greedy), not nan"),
    ("temperature", INF, "a finite number of at least 0 (0 is greedy), not inf"),
    ("temperature", "1", "a finite number of at least 0 (0 is greedy), not '1'"),
    ("temperature", None, "a finite number of at least 0 (0 is greedy), not None"),
    ("temperature", True, "a finite number of at least 0 (0 is greedy), not True"),
    ("top_k", -1, "an integer from 0 (off) to 2147483647, not -1"),
    ("top_k", 2**31, "an integer from 0 (off) to 2147483647, not 2147483648"),
    ("top_k", 1.5, "an integer from 0 (off) to 2147483647, not 1.5"),
    ("top_k", 2.0, "an integer from 0 (off) to 2147483647, not 2.0"),
    ("top_k", True, "an integer from 0 (off) to 2147483647, not True"),
    ("top_p", 2, "a number above 0 and at most 1 (off), not 2"),
    ("top_p", 0, "a number above 0 and at most 1 (off), not 0"),
    ("top_p", -0.1, "a number above 0 and at most 1 (off), not -0.1"),
    ("top_p", NAN, "a number above 0 and at most 1 (off), not nan"),
    ("min_p", 1, "a number of at least 0 (off) and below 1, not 1"),
    ("min_p", -0.5, "a number of at least 0 (off) and below 1, not -0.5"),
    ("min_p", NAN, "a number of at least 0 (off) and below 1, not nan"),
    ("repetition_penalty", 0, "a number from 1e-6 to 1e6 (1 is off), not 0"),
    ("repetition_penalty", -1.0, "a number from 1e-6 to 1e6 (1 is off), not -1.0"),
    ("repetition_penalty", INF, "a number from 1e-6 to 1e6 (1 is off), not inf"),
    ("repetition_penalty", NAN, "a number from 1e-6 to 1e6 (1 is off), not nan"),
    ("seed", -1, "an integer from 0 to 2**64 - 1, not -1"),
    ("seed", 2**64, f"an integer from 0 to 2**64 - 1, not {2**64}"),
    ("seed", 1.0, "an integer from 0 to 2**64 - 1, not 1.0"),
]


@pytest.mark.parametrize(("name", "value", "rest"), WRONG)
def test_a_wrong_value_is_named(name: str, value: Any, rest: str) -> None:
    with pytest.raises(OptionError) as error:
        SamplingParams(**{name: value})
    default = getattr(SamplingParams(), name)
    assert str(error.value) == f"{name} must be {rest}; leave it out for {default}."


def test_borders_and_numpy_scalars_are_taken_as_plain_numbers() -> None:
    SamplingParams(temperature=0, top_k=0, top_p=1, min_p=0, repetition_penalty=1e-6, seed=0)
    SamplingParams(
        temperature=1e300,
        top_k=2**31 - 1,
        top_p=5e-324,
        min_p=0.999999,
        repetition_penalty=1e6,
        seed=2**64 - 1,
    )
    scalars: dict[str, Any] = {"temperature": np.float32(0.5), "top_k": np.int64(3), "seed": np.uint64(7)}
    params = SamplingParams(**scalars)
    assert dataclasses.astuple(params) == (0.5, 3, 1.0, 0.0, 1.0, 7)
    assert type(params.temperature) is float and type(params.top_k) is int and type(params.seed) is int


def test_parameters_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingParams().top_k = 3  # type: ignore[misc]


NATIVE_WRONG = [
    (name, value) for name, value, _ in WRONG if isinstance(value, (int, float)) and not isinstance(value, bool)
]


@pytest.mark.parametrize(("name", "value"), NATIVE_WRONG)
def test_the_compiled_parameters_refuse_the_same_numbers(core: Any, name: str, value: float) -> None:
    with pytest.raises((OptionError, TypeError), match=name):
        core.SamplingParams(**{name: value})
