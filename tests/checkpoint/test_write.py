"""The GGUF writer and quantizing while reading: what is written is what was read, and llama.cpp computes the same."""

from __future__ import annotations

import ctypes
import dataclasses
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest
import tolerances
import torch
from checkpoint_models import Tensors, config_of, layout_of, neighbours, random_model, raw, write_gguf

from llama_ext import _core
from llama_ext.checkpoint import write
from llama_ext.checkpoint.gguf import FORMATS, GgufFile
from llama_ext.checkpoint.hf import HfSource
from llama_ext.checkpoint.names import GgufWeights, gguf_names
from llama_ext.checkpoint.quantized import fitting_format, quantized, weight_format
from llama_ext.checkpoint.source import Source, Tensor
from llama_ext.config import LlamaConfig
from llama_ext.config.layout import is_router, is_vector, layout
from llama_ext.errors import CheckpointError, OptionError

VOCABULARY = {"tokenizer.ggml.model": "no_vocab"}  # llama.cpp then takes token ids as they are


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., tuple[Any, Source, Tensors]]:
    def save(kind: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Source, Tensors]:
        model = random_model(kind, dtype)
        model.save_pretrained(tmp_path / kind)
        return model, HfSource(tmp_path / kind, config_of(model)), layout_of(model)

    return save


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["llama1", "llama3.1", "llama3.2-tied", "mixtral", "scout", "maverick"])
def test_what_is_written_is_what_was_read(
    kind: str, dtype: torch.dtype, saved: Callable[..., Any], tmp_path: Path
) -> None:
    _, source, expected = saved(kind, dtype)
    path = tmp_path / "out.gguf"
    size = write.write_gguf(source, path, tokenizer=VOCABULARY)
    assert path.stat().st_size == size
    file = GgufFile(path)
    read = GgufWeights(file, source.config)
    for name, tensor in expected.items():
        found = read.tensor(name)
        if is_vector(name) or is_router(name):
            assert found.format == "F32" and found.read().tobytes() == raw(tensor.float())
        else:
            assert found.read().tobytes() == raw(tensor), name
    assert read.unused() == [] and set(file.tensors) - {"rope_freqs.weight"} == {
        entry.name for entry in gguf_names(source.config)
    }
    # The package that llama.cpp's own tools are made with agrees about every name, shape and byte.
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert set(theirs) == set(file.tensors)
    for name, tensor in file.tensors.items():
        assert tuple(reversed(theirs[name].shape.tolist())) == tensor.shape
        assert theirs[name].tensor_type.name == tensor.format
        assert theirs[name].data.tobytes() == tensor.data.tobytes()
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH[str(file.metadata["general.architecture"]).upper()], 8)
    for name in file.tensors:
        assert known.get_name(name.removesuffix(".weight")) is not None, name
    most = "F32" if dtype is torch.float32 else "BF16"
    assert file.metadata["general.file_type"] == {"F32": 0, "BF16": 32}[most]


def test_scaling_goes_into_a_tensor(saved: Callable[..., Any], tmp_path: Path) -> None:
    model, source, _ = saved("llama3.1")
    write.write_gguf(source, tmp_path / "out.gguf", tokenizer=VOCABULARY)
    file = GgufFile(tmp_path / "out.gguf")
    factors = GgufWeights(file, dataclasses.replace(source.config, rope_scaling=None)).rope_factors()
    assert factors is not None and factors.shape == (4,)
    plain = np.array([500000.0 ** (-2 * i / 8) for i in range(4)])
    theirs = model.model.rotary_emb.inv_freq.numpy()
    assert np.allclose(plain / factors, theirs, rtol=tolerances.ROTATION_TABLE, atol=0)
    assert factors.max() == 8 and factors.min() == 1  # both ends of the blend are there
    # The metadata says it as well, exactly; it must not count twice.
    found = GgufWeights(file)
    assert found.rope_factors() is None
    assert found.config.inverse_frequencies() == source.config.inverse_frequencies()
    # A file of another writer has the tensor alone.
    file.metadata = {key: value for key, value in file.metadata.items() if not key.startswith("llama_ext.rope")}
    foreign = GgufWeights(file)
    given = foreign.rope_factors()
    assert given is not None and np.array_equal(given, factors)
    frequencies = np.array(foreign.config.inverse_frequencies()) / given
    # A factor is rounded to float32 once.
    assert np.allclose(frequencies, source.config.inverse_frequencies(), rtol=2 * tolerances.ROUNDING, atol=0)
    _, source, _ = saved("llama3")
    write.write_gguf(source, tmp_path / "plain.gguf", tokenizer=VOCABULARY)
    assert "rope_freqs.weight" not in GgufFile(tmp_path / "plain.gguf").tensors


def test_from_gguf_to_gguf(saved: Callable[..., Any], tmp_path: Path) -> None:
    """Metadata, vocabulary and factors of a GGUF go along."""
    _, source, _ = saved("llama3.1")
    vocabulary: dict[str, object] = VOCABULARY | {
        "tokenizer.ggml.tokens": ["a", "\udcff", "日本", ""],
        "tokenizer.ggml.scores": [0.5, -1.0, 0.0, 1e-3],
        "tokenizer.ggml.token_type": [1, 2, 3, 6],
        "tokenizer.ggml.add_bos_token": True,
        "general.counts": np.array([1, 2**63], np.uint64),
        "general.small": np.array([-1, 2], np.int8),
        "general.flags": np.array([True, False]),
        "general.least": -5,
        "general.most": 2**40,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.chat_template": "{{ messages }}\n",
    }
    write.write_gguf(source, tmp_path / "a.gguf", tokenizer=vocabulary)
    first = GgufFile(tmp_path / "a.gguf")
    write.write_gguf(GgufWeights(first, source.config), tmp_path / "b.gguf")
    second = GgufFile(tmp_path / "b.gguf")
    assert set(first.metadata) == set(second.metadata)
    for key, value in first.metadata.items():
        same = (
            np.array_equal(value, second.metadata[key])
            if isinstance(value, np.ndarray)
            else value == second.metadata[key]
        )
        assert same, key
    for key, value in vocabulary.items():
        found = second.metadata[key]
        if isinstance(found, np.ndarray):
            assert np.allclose(found, np.array(value))
            assert found.dtype == (value.dtype if isinstance(value, np.ndarray) else found.dtype)
            assert isinstance(value, np.ndarray) or found.dtype in (np.float32, np.int32)
        else:
            assert found == value
    assert {n: t.data.tobytes() for n, t in first.tensors.items()} == {
        n: t.data.tobytes() for n, t in second.tensors.items()
    }
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


class LlamaCpp:
    """Logits of llama.cpp, keys and values in float32."""

    def __init__(self, path: Path) -> None:
        parameters = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        assert self.model, "llama.cpp does not load the file"
        context = llama_cpp.llama_context_default_params()
        context.n_ctx, context.n_batch, context.n_threads, context.n_threads_batch = 64, 64, 1, 1
        context.type_k = context.type_v = 0
        context.flash_attn_type = 0
        self.context = llama_cpp.llama_init_from_model(self.model, context)
        assert self.context

    def logits(self, ids: list[int], vocabulary: int) -> np.ndarray:
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        for index, token in enumerate(ids):
            batch.token[index], batch.pos[index], batch.logits[index] = token, index, 1
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
        batch.n_tokens = len(ids)
        assert llama_cpp.llama_decode(self.context, batch) == 0
        out = llama_cpp.llama_get_logits(self.context)
        values = np.ctypeslib.as_array(out, (len(ids), vocabulary)).copy()
        llama_cpp.llama_batch_free(batch)
        return values

    def close(self) -> None:
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)


@pytest.fixture(scope="module")
def quiet() -> Iterator[None]:
    callback = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    yield
    llama_cpp.llama_log_set(ctypes.cast(None, llama_cpp.llama_log_callback), ctypes.c_void_p(0))


IDS = [3, 50, 99, 7, 7, 21, 64, 80, 12, 5, 33, 90]


@pytest.mark.parametrize(
    "kind", ["llama1", "llama3", "llama3.1", "llama3.2-tied", "head_dim-apart", "mixtral", "scout", "maverick"]
)
def test_llama_cpp_computes_the_same(kind: str, quiet: None, tmp_path: Path) -> None:
    # llama.cpp takes Llama 4's chunk for 8192 positions, and QK-norm for granted with other than 128 experts.
    llama4 = {"attention_chunk_size": 8192, "use_qk_norm": True} if kind in ("scout", "maverick") else {}
    model = random_model(kind, **llama4)
    model.save_pretrained(tmp_path / kind)
    source = HfSource(tmp_path / kind, config_of(model))

    def logits(source: Source, name: str) -> np.ndarray:
        write.write_gguf(source, tmp_path / name, tokenizer=VOCABULARY)
        theirs = LlamaCpp(tmp_path / name)
        found = theirs.logits(IDS, 100)
        theirs.close()
        return found

    with torch.inference_mode():
        expected = model(torch.tensor([IDS])).logits[0].numpy()
    found = logits(source, "out.gguf")
    off = float(np.abs(found - expected).max() / np.abs(expected).max())
    print(kind, off)
    assert off < tolerances.LLAMA_CPP
    # The bound is one that a mix-up does not meet: here, rows of k in another order.
    k = layout_of(model)["layers.1.k"]
    wrong = logits(
        Replaced(source, layout_of(model) | {"layers.1.k": neighbours(k, source.config.head_dim)}), "wrong.gguf"
    )
    off = float(np.abs(wrong - expected).max() / np.abs(expected).max())
    print(kind, "k in another order", off)
    assert off > 10 * tolerances.LLAMA_CPP


class Replaced(Source):
    """A source with other tensors."""

    kind = "test"

    def __init__(self, source: Source, tensors: Tensors) -> None:
        super().__init__()
        self.path, self.config, self.tokenizer, self.tensors = source.path, source.config, source.tokenizer, tensors

    def tensor(self, name: str) -> Tensor:
        values = self.tensors[name].float().numpy()
        rows, cols = values.shape if values.ndim == 2 else (1, values.shape[0])
        return Tensor(name, "F32", rows, cols, np.ascontiguousarray(values).reshape(-1).view(np.uint8))

    def unused(self) -> list[str]:
        return []

    def ignored(self) -> list[str]:
        return []

    def files(self) -> list[Path]:
        return []


class Counting(Replaced):
    """Counts the tensors whose bytes are alive."""

    def __init__(self, source: Source, tensors: Tensors) -> None:
        super().__init__(source, tensors)
        self.alive: list[int] = []
        self.most = 0

    def tensor(self, name: str) -> Tensor:
        tensor = super().tensor(name)

        def make() -> np.ndarray:
            import weakref

            data = tensor.read().copy()
            self.alive.append(1)
            self.most = max(self.most, len(self.alive))
            weakref.finalize(data, self.alive.pop)
            return data

        return dataclasses.replace(tensor, data=make)


def test_one_tensor_in_memory(saved: Callable[..., Any], tmp_path: Path) -> None:
    _, source, expected = saved("mixtral")
    counting = Counting(source, expected)
    seen: list[tuple[int, int]] = []
    write.write_gguf(counting, tmp_path / "a.gguf", tokenizer=VOCABULARY, progress=lambda *a: seen.append(a))
    assert counting.most <= 2 and not counting.alive  # a piece that is written, while the next is made
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1] and len({total for _, total in seen}) == 1


def test_pages_that_were_written_are_given_back(tmp_path: Path) -> None:
    """Of a map that is copied as it is, no more stays resident than what is being written."""
    count, rows = 24, 1024
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    config = _big_config(count, rows)
    for key, value in config.to_gguf().items():
        write._add(writer, key, value) if key != "general.architecture" else None
    for name in gguf_names(config):
        writer.add_tensor(name.name, np.ones(name.shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = GgufWeights(GgufFile(tmp_path / "a.gguf"))
    whole = (tmp_path / "a.gguf").stat().st_size
    before, seen = _resident_file_bytes(), []
    write.write_gguf(source, tmp_path / "b.gguf", progress=lambda *_: seen.append(_resident_file_bytes()))
    assert whole > 100 << 20 and max(seen) - before < whole / 4
    assert (tmp_path / "b.gguf").stat().st_size >= whole - 4096


def _big_config(layers: int, hidden: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=256,
        vocab_size=64,
        max_position_embeddings=64,
    )


def _resident_file_bytes() -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile")]
    return int(line.split()[1]) << 10


def test_files_that_are_there_and_disks_without_room(
    saved: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, source, expected = saved("llama1")
    out = tmp_path / "out"
    out.mkdir()
    path = out / "a.gguf"
    path.write_text("mine")
    with pytest.raises(OptionError, match=r"is there already; .*--force"):
        write.write_gguf(source, path, tokenizer=VOCABULARY)
    assert path.read_text() == "mine"
    with monkeypatch.context() as patch:
        usage = shutil.disk_usage(out)
        patch.setattr(write.shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(OptionError, match=r"needs 0\.00 GB, its disk has room for"):
            write.write_gguf(source, path, tokenizer=VOCABULARY, force=True)
    assert path.read_text() == "mine" and list(out.iterdir()) == [path]

    class Broken(Replaced):
        def tensor(self, name: str) -> Tensor:
            tensor = super().tensor(name)
            if name != "layers.1.up":
                return tensor

            def fail() -> np.ndarray:
                raise CheckpointError("the disk is gone; plug it in")

            return dataclasses.replace(tensor, data=fail)

    with pytest.raises(CheckpointError, match="the disk is gone"):
        write.write_gguf(Broken(source, expected), path, tokenizer=VOCABULARY, force=True)
    assert path.read_text() == "mine" and list(out.iterdir()) == [path]
    write.write_gguf(source, path, tokenizer=VOCABULARY, force=True)
    assert list(out.iterdir()) == [path] and path.read_bytes()[:4] == b"GGUF"
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    link = tmp_path / "link.gguf"
    link.symlink_to(path)
    write.write_gguf(source, link, tokenizer=VOCABULARY, force=True)
    assert link.is_symlink() and list(out.iterdir()) == [path]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OptionError, match="is no regular file"):
        write.write_gguf(source, tmp_path / "pipe", tokenizer=VOCABULARY, force=True)
    with pytest.raises(OptionError, match="is a folder"):
        write.write_gguf(source, out, tokenizer=VOCABULARY)
    with pytest.raises(OptionError, match="cannot be written"):
        write.write_gguf(source, tmp_path / "nowhere" / "a.gguf", tokenizer=VOCABULARY)


def test_a_file_may_replace_its_own_source(saved: Callable[..., Any], tmp_path: Path) -> None:
    _, source, expected = saved("llama1")
    path = tmp_path / "a.gguf"
    write.write_gguf(source, path, tokenizer=VOCABULARY)
    write.write_gguf(quantized(GgufWeights(GgufFile(path), source.config), "bf16"), path, force=True)
    found = GgufWeights(GgufFile(path), source.config).tensor("layers.0.q")
    assert found.format == "BF16" and found.read().tobytes() == raw(expected["layers.0.q"].bfloat16())


def test_what_cannot_be_written(saved: Callable[..., Any], tmp_path: Path) -> None:
    model, source, expected = saved("mixtral")

    class Short(Replaced):
        def tensor(self, name: str) -> Tensor:
            tensor = super().tensor(name)
            return dataclasses.replace(tensor, data=tensor.read()[:-4]) if name == "layers.0.o" else tensor

    with pytest.raises(CheckpointError, match=r"'blk\.0\.attn_output\.weight' has .* bytes, expected"):
        write.write_gguf(Short(source, expected), tmp_path / "a.gguf", tokenizer=VOCABULARY)

    class Mixed(Replaced):
        def tensor(self, name: str) -> Tensor:
            tensor = super().tensor(name)
            if name != "layers.1.experts.2.up":
                return tensor
            return dataclasses.replace(tensor, format="F16", data=tensor.read()[: tensor.nbytes // 2])

    with pytest.raises(CheckpointError, match=r"'layers\.1\.experts\.2\.up' F16 .*--weights q8_0"):
        write.write_gguf(Mixed(source, expected), tmp_path / "a.gguf", tokenizer=VOCABULARY)
    assert not (tmp_path / "a.gguf").exists()
    config, tensors = config_of(model), layout_of(model)
    extra = write_gguf(tmp_path / "b.gguf", tensors | {"layers.0.shared.up": torch.ones(3, 3)}, config)
    with pytest.raises(CheckpointError, match=r"no use for \(blk\.0\.ffn_up_shexp\.weight\)"):
        write.write_gguf(GgufWeights(GgufFile(extra), config), tmp_path / "a.gguf", tokenizer=VOCABULARY)
    with pytest.raises(CheckpointError, match=r"'x\.y' has a value of type dict"):
        write.write_gguf(source, tmp_path / "a.gguf", tokenizer=VOCABULARY | {"x.y": {}})


def test_formats_for_rows_that_do_not_fit() -> None:
    cases = {
        ("Q4_K", 256): "Q4_K",
        ("Q4_K", 64): "Q8_0",
        ("Q6_K", 96): "Q8_0",
        ("Q4_0", 96): "Q4_0",
        ("Q4_0", 40): "BF16",
        ("Q8_0", 1): "BF16",
        ("Q5_K", 7): "BF16",
        ("F32", 7): "F32",
        ("F16", 3): "F16",
    }
    assert {case: fitting_format(*case) for case in cases} == cases
    assert [weight_format(name) for name in ("q4_k", "Q8_0", "bf16")] == ["Q4_K", "Q8_0", "BF16"]
    for wrong in ("q4", "", None, 4, "Q4_K_M"):
        with pytest.raises(OptionError, match=r"is unknown; use one of bf16, .*q8_0"):
            weight_format(wrong)


@pytest.mark.parametrize("format", [*FORMATS])
@pytest.mark.parametrize("kind", ["llama2-gqa", "maverick"])
def test_quantized_while_reading(kind: str, format: str, saved: Callable[..., Any]) -> None:
    _, source, expected = saved(kind)
    made = quantized(source, format.lower(), threads=2)
    fell = 0
    for name, shape in layout(source.config).items():
        tensor, plain = made.tensor(name), source.tensor(name)
        if is_vector(name) or is_router(name):
            assert (tensor.format, tensor.read().tobytes()) == (plain.format, plain.read().tobytes())
            continue
        target = fitting_format(format, shape[1])
        fell += target != format
        assert (tensor.format, tensor.rows, tensor.cols) == (target, *shape)
        assert tensor.read().tobytes() == _core.quantize(plain.weight(), target).tobytes()
        assert made.weight(name).format == target and made.weight(name).nbytes == tensor.nbytes == tensor.read().nbytes
        # Coarse, so that only a wrong matrix or a wrong format fails; the formats have tests of their own.
        values, off = expected[name].numpy(), made.weight(name).dequantize() - expected[name].numpy()
        assert math.sqrt((off**2).mean() / (values**2).mean()) < {"Q4_": 0.15, "Q5_": 0.08}.get(target[:3], 0.03)
    facts = made.describe()
    assert facts["weights"] == format and len(facts["fallbacks"]) == fell
    assert (fell > 0) == (format.endswith("_K") or (kind == "maverick" and format.startswith("Q")))
    assert set(facts["matrices"]) == {
        fitting_format(format, s[1]) for s in layout(source.config).values() if len(s) > 1
    } - {*(["F32"] if kind == "maverick" and format != "F32" else [])}
    assert made.unused() == []


def test_floats_keep_their_bits(saved: Callable[..., Any]) -> None:
    _, source, expected = saved("llama1")
    for name in ("embed", "layers.1.q"):
        assert quantized(source, "f32").tensor(name).data is not None
        assert quantized(source, "f32").tensor(name).read().tobytes() == raw(expected[name])
        assert quantized(source, "f16").tensor(name).read().tobytes() == raw(expected[name].half())
        assert quantized(source, "bf16").tensor(name).read().tobytes() == raw(expected[name].bfloat16())


def test_weights_that_are_no_numbers(saved: Callable[..., Any]) -> None:
    _, source, expected = saved("llama1")
    broken = expected["layers.0.up"].clone()
    broken[3, 5] = math.nan
    bad = quantized(Replaced(source, expected | {"layers.0.up": broken}), "q4_0")
    with pytest.raises(CheckpointError, match=r"layers\.0\.up.*download the model again"):
        bad.tensor("layers.0.up").read()


def test_a_quantized_file(saved: Callable[..., Any], tmp_path: Path) -> None:
    """Scout's experts have rows of 48: what fits is Q4_0, the rest BF16, each stack of one kind."""
    _, source, _ = saved("scout")
    made = quantized(source, "q4_0", threads=2)
    write.write_gguf(made, tmp_path / "a.gguf", tokenizer=VOCABULARY)
    read = GgufWeights(GgufFile(tmp_path / "a.gguf"), source.config)
    for name in layout(source.config):
        if not is_router(name):
            assert read.tensor(name).read().tobytes() == made.tensor(name).read().tobytes()
    assert read.tensor("layers.0.experts.3.down").format == "BF16"
    assert read.tensor("layers.0.experts.3.up").format == "Q4_0"
    assert read.describe()["matrices"] == made.describe()["matrices"]


def test_the_config_of_what_was_written(saved: Callable[..., Any], tmp_path: Path) -> None:
    for kind in ("llama1", "llama3.1", "llama3.2-tied", "mistral", "mixtral", "scout", "maverick"):
        _, source, _ = saved(kind)
        write.write_gguf(source, tmp_path / f"{kind}.gguf", tokenizer=VOCABULARY)
        found = GgufWeights(GgufFile(tmp_path / f"{kind}.gguf")).config
        assert dataclasses.replace(found, name="") == dataclasses.replace(source.config, name=""), kind
