"""Meta's `params.json`, of Llama 1 to Llama 4.

The file says little. What it leaves open, and what is taken for it:

- the sizes of feed-forward layers follow from `dim`, `multiple_of` and `ffn_dim_multiplier` (`feed_forward_size`);
- `vocab_size` is -1 in the first files: the rows of the embedding, or the tokenizer's 32,000;
- the context is not there: see `_context`; `max_seq_len`, the length of a buffer, is not it;
- `use_scaled_rope` stands for Llama 3's scaling by factors that Meta's programs know: 8, 1 and 4, in Llama 3.2's text
  models 32, 1 and 4 (as in their config.json), in Llama 4 16, 1 and 1; `rope_scaling_factor` and
  `rope_high_freq_factor` count where they are there;
- whether the head is the embedding: it is where there is no tensor `output.weight`, and in Llama 3.2's text models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llama_ext.config.llama_config import LlamaConfig, RopeScaling
from llama_ext.config.reading import Fields
from llama_ext.errors import CheckpointError

__all__ = ["feed_forward_size", "from_meta"]

_FILE = "params.json"

# Llama 3.2's text models, whose params.json tells them from Llama 3.1's by nothing else: (dim, n_layers).
_LLAMA_3_2 = ((2048, 16), (3072, 28))

_READ = {
    *("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "vocab_size", "multiple_of", "ffn_dim_multiplier"),
    *("norm_eps", "rope_theta", "use_scaled_rope", "rope_scaling_factor", "rope_high_freq_factor", "moe_args"),
    *("nope_layer_interval", "use_qk_norm", "attention_chunk_size", "attn_temperature_tuning", "floor_scale"),
    *("attn_scale", "ffn_exp", "quantization_args", "lora_args", "vision_model", "vision_chunk_size"),
    "vision_num_cross_attention_layers",
}
# How much is computed at once, and the vision tower of Llama 4, which the text does without.
_IGNORED = {"max_batch_size", "max_seq_len", "model_parallel_size", "vision_args", "vision_max_num_chunks"}
# `capacity_factor` is read: it is part of the formula of the experts' size.
_MOE_READ = {"num_experts", "capacity_factor", "auto_scale_F", "top_k", "interleave_moe_layer_step"}


def feed_forward_size(
    dim: int, multiple_of: int, ffn_dim_multiplier: float | None = None, ffn_exp: float = 4.0, shared: float = 1.0
) -> int:
    """The inner size of a feed-forward layer (llama_models, `FeedForward` and `MoE`).

    2/3 of `ffn_exp` times `dim`, times the multiplier, divided by `shared`, each cut to an integer; at last rounded up
    to a multiple of `multiple_of`.
    """
    size = int(2 * int(ffn_exp * dim) / 3)
    if ffn_dim_multiplier is not None:
        size = int(ffn_dim_multiplier * size)
    size = int(size / shared)
    return multiple_of * ((size + multiple_of - 1) // multiple_of)


def from_meta(
    params: Mapping[str, Any],
    tensors: Mapping[str, Sequence[int]] | None = None,
    max_position_embeddings: int | None = None,
) -> LlamaConfig:
    """The config that a `params.json` describes; see `LlamaConfig.from_meta`."""
    fields = Fields(params, _FILE)
    for key, value in fields.values.items():
        if key not in _READ | _IGNORED and value is not None:
            fields.fail(
                key[:60], f"({value!r:.40}) is unknown and may change what the model computes; use a released Llama"
            )
    for key in ("vision_model", "vision_chunk_size"):
        if fields.has(key) and fields.values[key] != -1:
            fields.fail(key, "belongs to a vision model of Llama 3.2, which is not served; use a text model")
    if fields.integer("vision_num_cross_attention_layers", -1) > 0:
        fields.fail("vision_num_cross_attention_layers", "is not served; use a text model")
    for key in ("quantization_args", "lora_args"):
        if fields.has(key):
            fields.fail(key, "says that the weights are quantized or adapted, which is not served; use the bf16 model")
    dim = _positive(fields, "dim")
    layers = _positive(fields, "n_layers", 10_000)
    heads = _positive(fields, "n_heads")
    if not fields.has("head_dim") and dim % heads:
        fields.fail("n_heads", f"of {heads} does not divide 'dim' {dim}; download the model again")
    multiple_of = _positive(fields, "multiple_of", default=256)
    multiplier = fields.number("ffn_dim_multiplier") if fields.has("ffn_dim_multiplier") else None
    _check_factor(fields, "ffn_dim_multiplier", multiplier)
    llama4 = any(fields.has(key) for key in ("moe_args", "nope_layer_interval", "ffn_exp", "attention_chunk_size"))
    tied = "output.weight" not in tensors if tensors is not None else False
    small = (dim, layers) in _LLAMA_3_2 and fields.flag("use_scaled_rope", False) and not llama4
    common: dict[str, Any] = {
        "hidden_size": dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": fields.integer("n_kv_heads", heads),
        "head_dim": fields.integer("head_dim", dim // heads),
        "vocab_size": _vocabulary(fields, tensors),
        "max_position_embeddings": max_position_embeddings or _context(fields, llama4),
        "rms_norm_eps": fields.number("norm_eps", 1e-5),
        "rope_theta": fields.number("rope_theta", 500_000.0 if llama4 else 10_000.0),
        "rope_scaling": _scaling(fields, llama4, small),
        "tie_word_embeddings": tied or (tensors is None and small),
    }
    dense = feed_forward_size(dim, multiple_of, multiplier)
    if llama4:
        config = LlamaConfig(**common, **_llama4(fields, dim, layers, dense, multiple_of, multiplier))
    else:
        for key in ("use_qk_norm", "attn_temperature_tuning"):
            if fields.flag(key, False):
                fields.fail(key, "is true, but this is no Llama 4 ('moe_args', 'nope_layer_interval'); get it again")
        config = LlamaConfig(intermediate_size=dense, **common)
    _check_sizes(config, tensors)
    return config


def _positive(fields: Fields, key: str, most: int = 2**24, default: int | None = None) -> int:
    value = fields.integer(key) if default is None else fields.integer(key, default)
    if not 1 <= value <= most:
        fields.fail(key, f"must be from 1 to {most:,}, is {value}; download the model again")
    return value


def _check_factor(fields: Fields, key: str, value: float | None) -> None:
    if value is not None and not 1e-3 <= value <= 1e3:  # nor a NaN
        fields.fail(key, f"must be from 0.001 to 1,000, is {value!r}; download the model again")


def _vocabulary(fields: Fields, tensors: Mapping[str, Sequence[int]] | None) -> int:
    size = fields.integer("vocab_size", -1)
    shape = (tensors or {}).get("tok_embeddings.weight")
    if shape is None:
        return 32_000 if size == -1 else size
    if len(shape) != 2 or (size not in (-1, shape[0])):
        fields.fail(
            "vocab_size", f"is {size}, but 'tok_embeddings.weight' is {list(shape)}; take both from the same model"
        )
    return int(shape[0])


def _context(fields: Fields, llama4: bool) -> int:
    """Positions that the released models of this kind were made for; the file says nothing of them."""
    scaled = fields.flag("use_scaled_rope", False)
    if llama4:
        return 10_485_760 if scaled else 1_048_576
    if scaled:
        return 131_072
    theta = fields.number("rope_theta", 10_000.0)
    if theta >= 1e6:
        return 16_384  # Code Llama
    if theta >= 5e5:
        return 8192  # Llama 3
    # Llama 1 has this epsilon; its 65B has not, and is told from Llama 2's 70B by its key-value heads.
    first = fields.number("norm_eps", 1e-5) == 1e-6 or (fields.integer("dim") == 8192 and not fields.has("n_kv_heads"))
    return 2048 if first else 4096


def _scaling(fields: Fields, llama4: bool, small: bool) -> RopeScaling | None:
    if not fields.flag("use_scaled_rope", False):
        return None
    factor, high = (16.0, 1.0) if llama4 else (32.0, 4.0) if small else (8.0, 4.0)
    return RopeScaling(
        fields.number("rope_scaling_factor", factor), 1.0, fields.number("rope_high_freq_factor", high), 8192
    )


def _llama4(
    fields: Fields, dim: int, layers: int, dense: int, multiple_of: int, multiplier: float | None
) -> dict[str, Any]:
    interval = fields.integer("nope_layer_interval", 0)
    if interval < 0:
        fields.fail("nope_layer_interval", f"must not be negative, is {interval}; download the model again")
    rope_layers = tuple(not interval or (layer + 1) % interval != 0 for layer in range(layers))
    chunk = fields.integer("attention_chunk_size", 0)
    floor_scale = fields.number("floor_scale", 8192.0)
    if not floor_scale.is_integer():
        fields.fail("floor_scale", f"must be a whole number, is {floor_scale!r}; download the model again")
    found: dict[str, Any] = {
        "model_type": "llama4",
        "intermediate_size": dense,
        "intermediate_size_mlp": dense,
        "rope_layers": rope_layers,
        # A layer that does not rotate sees everything.
        "layer_kinds": tuple("chunked" if chunk and rotates else "global" for rotates in rope_layers),
        "attention_chunk_size": chunk,
        "use_qk_norm": fields.flag("use_qk_norm", False),
        "attn_temperature_tuning": _temperature(fields),
        "floor_scale": int(floor_scale),
        "attn_scale": fields.number("attn_scale", 0.1),
    }
    if not fields.has("moe_args"):
        return found
    moe = fields.part_of("moe_args")
    for key, value in moe.values.items():
        if key not in _MOE_READ and value is not None:
            moe.fail(key[:60], f"({value!r:.40}) is unknown and may change what the model computes")
    step = moe.integer("interleave_moe_layer_step", 1)
    if step < 1:
        moe.fail("interleave_moe_layer_step", f"must be at least 1, is {step}; download the model again")
    capacity = moe.number("capacity_factor", 1.0)
    _check_factor(moe, "capacity_factor", capacity)
    expansion = fields.number("ffn_exp", 4.0)
    _check_factor(fields, "ffn_exp", expansion)
    shared = capacity + 1 if moe.flag("auto_scale_F", True) else 1.0
    return found | {
        "intermediate_size": feed_forward_size(dim, multiple_of, multiplier, expansion, shared),
        "num_local_experts": _positive(moe, "num_experts", 65_536),
        "num_experts_per_tok": moe.integer("top_k", 1),
        "moe_layers": tuple((layer + 1) % step == 0 for layer in range(layers)),
        "shared_expert": True,
        "expert_scoring": "sigmoid",
    }


def _temperature(fields: Fields) -> bool:
    value = fields.values.get("attn_temperature_tuning")
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value != 0
    return fields.flag("attn_temperature_tuning", False)


def _check_sizes(config: LlamaConfig, tensors: Mapping[str, Sequence[int]] | None) -> None:
    """A feed-forward of another size than the formula's would be found late, far from its cause."""
    shape = (tensors or {}).get("layers.0.feed_forward.w1.weight")
    if shape is not None and list(shape) != [config.dense_intermediate_size, config.hidden_size]:
        raise CheckpointError(
            f"'dim', 'multiple_of' and 'ffn_dim_multiplier' in {_FILE} make a feed-forward of "
            f"{[config.dense_intermediate_size, config.hidden_size]}, but 'layers.0.feed_forward.w1.weight' is "
            f"{list(shape)}; take both from the same model."
        )
