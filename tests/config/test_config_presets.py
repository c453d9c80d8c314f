"""The table of released models: exact totals, published numbers, names as people type them."""

from __future__ import annotations

from typing import Any

import config_files as files
import pytest
import torch
import transformers
from models import tiny_config, weight_shapes

from llama_ext.config import LlamaConfig
from llama_ext.config.layout import matrices
from llama_ext.config.presets import PRESETS, find_preset
from llama_ext.errors import OptionError

# As counted by those who published them.
EXACT = {
    "llama-1-7b": 6_738_415_616,
    "llama-1-13b": 13_015_864_320,
    "llama-1-33b": 32_528_943_616,
    "llama-1-65b": 65_285_660_672,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "tinyllama-1.1b": 1_100_048_384,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.2": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_620_634_112,
}


@pytest.mark.parametrize("name", EXACT)
def test_exact_totals(name: str) -> None:
    assert PRESETS[name].config.parameters()[0] == EXACT[name]


@pytest.mark.parametrize("name", PRESETS)
def test_published_numbers(name: str) -> None:
    preset = PRESETS[name]
    total, active = preset.config.parameters()
    total += preset.vision_parameters
    assert (preset.vision_parameters > 0) == (preset.generation == "Llama 4" and preset.released)
    assert total / 1e9 == pytest.approx(preset.published_total, rel=0.01)
    # "17B active" of Llama 4 is published in whole thousands of millions, and 17.17 is what there is
    assert active / 1e9 == pytest.approx(preset.published_active, rel=0.01) or round(active / 1e9) == 17


@pytest.mark.parametrize("name", files.RELEASED)
def test_totals_are_those_of_transformers_modules(name: str) -> None:
    values: dict[str, Any] = dict(files.RELEASED[name])
    values = dict(values.get("text_config", values))
    kind = {"llama": "Llama", "mistral": "Mistral", "mixtral": "Mixtral", "llama4_text": "Llama4Text"}[
        values["model_type"]
    ]
    config = getattr(transformers, f"{kind}Config").from_dict(values)
    with torch.device("meta"):
        model = getattr(transformers, f"{kind.removesuffix('Text')}ForCausalLM")(config)
    assert PRESETS[name].config.parameters()[0] == sum(p.numel() for p in model.parameters())


def test_the_vision_tower() -> None:
    config = transformers.Llama4VisionConfig(
        hidden_size=1408, num_hidden_layers=34, intermediate_size=5632, vision_output_dim=4096, image_size=336,
        projector_input_dim=4096, projector_output_dim=4096,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.models.llama4.modeling_llama4.Llama4VisionModel(config)
    count = sum(p.numel() for p in model.parameters()) + 4096 * 5120  # the projector into the text model
    assert count == PRESETS["llama-4-scout"].vision_parameters == PRESETS["llama-4-maverick"].vision_parameters


def test_every_weight_is_counted() -> None:
    for config in (tiny_config(), tiny_config(tie_word_embeddings=True, head_dim=10), tiny_config(sliding_window=3)):
        expected = sum(rows * cols for rows, cols in weight_shapes(config).values())
        assert config.parameters() == (expected, expected)


def test_active_parameters() -> None:
    base = {"num_local_experts": 8, "num_experts_per_tok": 3, "moe_layers": (True, False, True)}
    config = tiny_config(**base, shared_expert=True, intermediate_size_mlp=20)
    expert = 3 * 32 * 48
    total, active = config.parameters()
    assert total - active == 2 * (8 - 3) * expert
    dense = tiny_config(intermediate_size=20).parameters()[0]
    assert active == dense - 2 * 3 * 32 * 20 + 2 * ((3 + 1) * expert + 8 * 32)
    assert {m.kind for m in matrices(config)} == {"vector", "router", "expert", "matrix"}


def test_what_makes_a_llama4() -> None:
    scout, maverick = PRESETS["llama-4-scout"].config, PRESETS["llama-4-maverick"].config
    assert scout.rope_layers[:4] == (True, True, True, False) and scout.layer_kinds.count("global") == 12
    assert all(scout.moe_layers) and maverick.moe_layers[:3] == (False, True, False)
    assert scout.use_qk_norm and not maverick.use_qk_norm
    assert scout.rope_scaling is not None and maverick.rope_scaling is None
    assert scout.shared_expert and scout.expert_scoring == "sigmoid"
    behemoth = PRESETS["llama-4-behemoth"]
    assert not behemoth.released and "never released" in behemoth.note
    assert all(preset.released for preset in PRESETS.values() if preset is not behemoth)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("llama-4-scout", "llama-4-scout"),
        ("Llama-4-Scout", "llama-4-scout"),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "llama-4-scout"),
        ("meta-llama/Llama-4-Maverick-17B-128E", "llama-4-maverick"),
        ("llama_3.1_8b", "llama-3.1-8b"),
        ("llama 3.1 8b instruct", "llama-3.1-8b"),
        ("Llama3.1-8B-Instruct", "llama-3.1-8b"),
        ("Meta-Llama-3-70B", "llama-3-70b"),
        ("llama-7b", "llama-1-7b"),
        ("llama-30b", "llama-1-33b"),
        ("Llama-2-7b-chat-hf", "llama-2-7b"),
        ("Llama-3.3-70B-Instruct", "llama-3.3-70b"),
        ("mistralai/Mistral-7B-Instruct-v0.2", "mistral-7b-v0.2"),
        ("Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b"),
        ("mixtral-8x22b", "mixtral-8x22b"),
        ("HuggingFaceTB/SmolLM2-1.7B-Instruct", "smollm2-1.7b"),
        ("TinyLlama-1.1B-Chat-v1.0", "tinyllama-1.1b"),
        ("scout", "llama-4-scout"),
    ],
)
def test_names(typed: str, name: str) -> None:
    assert find_preset(typed).name == name


@pytest.mark.parametrize("name", PRESETS)
def test_each_name_finds_itself(name: str) -> None:
    assert find_preset(name) is PRESETS[name] and PRESETS[name].config.name == name


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("llama-4-scot", "close are llama-4-scout"),
        ("llama-3.1-9b", "llama-3.1-8b"),
        ("mixtral-8x8b", "mixtral-8x7b"),
        ("gpt-2", "known are llama-1-7b"),
        ("", "known are"),
        ("llama-3.2-11b-vision-instruct", "vision model, which is not served"),
        ("Llama-3.2-90B-Vision", "vision model, which is not served"),
    ],
)
def test_unknown_names(typed: str, said: str) -> None:
    with pytest.raises(OptionError, match=said) as caught:
        find_preset(typed)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "gpt"}, "model_type 'gpt' is unknown"),
        ({"expert_scoring": "tanh"}, "expert_scoring 'tanh' is unknown"),
        ({"num_local_experts": 4}, "num_experts_per_tok must be from 1 to its 4 experts, is 0"),
        ({"num_local_experts": 4, "num_experts_per_tok": 5}, "num_experts_per_tok must be from 1 to its 4 experts"),
        ({"num_experts_per_tok": 1}, "num_local_experts is 0"),
        ({"shared_expert": True}, "num_local_experts is 0"),
        ({"moe_layers": (True, False, False)}, "num_local_experts is 0"),
        ({"num_local_experts": 4, "num_experts_per_tok": 1, "moe_layers": (True,)}, "1 moe layers for 3 layers"),
        ({"moe_layers": (1, 0, 0)}, "moe_layers must be a list of true and false"),
        ({"layer_kinds": ("global", 1, "global")}, "layer_kinds must be a list of names"),
        ({"num_local_experts": 65_537, "num_experts_per_tok": 1}, "num_local_experts must be"),
        (
            {"num_local_experts": 65_536, "num_experts_per_tok": 1, "num_hidden_layers": 10_000},
            r"10,000 layers of 65,536 experts .* more than the 262,144",
        ),
        ({"intermediate_size_mlp": -1}, "intermediate_size_mlp must be"),
        ({"hidden_size": True}, "hidden_size must be an integer"),
        ({"hidden_size": 32.0}, "hidden_size must be an integer"),
        ({"hidden_size": "32"}, "hidden_size must be an integer"),
        ({"rope_theta": "1e4"}, "rope_theta must be a number"),
        ({"use_qk_norm": 1}, "use_qk_norm must be true or false"),
        ({"rope_scaling": {"factor": 8}}, "rope_scaling.*no RopeScaling"),
        ({"head_dim": 7}, "head_dim 7 is odd"),
    ],
)
def test_a_config_that_contradicts_itself(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tiny_config(**changes)


def test_experts_everywhere_unless_said() -> None:
    config = tiny_config(num_local_experts=4, num_experts_per_tok=4)
    assert config.moe_layers == (True,) * 3 and isinstance(config, LlamaConfig)
    assert tiny_config().moe_layers == (False,) * 3
