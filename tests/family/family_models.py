"""Tiny random checkpoints of every generation of the text family, saved by transformers and opened by llama_ext.

The truth is transformers' one full forward pass over all ids, in float32, with eager attention: its own decoding with
a cache is no oracle for Llama 4, whose masks it builds for whole prompts.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from checkpoint_models import VISION
from models import Floats, build, replaced, weight_shapes
from safetensors.numpy import load_file

from llama_ext import _core
from llama_ext import program as programs
from llama_ext.checkpoint.open import open_source
from llama_ext.checkpoint.source import Source
from llama_ext.config import LlamaConfig
from llama_ext.program import Program

LENGTH = 45  # positions; more than three chunks of 8, eleven steps of the temperature
MAX_ROWS = 12

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "vocab_size": 89,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "pad_token_id": None,
}


def heads(queries: int, keys: int, head_dim: int) -> dict[str, int]:
    return {"num_attention_heads": queries, "num_key_value_heads": keys, "head_dim": head_dim}


def rope(theta: float, factor: float = 0, low: float = 1, high: float = 4, original: int = 32) -> dict[str, Any]:
    """`rope_parameters`; with a factor, Llama 3's scaling, whose original context is short enough to show."""
    plain: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    scaled = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
    return {"rope_parameters": plain | (scaled if factor else {})}


def llama(**fields: Any) -> Any:
    return tf.LlamaConfig(**(SIZES | fields))


def mistral(**fields: Any) -> Any:
    return tf.MistralConfig(**(SIZES | fields))


def mixtral(**fields: Any) -> Any:
    return tf.MixtralConfig(**(SIZES | {"intermediate_size": 40, "num_experts_per_tok": 2} | fields))


def llama4(chunk: int, experts: int, **fields: Any) -> Any:
    """Three chunked layers that rotate, a global one that does not, and so on."""
    common = {
        "num_hidden_layers": 4,
        "intermediate_size": 32,
        "intermediate_size_mlp": 56,
        "num_local_experts": experts,
        "num_experts_per_tok": 1,
        "attention_chunk_size": chunk,
        "no_rope_layer_interval": 4,
        "attn_temperature_tuning": True,
        "floor_scale": 4,
        "attn_scale": 0.3,
        "pad_token_id": 0,
    }
    return tf.Llama4TextConfig(**(SIZES | common | fields))


def scout(chunk: int, experts: int, **fields: Any) -> Any:
    return llama4(
        chunk,
        experts,
        **({"interleave_moe_layer_step": 1, "use_qk_norm": True} | rope(5e5, 16, 1, 1) | fields),
    )


def maverick(chunk: int, experts: int, **fields: Any) -> Any:
    return llama4(chunk, experts, **({"interleave_moe_layer_step": 2, "use_qk_norm": False} | rope(5e5) | fields))


def with_vision(text: Any) -> Any:
    """The whole model, as it is published, around its text model."""
    return tf.Llama4Config(text_config=text.to_dict(), vision_config=VISION)


FAMILY: dict[str, Callable[[], Any]] = {
    "llama1": lambda: llama(num_attention_heads=3, num_key_value_heads=3, rms_norm_eps=1e-6),
    "llama1-64": lambda: llama(**heads(2, 2, 64), rms_norm_eps=1e-6),
    "llama2": lambda: llama(**heads(2, 2, 128)),
    "llama2-gqa8": lambda: llama(**heads(8, 1, 64)),
    "llama3-gqa4": lambda: llama(**heads(8, 2, 64), **rope(5e5)),
    "llama3-gqa8": lambda: llama(**heads(8, 1, 128), **rope(5e5)),
    "llama3.1-gqa4": lambda: llama(**heads(4, 1, 128), **rope(5e5, 8)),
    "llama3.1-gqa16": lambda: llama(**heads(16, 1, 64), **rope(5e5, 8)),
    "llama3.2-gqa4": lambda: llama(**heads(8, 2, 64), **rope(5e5, 32), tie_word_embeddings=True),
    "llama3.2-gqa3": lambda: llama(**heads(6, 2, 128), **rope(5e5, 32), tie_word_embeddings=True),
    "scout": lambda: scout(8, 16, **heads(5, 1, 128)),
    "scout-chunk4": lambda: scout(4, 40, **heads(10, 2, 64), floor_scale=3, num_hidden_layers=8),
    "scout-top2": lambda: scout(8, 16, **heads(4, 4, 64), num_experts_per_tok=2, no_rope_layer_interval=2),
    "scout-vision": lambda: with_vision(scout(4, 16, **heads(5, 1, 64))),
    "maverick": lambda: maverick(8, 128, **heads(5, 1, 128)),
    "maverick-chunk4": lambda: maverick(4, 40, **heads(8, 1, 64), floor_scale=5),
    "mistral": lambda: mistral(**heads(4, 1, 128), sliding_window=7),
    "mistral-gqa8": lambda: mistral(**heads(8, 1, 64), sliding_window=12, **rope(1e6)),
    "mistral-whole": lambda: mistral(**heads(8, 2, 64), sliding_window=None, **rope(1e6)),
    "mixtral": lambda: mixtral(**heads(4, 1, 128), num_local_experts=8, sliding_window=None, **rope(1e6)),
    "mixtral-window": lambda: mixtral(**heads(8, 1, 64), num_local_experts=40, sliding_window=9),
}


def draw_weights(model: Any, seed: int) -> Any:
    """Draws every parameter so that each matters: attention has something to choose between, routers too, the residual
    stream keeps its size, and norms are not one."""
    generator = torch.Generator().manual_seed(seed)
    kind = model.config.get_text_config().model_type
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.ndim == 1:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
                continue
            # Experts are [E, inputs, outputs] in a Llama 4, all else [..., outputs, inputs].
            inputs = tensor.shape[1] if kind.startswith("llama4") else tensor.shape[-1]
            gain = 1.0
            if "q_proj" in name or "k_proj" in name:
                gain = 1.5
            elif "router" in name or name.endswith("mlp.gate.weight"):
                gain = 0.7  # the sigmoid of the best of many stays well below one
            scale = 1.0 if "embed_tokens" in name else gain / inputs**0.5
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
    return model


def full_pass(folder: Path, ids: list[int]) -> tuple[Floats, list[Floats], list[Floats]]:
    """transformers' logits [n, vocab], the attention weights of each layer [heads, n, n], and the logits of each
    router [n, experts]."""
    [kind] = json.loads((folder / "config.json").read_text())["architectures"]
    model = getattr(tf, kind).from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    routers: list[Floats] = []

    def record(module: Any, inputs: tuple[torch.Tensor, ...], _: Any) -> None:
        routers.append((inputs[0].flatten(0, -2) @ module.weight.T).numpy())

    for name, module in model.named_modules():
        if name.endswith((".router", ".mlp.gate")):
            module.register_forward_hook(record)
    with torch.inference_mode():
        out = model(torch.tensor([ids]), use_cache=False, output_attentions=True)
    return out.logits[0].numpy(), [layer[0].numpy() for layer in out.attentions], routers


@dataclass
class Case:
    """A checkpoint on disk, and what transformers makes of it."""

    name: str
    folder: Path = field(repr=False)
    hf: Any = field(repr=False)  # its config, of the text model

    @cached_property
    def source(self) -> Source:
        return open_source(self.folder)

    @property
    def config(self) -> LlamaConfig:
        return self.source.config

    @cached_property
    def ids(self) -> list[int]:
        return np.random.default_rng(len(self.name)).integers(0, self.hf.vocab_size, LENGTH).tolist()

    @cached_property
    def truth(self) -> tuple[Floats, list[Floats], list[Floats]]:
        return full_pass(self.folder, self.ids)

    @property
    def expected(self) -> Floats:
        return self.truth[0]

    @cached_property
    def program(self) -> Program:
        return programs.build(self.config, self.source, kv_cache="f32", max_rows=MAX_ROWS)

    @cached_property
    def weights(self) -> dict[str, Floats]:
        return {name: self.source.weight(name).dequantize() for name in weight_shapes(self.config)}

    @property
    def border(self) -> int:
        """Positions between two borders of this model's masks; for a model without, any number."""
        return self.config.attention_chunk_size or self.config.sliding_window or 8

    def stored(self, name: str) -> Floats:
        """A tensor as transformers has it in its file."""
        return load_file(self.folder / "model.safetensors")[name]

    def built(self, weights: Mapping[str, Floats] | None = None, **changes: Any) -> Program:
        """The program of a changed config, over weights of which some are others."""
        config = replaced(self.config, **changes)
        return build(config, self.weights | dict(weights or {}), kv_cache="f32", max_rows=MAX_ROWS)


_FOLDER = tempfile.TemporaryDirectory(prefix="llama_ext_family")  # removed when the process ends


def save(name: str, config: Any, dtype: torch.dtype = torch.float32, folder: Path | None = None) -> Path:
    whole = isinstance(config, tf.Llama4Config)
    model = tf.Llama4ForConditionalGeneration(config) if whole else tf.AutoModelForCausalLM.from_config(config)
    folder = folder or Path(_FOLDER.name) / name
    draw_weights(model, zlib.crc32(f"weights of {name}".encode()))
    if dtype is not torch.float32:
        model = model.to(dtype)
    model.save_pretrained(folder)
    return folder


@lru_cache
def case(name: str) -> Case:
    config = FAMILY[name]()
    return Case(name, save(name, config), config.get_text_config())


def edited(program: Program, change: Callable[[Any], Any], caches: list[_core.CacheLayer] | None = None) -> Program:
    """The same program with instructions replaced by what `change` makes of them."""
    native = program.native
    changed = _core.Program(
        vocab=native.vocab,
        hidden=native.hidden,
        max_context=native.max_context,
        max_rows=native.max_rows,
        ropes=native.ropes,
        caches=native.caches if caches is None else caches,
        code=[change(instruction) for instruction in native.code],
    )
    return Program(program.config, changed)
