"""Hugging Face's `config.json`, of old and new versions of transformers.

A field of the file is one of four things, and nothing is passed over in silence:

- read, because it says what the model computes (`_READ`);
- of one value only, because another one would change the result and is not served (`hidden_act`, biases, ...);
- ignored, because it does not change the result: `_IGNORED`, and unknown fields whose names speak of nothing that
  matters;
- refused, because it is unknown and its name speaks of something that matters (`_MATTERS`).

Defaults of absent fields are those of the config classes of transformers, which write and read these files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llama_ext.config.llama_config import LlamaConfig, RopeScaling
from llama_ext.config.reading import Fields
from llama_ext.errors import CheckpointError

__all__ = ["from_hf"]

_FILE = "config.json"

# model_type -> the architectures that it belongs to
_ARCHITECTURES = {
    "llama": ("LlamaForCausalLM", "LLaMAForCausalLM"),
    "mistral": ("MistralForCausalLM",),
    "mixtral": ("MixtralForCausalLM",),
    "llama4": ("Llama4ForConditionalGeneration", "Llama4ForCausalLM"),
    "llama4_text": ("Llama4ForCausalLM", "Llama4ForConditionalGeneration"),
}

_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {"rms_norm_eps": 1e-6, "rope_theta": 1e4, "max_position_embeddings": 2048},
    "mistral": {
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
        "max_position_embeddings": 131_072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "mixtral": {
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "max_position_embeddings": 131_072,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    "llama4": {
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e5,
        "max_position_embeddings": 131_072,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "num_local_experts": 16,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 16_384,
        "attention_chunk_size": 8192,
    },
}

_READ = {
    *("model_type", "architectures", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps"),
    *("tie_word_embeddings", "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "layer_types"),
    *("hidden_act", "attention_bias", "mlp_bias", "quantization_config", "_name_or_path", "rope_interleaved"),
}
_READ_BY_TYPE: Mapping[str, set[str]] = {
    "llama": set(),
    "mistral": {"sliding_window"},
    "mixtral": {"sliding_window", "num_local_experts", "num_experts_per_tok"},
    "llama4": {
        *("intermediate_size_mlp", "num_local_experts", "num_experts_per_tok", "moe_layers", "use_qk_norm"),
        *("interleave_moe_layer_step", "no_rope_layers", "no_rope_layer_interval", "attention_chunk_size"),
        *("attn_temperature_tuning", "floor_scale", "attn_scale"),
    },
}

# Fields that change nothing of what one forward pass computes: training (dropouts, initialisation, losses and noise of
# the router), the way of computing it (`pretraining_tp` cuts products into parts and adds them up again), and what
# other files say too.
_IGNORED = {
    *("attention_dropout", "initializer_range", "output_router_logits", "router_aux_loss_coef", "router_jitter_noise"),
    *("pretraining_tp", "use_cache", "dtype", "torch_dtype", "transformers_version", "return_dict"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "max_sequence_length", "_attn_implementation_autoset"),
    *("output_attentions", "output_hidden_states", "prune_heads", "pruned_heads", "for_llm_compressor"),
}
# Of a multimodal file around its text_config.
_IGNORED_AROUND = {"vision_config", "text_config", "boi_token_index", "eoi_token_index", "image_token_index"}

_MATTERS = re.compile(
    r"^(rope|attn|attention|moe|sliding|use_sliding|quant|logit|final_logit|embedding_|residual_)|expert|router|norm|"
    r"rotary|bias|chunk|softcap|multiplier|scal(e|ing)|alibi|temperature_tuning|cross_attention"
)
_HARMLESS = re.compile(r"implementation|flash|dropout")

_UNSERVED_ROPE = ("linear", "dynamic", "yarn", "longrope")
_LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor")
_KINDS = {"full_attention": "global", "chunked_attention": "chunked", "sliding_attention": "sliding"}


def from_hf(values: Mapping[str, Any]) -> LlamaConfig:
    """The config that a `config.json` describes; see `LlamaConfig.from_hf`."""
    outer = Fields(values, _FILE)
    model_type = _model_type(outer)
    fields = outer
    if model_type == "llama4":
        if not outer.has("text_config"):
            outer.fail("text_config", "is missing, so nothing is known of the text model; get the complete file")
        fields = outer.part_of("text_config")
        inner = fields.text("model_type", "llama4_text")
        if inner != "llama4_text":
            fields.fail("model_type", f"is {inner!r:.60}, of which nothing is known; it must be llama4_text")
        _refuse_unknown(outer, _READ | _IGNORED | _IGNORED_AROUND)
        _refuse_other_values(outer)
        if outer.flag("tie_word_embeddings", False) and not fields.flag("tie_word_embeddings", False):
            outer.fail("tie_word_embeddings", "contradicts the one in text_config; convert the model again")
    model_type = "llama4" if model_type.startswith("llama4") else model_type
    defaults = _DEFAULTS[model_type]
    _refuse_unknown(fields, _READ | _READ_BY_TYPE[model_type] | _IGNORED)
    _refuse_other_values(fields)

    hidden = fields.integer("hidden_size")
    heads = fields.integer("num_attention_heads")
    layers = fields.integer("num_hidden_layers")
    if not 1 <= layers <= 10_000:
        fields.fail("num_hidden_layers", f"must be from 1 to 10,000, is {layers}; convert the model again")
    # A field that is null means "derive it", one that is absent has the class's default.
    kv_heads = fields.integer("num_key_value_heads", _absent(fields, "num_key_value_heads", defaults, heads))
    if fields.has("head_dim"):
        head_dim = fields.integer("head_dim")
    elif "head_dim" not in fields.values and "head_dim" in defaults:
        head_dim = defaults["head_dim"]
    else:
        if heads < 1 or hidden % heads:
            fields.fail(
                "num_attention_heads",
                f"of {heads} does not divide 'hidden_size' {hidden}, without a 'head_dim'; convert the model again",
            )
        head_dim = hidden // heads
    context = fields.integer(
        "max_position_embeddings", fields.integer("max_sequence_length", defaults["max_position_embeddings"])
    )
    theta, scaling = _rope(fields, defaults["rope_theta"], context)
    common: dict[str, Any] = {
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": fields.integer("intermediate_size"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": fields.integer("vocab_size"),
        "max_position_embeddings": context,
        "rms_norm_eps": fields.number("rms_norm_eps", defaults["rms_norm_eps"]),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": fields.flag("tie_word_embeddings", False),
        "name": _name(outer.values.get("_name_or_path")),
    }
    if model_type == "llama4":
        return LlamaConfig(**common, **_llama4(fields, layers, defaults))
    common |= _window(fields, layers, defaults, model_type)
    if model_type == "mixtral":
        common |= {
            "num_local_experts": fields.integer("num_local_experts", defaults["num_local_experts"]),
            "num_experts_per_tok": fields.integer("num_experts_per_tok", defaults["num_experts_per_tok"]),
        }
        if not common["num_local_experts"]:
            fields.fail("num_local_experts", "is 0, but a mixtral consists of experts; convert the model again")
    return LlamaConfig(**common)


def _name(path: object) -> str:
    """The last part of where the model was loaded from when it was saved; it changes nothing."""
    return path.rstrip("/").rsplit("/", 1)[-1] if isinstance(path, str) else ""


def _absent(fields: Fields, key: str, defaults: Mapping[str, Any], null: Any) -> Any:
    return null if key in fields.values else defaults.get(key, null)


def _model_type(fields: Fields) -> str:
    architectures = fields.items("architectures", (str,), "names") or []
    if not fields.has("model_type"):
        found = next((kind for kind, names in _ARCHITECTURES.items() if set(names) & set(architectures)), None)
        if found is None:
            fields.fail("model_type", f"is missing; served are {', '.join(_ARCHITECTURES)}")
        return found
    model_type = fields.text("model_type")
    if model_type not in _ARCHITECTURES:
        hint = ", the vision models of Llama 3.2," if model_type.startswith("mllama") else ""
        fields.fail(
            "model_type", f"is {model_type!r:.60}{hint} which is not served; served are {', '.join(_ARCHITECTURES)}"
        )
    if architectures and not set(architectures) & set(_ARCHITECTURES[model_type]):
        fields.fail(
            "architectures",
            f"names {architectures[0]!r:.60}, which is not served for model_type {model_type!r}; it must name "
            f"{_ARCHITECTURES[model_type][0]}, a model that generates text",
        )
    return model_type


def _refuse_unknown(fields: Fields, known: set[str]) -> None:
    for key, value in fields.values.items():
        if key in known or value is None or not _MATTERS.search(key) or _HARMLESS.search(key):
            continue
        if value is False and ("bias" in key or key.startswith("use_")):
            continue
        fields.fail(
            key[:60],
            f"({value!r:.40}) is unknown and may change what the model computes, so it is not served; "
            "use a plain Llama, or remove the field if it is certain to change nothing",
        )


def _refuse_other_values(fields: Fields) -> None:
    """Fields of which one value alone is served."""
    activation = fields.text("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        fields.fail("hidden_act", f"is {activation!r:.60}, which is not served; Llamas have 'silu'")
    for key in ("attention_bias", "mlp_bias"):
        if fields.flag(key, False):
            fields.fail(key, "is true, and biases are not served; use a model without")
    if fields.flag("rope_interleaved", False):
        fields.fail("rope_interleaved", "is true, but Llamas of transformers rotate halves; convert the model again")
    if fields.number("partial_rotary_factor", 1.0) != 1:
        fields.fail(
            "partial_rotary_factor",
            f"is {fields.values['partial_rotary_factor']!r:.40}, but only rotation of whole heads (1) is served",
        )
    if fields.has("quantization_config"):
        method = fields.values["quantization_config"]
        name = method.get("quant_method") if isinstance(method, Mapping) else method
        fields.fail(
            "quantization_config",
            f"says that the weights are quantized ({name!r:.40}), which is not served; use the original model, or a "
            ".gguf file of it",
        )


def _rope(fields: Fields, default_theta: float, context: int) -> tuple[float, RopeScaling | None]:
    """`rope_theta` and the scaling, whether nested in `rope_parameters` (transformers 5) or not."""
    both = fields.has("rope_scaling") and fields.has("rope_parameters")
    if both and fields.values["rope_scaling"] != fields.values["rope_parameters"]:
        fields.fail("rope_scaling", "contradicts 'rope_parameters'; convert the model again")
    key = "rope_scaling" if fields.has("rope_scaling") else "rope_parameters"
    rope = fields.part_of(key)
    theta = fields.number("rope_theta", default_theta)
    if rope.has("rope_theta"):
        nested = rope.number("rope_theta")
        if fields.has("rope_theta") and nested != theta:
            fields.fail("rope_theta", f"contradicts '{key}.rope_theta'; convert the model again")
        theta = nested
    for name, value in rope.values.items():
        if isinstance(value, Mapping):
            rope.fail(name[:60], "holds the rotation of one kind of layer, and different ones are not served")
    kind = rope.text("rope_type", rope.text("type", "default"))
    if rope.has("rope_type") and rope.has("type") and rope.text("type") != kind:
        rope.fail("type", f"contradicts '{key}.rope_type'; convert the model again")
    if kind not in ("default", "llama3"):
        named = "" if kind in _UNSERVED_ROPE else ", which is unknown,"
        raise CheckpointError(
            f"rope_type {kind!r:.40}{named} in {_FILE} is not served; served are 'default' and 'llama3': use a model "
            "without this extension of its context."
        )
    if rope.number("partial_rotary_factor", 1.0) != 1:
        rope.fail("partial_rotary_factor", "is not 1, but only rotation of whole heads is served")
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"}
    if kind == "llama3":
        known |= set(_LLAMA3_KEYS)
    for name, value in rope.values.items():
        if name in known or value is None or (name == "factor" and value == 1):
            continue
        rope.fail(name[:60], f"({value!r:.40}) means nothing to rope_type {kind!r}; convert the model again")
    if kind == "default":
        return theta, None
    factor, low, high = (rope.number(name) for name in _LLAMA3_KEYS)
    return theta, RopeScaling(factor, low, high, rope.integer("original_max_position_embeddings", context))


def _window(fields: Fields, layers: int, defaults: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """Mistral's sliding window, the same in every layer."""
    window = 0
    if "sliding_window" in _READ_BY_TYPE[model_type]:
        window = fields.integer("sliding_window", _absent(fields, "sliding_window", defaults, 0))
        if window < 1 and fields.has("sliding_window"):
            fields.fail("sliding_window", f"must be at least 1, or null for none, is {window}; convert the model again")
    kind = "sliding" if window else "global"
    types = _layer_types(fields, layers)
    if types is not None and set(types) != {kind}:
        fields.fail(
            "layer_types",
            f"names layers of other kinds than '{model_type}' has ({kind} in this file), which is not served; "
            "convert the model again",
        )
    return {"sliding_window": window}


def _layer_types(fields: Fields, layers: int) -> tuple[str, ...] | None:
    types = fields.items("layer_types", (str,), "names")
    if types is None:
        return None
    if len(types) != layers:
        fields.fail("layer_types", f"has {len(types):,} entries for {layers:,} layers; convert the model again")
    unknown = next((kind for kind in types if kind not in _KINDS), None)
    if unknown is not None:
        fields.fail("layer_types", f"names {unknown!r:.40}, which is not served; served are {', '.join(_KINDS)}")
    return tuple(_KINDS[kind] for kind in types)


def _llama4(fields: Fields, layers: int, defaults: Mapping[str, Any]) -> dict[str, Any]:
    rope_layers = _rope_layers(fields, layers)
    kinds = _layer_types(fields, layers)
    if kinds is None:
        kinds = tuple("chunked" if rotates else "global" for rotates in rope_layers)
    if "sliding" in kinds:
        fields.fail("layer_types", "names sliding_attention, which is not served for llama4; convert the model again")
    chunk = fields.integer("attention_chunk_size", _absent(fields, "attention_chunk_size", defaults, 0))
    if "chunked" in kinds and chunk < 1:
        fields.fail(
            "attention_chunk_size", f"is {chunk or 'null'}, but there are chunked layers; convert the model again"
        )
    moe = _moe_layers(fields, layers)
    experts = fields.integer("num_local_experts", defaults["num_local_experts"])
    if any(moe) and not experts:
        if fields.has("moe_layers"):
            fields.fail("moe_layers", "names layers of experts, but 'num_local_experts' is 0; convert the model again")
        moe = (False,) * layers
    found: dict[str, Any] = {
        "layer_kinds": kinds,
        "rope_layers": rope_layers,
        "attention_chunk_size": chunk,
        "use_qk_norm": fields.flag("use_qk_norm", True),
        "attn_temperature_tuning": _temperature(fields),
        "floor_scale": _whole(fields, "floor_scale", 8192),
        "attn_scale": fields.number("attn_scale", 0.1),
        "moe_layers": moe,
        "intermediate_size_mlp": fields.integer("intermediate_size_mlp", defaults["intermediate_size_mlp"]),
    }
    if any(moe):
        found |= {
            "num_local_experts": experts,
            "num_experts_per_tok": fields.integer("num_experts_per_tok", defaults["num_experts_per_tok"]),
            "shared_expert": True,
            "expert_scoring": "sigmoid",
        }
    return found


def _rope_layers(fields: Fields, layers: int) -> tuple[bool, ...]:
    """`no_rope_layers`, where 1 means that a layer rotates; empty: every layer but each `no_rope_layer_interval`-th."""
    listed = fields.items("no_rope_layers", (int, bool), "0 and 1")
    if listed:
        if len(listed) < layers:
            fields.fail("no_rope_layers", f"has {len(listed):,} entries for {layers:,} layers; convert the model again")
        if any(entry not in (0, 1) for entry in listed):
            fields.fail("no_rope_layers", "must be a list of 0 and 1; convert the model again")
        return tuple(bool(entry) for entry in listed[:layers])
    interval = fields.integer("no_rope_layer_interval", 4)
    if interval < 1:
        fields.fail("no_rope_layer_interval", f"must be at least 1, is {interval}; convert the model again")
    return tuple((layer + 1) % interval != 0 for layer in range(layers))


def _moe_layers(fields: Fields, layers: int) -> tuple[bool, ...]:
    """`moe_layers`, a list of layers' numbers; absent: every `interleave_moe_layer_step`-th."""
    listed = fields.items("moe_layers", (int,), "layers' numbers")
    if listed is None:
        step = fields.integer("interleave_moe_layer_step", 1)
        if step < 0:
            fields.fail("interleave_moe_layer_step", f"must not be negative, is {step}; convert the model again")
        return tuple(step > 0 and (layer + 1) % step == 0 for layer in range(layers))
    wrong = next((layer for layer in listed if not 0 <= layer < layers), None)
    if wrong is not None:
        fields.fail("moe_layers", f"names layer {wrong} of {layers:,}; convert the model again")
    chosen = set(listed)
    return tuple(layer in chosen for layer in range(layers))


def _temperature(fields: Fields) -> bool:
    """`attn_temperature_tuning`, a bool or (in the first configs) an integer."""
    value = fields.values.get("attn_temperature_tuning")
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value != 0
    return fields.flag("attn_temperature_tuning", True)


def _whole(fields: Fields, key: str, default: int) -> int:
    """An integer that may be written as a float."""
    value = fields.values.get(key)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return fields.integer(key, default)
