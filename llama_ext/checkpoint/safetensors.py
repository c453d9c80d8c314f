"""A reader of safetensors files (https://github.com/huggingface/safetensors#format).

Why not the `safetensors` package: numpy has no bfloat16, so the package gives bfloat16 tensors to torch alone, and by
a copy. The format is a length, a JSON header and the bytes; this reader maps the file and hands out views.

The header is untrusted input: its length is compared with the file's, each tensor's bytes with its shape and type, and
together the tensors must cover the rest of the file without gap or overlap, as the format demands.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

import numpy as np
import numpy.typing as npt

from llama_ext.checkpoint.gguf import map_file, mapped_bytes
from llama_ext.checkpoint.source import Bytes
from llama_ext.errors import CheckpointError

__all__ = ["SafetensorsFile", "SafetensorsTensor", "values_of"]

_MAX_HEADER = 100_000_000  # the bound that the safetensors package has as well
_MAX_DIMENSIONS = 8
_DAMAGED = "the file is damaged or incomplete, download it again"

# Type -> bits an element, everything that the format names. Only the floating-point types below can be weights here.
_BITS = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64},
    **{"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4},
    **{"F6_E2M3": 6, "F6_E3M2": 6, "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64},
}
_WORDS: dict[str, type[Any]] = {"F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}


@dataclass(frozen=True, slots=True, eq=False)
class SafetensorsTensor:
    """One tensor of a safetensors file.

    Attributes:
        name: as in the file.
        shape: rows first.
        format: the type, such as "BF16".
        data: its bytes, a read-only view into the mapped file.
        path: the file.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    data: Bytes
    path: Path


def values_of(tensor: SafetensorsTensor) -> npt.NDArray[Any]:
    """The tensor's elements in its shape, as unsigned words of their size, without a copy.

    Raises:
        CheckpointError: the type is none that weights can have.
    """
    word = _WORDS.get(tensor.format)
    if word is None:
        raise CheckpointError(
            f"{tensor.path}: the tensor '{tensor.name}' has the type {tensor.format}, weights can be "
            f"{', '.join(_WORDS)}: use an unquantized version of the model."
        )
    values: npt.NDArray[Any] = tensor.data.view(word).reshape(tensor.shape)
    return values


class SafetensorsFile:
    """A safetensors file, mapped into memory.

    Attributes:
        path: the file.
        tensors: name -> `SafetensorsTensor`, in the order of the header.

    Raises:
        CheckpointError: the file is missing, truncated, damaged or contradicts itself.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        view = map_file(self.path)
        if len(view) < 8:
            self._fail(f"it has {len(view)} bytes, no safetensors file is that short")
        length = int.from_bytes(view[:8], "little")
        if length > _MAX_HEADER or length > len(view) - 8:
            self._fail(f"its header claims {length:,} bytes of the file's {len(view):,}")
        entries = self._header(view[8 : 8 + length])
        data = mapped_bytes(self.path, len(view))[8 + length :]
        self.tensors: dict[str, SafetensorsTensor] = {}
        spans = []
        for name, entry in entries.items():
            form, shape, begin, end = self._entry(name, entry, len(data))
            spans.append((begin, end, name))
            self.tensors[name] = SafetensorsTensor(name, shape, form, data[begin:end], self.path)
        at = 0
        for begin, end, name in sorted(spans):
            if begin != at:
                what = "overlaps the tensor before it" if begin < at else "leaves a gap before it"
                self._fail(f"the tensor {name!r:.80} {what} (it begins at byte {begin:,}, not {at:,})")
            at = end
        if at != len(data):
            self._fail(f"its tensors end at byte {at:,} of {len(data):,}")

    def _fail(self, what: str, mend: str = _DAMAGED) -> NoReturn:
        raise CheckpointError(f"{self.path}: {what}: {mend}.")

    def _header(self, raw: bytes) -> dict[str, Any]:
        def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            found = dict(pairs)
            if len(found) != len(pairs):
                raise ValueError("a name occurs twice")
            return found

        try:
            header = json.loads(raw.decode(), object_pairs_hook=unique)
        except (ValueError, RecursionError) as error:  # of JSON, UTF-8 and overlong numbers alike
            self._fail(f"its header is no JSON ({error!s:.100})")
        if not isinstance(header, dict):
            self._fail("its header is no JSON object")
        header.pop("__metadata__", None)
        return header

    def _entry(self, name: str, entry: Any, size: int) -> tuple[str, tuple[int, ...], int, int]:
        what = f"the tensor {name!r:.80}"
        if not isinstance(entry, dict):
            self._fail(f"{what} is described by no JSON object")
        form, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
        if not isinstance(form, str) or form not in _BITS:
            self._fail(f"{what} has the unknown type {form!r:.40}", f"use a file in one of {', '.join(_WORDS)}")
        if not _naturals(shape) or len(shape) > _MAX_DIMENSIONS:
            self._fail(f"{what} has the impossible shape {shape!r:.80}")
        if not _naturals(offsets) or len(offsets) != 2:
            self._fail(f"{what} has the impossible offsets {offsets!r:.80}")
        begin, end = offsets
        if not begin <= end <= size:
            self._fail(f"{what} reaches from byte {begin:,} to {end:,} of {size:,}")
        bits = math.prod(shape) * _BITS[form]
        if bits != 8 * (end - begin):
            self._fail(f"{what} of shape {shape} in {form} takes {-(-bits // 8):,} bytes, the file has {end - begin:,}")
        return form, tuple(shape), begin, end


def _naturals(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 2**62 for item in value
    )
