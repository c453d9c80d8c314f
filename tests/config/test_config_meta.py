"""params.json: Meta's own files of each generation, and the formula of the feed-forward's size."""

from __future__ import annotations

import math
from typing import Any

import pytest

from llama_ext.config import LlamaConfig
from llama_ext.config.meta import feed_forward_size
from llama_ext.config.presets import PRESETS, find_preset
from llama_ext.errors import CheckpointError, OptionError

LLAMA_3 = {"rope_theta": 500000.0, "norm_eps": 1e-05, "vocab_size": 128256, "n_kv_heads": 8}
SCOUT: dict[str, Any] = {
    "dim": 5120,
    "n_layers": 48,
    "n_heads": 40,
    "n_kv_heads": 8,
    "vocab_size": 202048,
    "multiple_of": 2048,
    "ffn_dim_multiplier": 1.2,
    "ffn_exp": 4.0,
    "norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "use_scaled_rope": True,
    "rope_scaling_factor": 16.0,
    "rope_high_freq_factor": 1.0,
    "nope_layer_interval": 4,
    "use_qk_norm": True,
    "attention_chunk_size": 8192,
    "attn_temperature_tuning": True,
    "floor_scale": 8192.0,
    "attn_scale": 0.1,
    "moe_args": {
        "num_experts": 16,
        "top_k": 1,
        "capacity_factor": 1.0,
        "auto_scale_F": True,
        "interleave_moe_layer_step": 1,
    },
    "vision_args": {"dim": 1408, "n_layers": 34, "n_heads": 16},
}
MAVERICK = {
    key: value for key, value in SCOUT.items() if not key.startswith("rope_s") and key != "rope_high_freq_factor"
}
MAVERICK |= {
    "use_scaled_rope": False,
    "use_qk_norm": False,
    "moe_args": SCOUT["moe_args"] | {"num_experts": 128, "interleave_moe_layer_step": 2},
}

# The files of released models.
PARAMS: dict[str, dict[str, Any]] = {
    "llama-1-7b": {"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-06, "vocab_size": -1},
    "llama-1-13b": {
        "dim": 5120,
        "multiple_of": 256,
        "n_heads": 40,
        "n_layers": 40,
        "norm_eps": 1e-06,
        "vocab_size": -1,
    },
    "llama-1-33b": {
        "dim": 6656,
        "multiple_of": 256,
        "n_heads": 52,
        "n_layers": 60,
        "norm_eps": 1e-06,
        "vocab_size": -1,
    },
    "llama-1-65b": {
        "dim": 8192,
        "multiple_of": 256,
        "n_heads": 64,
        "n_layers": 80,
        "norm_eps": 1e-05,
        "vocab_size": -1,
    },
    "llama-2-7b": {"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-05, "vocab_size": -1},
    "llama-2-13b": {
        "dim": 5120,
        "multiple_of": 256,
        "n_heads": 40,
        "n_layers": 40,
        "norm_eps": 1e-05,
        "vocab_size": -1,
    },
    "llama-2-70b": {
        **{"dim": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 1.3, "n_heads": 64, "n_kv_heads": 8},
        **{"n_layers": 80, "norm_eps": 1e-05, "vocab_size": -1},
    },
    "llama-3-8b": LLAMA_3
    | {"dim": 4096, "n_layers": 32, "n_heads": 32, "multiple_of": 1024, "ffn_dim_multiplier": 1.3},
    "llama-3-70b": LLAMA_3
    | {"dim": 8192, "n_layers": 80, "n_heads": 64, "multiple_of": 4096, "ffn_dim_multiplier": 1.3},
    "llama-4-scout": SCOUT,
    "llama-4-maverick": MAVERICK,
}


def same(name: str, params: dict[str, Any], **changes: Any) -> None:
    read, preset = LlamaConfig.from_meta(params), PRESETS[name].config
    fields = [f for f in LlamaConfig.__slots__ if f not in ("name", "extra", "intermediate_size_mlp")]
    assert {f: getattr(read, f) for f in fields} == {f: getattr(preset, f) for f in fields} | changes
    if not all(read.moe_layers):
        assert read.dense_intermediate_size == preset.dense_intermediate_size


@pytest.mark.parametrize("name", PARAMS)
def test_released_files_are_the_presets(name: str) -> None:
    same(name, PARAMS[name])


def test_metas_own_table_of_models() -> None:
    """llama_models lists the params of what Meta publishes; of Llama 2 it says what its files do not, and 405B's second
    row has key-value heads repeated for more devices."""
    sku_list = pytest.importorskip("llama_models.sku_list")
    seen = set()
    for model in sku_list.all_registered_models():
        try:
            name = find_preset(model.core_model_id.value).name
        except OptionError:
            continue  # vision models and guards
        args = model.arch_args
        if not args or name.startswith("llama-2-") or args["n_kv_heads"] != 8:
            continue
        if "quantization_args" in args:
            with pytest.raises(CheckpointError, match="quantization_args"):
                LlamaConfig.from_meta(args)
            continue
        same(name, args)
        seen.add(name)
    assert seen >= {"llama-3-8b", "llama-3.1-8b", "llama-3.1-405b", "llama-3.2-1b", "llama-3.2-3b", "llama-3.3-70b"}


def test_defaults_of_llama4_are_those_of_its_program() -> None:
    args = pytest.importorskip("llama_models.llama4.args")
    sizes = {"dim": 64, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 50, "ffn_dim_multiplier": 1.2}
    shortest = sizes | {"moe_args": {"num_experts": 2}, "use_scaled_rope": True}
    theirs = args.ModelArgs(**shortest)
    ours = LlamaConfig.from_meta(shortest)
    assert ours.rope_scaling is not None
    assert ours.rope_scaling.factor == theirs.rope_scaling_factor
    assert ours.rope_scaling.high_freq_factor == theirs.rope_high_freq_factor
    assert (ours.rms_norm_eps, ours.rope_theta) == (theirs.norm_eps, theirs.rope_theta)
    assert (ours.use_qk_norm, ours.attn_temperature_tuning) == (theirs.use_qk_norm, theirs.attn_temperature_tuning)
    assert (ours.floor_scale, ours.attn_scale) == (theirs.floor_scale, theirs.attn_scale)
    assert theirs.attention_chunk_size is None and set(ours.layer_kinds) == {"global"}
    assert theirs.nope_layer_interval is None and all(ours.rope_layers)
    assert ours.num_experts_per_tok == theirs.moe_args.top_k
    full = args.ModelArgs(**{key: value for key, value in SCOUT.items() if key != "vision_args"})
    assert full.moe_args.num_experts == 16


@pytest.mark.parametrize(
    ("dim", "multiple_of", "multiplier", "expected"),
    [
        (4096, 256, None, 11_008),
        (5120, 256, None, 13_824),
        (6656, 256, None, 17_920),
        (8192, 256, None, 22_016),
        (8192, 4096, 1.3, 28_672),
        (4096, 1024, 1.3, 14_336),
        (16_384, 4096, 1.2, 53_248),
        (2048, 256, 1.5, 8192),
        (3072, 256, 1.0, 8192),
        (5120, 2048, 1.2, 16_384),
        (48, 1, None, 128),
        (50, 7, 1.1, 147),
    ],
)
def test_the_feed_forwards_size(dim: int, multiple_of: int, multiplier: float | None, expected: int) -> None:
    assert feed_forward_size(dim, multiple_of, multiplier) == expected
    # in fractions: each cut happens where the reference cuts
    size = 8 * dim // 3
    size = size if multiplier is None else math.floor(multiplier * size)
    assert expected == -(-size // multiple_of) * multiple_of


def test_the_tensors_tell_what_the_file_does_not() -> None:
    small = {"dim": 32, "multiple_of": 8, "n_heads": 4, "n_layers": 2, "norm_eps": 1e-5, "vocab_size": -1}
    shapes = {"tok_embeddings.weight": (61, 32), "layers.0.feed_forward.w1.weight": (88, 32)}
    assert LlamaConfig.from_meta(small).vocab_size == 32_000
    read = LlamaConfig.from_meta(small, shapes | {"output.weight": (61, 32)})
    assert (read.vocab_size, read.tie_word_embeddings, read.intermediate_size) == (61, False, 88)
    assert LlamaConfig.from_meta(small, shapes).tie_word_embeddings
    assert LlamaConfig.from_meta(small, shapes, max_position_embeddings=77).max_position_embeddings == 77
    with pytest.raises(CheckpointError, match=r"'vocab_size'.*is 60, but"):
        LlamaConfig.from_meta(small | {"vocab_size": 60}, shapes)
    with pytest.raises(CheckpointError, match="make a feed-forward of"):
        LlamaConfig.from_meta(small | {"multiple_of": 32}, shapes)
    one_b = LLAMA_3 | {"dim": 2048, "n_layers": 16, "n_heads": 32, "ffn_dim_multiplier": 1.5, "use_scaled_rope": True}
    assert LlamaConfig.from_meta(one_b).tie_word_embeddings
    assert not LlamaConfig.from_meta(one_b, {"output.weight": (128256, 2048)}).tie_word_embeddings


TINY: dict[str, Any] = {"dim": 64, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 50}
TINY4 = TINY | {"moe_args": {"num_experts": 4}, "nope_layer_interval": 4, "attention_chunk_size": 8}


def test_layers_of_a_llama4() -> None:
    read = LlamaConfig.from_meta(
        TINY4 | {"multiple_of": 1, "moe_args": {"num_experts": 4, "interleave_moe_layer_step": 2, "top_k": 3}}
    )
    assert read.rope_layers == (True, True, True, False)
    assert read.layer_kinds == ("chunked", "chunked", "chunked", "global")
    assert read.moe_layers == (False, True, False, True) and read.num_experts_per_tok == 3
    assert read.shared_expert and read.expert_scoring == "sigmoid" and read.model_type == "llama4"
    assert read.intermediate_size < read.intermediate_size_mlp  # auto_scale_F halves the experts
    whole = LlamaConfig.from_meta(TINY4 | {"multiple_of": 1, "moe_args": {"num_experts": 4, "auto_scale_F": False}})
    assert whole.intermediate_size == whole.intermediate_size_mlp == 170
    half = LlamaConfig.from_meta(TINY4 | {"multiple_of": 1, "moe_args": {"num_experts": 4}})
    assert half.intermediate_size == 85


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dim": "64"}, "dim.*integer"),
        ({"dim": True}, "dim.*integer"),
        ({"dim": 0}, "dim.*must be from 1"),
        ({"dim": None}, "dim.*missing"),
        ({"dim": math.nan}, "dim.*integer"),
        ({"n_layers": 10**9}, "n_layers.*10,000"),
        ({"n_heads": 5}, "n_heads.*does not divide"),
        ({"n_kv_heads": 3}, "cannot share"),
        ({"n_kv_heads": -1}, "num_key_value_heads"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"vocab_size": -2}, "vocab_size"),
        ({"multiple_of": 0}, "multiple_of"),
        ({"multiple_of": -256}, "multiple_of"),
        ({"ffn_dim_multiplier": math.nan}, "ffn_dim_multiplier"),
        ({"ffn_dim_multiplier": -1.0}, "ffn_dim_multiplier"),
        ({"ffn_dim_multiplier": 1e300}, "ffn_dim_multiplier"),
        ({"norm_eps": "small"}, "norm_eps"),
        ({"norm_eps": math.inf}, "rms_norm_eps"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"use_scaled_rope": 1}, "use_scaled_rope"),
        ({"use_scaled_rope": True, "rope_scaling_factor": 0.0}, "factor must be"),
        ({"use_scaled_rope": True, "rope_high_freq_factor": 0.5}, "low_freq_factor 1 is above"),
        ({"use_qk_norm": True}, "use_qk_norm"),
        ({"quantization_args": {"scheme": "x"}}, "quantization_args"),
        ({"lora_args": {"rank": 16}}, "lora_args"),
        ({"vision_chunk_size": 448}, "vision_chunk_size.*vision"),
        ({"vision_num_cross_attention_layers": 8}, "vision_num_cross"),
        ({"q_norm": True}, "q_norm.*unknown"),
        ({"moe_args": []}, "moe_args.*object"),
        ({"moe_args": {}}, "moe_args.num_experts.*missing"),
        ({"moe_args": {"num_experts": -1}}, "num_experts"),
        ({"moe_args": {"num_experts": 4, "top_k": 5}}, "num_experts_per_tok"),
        ({"moe_args": {"num_experts": 4, "interleave_moe_layer_step": 0}}, "interleave_moe_layer_step"),
        ({"moe_args": {"num_experts": 4, "capacity_factor": math.nan}}, "capacity_factor"),
        ({"moe_args": {"num_experts": 4, "capacity_factor": -1.0}}, "capacity_factor"),
        ({"moe_args": {"num_experts": 4, "use_sinkhorn": True}}, "use_sinkhorn"),
        ({"moe_args": {"num_experts": 4}, "ffn_exp": math.inf}, "ffn_exp"),
        ({"moe_args": {"num_experts": 4}, "floor_scale": math.inf}, "floor_scale"),
        ({"moe_args": {"num_experts": 4}, "nope_layer_interval": -4}, "nope_layer_interval"),
        ({"moe_args": {"num_experts": 4}, "attention_chunk_size": -8}, "attention_chunk_size"),
    ],
)
def test_hostile_params(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        LlamaConfig.from_meta(TINY | changes)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [None, [], "x", {}])
def test_no_object_at_all(values: Any) -> None:
    with pytest.raises(CheckpointError, match=r"params\.json"):
        LlamaConfig.from_meta(values)
