"""One description of a Llama, whatever file it came from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llama_ext.errors import CheckpointError

__all__ = ["LlamaConfig", "RopeScaling"]


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Llama 3.1's change of the rotation frequencies (`rope_type` "llama3" in a Hugging Face config).

    Wavelengths longer than ``original_max_position_embeddings / low_freq_factor`` are stretched by `factor`, those
    shorter than ``... / high_freq_factor`` are kept, and those between are blended.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


_RANGES: Mapping[str, tuple[float, float]] = {
    "hidden_size": (1, 2**24),
    "intermediate_size": (1, 2**24),
    "num_hidden_layers": (1, 10_000),
    "num_attention_heads": (1, 65_536),
    "num_key_value_heads": (1, 65_536),
    "head_dim": (1, 65_536),
    "vocab_size": (1, 2**22),
    "max_position_embeddings": (1, 2**32),
    "attention_chunk_size": (0, 2**32),
    "sliding_window": (0, 2**32),
    "floor_scale": (1, 2**31 - 1),
    "rms_norm_eps": (1e-30, 1),
    "rope_theta": (1e-6, 1e30),
}


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """Names are those of a Hugging Face `config.json`; units are elements, positions and layers.

    `layer_kinds` has one entry a layer: "global", "chunked" (Llama 4's local layers, `attention_chunk_size` positions)
    or "sliding" (Mistral, `sliding_window` positions). `rope_layers` says which layers rotate queries and keys (Hugging
    Face's `no_rope_layers`, whose name says the opposite of its content).
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    layer_kinds: tuple[str, ...] = ()
    rope_layers: tuple[bool, ...] = ()
    attention_chunk_size: int = 0
    sliding_window: int = 0
    use_qk_norm: bool = False
    attn_temperature_tuning: bool = False
    floor_scale: int = 8192
    attn_scale: float = 0.1
    model_type: str = "llama"
    num_local_experts: int = 0
    num_experts_per_tok: int = 0
    moe_layers: tuple[bool, ...] = ()
    intermediate_size_mlp: int = 0
    shared_expert: bool = False
    expert_scoring: str = "softmax"
    name: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Everything is compared with what the compiled part takes before anything of its size is made.
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if not least <= value <= most:  # nor a NaN
                raise CheckpointError(
                    f"the config's {name} must be from {least:,} to {most:,}, is {value}; convert the model again."
                )
        set_field = object.__setattr__
        if not self.layer_kinds:
            kind = "sliding" if self.sliding_window else "global"
            set_field(self, "layer_kinds", (kind,) * self.num_hidden_layers)
        if not self.rope_layers:
            set_field(self, "rope_layers", (True,) * self.num_hidden_layers)
        if not self.moe_layers:
            set_field(self, "moe_layers", (bool(self.num_local_experts),) * self.num_hidden_layers)
        if self.num_attention_heads % self.num_key_value_heads:
            raise CheckpointError(
                f"the config's {self.num_attention_heads} attention heads cannot share "
                f"{self.num_key_value_heads} key-value heads evenly."
            )
        if len(self.layer_kinds) != self.num_hidden_layers or len(self.rope_layers) != self.num_hidden_layers:
            raise CheckpointError(
                f"the config lists {len(self.layer_kinds)} layer kinds and {len(self.rope_layers)} rope layers "
                f"for {self.num_hidden_layers} layers."
            )
        for kind, size in (("chunked", self.attention_chunk_size), ("sliding", self.sliding_window)):
            if kind in self.layer_kinds and size <= 0:
                raise CheckpointError(f"the config has {kind} layers, but their size is {size}.")
        unknown = set(self.layer_kinds) - {"global", "chunked", "sliding"}
        if unknown:
            raise CheckpointError(f"the config has layers of unknown kind {sorted(unknown)}.")

    def inverse_frequencies(self) -> list[float]:
        """The rotation frequencies, radians a position, of the head_dim / 2 pairs (Su et al. 2021), scaled."""
        half = self.head_dim // 2
        frequencies = [self.rope_theta ** (-2.0 * i / self.head_dim) for i in range(half)]
        if self.rope_scaling is None:
            return frequencies
        s = self.rope_scaling
        low_wavelength = s.original_max_position_embeddings / s.low_freq_factor
        high_wavelength = s.original_max_position_embeddings / s.high_freq_factor
        scaled = []
        for frequency in frequencies:
            wavelength = 2 * math.pi / frequency
            if wavelength < high_wavelength:
                scaled.append(frequency)
            elif wavelength > low_wavelength or s.low_freq_factor == s.high_freq_factor:
                scaled.append(frequency / s.factor)
            else:
                blend = (s.original_max_position_embeddings / wavelength - s.low_freq_factor) / (
                    s.high_freq_factor - s.low_freq_factor
                )
                scaled.append((1 - blend) * frequency / s.factor + blend * frequency)
        return scaled

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, object], tensor_names: frozenset[str] | set[str]) -> LlamaConfig:
        """From a GGUF file's metadata (keys ``llama.*``) and the names of its tensors.

        Raises:
            CheckpointError: another architecture, a missing or mistyped key, or a feature that is not served.
        """
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str) or architecture != "llama":
            raise CheckpointError(
                f"this GGUF holds a model of architecture {architecture!r:.60}; only 'llama' is served so far."
            )

        def get(key: str, kind: type[Any], default: Any = None) -> Any:
            value = metadata.get(f"llama.{key}", default)
            if value is None:
                raise CheckpointError(f"the GGUF lacks the key 'llama.{key}'; convert the model again.")
            if kind is float and isinstance(value, int) and not isinstance(value, bool):
                value = float(value)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise CheckpointError(
                    f"the GGUF's key 'llama.{key}' must be {'an integer' if kind is int else 'a number'}, "
                    f"is {value!r:.60}."
                )
            return value

        if get("expert_count", int, 0):
            raise CheckpointError("this GGUF holds a mixture of experts, which is not served yet.")
        if metadata.get("llama.attention.causal", True) is not True or get("pooling_type", int, 0):
            raise CheckpointError(
                "this GGUF holds a model of embeddings ('llama.attention.causal', 'llama.pooling_type'), "
                "which is not served; use one that generates text."
            )
        layers = get("block_count", int)
        heads = get("attention.head_count", int)
        hidden = get("embedding_length", int)
        if layers <= 0 or heads <= 0:
            raise CheckpointError(
                f"the GGUF claims {layers} layers and {heads} attention heads; convert the model again."
            )
        head_dim = get("attention.key_length", int, hidden // heads)
        if get("attention.value_length", int, head_dim) != head_dim:
            raise CheckpointError(
                "keys and values of different length ('llama.attention.value_length') are not served."
            )
        if get("rope.dimension_count", int, head_dim) != head_dim:
            raise CheckpointError(
                f"rotation of {get('rope.dimension_count', int)} of {head_dim} dimensions "
                "('llama.rope.dimension_count') is not served."
            )
        scaling = metadata.get("llama.rope.scaling.type", "none")
        if not isinstance(scaling, str) or scaling not in ("none", ""):
            raise CheckpointError(
                f"RoPE scaling {scaling!r:.60} ('llama.rope.scaling.type') is not served; "
                "Llama 3's scaling comes as the tensor 'rope_freqs.weight'."
            )
        for key in ("rope.scale_linear", "rope.scaling.factor", "rope.scaling.attn_factor"):
            if (factor := get(key, float, 1.0)) != 1:
                raise CheckpointError(
                    f"RoPE scaling by {factor:g} ('llama.{key}') is not served; "
                    "Llama 3's scaling comes as the tensor 'rope_freqs.weight'."
                )
        tokens = metadata.get("tokenizer.ggml.tokens")
        vocab = metadata.get("llama.vocab_size", len(tokens) if isinstance(tokens, list) else None)
        if not isinstance(vocab, int) or isinstance(vocab, bool):
            raise CheckpointError("the GGUF says nothing of the vocabulary's size; convert the model again.")
        return cls(
            hidden_size=hidden,
            intermediate_size=get("feed_forward_length", int),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=get("attention.head_count_kv", int, heads),
            head_dim=head_dim,
            vocab_size=vocab,
            max_position_embeddings=get("context_length", int),
            rms_norm_eps=get("attention.layer_norm_rms_epsilon", float),
            rope_theta=get("rope.freq_base", float, 10000.0),
            sliding_window=get("attention.sliding_window", int, 0),
            tie_word_embeddings="output.weight" not in tensor_names,
            name=str(metadata.get("general.name", "")),
        )
