"""Which keys a query sees: the compiled mask, the reference's, and the definitions counted out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from models import plain_mask

from llama_ext._core import Mask
from llama_ext.reference import first_key

MASKS = [
    Mask("global"),
    *(Mask("chunked", n) for n in (1, 2, 4, 7, 8)),
    *(Mask("sliding", n) for n in (1, 2, 5, 8)),
]


def wrong_positions(mask: Mask, first: Callable[[int], int], n: int = 70) -> list[int]:
    """Positions below n whose keys first(position) .. position are not those of the definition."""
    allowed = plain_mask(mask.kind, mask.extent, n)
    return [p for p in range(n) if np.flatnonzero(allowed[p]).tolist() != list(range(first(p), p + 1))]


@pytest.mark.parametrize("mask", MASKS, ids=lambda m: f"{m.kind}{m.extent}")
def test_first_key_is_the_definition(mask: Mask) -> None:
    assert wrong_positions(mask, mask.first_key) == []
    assert wrong_positions(mask, lambda p: first_key(mask, p)) == []


def test_the_check_finds_every_usual_mistake() -> None:
    chunked, sliding = Mask("chunked", 4), Mask("sliding", 5)
    assert wrong_positions(chunked, lambda p: max(0, p - 3))  # a chunk taken for a window
    assert wrong_positions(chunked, lambda p: max(0, p - 1) // 4 * 4)  # the border one late
    assert wrong_positions(chunked, lambda p: (p + 1) // 4 * 4 if (p + 1) % 4 else p)  # and one early
    assert wrong_positions(sliding, lambda p: max(0, p - 5))  # a window of one more
    assert wrong_positions(sliding, lambda p: max(0, p - 3))  # and one less
    assert wrong_positions(sliding, lambda p: p // 5 * 5)  # a window taken for a chunk
    assert wrong_positions(Mask("global"), lambda p: max(0, p - 60))


@pytest.mark.parametrize("first", ["native", "reference"])
def test_llama4_borders(first: str) -> None:
    mask = Mask("chunked", 8192)
    of = mask.first_key if first == "native" else lambda p: first_key(mask, p)
    keys = {p: p - of(p) + 1 for p in (0, 8191, 8192, 8193, 16383, 16384, 10_485_759)}
    assert keys == {0: 1, 8191: 8192, 8192: 1, 8193: 2, 16383: 8192, 16384: 1, 10_485_759: 8192}
    sliding = Mask("sliding", 4096)
    assert [p - sliding.first_key(p) + 1 for p in (0, 4095, 4096, 10**12)] == [1, 4096, 4096, 4096]


def test_native_equals_reference_far_out() -> None:
    rng = np.random.default_rng(1)
    for p in (*rng.integers(0, 10_485_760, 300).tolist(), 2**31 - 1, 2**31, 2**40 + 3):
        for mask in (*MASKS, Mask("chunked", 8192), Mask("sliding", 4096)):
            assert mask.first_key(p) == first_key(mask, p), (mask.kind, mask.extent, p)


def test_unknown_mask() -> None:
    with pytest.raises(ValueError, match="global, chunked, sliding"):
        Mask("banded", 4)
    for kind in ("chunked", "sliding"):
        for extent in (0, -4):
            with pytest.raises(ValueError, match=f"{kind} mask needs a positive extent, not {extent}"):
                Mask(kind, extent)
