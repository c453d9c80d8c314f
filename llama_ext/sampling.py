"""Sampling parameters, and the readable definition of sampling.

`sample_reference` says in numpy what every backend computes: identical logits, parameters, seed and position
give the identical token id on a CPU, on a GPU and here. That works because nothing depends on an order of
summation or on a math library: weights are integers made from single float32 operations, and the random bits
are a pure function of (seed, position, draw). csrc/program/sampling.h is the same text in C++, and says why
each choice was made.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
import numpy.typing as npt

from llama_ext.errors import LlamaExtError, OptionError

Float32Array = npt.NDArray[np.float32]
UInt64Array = npt.NDArray[np.uint64]

WEIGHT_ONE = 1 << 40
"""The weight of the largest logit."""

ZERO_BELOW = np.float32(-27.75)
"""Scaled logits below this weigh nothing: exp(-27.73) is already under 2**-40."""


def _wrong(name: str, value: object, allowed: str) -> OptionError:
    default = SamplingParams.__dataclass_fields__[name].default
    return OptionError(f"{name} must be {allowed}, not {value!r:.60}; leave it out for {default}.")


def _number(name: str, value: object, allowed: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise _wrong(name, value, allowed)
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return math.inf


def _integer(name: str, value: object, allowed: str) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise _wrong(name, value, allowed)
    return int(value)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose the next token. The steps apply in the order of this list, which is that of Hugging Face.

    repetition_penalty: from 1e-6 to 1e6, 1 is off. Divides the positive and multiplies the negative logits of
        tokens already seen.
    temperature: at least 0. 0 is greedy: the largest logit, the lowest id among equals, whatever the filters.
    top_k: keep the k largest logits, the lowest ids among equals. 0 is off.
    top_p: above 0, at most 1 (off). Keep the shortest prefix, largest logits first, with this share of the
        probability.
    min_p: from 0 (off), below 1. Keep tokens at least this probable relative to the most probable one.
    seed: from 0 to 2**64 - 1. The token drawn at a position depends only on the position, the logits, the
        history and these parameters.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        def take(name: str, allowed: str, value: float, ok: bool) -> None:
            if not ok:
                raise _wrong(name, getattr(self, name), allowed)
            object.__setattr__(self, name, value)

        allowed = "a finite number of at least 0 (0 is greedy)"
        temperature = _number("temperature", self.temperature, allowed)
        take("temperature", allowed, temperature, math.isfinite(temperature) and temperature >= 0)
        allowed = "an integer from 0 (off) to 2147483647"
        top_k = _integer("top_k", self.top_k, allowed)
        take("top_k", allowed, top_k, 0 <= top_k < 2**31)
        allowed = "a number above 0 and at most 1 (off)"
        top_p = _number("top_p", self.top_p, allowed)
        take("top_p", allowed, top_p, 0 < top_p <= 1)
        allowed = "a number of at least 0 (off) and below 1"
        min_p = _number("min_p", self.min_p, allowed)
        take("min_p", allowed, min_p, 0 <= min_p < 1)
        allowed = "a number from 1e-6 to 1e6 (1 is off)"
        penalty = _number("repetition_penalty", self.repetition_penalty, allowed)
        take("repetition_penalty", allowed, penalty, 1e-6 <= penalty <= 1e6)
        allowed = "an integer from 0 to 2**64 - 1"
        seed = _integer("seed", self.seed, allowed)
        take("seed", allowed, seed, 0 <= seed < 2**64)


def philox(seed: int, position: int, draw: int = 0) -> tuple[int, int, int, int]:
    """Philox4x32-10 (Salmon et al. 2011): key = seed, counter = (position, draw), low words first."""
    mask = 0xFFFFFFFF
    c0, c1, c2, c3 = position & mask, position >> 32, draw & mask, draw >> 32
    k0, k1 = seed & mask, seed >> 32
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & mask, (p0 >> 32) ^ c3 ^ k1, p0 & mask
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return c0, c1, c2, c3


def weights(z: Float32Array) -> UInt64Array:
    """floor(2**40 * exp(z)) for scaled logits z <= 0, with an exp of single float32 operations.

    Cody and Waite's reduction to 2**n * exp(r), and Cephes' polynomial for exp(r): about 1 ulp from exp, and
    exact at 0.
    """
    f = np.float32
    inside = z >= ZERO_BELOW  # False for NaN
    z = np.where(inside, z, ZERO_BELOW)
    n = (z * f(1.44269504088896341) + f(12582912)) - f(12582912)  # to the nearest integer, to even
    r = (z + n * f(-0.693359375)) + n * f(2.12194440e-4)
    y = np.full_like(r, f(1.9875691500e-4))
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        y = y * r + f(c)
    y = (y * (r * r) + r) + f(1)
    mantissa = (y * f(2**24)).astype(np.uint64)  # exact
    shift = (-n).astype(np.uint64)
    return np.where(inside, (mantissa << np.uint64(16)) >> shift, np.uint64(0))


def survivors(
    logits: npt.ArrayLike, params: SamplingParams, history: Iterable[int] = ()
) -> tuple[npt.NDArray[np.int64], UInt64Array]:
    """The ids [n] that can be drawn, ascending, and their integer weights [n]: the exact distribution.

    Temperature 0 leaves one id.
    """
    logits = np.array(logits, dtype=np.float32)  # a copy: the penalty changes it
    if logits.ndim != 1 or logits.size == 0:
        raise ValueError(f"logits must have shape [vocab], not {list(logits.shape)}")

    seen = np.unique(np.fromiter(history, np.int64))
    if seen.size and (seen[0] < 0 or seen[-1] >= logits.size):
        raise ValueError(f"history holds a token id outside the vocabulary of {logits.size}")
    if np.isnan(logits).any():
        raise LlamaExtError("the model produced NaN logits, so there is no token to sample")

    f = np.float32
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        if params.repetition_penalty != 1:
            penalty, x = f(params.repetition_penalty), logits[seen]
            logits[seen] = np.where(x > 0, x / penalty, x * penalty)
        if params.temperature == 0:
            return np.array([np.argmax(logits)]), np.array([WEIGHT_ONE], np.uint64)
        best = logits.max()
        inverse = f(1) / f(0) if params.temperature < 2.0**-128 else f(np.float64(1) / params.temperature)
        w = weights(np.where(logits == best, f(0), (logits - best) * inverse))

    order = np.argsort(-logits, kind="stable")  # logit descending, id ascending
    if params.top_k:
        order = order[: params.top_k]
    share = max(1, math.floor(params.top_p * 2**32 + 0.5))
    if share < 2**32:
        reached = np.cumsum(w[order])
        target = -(-int(reached[-1]) * share >> 32)  # rounded up
        order = order[: int(np.searchsorted(reached, np.uint64(target))) + 1]
    least = max(1, math.ceil(params.min_p * WEIGHT_ONE))
    ids = np.sort(order[w[order] >= least])
    return ids, w[ids]


def sample_reference(
    logits: npt.ArrayLike, params: SamplingParams, history: Iterable[int], position: int, draw: int = 0
) -> int:
    """The token drawn from logits [vocab] at `position`: what every backend returns."""
    ids, w = survivors(logits, params, history)
    x = philox(params.seed, position, draw)
    cumulative = np.cumsum(w)
    threshold = ((x[1] << 32 | x[0]) * int(cumulative[-1])) >> 64
    return int(ids[np.searchsorted(cumulative, np.uint64(threshold), side="right")])


def log_softmax(logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Log-probabilities in float64 over the last axis of logits [..., vocab]. Infinite maxima share all."""
    x = np.asarray(logits, dtype=np.float64)
    best = x.max(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        shifted = np.where(x == best, 0.0, x - best)
        out: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return out
