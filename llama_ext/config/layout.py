"""The one layout of named tensors that every checkpoint reader yields.

==================================  ====================================================================
``embed``                           [vocab, hidden], a row a token
``layers.{i}.attention_norm``       [hidden], float32; likewise ``ffn_norm`` and, after the last, ``norm``
``layers.{i}.q`` / ``k`` / ``v``    [heads * head_dim, hidden]; rotated pairs are neighbours (2i, 2i + 1)
``layers.{i}.o``                    [hidden, heads * head_dim]
``layers.{i}.gate`` / ``up``        [intermediate, hidden], in a dense layer
``layers.{i}.down``                 [hidden, intermediate], in a dense layer
``layers.{i}.router``               [experts, hidden], in a mixture of experts
``layers.{i}.experts.{e}.gate``...  as in a dense layer, of the experts' size
``layers.{i}.shared.gate``...       likewise, where there is a shared expert
``head``                            [vocab, hidden]; absent where the embedding serves
==================================  ====================================================================

Rows are outputs: y = W x.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from llama_ext.config.llama_config import LlamaConfig

__all__ = ["Matrices", "is_router", "is_vector", "layout", "matrices"]

_NORMS = {"norm", "attention_norm", "ffn_norm"}
_NUMBERS = re.compile(r"^layers\.\d+\.|(?<=experts\.)\d+\.")


def is_vector(name: str) -> bool:
    """Whether the tensor of that name is a norm's weight, one float32 a channel."""
    return name.rsplit(".", 1)[-1] in _NORMS


def is_router(name: str) -> bool:
    """Whether the tensor of that name chooses experts."""
    return name.endswith(".router")


def layout(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that a model of this config consists of, in the order it is used."""
    hidden = config.hidden_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"embed": (config.vocab_size, hidden)}

    def feed_forward(prefix: str, size: int) -> None:
        shapes[prefix + "gate"] = shapes[prefix + "up"] = (size, hidden)
        shapes[prefix + "down"] = (hidden, size)

    for layer in range(config.num_hidden_layers):
        prefix = f"layers.{layer}."
        shapes[prefix + "attention_norm"] = (hidden,)
        shapes[prefix + "q"] = (queries, hidden)
        shapes[prefix + "k"] = shapes[prefix + "v"] = (keys, hidden)
        shapes[prefix + "o"] = (hidden, queries)
        shapes[prefix + "ffn_norm"] = (hidden,)
        if config.moe_layers[layer]:
            shapes[prefix + "router"] = (config.num_local_experts, hidden)
            for expert in range(config.num_local_experts):
                feed_forward(f"{prefix}experts.{expert}.", config.intermediate_size)
            if config.shared_expert:
                feed_forward(prefix + "shared.", config.intermediate_size)
        else:
            feed_forward(prefix, config.intermediate_size_mlp or config.intermediate_size)
    shapes["norm"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["head"] = (config.vocab_size, hidden)
    return shapes


@dataclass(frozen=True, slots=True)
class Matrices:
    """Weights of one name and shape, over all layers and experts.

    Attributes:
        name: without its layer and expert: "q", "experts.gate", "embed".
        rows, cols: of each; a norm has one row.
        count: how many there are.
        active: how many of them one token uses.
        kind: "vector" (a norm), "router", "expert" (one that a router chooses) or "matrix".
    """

    name: str
    rows: int
    cols: int
    count: int
    active: int
    kind: Literal["vector", "router", "expert", "matrix"]


def matrices(config: LlamaConfig) -> list[Matrices]:
    """All weights of a model by name, in the order they are used."""
    found: dict[str, Matrices] = {}
    for full, shape in layout(config).items():
        name = _NUMBERS.sub("", full)
        if name not in found:
            expert, rows = name.startswith("experts."), 1 if len(shape) == 1 else shape[0]
            kind: Literal["vector", "router", "expert", "matrix"] = "expert" if expert else "matrix"
            if is_vector(name):
                kind = "vector"
            elif name == "router":
                kind = "router"
            found[name] = Matrices(name, rows, shape[-1], 0, 0, kind)
        found[name] = replace(found[name], count=found[name].count + 1)
    chosen = config.num_experts_per_tok / max(1, config.num_local_experts)
    return [replace(m, active=round(m.count * chosen) if m.kind == "expert" else m.count) for m in found.values()]
