"""From a config and its weights to the list of instructions: the one place that knows what a Llama is.

The instructions themselves are defined in csrc/program/instruction.h and come from the compiled `_core`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from llama_ext import _core
from llama_ext._core import (
    Attention,
    CacheLayer,
    Down,
    Embed,
    ExpertsDown,
    ExpertsGateUp,
    GateUp,
    Head,
    Mask,
    Output,
    Qkv,
    Route,
    Sample,
    Weight,
)
from llama_ext.config import LlamaConfig
from llama_ext.errors import CheckpointError, OptionError

__all__ = ["CACHE_FORMATS", "MAX_ROWS", "Instruction", "Program", "build"]

Instruction: TypeAlias = (
    Embed | Qkv | Attention | Output | GateUp | Down | Route | ExpertsGateUp | ExpertsDown | Head | Sample
)

CACHE_FORMATS = ("f32", "f16", "bf16", "q8_0", "fp8")
"""Formats of keys and values. q8_0 is ggml's: blocks of 32 along head_dim, integers of 8 bits under one float16 scale,
34 bytes for 32 values; it needs a head_dim that is a multiple of 32. fp8 is E4M3 without a scale, rounded to nearest,
at most 448: the CPU does not serve it.
"""

_CACHE_BLOCK = {"q8_0": 32}

MAX_ROWS = 256
"""Tokens that one step takes at the most; a longer prompt is several steps."""

WeightSource = Callable[[str], Weight]
"""The weight of a name in the one layout that every checkpoint reader yields (`llama_ext.checkpoint.names`)."""


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """One Llama as a flat list of instructions.

    Attributes:
        config: what it was built from.
        native: the compiled program: `.code`, `.caches`, `.ropes`, `.max_context`, `.max_rows`, `.cost(index, ...)`.
    """

    config: LlamaConfig
    native: _core.Program

    @property
    def code(self) -> list[Instruction]:
        return self.native.code

    @property
    def weight_bytes_per_token(self) -> int:
        """Bytes of weights that decoding one token reads, in the checkpoint's formats."""
        return sum(self.native.cost(i).weight_bytes for i in range(len(self.code)))

    def cache_bytes(self, context: int) -> int:
        """Bytes that the keys and values of `context` positions take."""
        return sum(min(context, layer.capacity) * layer.bytes_per_slot for layer in self.native.caches)

    def listing(self, *, rows: int = 1, position: int = 0) -> str:
        """The program as text, an instruction a line: operands, bytes and operations of a step.

        Consecutive layers that differ in nothing but their number are shown once.

        Args:
            rows: tokens of the step that the costs are for.
            position: of the step's first token.
        """
        native = self.native
        names = [_core.name(instruction) for instruction in self.code]
        operands = [_operands(instruction, native) for instruction in self.code]
        wide, wider = max(12, *(len(name) + 2 for name in names)), max(62, *(len(text) + 1 for text in operands))
        lines = [
            f"program: {native.vocab:,} tokens, hidden {native.hidden:,}, context {native.max_context:,}, "
            f"up to {native.max_rows} rows a step; costs of {rows} row{'s' if rows > 1 else ''} "
            f"at position {position:,}",
            f"{'':12}{'instruction':<{wide}}{'operands':<{wider}}{'weights':>11}{'cache':>11}{'operations':>12}",
        ]
        blocks: list[tuple[int, list[str]]] = []
        for index, instruction in enumerate(self.code):
            cost = native.cost(index, rows, position, 1)
            line = (
                f"{names[index]:<{wide}}{operands[index]:<{wider}}"
                f"{_bytes(cost.weight_bytes):>11}{_bytes(cost.cache_bytes):>11}{_count(cost.operations):>12}"
            )
            layer: int = getattr(instruction, "layer", -1)
            if layer >= 0 and blocks and blocks[-1][0] == layer:
                blocks[-1][1].append(line)
            else:
                blocks.append((layer, [line]))
        at = 0
        while at < len(blocks):
            layer, block = blocks[at]
            last = at
            while layer >= 0 and last + 1 < len(blocks) and blocks[last + 1][1] == block and blocks[last + 1][0] >= 0:
                last += 1
            label = "" if layer < 0 else f"layer {layer}" + (f"-{blocks[last][0]}" if last > at else "")
            lines += [f"{label if i == 0 else '':<12}{line}" for i, line in enumerate(block)]
            at = last + 1
        costs = [native.cost(i, rows, position, 1) for i in range(len(self.code))]
        lines.append(
            f"{'':12}{'total':<{wide}}{f'{len(self.code)} instructions':<{wider}}"
            f"{_bytes(sum(c.weight_bytes for c in costs)):>11}{_bytes(sum(c.cache_bytes for c in costs)):>11}"
            f"{_count(sum(c.operations for c in costs)):>12}"
        )
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.listing()


def build(
    config: LlamaConfig,
    weight: WeightSource,
    *,
    max_context: int | None = None,
    kv_cache: str = "f16",
    max_rows: int = MAX_ROWS,
    rope_factors: npt.NDArray[np.float32] | None = None,
) -> Program:
    """Builds the program of a Llama.

    Args:
        config: the model.
        weight: gives the weight of a name, e.g. "layers.0.q", in interleaved rotation order.
        max_context: positions to allow; None: all that the model was trained for.
        kv_cache: format of keys and values, one of `CACHE_FORMATS`.
        max_rows: tokens a step at the most.
        rope_factors: [head_dim / 2], what each rotation frequency is divided by (GGUF's `rope_freqs.weight`).

    Raises:
        OptionError: max_context or kv_cache out of range, or a kv_cache that this head_dim does not fit.
        CheckpointError: a weight is missing or its shape does not fit the config.
    """
    if kv_cache not in CACHE_FORMATS:
        raise OptionError(f"kv_cache={kv_cache!r} is unknown; use one of {', '.join(CACHE_FORMATS)}.")
    block = _CACHE_BLOCK.get(kv_cache, 1)
    if config.head_dim % block:
        others = ", ".join(name for name in CACHE_FORMATS if name not in (*_CACHE_BLOCK, "fp8"))
        raise OptionError(
            f"kv_cache={kv_cache!r} needs a head_dim that is a multiple of {block}, and this model's is "
            f"{config.head_dim}; use one of {others}."
        )
    context = config.max_position_embeddings if max_context is None else max_context
    if not 1 <= context <= config.max_position_embeddings:
        raise OptionError(
            f"max_context={max_context} is out of range; "
            f"the model takes 1 to {config.max_position_embeddings} positions."
        )

    frequencies = config.inverse_frequencies()
    if rope_factors is not None:
        fine = rope_factors.shape == (len(frequencies),) and np.all(np.isfinite(rope_factors) & (rope_factors > 0))
        if not fine:
            raise CheckpointError(
                f"'rope_freqs.weight' must hold {len(frequencies)} positive, finite factors; convert the model again."
            )
        frequencies = [f / float(d) for f, d in zip(frequencies, rope_factors, strict=True)]

    embed = weight("embed")
    code: list[Instruction] = [Embed(table=embed)]
    caches: list[CacheLayer] = []
    heads = {
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
    }
    eps = config.rms_norm_eps
    for layer in range(config.num_hidden_layers):
        mask = _mask(config, layer)
        rotates = config.rope_layers[layer]
        caches.append(
            CacheLayer(
                kv_heads=config.num_key_value_heads,
                head_dim=config.head_dim,
                capacity=_core.cache_capacity(mask, context, max_rows),
                format=kv_cache,
            )
        )

        def of_layer(name: str, layer: int = layer) -> Weight:
            return weight(f"layers.{layer}.{name}")

        code += [
            Qkv(
                layer=layer,
                norm=of_layer("attention_norm"),
                q=of_layer("q"),
                k=of_layer("k"),
                v=of_layer("v"),
                eps=eps,
                rope=0 if rotates else -1,
                rope_chunk=mask.extent if mask.kind == "chunked" else 0,
                **heads,
            ),
            Attention(
                layer=layer,
                cache=layer,
                scale=config.head_dim**-0.5,
                mask=mask,
                qk_norm=config.use_qk_norm and rotates,
                qk_norm_eps=eps,
                temperature_scale=config.attn_scale if config.attn_temperature_tuning and not rotates else 0.0,
                temperature_floor=config.floor_scale,
                **heads,
            ),
            Output(layer=layer, weight=of_layer("o")),
        ]
        if config.moe_layers[layer]:
            code += _experts(config, layer, of_layer)
        else:
            code += [
                GateUp(layer=layer, norm=of_layer("ffn_norm"), gate=of_layer("gate"), up=of_layer("up"), eps=eps),
                Down(layer=layer, weight=of_layer("down")),
            ]
    head = embed if config.tie_word_embeddings else weight("head")
    code += [Head(norm=weight("norm"), weight=head, eps=eps), Sample()]
    try:
        native = _core.Program(
            vocab=config.vocab_size,
            hidden=config.hidden_size,
            max_context=context,
            max_rows=max_rows,
            ropes=[frequencies],
            caches=caches,
            code=code,
        )
    except ValueError as error:
        raise CheckpointError(f"the checkpoint does not fit its config: {error}.") from error
    # The instructions agree with one another by now; a feed-forward of another size than the config's still would.
    for step in code:
        if isinstance(step, GateUp):
            gate, expected = step.gate, config.intermediate_size_mlp or config.intermediate_size
        elif isinstance(step, ExpertsGateUp):
            gate, expected = step.gate[0], config.intermediate_size
        else:
            continue
        if gate.rows != expected:
            raise CheckpointError(
                f"the config has an intermediate size of {expected:,}, '{gate.name}' has {gate.rows:,} rows; "
                "convert the model again."
            )
        if isinstance(step, ExpertsGateUp) and len(step.gate) != config.num_local_experts:
            raise CheckpointError(
                f"the config has {config.num_local_experts:,} experts, layer {step.layer} has {len(step.gate):,}; "
                "convert the model again."
            )
    return Program(config, native)


def _experts(config: LlamaConfig, layer: int, weight: WeightSource) -> list[Instruction]:
    """A mixture of experts in the place of a layer's feed-forward network."""

    def of_each(name: str) -> list[Weight]:
        return [weight(f"experts.{e}.{name}") for e in range(config.num_local_experts)]

    def of_shared(name: str) -> Weight | None:
        return weight(f"shared.{name}") if config.shared_expert else None

    sigmoid = config.expert_scoring == "sigmoid"
    return [
        Route(
            layer=layer,
            norm=weight("ffn_norm"),
            router=weight("router"),
            eps=config.rms_norm_eps,
            top_k=config.num_experts_per_tok,
            scoring=config.expert_scoring,
        ),
        ExpertsGateUp(
            layer=layer,
            gate=of_each("gate"),
            up=of_each("up"),
            shared_gate=of_shared("gate"),
            shared_up=of_shared("up"),
            scale_input=sigmoid,
        ),
        ExpertsDown(layer=layer, down=of_each("down"), shared_down=of_shared("down"), scale_output=not sigmoid),
    ]


def _mask(config: LlamaConfig, layer: int) -> Mask:
    kind = config.layer_kinds[layer]
    extent = {"global": 0, "chunked": config.attention_chunk_size, "sliding": config.sliding_window}[kind]
    return Mask(kind, extent)


def _operands(instruction: Instruction, native: _core.Program) -> str:
    match instruction:
        case Embed():
            return f"x = {_matrix(instruction.table)}[id]"
        case Qkv():
            position = "" if instruction.rope < 0 else ", rope"
            if instruction.rope_chunk:
                position += f" % {instruction.rope_chunk:,}"
            matrices = [instruction.q, instruction.k, instruction.v]
            return f"q, k, v = {_matrices(matrices)} rms_norm(x){position}"
        case Attention():
            mask = instruction.mask
            what = mask.kind if mask.kind == "global" else f"{mask.kind} {mask.extent:,}"
            cache = native.caches[instruction.cache]
            extras = (", qk-norm" if instruction.qk_norm else "") + (
                ", temperature" if instruction.temperature_scale else ""
            )
            shape = f"{instruction.heads}:{instruction.kv_heads} heads of {instruction.head_dim}"
            return f"a = {what}, {shape}, {cache.format} cache of {cache.capacity:,}{extras}"
        case Output():
            return f"x += {_matrix(instruction.weight)} a"
        case GateUp():
            return f"h = silu(gate) up, {_matrices([instruction.gate, instruction.up])} rms_norm(x)"
        case Down():
            return f"x += {_matrix(instruction.weight)} h"
        case Route():
            count, score = instruction.router.rows, instruction.scoring
            return (
                f"n = rms_norm(x), {instruction.top_k} of {count} experts by {_matrix(instruction.router)} n, {score}"
            )
        case ExpertsGateUp():
            kinds = [instruction.gate[0], instruction.up[0]]
            shared = ", and the shared one" if instruction.shared_gate else ""
            scaled = "s n" if instruction.scale_input else "n"
            return f"h = silu(gate) up, {_matrices(kinds)} {scaled} an expert{shared}"
        case ExpertsDown():
            shared = ", and the shared one" if instruction.shared_down else ""
            scaled = "s " if instruction.scale_output else ""
            return f"x += {scaled}{_matrix(instruction.down[0])} h an expert{shared}"
        case Head():
            return f"logits = {_matrix(instruction.weight)} rms_norm(x)"
        case _:
            return "id = draw(logits)"


def _matrix(weight: Weight) -> str:
    return f"{weight.format}[{weight.rows}, {weight.cols}]"


def _matrices(weights: list[Weight]) -> str:
    formats = list(dict.fromkeys(w.format for w in weights))
    rows = "+".join(str(w.rows) for w in weights)
    return f"{'/'.join(formats)}[{rows}, {weights[0].cols}]"


def _bytes(count: int) -> str:
    if count == 0:
        return "-"
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"


def _count(count: int) -> str:
    if count == 0:
        return "-"
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return str(count)
