"""Tiny GGUF files for tests: random float32 weights, a byte-level vocabulary with one merge."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

BYTES = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN = 64, 2, 2, 1, 32, 128
VOCAB = 260
MERGED, START, END, BOS = range(256, 260)


def byte_tokens() -> list[str]:
    """Token i is byte i, spelled as byte-level vocabularies do."""
    shifted = iter(range(256, 512))
    return [chr(byte) if byte in BYTES else chr(next(shifted)) for byte in range(256)]


def write_tiny(
    path: Path,
    *,
    tokens: int = VOCAB,
    rows: int = VOCAB,
    context: int = 2048,
    add_bos: bool = False,
    extra: Mapping[str, np.ndarray] | None = None,
    leave_out: str | None = None,
    sliding_window: int | None = None,
    tokenizer: bool = True,
    head_dim: int = HEAD_DIM,
    experts: int = 0,
) -> Path:
    """Writes a model of which single things can be wrong; with `experts`, a Mixtral that chooses two of them."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(context)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(rows)
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(2)
    if sliding_window is not None:
        writer.add_sliding_window(sliding_window)
    if tokenizer:
        texts = [*byte_tokens(), "~~", "<|im_start|>", "<|im_end|>", "<s>"][:tokens]
        texts += [f"<unused{index}>" for index in range(len(texts), tokens)]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(texts)
        writer.add_token_types([1] * 257 + [3] * (tokens - 257))
        writer.add_token_merges(["~ ~"])
        writer.add_eos_token_id(END)
        writer.add_bos_token_id(BOS)
        writer.add_add_bos_token(add_bos)
    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (rows, HIDDEN), "output_norm": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.attn_norm": (HIDDEN,),
            f"blk.{layer}.attn_q": (HEADS * head_dim, HIDDEN),
            f"blk.{layer}.attn_k": (KV_HEADS * head_dim, HIDDEN),
            f"blk.{layer}.attn_v": (KV_HEADS * head_dim, HIDDEN),
            f"blk.{layer}.attn_output": (HIDDEN, HEADS * head_dim),
            f"blk.{layer}.ffn_norm": (HIDDEN,),
        }
        feed_forward: dict[str, tuple[int, ...]] = {"gate": (FFN, HIDDEN), "up": (FFN, HIDDEN), "down": (HIDDEN, FFN)}
        for part, shape in feed_forward.items():
            shapes[f"blk.{layer}.ffn_{part}" + "_exps" * bool(experts)] = (*([experts] if experts else []), *shape)
        if experts:
            shapes[f"blk.{layer}.ffn_gate_inp"] = (experts, HIDDEN)
    for name, shape in shapes.items():
        if name != leave_out:
            scale = 0.2 if len(shape) > 1 else 0.05
            values = random.normal(0 if len(shape) > 1 else 1, scale, shape).astype(np.float32)
            writer.add_tensor(f"{name}.weight", values)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
