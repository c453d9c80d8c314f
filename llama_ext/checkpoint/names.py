"""The one layout of named tensors that every checkpoint reader yields.

=============================  ====================================================================
``embed``                      [vocab, hidden], a row a token
``layers.{i}.attention_norm``  [hidden], float32; likewise ``ffn_norm`` and, after the last, ``norm``
``layers.{i}.q`` / ``k``/``v`` [heads * head_dim, hidden]; rotated pairs are neighbours (2i, 2i + 1)
``layers.{i}.o``               [hidden, heads * head_dim]
``layers.{i}.gate`` / ``up``   [intermediate, hidden]
``layers.{i}.down``            [hidden, intermediate]
``head``                       [vocab, hidden]; absent where the embedding serves
=============================  ====================================================================

Rows are outputs: y = W x.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llama_ext import _core
from llama_ext.checkpoint.gguf import GgufFile, GgufTensor
from llama_ext.errors import CheckpointError

__all__ = ["GgufWeights"]

_TOP = {"embed": "token_embd.weight", "norm": "output_norm.weight", "head": "output.weight"}
_LAYER = {
    "attention_norm": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "ffn_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
_VECTORS = {"norm", "attention_norm", "ffn_norm"}


class GgufWeights:
    """Weights of a GGUF file of architecture ``llama`` by their name in the common layout, in the file's own bits.

    GGUF's q and k rows are in the interleaved order already.
    """

    def __init__(self, file: GgufFile) -> None:
        self._file = file
        self._given: dict[str, _core.Weight] = {}

    def __call__(self, name: str) -> _core.Weight:
        """The weight of that name.

        Raises:
            CheckpointError: the file has no such tensor, or it has the wrong number of dimensions.
        """
        if name not in self._given:
            self._given[name] = self._read(name)
        return self._given[name]

    def rope_factors(self) -> npt.NDArray[np.float32] | None:
        """Divisors of the rotation frequencies [head_dim / 2], where the file has them (Llama 3.1 and later)."""
        tensor = self._file.tensors.get("rope_freqs.weight")
        return None if tensor is None else self._vector("rope_freqs.weight", tensor)

    def unused(self) -> list[str]:
        """Names of tensors that nothing asked for: the file holds a model that is not wholly understood."""
        used = {w.name for w in self._given.values()} | {"rope_freqs.weight"}
        return sorted(set(self._file.tensors) - used)

    def _read(self, name: str) -> _core.Weight:
        kind = name.rsplit(".", 1)[-1]
        if name in _TOP:
            stored = _TOP[name]
        else:
            _, layer, kind = name.split(".")
            stored = f"blk.{layer}.{_LAYER[kind]}.weight"
        tensor = self._file.tensors.get(stored)
        if tensor is None:
            raise CheckpointError(
                f"{self._file.path}: the tensor '{stored}' is missing; convert or download the model again."
            )
        if kind in _VECTORS:
            values = self._vector(stored, tensor)
            return _core.Weight(stored, "F32", 1, len(values), values.view(np.uint8))
        self._check_dimensions(stored, tensor, 2)
        return _core.Weight(stored, tensor.format, tensor.shape[0], tensor.shape[1], tensor.data)

    def _vector(self, stored: str, tensor: GgufTensor) -> npt.NDArray[np.float32]:
        self._check_dimensions(stored, tensor, 1)
        values = _core.Weight(stored, tensor.format, 1, tensor.shape[0], tensor.data).dequantize()
        return values.reshape(-1)

    def _check_dimensions(self, stored: str, tensor: GgufTensor, count: int) -> None:
        if len(tensor.shape) != count:
            raise CheckpointError(
                f"{self._file.path}: the tensor '{stored}' must have {count} dimension{'s' if count > 1 else ''}, "
                f"is {list(tensor.shape)}; convert the model again."
            )
