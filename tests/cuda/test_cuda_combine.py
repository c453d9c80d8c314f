"""combine against float32 in numpy, to the bit: the order of its sum is part of what it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tolerances
from cuda_oracles import check
from cuda_worker import Remote


def inputs(max_rows: int, rows: int, passes: int, hidden: int, seed: int) -> dict[str, Any]:
    """Entries of each row, scattered; rows that the step does not have point nowhere."""
    random = np.random.default_rng(seed)
    entry = np.full((max_rows, passes), 1 << 30, np.int32)
    entry[:rows] = random.permutation(rows * passes).reshape(rows, passes)
    return {
        "y": random.standard_normal((max_rows * passes, hidden), np.float32),
        "entry": entry,
        "x": random.standard_normal((max_rows, hidden), np.float32),
        "rows": rows,
        "passes": passes,
    }


def expected(y: np.ndarray, entry: np.ndarray, x: np.ndarray, rows: int, passes: int) -> np.ndarray:
    out = x.copy()
    for r in range(rows):
        total = y[entry[r, 0]]
        for i in range(1, passes):
            total = total + y[entry[r, i]]
        out[r] = x[r] + total
    return out


@pytest.mark.parametrize("hidden", [1, 3, 4, 100, 127, 128, 130, 512, 516, 1028])
@pytest.mark.parametrize(("rows", "max_rows"), [(1, 1), (2, 2), (3, 7), (16, 16), (17, 20)])
def test_shapes(card: Remote, rows: int, max_rows: int, hidden: int) -> None:
    for passes in (1, 2, 5, 6, 9):
        given = inputs(max_rows, rows, passes, hidden, hidden + passes)
        actual = card.call("cases_route.combine", passes, captured=passes == 2, **given)
        assert actual.tobytes() == expected(**given).tobytes()


@pytest.mark.parametrize("offset", [1, 4])
def test_alignment(card: Remote, offset: int) -> None:
    given = inputs(3, 3, 2, 132, offset)
    assert card.call("cases_route.combine", offset=offset, **given).tobytes() == expected(**given).tobytes()


@pytest.mark.parametrize("seed", range(4))
def test_launches_that_read_what_the_one_before_wrote(card: Remote, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((3, 520), np.float32)
    n = card.call("rms_norm", x=x, weight=None, eps=1e-5)[0].astype(np.float64)
    out = card.call("cases_route.norm_and_combine", seed, x=x).reshape(3, 520)
    check(out, x + n, np.abs(x) + np.abs(n), tolerances.ROUNDING * 2)
