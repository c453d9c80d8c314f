"""Attention of up to 16 rows against float64: formats, heads, lengths, masks, rings that have wrapped, splits, drafts."""

from __future__ import annotations

from typing import Any

import pytest
from attention_oracle import Case
from cuda_worker import Remote

FORMATS = ["f32", "f16", "bf16", "q8_0", "fp8"]


# A step has 8 keys; with 2 query heads a block has 8 key sets, and up to 2 steps each are one block's.
@pytest.mark.parametrize("position", [0, 1, 7, 8, 9, 63, 64, 126, 127, 128, 129, 200, 391])
def test_lengths(card: Remote, position: int) -> None:
    for seed in range(2):
        Case(position=position, seed=seed).run(card, seed, unwritten=seed == 1)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("head_dim", [64, 128, 32, 96, 256])
def test_formats(card: Remote, format: str, head_dim: int) -> None:
    Case(position=150, head_dim=head_dim, format=format, heads=4, kv_heads=2, rows=2).run(card, head_dim)
