"""Writes a checkpoint as a GGUF file, tensor by tensor."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llama_ext import _core
from llama_ext.checkpoint.gguf import FORMATS
from llama_ext.checkpoint.names import GgufName, GgufWeights, gguf_names
from llama_ext.checkpoint.quantized import QuantizedSource
from llama_ext.checkpoint.source import Bytes, Source, to_float32
from llama_ext.config import LlamaConfig
from llama_ext.config.layout import is_router, is_vector
from llama_ext.errors import CheckpointError, OptionError

__all__ = ["rope_factors", "write_gguf"]

_ALIGNMENT = 32
# llama_ftype of llama.cpp, which `general.file_type` holds: the format of most matrices.
_FILE_TYPES = {
    **{"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9},
    **{"Q4_K": 14, "Q5_K": 16, "Q6_K": 18, "BF16": 32},
}
_ARRAYS = {
    **{"i1": "INT8", "u1": "UINT8", "i2": "INT16", "u2": "UINT16", "i4": "INT32", "u4": "UINT32"},
    **{"i8": "INT64", "u8": "UINT64", "f4": "FLOAT32", "f8": "FLOAT64", "b1": "BOOL"},
}
# Keys that say how a file lies on the disk, not what is in it.
_OF_THE_FILE = ("split.", "general.alignment", "general.file_type", "general.quantization_version")


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    """One tensor to write: its name, shape (numpy order), format, and its bytes in pieces."""

    name: str
    shape: tuple[int, ...]
    format: str
    nbytes: int
    pieces: Callable[[], Iterator[Bytes]]


def rope_factors(config: LlamaConfig) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    """What Llama 3's scaling divides the rotation frequencies by [head_dim / 2]: GGUF's `rope_freqs.weight`.

    None where the config scales nothing.
    """
    if config.rope_scaling is None:
        return None
    half = config.head_dim // 2
    plain = [config.rope_theta ** (-2.0 * i / config.head_dim) for i in range(half)]
    return np.array([p / s for p, s in zip(plain, config.inverse_frequencies(), strict=True)], np.float32)


def write_gguf(
    source: Source,
    path: str | os.PathLike[str],
    *,
    tokenizer: Mapping[str, object] | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Writes `source` to a GGUF file of version 3.

    Tensors are read, written and dropped one after the other, so that the memory holds one of them (of stacked experts,
    one expert). The file takes its name when it is complete; until then it has another one, in the same folder, and
    is removed if anything goes wrong.

    Args:
        source: any checkpoint; `quantized(source, ...)` for another weight format. A GGUF's own metadata is kept.
        path: the file to write.
        tokenizer: the keys ``tokenizer.*``. None: those of a GGUF source.
        force: replace a file that is there.
        progress: of (bytes written, bytes in all).

    Returns:
        The size of the file, bytes.

    Raises:
        OptionError: `path` is there already, cannot be written, or its disk has too little room.
        CheckpointError: the source is damaged.
    """
    path = Path(os.path.realpath(path))  # behind a link lies what is replaced, not the link
    if path.is_dir():
        raise OptionError(f"{path}: is a folder; give the name of a file.")
    if path.exists() and not path.is_file():
        raise OptionError(f"{path}: is no regular file; give another name.")
    if path.exists() and not force:
        raise OptionError(f"{path}: is there already; give another name, or --force to replace it.")
    entries = [_entry(source, name) for name in gguf_names(source.config)]
    if unused := source.unused():
        raise CheckpointError(
            f"{source.path}: has weights that llama_ext has no use for ({', '.join(unused[:4])}"
            + (f" and {len(unused) - 4} more" if len(unused) > 4 else "")
            + "), so the file would be another model; use a plain Llama."
        )
    factors = rope_factors(source.config) if source.config.rope_scaling else source.rope_factors()
    if factors is not None:
        data = np.ascontiguousarray(factors, np.float32).view(np.uint8)
        entries.insert(1, _Entry("rope_freqs.weight", factors.shape, "F32", len(data), lambda: iter((data,))))
    total = sum(_padded(entry.nbytes) for entry in entries)
    with _file_in_place_of(path) as temporary:
        begin = _write_header(temporary, _metadata(source, tokenizer, entries), entries)
        _check_room(path, begin + total)
        done = 0
        with temporary.open("r+b") as file:
            file.seek(begin)
            for entry in entries:
                written = 0
                for piece in entry.pieces():
                    file.write(piece.data)
                    written += len(piece)
                    _core.give_back(piece)  # of a mapped file; others it leaves alone
                    if progress is not None:
                        progress(done + written, total)
                if written != entry.nbytes:
                    raise CheckpointError(
                        f"{source.path}: the tensor '{entry.name}' has {written:,} bytes, expected were "
                        f"{entry.nbytes:,}; download the model again."
                    )
                file.write(bytes(_padded(written) - written))
                done += _padded(written)
                if progress is not None:
                    progress(done, total)
            file.flush()
            os.fsync(file.fileno())
    return begin + total


def _padded(count: int) -> int:
    return -(-count // _ALIGNMENT) * _ALIGNMENT


def _entry(source: Source, name: GgufName) -> _Entry:
    """A tensor of the file, from one of the layout or from the experts that it stacks."""
    tensors = [source.tensor(part) for part in name.parts]
    first = tensors[0]
    if first.format not in FORMATS:
        raise OptionError(f"a GGUF file cannot hold {first.format}, use one of {', '.join(FORMATS).lower()}.")
    for tensor in tensors:
        if (tensor.format, tensor.rows, tensor.cols) != (first.format, first.rows, first.cols):
            raise CheckpointError(
                f"{source.path}: '{first.stored}' is {first.format} [{first.rows}, {first.cols}] and "
                f"'{tensor.stored}' {tensor.format} [{tensor.rows}, {tensor.cols}], which one tensor of a GGUF "
                "cannot hold; convert to one format, such as --weights q8_0."
            )
    shape: tuple[int, ...] = (first.cols,) if is_vector(name.parts[0]) else (first.rows, first.cols)
    if len(name.shape) == 3:
        shape = (len(tensors), *shape)
    if shape != name.shape:
        raise CheckpointError(
            f"{source.path}: the tensor '{first.stored}' is {list(shape)}, the config asks for {list(name.shape)}; "
            "download the model again."
        )
    # Routers in float32, as readers of GGUF expect them; it holds all that a narrower type held.
    widened = is_router(name.parts[0]) and first.format in ("F16", "BF16")
    form = "F32" if widened else first.format
    nbytes = len(tensors) * dataclasses.replace(first, format=form).nbytes

    def pieces() -> Iterator[Bytes]:
        for tensor in tensors:
            yield to_float32(tensor.read(), tensor.format).view(np.uint8) if widened else tensor.read()

    return _Entry(name.name, shape, form, nbytes, pieces)


def _metadata(source: Source, tokenizer: Mapping[str, object] | None, entries: list[_Entry]) -> dict[str, object]:
    inner = source.source if isinstance(source, QuantizedSource) else source
    values: dict[str, object] = {}
    if isinstance(inner, GgufWeights):
        values |= {key: value for key, value in inner.metadata.items() if not key.startswith(_OF_THE_FILE)}
    values |= source.config.to_gguf()
    if tokenizer is not None:
        values = {key: value for key, value in values.items() if not key.startswith("tokenizer.")} | dict(tokenizer)
    sizes: Counter[str] = Counter()
    for entry in entries:
        if len(entry.shape) > 1:
            sizes[entry.format] += entry.nbytes
    values["general.file_type"] = _FILE_TYPES[sizes.most_common(1)[0][0]]
    values["general.quantization_version"] = 2  # GGML_QNT_VERSION
    return values


def _write_header(path: Path, metadata: Mapping[str, object], entries: list[_Entry]) -> int:
    """Writes everything before the tensors' bytes; returns where those begin."""
    import gguf  # late: it takes a while, and decoding does without

    writer = gguf.GGUFWriter(path, str(metadata.get("general.architecture", "llama")))
    for key, value in metadata.items():
        if key != "general.architecture":
            _add(writer, key, value)
    for entry in entries:
        writer.add_tensor_info(
            entry.name, entry.shape, np.dtype(np.float32), entry.nbytes, gguf.GGMLQuantizationType[entry.format]
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(bytes(_padded(size) - size))
    return _padded(size)


def _add(writer: Any, key: str, value: object) -> None:
    """Gives the writer a metadata value; integers and floats are of 32 bits where that holds them."""
    import gguf

    kinds = gguf.GGUFValueType
    if isinstance(value, np.ndarray | list | tuple):
        if len(value) == 0:
            return  # the package cannot write an empty array
        kind = kinds[_ARRAYS[value.dtype.str[1:]]] if isinstance(value, np.ndarray) else None
        items = value.tolist() if isinstance(value, np.ndarray) else [_encoded(item) for item in value]
        writer.add_key_value(key, items, kinds.ARRAY, kind)
    elif isinstance(value, bool):
        writer.add_key_value(key, value, kinds.BOOL)
    elif isinstance(value, int):
        kind = kinds.UINT32 if 0 <= value < 2**32 else kinds.UINT64 if value > 0 else kinds.INT64
        writer.add_key_value(key, value, kinds.INT32 if -(2**31) <= value < 0 else kind)
    elif isinstance(value, float):
        writer.add_key_value(key, value, kinds.FLOAT32)
    elif isinstance(value, str):
        writer.add_key_value(key, _encoded(value), kinds.STRING)
    else:
        raise CheckpointError(f"the key '{key}' has a value of type {type(value).__name__}, which no GGUF can hold.")


def _encoded(value: object) -> object:
    # A piece of a vocabulary may be no UTF-8; the reader keeps its bytes as surrogates.
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value


def _check_room(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise OptionError(
            f"{path}: needs {needed / 1e9:,.2f} GB, its disk has room for {free / 1e9:,.2f} GB; free some, give a path "
            "on another disk, or a smaller format with --weights."
        )


@contextlib.contextmanager
def _file_in_place_of(path: Path) -> Iterator[Path]:
    """A new file beside `path`, which takes its name at the end, or is removed."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:16]}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise OptionError(f"{path}: cannot be written ({error.strerror}); give another path.") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp's files are for their owner alone
        temporary.replace(path)
    except OSError as error:
        raise OptionError(f"{path}: cannot be written ({error.strerror}); give another path.") from error
    finally:
        temporary.unlink(missing_ok=True)
