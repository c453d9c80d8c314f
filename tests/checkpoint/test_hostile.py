"""Files that are damaged, cut short or made to harm: one CheckpointError each, which names the file and the mend."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_models import Tensors, config_of, layout_of, meta_shards, random_model, write_gguf, write_meta
from safetensors.torch import save_file

from llama_ext.checkpoint.gguf import GgufFile
from llama_ext.checkpoint.hf import HfSource, read_json
from llama_ext.checkpoint.meta import MetaSource
from llama_ext.checkpoint.names import GgufWeights
from llama_ext.checkpoint.open import open_source, resolve
from llama_ext.checkpoint.safetensors import SafetensorsFile, values_of
from llama_ext.config import LlamaConfig
from llama_ext.config.layout import layout
from llama_ext.errors import CheckpointError, OptionError

F32 = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def safetensors(path: Path, header: Any, data: bytes, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def test_a_good_file(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32)
    header = {"__metadata__": {"format": "pt"}, "b": F32, "empty": {"dtype": "I8", "shape": [0, 4]}}
    header["empty"]["data_offsets"] = [24, 24]
    header["a"] = {"dtype": "BF16", "shape": [], "data_offsets": [24, 26]}
    # The header's length is odd here, so the tensors lie at odd addresses.
    text = json.dumps(header).encode()
    file = SafetensorsFile(safetensors(tmp_path / "a", text + b" " * (1 - len(text) % 2), values.tobytes() + b"ab"))
    assert file.tensors["b"].data.ctypes.data % 2
    assert values_of(file.tensors["b"]).view(np.float32).tolist() == values.reshape(2, 3).tolist()
    assert values_of(file.tensors["a"]).shape == ()


def test_the_same_as_the_safetensors_package(tmp_path: Path) -> None:
    tensors = {
        "x": torch.randn(3, 5),
        "y": torch.randn(4, 2, 2).to(torch.bfloat16),
        "z": torch.randn(7).half(),
        "i": torch.arange(3),
    }
    save_file(tensors, tmp_path / "a.safetensors", metadata={"a": "b"})
    file = SafetensorsFile(tmp_path / "a.safetensors")
    assert set(file.tensors) == set(tensors)
    for name, tensor in tensors.items():
        assert file.tensors[name].shape == tuple(tensor.shape)
        assert file.tensors[name].data.tobytes() == tensor.contiguous().view(torch.uint8).numpy().tobytes()


BAD: dict[str, tuple[Any, bytes, int | None, str]] = {
    "no header": (b"", b"", 5, "header claims 5 bytes"),
    "huge header": ({"a": F32}, bytes(24), 2**63, "header claims"),
    "header past the end": ({"a": F32}, b"", 1000, "header claims 1,000 bytes"),
    "no JSON": (b"{]", b"", None, "no JSON"),
    "no UTF-8": (b'{"\xff": 1}', b"", None, "no JSON"),
    "nested": (b"[" * 100_000, b"", None, "no JSON"),
    "a number of many digits": (b'{"a": ' + b"9" * 10_000 + b"}", b"", None, "no JSON"),
    "a list": ([1], b"", None, "no JSON object"),
    "twice": (b'{"a": {}, "a": {}}', b"", None, "occurs twice"),
    "an entry that is none": ({"a": 5}, b"", None, "no JSON object"),
    "no type": ({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4), None, "unknown type None"),
    "unknown type": ({"a": F32 | {"dtype": "F12"}}, bytes(24), None, "unknown type 'F12'"),
    "negative": ({"a": F32 | {"shape": [-2, -3]}}, bytes(24), None, "impossible shape"),
    "true": ({"a": F32 | {"shape": [True, 6]}}, bytes(24), None, "impossible shape"),
    "nine dimensions": ({"a": F32 | {"shape": [1] * 8 + [6]}}, bytes(24), None, "impossible shape"),
    "offsets": ({"a": F32 | {"data_offsets": [24]}}, bytes(24), None, "impossible offsets"),
    "backwards": ({"a": F32 | {"data_offsets": [24, 0]}}, bytes(24), None, "from byte 24 to 0"),
    "past the end": ({"a": F32 | {"data_offsets": [24, 48]}}, bytes(24), None, "to 48 of 24"),
    "truncated": ({"a": F32}, bytes(23), None, "to 24 of 23"),
    "shape against bytes": ({"a": F32 | {"shape": [2, 4]}}, bytes(24), None, "takes 32 bytes, the file has 24"),
    "overflow": ({"a": F32 | {"shape": [2**61, 8]}}, bytes(24), None, "the file has 24"),
    "overlap": (
        {"a": F32, "b": F32 | {"data_offsets": [12, 36]}},
        bytes(36),
        None,
        "'b' overlaps",
    ),
    "gap": ({"a": F32, "b": F32 | {"data_offsets": [28, 52]}}, bytes(52), None, "'b' leaves a gap"),
    "a rest": ({"a": F32}, bytes(30), None, "end at byte 24 of 30"),
}


@pytest.mark.parametrize("case", BAD)
def test_hostile_safetensors(case: str, tmp_path: Path) -> None:
    header, data, length, message = BAD[case]
    path = safetensors(tmp_path / "model.safetensors", header, data, length)
    with pytest.raises(CheckpointError, match=message) as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value) and caught.value.__class__ is CheckpointError
    assert any(mend in str(caught.value) for mend in ("download it again", "use a file"))


@pytest.mark.parametrize("content", [b"", b"1234567"])
def test_files_that_are_too_short(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(CheckpointError, match="download it again"):
        SafetensorsFile(tmp_path / "a")


def test_damaged_bytes_in_a_header(tmp_path: Path) -> None:
    """A byte changed anywhere: an error or a file, never anything else, and no memory beyond the file's size."""
    good = tmp_path / "good.safetensors"
    save_file({"x": torch.randn(3, 5), "y": torch.randn(8)}, good)
    content = good.read_bytes()
    rng = random.Random(7)
    header = 8 + int.from_bytes(content[:8], "little")
    bad = tmp_path / "bad.safetensors"
    refused = 0
    tracemalloc.start()
    for _ in range(400):
        changed = bytearray(content)
        changed[rng.randrange(header)] = rng.randrange(256)
        bad.write_bytes(changed)
        try:
            SafetensorsFile(bad)
        except CheckpointError:
            refused += 1
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert refused > 200


@pytest.fixture
def folder(tmp_path: Path) -> tuple[Path, LlamaConfig]:
    model = random_model("llama1")
    model.save_pretrained(tmp_path / "hf", max_shard_size="60KB")
    return tmp_path / "hf", config_of(model)


def change_index(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    index = folder / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    changed = change(values)
    index.write_text(json.dumps(values if changed is None else changed))
    return index


def test_hostile_indexes(folder: tuple[Path, LlamaConfig]) -> None:
    path, config = folder
    index = path / "model.safetensors.index.json"
    original = index.read_text()
    norm = "model.norm.weight"
    cases: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
        (lambda values: [values], "no JSON object"),
        (lambda values: {"metadata": {}}, "no 'weight_map'"),
        (lambda values: {"weight_map": {}}, "no 'weight_map'"),
        (lambda values: values["weight_map"].update({norm: "../secret.safetensors"}), "no file name"),
        (lambda values: values["weight_map"].update({norm: "/etc/passwd"}), "no file name"),
        (lambda values: values["weight_map"].update({norm: 7}), "no file name"),
        (lambda values: values["weight_map"].update({norm: ".."}), "no file name"),
        (
            lambda values: values["weight_map"].update({norm: "model-9.safetensors"}),
            "model-9.safetensors of .* missing",
        ),
        (
            lambda values: values["weight_map"].update({"model.other": values["weight_map"][norm]}),
            "'model.other' is not",
        ),
    ]
    for change, message in cases:
        index.write_text(original)
        change_index(path, change)
        with pytest.raises(CheckpointError, match=message) as caught:
            HfSource(path, config)
        assert str(path) in str(caught.value) and "download" in str(caught.value), message
    index.write_text("{")
    with pytest.raises(CheckpointError, match="no JSON"):
        HfSource(path, config)
    index.write_text(original)
    HfSource(path, config)


def test_two_models_in_one_folder(folder: tuple[Path, LlamaConfig]) -> None:
    path, config = folder
    (path / "model.safetensors.index.json").unlink()
    save_file({"model.norm.weight": torch.ones(64)}, path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight' is in .* and in .*keep the shards of one"):
        HfSource(path, config)


def test_weights_of_another_config(tmp_path: Path) -> None:
    model = random_model("llama1")
    model.save_pretrained(tmp_path)
    other = config_of(random_model("llama2-gqa"))
    with pytest.raises(CheckpointError, match=r"k_proj\.weight' is \[64, 64\], the config asks for \[32, 64\].*take"):
        HfSource(tmp_path, other).tensor("layers.0.k")
    file = tmp_path / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(tensors | {"model.norm.weight": torch.ones(64, 1)}, file)
    with pytest.raises(CheckpointError, match=r"norm\.weight' is \[64, 1\], the config asks for \[64\]"):
        HfSource(tmp_path, config_of(model)).tensor("norm")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight' is missing; download"):
        HfSource(tmp_path, config_of(model)).tensor("layers.1.up")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.float64], ids=str)
def test_types_that_are_no_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    model = random_model("llama1")
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].to(dtype)
    save_file(tensors, tmp_path / "model.safetensors")
    name = {torch.float8_e4m3fn: "F8_E4M3", torch.int8: "I8", torch.float64: "F64"}[dtype]
    source = HfSource(tmp_path, config_of(model))
    with pytest.raises(CheckpointError, match=rf"up_proj\.weight' has the type {name}, weights can be F32, F16, BF16"):
        source.tensor("layers.0.up")
    assert source.tensor("layers.0.gate").format == "F32"


def test_folders_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    config = config_of(random_model("llama1"))
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors: download"):
        HfSource(tmp_path, config)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin, a pickle.*convert it to safetensors"):
        HfSource(tmp_path, config)
    assert not (tmp_path / "ran").exists()


def test_quantized_folders(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    with pytest.raises(CheckpointError, match=r"quantized by gptq.*use the original"):
        HfSource(tmp_path)
    for said in ("{}", '"fp8"'):
        (tmp_path / "config.json").write_text(f'{{"quantization_config": {said}}}')
        with pytest.raises(CheckpointError, match=r"quantized by a tool of its own.*use the original"):
            HfSource(tmp_path)
    # null is as good as absent: the error is the next one.
    (tmp_path / "config.json").write_text('{"model_type": "llama", "quantization_config": null}')
    with pytest.raises(CheckpointError, match=r"'hidden_size' in config\.json is missing"):
        HfSource(tmp_path)


def test_json_files(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(CheckpointError, match="cannot be opened"):
        read_json(path)
    for content in (b"", b"{", b"[]", b'"x"', b"\xff\xfe", b"[" * 200_000, b'{"a": ' + b"1" * 9_999 + b"}"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="download it again") as caught:
            read_json(path)
        assert str(path) in str(caught.value)
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path) == {"a": 1}


class Bomb:
    """What writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


@pytest.fixture(scope="module")
def shards() -> tuple[LlamaConfig, list[Tensors]]:
    model = random_model("llama1")
    config = config_of(model)
    return config, meta_shards(layout_of(model), config, 2)


def test_a_pickle_with_code_is_refused(tmp_path: Path, shards: tuple[LlamaConfig, list[Tensors]]) -> None:
    config, good = shards
    ran = tmp_path / "ran"
    pickle.loads(pickle.dumps(Bomb(ran))).close()
    assert ran.exists()  # the bomb works
    ran.unlink()
    bad: list[Any] = [good[0] | {"norm.weight": Bomb(ran)}, good[1]]
    folder = write_meta(tmp_path / "zip", bad, {})
    with pytest.raises(CheckpointError, match=r"consolidated\.00\.pth: holds more than tensors.*could run code"):
        MetaSource(folder, config)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "params.json").write_text("{}")
    (tmp_path / "old" / "consolidated.00.pth").write_bytes(pickle.dumps(Bomb(ran)))
    with pytest.raises(CheckpointError, match=r"consolidated\.00\.pth.*download it again"):
        MetaSource(tmp_path / "old", config)
    assert not ran.exists()


def test_hostile_pth(tmp_path: Path, shards: tuple[LlamaConfig, list[Tensors]]) -> None:
    config, good = shards
    folder = write_meta(tmp_path / "meta", good, {})
    first = folder / "consolidated.00.pth"
    content = first.read_bytes()
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
    for damaged in (b"", b"PK", content[: len(content) // 2], content[:-100], bytes(1000), zipped.getvalue()[:-5]):
        first.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="download") as caught:
            MetaSource(folder, config)
        assert str(first) in str(caught.value)
    for other in ([1, 2], {1: torch.ones(1)}, torch.ones(3)):
        torch.save(other, first)
        with pytest.raises(CheckpointError, match=r"no tensors by name|other tensors|tensors are not those"):
            MetaSource(folder, config)


def test_shards_that_are_missing_or_wrong(tmp_path: Path, shards: tuple[LlamaConfig, list[Tensors]]) -> None:
    config, good = shards
    folder = write_meta(tmp_path / "a", good, {})
    (folder / "consolidated.00.pth").rename(folder / "consolidated.02.pth")
    with pytest.raises(CheckpointError, match=r"consolidated\.00\.pth is missing: download"):
        MetaSource(folder, config)
    folder = write_meta(tmp_path / "b", good[:1], {})  # the last one of two
    for name in ("embed", "layers.0.q", "layers.0.o", "layers.1.down"):
        with pytest.raises(CheckpointError, match=r"in 1 shard, which do not make .*a shard is missing"):
            MetaSource(folder, config).tensor(name)
    less = {name: tensor for name, tensor in good[1].items() if name != "norm.weight"}
    with pytest.raises(CheckpointError, match=r"consolidated\.01\.pth: its tensors are not those of .*norm\.weight"):
        MetaSource(write_meta(tmp_path / "c", [good[0], less], {}), config)
    folder = tmp_path / "d"
    folder.mkdir()
    with pytest.raises(CheckpointError, match=r"no consolidated\.NN\.pth: download"):
        MetaSource(folder, config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.to(torch.int8), "is int8"),
        (lambda t: t.double(), "is float64"),
        (lambda t: "text", "is str"),
        (lambda t: t[0], r"is \[32\] \+ \[64, 32\] in 2 shards, which do not make \[64, 64\]"),
        (lambda t: t.reshape(-1), "do not make"),
        (lambda t: t[:, :5].clone(), "do not make"),
        (lambda t: torch.zeros(0), "do not make"),
        (lambda t: torch.tensor(1.0), "do not make"),
        (lambda t: torch.zeros(1).expand(1 << 20, 1 << 20), "not all there"),
        (lambda t: t.bfloat16(), "different types"),
        (lambda t: t.to_sparse(), r"is .*|cannot be read"),
    ],
    ids=["int8", "float64", "text", "row", "flat", "cut", "empty", "scalar", "expanded", "mixed", "sparse"],
)
def test_tensors_that_do_not_fit(
    change: Callable[[torch.Tensor], Any], message: str, tmp_path: Path, shards: tuple[LlamaConfig, list[Tensors]]
) -> None:
    config, good = shards
    name = "layers.0.attention.wo.weight"
    bad = [good[0] | {name: change(good[0][name])}, good[1]]
    folder = write_meta(tmp_path / "meta", bad, {})
    with pytest.raises(CheckpointError, match=message) as caught:
        MetaSource(folder, config).tensor("layers.0.o").read()
    assert str(folder) in str(caught.value)


def test_fused_tensors_that_do_not_split(tmp_path: Path) -> None:
    model = random_model("maverick")
    config = config_of(model)
    good = meta_shards(layout_of(model), config, 2, fused=True)
    cases = {
        "layers.0.attention.wqkv.weight": ("layers.0.k", (33, 64), "q, k, v"),
        "layers.0.feed_forward.mlp.fc1_weight": ("layers.0.up", (5, 64), "gate, up"),
        "layers.1.feed_forward.experts.moe_w_in_eD_F": ("layers.1.experts.3.gate", (3, 5), "4 experts"),
    }
    for index, (stored, (name, shape, message)) in enumerate(cases.items()):
        bad = [shard | {stored: torch.zeros(shape)} for shard in good]
        source = MetaSource(write_meta(tmp_path / str(index), bad, {}), config)
        with pytest.raises(CheckpointError, match=f"does not split into {message}.*same model"):
            source.tensor(name)


def test_experts_of_a_gguf_that_do_not_fit(tmp_path: Path) -> None:
    model = random_model("mixtral")
    config, tensors = config_of(model), layout_of(model)
    source = GgufWeights(
        GgufFile(write_gguf(tmp_path / "a.gguf", tensors, config)), replace(config, num_local_experts=3)
    )
    with pytest.raises(CheckpointError, match=r"a\.gguf.*'blk\.1\.ffn_up_exps\.weight' is \[4, .* 3 experts.*convert"):
        source.tensor("layers.1.experts.2.up")
    less = {name: tensor for name, tensor in tensors.items() if not name.endswith(".down")}
    source = GgufWeights(GgufFile(write_gguf(tmp_path / "b.gguf", less, config)), config)
    with pytest.raises(CheckpointError, match=r"'blk\.0\.ffn_down_exps\.weight' is missing"):
        source.tensor("layers.0.experts.0.down")
    flat = write_gguf(tmp_path / "c.gguf", tensors, config)
    stacked = GgufFile(flat)
    found = stacked.tensors["blk.0.ffn_up_exps.weight"]
    stacked.tensors[found.name] = replace(found, shape=(4 * 96, 64))
    with pytest.raises(CheckpointError, match=r"must have 3 dimensions, is \[384, 64\]"):
        GgufWeights(stacked, config).tensor("layers.0.experts.0.up")


def test_meta_without_torch(tmp_path: Path, shards: tuple[LlamaConfig, list[Tensors]]) -> None:
    folder = write_meta(tmp_path / "meta", shards[1], {})
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from llama_ext.checkpoint.meta import _open_pth\n"
        "from llama_ext.errors import CheckpointError\n"
        "from pathlib import Path\n"
        f"try: _open_pth(Path({str(folder / 'consolidated.00.pth')!r}))\n"
        "except CheckpointError as error: print(error)\n"
    )
    out = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install torch" in out and "consolidated.00.pth" in out


def test_reading_safetensors_and_gguf_imports_no_torch(folder: tuple[Path, LlamaConfig]) -> None:
    code = (
        "import sys, llama_ext.checkpoint as c, llama_ext.checkpoint.safetensors as s, pathlib\n"
        f"[s.SafetensorsFile(p) for p in pathlib.Path({str(folder[0])!r}).glob('*.safetensors')]\n"
        "print('torch' in sys.modules, 'gguf' in sys.modules, 'huggingface_hub' in sys.modules)\n"
    )
    out = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False"] * 3


def test_what_open_source_says_of_folders_and_files(tmp_path: Path) -> None:
    cases: dict[str, tuple[list[str], str]] = {
        "empty": ([], "folder without a model; give a .gguf file"),
        "gguf": (["b.gguf", "a.gguf"], "give one of its files, such as a.gguf"),
        "no config": (["model.safetensors"], "no config.json; download"),
        "no params": (["consolidated.00.pth"], "no params.json; download"),
    }
    for name, (files, message) in cases.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_bytes(b"x")
        with pytest.raises(CheckpointError, match=message) as caught:
            open_source(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
    for file in ("model.safetensors", "consolidated.00.pth", "config.json", "pytorch_model.bin"):
        (tmp_path / file).write_bytes(b"x" * 20)
        with pytest.raises(CheckpointError, match=r"no GGUF file; give the folder"):
            open_source(tmp_path / file)
    (tmp_path / "model").write_bytes(b"x" * 20)
    with pytest.raises(CheckpointError, match=r"no GGUF file"):
        open_source(tmp_path / "model")
    for wrong in ("", 5, None, b"a.gguf"):
        with pytest.raises(OptionError, match="must be the path"):
            resolve(wrong)


@pytest.mark.parametrize(
    "path",
    [
        "nosuch.gguf",
        "a/b/c",
        "./a/b",
        "../a",
        "/nosuch/model",
        "a/b.gguf",
        "a/b.safetensors",
        "a/b.pth",
        "~/model",
        "a b/c",
        "a/",
        "-a/b",
    ],
)
def test_paths_never_touch_the_network(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match="cannot be opened"):
        resolve(path)


def test_a_local_folder_goes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("org/name") == Path("org/name")


def test_a_model_of_the_hub_has_the_name_it_was_asked_for_by(
    folder: tuple[Path, LlamaConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(folder[0]))
    assert open_source("org/name-1.0").config.name == "org/name-1.0"
    assert open_source(folder[0]).config.name == folder[0].name


def test_models_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fnmatch

    import huggingface_hub

    asked: list[Any] = []

    def download(name: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append((name, allow_patterns, ignore_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("org/name-1.0") == tmp_path
    [(name, allowed, unwanted)] = asked
    assert name == "org/name-1.0"
    there = ["model-00001-of-00002.safetensors", "config.json", "model.safetensors.index.json", "tokenizer.model"]
    there += ["tokenizer.json", "chat_template.jinja", "original/params.json", "original/consolidated.00.pth"]
    there += ["consolidated.safetensors", "model.gguf", "pytorch_model.bin", "README.md", "onnx/model.safetensors"]
    wanted = [
        file
        for file in there
        if any(fnmatch.fnmatch(file, p) for p in allowed) and not any(fnmatch.fnmatch(file, p) for p in unwanted)
    ]
    assert wanted == there[:6]

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no such repository\nmore lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=r"^org/other: .*\(OSError: no such repository\); give a local") as caught:
        open_source("org/other")
    assert "\n" not in str(caught.value)


def test_every_tensor_of_the_layout_is_checked(folder: tuple[Path, LlamaConfig]) -> None:
    """No tensor gets past the comparison with the config's shape."""
    path, config = folder
    source = HfSource(path, config)
    for name, shape in layout(config).items():
        source._shapes = {name: (*shape[:-1], shape[-1] + 1)}
        with pytest.raises(CheckpointError, match="the config asks for"):
            source.tensor(name)
