"""One model in every format: each reader gives the same bits in the one layout, those that the model's modules hold."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerances
import torch
from checkpoint_models import (
    MODELS,
    Tensors,
    config_of,
    layout_of,
    meta_params,
    meta_shards,
    random_model,
    raw,
    text_config,
    write_gguf,
    write_meta,
)
from models import deviation
from safetensors.torch import load_file, save_file

from llama_ext.checkpoint.assemble import Part, assemble, place
from llama_ext.checkpoint.gguf import GgufFile
from llama_ext.checkpoint.hf import HfSource
from llama_ext.checkpoint.meta import MetaSource
from llama_ext.checkpoint.names import GgufWeights
from llama_ext.checkpoint.open import open_source
from llama_ext.checkpoint.source import Source
from llama_ext.config import LlamaConfig
from llama_ext.config.layout import is_vector, layout
from llama_ext.errors import CheckpointError

FORMATS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
LLAMA4 = [kind for kind in MODELS if kind in ("scout", "maverick")]
DENSE = ["llama1", "llama2-gqa", "llama3.2-tied"]


def check(source: Source, config: LlamaConfig, expected: Tensors) -> None:
    """Every tensor of the layout, bit for bit, by its bytes and as an operand; nothing left over."""
    assert set(layout(config)) == set(expected)
    stored = set()
    for name, tensor in expected.items():
        found = source.tensor(name)
        stored.add(found.stored)
        if is_vector(name):
            assert (found.format, found.rows, found.cols) == ("F32", 1, len(tensor)), name
            assert found.read().tobytes() == raw(tensor.float()), name
        else:
            assert (found.format, found.rows, found.cols) == (FORMATS[tensor.dtype], *tensor.shape), name
            assert found.read().tobytes() == raw(tensor), name
        assert found.nbytes == found.read().nbytes and found.read().dtype == np.uint8
        weight = source.weight(name)
        assert weight is source.weight(name)
        assert np.array_equal(weight.dequantize().reshape(-1), tensor.float().numpy().reshape(-1)), name
    assert len(stored) == len(expected)  # a name that stands for two tensors would hide one
    assert source.unused() == []


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., tuple[Path, LlamaConfig, Tensors]]:
    def save(kind: str, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Path, LlamaConfig, Tensors]:
        model = random_model(kind, dtype)
        model.save_pretrained(tmp_path / kind, **options)
        return tmp_path / kind, config_of(model), layout_of(model)

    return save


@pytest.mark.parametrize("kind", MODELS)
def test_hugging_face(kind: str, saved: Callable[..., Any]) -> None:
    folder, config, expected = saved(kind)
    source = HfSource(folder, config)
    check(source, config, expected)
    vision = [name for name in source.ignored() if "vision" in name or "multi_modal" in name]
    assert source.ignored() == vision and bool(vision) == (kind == "scout-vision")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["llama3", "mixtral", "maverick"])
def test_hugging_face_types(kind: str, dtype: torch.dtype, saved: Callable[..., Any]) -> None:
    folder, config, expected = saved(kind, dtype)
    check(HfSource(folder, config), config, expected)


def test_sharded_with_and_without_an_index(saved: Callable[..., Any]) -> None:
    folder, config, expected = saved("llama2-gqa", max_shard_size="60KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    check(HfSource(folder, config), config, expected)
    (folder / "model.safetensors.index.json").unlink()
    source = HfSource(folder, config)
    check(source, config, expected)
    assert source.files() == shards
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=rf"{shards[1].name} of {len(shards)} files.*download"):
        HfSource(folder, config)


def test_files_are_mapped_not_copied(saved: Callable[..., Any]) -> None:
    folder, config, _ = saved("llama3", torch.bfloat16)
    source = HfSource(folder, config)
    for name in ("embed", "layers.0.v", "layers.1.down", "head"):
        data = source.tensor(name).read()
        assert not data.flags.owndata and not data.flags.writeable
        assert data.ctypes.data == source.tensor(name).read().ctypes.data
    q = source.tensor("layers.0.q")
    assert callable(q.data)  # a permutation is made when it is needed, and not before


def test_tensors_at_odd_addresses(saved: Callable[..., Any]) -> None:
    """A header of any length is valid; what is not aligned is copied."""
    folder, config, expected = saved("mixtral", torch.bfloat16)
    file = folder / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    file.write_bytes((length + 1).to_bytes(8, "little") + content[8 : 8 + length] + b" " + content[8 + length :])
    source = HfSource(folder, config)
    check(source, config, expected)
    for name in expected:
        assert source.tensor(name).read().ctypes.data % 2 == 0


def test_the_order_of_q_and_k_is_that_of_the_rotation(saved: Callable[..., Any]) -> None:
    """What transformers rotates in halves, the layout rotates in neighbours: the same numbers in another order."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    folder, config, _ = saved("head_dim-apart")
    model = random_model("head_dim-apart")
    x = torch.randn(1, 3, config.hidden_size, generator=torch.Generator().manual_seed(1))
    cos, sin = model.model.rotary_emb(x, torch.tensor([[5, 6, 7]]))
    attention = model.model.layers[0].self_attn
    for name, heads, module in (
        ("q", config.num_attention_heads, attention.q_proj),
        ("k", config.num_key_value_heads, attention.k_proj),
    ):
        theirs = module(x).view(1, 3, heads, -1).transpose(1, 2)
        theirs = apply_rotary_pos_emb(theirs, theirs, cos, sin)[0].transpose(1, 2)
        w = torch.from_numpy(HfSource(folder, config).weight(f"layers.0.{name}").dequantize())
        ours = torch.view_as_complex((x @ w.T).view(1, 3, heads, -1, 2))
        angles = torch.outer(torch.tensor([5.0, 6.0, 7.0]), torch.tensor(config.inverse_frequencies()))
        ours = ours * torch.polar(torch.ones_like(angles), angles)[None, :, None, :]
        halves = torch.cat((ours.real, ours.imag), dim=-1)
        # The wrong order differs by order 1.
        assert deviation(halves.detach().numpy(), theirs.detach().numpy()) < tolerances.REFERENCE


def test_old_and_new_names_of_mixtral(saved: Callable[..., Any]) -> None:
    folder, config, expected = saved("mixtral")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    assert any("block_sparse_moe.experts.3.w2" in name for name in tensors)  # what transformers 5.23 saves
    save_file({name.replace("block_sparse_moe", "mlp"): t for name, t in tensors.items()}, file)
    check(HfSource(folder, config), config, expected)
    save_file({n: t.detach().clone() for n, t in random_model("mixtral").state_dict().items()}, file)
    assert any("mlp.experts.gate_up_proj" in name for name in load_file(file))
    source = HfSource(folder, config)
    check(source, config, expected)
    assert not callable(source.tensor("layers.0.experts.2.up").data)


@pytest.mark.parametrize(
    "prefix", ["language_model.model.", "model.language_model.", ""], ids=["outside", "inside", "bare"]
)
def test_prefixes_of_a_text_model(prefix: str, saved: Callable[..., Any]) -> None:
    folder, config, expected = saved("maverick")
    file = folder / "model.safetensors"
    head = "language_model.lm_head." if prefix.startswith("language") else "lm_head."
    renamed = {
        name.replace("model.", prefix, 1) if name.startswith("model.") else name.replace("lm_head.", head): tensor
        for name, tensor in load_file(file).items()
    }
    save_file(renamed, file)
    check(HfSource(folder, config), config, expected)


def test_tied_heads(saved: Callable[..., Any]) -> None:
    folder, config, expected = saved("llama3.2-tied")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    assert "lm_head.weight" not in tensors
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file)
    source = HfSource(folder, config)
    check(source, config, expected)
    assert source.ignored() == ["lm_head.weight"] and source.config.tie_word_embeddings
    # transformers does not tie a head that lies in the file and differs, whatever the config says.
    other = torch.randn(tensors["model.embed_tokens.weight"].shape)
    save_file(tensors | {"lm_head.weight": other}, file)
    source = HfSource(folder, config)
    assert not source.config.tie_word_embeddings
    check(source, source.config, expected | {"head": other})


def test_leftovers(saved: Callable[..., Any]) -> None:
    folder, config, expected = saved("llama1")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    table = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file(tensors | table, file)
    source = HfSource(folder, config)
    check(source, config, expected)
    assert source.ignored() == list(table)
    bias = {"model.layers.1.self_attn.q_proj.bias": torch.ones(64), "vision_model.x": torch.ones(1)}
    save_file(tensors | bias, file)
    source = HfSource(folder, config)
    for name in expected:
        source.tensor(name)
    assert source.unused() == list(bias)  # a llama has no vision that could be left aside


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("embed_axis", [0, 1], ids=["rows", "columns"])
@pytest.mark.parametrize("kind", DENSE)
def test_meta(kind: str, embed_axis: int, shards: int, tmp_path: Path) -> None:
    model = random_model(kind, torch.bfloat16)
    config, expected = config_of(model), layout_of(model)
    written = meta_shards(expected, config, shards, embed_axis=embed_axis)
    for shard in written:
        shard["rope.freqs"] = torch.ones(4)
    folder = write_meta(tmp_path / "meta", written, meta_params(config))
    source = MetaSource(folder, config)
    check(source, config, expected)
    assert source.ignored() == ["rope.freqs"] and len(source.files()) == shards


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("fused", [False, True], ids=["apart", "fused"])
@pytest.mark.parametrize("kind", LLAMA4)
def test_meta_llama4(kind: str, fused: bool, shards: int, tmp_path: Path) -> None:
    model = random_model(kind, torch.bfloat16)
    config, expected = config_of(model), layout_of(model)
    written = meta_shards(expected, config, shards, fused=fused)
    extra = {"vision_embeddings.vision_adapter.mlp.c_fc.weight": torch.ones(2, 2)}
    extra |= {"vision_projection.weight": torch.ones(2, 2), "layers.0.attention.wo._extra_state": torch.ones(1)}
    folder = write_meta(tmp_path / "meta", [shard | extra for shard in written], meta_params(config))
    source = MetaSource(folder, config)
    check(source, config, expected)
    assert source.ignored() == sorted(extra)


def test_meta_with_more_shards_than_key_value_heads(tmp_path: Path) -> None:
    model = random_model("llama3")  # two of them
    config, expected = config_of(model), layout_of(model)
    written = meta_shards(expected, config, 4)
    check(MetaSource(write_meta(tmp_path / "a", written, {}), config), config, expected)
    written[1]["layers.0.attention.wk.weight"] = torch.randn(8, 64)
    with pytest.raises(CheckpointError, match=r"wk\.weight.*neither different heads nor copies"):
        MetaSource(write_meta(tmp_path / "b", written, {}), config).tensor("layers.0.k")


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("kind", ["llama1", "llama2-gqa", *LLAMA4])
def test_the_config_of_a_meta_folder(kind: str, shards: int, tmp_path: Path) -> None:
    model = random_model(kind)
    config, expected = config_of(model), layout_of(model)
    for embed_axis in (0, 1):
        written = meta_shards(expected, config, shards, embed_axis=embed_axis)
        folder = write_meta(tmp_path / f"{embed_axis}", written, meta_params(config, vocab_size=-1))
        source = MetaSource(folder)
        context = source.config.max_position_embeddings  # params.json does not say
        assert source.config == replace(config, max_position_embeddings=context)
        check(source, source.config, expected)


def test_a_meta_head_that_is_a_copy_of_the_embedding(tmp_path: Path) -> None:
    model = random_model("llama3.2-tied", torch.bfloat16)
    config, expected = config_of(model), layout_of(model)
    untied = replace(config, tie_word_embeddings=False)
    shards = meta_shards(expected | {"head": expected["embed"].clone()}, untied, 2)
    source = MetaSource(write_meta(tmp_path / "copy", shards, {}), untied)
    assert source.config.tie_word_embeddings and source.ignored() == ["output.weight"]
    check(source, source.config, expected)
    other = expected["embed"].clone()
    other[-1, -1] += 1
    source = MetaSource(write_meta(tmp_path / "b", meta_shards(expected | {"head": other}, untied, 2), {}), untied)
    check(source, untied, expected | {"head": other})


def test_meta_in_safetensors(tmp_path: Path) -> None:
    """As Mistral publishes its models: consolidated.safetensors, experts one by one."""
    model = random_model("mixtral", torch.bfloat16)
    config, expected = config_of(model), layout_of(model)
    names = {"q": "wq", "k": "wk", "v": "wv", "o": "wo"}
    tensors = {"tok_embeddings.weight": expected["embed"], "norm.weight": expected["norm"]}
    tensors["output.weight"] = expected["head"]
    for name, tensor in expected.items():
        if not name.startswith("layers."):
            continue
        _, layer, kind = name.split(".", 2)
        parts = {"gate": "w1", "down": "w2", "up": "w3"}
        if kind.startswith("experts."):
            _, e, part = kind.split(".")
            stored = f"feed_forward.experts.{e}.{parts[part]}"
        else:
            stored = {"router": "feed_forward.gate"}.get(kind, f"attention.{names[kind]}" if kind in names else kind)
        tensors[f"layers.{layer}.{stored}.weight"] = tensor
    (tmp_path / "params.json").write_text("{}")
    save_file(tensors, tmp_path / "consolidated.safetensors")
    check(MetaSource(tmp_path, config), config, expected)


def test_a_strided_tensor_in_a_pth_file(tmp_path: Path) -> None:
    model = random_model("llama1")
    config, expected = config_of(model), layout_of(model)
    [shard] = meta_shards(expected, config, 1)
    name = "layers.1.feed_forward.w1.weight"
    shard[name] = shard[name].T.contiguous().T  # the same matrix, laid out by columns
    check(MetaSource(write_meta(tmp_path / "meta", [shard], {}), config), config, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["llama1", "llama3.2-tied", "mistral", "mixtral", "scout", "maverick"])
def test_gguf(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = random_model(kind, dtype)
    config, expected = config_of(model), layout_of(model)
    source = GgufWeights(GgufFile(write_gguf(tmp_path / "m.gguf", expected, config)), config)
    check(source, config, expected)
    for name in expected:
        assert is_vector(name) or not source.tensor(name).read().flags.owndata  # in place, experts as well


def test_gguf_with_gate_and_up_in_one_tensor(tmp_path: Path) -> None:
    model = random_model("mixtral")
    config, expected = config_of(model), layout_of(model)
    path = write_gguf(tmp_path / "m.gguf", expected, config, merge_gate_up=True)
    assert GgufFile(path).tensors["blk.1.ffn_gate_up_exps.weight"].shape == (4, 192, 64)
    check(GgufWeights(GgufFile(path), config), config, expected)


def test_gguf_with_experts_in_tensors_of_their_own(tmp_path: Path) -> None:
    model = random_model("mixtral")
    config, expected = config_of(model), layout_of(model)
    path = write_gguf(tmp_path / "m.gguf", expected, config, split_experts=True)
    assert "blk.1.ffn_down.3.weight" in GgufFile(path).tensors
    check(GgufWeights(GgufFile(path), config), config, expected)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize(("rows", "cols"), [(300, 257), (128, 129), (1, 500), (256, 3)])
def test_assembling_matrices_larger_than_a_tile(rows: int, cols: int, dtype: type[Any]) -> None:
    whole = np.random.default_rng(3).integers(0, 60_000, (rows, cols), dtype)
    stored = np.concatenate((whole.T, whole.T + 1), axis=1)  # a strided half is what experts are
    assert assemble([Part(stored[:, :rows], transposed=True)], rows, cols).tobytes() == whole.tobytes()
    at = cols // 3
    parts = [Part(whole[:, :at].T.copy(), transposed=True), Part(whole[:, at:])]
    placed = place(parts, rows, cols)
    assert placed is not None and [(part.row, part.col) for part in placed] == [(0, 0), (0, at)]
    assert assemble(placed, rows, cols).tobytes() == whole.tobytes()
    assert place(parts, rows, cols + 1) is None and place(parts[1:], rows, cols) is None


def test_what_a_wrong_reader_would_give(tmp_path: Path) -> None:
    """The comparison of this file sees an order or an axis that is wrong."""
    model = random_model("llama2-gqa")
    config, expected = config_of(model), layout_of(model)
    halves = {"layers.0.q": model.model.layers[0].self_attn.q_proj.weight.detach()}
    source = GgufWeights(GgufFile(write_gguf(tmp_path / "a.gguf", expected | halves, config)), config)
    with pytest.raises(AssertionError, match=r"layers\.0\.q"):
        check(source, config, expected)
    gate_and_up = {"layers.1.gate": expected["layers.1.up"], "layers.1.up": expected["layers.1.gate"]}
    source = GgufWeights(GgufFile(write_gguf(tmp_path / "b.gguf", expected | gate_and_up, config)), config)
    with pytest.raises(AssertionError, match=r"layers\.1\.gate"):
        check(source, config, expected)


def test_the_config_of_a_folder(saved: Callable[..., Any]) -> None:
    folder, config, expected = saved("maverick")
    source = HfSource(folder)
    assert source.config == config and json.loads((folder / "config.json").read_text())["model_type"] == "llama4_text"
    check(source, config, expected)
    assert text_config(random_model("scout-vision")).model_type == "llama4_text"


def test_the_content_says_what_is_opened(tmp_path: Path) -> None:
    model = random_model("llama2-gqa")
    config, expected = config_of(model), layout_of(model)
    folder = tmp_path / "both"
    write_meta(folder, meta_shards(expected, config, 2), meta_params(config))
    source = open_source(folder)
    assert isinstance(source, MetaSource) and source.tokenizer == folder == source.path
    check(source, source.config, expected)
    # Mistral's folders hold a config.json as well, and the weights in one format or in both.
    model.config.save_pretrained(folder)
    assert isinstance(open_source(folder), MetaSource)
    model.save_pretrained(folder)
    source = open_source(str(folder))
    assert isinstance(source, HfSource) and source.tokenizer == folder == source.path
    assert source.config == dataclasses.replace(config, name="both")  # the folder's
    check(source, config, expected)
    facts = source.describe()
    assert facts["kind"] == "Hugging Face folder" and facts["matrices"] == {"F32": 2 + 2 * 7}
    assert facts["files"] == 1 and facts["file_bytes"] == (folder / "model.safetensors").stat().st_size
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(CheckpointError, match="gpt2") as caught:
        open_source(folder)
    assert str(folder) in str(caught.value)
    path = write_gguf(tmp_path / "nothing-said.bin", expected, config)
    with pytest.raises(CheckpointError, match="llama") as caught:  # its content says GGUF, its metadata says nothing
        open_source(path)
    assert str(path) in str(caught.value)
