"""GGUF's metadata, as llama.cpp writes it, and keys of our own for what it has none for.

Architectures: "llama" (Llama 1 to 3, Mistral, and Mixtral where `expert_count` is above 0) and "llama4".

llama.cpp keeps several facts of Llama 4 in its code, not in the file. Where a file lacks our own keys, this is assumed:

- every 4th layer (the 4th, the 8th, ...) is global and does not rotate, the others are chunked and rotate; with
  `attention.sliding_window` 0 all are global and rotate;
- chunks have 8,192 positions (or `attention.sliding_window`, where there is one);
- `floor_scale` is 8,192, `attn_scale` 0.1, and the temperature is on;
- queries and keys are normalised, unless there are 128 experts (Maverick).

Our own keys are called ``llama_ext.`` and a field of `LlamaConfig`, and count for more than all others. A number with a
fraction is a string there, its exact decimal digits, because writers of GGUF narrow numbers to float32.

Llama 3's scaling lies in the tensor `rope_freqs.weight`, as factors that the rotation frequencies are divided by.
A config read from a file with that tensor and without our own keys has `rope_scaling` None, so that nothing is scaled
twice; whoever reads the weights applies the factors. Our own keys say the same without the factors' rounding to
float32, and where they are there, the tensor is for other readers.
"""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Mapping, Set
from typing import Any

from llama_ext.config.llama_config import LlamaConfig, RopeScaling
from llama_ext.config.reading import Fields
from llama_ext.errors import CheckpointError

__all__ = ["from_gguf", "to_gguf"]

_OURS = "llama_ext."
_ROPE_FREQS = "rope_freqs.weight"

# Fields that a file of llama.cpp's cannot say of a Llama 4; always written, whatever this version would assume.
_LLAMA4 = (
    *("attention_chunk_size", "use_qk_norm", "attn_temperature_tuning", "floor_scale", "attn_scale"),
    *("layer_kinds", "rope_layers", "moe_layers"),
)
_INTEGERS = {
    *(
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
    ),
    *("vocab_size", "max_position_embeddings", "attention_chunk_size", "sliding_window", "floor_scale"),
    *("num_local_experts", "num_experts_per_tok", "intermediate_size_mlp"),
}
_NUMBERS = {"rms_norm_eps", "rope_theta", "attn_scale"}
_NARROWED = {"rms_norm_eps", "rope_theta"}  # of these, in standard keys
_FLAGS = {"use_qk_norm", "attn_temperature_tuning", "shared_expert"}
_TEXTS = {"model_type", "expert_scoring"}
_LISTS = {"layer_kinds", "rope_layers", "moe_layers"}
_SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_OWN_FIELDS = _INTEGERS | _NUMBERS | _FLAGS | _TEXTS | _LISTS
_OWN_KEYS = _OWN_FIELDS | {f"rope_scaling.{key}" for key in _SCALING}
# Keys that are read below, or that say nothing of the result.
_KNOWN = {
    *("attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon", "attention.key_length"),
    *("attention.value_length", "attention.causal", "attention.sliding_window", "attention.layer_norm_epsilon"),
    *("rope.freq_base", "rope.dimension_count", "rope.scale_linear", "rope.scaling.type", "rope.scaling.factor"),
    *("rope.scaling.attn_factor", "rope.scaling.original_context_length", "rope.scaling.finetuned"),
    *("expert_count", "expert_used_count", "expert_feed_forward_length", "expert_shared_feed_forward_length"),
    *("expert_gating_func", "expert_weights_norm", "expert_shared_count", "expert_weights_scale"),
    "interleave_moe_layer_step",
}
_MATTERS = re.compile(r"^(attention|rope|expert|moe|router|residual|embedding_scale|logit|ssm)|scale|softcap")

_GATING = {1: "softmax", 2: "sigmoid"}  # llama_expert_gating_func_type


def from_gguf(metadata: Mapping[str, object], tensor_names: Set[str]) -> LlamaConfig:
    """The config of a GGUF file; see `LlamaConfig.from_gguf`."""
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ("llama", "llama4"):
        raise CheckpointError(
            f"this GGUF holds a model of architecture {architecture!r:.60}; only 'llama' and 'llama4' are served."
        )
    prefix = f"{architecture}."
    fields = Fields(
        {key[len(prefix) :]: value for key, value in metadata.items() if key.startswith(prefix)}, "the GGUF", prefix
    )
    _check_served(fields)
    layers = fields.integer("block_count")
    heads = fields.integer("attention.head_count")
    hidden = fields.integer("embedding_length")
    if not 1 <= layers <= 10_000 or heads <= 0:
        raise CheckpointError(
            f"the GGUF claims {layers} layers and {heads} attention heads: num_hidden_layers must be from 1 to 10,000 "
            "and num_attention_heads at least 1; convert the model again."
        )
    head_dim = fields.integer("attention.key_length", hidden // heads)
    if fields.integer("attention.value_length", head_dim) != head_dim:
        fields.fail("attention.value_length", "differs from the keys' length, which is not served; use a plain Llama")
    if fields.integer("rope.dimension_count", head_dim) != head_dim:
        raise CheckpointError(
            f"rotation of {fields.integer('rope.dimension_count')} of {head_dim} dimensions "
            f"('{prefix}rope.dimension_count') is not served; use a plain Llama."
        )
    found: dict[str, Any] = {
        "hidden_size": hidden,
        "intermediate_size": fields.integer("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": fields.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": _vocabulary(fields, metadata),
        "max_position_embeddings": fields.integer("context_length"),
        "rms_norm_eps": fields.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": fields.number("rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in tensor_names,
        "name": str(metadata.get("general.name", "")),
    }
    experts = fields.integer("expert_count", 0)
    if experts:
        found |= {"num_local_experts": experts, "num_experts_per_tok": fields.integer("expert_used_count")}
    if architecture == "llama4":
        found |= _llama4(fields, layers, experts)
    else:
        found["sliding_window"] = fields.integer("attention.sliding_window", 0)
        found["model_type"] = "mixtral" if experts else "llama"
    _check_experts(fields, architecture, experts)
    found |= _own(metadata, layers)
    return LlamaConfig(**found)


def _check_served(fields: Fields) -> None:
    prefix = fields.part
    if fields.values.get("attention.causal", True) is not True or fields.integer("pooling_type", 0):
        raise CheckpointError(
            f"this GGUF holds a model of embeddings ('{prefix}attention.causal', '{prefix}pooling_type'), "
            "which is not served; use one that generates text."
        )
    scaling = fields.values.get("rope.scaling.type", "none")
    if not isinstance(scaling, str) or scaling not in ("none", ""):
        raise CheckpointError(
            f"RoPE scaling {scaling!r:.60} ('{prefix}rope.scaling.type') is not served; "
            f"Llama 3's scaling comes as the tensor '{_ROPE_FREQS}'."
        )
    for key in ("rope.scale_linear", "rope.scaling.factor", "rope.scaling.attn_factor"):
        if (factor := fields.number(key, 1.0)) != 1:
            raise CheckpointError(
                f"RoPE scaling by {factor:g} ('{prefix}{key}') is not served; "
                f"Llama 3's scaling comes as the tensor '{_ROPE_FREQS}'."
            )
    for key, value in fields.values.items():
        if key not in _KNOWN and _MATTERS.search(key):
            fields.fail(
                key[:60],
                f"({value!r:.40}) is unknown and may change what the model computes, so it is not served; "
                "use a plain Llama",
            )


def _vocabulary(fields: Fields, metadata: Mapping[str, object]) -> int:
    tokens = metadata.get("tokenizer.ggml.tokens")
    size = fields.values.get("vocab_size", len(tokens) if isinstance(tokens, list) else None)
    if not isinstance(size, int) or isinstance(size, bool):
        raise CheckpointError("the GGUF says nothing of the vocabulary's size; convert the model again.")
    return size


def _check_experts(fields: Fields, architecture: str, experts: int) -> None:
    """What this architecture does not do in llama.cpp, whatever the keys may say."""
    scoring = "sigmoid" if architecture == "llama4" else "softmax"
    gating = fields.integer("expert_gating_func", 0)
    if experts and gating and _GATING.get(gating) != scoring:
        fields.fail(
            "expert_gating_func",
            f"is {gating}, but experts of a {architecture} have a {scoring}; convert the model again",
        )
    if fields.number("expert_weights_scale", 1.0) not in (0.0, 1.0):
        fields.fail("expert_weights_scale", "is not 1, which is not served; use a plain Llama")
    if fields.integer("expert_shared_count", 0) > (architecture == "llama4"):
        fields.fail("expert_shared_count", "is not served; use a plain Llama")
    if architecture == "llama" and experts:
        size = fields.integer("feed_forward_length")
        if fields.integer("expert_feed_forward_length", size) != size:
            fields.fail(
                "expert_feed_forward_length", "differs from 'llama.feed_forward_length'; convert the model again"
            )
    if fields.has("expert_weights_norm") and fields.flag("expert_weights_norm") is (architecture == "llama4"):
        fields.fail("expert_weights_norm", f"is not what a {architecture} does; convert the model again")


def _llama4(fields: Fields, layers: int, experts: int) -> dict[str, Any]:
    dense = fields.integer("feed_forward_length")
    size = fields.integer("expert_feed_forward_length", dense)
    if experts and fields.integer("expert_shared_feed_forward_length", size) != size:
        fields.fail("expert_shared_feed_forward_length", "differs from the experts' length, which is not served")
    step = fields.integer("interleave_moe_layer_step", 1 if experts else 0)
    if step < 0:
        fields.fail("interleave_moe_layer_step", f"must not be negative, is {step}; convert the model again")
    window = fields.integer("attention.sliding_window", 8192)
    rope_layers = tuple(window == 0 or (layer + 1) % 4 != 0 for layer in range(layers))
    return {
        "model_type": "llama4",
        "intermediate_size": size,
        "intermediate_size_mlp": dense,
        "moe_layers": tuple(experts > 0 and step > 0 and (layer + 1) % step == 0 for layer in range(layers)),
        "shared_expert": experts > 0,
        "expert_scoring": "sigmoid" if experts else "softmax",
        "attention_chunk_size": window,
        "layer_kinds": tuple("chunked" if window and rotates else "global" for rotates in rope_layers),
        "rope_layers": rope_layers,
        "use_qk_norm": experts != 128,
        "attn_temperature_tuning": window != 0,
    }


def _own(metadata: Mapping[str, object], layers: int) -> dict[str, Any]:
    """The fields that our own keys give."""
    fields = Fields(
        {
            key[len(_OURS) :]: value
            for key, value in metadata.items()
            if key.startswith(_OURS) and not key.startswith(_OURS + "tokenizer.")
        },
        "the GGUF",
        _OURS,
    )
    found: dict[str, Any] = {}
    for key in fields.values:
        if key not in _OWN_KEYS:
            fields.fail(key[:60], "is unknown to this version; use the version of llama_ext that wrote the file")
        if key in _INTEGERS:
            found[key] = fields.integer(key)
        elif key in _NUMBERS:
            found[key] = _decimal(fields, key)
        elif key in _FLAGS:
            found[key] = fields.flag(key)
        elif key in _TEXTS:
            found[key] = fields.text(key)
        elif key == "layer_kinds":
            found[key] = tuple(fields.items(key, (str,), "names") or ())
        elif key in _LISTS:
            listed = fields.items(key, (bool, int), "true and false") or []
            if any(entry not in (0, 1) for entry in listed):
                fields.fail(key, "must be a list of true and false; convert the model again")
            found[key] = tuple(bool(entry) for entry in listed)
    if any(key.startswith("rope_scaling.") for key in fields.values):
        factor, low, high = (_decimal(fields, f"rope_scaling.{key}") for key in _SCALING[:3])
        found["rope_scaling"] = RopeScaling(factor, low, high, fields.integer(f"rope_scaling.{_SCALING[3]}"))
    return found


def _decimal(fields: Fields, key: str) -> float:
    """A number, or the text of one."""
    if not isinstance(fields.values.get(key), str):
        return fields.number(key)
    try:
        return float(fields.text(key))
    except ValueError:
        fields.fail(key, f"must be a number, is {fields.values[key]!r:.60}; convert the model again")


def to_gguf(config: LlamaConfig) -> dict[str, object]:
    """The metadata of a config; see `LlamaConfig.to_gguf`."""
    architecture = "llama4" if config.model_type == "llama4" else "llama"
    standard: dict[str, object] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": config.rope_theta,
        "vocab_size": config.vocab_size,
    }
    if config.num_local_experts:
        standard["expert_count"] = config.num_local_experts
        standard["expert_used_count"] = config.num_experts_per_tok
    if architecture == "llama4":
        standard["feed_forward_length"] = config.dense_intermediate_size
        standard["expert_feed_forward_length"] = config.intermediate_size
        standard["interleave_moe_layer_step"] = _step(config.moe_layers)
        if config.shared_expert:
            standard["expert_shared_feed_forward_length"] = config.intermediate_size
        if "chunked" not in config.layer_kinds and all(config.rope_layers):
            standard["attention.sliding_window"] = 0
    elif config.sliding_window:
        standard["attention.sliding_window"] = config.sliding_window
    values: dict[str, object] = {"general.architecture": architecture}
    if config.name:
        values["general.name"] = config.name
    values |= {f"{architecture}.{key}": value for key, value in standard.items()}

    # What a reader would make of these keys, where a writer narrows the numbers; where it is wrong, a key of our own.
    tensors = frozenset() if config.tie_word_embeddings else frozenset({"output.weight"})
    try:
        read: LlamaConfig | None = from_gguf(values, tensors)
    except CheckpointError:
        read = None  # they contradict each other without ours
    for name in sorted(_OWN_FIELDS):
        value = getattr(config, name)
        exact = read is not None and getattr(read, name) == value and not (name in _NARROWED and _narrows(value))
        if not exact or (architecture == "llama4" and name in _LLAMA4):
            values[_OURS + name] = _plain(value)
    if config.rope_scaling is not None:
        for name, value in dataclasses.asdict(config.rope_scaling).items():
            values[f"{_OURS}rope_scaling.{name}"] = _plain(value)
    return values


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else repr(value) if isinstance(value, float) else value


def _narrows(value: float) -> bool:
    """Whether float32 holds another number."""
    try:
        return bool(struct.unpack("<f", struct.pack("<f", value))[0] != value)
    except OverflowError:
        return True


def _step(layers: tuple[bool, ...]) -> int:
    """The step that says the same as `layers`; where none does, the one of the first."""
    return layers.index(True) + 1 if any(layers) else 0
