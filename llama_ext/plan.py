"""How much memory a model takes, told from its config alone: weights, keys and values, buffers; and what would fit.

All counts are bytes; tokens are positions of one session.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llama_ext import _core
from llama_ext.checkpoint.quantized import fitting_format
from llama_ext.config import LlamaConfig
from llama_ext.config.layout import Matrices, matrices
from llama_ext.errors import CheckpointError, OptionError
from llama_ext.machine import available_memory
from llama_ext.program import MAX_ROWS

__all__ = [
    "CACHE_FORMATS",
    "CONTEXTS",
    "MemoryPlan",
    "WeightBytes",
    "buffer_bytes",
    "cache_bytes",
    "check_fits",
    "context_lengths",
    "fitting_tokens",
    "plan",
    "proposals",
    "size_text",
    "weight_bytes",
]

CONTEXTS = (8192, 131_072, 1_048_576, 10_485_760)
"""Lengths that tables show: 8K, 128K, 1M and 10M tokens."""

CACHE_FORMATS: Mapping[str, tuple[int, int]] = {
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "q8_0": (32, 34),
    "fp8": (1, 1),
}
"""Format of keys and values -> (elements a block, bytes a block)."""

_LEAST_TOKENS = 512  # a proposal of a shorter context helps nobody

_PROCESS = 256 * 10**6
"""Bytes that the interpreter and its libraries take beside the model, for limits on a whole process (an estimate)."""


@dataclass(frozen=True, slots=True)
class WeightBytes:
    """What the weights of a model take.

    Attributes:
        total: all of them.
        per_token: what decoding one token reads: the chosen experts and all that tokens share; of the embedding
            one row.
        experts: of `total`, the experts that routers choose among.
    """

    total: int
    per_token: int
    experts: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a model and one session of it take.

    Attributes:
        weights: format of the matrices, or "file": as a file has them.
        kv_cache: format of keys and values.
        tokens: positions whose keys and values are counted.
        weight: bytes of the weights.
        cache: kind of layer -> bytes of keys and values of `tokens` positions.
        buffers: bytes of everything else (an estimate).
    """

    weights: str
    kv_cache: str
    tokens: int
    weight: WeightBytes
    cache: Mapping[str, int]
    buffers: int

    @property
    def total(self) -> int:
        """Bytes of all together."""
        return self.weight.total + sum(self.cache.values()) + self.buffers


def weight_bytes(config: LlamaConfig, format: str) -> WeightBytes:
    """Bytes of the weights in a format.

    Norms and routers stay in float32. Rows that are no whole number of the format's blocks are in Q8_0, or in BF16
    where its blocks of 32 do not fit either.

    Args:
        config: the model.
        format: a key of `_core.formats`, in upper or lower case.

    Raises:
        OptionError: there is no such format.
    """
    name = _weight_format(format)

    def size(m: Matrices) -> int:
        return m.rows * _row_bytes("F32" if m.kind in ("vector", "router") else name, m.cols)

    found = matrices(config)
    lookup = next(size(m) // m.rows for m in found if m.name == "embed")
    # A tied embedding is read as the head.
    used = sum(size(m) * m.active for m in found if m.name != "embed" or config.tie_word_embeddings)
    return WeightBytes(
        total=sum(size(m) * m.count for m in found),
        per_token=used + lookup,
        experts=sum(size(m) * m.count for m in found if m.kind == "expert"),
    )


def cache_bytes(config: LlamaConfig, tokens: int, kv_cache: str = "f16") -> dict[str, int]:
    """Kind of layer ("global", "chunked", "sliding") -> bytes of the keys and values of `tokens` positions.

    A global layer has a slot a position; a chunked or sliding one keeps at most its chunk or window and the rows of one
    step (`_core.cache_capacity`).

    Raises:
        OptionError: `kv_cache` is no key of `CACHE_FORMATS`.
    """
    if kv_cache not in CACHE_FORMATS:
        raise OptionError(f"kv_cache={kv_cache!r:.40} is unknown; use one of {', '.join(CACHE_FORMATS)}.")
    block, size = CACHE_FORMATS[kv_cache]
    slot = 2 * config.num_key_value_heads * -(-config.head_dim // block) * size
    extents = {"global": 0, "chunked": config.attention_chunk_size, "sliding": config.sliding_window}
    found = {}
    for kind, extent in extents.items():
        if layers := config.layer_kinds.count(kind):
            slots = _core.cache_capacity(_core.Mask(kind, extent), max(1, tokens), MAX_ROWS) if tokens else 0
            found[kind] = layers * slots * slot
    return found


def buffer_bytes(config: LlamaConfig) -> int:
    """About what a step works in: `MAX_ROWS` rows, as floats and as inputs of products (integers of 15 bits and their
    scales beside the float32), one row of logits, and what sampling sorts."""
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    inner, gathered = config.dense_intermediate_size, 0
    if config.num_local_experts:
        passes = config.num_experts_per_tok + config.shared_expert
        inner = max(inner, passes * config.intermediate_size)
        gathered = passes * config.hidden_size  # a row for each of its experts
    floats = config.hidden_size + 2 * queries + 2 * keys + inner + 2 * config.head_dim
    if gathered:
        floats += config.hidden_size + 2 * gathered
    widest = max(config.hidden_size, queries, inner, gathered)
    return MAX_ROWS * (4 * floats + 51 * widest // 8) + 16 * config.vocab_size


def plan(config: LlamaConfig, *, weights: str = "bf16", kv_cache: str = "f16", tokens: int | None = None) -> MemoryPlan:
    """What a model takes in memory.

    Args:
        config: the model.
        weights: format of its matrices.
        kv_cache: format of keys and values, a key of `CACHE_FORMATS`.
        tokens: positions of the session; None: all that the model was trained for.

    Raises:
        OptionError: a format is unknown, or `tokens` is more than the model was trained for.
    """
    return _plan(config, weight_bytes(config, weights), _weight_format(weights), kv_cache, _tokens(config, tokens))


def fitting_tokens(config: LlamaConfig, memory: int, kv_cache: str = "f16") -> int:
    """The most tokens whose keys and values fit into `memory` bytes, up to what the model was trained for."""
    low, high = 0, config.max_position_embeddings
    while low < high:
        middle = (low + high + 1) // 2
        if sum(cache_bytes(config, middle, kv_cache).values()) <= memory:
            low = middle
        else:
            high = middle - 1
    return low


def proposals(config: LlamaConfig, wanted: MemoryPlan, memory: int, *, convert: str | None = None) -> list[str]:
    """What would fit into `memory` bytes where `wanted` does not: arguments of `load`, the least loss first.

    Each is one change; if none is enough, the first combination of a smaller format, a q8_0 cache, a shorter context
    and experts left in the file that is; [] if nothing fits.

    Args:
        config: the model.
        wanted: what does not fit.
        memory: bytes to fit into.
        convert: the command that writes a file in which `wanted`'s experts can stay; None: they can where they are.
    """
    found = []
    if wanted.total <= memory:
        return []
    smaller = _smaller_formats(config, wanted)

    def fits(weight: WeightBytes, kv_cache: str, tokens: int) -> bool:
        return _plan(config, weight, "", kv_cache, tokens).total <= memory

    for name, weight in smaller:
        if fits(weight, wanted.kv_cache, wanted.tokens):
            found.append(f"weights={name.lower()!r}")
            break
    caches = _smaller_caches(config, wanted.kv_cache)
    if len(caches) > 1 and fits(wanted.weight, "q8_0", wanted.tokens):
        found.append("kv_cache='q8_0'")
    room = memory - wanted.weight.total - wanted.buffers
    tokens = _round_down(fitting_tokens(config, room, wanted.kv_cache)) if room > 0 else 0
    if tokens >= min(_LEAST_TOKENS, wanted.tokens):
        found.append(f"max_context={tokens}")
    # What is left beside all the rest holds some of the experts; those of one layer at the least.
    layer = wanted.weight.experts // max(1, sum(config.moe_layers))
    if layer and _room_for_experts(wanted, memory) >= layer:
        found.append(_converted(convert) + f"resident_limit={memory // 10**6 * 10**6}")
    if found:
        return found
    formats = [("", wanted.weight), *smaller]
    for kv_cache in caches:
        for name, weight in formats:
            room = memory - weight.total - wanted.buffers
            tokens = _round_down(fitting_tokens(config, room, kv_cache)) if room > 0 else 0
            if tokens >= min(_LEAST_TOKENS, wanted.tokens):
                return [_combined(wanted, name, kv_cache, tokens)]
    if wanted.weight.experts:
        name, weight = formats[-1]
        layer = weight.experts // sum(config.moe_layers)
        for tokens in (CONTEXTS[0], 2048, _LEAST_TOKENS):
            for kv_cache in caches:
                least = _plan(config, weight, "", kv_cache, min(tokens, wanted.tokens))
                if _room_for_experts(least, memory) >= layer:
                    return [_combined(wanted, name, kv_cache, least.tokens, memory, convert)]
    return []


def _room_for_experts(wanted: MemoryPlan, limit: int) -> int:
    """Bytes of experts that a process within `limit` bytes can keep resident."""
    return limit - _PROCESS - (wanted.total - wanted.weight.experts)


def _converted(command: str | None) -> str:
    return "" if command is None else f"'{command}' and then "


def _combined(
    wanted: MemoryPlan,
    weights: str,
    kv_cache: str,
    tokens: int,
    limit: int | None = None,
    convert: str | None = None,
) -> str:
    # Experts stay in a file only as they are decoded: a smaller format has to be written first.
    first = f"llama-ext convert --weights {weights.lower()}" if weights else convert
    parts = [f"weights={weights.lower()!r}"] if weights and limit is None else []
    parts += [f"kv_cache={kv_cache!r}"] if kv_cache != wanted.kv_cache else []
    parts += [f"max_context={tokens}"] if tokens < wanted.tokens else []
    parts += [f"resident_limit={limit // 10**6 * 10**6}"] if limit is not None else []
    return (_converted(first) if limit is not None else "") + " with ".join(parts)


def check_fits(
    config: LlamaConfig,
    *,
    weights: str | WeightBytes = "bf16",
    kv_cache: str = "f16",
    tokens: int | None = None,
    resident_limit: int | None = None,
    memory: int | None = None,
    convert: str | None = None,
) -> MemoryPlan:
    """Makes sure that a model fits into memory before any of it is read.

    Args:
        config: the model.
        weights: format of its matrices, or the bytes that they take.
        kv_cache: format of keys and values.
        tokens: positions that must fit; None: all that the model was trained for.
        resident_limit: bytes that the whole process keeps resident; experts beyond that stay in their file. None: all
            weights are held.
        memory: bytes to fit into; None: `available_memory()`. Where that is not known, everything fits.
        convert: as in `proposals`.

    Returns:
        What it takes.

    Raises:
        OptionError: it does not fit, and other options would; a format is unknown, or `tokens` is out of range.
        CheckpointError: it does not fit whatever the options.
    """
    exact = weights if isinstance(weights, WeightBytes) else weight_bytes(config, weights)
    limit = resident_limit
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
        raise OptionError(f"resident_limit must be a number of bytes, not {limit!r:.40}.")
    name = "file" if isinstance(weights, WeightBytes) else _weight_format(weights)
    wanted = _plan(config, exact, name, kv_cache, _tokens(config, tokens))
    if resident_limit is not None:
        held = min(exact.experts, max(0, _room_for_experts(wanted, resident_limit)))
        held_weights = WeightBytes(exact.total - exact.experts + held, exact.per_token, held)
        wanted = _plan(config, held_weights, name, kv_cache, wanted.tokens)
    memory = available_memory() if memory is None else memory
    if memory is None or wanted.total <= memory:
        return wanted
    what = (
        f"{config.name or 'the model'} needs {size_text(wanted.total)} of memory ({size_text(wanted.weight.total)} of "
        f"weights, {size_text(sum(wanted.cache.values()))} for keys and values of {wanted.tokens:,} tokens, "
        f"{size_text(wanted.buffers)} of buffers), {size_text(memory)} are free"
    )
    mends = proposals(config, wanted, memory, convert=convert)
    if not mends:
        raise CheckpointError(f"{what}; use a smaller model.")
    raise OptionError(f"{what}; {' or '.join(mends)} would fit.")


def context_lengths(config: LlamaConfig) -> list[int]:
    """`CONTEXTS`, up to what the model was trained for, which is the last."""
    trained = config.max_position_embeddings
    return [*(n for n in CONTEXTS if n < trained), trained]


def size_text(count: int) -> str:
    """Bytes for people."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count} B"


def _plan(config: LlamaConfig, weight: WeightBytes, weights: str, kv_cache: str, tokens: int) -> MemoryPlan:
    return MemoryPlan(weights, kv_cache, tokens, weight, cache_bytes(config, tokens, kv_cache), buffer_bytes(config))


def _tokens(config: LlamaConfig, tokens: int | None) -> int:
    trained = config.max_position_embeddings
    if tokens is None:
        return trained
    if isinstance(tokens, bool) or not isinstance(tokens, int) or not 1 <= tokens <= trained:
        raise OptionError(f"max_context={tokens!r:.40} is out of range; the model takes 1 to {trained} positions.")
    return tokens


def _weight_format(name: object) -> str:
    if isinstance(name, str) and name.upper() in _core.formats:
        return name.upper()
    raise OptionError(f"weights={name!r:.40} is unknown; use one of {', '.join(_core.formats).lower()}.")


def _row_bytes(format: str, cols: int) -> int:
    block, size, _ = _core.formats[fitting_format(format, cols)]
    return cols // block * size


def _smaller_formats(config: LlamaConfig, wanted: MemoryPlan) -> list[tuple[str, WeightBytes]]:
    """Formats whose weights take less than `wanted`'s, the largest first, the smallest last."""
    # MXFP8 is for CUDA: a CPU holds it as BF16.
    sizes = [(name, weight_bytes(config, name)) for name in _core.formats if name not in ("F32", "F16", "MXFP8")]
    found = [(name, weight) for name, weight in sizes if weight.total < wanted.weight.total]
    # Of two formats of one size the one with scales for smaller blocks is the more exact.
    return sorted(found, key=lambda item: (-item[1].total, not item[0].endswith("_K")))


def _smaller_caches(config: LlamaConfig, kv_cache: str) -> tuple[str, ...]:
    """`kv_cache`, and q8_0 where it is another one and its blocks fit the heads."""
    fits = config.head_dim % CACHE_FORMATS["q8_0"][0] == 0
    return (kv_cache, "q8_0") if fits and kv_cache not in ("q8_0", "fp8") else (kv_cache,)


def _round_down(tokens: int) -> int:
    return tokens // 1024 * 1024 if tokens >= 1024 else tokens
