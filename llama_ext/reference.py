"""The program, interpreted instruction by instruction in float32 PyTorch: the oracle and the readable definition.

Nothing here is fast. Each instruction is a few lines that follow csrc/program/instruction.h; weights are dequantized
whole. Keys and values live in rings exactly as the program lays them out, and slots that hold no position are NaN, so a
read past the valid length shows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

try:
    import torch
    from torch import Tensor
except ImportError as _error:
    raise ImportError(
        "llama_ext.reference needs PyTorch, which is not installed: install torch (2.10 or later)."
    ) from _error

from llama_ext import _core
from llama_ext._core import (
    Attention,
    Down,
    Embed,
    ExpertsDown,
    ExpertsGateUp,
    GateUp,
    Head,
    Output,
    Qkv,
    Route,
    Sample,
    Weight,
)
from llama_ext.errors import ContextError, OptionError
from llama_ext.program import Program

__all__ = ["ReferenceSession", "attend", "first_key", "fp8", "q8_0", "rms_norm", "rotate", "route", "temperature"]

# Keys and values of q8_0 and fp8 are kept as the float32 numbers that they stand for, which are exact.
_CACHE_DTYPES = {
    **{"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16},
    **{"q8_0": torch.float32, "fp8": torch.float32},
}


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich 2019), in float32 throughout.

    Hugging Face rounds to the model's dtype before it multiplies by the weight; in float32 there is nothing to round.
    """
    normalised = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)
    return normalised if weight is None else normalised * weight


def rotate(x: Tensor, positions: Tensor, inverse_frequency: Tensor) -> Tensor:
    """RoPE (Su et al. 2021) on interleaved pairs.

    Args:
        x: [rows, heads, head_dim] float32.
        positions: [rows] int64.
        inverse_frequency: [head_dim / 2] float64, radians a position.
    """
    angle = positions.to(torch.float64)[:, None] * inverse_frequency[None, :]
    cosine, sine = angle.cos().float()[:, None, :], angle.sin().float()[:, None, :]
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), dim=-1).flatten(-2)


def first_key(mask: _core.Mask, position: int) -> int:
    """The first position that a query at `position` may look at."""
    if mask.kind == "chunked":
        return position // mask.extent * mask.extent
    if mask.kind == "sliding":
        return max(0, position - mask.extent + 1)
    return 0


def temperature(position: int, attn_scale: float, floor_scale: int) -> float:
    """Llama 4's factor for queries of layers without RoPE: ln(floor((pos + 1) / floor_scale) + 1) * attn_scale + 1."""
    return float(np.log((position + 1) // floor_scale + 1.0) * attn_scale + 1.0)


def q8_0(x: Tensor) -> Tensor:
    """What is left of x in a cache of format q8_0 (csrc/program/program.h): ggml's Q8_0, ties to even.

    A block of 32 has the scale d = max|x| / 127, kept as float16, and the integers x * 127 / max|x| rounded to nearest;
    d itself takes no part in that quotient, rounded or not.

    Args:
        x: [..., n] float32, n a multiple of 32.

    Returns:
        [..., n] float32: d times the integers. Not finite, the whole block, where an element of the block is not or
        where d is too large for float16.
    """
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    largest = blocks.abs().amax(-1, keepdim=True)  # NaN where an element is
    scale = (largest / 127).to(torch.float16).float()
    integers = torch.round(blocks * (127 / largest))
    integers = torch.where(largest < 1e-30, 0, torch.where(torch.isfinite(largest), integers, 1))
    return (scale * integers).reshape(x.shape)


def fp8(x: Tensor) -> Tensor:
    """What is left of x in a cache of format fp8 (csrc/program/program.h): E4M3 of the OCP 8-bit Floating Point
    Specification, without a scale.

    Args:
        x: [...] float32.

    Returns:
        [...] float32: rounded to 4 digits of a binary number, ties to even, and to multiples of 2^-9 below 2^-6; beyond
        448 it is 448, infinities too; NaN stays NaN.
    """
    x = x.double()
    step = torch.exp2(torch.frexp(x.abs().clamp(2.0**-6, 448)).exponent.double() - 4)
    return (torch.round(x / step) * step).clamp(-448, 448).float()


def attend(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """softmax(scale q K^T) V with query heads sharing key-value heads in order.

    Args:
        q: [heads, head_dim]; keys, values: [n, kv_heads, head_dim], exactly the keys that this query sees.

    Returns:
        [heads, head_dim]
    """
    group = q.shape[0] // keys.shape[1]
    keys, values = keys.repeat_interleave(group, dim=1), values.repeat_interleave(group, dim=1)
    weights = torch.softmax(torch.einsum("hd,nhd->hn", q, keys) * scale, dim=-1)
    return torch.einsum("hn,nhd->hd", weights, values)


def route(logits: Tensor, top_k: int, scoring: str) -> tuple[Tensor, Tensor]:
    """The experts of each row and what their results (or inputs) are multiplied by.

    Args:
        logits: [rows, experts] float32.
        scoring: "sigmoid", of each chosen logit (Llama 4), or "softmax", over the chosen ones (Mixtral).

    Returns:
        Experts [rows, top_k] int64, by falling logit and, of equal ones, rising index; scores [rows, top_k] float32.
    """
    order = torch.sort(logits, dim=-1, descending=True, stable=True)
    values, experts = order.values[:, :top_k], order.indices[:, :top_k]
    return experts, torch.sigmoid(values) if scoring == "sigmoid" else torch.softmax(values, dim=-1)


class ReferenceSession:
    """One sequence: the reference's side of `llama_ext.Session`, with the same methods.

    Args:
        program: the model.
        start: the position of the first token. There is nothing before it: a query sees its mask's keys from there on.

    Raises:
        OptionError: `start` is not from 0 to the program's max_context.
    """

    def __init__(self, program: Program, *, start: int = 0) -> None:
        if not 0 <= start <= program.native.max_context:
            raise OptionError(f"start={start} is out of range; positions are 0 to {program.native.max_context}.")
        self._start = start
        self.program = program
        self._native = program.native
        self._weights: dict[str, Tensor] = {}
        self._ropes = [torch.tensor(rope, dtype=torch.float64) for rope in self._native.ropes]
        self._position = self._highest = start
        self._caches: list[tuple[Tensor, Tensor]] = []
        for layer in self._native.caches:
            # No more slots than there are positions to come: those of a far start would fill the memory.
            slots = max(1, min(layer.capacity, self._native.max_context - start))
            shape = (slots, layer.kv_heads, layer.head_dim)
            keys, values = (torch.full(shape, torch.nan, dtype=_CACHE_DTYPES[layer.format]) for _ in range(2))
            self._caches.append((keys, values))

    @property
    def position(self) -> int:
        return self._position

    def prefill(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Appends ids and returns the logits [vocab] of what follows the last."""
        last: npt.NDArray[np.float32] = self._run(ids, "last")[-1]
        return last

    def step(self, token: int) -> npt.NDArray[np.float32]:
        """Appends one id and returns the logits [vocab] of what follows it."""
        return self.prefill([token])

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Appends ids and returns the logits [n, vocab] after each."""
        return self._run(ids, "all")

    def rollback(self, n: int) -> None:
        """Forgets the last n positions.

        Raises:
            OptionError: more than there are, or than the rings can take back.
        """
        held = self._position - self._start
        if not 0 <= n <= min(held, self._native.max_rollback(self._position, self._highest)):
            raise OptionError(f"cannot roll back {n} of {held} positions.")
        for keys, values in self._caches:
            for position in range(self._position - n, self._position):
                keys[position % len(keys)] = torch.nan
                values[position % len(values)] = torch.nan
        self._position -= n

    def reset(self) -> None:
        for keys, values in self._caches:
            keys.fill_(torch.nan)
            values.fill_(torch.nan)
        self._position = self._highest = self._start

    def _run(self, ids: Sequence[int], which: str) -> npt.NDArray[np.float32]:
        if self._position + len(ids) > self._native.max_context:
            raise ContextError(f"{self._position + len(ids)} tokens are past max_context {self._native.max_context}.")
        out = []
        with torch.inference_mode():
            for start in range(0, len(ids), self._native.max_rows):
                out.append(self._step(list(ids[start : start + self._native.max_rows]), which))
        return np.concatenate(out) if out else np.zeros((0, self._native.vocab), np.float32)

    def _step(self, ids: list[int], which: str) -> npt.NDArray[np.float32]:
        rows = len(ids)
        positions = torch.arange(self._position, self._position + rows)
        x = q = k = v = a = n = h = logits = torch.empty(0)
        experts = scores = torch.empty(0)
        for i in self._native.code:
            match i:
                case Embed():
                    x = self._matrix(i.table)[torch.tensor(ids)]
                case Qkv():
                    n = rms_norm(x, self._matrix(i.norm)[0], i.eps)
                    q = (n @ self._matrix(i.q).T).view(rows, i.heads, i.head_dim)
                    k = (n @ self._matrix(i.k).T).view(rows, i.kv_heads, i.head_dim)
                    v = (n @ self._matrix(i.v).T).view(rows, i.kv_heads, i.head_dim)
                    if i.rope >= 0:
                        at = positions % i.rope_chunk if i.rope_chunk else positions
                        q, k = (rotate(t, at, self._ropes[i.rope]) for t in (q, k))
                case Attention():
                    a = self._attention(i, q, k, v)
                case Output():
                    x = x + a.flatten(1) @ self._matrix(i.weight).T
                case GateUp():
                    n = rms_norm(x, self._matrix(i.norm)[0], i.eps)
                    gate = n @ self._matrix(i.gate).T
                    h = gate * torch.sigmoid(gate) * (n @ self._matrix(i.up).T)
                case Down():
                    x = x + h @ self._matrix(i.weight).T
                case Route():
                    n = rms_norm(x, self._matrix(i.norm)[0], i.eps)
                    experts, scores = route(n @ self._matrix(i.router).T, i.top_k, i.scoring)
                case ExpertsGateUp():
                    h = self._experts_gate_up(i, n, experts, scores)
                case ExpertsDown():
                    x = x + self._experts_down(i, h, experts, scores)
                case Head():
                    last = x[rows - {"none": 0, "last": 1, "all": rows}[which] :]
                    logits = rms_norm(last, self._matrix(i.norm)[0], i.eps) @ self._matrix(i.weight).T
                case Sample():
                    pass  # the caller draws: see llama_ext.sampling.sample_reference
        self._position += rows
        self._highest = max(self._highest, self._position)
        return logits.numpy()

    def _attention(self, i: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if i.qk_norm:
            q, k = rms_norm(q, None, i.qk_norm_eps), rms_norm(k, None, i.qk_norm_eps)
        if (rounded := {"q8_0": q8_0, "fp8": fp8}.get(self._native.caches[i.cache].format)) is not None:
            k, v = rounded(k), rounded(v)
        keys, values = self._caches[i.cache]
        for row in range(len(q)):
            slot = (self._position + row) % len(keys)
            keys[slot], values[slot] = k[row], v[row]
        out = []
        for row in range(len(q)):
            position = self._position + row
            scale = i.scale
            if i.temperature_scale:
                scale *= temperature(position, i.temperature_scale, i.temperature_floor)
            first = max(first_key(i.mask, position), self._start)
            seen = torch.arange(first, position + 1) % len(keys)
            out.append(attend(q[row], keys[seen].float(), values[seen].float(), scale))
        return torch.stack(out)

    def _experts_gate_up(self, i: ExpertsGateUp, n: Tensor, experts: Tensor, scores: Tensor) -> Tensor:
        """[rows, top_k (+ 1 for the shared expert), intermediate]"""
        rows = []
        for row in range(len(n)):
            passes = []
            for e, s in zip(experts[row].tolist(), scores[row], strict=True):
                passes.append(self._gated(i.gate[e], i.up[e], s * n[row] if i.scale_input else n[row]))
            if i.shared_gate is not None and i.shared_up is not None:
                passes.append(self._gated(i.shared_gate, i.shared_up, n[row]))
            rows.append(torch.stack(passes))
        return torch.stack(rows)

    def _gated(self, gate: Weight, up: Weight, x: Tensor) -> Tensor:
        g = self._matrix(gate) @ x
        return g * torch.sigmoid(g) * (self._matrix(up) @ x)

    def _experts_down(self, i: ExpertsDown, h: Tensor, experts: Tensor, scores: Tensor) -> Tensor:
        """[rows, hidden]"""
        rows = []
        for row in range(len(h)):
            matrices = [i.down[e] for e in experts[row].tolist()]
            factors = list(scores[row]) if i.scale_output else [torch.tensor(1.0)] * len(matrices)
            if i.shared_down is not None:
                matrices.append(i.shared_down)
                factors.append(torch.tensor(1.0))
            results = [s * (self._matrix(w) @ x) for w, s, x in zip(matrices, factors, h[row], strict=True)]
            rows.append(torch.stack(results).sum(0))
        return torch.stack(rows)

    def _matrix(self, weight: Weight) -> Tensor:
        if weight.name not in self._weights:
            self._weights[weight.name] = torch.from_numpy(weight.dequantize())
        return self._weights[weight.name]
