"""The same weights through Hugging Face's, Meta's and GGUF files: the same logits, bit for bit where the same numbers
are stored; and quantized while they are read, those of the file that `convert` writes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerances
import torch
import transformers as tf
from checkpoint_models import layout_of, meta_params, meta_shards, write_meta
from family_models import (
    FAMILY,
    LENGTH,
    MAX_ROWS,
    case,
    full_pass,
    heads,
    llama,
    llama4,
    maverick,
    mixtral,
    rope,
    save,
    scout,
)
from models import CpuSession, Floats, deviation, random_ids

import llama_ext
import llama_ext.tokenizer
from llama_ext import program as programs
from llama_ext.checkpoint.gguf import GgufFile
from llama_ext.checkpoint.meta import MetaSource
from llama_ext.checkpoint.names import GgufWeights
from llama_ext.checkpoint.open import open_source
from llama_ext.checkpoint.quantized import quantized
from llama_ext.checkpoint.source import Source
from llama_ext.checkpoint.write import write_gguf
from llama_ext.cli import main
from llama_ext.config import LlamaConfig

# What the formula of Meta's params.json makes of hidden_size 64, and the scaling that it stands for.
SIZES = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 90}
SIZES4 = SIZES | {"intermediate_size": 48, "intermediate_size_mlp": 96}
MODELS: dict[str, Any] = {
    "llama1": lambda: llama(**SIZES, **heads(8, 8, 8), rms_norm_eps=1e-6),
    "llama2-gqa": lambda: llama(**SIZES, **heads(8, 4, 8)),
    "llama3": lambda: llama(**SIZES, **heads(8, 2, 8), **rope(5e5)),
    "llama3.1": lambda: llama(**SIZES, **heads(8, 2, 8), **rope(5e5, 8, 1, 4, 8192)),
    "llama3.2": lambda: llama(**SIZES, **heads(8, 2, 8), **rope(5e5, 32, 1, 4, 8192), tie_word_embeddings=True),
    "scout": lambda: scout(8, 16, **SIZES4, **heads(8, 4, 8), **rope(5e5, 16, 1, 1, 8192)),
    "maverick": lambda: maverick(8, 40, **SIZES4, **heads(8, 2, 8)),
}
SCALED = {
    "llama3.1": {"use_scaled_rope": True},
    "llama3.2": {"use_scaled_rope": True, "rope_scaling_factor": 32.0},
    "scout": {"use_scaled_rope": True},
}


def logits(source: Source, ids: list[int] | None = None, threads: int = 2) -> Floats:
    program = programs.build(
        source.config,
        source,
        kv_cache="f32",
        max_context=64,
        max_rows=MAX_ROWS,
        rope_factors=source.rope_factors(),
    )
    assert source.unused() == []
    return CpuSession(program, threads=threads).logits(ids or random_ids(source.config, LENGTH), MAX_ROWS)


def as_gguf(source: Source, path: Path) -> GgufWeights:
    write_gguf(source, path)
    return GgufWeights(GgufFile(path))


def check_gguf(found: Floats, expected: Floats, source: Source) -> None:
    """The numbers of a GGUF are those of its source: Llama 3's scaling too, which our own keys hold exactly."""
    assert np.array_equal(found, expected), source.config.rope_scaling


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", MODELS)
def test_three_kinds_of_files(kind: str, dtype: torch.dtype, shards: int, tmp_path: Path) -> None:
    folder = save(f"files-{kind}", MODELS[kind](), dtype, tmp_path / "hf")
    source = open_source(folder)
    expected = logits(source)
    assert source.tensor("layers.1.v").format == ("F32" if dtype is torch.float32 else "BF16")
    # The one format that has an oracle, here once more: the sizes are others than in the rest of this room.
    truth = full_pass(folder, random_ids(source.config, LENGTH))[0]
    assert deviation(expected, truth) < tolerances.ORACLE

    model = tf.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    tensors = layout_of(model)
    params = meta_params(source.config) | SCALED.get(kind, {})
    if source.config.model_type == "llama4":
        params |= {"floor_scale": 4.0, "attn_scale": 0.3}
    fused = source.config.model_type == "llama4" and shards == 2
    written = meta_shards(tensors, source.config, shards, embed_axis=int(kind in ("llama1", "llama2-gqa")), fused=fused)
    meta = open_source(write_meta(tmp_path / "meta", written, params))
    assert isinstance(meta, MetaSource) and len(meta.files()) == shards
    assert np.array_equal(logits(meta), expected)

    check_gguf(logits(as_gguf(source, tmp_path / "hf.gguf")), expected, source)
    check_gguf(logits(as_gguf(meta, tmp_path / "meta.gguf")), expected, source)
    twice = as_gguf(open_source(tmp_path / "hf.gguf"), tmp_path / "twice.gguf")
    assert np.array_equal(logits(twice), logits(open_source(tmp_path / "hf.gguf")))


def test_one_wrong_number_shows(tmp_path: Path) -> None:
    """The last element of one matrix, in one of two shards; and the scaling that params.json leaves out."""
    folder = save("files-llama3.1", MODELS["llama3.1"](), folder=tmp_path / "hf")
    source = open_source(folder)
    expected = logits(source)
    tensors = layout_of(tf.AutoModelForCausalLM.from_pretrained(folder))
    params = meta_params(source.config) | SCALED["llama3.1"]
    shards = meta_shards(tensors, source.config, 2)
    assert np.array_equal(logits(open_source(write_meta(tmp_path / "right", shards, params))), expected)
    plain = {key: value for key, value in params.items() if key != "use_scaled_rope"}
    found = logits(open_source(write_meta(tmp_path / "plain", shards, plain)))
    assert deviation(found, expected) > 10 * tolerances.ORACLE
    shards[1]["layers.2.feed_forward.w2.weight"][-1, -1] += 0.1
    assert not np.array_equal(logits(open_source(write_meta(tmp_path / "wrong", shards, params))), expected)


@pytest.mark.parametrize("name", FAMILY)
def test_every_generation_as_gguf(name: str, tmp_path: Path) -> None:
    model = case(name)
    read = as_gguf(model.source, tmp_path / "a.gguf")
    found = logits(read, model.ids)
    check_gguf(found, logits(model.source, model.ids), model.source)
    assert deviation(found, model.expected) < tolerances.ORACLE


WIDE: dict[str, Any] = {
    "llama": lambda: llama(hidden_size=256, intermediate_size=256, num_hidden_layers=2, **heads(4, 2, 64)),
    "mixtral": lambda: mixtral(
        hidden_size=256, intermediate_size=256, num_hidden_layers=2, num_local_experts=4, **heads(8, 2, 32)
    ),
    "scout": lambda: llama4(
        8,
        4,
        hidden_size=256,
        intermediate_size=256,
        interleave_moe_layer_step=1,
        use_qk_norm=True,
        **heads(4, 1, 64),
    ),
    # Rows of 96 and of 40 elements: no whole number of K blocks, or of any blocks.
    "narrow": lambda: maverick(8, 4, hidden_size=96, intermediate_size=40, **heads(3, 1, 32)),
}


@pytest.mark.parametrize("weights", ["q8_0", "q4_0", "q4_k"])
@pytest.mark.parametrize("kind", WIDE)
def test_quantized_while_loading(kind: str, weights: str, tmp_path: Path) -> None:
    source = open_source(save(f"wide-{kind}", WIDE[kind](), torch.bfloat16, tmp_path / "hf"))
    made = quantized(source, weights, threads=2)
    found = logits(made)
    assert np.isfinite(found).all()
    read = as_gguf(made, tmp_path / "a.gguf")
    formats = {tensor.format for tensor in map(read.tensor, ("layers.0.q", "layers.1.o", "layers.1.v"))}
    assert formats == {"Q8_0" if kind == "narrow" and weights == "q4_k" else weights.upper()}
    assert np.array_equal(logits(read), found)
    assert np.array_equal(logits(read, threads=1), found)
    plain = logits(source)
    # Another model than the one in bf16, and not a wholly other one, which would be off by the root of two.
    assert 1e-3 < np.sqrt(((found - plain) ** 2).mean() / (plain**2).mean()) < 0.5


@pytest.mark.parametrize("weights", ["q8_0", "q4_0", "q4_k"])
def test_load_and_convert_make_the_same_weights(weights: str, tmp_path: Path) -> None:
    """By the names that a user knows them under, from a folder with a vocabulary."""
    config = WIDE["scout"]()
    config.vocab_size = 257
    folder = save("with-vocabulary", config, torch.bfloat16, tmp_path / "hf")
    write_vocabulary(folder)
    path = tmp_path / "converted.gguf"
    assert main(["convert", "-m", str(folder), "-o", str(path), "--weights", weights, "--threads", "1"]) == 0
    ids = random_ids(open_source(folder).config, LENGTH)
    options: dict[str, Any] = {"kv_cache": "f32", "max_context": 64}
    loaded = llama_ext.load(folder, weights=weights, threads=2, **options)
    converted = llama_ext.load(path, threads=1, **options)
    assert np.array_equal(loaded.session().logits(ids), converted.session().logits(ids))
    assert not np.array_equal(
        loaded.session().logits(ids), llama_ext.load(folder, threads=1, **options).session().logits(ids)
    )


def test_the_keys_of_a_vocabulary_are_not_the_models(tmp_path: Path) -> None:
    """What the tokenizers write besides is passed over by the config, and no other key of ours that is unknown."""
    source = case("llama1").source
    values = source.config.to_gguf()
    written: set[str] = set()
    for file in Path(llama_ext.tokenizer.__file__).parent.glob("*.py"):
        written |= set(re.findall(r'"(llama_ext\.tokenizer\.[a-z_]+)"', file.read_text()))
    assert "llama_ext.tokenizer.end_token_ids" in written
    for key in written:
        found = LlamaConfig.from_gguf(values | {key: "of any type"}, {"output.weight"})
        assert found == LlamaConfig.from_gguf(values, {"output.weight"}), key
    with pytest.raises(llama_ext.CheckpointError, match=r"'llama_ext\.end_token' in the GGUF is unknown"):
        LlamaConfig.from_gguf(values | {"llama_ext.end_token": 3}, {"output.weight"})


def write_vocabulary(folder: Path) -> None:
    """A tokenizer.json of 256 bytes and one merge."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate([*alphabet, "ab"])}, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
