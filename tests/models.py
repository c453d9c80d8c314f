"""Tiny random Llamas without files: configs, weights, programs, and a plain second implementation to hold them
against.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llama_ext import _core
from llama_ext import program as programs
from llama_ext.config import LlamaConfig

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Of = Callable[[str], npt.NDArray[np.float64]]
Mixture = Callable[[LlamaConfig, npt.NDArray[np.float64], Of], npt.NDArray[np.float64]]


def e4m3_table() -> npt.NDArray[np.float64]:
    """What each of the 256 codes of E4M3 stands for (OCP 8-bit Floating Point Specification, 5.3)."""
    code = np.arange(128)
    exponent, mantissa = code >> 3, code & 7
    values = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10))
    values[127] = np.nan
    return np.concatenate([values, -values])


def to_e4m3(values: npt.NDArray[np.float64]) -> Bytes:
    """The codes nearest to `values`, ties to the even code, at most 448 in size; NaN is 0x7f under its sign."""
    table = e4m3_table()[:127]
    size = np.minimum(np.abs(np.nan_to_num(values, nan=0.0, posinf=448, neginf=-448)), 448)
    above = np.minimum(np.searchsorted(table, size), 126)
    below = np.maximum(above - 1, 0)
    up, down = table[above] - size, size - table[below]
    code = np.where((up < down) | ((up == down) & (above % 2 == 0)) | (size == 0), above, below)
    code = np.where(np.isnan(values), 127, code)
    return (code | np.signbit(values) * 128).astype(np.uint8)


FLOAT_FORMATS = ("F32", "F16", "BF16")
BLOCK_FORMATS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
FORMATS = FLOAT_FORMATS + BLOCK_FORMATS

# Where a block's f16 factors stand, and the one that multiplies the minimum.
_HALVES = {
    "Q8_0": (0,),
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}
# (largest quant times largest sub-scale, minimum's factor in units of d): a block of random bits comes out centred.
_SPREAD = {
    "Q8_0": (128, 0.0),
    "Q4_0": (8, 0.0),
    "Q4_1": (8, -7.5),
    "Q5_0": (16, 0.0),
    "Q5_1": (16, -15.5),
    "Q4_K": (8 * 48, 7.5),
    "Q5_K": (16 * 48, 15.5),
    "Q6_K": (32 * 96, 0.0),
}


def tiny_config(**changes: object) -> LlamaConfig:
    """A Llama of three layers that takes milliseconds; `changes` are fields of LlamaConfig."""
    fields: dict[str, object] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 61,
        "max_position_embeddings": 128,
    }
    return LlamaConfig(**(fields | changes))  # type: ignore[arg-type]


def weight_shapes(config: LlamaConfig) -> dict[str, tuple[int, int]]:
    """Every weight of the common layout by name, [rows, cols]; a norm has one row."""
    hidden = config.hidden_size
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    shapes = {"embed": (config.vocab_size, hidden), "norm": (1, hidden)}
    if not config.tie_word_embeddings:
        shapes["head"] = (config.vocab_size, hidden)
    for layer in range(config.num_hidden_layers):
        shapes |= {
            f"layers.{layer}.{name}": shape
            for name, shape in {
                "attention_norm": (1, hidden),
                "q": (q, hidden),
                "k": (kv, hidden),
                "v": (kv, hidden),
                "o": (hidden, q),
                "ffn_norm": (1, hidden),
                **_feed_forward_shapes(config, layer),
            }.items()
        }
    return shapes


def _feed_forward_shapes(config: LlamaConfig, layer: int) -> dict[str, tuple[int, int]]:
    hidden, inner = config.hidden_size, config.intermediate_size
    if not config.moe_layers[layer]:
        dense = config.intermediate_size_mlp or inner
        return {"gate": (dense, hidden), "up": (dense, hidden), "down": (hidden, dense)}
    shapes = {"router": (config.num_local_experts, hidden)}
    experts = [f"experts.{e}" for e in range(config.num_local_experts)] + ["shared"] * config.shared_expert
    for expert in experts:
        shapes |= {
            f"{expert}.gate": (inner, hidden),
            f"{expert}.up": (inner, hidden),
            f"{expert}.down": (hidden, inner),
        }
    return shapes


def random_weights(config: LlamaConfig, seed: int = 0) -> dict[str, Floats]:
    """Gaussian matrices that keep the residual stream's size and give attention something to choose between."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, (rows, cols) in weight_shapes(config).items():
        if rows == 1:
            values = rng.uniform(0.5, 1.5, (1, cols))
        else:
            gain = 2.0 if name.endswith((".q", ".k")) else 1.0
            values = rng.normal(0, gain / np.sqrt(cols) if name != "embed" else 1.0, (rows, cols))
        weights[name] = values.astype(np.float32)
    return weights


def native_weight(name: str, values: Floats, format: str = "F32") -> _core.Weight:
    """`values` [rows, cols] in one of the float formats."""
    values = np.ascontiguousarray(values, np.float32)
    if format == "F16":
        data = values.astype(np.float16).view(np.uint8)
    elif format == "BF16":
        bits = values.view(np.uint32)
        data = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).view(np.uint8)
    else:
        assert format == "F32"
        data = values.view(np.uint8)
    return _core.Weight(name, format, *values.shape, np.ascontiguousarray(data))


def random_blocks(format: str, rows: int, cols: int, rng: np.random.Generator, size: float = 1.0) -> Bytes:
    """[rows, bytes a row] of random valid blocks: every bit random, the factors so that weights are of about `size`."""
    block, nbytes, _ = _core.formats[format]
    data = rng.integers(0, 256, (rows, cols // block, nbytes), dtype=np.uint8)
    largest, minimum = _SPREAD[format]
    d = rng.uniform(0.5, 1.5, (rows, cols // block)) * size / largest
    for offset, factor in zip(_HALVES[format], (1.0, minimum), strict=False):
        data[:, :, offset : offset + 2] = (d * factor).astype(np.float16)[..., None].view(np.uint8)
    return data.reshape(rows, -1)


def random_weight(name: str, format: str, rows: int, cols: int, seed: int, size: float = 1.0) -> _core.Weight:
    rng = np.random.default_rng(seed)
    if format in FLOAT_FORMATS:
        return native_weight(name, rng.normal(0, size, (rows, cols)).astype(np.float32), format)
    return _core.Weight(name, format, rows, cols, random_blocks(format, rows, cols, rng, size))


def build(
    config: LlamaConfig, weights: Mapping[str, Floats | _core.Weight], *, format: str = "F32", **options: object
) -> programs.Program:
    """The program over `weights`; arrays of matrices are stored in `format` (a float one), norms in F32."""
    made = {
        name: native_weight(name, w, "F32" if len(w) == 1 else format) if isinstance(w, np.ndarray) else w
        for name, w in weights.items()
    }
    return programs.build(config, made.__getitem__, **options)  # type: ignore[arg-type]


def build_in_blocks(config: LlamaConfig, format: str, seed: int = 0, **options: object) -> programs.Program:
    """The program with every matrix in `format`, its blocks random."""
    weights: dict[str, Floats | _core.Weight] = dict(random_weights(config, seed))
    for number, (name, (rows, cols)) in enumerate(weight_shapes(config).items()):
        if rows > 1:
            size = 1.5 if name == "embed" else 1.5 / np.sqrt(cols)
            weights[name] = random_weight(name, format, rows, cols, 1000 * seed + number, size)
    return build(config, weights, **options)


def random_ids(config: LlamaConfig, count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed + 977).integers(0, config.vocab_size, count).tolist()


def llama4_config(chunk: int, **changes: object) -> LlamaConfig:
    """Llama 4's attention in small: three chunked layers with RoPE and QK-norm, one global without, with
    temperature.
    """
    fields: dict[str, object] = {
        "num_hidden_layers": 4,
        "layer_kinds": ("chunked", "chunked", "chunked", "global"),
        "rope_layers": (True, True, True, False),
        "attention_chunk_size": chunk,
        "use_qk_norm": True,
        "attn_temperature_tuning": True,
        "floor_scale": 5,
        "attn_scale": 0.3,
    }
    return tiny_config(**(fields | changes))


def variants() -> dict[str, LlamaConfig]:
    """One config for each kind of attention that the program knows, and mixtures."""
    return {
        "global": tiny_config(),
        "mha": tiny_config(num_key_value_heads=4, tie_word_embeddings=True),
        "chunked4": llama4_config(4),
        "chunked8": llama4_config(8, use_qk_norm=False, floor_scale=3),
        "sliding5": tiny_config(sliding_window=5),
        "mixed": tiny_config(
            num_hidden_layers=4,
            layer_kinds=("sliding", "global", "chunked", "global"),
            rope_layers=(True, False, True, True),
            sliding_window=5,
            attention_chunk_size=8,
            use_qk_norm=True,
            attn_temperature_tuning=True,
            floor_scale=2,
        ),
        "scout": scout_config(4),
        "maverick": maverick_config(4),
        "mixtral": mixtral_config(),
    }


def scout_config(chunk: int, **changes: object) -> LlamaConfig:
    """Llama 4 Scout in small: a mixture of experts in every layer, one chosen, and a shared one."""
    fields: dict[str, object] = {
        "num_local_experts": 6,
        "num_experts_per_tok": 1,
        "shared_expert": True,
        "expert_scoring": "sigmoid",
    }
    return llama4_config(chunk, **(fields | changes))


def maverick_config(chunk: int, **changes: object) -> LlamaConfig:
    """Llama 4 Maverick in small: experts in every second layer, dense layers of another size, no QK-norm."""
    fields: dict[str, object] = {
        "num_local_experts": 40,
        "moe_layers": (False, True, False, True),
        "intermediate_size_mlp": 80,
        "use_qk_norm": False,
    }
    return scout_config(chunk, **(fields | changes))


def mixtral_config(**changes: object) -> LlamaConfig:
    """Mixtral in small: the two best of several experts in every layer."""
    fields: dict[str, object] = {"num_local_experts": 5, "num_experts_per_tok": 2, "expert_scoring": "softmax"}
    return tiny_config(**(fields | changes))


def plain_mask(kind: str, extent: int, n: int, start: int = 0) -> npt.NDArray[np.bool_]:
    """[query, key]: may the query look at the key, both from `start` on. The definitions, over all pairs."""
    q, k = np.mgrid[start : start + n, start : start + n]
    causal: npt.NDArray[np.bool_] = k <= q
    if kind == "chunked":
        causal &= k // extent == q // extent
    if kind == "sliding":
        causal &= q - extent < k
    return causal


def plain_logits(
    config: LlamaConfig,
    weights: Mapping[str, npt.NDArray[np.floating]],
    ids: Sequence[int],
    *,
    start: int = 0,
    temperature_shift: int = 0,
    mask_shift: int = 0,
    angles: type[np.floating] = np.float64,
    mixture: Mixture | None = None,
) -> npt.NDArray[np.float64]:
    """Logits [n, vocab] after each id, written without the program: full attention matrices in float64, rotation by
    complex numbers at the absolute position, no cache.

    start is the position of the first id, before which there is nothing.

    temperature_shift and mask_shift plant the usual mistakes (a position that is off by so many), `angles` those of a
    narrower type, and `mixture` another mixture of experts, for tests of the tests.
    """
    x = plain_stream(
        config,
        weights,
        ids,
        start=start,
        temperature_shift=temperature_shift,
        mask_shift=mask_shift,
        angles=angles,
        mixture=mixture,
    )
    return plain_norm(config, x, weights["norm"]) @ weights["embed" if config.tie_word_embeddings else "head"].T


def plain_norm(
    config: LlamaConfig, x: npt.NDArray[np.float64], weight: npt.NDArray[np.floating] | float
) -> npt.NDArray[np.float64]:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.rms_norm_eps) * weight


def plain_stream(
    config: LlamaConfig,
    weights: Mapping[str, npt.NDArray[np.floating]],
    ids: Sequence[int],
    *,
    layers: int | None = None,
    start: int = 0,
    temperature_shift: int = 0,
    mask_shift: int = 0,
    angles: type[np.floating] = np.float64,
    mixture: Mixture | None = None,
) -> npt.NDArray[np.float64]:
    """The residual stream [n, hidden] after the first `layers` layers (None: all) of `plain_logits`."""
    n, heads, kv_heads, head_dim = (
        len(ids),
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
    )
    positions = np.arange(start, start + n)
    angle = np.outer(positions.astype(angles), np.array(config.inverse_frequencies(), angles))
    turn = np.exp(1j * angle.astype(np.float64))[:, None, :]

    def norm(x: npt.NDArray[np.float64], weight: npt.NDArray[np.floating] | float) -> npt.NDArray[np.float64]:
        return plain_norm(config, x, weight)

    def rotated(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.ascontiguousarray(np.ascontiguousarray(x).view(np.complex128) * turn).view(np.float64)

    x = weights["embed"][np.array(ids)].astype(np.float64)
    for layer in range(config.num_hidden_layers if layers is None else layers):

        def of(name: str, layer: int = layer) -> npt.NDArray[np.float64]:
            return weights[f"layers.{layer}.{name}"].astype(np.float64)

        m = norm(x, of("attention_norm"))
        q = (m @ of("q").T).reshape(n, heads, head_dim)
        k = (m @ of("k").T).reshape(n, kv_heads, head_dim)
        v = (m @ of("v").T).reshape(n, kv_heads, head_dim)
        if config.rope_layers[layer]:
            q, k = rotated(q), rotated(k)
            if config.use_qk_norm:
                q, k = norm(q, 1.0), norm(k, 1.0)
        elif config.attn_temperature_tuning:
            steps = (positions + 1 + temperature_shift) // config.floor_scale
            q = q * (np.log(steps + 1.0) * config.attn_scale + 1)[:, None, None]
        kind = config.layer_kinds[layer]
        extent = {"global": 0, "chunked": config.attention_chunk_size, "sliding": config.sliding_window}[kind]
        mask = plain_mask(kind, extent + mask_shift, n, start)
        a = np.empty((n, heads, head_dim))
        for head in range(heads):
            kv = head // (heads // kv_heads)
            scores = np.where(mask, q[:, head] @ k[:, kv].T / np.sqrt(head_dim), -np.inf)
            scores = np.exp(scores - scores.max(1, keepdims=True))
            a[:, head] = scores / scores.sum(1, keepdims=True) @ v[:, kv]
        x = x + a.reshape(n, -1) @ of("o").T
        m = norm(x, of("ffn_norm"))
        x = x + (
            (mixture or plain_mixture)(config, m, of) if config.moe_layers[layer] else plain_feed_forward(m, of, "")
        )
    return x


def plain_feed_forward(m: npt.NDArray[np.float64], of: Of, prefix: str) -> npt.NDArray[np.float64]:
    gate = m @ of(f"{prefix}gate").T
    result: npt.NDArray[np.float64] = (gate / (1 + np.exp(-gate)) * (m @ of(f"{prefix}up").T)) @ of(f"{prefix}down").T
    return result


def plain_mixture(config: LlamaConfig, m: npt.NDArray[np.float64], of: Of) -> npt.NDArray[np.float64]:
    """Every expert computed for every row; the weights of those that were not chosen are zero."""
    logits = m @ of("router").T
    chosen = np.argsort(-logits, axis=1, kind="stable")[:, : config.num_experts_per_tok]
    best = np.take_along_axis(logits, chosen, axis=1)
    sigmoid = config.expert_scoring == "sigmoid"
    scores = 1 / (1 + np.exp(-best)) if sigmoid else np.exp(best) / np.exp(best).sum(1, keepdims=True)
    weights = np.zeros_like(logits)
    np.put_along_axis(weights, chosen, scores, axis=1)
    out = plain_feed_forward(m, of, "shared.") if config.shared_expert else np.zeros_like(m)
    for e in range(config.num_local_experts):
        s = weights[:, e : e + 1]
        if sigmoid:
            out += plain_feed_forward(s * m, of, f"experts.{e}.") * (s > 0)
        else:
            out += s * plain_feed_forward(m, of, f"experts.{e}.")
    return out


def deviation(found: npt.NDArray[np.floating], expected: npt.NDArray[np.floating]) -> float:
    """max |found - expected| as a share of max |expected|; infinite where something is not finite."""
    if not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return float("inf")
    return float(np.abs(found.astype(np.float64) - expected).max() / np.abs(expected).max())


class CpuSession:
    """The CPU executor with the reference session's methods; exact in steps of any size unless told otherwise."""

    def __init__(
        self,
        program: programs.Program,
        *,
        threads: int = 1,
        simd: str = "",
        poison: bool = True,
        exact_prompt: bool = True,
    ) -> None:
        self.executor = _core.Executor(
            program.native, threads=threads, simd=simd, poison=poison, exact_prompt=exact_prompt
        )
        self.cache = _core.Cache(self.executor, poison=poison)

    @property
    def position(self) -> int:
        return self.cache.position

    def logits(self, ids: Sequence[int], rows: int = 0) -> Floats:
        """Logits after each id, in steps of `rows` (0: as many as there are)."""
        rows = rows or max(len(ids), 1)
        steps = [np.array(ids[i : i + rows], np.int32) for i in range(0, len(ids), rows)]
        return np.concatenate([self.executor.run(self.cache, step, len(step)) for step in steps])

    def rollback(self, n: int) -> None:
        self.cache.rollback(n)

    def reset(self) -> None:
        self.cache.reset()


def stepped(session: Any, ids: Sequence[int], rows: int) -> Floats:
    """Logits after each id, taken `rows` ids at a time, from any session with `logits`."""
    steps = range(0, len(ids), rows)
    return np.concatenate([session.logits(ids[at : at + rows]) for at in steps])


def replaced(config: LlamaConfig, **changes: object) -> LlamaConfig:
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]
