"""Tiny random models of transformers, what they hold in the one layout, and the same weights in the files of Meta and
of GGUF.

The layout's tensors are taken from the modules, not from the files, and brought into its order here, row by row; the
reader under test does it with strides.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers as tf

from llama_ext.config import LlamaConfig, RopeScaling

Tensors = dict[str, torch.Tensor]

SCALED = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 100,
    "max_position_embeddings": 256,
    "pad_token_id": None,
}
LLAMA4: dict[str, Any] = SIZES | {
    "head_dim": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 48,
    "intermediate_size_mlp": 96,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "attention_chunk_size": 8,
    "num_hidden_layers": 4,
    "no_rope_layer_interval": 4,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vision_output_dim": 16,
    "image_size": 28,
    "patch_size": 14,
    "projector_input_dim": 16,
    "projector_output_dim": 16,
}


def _llama(**changes: Any) -> Callable[[], Any]:
    return lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**(SIZES | changes)))


def _llama4(**changes: Any) -> Callable[..., Any]:
    return lambda **more: tf.Llama4ForCausalLM(tf.Llama4TextConfig(**(LLAMA4 | changes | more)))


MODELS: dict[str, Callable[..., Any]] = {
    "llama1": _llama(),
    "llama2-gqa": _llama(num_key_value_heads=4),
    "llama3": _llama(num_key_value_heads=2, rope_parameters={"rope_type": "default", "rope_theta": 500000.0}),
    "llama3.1": _llama(num_key_value_heads=2, rope_parameters=SCALED),
    "llama3.2-tied": _llama(num_key_value_heads=2, rope_parameters=SCALED, tie_word_embeddings=True),
    "head_dim-apart": _llama(num_key_value_heads=4, head_dim=12),
    "mistral": lambda: tf.MistralForCausalLM(
        tf.MistralConfig(**(SIZES | {"num_key_value_heads": 2, "sliding_window": 16}))
    ),
    "mixtral": lambda: tf.MixtralForCausalLM(
        tf.MixtralConfig(**(SIZES | {"num_key_value_heads": 2, "num_local_experts": 4, "sliding_window": None}))
    ),
    "scout": _llama4(interleave_moe_layer_step=1, use_qk_norm=True),
    "maverick": _llama4(interleave_moe_layer_step=2, use_qk_norm=False),
    "scout-vision": lambda: tf.Llama4ForConditionalGeneration(
        tf.Llama4Config(text_config=LLAMA4 | {"interleave_moe_layer_step": 1}, vision_config=VISION)
    ),
}


def random_model(kind: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A model with every parameter drawn, norms included: one that was left at its start could hide a mix-up."""
    model = MODELS[kind](**changes)
    if dtype is not torch.float32:
        model = model.to(dtype)
    generator = torch.Generator().manual_seed(sum(kind.encode()))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def text_config(model: Any) -> Any:
    return getattr(model.config, "text_config", None) or model.config


def config_of(model: Any) -> LlamaConfig:
    """The model's config, by the test's own reading of transformers' fields."""
    hf = text_config(model)
    rope = hf.rope_parameters
    scaling = None
    if rope["rope_type"] == "llama3":
        fields = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        scaling = RopeScaling(*(rope[field] for field in fields))
    kind = hf.model_type.removesuffix("_text")
    layers = hf.num_hidden_layers
    fields: dict[str, Any] = {}
    if kind in ("mixtral", "llama4"):
        fields = {"num_local_experts": hf.num_local_experts, "num_experts_per_tok": hf.num_experts_per_tok}
    if kind == "llama4":
        fields |= {
            "moe_layers": tuple(layer in hf.moe_layers for layer in range(layers)),
            "rope_layers": tuple(bool(used) for used in hf.no_rope_layers),
            "layer_kinds": tuple("chunked" if used else "global" for used in hf.no_rope_layers),
            "attention_chunk_size": hf.attention_chunk_size,
            "intermediate_size_mlp": hf.intermediate_size_mlp,
            "shared_expert": True,
            "expert_scoring": "sigmoid",
            "use_qk_norm": hf.use_qk_norm,
            "attn_temperature_tuning": bool(hf.attn_temperature_tuning),
        }
    return LlamaConfig(
        hidden_size=hf.hidden_size,
        intermediate_size=hf.intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=hf.num_attention_heads,
        num_key_value_heads=hf.num_key_value_heads,
        head_dim=getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads,
        vocab_size=hf.vocab_size,
        max_position_embeddings=hf.max_position_embeddings,
        rms_norm_eps=hf.rms_norm_eps,
        rope_theta=rope["rope_theta"],
        rope_scaling=scaling,
        tie_word_embeddings=hf.tie_word_embeddings,
        sliding_window=getattr(hf, "sliding_window", None) or 0,
        model_type=kind,
        **fields,
    )


def neighbours(w: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows of q or k from halves to neighbours: the pair (i, i + head_dim / 2) of a head becomes (2i, 2i + 1)."""
    order = []
    for start in range(0, w.shape[0], head_dim):
        for i in range(head_dim // 2):
            order += [start + i, start + i + head_dim // 2]
    return torch.stack([w[row] for row in order])


def layout_of(model: Any) -> Tensors:
    """Every tensor of the one layout, from the modules of the model."""
    config = config_of(model)
    inner = getattr(model, "model", None)
    inner = inner.language_model.model if hasattr(inner, "language_model") else inner
    if inner is None:
        inner = model.language_model.model
    head = model.lm_head if hasattr(model, "lm_head") else model.language_model.lm_head
    out: Tensors = {"embed": inner.embed_tokens.weight, "norm": inner.norm.weight}
    if not config.tie_word_embeddings:
        out["head"] = head.weight
    for index, layer in enumerate(inner.layers):
        p = f"layers.{index}."
        attention = layer.self_attn
        out[p + "attention_norm"] = layer.input_layernorm.weight
        out[p + "ffn_norm"] = layer.post_attention_layernorm.weight
        out[p + "q"], out[p + "k"] = attention.q_proj.weight, attention.k_proj.weight
        if config.model_type != "llama4":
            out[p + "q"] = neighbours(out[p + "q"], config.head_dim)
            out[p + "k"] = neighbours(out[p + "k"], config.head_dim)
        out[p + "v"], out[p + "o"] = attention.v_proj.weight, attention.o_proj.weight
        ffn = layer.feed_forward if config.model_type == "llama4" else layer.mlp
        if not hasattr(ffn, "experts"):
            _linear(out, p, ffn)
            continue
        out[p + "router"] = (ffn.router if config.model_type == "llama4" else ffn.gate).weight
        for e in range(config.num_local_experts):
            # gate_up of one expert, rows outputs, gate first: as the module's forward splits it.
            gate_up, down = ffn.experts.gate_up_proj[e], ffn.experts.down_proj[e]
            if config.model_type == "llama4":
                gate_up, down = gate_up.T, down.T
            gate, up = gate_up.chunk(2, dim=0)
            q = f"{p}experts.{e}."
            out[q + "gate"], out[q + "up"], out[q + "down"] = gate, up, down
        if config.shared_expert:
            _linear(out, p + "shared.", ffn.shared_expert)
    return {name: tensor.detach().contiguous() for name, tensor in out.items()}


def _linear(out: Tensors, prefix: str, module: Any) -> None:
    out[prefix + "gate"] = module.gate_proj.weight
    out[prefix + "up"] = module.up_proj.weight
    out[prefix + "down"] = module.down_proj.weight


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def meta_shards(
    tensors: Tensors, config: LlamaConfig, shards: int, *, embed_axis: int = 0, fused: bool = False
) -> list[Tensors]:
    """The shards of a checkpoint in Meta's names.

    Args:
        shards: devices; with more of them than key-value heads, neighbours hold the same head.
        embed_axis: 0 cuts the embedding by rows (Llama 3 and 4), 1 by columns (Llama 1 and 2).
        fused: Llama 4's `wqkv` and `fc1_weight`, with the norms inside; else one tensor a matrix.
    """
    out: list[Tensors] = [{} for _ in range(shards)]

    def cut(name: str, tensor: torch.Tensor, axis: int | None) -> None:
        for shard, part in zip(out, _parts(tensor, axis, shards), strict=True):
            shard[name] = part

    cut("tok_embeddings.weight", tensors["embed"], embed_axis)
    cut("norm.weight", tensors["norm"], None)
    if "head" in tensors:
        cut("output.weight", tensors["head"], 0)
    experts = config.num_local_experts
    for layer in range(config.num_hidden_layers):
        t = {name.removeprefix(f"layers.{layer}."): w for name, w in tensors.items() if f"layers.{layer}." in name}
        p = f"layers.{layer}."
        q, v = _parts(t["q"], 0, shards), None
        if shards > config.num_key_value_heads:
            run = shards // config.num_key_value_heads
            k = [part for part in _parts(t["k"], 0, config.num_key_value_heads) for _ in range(run)]
            v = [part for part in _parts(t["v"], 0, config.num_key_value_heads) for _ in range(run)]
        else:
            k, v = _parts(t["k"], 0, shards), _parts(t["v"], 0, shards)
        for shard, *parts in zip(out, q, k, v, strict=True):
            if fused:
                shard[p + "attention.wqkv.weight"] = torch.cat(parts)
            else:
                for name, part in zip(("wq", "wk", "wv"), parts, strict=True):
                    shard[f"{p}attention.{name}.weight"] = part.clone()
        cut(p + "attention.wo.weight", t["o"], 1)
        cut(p + ("attention.wqkv.layer_norm_weight" if fused else "attention_norm.weight"), t["attention_norm"], None)
        dense = "router" not in t
        norm = "feed_forward.mlp.layer_norm_weight" if dense else "feed_forward.norm.weight"
        cut(p + (norm if fused else "ffn_norm.weight"), t["ffn_norm"], None)
        f = p + "feed_forward."
        if dense and fused:
            gate, up = _parts(t["gate"], 0, shards), _parts(t["up"], 0, shards)
            for shard, a, b in zip(out, gate, up, strict=True):
                shard[f + "mlp.fc1_weight"] = torch.cat((a, b))
            cut(f + "mlp.fc2_weight", t["down"], 1)
        elif dense:
            cut(f + "w1.weight", t["gate"], 0)
            cut(f + "w3.weight", t["up"], 0)
            cut(f + "w2.weight", t["down"], 1)
        else:
            cut(f + "router_DE", t["router"].T, None)
            for name, part in (("moe_w_in_eD_F", "gate"), ("moe_w_swiglu_eD_F", "up"), ("moe_w_out_eF_D", "down")):
                stack = torch.stack([t[f"experts.{e}.{part}"].T for e in range(experts)])  # [E, inputs, outputs]
                axis = 1 if part == "down" else 2
                for shard, piece in zip(out, _parts(stack, axis, shards), strict=True):
                    shard[f"{f}experts.{name}"] = piece.reshape(-1, piece.shape[-1])
            cut(f + "w_in_shared_FD.weight", t["shared.gate"], 0)
            cut(f + "w_swiglu_FD.weight", t["shared.up"], 0)
            cut(f + "w_out_shared_DF.weight", t["shared.down"], 1)
    return out


def _parts(tensor: torch.Tensor, axis: int | None, shards: int) -> list[torch.Tensor]:
    """Cut along an axis; with None, a copy for each."""
    if axis is None:
        return [tensor.clone() for _ in range(shards)]
    assert tensor.shape[axis] % shards == 0
    return [part.contiguous().clone() for part in tensor.chunk(shards, dim=axis)]


def meta_params(config: LlamaConfig, *, vocab_size: int | None = None) -> dict[str, Any]:
    """A params.json in the fields of llama_models' ModelArgs, which make 96 of the feed-forward's size and 48 of an
    expert's."""
    params: dict[str, Any] = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "vocab_size": config.vocab_size if vocab_size is None else vocab_size,
        "multiple_of": 8,
        "ffn_dim_multiplier": 0.55,
        "norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
    }
    if config.model_type == "llama4":
        step = 1 if all(config.moe_layers) else 2
        params |= {
            "ffn_exp": 4.0,
            "nope_layer_interval": 4,
            "attention_chunk_size": config.attention_chunk_size,
            "use_qk_norm": config.use_qk_norm,
            "attn_temperature_tuning": config.attn_temperature_tuning,
            "moe_args": {"num_experts": config.num_local_experts, "top_k": 1, "interleave_moe_layer_step": step},
        }
    return params


def write_meta(folder: Path, shards: list[Tensors], params: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps(params))
    for index, shard in enumerate(shards):
        torch.save(shard, folder / f"consolidated.{index:02d}.pth")
    return folder


_GGUF = {
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "attention_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
    "router": "ffn_gate_inp",
    "shared.gate": "ffn_gate_shexp",
    "shared.up": "ffn_up_shexp",
    "shared.down": "ffn_down_shexp",
}


def write_gguf(
    path: Path,
    tensors: Tensors,
    config: LlamaConfig,
    *,
    split_experts: bool = False,
    merge_gate_up: bool = False,
) -> Path:
    """A GGUF without metadata but the architecture; the config goes to the reader beside it."""
    writer = gguf.GGUFWriter(path, "llama4" if config.model_type == "llama4" else "llama")
    top = {"embed": "token_embd.weight", "norm": "output_norm.weight", "head": "output.weight"}

    def add(name: str, tensor: torch.Tensor) -> None:
        if tensor.dim() == 1:
            tensor = tensor.float()
        if tensor.dtype is torch.bfloat16:
            data = tensor.contiguous().view(torch.uint8).numpy()
            writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(name, np.ascontiguousarray(tensor.numpy()))

    for name, tensor in tensors.items():
        if name in top:
            add(top[name], tensor)
            continue
        _, layer, kind = name.split(".", 2)
        if not kind.startswith("experts."):
            add(f"blk.{layer}.{_GGUF[kind]}.weight", tensor)
            continue
        _, expert, part = kind.split(".")
        if split_experts:
            add(f"blk.{layer}.ffn_{part}.{expert}.weight", tensor)
        elif merge_gate_up and part in ("gate", "up"):
            if expert == "0" and part == "gate":
                p = f"layers.{layer}.experts."
                pairs = [torch.cat((tensors[f"{p}{e}.gate"], tensors[f"{p}{e}.up"])) for e in range(4)]
                add(f"blk.{layer}.ffn_gate_up_exps.weight", torch.stack(pairs))
        elif expert == "0":
            experts = [tensors[f"layers.{layer}.experts.{e}.{part}"] for e in range(config.num_local_experts)]
            add(f"blk.{layer}.ffn_{part}_exps.weight", torch.stack(experts))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
