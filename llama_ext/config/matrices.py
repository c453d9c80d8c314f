"""The weights that a model of a config consists of, as sizes and counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from llama_ext.config.llama_config import LlamaConfig

__all__ = ["Matrices", "matrices"]


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
    kind: Literal["vector", "router", "expert", "matrix"] = "matrix"


def matrices(config: LlamaConfig) -> list[Matrices]:
    """All weights of a model; a tied head is not listed."""
    hidden, layers = config.hidden_size, config.num_hidden_layers
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    mixtures = sum(config.moe_layers)
    found = [Matrices("embed", config.vocab_size, hidden, 1, 1)]
    for name, rows, cols in (("q", queries, hidden), ("k", keys, hidden), ("v", keys, hidden), ("o", hidden, queries)):
        found.append(Matrices(name, rows, cols, layers, layers))
    for name in ("attention_norm", "ffn_norm"):
        found.append(Matrices(name, 1, hidden, layers, layers, "vector"))

    def feed_forward(prefix: str, size: int, count: int, active: int, kind: Literal["expert", "matrix"]) -> None:
        if count:
            found.append(Matrices(prefix + "gate", size, hidden, count, active, kind))
            found.append(Matrices(prefix + "up", size, hidden, count, active, kind))
            found.append(Matrices(prefix + "down", hidden, size, count, active, kind))

    dense = layers - mixtures
    feed_forward("", config.dense_intermediate_size, dense, dense, "matrix")
    if mixtures:
        found.append(Matrices("router", config.num_local_experts, hidden, mixtures, mixtures, "router"))
        chosen = mixtures * config.num_experts_per_tok
        feed_forward("experts.", config.intermediate_size, mixtures * config.num_local_experts, chosen, "expert")
        if config.shared_expert:
            feed_forward("shared.", config.intermediate_size, mixtures, mixtures, "matrix")
    found.append(Matrices("norm", 1, hidden, 1, 1, "vector"))
    if not config.tie_word_embeddings:
        found.append(Matrices("head", config.vocab_size, hidden, 1, 1))
    return found
