"""Our exponential: close to exp, ordered, exact at 0, and the same bits in numpy and C++."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from llama_ext.sampling import WEIGHT_ONE, ZERO_BELOW, weights


def every_kind_of_z() -> npt.NDArray[np.float32]:
    """Scaled logits: a grid, the neighbours of multiples of ln(2)/2 and of the cutoff, specials."""
    grid = -np.linspace(0, 28, 500_001)
    halves = -np.log(2) * np.arange(1, 84) / 2
    near = np.concatenate(
        [np.float32(h) + np.arange(-500, 500) * np.spacing(np.float32(h)) for h in [*halves, ZERO_BELOW]]
    )
    special = [0.0, -0.0, -1e-45, -1e-38, -1e-10, -3e38, -np.inf, np.nan]
    z: npt.NDArray[np.float32] = np.concatenate([grid, near, special]).astype(np.float32)
    return z


def test_close_to_exp() -> None:
    z = every_kind_of_z()
    z = z[z >= ZERO_BELOW]
    exact = np.exp(z.astype(np.float64)) * WEIGHT_ONE
    w = weights(z).astype(np.float64)
    # 1.5 ulp of float32 (2^-23 at worst, relatively), and the floor takes less than one unit
    assert (w - exact <= 1.5 * 2.0**-23 * exact).all()
    assert (exact - w < 1.5 * 2.0**-23 * exact + 1).all()


def test_ordered_and_bounded() -> None:
    z = np.sort(every_kind_of_z()[:-1])
    w = weights(z).astype(np.int64)
    assert w.min() == 0 and w.max() == WEIGHT_ONE
    # Where the polynomial's pieces meet, neighbours may swap by an ulp (2^-23); nothing relies on more.
    assert (np.diff(w) >= -(w[:-1] * 2.0**-23) - 1).all()


def test_ends() -> None:
    z = np.array([0, -0.0, -1e-45, ZERO_BELOW, np.nextafter(ZERO_BELOW, np.float32(-30)), -np.inf, np.nan], np.float32)
    assert weights(z).tolist() == [WEIGHT_ONE] * 3 + [0] * 4


def test_a_z_under_the_cutoff_would_weigh_nothing() -> None:
    assert np.exp(np.float64(ZERO_BELOW)) < 2.0**-40


def test_cpp_has_the_same_bits(core: Any) -> None:
    z = every_kind_of_z()
    np.testing.assert_array_equal(core.sampling_weights(z), weights(z))
