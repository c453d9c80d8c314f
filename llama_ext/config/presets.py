"""Every released model of the family, by the name that people type.

The table holds what the models' own `config.json` files say. "total" and "active" are the published numbers of
parameters (thousands of millions), for people and for tests; those of Llama 4 include a vision tower, which the config
does not describe.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from llama_ext.config.llama_config import LlamaConfig, RopeScaling
from llama_ext.errors import OptionError

__all__ = ["PRESETS", "Preset", "find_preset"]

# What the models of a generation share; a row of the table adds to it.
_GENERATIONS: Mapping[str, Mapping[str, Any]] = {
    "Llama 1": {"vocab_size": 32_000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
    "Llama 2": {"vocab_size": 32_000, "max_position_embeddings": 4096},
    "Llama 3": {"vocab_size": 128_256, "max_position_embeddings": 8192, "rope_theta": 5e5},
    "Llama 3.1": {
        "vocab_size": 128_256,
        "max_position_embeddings": 131_072,
        "rope_theta": 5e5,
        "rope_scaling": RopeScaling(8.0, 1.0, 4.0, 8192),
    },
    "Llama 3.2": {
        "vocab_size": 128_256,
        "max_position_embeddings": 131_072,
        "rope_theta": 5e5,
        "rope_scaling": RopeScaling(32.0, 1.0, 4.0, 8192),
        "tie_word_embeddings": True,
    },
    "Llama 4": {
        "model_type": "llama4",
        "vocab_size": 202_048,
        "head_dim": 128,
        "rope_theta": 5e5,
        "attention_chunk_size": 8192,
        "no_rope_layer_interval": 4,
        "attn_temperature_tuning": True,
        "num_experts_per_tok": 1,
        "shared_expert": True,
        "expert_scoring": "sigmoid",
    },
    "SmolLM2": {"vocab_size": 49_152, "max_position_embeddings": 8192, "tie_word_embeddings": True},
    "TinyLlama": {"vocab_size": 32_000, "max_position_embeddings": 2048},
    "Mistral": {"model_type": "mistral", "vocab_size": 32_000, "max_position_embeddings": 32_768},
    "Mixtral": {
        "model_type": "mixtral",
        "vocab_size": 32_000,
        "max_position_embeddings": 32_768,
        "rope_theta": 1e6,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
}

_NO_RELEASE = (
    "announced and never released: there are no weights; 16 experts, 288B active of nearly 2T are announced, all other "
    "sizes here are assumed so that they make these numbers"
)
# 34 layers of 1,408, patches of 14 in pictures of 336, and the projector: `vision_config` of Scout and Maverick.
_VISION = 871_932_416
_SCOUT = {
    "vision_parameters": _VISION,
    "max_position_embeddings": 10_485_760,
    "rope_scaling": RopeScaling(16.0, 1.0, 1.0, 8192),
    "use_qk_norm": True,
    "num_local_experts": 16,
    "intermediate_size_mlp": 16_384,
}
_MAVERICK = {
    "vision_parameters": _VISION,
    "max_position_embeddings": 1_048_576,
    "num_local_experts": 128,
    "interleave_moe_layer_step": 2,
    "intermediate_size_mlp": 16_384,
}
_BEHEMOTH = {"max_position_embeddings": 10_485_760, "num_local_experts": 16, "note": _NO_RELEASE}

# name, generation, total, active, hidden, intermediate, layers, heads, key-value heads, what differs
_TABLE: tuple[tuple[str, str, float, float, int, int, int, int, int, Mapping[str, Any]], ...] = (
    ("llama-1-7b", "Llama 1", 6.7, 6.7, 4096, 11_008, 32, 32, 32, {}),
    ("llama-1-13b", "Llama 1", 13.0, 13.0, 5120, 13_824, 40, 40, 40, {}),
    ("llama-1-33b", "Llama 1", 32.5, 32.5, 6656, 17_920, 60, 52, 52, {}),
    ("llama-1-65b", "Llama 1", 65.2, 65.2, 8192, 22_016, 80, 64, 64, {"rms_norm_eps": 1e-5}),
    ("llama-2-7b", "Llama 2", 6.7, 6.7, 4096, 11_008, 32, 32, 32, {}),
    ("llama-2-13b", "Llama 2", 13.0, 13.0, 5120, 13_824, 40, 40, 40, {}),
    ("llama-2-70b", "Llama 2", 69.0, 69.0, 8192, 28_672, 80, 64, 8, {}),
    ("llama-3-8b", "Llama 3", 8.03, 8.03, 4096, 14_336, 32, 32, 8, {}),
    ("llama-3-70b", "Llama 3", 70.6, 70.6, 8192, 28_672, 80, 64, 8, {}),
    ("llama-3.1-8b", "Llama 3.1", 8.03, 8.03, 4096, 14_336, 32, 32, 8, {}),
    ("llama-3.1-70b", "Llama 3.1", 70.6, 70.6, 8192, 28_672, 80, 64, 8, {}),
    ("llama-3.1-405b", "Llama 3.1", 406, 406, 16_384, 53_248, 126, 128, 8, {}),
    ("llama-3.2-1b", "Llama 3.2", 1.23, 1.23, 2048, 8192, 16, 32, 8, {}),
    ("llama-3.2-3b", "Llama 3.2", 3.21, 3.21, 3072, 8192, 28, 24, 8, {}),
    ("llama-3.3-70b", "Llama 3.1", 70.6, 70.6, 8192, 28_672, 80, 64, 8, {}),
    ("llama-4-scout", "Llama 4", 109, 17, 5120, 8192, 48, 40, 8, _SCOUT),
    ("llama-4-maverick", "Llama 4", 400, 17, 5120, 8192, 48, 40, 8, _MAVERICK),
    ("llama-4-behemoth", "Llama 4", 2000, 288, 16_384, 24_064, 96, 128, 8, _BEHEMOTH),
    ("smollm2-135m", "SmolLM2", 0.135, 0.135, 576, 1536, 30, 9, 3, {"rope_theta": 1e5}),
    ("smollm2-360m", "SmolLM2", 0.362, 0.362, 960, 2560, 32, 15, 5, {"rope_theta": 1e5}),
    ("smollm2-1.7b", "SmolLM2", 1.71, 1.71, 2048, 8192, 24, 32, 32, {"rope_theta": 1.3e5}),
    ("tinyllama-1.1b", "TinyLlama", 1.10, 1.10, 2048, 5632, 22, 32, 4, {}),
    ("mistral-7b-v0.1", "Mistral", 7.24, 7.24, 4096, 14_336, 32, 32, 8, {"sliding_window": 4096}),
    ("mistral-7b-v0.2", "Mistral", 7.24, 7.24, 4096, 14_336, 32, 32, 8, {"rope_theta": 1e6}),
    ("mistral-7b-v0.3", "Mistral", 7.25, 7.25, 4096, 14_336, 32, 32, 8, {"rope_theta": 1e6, "vocab_size": 32_768}),
    ("mixtral-8x7b", "Mixtral", 46.7, 12.9, 4096, 14_336, 32, 32, 8, {}),
    ("mixtral-8x22b", "Mixtral", 141, 39, 6144, 16_384, 56, 48, 8, {"max_position_embeddings": 65_536}),
)

# Names that are not in the table, and why not.
_NOT_SERVED = {
    "llama-3.2-11b": "a vision model, which is not served; its text part is llama-3.1-8b",
    "llama-3.2-90b": "a vision model, which is not served; its text part is llama-3.1-70b",
}


@dataclass(frozen=True, slots=True)
class Preset:
    """A model by its name.

    Attributes:
        name: a key of `PRESETS`.
        generation: "Llama 3.1", "Mixtral", ...
        config: what it computes.
        published_total, published_active: parameters as its makers give them, in thousands of millions.
        released: whether there are weights.
        note: what to know of it, or "".
        vision_parameters: of the vision tower and its projector, which `config`, the text model, leaves out.
    """

    name: str
    generation: str
    config: LlamaConfig
    published_total: float
    published_active: float
    released: bool = True
    note: str = ""
    vision_parameters: int = 0


def _preset(
    name: str,
    generation: str,
    total: float,
    active: float,
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    kv_heads: int,
    more: Mapping[str, Any],
) -> Preset:
    fields = {"head_dim": hidden // heads} | dict(_GENERATIONS[generation]) | dict(more)
    interval, step = fields.pop("no_rope_layer_interval", 0), fields.pop("interleave_moe_layer_step", 1)
    note, vision = fields.pop("note", ""), fields.pop("vision_parameters", 0)
    if interval:
        rotates = tuple((layer + 1) % interval != 0 for layer in range(layers))
        fields["rope_layers"] = rotates
        fields["layer_kinds"] = tuple("chunked" if entry else "global" for entry in rotates)
    if fields.get("num_local_experts"):
        fields["moe_layers"] = tuple((layer + 1) % step == 0 for layer in range(layers))
    config = LlamaConfig(
        name=name,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        **fields,
    )
    if vision:
        note = "its text model is served; the published total counts the vision tower too"
    return Preset(name, generation, config, total, active, note != _NO_RELEASE, note, vision)


PRESETS: Mapping[str, Preset] = MappingProxyType({row[0]: _preset(*row) for row in _TABLE})
"""Name -> preset, oldest first."""

_ALIASES = {
    **{f"llama-{size}": f"llama-1-{size}" for size in ("7b", "13b", "33b", "65b")},
    **{"llama-30b": "llama-1-33b", "llama-1-30b": "llama-1-33b"},
    **{"scout": "llama-4-scout", "maverick": "llama-4-maverick", "behemoth": "llama-4-behemoth"},
    **{"tinyllama": "tinyllama-1.1b", "mistral-7b": "mistral-7b-v0.3"},
}
_DECORATIONS = re.compile(
    r"^(.*/)?(meta-)?|-(instruct|chat|base|hf|it|text|vision|17b(-\d+e)?)(?=-|$)|-v1\.0$|(?<=8x7b)-v0\.1$|(?<=8x22b)-v0\.1$"
)


def find_preset(name: str) -> Preset:
    """The preset of a name; case, the publisher and "-instruct" and the like do not count.

    Raises:
        OptionError: there is none; the error lists names that are close.
    """
    plain = re.sub(r"[\s_]+", "-", name.strip().lower())
    while (shorter := _DECORATIONS.sub("", plain)) != plain:
        plain = shorter
    plain = re.sub(r"^llama(?=\d)", "llama-", plain)
    plain = _ALIASES.get(plain, plain)
    if plain in PRESETS:
        return PRESETS[plain]
    if plain in _NOT_SERVED:
        raise OptionError(f"{name!r:.60} is {_NOT_SERVED[plain]}.")
    close = difflib.get_close_matches(plain, [*PRESETS, *_ALIASES], n=4, cutoff=0.6)
    close = list(dict.fromkeys(_ALIASES.get(entry, entry) for entry in close))
    hint = f"close are {', '.join(close)}" if close else f"known are {', '.join(PRESETS)}"
    raise OptionError(f"{name!r:.60} is the name of no model; {hint}.")
