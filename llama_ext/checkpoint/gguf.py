"""A reader of GGUF files (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), versions 2 and 3.

Why not the `gguf` package: it builds a numpy view for every element of every metadata array, 2 seconds for
the 49,152 tokens of SmolLM2. This one walks the header once and takes a few hundredths of a second.

The header is untrusted input. Each count and length is compared with the bytes that are left before anything
is allocated or looped over, so the work is bounded by the size of the file whatever the file claims.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from llama_ext import _core
from llama_ext.errors import CheckpointError

__all__ = ["FORMATS", "BlockFormat", "GgufFile", "GgufTensor", "map_file", "mapped_bytes"]

_DAMAGED = "the file is damaged or incomplete, download it again"


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """How a ggml type stores a row: `block_size` elements in `block_bytes` bytes."""

    name: str
    block_size: int
    block_bytes: int


# ggml type number -> format. Numbers and sizes: enum ggml_type and the block structs of ggml-common.h.
_TYPES: dict[int, BlockFormat] = {
    0: BlockFormat("F32", 1, 4),
    1: BlockFormat("F16", 1, 2),
    2: BlockFormat("Q4_0", 32, 18),
    3: BlockFormat("Q4_1", 32, 20),
    6: BlockFormat("Q5_0", 32, 22),
    7: BlockFormat("Q5_1", 32, 24),
    8: BlockFormat("Q8_0", 32, 34),
    12: BlockFormat("Q4_K", 256, 144),
    13: BlockFormat("Q5_K", 256, 176),
    14: BlockFormat("Q6_K", 256, 210),
    30: BlockFormat("BF16", 1, 2),
}

FORMATS: Mapping[str, BlockFormat] = MappingProxyType({f.name: f for f in _TYPES.values()})
"""Every tensor format this reader accepts, by its ggml name."""

_SCALARS: dict[int, struct.Struct] = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_DTYPES: dict[int, str] = {kind: "<" + scalar.format[1:] for kind, scalar in _SCALARS.items()} | {_BOOL: "<B"}
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")

# The fewest bytes one entry can take, so that a count can be refused before the loop over it starts.
_MIN_PAIR = 8 + 4 + 1
_MIN_TENSOR = 8 + 4 + 8 + 4 + 8
_MIN_STRING = 8
_MIN_ARRAY = 4 + 8

_MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
_MAX_NESTING = 4  # arrays of arrays; no known writer nests at all
_MAX_STRING = 64 << 20  # a chat template is a few kilobytes; a "string" of gigabytes would be weights
_SPLIT_NAME = re.compile(r"^(?P<stem>.*)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf$", re.DOTALL)


@dataclass(frozen=True, slots=True, eq=False)
class GgufTensor:
    """One tensor of a GGUF file, still in the file's own encoding.

    Attributes:
        name: the tensor's name, such as ``blk.0.attn_q.weight``.
        shape: numpy order, rows first. GGUF lists the fastest dimension first; this is the reverse of it.
        format: the ggml type's name, a key of `FORMATS`.
        data: read-only bytes [nbytes], a view into the mapped file.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    data: npt.NDArray[np.uint8]


class _Header:
    """A cursor over the header of one mapped file."""

    def __init__(self, path: Path, view: mmap.mmap) -> None:
        self.path = path
        self.view = view
        self.size = len(view)
        self.at = 0

    def fail(self, what: str, mend: str = _DAMAGED) -> NoReturn:
        raise CheckpointError(f"{self.path}: {what}: {mend}.")

    def take(self, count: int, what: str) -> int:
        """Step over `count` bytes and return where they begin."""
        begin = self.at
        if count > self.size - begin:
            self.fail(f"{what} needs {count} bytes at offset {begin}, only {self.size - begin} are left")
        self.at = begin + count
        return begin

    def u32(self, what: str) -> int:
        value: int = _U32.unpack_from(self.view, self.take(4, what))[0]
        return value

    def u64(self, what: str) -> int:
        value: int = _U64.unpack_from(self.view, self.take(8, what))[0]
        return value

    def count(self, smallest: int, what: str) -> int:
        """A 64-bit count of entries of at least `smallest` bytes each."""
        value = self.u64(f"the number of {what}")
        if value * smallest > self.size - self.at:
            self.fail(f"it claims {value} {what}, more than its {self.size} bytes can hold")
        return value

    def name(self, what: str) -> str:
        """A string that must be text: the key of a pair, the name of a tensor."""
        length = self.u64(f"the length of {what}")
        if length > 65535:
            self.fail(f"{what} claims {length} bytes, the format allows 65535")
        begin = self.take(length, what)
        try:
            return self.view[begin : self.at].decode()
        except UnicodeDecodeError:
            self.fail(f"{what} at offset {begin} is not UTF-8")

    def string(self, what: str) -> str:
        length = self.u64(f"the length of {what}")
        if length > _MAX_STRING:
            self.fail(f"{what} claims a string of {length} bytes, at most {_MAX_STRING} are read")
        begin = self.take(length, what)
        return self.view[begin : self.at].decode("utf-8", "surrogateescape")

    def strings(self, count: int, what: str) -> list[str]:
        # The one hot loop of the reader (98,000 turns for SmolLM2): bounds are checked inline, on local
        # names.
        view, at, size, length_at = self.view, self.at, self.size, _U64.unpack_from
        out: list[str] = []
        for index in range(count):
            begin = at + 8
            if begin > size:
                self.fail(f"{what} ends inside string {index} of {count}")
            length: int = length_at(view, at)[0]
            at = begin + length
            if at > size or length > _MAX_STRING:
                self.fail(f"string {index} of {what} claims {length} bytes, only {size - begin} are left")
            out.append(view[begin:at].decode("utf-8", "surrogateescape"))
        self.at = at
        return out

    def value(self, kind: int, what: str, depth: int = 0) -> object:
        scalar = _SCALARS.get(kind)
        if scalar is not None:
            value: object = scalar.unpack_from(self.view, self.take(scalar.size, what))[0]
            return value
        if kind == _STRING:
            return self.string(what)
        if kind == _BOOL:
            byte = self.view[self.take(1, what)]
            if byte > 1:
                self.fail(f"{what} is a bool of value {byte}")
            return byte == 1
        if kind == _ARRAY:
            return self.array(what, depth)
        self.fail(f"{what} has the unknown value type {kind}")

    def array(self, what: str, depth: int) -> object:
        kind = self.u32(f"the type of {what}")
        if kind == _STRING:
            return self.strings(self.count(_MIN_STRING, f"strings in {what}"), what)
        if kind == _ARRAY:
            if depth >= _MAX_NESTING:
                self.fail(f"{what} nests arrays deeper than {_MAX_NESTING} levels")
            return [self.value(_ARRAY, what, depth + 1) for _ in range(self.count(_MIN_ARRAY, f"arrays in {what}"))]
        code = _DTYPES.get(kind)
        if code is None:
            self.fail(f"{what} is an array of the unknown value type {kind}")
        dtype = np.dtype(code)
        count = self.count(dtype.itemsize, f"elements in {what}")
        begin = self.take(count * dtype.itemsize, what)
        # A copy, because numbers in the header need not be aligned; the weights are never copied.
        values = np.frombuffer(self.view, dtype, count, begin).copy()
        if kind == _BOOL:
            if count and int(values.max()) > 1:
                self.fail(f"{what} holds a bool of value {int(values.max())}")
            values = values.astype(np.bool_)
        values.flags.writeable = False
        return values


class GgufFile:
    """A GGUF checkpoint, mapped into memory: metadata, and tensors as views of the file.

    A split checkpoint (``name-00001-of-0000N.gguf``) is opened by its first part and presented as one. The
    mapping lives as long as any tensor's `data` does; a file that is cut short while mapped ends the process
    (SIGBUS), as with any map.

    Args:
        path: the file, or the first part of a split one.

    Attributes:
        path: the path as given.
        paths: every part of a split checkpoint, this path otherwise.
        version: 2 or 3, of the (first) file.
        metadata: key -> value. Integers, floats and bools are Python's; numeric and bool arrays are read-only
            numpy arrays; string arrays are ``list[str]``; arrays of arrays are lists. Strings are decoded as
            UTF-8 with ``errors="surrogateescape"``: a vocabulary may hold pieces that are no UTF-8, and this
            way their bytes survive (``text.encode("utf-8", "surrogateescape")`` gives them back).
        tensors: name -> `GgufTensor`, in the order of the file.

    Raises:
        CheckpointError: the file is missing, truncated, damaged or of an unsupported version, byte order or
        tensor type.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.metadata: dict[str, object]
        self.paths = [self.path]
        self.tensors: dict[str, GgufTensor] = {}
        self.version, self.metadata = _read(self.path, self.tensors)
        if "split.count" in self.metadata:
            self._open_other_parts()

    def _open_other_parts(self) -> None:
        count = _split_number(self.path, self.metadata, "split.count")
        number = _split_number(self.path, self.metadata, "split.no")
        if count <= 1:
            return
        match = _SPLIT_NAME.match(self.path.name)
        if match is None or int(match["count"]) != count:
            raise CheckpointError(
                f"{self.path}: it is one of {count} parts, not named like name-00001-of-{count:05d}.gguf:"
                " give the parts back the names they were published under."
            )
        names = [self.path.with_name(f"{match['stem']}-{part:05d}-of-{count:05d}.gguf") for part in range(1, count + 1)]
        if number != 0 or int(match["no"]) != 1:
            raise CheckpointError(f"{self.path}: it is part {number + 1} of {count}: open the first part, {names[0]}.")
        for part, name in enumerate(names[1:], 1):
            _, metadata = _read(name, self.tensors)
            found = _split_number(name, metadata, "split.count"), _split_number(name, metadata, "split.no")
            if found != (count, part):
                raise CheckpointError(
                    f"{name}: it is part {found[1] + 1} of {found[0]}, not part {part + 1} of {count}:"
                    " download this part again."
                )
        self.paths = names
        expected = self.metadata.get("split.tensors.count")
        if isinstance(expected, int) and expected != len(self.tensors):
            raise CheckpointError(
                f"{self.path}: its {count} parts hold {len(self.tensors)} tensors of {expected}:"
                " download all parts again."
            )


def _split_number(path: Path, metadata: Mapping[str, object], key: str) -> int:
    value = metadata.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise CheckpointError(f"{path}: {key} is {value!r}, expected was a number: {_DAMAGED}.")
    return value


def map_file(path: Path) -> mmap.mmap:
    """Maps a file for reading. Raises `CheckpointError` where it is missing or empty."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise CheckpointError(f"{path}: the file is empty: download it again.")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be opened ({error.strerror}): check the path.") from error


def mapped_bytes(path: Path, size: int) -> npt.NDArray[np.uint8]:
    """The bytes of a file, read-only, in a map that the compiled part knows and can take pages out of.

    Raises:
        CheckpointError: it cannot be opened, or is not of `size` bytes any more.
    """
    try:
        data = np.frombuffer(memoryview(_core.FileMap(os.fsencode(path))), np.uint8)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be opened ({error}): check the path.") from error
    if len(data) != size:
        raise CheckpointError(f"{path}: its size changes while it is read: wait until it is written.")
    return data


def _read(path: Path, tensors: dict[str, GgufTensor]) -> tuple[int, dict[str, object]]:
    """Read one file, add its tensors to `tensors` and return its version and metadata."""
    view = map_file(path)
    header = _Header(path, view)
    magic = view[:4]
    header.at = len(magic)
    if magic != b"GGUF":
        header.fail(
            f"it is no GGUF file, it begins with {magic!r}, not with b'GGUF'",
            "give a GGUF file, or download this one again",
        )
    version = header.u32("the version")
    if version not in (2, 3):
        if version & 0xFFFF == 0 and version != 0:
            header.fail("its numbers are big-endian", "use the little-endian file of this model")
        header.fail(f"it has GGUF version {version}, versions 2 and 3 are supported", "convert the model again")
    tensor_count = header.count(_MIN_TENSOR, "tensors")
    pair_count = header.count(_MIN_PAIR, "metadata pairs")

    metadata: dict[str, object] = {}
    for index in range(pair_count):
        key = header.name(f"metadata key {index}")
        if key in metadata:
            header.fail(f"the metadata key {key!r} occurs twice")
        metadata[key] = header.value(header.u32(f"the type of {key!r}"), f"{key!r}")

    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or isinstance(alignment, bool) or alignment <= 0 or alignment & (alignment - 1):
        header.fail(f"general.alignment is {alignment!r}, not a power of two")

    entries = [_tensor_entry(header, index, alignment) for index in range(tensor_count)]
    start = -(-header.at // alignment) * alignment
    data = mapped_bytes(path, header.size)
    for name, shape, form, offset, nbytes in entries:
        if name in tensors:
            header.fail(f"the tensor {name!r} occurs twice")
        begin = start + offset
        if begin + nbytes > header.size:
            header.fail(f"the tensor {name!r} ends at byte {begin + nbytes} of {header.size}")
        tensors[name] = GgufTensor(name, shape, form, data[begin : begin + nbytes])
    return version, metadata


def _tensor_entry(header: _Header, index: int, alignment: int) -> tuple[str, tuple[int, ...], str, int, int]:
    """Read entry `index` of the tensor table: name, shape, format, offset, bytes."""
    name = header.name(f"the name of tensor {index}")
    rank = header.u32(f"the rank of tensor {name!r}")
    if not 1 <= rank <= _MAX_DIMENSIONS:
        header.fail(f"the tensor {name!r} has {rank} dimensions, 1 to {_MAX_DIMENSIONS} are allowed")
    fastest_first = [header.u64(f"a dimension of tensor {name!r}") for _ in range(rank)]
    number = header.u32(f"the type of tensor {name!r}")
    offset = header.u64(f"the offset of tensor {name!r}")
    form = _TYPES.get(number)
    if form is None:
        header.fail(
            f"the tensor {name!r} has the ggml type number {number}, which is not supported",
            f"use a file in one of {', '.join(FORMATS)}",
        )
    elements = 1
    for length in fastest_first:
        elements *= length
    if elements == 0 or elements > 1 << 62:
        header.fail(f"the tensor {name!r} has the impossible dimensions {fastest_first}")
    if fastest_first[0] % form.block_size:
        header.fail(f"the rows of tensor {name!r} are no multiple of the {form.block_size} elements of {form.name}")
    if offset % alignment:
        header.fail(f"the tensor {name!r} begins at offset {offset}, no multiple of the alignment {alignment}")
    return (
        name,
        tuple(reversed(fastest_first)),
        form.name,
        offset,
        elements // form.block_size * form.block_bytes,
    )
