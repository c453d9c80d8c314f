"""GGUF's metadata: what is written is read again, through a real file too; files of llama.cpp; hostile values."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from models import llama4_config, tiny_config, variants

from llama_ext.checkpoint.gguf import GgufFile
from llama_ext.config import LlamaConfig, RopeScaling
from llama_ext.config.presets import PRESETS
from llama_ext.errors import CheckpointError

MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
ODD: dict[str, LlamaConfig] = {
    **variants(),
    "mixtral": tiny_config(model_type="mixtral", **MOE),
    "mixtral sliding": tiny_config(model_type="mixtral", sliding_window=9, **MOE),
    "mixtral with dense layers": tiny_config(
        model_type="mixtral", moe_layers=(False, True, False), intermediate_size_mlp=64, **MOE
    ),
    "no layer of the experts": tiny_config(moe_layers=(False,) * 3, **MOE),
    "a llama with sigmoid and shared": tiny_config(expert_scoring="sigmoid", shared_expert=True, **MOE),
    "llama4": llama4_config(4, model_type="llama4", expert_scoring="sigmoid", shared_expert=True, **MOE),
    "llama4 scored otherwise": llama4_config(4, model_type="llama4", **MOE),
    "llama4 no step": llama4_config(
        **{"chunk": 8, "model_type": "llama4", "moe_layers": (True, False, False, True), "intermediate_size_mlp": 20},
        **MOE,
    ),
    "llama4 dense": llama4_config(8, model_type="llama4", intermediate_size_mlp=24),
    "llama4 all global": tiny_config(model_type="llama4", use_qk_norm=True),
    "llama4 sliding": tiny_config(model_type="llama4", sliding_window=7),
    "llama4 temperature on RoPE": tiny_config(model_type="llama4", attn_temperature_tuning=True, floor_scale=3),
    "mistral": tiny_config(model_type="mistral", sliding_window=11),
    "mistral with global layers": tiny_config(
        model_type="mistral", sliding_window=11, layer_kinds=("global", "sliding", "global")
    ),
    "scaled": tiny_config(rope_scaling=RopeScaling(8.0, 1.0, 4.0, 32)),
    "scaled oddly": tiny_config(rope_scaling=RopeScaling(1 / 3, 1 / 7, 22 / 7, 33)),
    "inexact numbers": tiny_config(rms_norm_eps=1 / 3e5, rope_theta=123456.789, attn_scale=1 / 3),
    "largest numbers": tiny_config(rms_norm_eps=1.0, rope_theta=1e30, max_position_embeddings=2**32),
    "smallest numbers": tiny_config(rms_norm_eps=1e-30, rope_theta=1e-6),
    "odd head_dim": tiny_config(head_dim=7, rope_layers=(False,) * 3),
    "head_dim apart": tiny_config(head_dim=24),
    "named": tiny_config(name="a model"),
    "experts by the thousand": tiny_config(model_type="mixtral", num_local_experts=65_536, num_experts_per_tok=65_536),
}
CONFIGS = {name: preset.config for name, preset in PRESETS.items()} | ODD


def names(config: LlamaConfig) -> set[str]:
    return set() if config.tie_word_embeddings else {"output.weight"}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_written_is_read_again(name: str) -> None:
    config = CONFIGS[name]
    values = config.to_gguf()
    assert next(iter(values)) == "general.architecture"
    assert values["general.architecture"] == ("llama4" if config.model_type == "llama4" else "llama")
    read = LlamaConfig.from_gguf(values, names(config))
    assert read == config
    assert read.to_gguf() == values


@pytest.mark.parametrize("name", ODD)
def test_through_a_file_that_narrows_numbers(name: str, tmp_path: Path) -> None:
    """The gguf package writes; numbers with fractions become float32."""
    config = CONFIGS[name]
    path = tmp_path / "x.gguf"
    written = write(path, config.to_gguf(), names(config))
    assert written
    file = GgufFile(path)
    assert LlamaConfig.from_gguf(file.metadata, set(file.tensors)) == config


def write(path: Path, values: dict[str, object], tensors: set[str]) -> bool:
    writer = gguf.GGUFWriter(path, str(values["general.architecture"]))
    kinds = gguf.GGUFValueType
    for key, value in values.items():
        if key == "general.architecture":
            continue
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_key_value(key, value, kinds.UINT64 if value >= 2**32 else kinds.UINT32)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            assert isinstance(value, str)
            writer.add_string(key, value)
    for name in tensors:
        writer.add_tensor(name, np.zeros((1, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return True


def test_a_plain_llama_has_few_keys_of_its_own() -> None:
    values = PRESETS["llama-3-8b"].config.to_gguf()
    assert [key for key in values if key.startswith("llama_ext.")] == ["llama_ext.rms_norm_eps"]
    assert values["llama.feed_forward_length"] == 14_336 and values["llama.rope.dimension_count"] == 128
    mixtral = PRESETS["mixtral-8x7b"].config.to_gguf()
    assert (mixtral["llama.expert_count"], mixtral["llama.expert_used_count"]) == (8, 2)


def test_standard_keys_of_a_llama4() -> None:
    values = PRESETS["llama-4-maverick"].config.to_gguf()
    assert values["llama4.feed_forward_length"] == 16_384
    assert values["llama4.expert_feed_forward_length"] == values["llama4.expert_shared_feed_forward_length"] == 8192
    assert values["llama4.interleave_moe_layer_step"] == 2
    assert values["llama_ext.attention_chunk_size"] == 8192 and values["llama_ext.use_qk_norm"] is False


def test_scaling_counts_once() -> None:
    """Where there are factors alone, the config has no scaling; our own keys say it exactly, factors or not."""
    config = PRESETS["llama-3.1-8b"].config
    values = config.to_gguf()
    assert LlamaConfig.from_gguf(values, {"output.weight"}) == config
    assert LlamaConfig.from_gguf(values, {"output.weight", "rope_freqs.weight"}) == config
    foreign = {key: value for key, value in values.items() if not key.startswith("llama_ext.rope_scaling.")}
    read = LlamaConfig.from_gguf(foreign, {"output.weight", "rope_freqs.weight"})
    assert read == replace(config, rope_scaling=None)


# What llama.cpp's converter writes for Llama 4 and Mixtral, and nothing of ours.
FOREIGN_LLAMA4: dict[str, Any] = {
    "general.architecture": "llama4",
    "general.name": "Llama 4",
    "llama4.block_count": 48,
    "llama4.context_length": 10_485_760,
    "llama4.embedding_length": 5120,
    "llama4.feed_forward_length": 16_384,
    "llama4.attention.head_count": 40,
    "llama4.attention.head_count_kv": 8,
    "llama4.rope.freq_base": 500_000.0,
    "llama4.attention.layer_norm_rms_epsilon": 1e-5,
    "llama4.expert_count": 16,
    "llama4.expert_used_count": 1,
    "llama4.attention.key_length": 128,
    "llama4.attention.value_length": 128,
    "llama4.vocab_size": 202_048,
    "llama4.rope.dimension_count": 128,
    "llama4.interleave_moe_layer_step": 1,
    "llama4.expert_feed_forward_length": 8192,
}
FOREIGN_MIXTRAL: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 32,
    "llama.context_length": 32_768,
    "llama.embedding_length": 4096,
    "llama.feed_forward_length": 14_336,
    "llama.attention.head_count": 32,
    "llama.attention.head_count_kv": 8,
    "llama.rope.freq_base": 1e6,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.expert_count": 8,
    "llama.expert_used_count": 2,
    "llama.vocab_size": 32_000,
    "llama.rope.dimension_count": 128,
}


def test_files_of_llama_cpp() -> None:
    tensors = {"output.weight", "rope_freqs.weight"}
    scout = PRESETS["llama-4-scout"].config
    assert LlamaConfig.from_gguf(FOREIGN_LLAMA4, tensors) == replace(scout, name="Llama 4", rope_scaling=None)
    # The same numbers once more, as docs/models.md has them: a preset shares its defaults with what is read.
    read = LlamaConfig.from_gguf(FOREIGN_LLAMA4, tensors)
    assert (read.attention_chunk_size, read.floor_scale, read.attn_scale) == (8192, 8192, 0.1)
    assert read.attn_temperature_tuning and read.use_qk_norm
    assert read.rope_layers == (True, True, True, False) * 12
    assert read.layer_kinds == ("chunked", "chunked", "chunked", "global") * 12
    maverick = PRESETS["llama-4-maverick"].config
    changes = {"llama4.expert_count": 128, "llama4.interleave_moe_layer_step": 2, "llama4.context_length": 1_048_576}
    assert LlamaConfig.from_gguf(FOREIGN_LLAMA4 | changes, tensors) == replace(maverick, name="Llama 4")
    mixtral = PRESETS["mixtral-8x7b"].config
    assert LlamaConfig.from_gguf(FOREIGN_MIXTRAL, {"output.weight"}) == replace(mixtral, name="")


def test_a_llama4_without_local_layers() -> None:
    """llama.cpp's converter says so with a window of 0: every layer is global and rotates."""
    changes = {"llama4.attention.sliding_window": 0, "llama4.expert_count": 0, "llama4.interleave_moe_layer_step": 0}
    read = LlamaConfig.from_gguf(FOREIGN_LLAMA4 | changes, {"output.weight"})
    assert set(read.layer_kinds) == {"global"} and all(read.rope_layers) and not any(read.moe_layers)
    assert read.num_local_experts == 0 and not read.shared_expert and read.dense_intermediate_size == 16_384


def test_our_keys_count_for_more() -> None:
    changes: dict[str, Any] = {
        "llama_ext.attention_chunk_size": 64,
        "llama_ext.floor_scale": 5,
        "llama_ext.attn_scale": 0.25,
        "llama_ext.use_qk_norm": False,
        "llama_ext.attn_temperature_tuning": False,
        "llama_ext.rope_layers": np.array([1, 0] * 24, np.uint8),
        "llama_ext.layer_kinds": ["chunked", "global"] * 24,
        "llama_ext.moe_layers": [True] * 47 + [False],
    }
    read = LlamaConfig.from_gguf(FOREIGN_LLAMA4 | changes, {"output.weight"})
    assert (read.attention_chunk_size, read.floor_scale, read.attn_scale) == (64, 5, 0.25)
    assert not read.use_qk_norm and not read.attn_temperature_tuning
    assert read.rope_layers == (True, False) * 24 and read.layer_kinds == ("chunked", "global") * 24
    assert read.moe_layers[-1] is False


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("general.architecture", "llama5", "architecture 'llama5'"),
        ("general.architecture", 4, "architecture 4"),
        ("llama4.block_count", None, "llama4.block_count.*missing"),
        ("llama4.block_count", 2**40, "num_hidden_layers must be"),
        ("llama4.block_count", "48", "llama4.block_count.*integer"),
        ("llama4.block_count", True, "llama4.block_count.*integer"),
        ("llama4.block_count", 0, "claims 0 layers"),
        ("llama4.expert_count", -1, "num_local_experts must be"),
        ("llama4.expert_count", 2**20, "num_local_experts must be"),
        ("llama4.expert_count", 16.0, "llama4.expert_count.*integer"),
        ("llama4.expert_used_count", 17, "num_experts_per_tok must be"),
        ("llama4.expert_used_count", 0, "num_experts_per_tok must be"),
        ("llama4.expert_used_count", None, "llama4.expert_used_count.*missing"),
        ("llama4.expert_feed_forward_length", 2**40, "intermediate_size must be"),
        ("llama4.expert_shared_feed_forward_length", 4096, "expert_shared_feed_forward_length"),
        ("llama4.expert_gating_func", 1, "expert_gating_func"),
        ("llama4.expert_weights_scale", 2.5, "expert_weights_scale"),
        ("llama4.expert_weights_norm", True, "expert_weights_norm"),
        ("llama4.expert_shared_count", 2, "expert_shared_count"),
        ("llama4.expert_group_count", 2, "expert_group_count.*unknown"),
        ("llama4.interleave_moe_layer_step", -1, "interleave_moe_layer_step"),
        ("llama4.rope.scaling.type", "yarn", "RoPE scaling 'yarn'"),
        ("llama4.rope.scaling.yarn_log_multiplier", 0.1, "yarn_log_multiplier"),
        ("llama4.rope.dimension_count", 64, "rotation of 64 of 128"),
        ("llama4.attention.clamp_kqv", 1.0, "clamp_kqv"),
        ("llama4.attention.temperature_scale", 1.0, "temperature_scale"),
        ("llama4.attn_logit_softcapping", 1.0, "softcapping"),
        ("llama4.attention.head_count", [1, 2], "head_count.*integer"),
        ("llama4.attention.layer_norm_rms_epsilon", math.nan, "rms_norm_eps must be"),
        ("llama4.attention.layer_norm_rms_epsilon", "1e-5", "epsilon.*number"),
        ("llama4.context_length", 2**63, "max_position_embeddings must be"),
        ("llama_ext.layer_types", ["x"], "llama_ext.layer_types.*unknown to this version"),
        ("llama_ext.layer_kinds", ["round"] * 48, "unknown kind"),
        ("llama_ext.layer_kinds", "global", "llama_ext.layer_kinds.*list"),
        ("llama_ext.layer_kinds", ["global"], "1 layer kinds for 48 layers"),
        ("llama_ext.rope_layers", [2] * 48, "rope_layers.*true and false"),
        ("llama_ext.rope_layers", [0.5] * 48, "rope_layers.*true and false"),
        ("llama_ext.moe_layers", [True] * 49, "49 moe layers for 48 layers"),
        ("llama_ext.model_type", "gpt2", "model_type 'gpt2' is unknown"),
        ("llama_ext.expert_scoring", "dice", "expert_scoring 'dice' is unknown"),
        ("llama_ext.attn_scale", "much", "llama_ext.attn_scale.*number"),
        ("llama_ext.attn_scale", "nan", "attn_scale must be"),
        ("llama_ext.rms_norm_eps", "1e999", "rms_norm_eps must be"),
        ("llama_ext.floor_scale", "8192", "llama_ext.floor_scale.*integer"),
        ("llama_ext.use_qk_norm", 1, "llama_ext.use_qk_norm.*true or false"),
        ("llama_ext.rope_scaling.factor", 8.0, "rope_scaling.low_freq_factor.*missing"),
    ],
)
def test_hostile_keys(key: str, value: object, said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        LlamaConfig.from_gguf(FOREIGN_LLAMA4 | {key: value}, {"output.weight"})
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message and len(message) < 400


def test_experts_that_a_mixtral_has_not() -> None:
    for key, value in (("expert_gating_func", 2), ("expert_weights_norm", False), ("expert_shared_count", 1)):
        with pytest.raises(CheckpointError, match=key):
            LlamaConfig.from_gguf(FOREIGN_MIXTRAL | {f"llama.{key}": value}, {"output.weight"})
    fine = {
        "llama.expert_gating_func": 1,
        "llama.expert_weights_norm": True,
        "llama.expert_feed_forward_length": 14_336,
    }
    assert LlamaConfig.from_gguf(FOREIGN_MIXTRAL | fine, {"output.weight"}).num_local_experts == 8
