"""config.json: what transformers saves for each model type is read as what its model computes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import config_files as files
import pytest
import tolerances
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llama_ext.config import LlamaConfig, RopeScaling
from llama_ext.config.presets import PRESETS
from llama_ext.errors import CheckpointError

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "max_position_embeddings": 256,
}
SCALED = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LLAMA4 = SIZES | {"head_dim": 8, "intermediate_size_mlp": 64, "num_local_experts": 4, "attention_chunk_size": 8}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", SIZES),
    "llama mha": ("Llama", SIZES | {"num_key_value_heads": None}),
    "llama head_dim": ("Llama", SIZES | {"head_dim": 24}),
    "llama tied": ("Llama", SIZES | {"tie_word_embeddings": True}),
    "llama eps": ("Llama", SIZES | {"rms_norm_eps": 3e-5}),
    "llama3": ("Llama", SIZES | {"rope_parameters": SCALED}),
    "llama3 old spelling": ("Llama", SIZES | {"rope_theta": 500000.0, "rope_scaling": SCALED}),
    "mistral": ("Mistral", SIZES | {"sliding_window": 7}),
    "mistral full": ("Mistral", SIZES | {"sliding_window": None}),
    "mixtral": ("Mixtral", SIZES),
    "mixtral 3 of 5": ("Mixtral", SIZES | {"num_local_experts": 5, "num_experts_per_tok": 3, "sliding_window": 9}),
    "llama4_text": ("Llama4Text", LLAMA4),
    "llama4 interleaved": ("Llama4Text", LLAMA4 | {"interleave_moe_layer_step": 2, "use_qk_norm": False}),
    "llama4 moe_layers": ("Llama4Text", LLAMA4 | {"moe_layers": [0, 3], "num_experts_per_tok": 2}),
    "llama4 dense": ("Llama4Text", LLAMA4 | {"moe_layers": []}),
    "llama4 no_rope_layers": ("Llama4Text", LLAMA4 | {"no_rope_layers": [0, 1, 1, 0]}),
    "llama4 interval": ("Llama4Text", LLAMA4 | {"no_rope_layer_interval": 3}),
    "llama4 layer_types": (
        "Llama4Text",
        LLAMA4 | {"layer_types": ["full_attention", "chunked_attention"] * 2, "no_rope_layers": [1, 1, 1, 1]},
    ),
    "llama4 temperature off": ("Llama4Text", LLAMA4 | {"attn_temperature_tuning": False}),
    "llama4 temperature": ("Llama4Text", LLAMA4 | {"floor_scale": 5, "attn_scale": 0.3}),
    "llama4 scout's scaling": (
        "Llama4Text",
        LLAMA4 | {"rope_parameters": SCALED | {"factor": 16.0, "high_freq_factor": 1.0}},
    ),
    "llama4": ("Llama4", LLAMA4),
}


def made(kind: str, fields: dict[str, Any]) -> tuple[Any, Any]:
    """(config, text model) of transformers, without memory."""
    if kind == "Llama4":
        config = transformers.Llama4Config(text_config=dict(fields), vision_config={"num_hidden_layers": 1})
        with torch.device("meta"):
            return config, transformers.Llama4ForCausalLM(config.text_config)
    config = getattr(transformers, f"{kind}Config")(**fields)
    with torch.device("meta"):
        return config, getattr(transformers, f"{kind.removesuffix('Text')}ForCausalLM")(config)


@pytest.mark.parametrize("name", MODELS)
def test_what_transformers_saves_is_what_its_model_computes(name: str, tmp_path: Path) -> None:
    kind, fields = MODELS[name]
    config, model = made(kind, fields)
    ours = LlamaConfig.from_hf(files.saved(config, tmp_path))
    text = model.config
    layers = model.model.layers
    assert ours.num_hidden_layers == len(layers) == 4
    assert (ours.hidden_size, ours.vocab_size) == (text.hidden_size, text.vocab_size)
    assert ours.max_position_embeddings == text.max_position_embeddings == 256
    assert ours.rms_norm_eps == text.rms_norm_eps
    assert ours.tie_word_embeddings is text.tie_word_embeddings
    attention = layers[0].self_attn
    assert ours.head_dim == attention.head_dim
    assert ours.num_attention_heads * ours.head_dim == attention.q_proj.weight.shape[0]
    assert ours.num_key_value_heads * ours.head_dim == attention.k_proj.weight.shape[0]
    assert ours.parameters()[0] == sum(p.numel() for p in model.parameters())
    # the rotation itself, from the function that the model calls
    rope_type = text.rope_parameters["rope_type"]
    if rope_type == "default":
        theta = text.rope_parameters["rope_theta"]
        expected = [theta ** (-2 * i / ours.head_dim) for i in range(ours.head_dim // 2)]
    else:
        expected = ROPE_INIT_FUNCTIONS[rope_type](text, "cpu")[0].tolist()
    assert ours.inverse_frequencies() == pytest.approx(expected, rel=1e-6)

    if kind.startswith("Llama4"):
        assert ours.model_type == "llama4"
        assert ours.moe_layers == tuple(layer.is_moe_layer for layer in layers)
        assert ours.rope_layers == tuple(bool(layer.self_attn.use_rope) for layer in layers)
        normed = tuple(ours.use_qk_norm and rotates for rotates in ours.rope_layers)
        assert normed == tuple(hasattr(layer.self_attn, "qk_norm") for layer in layers)
        kinds = {"chunked_attention": "chunked", "full_attention": "global"}
        assert ours.layer_kinds == tuple(kinds[kind] for kind in text.layer_types)
        assert ours.attention_chunk_size == text.attention_chunk_size == 8
        assert ours.attn_temperature_tuning is bool(attention.attn_temperature_tuning)
        assert (ours.floor_scale, ours.attn_scale) == (attention.floor_scale, attention.attn_scale)
        for layer in layers:
            if layer.is_moe_layer:
                block = layer.feed_forward
                assert (ours.num_local_experts, ours.num_experts_per_tok) == (block.num_experts, block.top_k)
                assert ours.intermediate_size == block.shared_expert.down_proj.weight.shape[1]
                assert ours.shared_expert and ours.expert_scoring == "sigmoid"
            else:
                assert ours.dense_intermediate_size == layer.feed_forward.down_proj.weight.shape[1]
        return
    assert ours.model_type == kind.lower()
    assert ours.sliding_window == (getattr(text, "sliding_window", None) or 0)
    assert set(ours.layer_kinds) == {"sliding" if ours.sliding_window else "global"}
    if kind == "Mixtral":
        assert (ours.num_local_experts, ours.num_experts_per_tok) == (text.num_local_experts, text.num_experts_per_tok)
        assert ours.moe_layers == (True,) * 4 and not ours.shared_expert and ours.expert_scoring == "softmax"
    else:
        assert ours.num_local_experts == 0 and ours.dense_intermediate_size == 80


@pytest.mark.parametrize("name", files.RELEASED)
def test_released_files_are_the_presets(name: str) -> None:
    read = LlamaConfig.from_hf(files.RELEASED[name])
    preset = PRESETS[name].config
    fields = [f for f in LlamaConfig.__slots__ if f not in ("name", "extra", "intermediate_size_mlp")]
    assert {f: getattr(read, f) for f in fields} == {f: getattr(preset, f) for f in fields}
    assert read.dense_intermediate_size == preset.dense_intermediate_size
    assert "/" not in read.name


@pytest.mark.parametrize("name", ["llama-3.1-8b", "llama-4-scout"])
def test_old_and_new_spellings_of_the_rotation(name: str) -> None:
    values = dict(files.RELEASED[name])
    outer, inner = values, values
    if "text_config" in values:
        outer["text_config"] = inner = dict(values["text_config"])
    expected = LlamaConfig.from_hf(outer)
    assert expected.rope_scaling is not None
    scaling, theta = inner.pop("rope_scaling"), inner.pop("rope_theta")
    inner["rope_parameters"] = scaling | {"rope_theta": theta}
    assert LlamaConfig.from_hf(outer) == expected
    inner["rope_parameters"] = {"type": "llama3", "rope_theta": theta} | {
        key: value for key, value in scaling.items() if key != "rope_type"
    }
    assert LlamaConfig.from_hf(outer) == expected
    inner["rope_scaling"], inner["rope_theta"] = inner.pop("rope_parameters"), theta
    assert LlamaConfig.from_hf(outer) == expected


@pytest.mark.parametrize(
    ("factor", "low", "high", "original", "theta", "head_dim"),
    [
        (8.0, 1.0, 4.0, 8192, 5e5, 128),  # Llama 3.1
        (32.0, 1.0, 4.0, 8192, 5e5, 64),  # Llama 3.2 1B
        (16.0, 1.0, 1.0, 8192, 5e5, 128),  # Scout: nothing is blended
        (4.0, 1.0, 4.0, 64, 1e4, 16),
        (2.0, 2.0, 2.0, 100, 1e4, 32),
    ],
)
def test_llama3_frequencies_are_transformers(
    factor: float, low: float, high: float, original: int, theta: float, head_dim: int
) -> None:
    parameters = {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
    theirs = transformers.LlamaConfig(
        hidden_size=4 * head_dim, num_attention_heads=4, max_position_embeddings=131_072, rope_parameters=parameters
    )
    # Where low == high nothing lies between the bands; transformers divides 0 by 0 there and then drops it.
    expected = ROPE_INIT_FUNCTIONS["llama3"](theirs, "cpu")[0].double()
    assert bool(torch.isfinite(expected).all())
    values = files.TINY | {
        "hidden_size": 4 * head_dim,
        "num_attention_heads": 4,
        "max_position_embeddings": 131_072,
        "rope_parameters": parameters,
    }
    ours = LlamaConfig.from_hf(values)
    table = torch.tensor(ours.inverse_frequencies(), dtype=torch.float64)
    assert torch.allclose(table, expected, rtol=tolerances.ROTATION_TABLE, atol=0)
    plain = LlamaConfig.from_hf(values | {"rope_parameters": {"rope_theta": theta}}).inverse_frequencies()
    assert any(abs(a / b - 1) > 0.4 for a, b in zip(plain, ours.inverse_frequencies(), strict=True))


def test_one_changed_factor_is_seen() -> None:
    """The comparison above must be able to fail."""
    base = RopeScaling(8.0, 1.0, 4.0, 8192)
    sizes = {
        **{k: v for k, v in SIZES.items() if k != "num_key_value_heads"},
        "num_key_value_heads": 2,
        "head_dim": 128,
    }
    right = LlamaConfig(**sizes, rope_theta=5e5, rope_scaling=base).inverse_frequencies()
    for wrong in (
        RopeScaling(32.0, 1.0, 4.0, 8192),
        RopeScaling(8.0, 1.0, 1.0, 8192),
        RopeScaling(8.0, 1.0, 4.0, 4096),
    ):
        other = LlamaConfig(**sizes, rope_theta=5e5, rope_scaling=wrong).inverse_frequencies()
        assert max(abs(a / b - 1) for a, b in zip(right, other, strict=True)) > 0.1


def test_absent_and_null_fields() -> None:
    """An absent field has the default of transformers' class, a null one is derived."""
    llama = LlamaConfig.from_hf(files.TINY)
    assert (llama.num_key_value_heads, llama.head_dim, llama.rms_norm_eps, llama.rope_theta) == (6, 8, 1e-6, 1e4)
    assert LlamaConfig.from_hf(files.TINY | {"head_dim": None, "num_key_value_heads": None}) == llama
    mistral = files.TINY | {"model_type": "mistral", "num_attention_heads": 8}
    assert LlamaConfig.from_hf(mistral).num_key_value_heads == 8
    assert LlamaConfig.from_hf(mistral).sliding_window == 4096
    assert LlamaConfig.from_hf(mistral | {"sliding_window": None}).sliding_window == 0
    assert LlamaConfig.from_hf(mistral | {"num_key_value_heads": None}).num_key_value_heads == 8
    mixtral = mistral | {"model_type": "mixtral", "num_attention_heads": 24}
    read = LlamaConfig.from_hf(mixtral)
    assert (read.num_local_experts, read.num_experts_per_tok, read.rope_theta) == (8, 2, 1e6)
    assert (read.num_key_value_heads, read.sliding_window) == (8, 0)
    llama4 = files.TINY_LLAMA4
    read = LlamaConfig.from_hf(llama4)
    assert read.use_qk_norm and read.attn_temperature_tuning and read.rope_theta == 5e5
    assert (read.rope_layers, read.floor_scale, read.attn_scale) == ((True, True, True, False), 8192, 0.1)
    without = {key: value for key, value in llama4.items() if key != "head_dim"}
    assert LlamaConfig.from_hf(without).head_dim == 128
    assert LlamaConfig.from_hf(without | {"head_dim": None}).head_dim == 8


@pytest.mark.parametrize(("value", "on"), [(True, True), (False, False), (4, True), (1, True), (0, False)])
def test_temperature_tuning_is_an_integer_or_a_bool(value: int, on: bool) -> None:
    assert LlamaConfig.from_hf(files.TINY_LLAMA4 | {"attn_temperature_tuning": value}).attn_temperature_tuning is on


def test_no_rope_layers_means_the_opposite_of_its_name() -> None:
    read = LlamaConfig.from_hf(files.TINY_LLAMA4 | {"no_rope_layers": [1, 0, 1, 0]})
    assert read.rope_layers == (True, False, True, False)
    assert read.layer_kinds == ("chunked", "global", "chunked", "global")
    assert LlamaConfig.from_hf(files.TINY_LLAMA4 | {"no_rope_layers": [True, False, True, False]}) == read
    # "at least the same length as the number of layers", says transformers
    assert LlamaConfig.from_hf(files.TINY_LLAMA4 | {"no_rope_layers": [1, 0, 1, 0, 1, 1]}) == read


def test_a_llama4_without_experts() -> None:
    values = files.TINY_LLAMA4 | {"interleave_moe_layer_step": 0, "num_local_experts": 0, "num_experts_per_tok": 0}
    values |= {"layer_types": ["full_attention"] * 4, "no_rope_layers": [1] * 4, "moe_layers": []}
    read = LlamaConfig.from_hf(values)
    assert not any(read.moe_layers) and read.num_local_experts == 0 and read.dense_intermediate_size == 64
    assert read.layer_kinds == ("global",) * 4 and read.rope_layers == (True,) * 4


def test_a_floor_scale_with_a_fraction_point() -> None:
    assert LlamaConfig.from_hf(files.TINY_LLAMA4 | {"floor_scale": 5.0}).floor_scale == 5


IGNORED = {
    "pretraining_tp": 4,
    "torch_dtype": "float16",
    "dtype": "float32",
    "use_cache": False,
    "attention_dropout": 0.1,
    "initializer_range": 1.0,
    "router_jitter_noise": 0.5,
    "output_router_logits": True,
    "bos_token_id": 3,
    "eos_token_id": [1, 2],
    "_attn_implementation": "eager",
    "attn_implementation": "sdpa",
    "unsloth_fixed": True,
    "tokenizer_class": "LlamaTokenizer",
    "rope_scaling": None,
    "quantization_config": None,
    "qkv_bias": False,
    "use_sliding_window": False,
    "some_router_thing": None,
    "rope_interleaved": False,
}


@pytest.mark.parametrize("field", IGNORED)
def test_fields_that_change_nothing(field: str) -> None:
    assert LlamaConfig.from_hf(files.TINY | {field: IGNORED[field]}) == LlamaConfig.from_hf(files.TINY)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"attention_bias": True}, "attention_bias"),
    ({"mlp_bias": True}, "mlp_bias"),
    ({"qkv_bias": True}, "qkv_bias"),
    ({"hidden_act": "gelu"}, "hidden_act"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}}, "partial_rotary_factor"),
    ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config.*gptq"),
    ({"quantization_config": "odd"}, "quantization_config"),
    ({"rope_interleaved": True}, "rope_interleaved"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type 'linear' in config.json is not served"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic' in config.json is not served"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type 'yarn' in config.json is not served"),
    ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type 'longrope' in config.json is not served"),
    ({"rope_scaling": {"rope_type": "cubist"}}, "rope_type 'cubist', which is unknown"),
    ({"rope_scaling": {"type": "llama3", "rope_type": "default"}}, "rope_scaling.type.*contradicts"),
    ({"rope_scaling": {"factor": 8.0}}, "rope_scaling.factor"),
    ({"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling.factor.*missing"),
    ({"rope_scaling": files.SCALING_8 | {"factor": 0}}, "factor must be"),
    ({"rope_scaling": files.SCALING_8 | {"factor": "8"}}, "rope_scaling.factor.*must be a number"),
    ({"rope_scaling": files.SCALING_8 | {"factor": math.nan}}, "factor must be"),
    ({"rope_scaling": files.SCALING_8 | {"low_freq_factor": 5.0}}, "low_freq_factor 5 is above"),
    ({"rope_scaling": files.SCALING_8 | {"original_max_position_embeddings": 0}}, "original_max_position"),
    ({"rope_scaling": files.SCALING_8 | {"attention_factor": 1.2}}, "attention_factor"),
    ({"rope_scaling": files.SCALING_8, "rope_parameters": files.SCALING_32}, "contradicts"),
    ({"rope_theta": 5e5, "rope_parameters": {"rope_theta": 1e4}}, "rope_theta.*contradicts"),
    ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "full_attention"),
    ({"rope_scaling": "llama3"}, "rope_scaling.*must be an object"),
    ({"rope_ratio": 2.0}, "rope_ratio"),
    ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ({"attention_multiplier": 0.5}, "attention_multiplier"),
    ({"attention_sinks": 4}, "attention_sinks"),
    ({"moe_intermediate_size": 4}, "moe_intermediate_size"),
    ({"num_local_experts": 4}, "num_local_experts"),
    ({"n_shared_experts": 1}, "n_shared_experts"),
    ({"router_scale": 2.0}, "router_scale"),
    ({"use_qk_norm": True}, "use_qk_norm"),
    ({"norm_type": "layer"}, "norm_type"),
    ({"embedding_multiplier": 12.0}, "embedding_multiplier"),
    ({"residual_multiplier": 0.2}, "residual_multiplier"),
    ({"logits_scaling": 8.0}, "logits_scaling"),
    ({"sliding_window": 5}, "sliding_window"),
    ({"layer_types": ["sliding_attention"] * 4}, "layer_types"),
    ({"model_type": "gemma"}, "model_type.*gemma"),
    ({"model_type": "mllama"}, "mllama.*vision"),
    ({"model_type": None}, "model_type.*missing"),
    ({"model_type": 3}, "model_type.*must be a string"),
    ({"architectures": ["LlamaForSequenceClassification"]}, "architectures.*LlamaForSequenceClassification"),
    ({"architectures": ["MistralForCausalLM"]}, "architectures"),
    ({"architectures": "LlamaForCausalLM"}, "architectures.*list"),
    ({"model_type": "llama4"}, "text_config.*missing"),
    ({"model_type": "llama4", "text_config": [1]}, "text_config.*object"),
    ({"model_type": "llama4", "text_config": {"model_type": "llama"}}, "text_config.model_type"),
    ({"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 0}, "sliding_window.*at least 1"),
    ({"model_type": "mistral", "num_key_value_heads": 2, "layer_types": ["full_attention"] * 4}, "layer_types"),
    ({"num_attention_heads": 7}, "num_attention_heads.*does not divide"),
    ({"num_key_value_heads": 4}, "cannot share"),
    ({"head_dim": 7}, "head_dim 7 is odd"),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED)
def test_what_is_not_served_is_named(changes: dict[str, Any], said: str) -> None:
    fails(files.TINY | changes, said)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"no_rope_layers": [1, 0]}, "no_rope_layers.*2 entries"),
        ({"no_rope_layers": [1, 2, 0, 1]}, "no_rope_layers"),
        ({"no_rope_layers": "1110"}, "no_rope_layers"),
        ({"no_rope_layer_interval": 0}, "no_rope_layer_interval"),
        ({"moe_layers": [4]}, "moe_layers.*layer 4"),
        ({"moe_layers": [-1]}, "moe_layers"),
        ({"moe_layers": [True]}, "moe_layers"),
        ({"moe_layers": [1], "num_local_experts": 0}, "moe_layers"),
        ({"interleave_moe_layer_step": -2}, "interleave_moe_layer_step"),
        ({"layer_types": ["chunked_attention"]}, "layer_types.*1 entries"),
        ({"layer_types": ["chunked_attention"] * 5}, "layer_types.*5 entries"),
        ({"layer_types": ["linear_attention"] * 4}, "linear_attention"),
        ({"layer_types": ["sliding_attention"] * 4}, "sliding_attention"),
        ({"attention_chunk_size": None}, "attention_chunk_size"),
        ({"attention_chunk_size": 0}, "attention_chunk_size"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok must be from 1 to its 4 experts"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok"),
        ({"num_local_experts": 65_537}, "num_local_experts must be"),
        ({"attn_temperature_tuning": "yes"}, "attn_temperature_tuning"),
        ({"attn_temperature_tuning": -1}, "attn_temperature_tuning"),
        ({"floor_scale": 0}, "floor_scale"),
        ({"floor_scale": 2.5}, "floor_scale"),
        ({"attn_scale": math.inf}, "attn_scale"),
        ({"attn_scale": -0.1}, "attn_scale"),
        ({"use_qk_norm": 1}, "use_qk_norm"),
        ({"attention_bias": True}, "attention_bias"),
        ({"moe_router_bias": 1}, "moe_router_bias"),
        ({"expert_capacity": 1}, "expert_capacity"),
    ],
)
def test_what_a_llama4_may_not_be(changes: dict[str, Any], said: str) -> None:
    fails(files.TINY_LLAMA4 | changes, said)
    nested = files.TINY_LLAMA4 | changes
    fails({"model_type": "llama4", "text_config": nested}, said)


def test_fields_around_the_text_config() -> None:
    inner = files.TINY_LLAMA4
    around = {"model_type": "llama4", "text_config": inner}
    expected = LlamaConfig.from_hf(inner)
    assert LlamaConfig.from_hf(around) == expected
    assert LlamaConfig.from_hf(around | {"vision_config": {"norm_eps": 1}, "image_token_index": 5}) == expected
    fails(around | {"quantization_config": {"quant_method": "fbgemm_fp8"}}, "quantization_config.*fbgemm_fp8")
    fails(around | {"tie_word_embeddings": True}, "tie_word_embeddings.*contradicts")
    fails(around | {"rope_ratio": 2}, "rope_ratio")


INTEGERS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "vocab_size", "max_position_embeddings"),
)
HOSTILE = ["8", "", [8], {}, True, 1.5, math.nan, math.inf, -1, 0, 10**30]


@pytest.mark.parametrize("field", INTEGERS)
@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_integers(field: str, value: object) -> None:
    fails(files.TINY | {field: value}, field)
    fails(files.TINY_LLAMA4 | {field: value}, field)


@pytest.mark.parametrize("field", ["rms_norm_eps", "rope_theta"])
@pytest.mark.parametrize("value", ["1", [], True, math.nan, math.inf, -1.0, 0, 10**400])
def test_hostile_numbers(field: str, value: object) -> None:
    fails(files.TINY | {field: value}, field)


@pytest.mark.parametrize("field", ["tie_word_embeddings", "attention_bias", "mlp_bias"])
@pytest.mark.parametrize("value", ["true", 1, 0.0, []])
def test_hostile_flags(field: str, value: object) -> None:
    fails(files.TINY | {field: value}, field)


@pytest.mark.parametrize("field", ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"])
def test_missing_sizes(field: str) -> None:
    fails({key: value for key, value in files.TINY.items() if key != field}, f"{field}.*missing")
    fails(files.TINY | {field: None}, f"{field}.*missing")


@pytest.mark.parametrize("values", [None, [], "llama", 3, {1: 2}, {}])
def test_no_object_at_all(values: Any) -> None:
    fails(values, "config.json")


def fails(values: Any, said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        LlamaConfig.from_hf(values)
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message and len(message) < 400
