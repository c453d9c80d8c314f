"""One description of a Llama, whatever file it came from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
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

_MOST_EXPERTS = 2**18
"""Of all layers together. Each has three matrices with a name; released models have up to 3,072 experts."""

_FLAGS = ("tie_word_embeddings", "use_qk_norm", "attn_temperature_tuning", "shared_expert")

_SCALING_INTEGERS: Mapping[str, tuple[int, int]] = {"original_max_position_embeddings": (1, 2**32)}

_SCALING_NUMBERS: Mapping[str, tuple[float, float]] = {
    "factor": (1e-6, 1e6),
    "low_freq_factor": (1e-6, 1e6),
    "high_freq_factor": (1e-6, 1e6),
}


def _check_numbers(
    config: Any,
    prefix: str,
    integers: Mapping[str, tuple[int, int]],
    numbers: Mapping[str, tuple[float, float]],
) -> None:
    """Types and ranges of a dataclass's fields; integers among `numbers` become floats."""
    for name, (least, most) in (*integers.items(), *numbers.items()):
        value: Any = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int if name in integers else int | float):
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
        for name in ("layer_kinds", "rope_layers", "moe_layers"):
            value = getattr(self, name)
            entries = str if name == "layer_kinds" else bool
            if not isinstance(value, tuple | list) or not all(isinstance(entry, entries) for entry in value):
                what = "names" if name == "layer_kinds" else "true and false"
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
        for kind, size in (("chunked", "attention_chunk_size"), ("sliding", "sliding_window")):
            if kind in self.layer_kinds and not getattr(self, size):
                raise CheckpointError(f"the config has {kind} layers, but their size, {size}, is 0.")

    def _check_experts(self) -> None:
        experts, chosen = self.num_local_experts, self.num_experts_per_tok
        if experts and not 1 <= chosen <= experts:
            raise CheckpointError(
                f"the config's num_experts_per_tok must be from 1 to its {experts:,} experts, is {chosen:,}; "
                "convert the model again."
            )
        if (total := experts * sum(self.moe_layers)) > _MOST_EXPERTS:
            raise CheckpointError(
                f"the config's {sum(self.moe_layers):,} layers of {experts:,} experts (num_local_experts) have "
                f"{total:,} of them, more than the {_MOST_EXPERTS:,} that can be served; convert the model again."
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

    def parameters(self) -> tuple[int, int]:
        """(total, active): the weights of the model, and of them those that one token uses.

        Active are the chosen experts of each layer and everything that all tokens share: attention, routers, shared
        experts, norms, the embedding and the head, both as a whole (of the embedding a token reads one row). So does
        "12.9B active" of Mixtral 8x7B count. A tied head counts once, and there is no vision tower.
        """
        from llama_ext.config.layout import matrices

        found = matrices(self)
        return (
            sum(m.rows * m.cols * m.count for m in found),
            sum(m.rows * m.cols * m.active for m in found),
        )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> LlamaConfig:
        """From the content of a Hugging Face `config.json`.

        Served are the model types llama, mistral, mixtral, llama4 (its text model) and llama4_text, as old and new
        versions of transformers write them (`rope_theta` and `rope_scaling`, or `rope_parameters`; `rope_type` or
        `type`).

        Raises:
            CheckpointError: another model type, a missing or mistyped field, a feature that is not served, or an
                unknown field whose name says that it may change the result.
        """
        from llama_ext.config.huggingface import from_hf

        return from_hf(config)

    @classmethod
    def from_meta(
        cls,
        params: Mapping[str, Any],
        tensors: Mapping[str, Sequence[int]] | None = None,
        *,
        max_position_embeddings: int | None = None,
    ) -> LlamaConfig:
        """From the content of Meta's `params.json`, of Llama 1 to Llama 4.

        Args:
            params: the file's content.
            tensors: name -> shape of the checkpoint's tensors, whole (not of a shard), as far as they are known. They
                tell the vocabulary's size and whether the head is the embedding, which the file does not.
            max_position_embeddings: positions that the model was trained for, which the file does not tell either.
                None: those of the released models of this kind (`llama_ext.config.meta`).

        Raises:
            CheckpointError: a missing or mistyped field, a feature that is not served, or an unknown field.
        """
        from llama_ext.config.meta import from_meta

        return from_meta(params, tensors, max_position_embeddings)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, object], tensor_names: Set[str]) -> LlamaConfig:
        """From a GGUF file's metadata (keys ``llama.*`` or ``llama4.*``, and ``llama_ext.*``) and its tensors' names.

        `rope_scaling` stays None where the scaling lies in the tensor `rope_freqs.weight` alone, as factors; with it,
        the tensor must not count as well.

        Raises:
            CheckpointError: another architecture, a missing or mistyped key, or a feature that is not served.
        """
        from llama_ext.config.gguf import from_gguf

        return from_gguf(metadata, tensor_names)

    def to_gguf(self) -> dict[str, object]:
        """The metadata that `from_gguf` reads as this config: standard keys first, then ``llama_ext.*``.

        Values are int, float, bool, str and lists of them. The head is tied where the file has no `output.weight`.
        Keys ``llama_ext.*`` that a file had before are no longer valid.
        """
        from llama_ext.config.gguf import to_gguf

        return to_gguf(self)
