"""A checkpoint in another weight format: each matrix is quantized when it is read, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llama_ext import _core
from llama_ext.checkpoint.source import Bytes, Source, Tensor
from llama_ext.config.layout import is_router, is_vector
from llama_ext.errors import CheckpointError, OptionError

__all__ = ["QuantizedSource", "fitting_format", "quantized", "weight_format"]


def weight_format(name: object) -> str:
    """The format of that name, which may be in lower case: "q4_0" is "Q4_0".

    Raises:
        OptionError: there is none.
    """
    if isinstance(name, str) and name.upper() in _core.formats:
        return name.upper()
    raise OptionError(f"weights={name!r:.40} is unknown; use one of {', '.join(sorted(_core.formats)).lower()}.")


def fitting_format(format: str, cols: int) -> str:
    """`format`, or the next best for rows of `cols` elements that are no whole number of its blocks.

    That is Q8_0, with its blocks of 32, and BF16 where they do not fit either.
    """
    return next(name for name in (format, "Q8_0", "BF16") if cols % _core.formats[name][0] == 0)


def quantized(source: Source, format: str, threads: int = 1) -> Source:
    """`source` with every matrix in `format`.

    Norms stay in float32 and routers as they are: they are small, and a router's rounding would choose other experts.
    A matrix that has the format already keeps its bits.

    Args:
        source: any checkpoint.
        format: a key of `_core.formats`, in upper or lower case.
        threads: to quantize with.

    Raises:
        OptionError: there is no such format.
    """
    return QuantizedSource(source, weight_format(format), threads)


class QuantizedSource(Source):
    """What `quantized` returns."""

    def __init__(self, source: Source, format: str, threads: int = 1) -> None:
        super().__init__()
        self.source = source
        self.format = format
        self.kind = source.kind  # type: ignore[misc]
        self.path: Path = source.path
        self.config = source.config
        self.tokenizer = source.tokenizer
        self._threads = threads

    def tensor(self, name: str) -> Tensor:
        tensor = self.source.tensor(name)
        if is_vector(name) or is_router(name):
            return tensor
        target = fitting_format(self.format, tensor.cols)
        if target == tensor.format:
            return tensor
        return Tensor(tensor.stored, target, tensor.rows, tensor.cols, _maker(tensor, target, self._threads))

    def rope_factors(self) -> npt.NDArray[np.float32] | None:
        return self.source.rope_factors()

    def unused(self) -> list[str]:
        return self.source.unused()

    def ignored(self) -> list[str]:
        return self.source.ignored()

    def files(self) -> list[Path]:
        return self.source.files()

    def fallbacks(self) -> dict[str, str]:
        """Name -> format of the matrices whose rows do not fit the format that was asked for."""
        return {
            name: target
            for name, cols in self.matrices()
            if (target := fitting_format(self.format, cols)) != self.format
        }

    def describe(self) -> dict[str, Any]:
        """As of every source, and the format asked for, the formats in the files, and what fell back."""
        found = super().describe()
        return {
            **found,
            "weights": self.format,
            "stored_matrices": self.source.describe()["matrices"],
            "fallbacks": self.fallbacks(),
        }


def _maker(tensor: Tensor, target: str, threads: int) -> Callable[[], Bytes]:
    def make() -> Bytes:
        try:
            return _core.quantize(tensor.weight(), target, threads).reshape(-1)
        except ValueError as error:  # not a number, or too large for the format
            raise CheckpointError(f"{error}; use weights='bf16', or download the model again.") from error

    return make
