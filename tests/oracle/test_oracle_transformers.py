"""Tiny random Llamas and Mistrals of transformers, their weights copied over: the same logits on the reference and
on the CPU executor, in one piece and token by token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tolerances
import torch
from models import CpuSession, build, deviation, stepped
from transformers import LlamaConfig as HfLlamaConfig
from transformers import LlamaForCausalLM, MistralForCausalLM
from transformers import MistralConfig as HfMistralConfig

from llama_ext.config import LlamaConfig, RopeScaling
from llama_ext.program import Program
from llama_ext.reference import ReferenceSession

BASE: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "vocab_size": 97,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "attn_implementation": "eager",
}
SCALED = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LLAMAS: dict[str, dict[str, Any]] = {
    "mha": {},
    "gqa3": {"num_key_value_heads": 2},
    "gqa4-tied": {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True},
    "head_dim-apart": {"head_dim": 24, "num_key_value_heads": 3},
    "llama3-scaling": {"rope_parameters": SCALED, "num_key_value_heads": 2},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}, "num_key_value_heads": 1},
    "sliding7": {"sliding_window": 7, "num_key_value_heads": 2},
}


def interleaved(w: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k from Hugging Face's halves to pairs of neighbours, within each head."""
    out, cols = w.shape
    return w.reshape(heads, 2, out // heads // 2, cols).swapaxes(1, 2).reshape(out, cols)


def converted(model: Any, *, permute: bool = True) -> tuple[LlamaConfig, dict[str, np.ndarray]]:
    hf = model.config
    rope = hf.rope_parameters
    scaling = None
    if rope.get("rope_type") == "llama3":
        scaling = RopeScaling(
            rope["factor"],
            rope["low_freq_factor"],
            rope["high_freq_factor"],
            rope["original_max_position_embeddings"],
        )
    config = LlamaConfig(
        hidden_size=hf.hidden_size,
        intermediate_size=hf.intermediate_size,
        num_hidden_layers=hf.num_hidden_layers,
        num_attention_heads=hf.num_attention_heads,
        num_key_value_heads=hf.num_key_value_heads,
        head_dim=hf.head_dim or hf.hidden_size // hf.num_attention_heads,
        vocab_size=hf.vocab_size,
        max_position_embeddings=hf.max_position_embeddings,
        rms_norm_eps=hf.rms_norm_eps,
        rope_theta=rope["rope_theta"],
        rope_scaling=scaling,
        tie_word_embeddings=hf.tie_word_embeddings,
        sliding_window=getattr(hf, "sliding_window", None) or 0,
    )
    state = {name: tensor.detach().float().numpy() for name, tensor in model.state_dict().items()}
    weights = {"embed": state["model.embed_tokens.weight"], "norm": state["model.norm.weight"][None]}
    if not config.tie_word_embeddings:
        weights["head"] = state["lm_head.weight"]
    for layer in range(config.num_hidden_layers):
        for name, theirs in {
            "attention_norm": "input_layernorm",
            "q": "self_attn.q_proj",
            "k": "self_attn.k_proj",
            "v": "self_attn.v_proj",
            "o": "self_attn.o_proj",
            "ffn_norm": "post_attention_layernorm",
            "gate": "mlp.gate_proj",
            "up": "mlp.up_proj",
            "down": "mlp.down_proj",
        }.items():
            w = state[f"model.layers.{layer}.{theirs}.weight"]
            if permute and name in "qk":
                heads = config.num_attention_heads if name == "q" else config.num_key_value_heads
                w = interleaved(w, heads)
            weights[f"layers.{layer}.{name}"] = w[None] if w.ndim == 1 else w
    return config, weights


def hf_model(name: str) -> Any:
    torch.manual_seed(sorted(LLAMAS).index(name))
    fields = BASE | LLAMAS[name]
    sliding = "sliding_window" in fields
    config = (HfMistralConfig if sliding else HfLlamaConfig)(**fields)
    model = (MistralForCausalLM if sliding else LlamaForCausalLM)(config).eval().float()
    with torch.no_grad():  # the default initialisation is so small that attention hardly matters
        for key, tensor in model.named_parameters():
            if tensor.ndim == 2:
                tensor.normal_(0, (2.0 if "q_proj" in key or "k_proj" in key else 1.0) / tensor.shape[1] ** 0.5)
            else:
                tensor.uniform_(0.5, 1.5)
    return model


IDS = np.random.default_rng(31).integers(0, 97, 60).tolist()


def hf_logits(model: Any) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.tensor([IDS])).logits[0].float().numpy()


@pytest.fixture(scope="module", params=LLAMAS, ids=str)
def case(request: pytest.FixtureRequest) -> tuple[Any, Program, np.ndarray]:
    model = hf_model(request.param)
    config, weights = converted(model)
    return model, build(config, weights, kv_cache="f32", max_rows=64), hf_logits(model)


def test_the_model_is_the_one_meant(case: tuple[Any, Program, np.ndarray], request: pytest.FixtureRequest) -> None:
    """A field that transformers would ignore would make the comparison empty."""
    model, program, _ = case
    name = request.node.callspec.params["case"]
    for key, value in LLAMAS[name].items():
        assert getattr(model.config, key) == value
    assert program.config.layer_kinds[0] == ("sliding" if "sliding" in name else "global")
    assert (program.config.rope_scaling is not None) == ("scaling" in name)


@pytest.mark.parametrize("rows", [60, 1])
def test_reference(case: tuple[Any, Program, np.ndarray], rows: int) -> None:
    _, program, expected = case
    assert deviation(stepped(ReferenceSession(program), IDS, rows), expected) < tolerances.ORACLE


@pytest.mark.parametrize("rows", [60, 1, 16])
def test_cpu_executor(case: tuple[Any, Program, np.ndarray], rows: int) -> None:
    _, program, expected = case
    assert deviation(CpuSession(program, threads=2).logits(IDS, rows), expected) < tolerances.ORACLE


def test_transformers_own_steps_agree() -> None:
    """The oracle itself, decoding with its cache: so that a whole forward pass may stand for its decoding."""
    model = hf_model("sliding7")
    expected, cache, found = hf_logits(model), None, []
    with torch.inference_mode():
        for token in IDS:
            out = model(torch.tensor([[token]]), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            found.append(out.logits[0, -1].numpy())
    assert deviation(np.stack(found), expected) < tolerances.ORACLE


def test_twins() -> None:
    """Usual mistakes of a loader and of a mask, each far outside the tolerance."""
    model = hf_model("gqa3")
    expected = hf_logits(model)
    config, weights = converted(model, permute=False)
    unpermuted = ReferenceSession(build(config, weights, kv_cache="f32")).logits(IDS)
    assert (
        deviation(unpermuted[:1], expected[:1]) < tolerances.ORACLE
    )  # position 0 is not rotated: one token shows nothing
    assert deviation(unpermuted, expected) > 100 * tolerances.ORACLE
    model = hf_model("llama3-scaling")
    config, weights = converted(model)
    unscaled = LlamaConfig(**{f: getattr(config, f) for f in config.__slots__ if f != "rope_scaling"})
    assert deviation(ReferenceSession(build(unscaled, weights)).logits(IDS), hf_logits(model)) > 100 * tolerances.ORACLE
    model = hf_model("sliding7")
    config, weights = converted(model)
    for window in (6, 8):
        twin = LlamaConfig(**{f: getattr(config, f) for f in config.__slots__} | {"sliding_window": window})
        assert deviation(ReferenceSession(build(twin, weights)).logits(IDS), hf_logits(model)) > 100 * tolerances.ORACLE
