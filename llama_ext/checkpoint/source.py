"""What every checkpoint reader has in common: named tensors in the one layout, a config, and a vocabulary."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from llama_ext import _core
from llama_ext.config import LlamaConfig
from llama_ext.config.layout import is_router, is_vector, layout

__all__ = ["Bytes", "Source", "Tensor", "to_float32"]

Bytes: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A matrix of the common layout, or a vector as its only row.

    Attributes:
        stored: what it is called in the checkpoint, unique there; a part of a tensor is named "tensor[part]".
        format: a key of `_core.formats`.
        rows: outputs; 1 of a vector.
        cols: inputs, elements.
        data: its bytes [nbytes], a view of the mapped file, or a function that makes them, in new memory each time.
    """

    stored: str
    format: str
    rows: int
    cols: int
    data: Bytes | Callable[[], Bytes]

    @classmethod
    def of(cls, stored: str, format: str, values: npt.NDArray[Any]) -> Tensor:
        """The matrix `values` [rows, cols], elements as words of their size: in place, if it lies there as a whole and
        on an address that is a multiple of the word; else a copy each time."""
        rows, cols = values.shape
        if values.flags.c_contiguous and values.flags.aligned:
            return cls(stored, format, rows, cols, values.reshape(-1).view(np.uint8))
        return cls(stored, format, rows, cols, lambda: values.copy(order="C").reshape(-1).view(np.uint8))

    @property
    def nbytes(self) -> int:
        block, size, _ = _core.formats[self.format]
        return self.rows * (self.cols // block) * size

    def read(self) -> Bytes:
        """The bytes [nbytes], contiguous."""
        return self.data() if callable(self.data) else self.data

    def weight(self) -> _core.Weight:
        return _core.Weight(self.stored, self.format, self.rows, self.cols, self.data)


def to_float32(data: Bytes, format: str) -> npt.NDArray[np.float32]:
    """The values of bytes in F32, F16 or BF16, exactly, in new memory."""
    data = data.copy()  # aligned, whatever the file's tensors are
    if format == "F32":
        return data.view(np.float32)
    if format == "F16":
        return data.view(np.float16).astype(np.float32)
    assert format == "BF16", format
    return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


class Source(ABC):
    """A checkpoint as tensors of the common layout (`llama_ext.config.layout`).

    A source is also what `program.build` takes for its weights: calling it with a name gives the weight.

    Attributes:
        kind: what sort of checkpoint it is, in words.
        path: the file or folder.
        config: the model.
        tokenizer: where the vocabulary is: the folder that holds its files, or a GGUF's metadata.
    """

    kind: ClassVar[str]
    path: Path
    config: LlamaConfig
    tokenizer: Path | Mapping[str, object]

    def __init__(self) -> None:
        self._weights: dict[str, _core.Weight] = {}

    @abstractmethod
    def tensor(self, name: str) -> Tensor:
        """The tensor of that name, such as "layers.0.q".

        Raises:
            CheckpointError: the checkpoint has no such tensor, or its shape or type is wrong.
        """

    @abstractmethod
    def unused(self) -> list[str]:
        """Stored tensors that nothing asked for and that are not known to be harmless: where there are some after the
        program was built, the checkpoint holds a model that is not wholly understood."""

    @abstractmethod
    def ignored(self) -> list[str]:
        """Stored tensors that are left aside on purpose: tables that follow from the config, and vision."""

    @abstractmethod
    def files(self) -> list[Path]:
        """The files that hold the weights."""

    def weight(self, name: str) -> _core.Weight:
        """`tensor(name)` as an operand of the program; the same object each time."""
        if name not in self._weights:
            self._weights[name] = self.tensor(name).weight()
        return self._weights[name]

    def __call__(self, name: str) -> _core.Weight:
        return self.weight(name)

    def rope_factors(self) -> npt.NDArray[np.float32] | None:
        """Divisors of the rotation frequencies [head_dim / 2] that come beside the config: GGUF's alone."""
        return None

    def matrices(self) -> Iterator[tuple[str, int]]:
        """Name and columns of every tensor that is neither a norm nor a router, as the config has them."""
        for name, shape in layout(self.config).items():
            if not is_vector(name) and not is_router(name):
                yield name, shape[1]

    def describe(self) -> dict[str, Any]:
        """The source in plain values, for people: kind, path, files, bytes, formats of matrices, ignored tensors."""
        files = self.files()
        ignored = self.ignored()
        formats: dict[str, int] = {}
        for name, _ in self.matrices():
            form = self.tensor(name).format
            formats[form] = formats.get(form, 0) + 1
        return {
            "kind": self.kind,
            "path": str(self.path),
            "files": len(files),
            "file_bytes": sum(file.stat().st_size for file in files),
            "matrices": formats,
            "ignored": ignored,
        }
