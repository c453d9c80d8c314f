"""One description of a Llama, whatever file it came from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llama_ext.errors import CheckpointError

__all__ = ["EXPERT_SCORINGS", "LAYER_KINDS", "MODEL_TYPES", "LlamaConfig", "RopeScaling"]

MODEL_TYPES = ("llama", "llama4", "mistral", "mixtral")

LAYER_KINDS = ("global", "chunked", "sliding")

EXPERT_SCORINGS = ("softmax", "sigmoid")

_INTEGERS: Mapping[str, tuple[int, int]] = {
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
    "num_local_experts": (0, 65_536),
    "num_experts_per_tok": (0, 65_536),
    "intermediate_size_mlp": (0, 2**24),
}

_NUMBERS: Mapping[str, tuple[float, float]] = {
    "rms_norm_eps": (1e-30, 1),
    "rope_theta": (1e-6, 1e30),
    "attn_scale": (0, 1e6),
}

_FLAGS = ("tie_word_embeddings", "use_qk_norm", "attn_temperature_tuning", "shared_expert")

_SCALING_INTEGERS: Mapping[str, tuple[int, int]] = {"original_max_position_embeddings": (1, 2**32)}

_SCALING_NUMBERS: Mapping[str, tuple[float, float]] = {
    "factor": (1e-6, 1e6),
    "low_freq_factor": (1e-6, 1e6),
    "high_freq_factor": (1e-6, 1e6),
}


def _check_numbers(
    config: object,
    prefix: str,
    integers: Mapping[str, tuple[int, int]],
    numbers: Mapping[str, tuple[float, float]],
) -> None:
    """Types and ranges of a dataclass's fields; integers among `numbers` become floats."""
    for name, (least, most) in (*integers.items(), *numbers.items()):
        value = getattr(config, name)
        kinds: tuple[type, ...] = (int,) if name in integers else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise CheckpointError(
                f"{prefix}{name} must be {'an integer' if name in integers else 'a number'} "
                f"from {least:,} to {most:,}, is {value!r:.60}; convert the model again."
            )
        if not least <= value <= most:  # nor a NaN
            raise CheckpointError(
                f"{prefix}{name} must be from {least:,} to {most:,}, is {value!r:.60}; convert the model again."
            )
        if name in numbers:
            object.__setattr__(config, name, float(value))


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Llama 3.1's change of the rotation frequencies (`rope_type` "llama3" in a Hugging Face config).

    Wavelengths longer than ``original_max_position_embeddings / low_freq_factor`` are stretched by `factor`, those
    shorter than ``... / high_freq_factor`` are kept, and those between are blended. Llama 4 Scout has both factors 1:
    there is nothing between.

    Raises:
        CheckpointError: a field of a wrong type or out of range.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        _check_numbers(self, "the RoPE scaling's ", _SCALING_INTEGERS, _SCALING_NUMBERS)
        if self.low_freq_factor > self.high_freq_factor:
            raise CheckpointError(
                f"the RoPE scaling's low_freq_factor {self.low_freq_factor:g} is above its high_freq_factor "
                f"{self.high_freq_factor:g}; convert the model again."
            )


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """Names are those of a Hugging Face `config.json`; units are elements, positions and layers.

    Attributes:
        model_type: one of `MODEL_TYPES`: whose conventions the checkpoint follows.
        intermediate_size: of a feed-forward layer, or of an expert (and of the shared expert) where there are any.
        intermediate_size_mlp: of the dense layers of a mixture of experts (Llama 4); 0: `intermediate_size`.
        layer_kinds: one entry a layer: "global", "chunked" (Llama 4's local layers, `attention_chunk_size`
            positions) or "sliding" (Mistral, `sliding_window` positions). Empty: all of one kind, sliding if there is
            a window.
        rope_layers: which layers rotate queries and keys (Hugging Face's `no_rope_layers`, whose name says the
            opposite of its content). Empty: all.
        use_qk_norm: layers that rotate normalise queries and keys a head (without a weight, after the rotation).
        attn_temperature_tuning: layers that do not rotate multiply the queries of position p by
            ln(floor((p + 1) / floor_scale) + 1) * attn_scale + 1.
        num_local_experts: experts of a mixture-of-experts layer; 0: every layer is dense.
        num_experts_per_tok: how many of them a token is given to. Ties go to the lowest expert index.
        moe_layers: which layers are mixtures. Empty: all where there are experts, none where not.
        shared_expert: every mixture has one more expert, which every token passes, unscaled (Llama 4).
        expert_scoring: "softmax": a softmax over the chosen logits multiplies the experts' outputs (Mixtral);
            "sigmoid": the sigmoid of a chosen logit multiplies its expert's input (Llama 4).
        name: for people; no part of what the model computes.
        extra: for readers of checkpoints; no part of a comparison.

    Raises:
        CheckpointError: a field of a wrong type or out of range, or fields that contradict each other.
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
    name: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    model_type: str = "llama"
    num_local_experts: int = 0
    num_experts_per_tok: int = 0
    moe_layers: tuple[bool, ...] = ()
    intermediate_size_mlp: int = 0
    shared_expert: bool = False
    expert_scoring: str = "softmax"

    def __post_init__(self) -> None:
        # Everything is compared with what the compiled part takes before anything of its size is made.
        _check_numbers(self, "the config's ", _INTEGERS, _NUMBERS)
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise CheckpointError(
                    f"the config's {name} must be true or false, is {getattr(self, name)!r:.60}; "
                    "convert the model again."
                )
        for name, known in (("model_type", MODEL_TYPES), ("expert_scoring", EXPERT_SCORINGS)):
            if getattr(self, name) not in known:
                raise CheckpointError(
                    f"the config's {name} {getattr(self, name)!r:.60} is unknown; it may be {', '.join(known)}."
                )
        if self.rope_scaling is not None and not isinstance(self.rope_scaling, RopeScaling):
            raise CheckpointError(f"the config's rope_scaling {self.rope_scaling!r:.60} is no RopeScaling.")
        self._check_layers()
        if self.num_attention_heads % self.num_key_value_heads:
            raise CheckpointError(
                f"the config's {self.num_attention_heads} attention heads cannot share "
                f"{self.num_key_value_heads} key-value heads evenly."
            )
        if self.head_dim % 2 and any(self.rope_layers):
            raise CheckpointError(
                f"the config's head_dim {self.head_dim} is odd, but rotation takes pairs; convert the model again."
            )
        self._check_experts()

    def _check_layers(self) -> None:
        """Fills the fields of an entry a layer, and checks them."""
        set_field = object.__setattr__
        if not self.layer_kinds:
            kind = "sliding" if self.sliding_window else "global"
            set_field(self, "layer_kinds", (kind,) * self.num_hidden_layers)
        if not self.rope_layers:
            set_field(self, "rope_layers", (True,) * self.num_hidden_layers)
        if not self.moe_layers:
            set_field(self, "moe_layers", (self.num_local_experts > 0,) * self.num_hidden_layers)
        for name, kind in (("layer_kinds", str), ("rope_layers", bool), ("moe_layers", bool)):
            value = getattr(self, name)
            if not isinstance(value, tuple | list) or not all(isinstance(entry, kind) for entry in value):
                what = "names" if kind is str else "true and false"
                raise CheckpointError(f"the config's {name} must be a list of {what}, is {value!r:.60}.")
            set_field(self, name, tuple(value))
            if len(value) != self.num_hidden_layers:
                raise CheckpointError(
                    f"the config lists {len(value)} {name.replace('_', ' ')} for {self.num_hidden_layers} layers."
                )
        unknown = set(self.layer_kinds) - set(LAYER_KINDS)
        if unknown:
            raise CheckpointError(
                f"the config has layers of unknown kind {sorted(unknown)!r:.60}; kinds are {', '.join(LAYER_KINDS)}."
            )
        for kind, name in (("chunked", "attention_chunk_size"), ("sliding", "sliding_window")):
            if kind in self.layer_kinds and not getattr(self, name):
                raise CheckpointError(f"the config has {kind} layers, but their size, {name}, is 0.")

    def _check_experts(self) -> None:
        experts, chosen = self.num_local_experts, self.num_experts_per_tok
        if experts and not 1 <= chosen <= experts:
            raise CheckpointError(
                f"the config's num_experts_per_tok must be from 1 to its {experts:,} experts, is {chosen:,}; "
                "convert the model again."
            )
        if not experts:
            for name in ("num_experts_per_tok", "shared_expert"):
                if getattr(self, name):
                    raise CheckpointError(
                        f"the config's {name} is {getattr(self, name)}, but num_local_experts is 0; "
                        "convert the model again."
                    )
            if any(self.moe_layers):
                raise CheckpointError(
                    "the config has mixture-of-experts layers (moe_layers), but num_local_experts is 0; "
                    "convert the model again."
                )

    @property
    def dense_intermediate_size(self) -> int:
        """Size of the feed-forward of a layer that is no mixture of experts."""
        return self.intermediate_size_mlp or self.intermediate_size

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
