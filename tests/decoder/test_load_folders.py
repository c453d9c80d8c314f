"""Folders and files end to end, from what is on the disk to the text: what ends it, what begins it, and what must be
the same after `convert`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerances
import torch
import transformers as tf
from models import deviation
from tiny_model import byte_tokens
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

import llama_ext
from llama_ext.checkpoint import open_source
from llama_ext.checkpoint.gguf import GgufFile
from llama_ext.checkpoint.names import GgufWeights
from llama_ext.checkpoint.write import write_gguf
from llama_ext.tokenizer import tokenizer_from_folder

BOS, EOS, TURN = 257, 258, 259
VOCAB = 260
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
SCALED = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LLAMA4 = {
    **{"num_local_experts": 4, "intermediate_size_mlp": 96, "attention_chunk_size": 8, "pad_token_id": 0},
    **{"floor_scale": 4, "attn_scale": 0.3, "interleave_moe_layer_step": 1},
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaConfig(**SIZES, rope_parameters=SCALED),
    "mixtral": lambda: tf.MixtralConfig(**SIZES, num_local_experts=8, sliding_window=None),
    "scout": lambda: tf.Llama4TextConfig(**(SIZES | LLAMA4), use_qk_norm=True, rms_norm_eps=0.1),
}
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}<|turn|>{% endfor %}"


def write_tokenizer(folder: Path, *, merges: bool = True, ends: list[int] | None = None) -> None:
    """Bytes, a merge, and three special tokens of which the first begins every text."""
    vocabulary = {token: index for index, token in enumerate([*byte_tokens(), "he"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("h", "e")] if merges else []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", "<|turn|>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    ids = {"bos_token_id": BOS, "eos_token_id": [EOS] if ends is None else ends}
    (folder / "generation_config.json").write_text(json.dumps(ids))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def save(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind) / "folder"
            model = tf.AutoModelForCausalLM.from_config(CONFIGS[kind]())
            generator = torch.Generator().manual_seed(7)
            with torch.no_grad():
                for tensor in model.parameters():
                    scale = 1.0 if tensor.ndim == 1 else 1.5 / tensor.shape[-1] ** 0.5
                    tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
            model.save_pretrained(made[kind])
            write_tokenizer(made[kind])
        return made[kind]

    return save


@pytest.fixture
def copied(saved: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda kind: Path(shutil.copytree(saved(kind), tmp_path / "copy"))


def load(path: Path, **options: Any) -> llama_ext.Llama:
    return llama_ext.load(path, threads=1, **options)


def convert(folder: Path, path: Path) -> Path:
    write_gguf(open_source(folder), path, tokenizer=tokenizer_from_folder(folder).gguf_metadata())
    return path


def truth(folder: Path, ids: list[int]) -> np.ndarray[Any, Any]:
    model = tf.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.inference_mode():
        logits: np.ndarray[Any, Any] = model(torch.tensor([ids]), use_cache=False).logits[0].numpy()
    return logits


def test_every_end_token_ends_a_text(copied: Callable[[str], Path], tmp_path: Path) -> None:
    """Each of the tokens that generation_config.json lists, from the folder and from the file that is made of it."""
    folder = copied("llama")
    free = load(folder).generate("hello", max_new_tokens=30).token_ids
    drawn = list(dict.fromkeys(free))
    never = next(token for token in range(VOCAB) if token not in drawn)
    for end in (drawn[1], drawn[len(drawn) // 2], drawn[-1]):
        at = free.index(end)
        write_tokenizer(folder, ends=[EOS, end, never])
        for path in (folder, convert(folder, tmp_path / f"{end}.gguf")):
            llm = load(path)
            assert llm.tokenizer.end_ids == {EOS, end, never}
            found = llm.generate("hello", max_new_tokens=30)
            assert (found.token_ids, found.finish_reason, found.stop_reason) == (free[:at], "stop", end)


def test_one_bos(saved: Callable[[str], Path], tmp_path: Path) -> None:
    """The tokenizer adds one to a text, and none to a conversation whose template wrote one."""
    for path in (saved("llama"), convert(saved("llama"), tmp_path / "a.gguf")):
        llm = load(path)
        assert llm.generate("hello", max_new_tokens=1).prompt_ids[:2] == [BOS, 256]
        ids = llm.chat([{"role": "user", "content": "hello"}], max_new_tokens=1).prompt_ids
        assert ids[:2] == [BOS, ord("[")] and ids.count(BOS) == 1 and ids[-1] == TURN


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_converted_model_is_the_same(saved: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    """To the last bit, in any format of weights and of the cache: scaling of frequencies included."""
    folder = saved(kind)
    file = convert(folder, tmp_path / "a.gguf")
    ids = load(folder).tokenizer.encode("hello there, how are you?")
    for options in ({}, {"kv_cache": "q8_0"}, {"weights": "q4_0"}):
        one, other = load(folder, **options), load(file, **options)
        assert one.config == other.config
        assert np.array_equal(one.session().logits(ids), other.session().logits(ids))
    messages = [{"role": "user", "content": "hello"}]
    assert one.chat(messages, max_new_tokens=9).token_ids == other.chat(messages, max_new_tokens=9).token_ids


@pytest.mark.parametrize("kind", CONFIGS)
def test_logits_are_transformers(saved: Callable[[str], Path], kind: str) -> None:
    """`load` with nothing changed but the cache, which is f16 by default. In the Llama 4 the epsilon of QK-norm shows:
    it is that of the other norms, here 0.1."""
    folder = saved(kind)
    llm = load(folder, kv_cache="f32")
    ids = llm.tokenizer.encode("hello there, how are you?")
    expected = truth(folder, ids)
    assert deviation(llm.session().logits(ids), expected) < tolerances.ORACLE
    if kind == "scout":
        settings = json.loads((folder / "config.json").read_text())
        assert settings["rms_norm_eps"] == 0.1


def test_frequencies_of_another_writers_file(saved: Callable[[str], Path], tmp_path: Path) -> None:
    """llama.cpp's converter writes Llama 3's scaling as the tensor `rope_freqs.weight` alone."""
    folder = saved("llama")
    file = GgufFile(convert(folder, tmp_path / "a.gguf"))
    file.metadata = {key: value for key, value in file.metadata.items() if not key.startswith("llama_ext.rope_scaling")}
    source = GgufWeights(file)
    assert source.config.rope_scaling is None
    foreign = tmp_path / "foreign.gguf"
    write_gguf(source, foreign)
    assert not any(key.startswith("llama_ext.rope_scaling") for key in GgufFile(foreign).metadata)
    llm = load(foreign, kv_cache="f32")
    ids = llm.tokenizer.encode("hello there, how are you?")
    expected = truth(folder, ids)
    assert deviation(llm.session().logits(ids), expected) < tolerances.ORACLE
    # Without the tensor's factors, or with both, it would be another model.
    for config in (source.config, replace(open_source(folder).config, rope_scaling=None)):
        plain = GgufWeights(file, config)
        plain.rope_factors = lambda: None  # type: ignore[method-assign]
        path = tmp_path / "plain.gguf"
        write_gguf(plain, path, force=True)
        assert deviation(load(path, kv_cache="f32").session().logits(ids), expected) > 10 * tolerances.ORACLE


def test_experts_stay_in_a_folder(saved: Callable[[str], Path], tmp_path: Path) -> None:
    """Mixtral's as they are; a Llama 4's are transposed, so they have to be written first."""
    ids = [1, 2, 3, 40, 50, 60, 7, 8, 9]
    for kind in ("mixtral", "scout"):
        folder, file = saved(kind), convert(saved(kind), tmp_path / f"{kind}.gguf")
        expected = load(folder).session().logits(ids)
        for path in (folder, file):
            if path == folder and kind == "scout":
                with pytest.raises(llama_ext.OptionError, match=r"reordered .*; write a \.gguf file .* first"):
                    load(path, resident_limit="2GB")
                continue
            llm = load(path, resident_limit="2GB")
            assert llm.executor.residency["budget"] > 0
            assert np.array_equal(llm.session().logits(ids), expected)
            assert llm.executor.residency["misses"] > 0
        with pytest.raises(llama_ext.OptionError, match="is converted or reordered"):
            load(file, resident_limit="2GB", weights="q4_0")


def test_a_snapshot_of_the_hub(saved: Callable[[str], Path], tmp_path: Path) -> None:
    """Its cache keeps the files elsewhere, under other names, and links to them; both may be read-only."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / ("0" * 40)
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(saved("llama").iterdir())):
        shutil.copy(file, blobs / f"{number:064x}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"{number:064x}")
    blobs.chmod(0o555)
    snapshot.chmod(0o555)
    expected = load(saved("llama")).generate("hello", max_new_tokens=8)
    assert load(snapshot).generate("hello", max_new_tokens=8).token_ids == expected.token_ids
    blobs.chmod(0o755)
    snapshot.chmod(0o755)


@pytest.mark.parametrize("name", ["two words", "größe 模型", os.fsdecode(b"latin-\xe9")])
def test_names_of_folders_and_files(saved: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    """The last of them is no UTF-8."""
    folder = Path(shutil.copytree(saved("llama"), tmp_path / name))
    expected = load(saved("llama")).generate("hello", max_new_tokens=8).token_ids
    assert load(folder).generate("hello", max_new_tokens=8).token_ids == expected
    file = convert(folder, tmp_path / f"{name}.gguf")
    assert load(file).generate("hello", max_new_tokens=8).token_ids == expected


def test_a_vocabulary_without_merges(copied: Callable[[str], Path], tmp_path: Path) -> None:
    """A GGUF cannot say that there are none."""
    folder = copied("llama")
    write_tokenizer(folder, merges=False)
    one, other = load(folder), load(convert(folder, tmp_path / "a.gguf"))
    for text in ("hello", "Grüße <|turn|>\n"):
        assert one.tokenizer.encode(text) == other.tokenizer.encode(text)
    assert 256 not in other.tokenizer.encode("he") and other.tokenizer.end_ids == one.tokenizer.end_ids


def test_a_folder_needs_no_torch(saved: Callable[[str], Path]) -> None:
    code = (
        f"import sys, llama_ext; llm = llama_ext.load({str(saved('mixtral'))!r}, threads=1, weights='q8_0'); "
        "llm.generate('hello', max_new_tokens=2); llm.chat([{'role': 'user', 'content': 'x'}], max_new_tokens=2); "
        "print(sorted({'torch', 'transformers', 'gguf', 'safetensors', 'huggingface_hub', 'tiktoken', 'sentencepiece'} "
        "& set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(llama_ext.__file__).parents[1]), "PYTHONSAFEPATH": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60, check=False
    )
    assert result.stdout == "[]\n", result.stderr
