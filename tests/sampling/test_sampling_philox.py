"""Philox4x32-10 against the known answers of Random123 (its file kat_vectors), in Python and in C++."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llama_ext.sampling import philox

ONES = 2**64 - 1
KNOWN = [
    ((0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    # counter 243f6a88 85a308d3 13198a2e 03707344, key a4093822 299f31d0: low words first
    (
        (0x299F31D0A4093822, 0x85A308D3243F6A88, 0x0370734413198A2E),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("arguments", "words"), KNOWN)
def test_known_answers_in_python(arguments: tuple[int, int, int], words: tuple[int, ...]) -> None:
    assert philox(*arguments) == words


@pytest.mark.parametrize(("arguments", "words"), KNOWN)
def test_known_answers_in_cpp(core: Any, arguments: tuple[int, int, int], words: tuple[int, ...]) -> None:
    assert core.philox(*arguments) == words


def test_both_agree_on_random_arguments(core: Any) -> None:
    rng = np.random.default_rng(1)
    for seed, position, draw in rng.integers(0, 2**64, (500, 3), dtype=np.uint64).tolist():
        assert core.philox(seed, position, draw) == philox(seed, position, draw)
