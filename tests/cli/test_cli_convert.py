"""`llama-ext convert`: from a folder to a file that means the same, and what it says when it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from test_cli import Capture, run, run_json
from tiny_model import byte_tokens, write_tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from llama_ext.checkpoint import open_source
from llama_ext.checkpoint.gguf import GgufFile
from llama_ext.tokenizer import tokenizer_from_folder, tokenizer_from_gguf


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama 3 of 256 bytes, a merge and two special tokens."""
    path = tmp_path_factory.mktemp("hf") / "tiny"
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=259,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            bos_token_id=257,
            eos_token_id=258,
        )
    )
    model.save_pretrained(path)
    vocabulary = {token: index for index, token in enumerate([*byte_tokens(), "he"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("h", "e")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|eot_id|>"])
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "chat_template": "{{ messages }}"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


def test_a_folder_becomes_a_file(capsys: Capture, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    said = run(capsys, "convert", "-m", folder, "-o", out)
    assert said.startswith(f"{out}: 0.00 GB; matrices: 16 in F32") and said.count("\n") == 1
    file, source = open_source(out), open_source(folder)
    assert file.config.hidden_size == 64 and file.config.vocab_size == 259
    for name in ("embed", "layers.1.k", "layers.0.down", "head"):
        assert file.tensor(name).read().tobytes() == source.tensor(name).read().tobytes()
    before, after = tokenizer_from_folder(folder), tokenizer_from_gguf(GgufFile(out).metadata)
    for text in ("hello he he", " Grüße 日本\n\n", "<|eot_id|>x"):
        assert before.encode(text) == after.encode(text)
    assert (before.bos_id, before.end_ids) == (after.bos_id, after.end_ids)
    assert after.chat_template == "{{ messages }}"


def test_weights_and_json(capsys: Capture, folder: Path, tmp_path: Path) -> None:
    facts = run_json(capsys, "convert", "-m", folder, "-o", tmp_path / "a.gguf", "--weights", "q4_k", "-t", 1)
    assert facts["bytes"] == (tmp_path / "a.gguf").stat().st_size
    assert facts["source"]["weights"] == "Q4_K" and facts["source"]["matrices"] == {"Q8_0": 16}
    said = run(capsys, "convert", "-m", folder, "-o", tmp_path / "b.gguf", "--weights", "q4_k", "-t", 2)
    assert "no multiple of Q4_K's blocks" in said and "embed (Q8_0)" in said and "and 13 more" in said
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    facts = run_json(capsys, "convert", "-m", tmp_path / "a.gguf", "-o", tmp_path / "c.gguf", "--weights", "f16")
    assert facts["source"]["stored_matrices"] == {"Q8_0": 16} and facts["source"]["matrices"] == {"F16": 16}


def test_errors(capsys: Capture, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    out.write_text("mine")
    for arguments, message in (
        (("-m", folder, "-o", out), "is there already; give another name, or --force"),
        (("-m", folder, "-o", tmp_path), "is a folder; give the name of a file"),
        (("-m", folder, "-o", tmp_path / "b.gguf", "--weights", "q3"), "--weights q3 is unknown; use one of"),
        (
            ("-m", folder, "-o", tmp_path / "b.gguf", "--weights", "mxfp8"),
            "--weights mxfp8: a GGUF file cannot hold MXFP8; use one of f32, f16,",
        ),
        (("-m", folder, "-o", tmp_path / "b.gguf", "-t", 0), "--threads must be from 1 to 1024, not 0"),
        (("-m", tmp_path / "no", "-o", tmp_path / "b.gguf"), "cannot be opened"),
        (("-m", folder, "-o", tmp_path / "no" / "b.gguf"), "cannot be written"),
    ):
        said = run(capsys, "convert", *arguments, status=2)
        assert said.startswith("llama-ext: error: ") and said.count("\n") == 1
        assert any(part in said for part in message.split("|")), said
    assert out.read_text() == "mine" and list(tmp_path.iterdir()) == [out]
    run(capsys, "convert", "-m", write_tiny(tmp_path / "tiny.gguf"), "-o", out, "--force")
    assert GgufFile(out).metadata["tokenizer.ggml.pre"] == "gpt-2"


def test_a_tokenizer_of_another_model(capsys: Capture, folder: Path, tmp_path: Path) -> None:
    """Meta's params.json leaves the vocabulary's size open: what `load` would refuse is not written either."""
    source = open_source(folder)
    shapes = {"tok_embeddings.weight": "embed", "output.weight": "head", "norm.weight": "norm"}
    names = {"attention_norm": "attention_norm", "ffn_norm": "ffn_norm"} | {f"attention.w{k}": k for k in "qkvo"}
    names |= {"feed_forward.w1": "gate", "feed_forward.w2": "down", "feed_forward.w3": "up"}
    shapes |= {f"layers.{i}.{name}.weight": f"layers.{i}.{ours}" for i in range(2) for name, ours in names.items()}
    tensors = {}
    for stored, name in shapes.items():
        tensor = source.tensor(name)
        values = tensor.read().view(np.float32)
        tensors[stored] = values if tensor.rows == 1 else values.reshape(tensor.rows, tensor.cols)
    params = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "multiple_of": 32, "ffn_dim_multiplier": 0.5}
    meta = tmp_path / "meta"
    meta.mkdir()
    (meta / "params.json").write_text(json.dumps(params | {"vocab_size": -1}))
    (meta / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    save_file(tensors, meta / "consolidated.safetensors")
    run(capsys, "convert", "-m", meta, "-o", tmp_path / "right.gguf")
    tensors |= {name: np.pad(tensors[name], ((0, 5), (0, 0))) for name in ("tok_embeddings.weight", "output.weight")}
    save_file(tensors, meta / "consolidated.safetensors")
    said = run(capsys, "convert", "-m", meta, "-o", tmp_path / "wrong.gguf", status=2)
    assert "the embedding has 264 rows, the tokenizer 259 tokens; take both from the same model." in said
    assert not (tmp_path / "wrong.gguf").exists()


def test_long_names(capsys: Capture, tmp_path: Path) -> None:
    """240 bytes of a name leave little for that of the file that takes it at the end."""
    source = write_tiny(tmp_path / "tiny.gguf")
    for letter in ("a", "é", "😀"):
        out = tmp_path / (letter * (240 // len(letter.encode())) + ".gguf")
        run(capsys, "convert", "-m", source, "-o", out)
        assert GgufFile(out).metadata["general.name"] == "tiny"
