"""GGUF's tensors, architectures `llama` and `llama4`, in the one layout, and the way back.

GGUF keeps q and k of both architectures with rotated pairs as neighbours, as the layout does: converters bring Hugging
Face's halves of `llama` into that order, and Llama 4 has it everywhere. Matrices lie [outputs, inputs], the experts of
a layer in one tensor [experts, outputs, inputs] (files of 2023: each expert in its own, ``ffn_gate.{e}``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llama_ext.checkpoint.gguf import GgufFile, GgufTensor
from llama_ext.checkpoint.source import Source, Tensor
from llama_ext.config import LlamaConfig
from llama_ext.config.layout import is_vector, layout
from llama_ext.errors import CheckpointError

__all__ = ["GgufName", "GgufWeights", "gguf_names"]

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
    "router": "ffn_gate_inp",
    "shared.gate": "ffn_gate_shexp",
    "shared.up": "ffn_up_shexp",
    "shared.down": "ffn_down_shexp",
}
_ROPE = "rope_freqs.weight"
# Tables that converters left in old files; the config says the same.
_HARMLESS = re.compile(r"(blk\.\d+\.)?(attn_rot_embd|attn\.rotary_emb\.inv_freq|rope_freqs)(\.weight)?")


@dataclass(frozen=True, slots=True)
class GgufName:
    """One tensor of a GGUF file to write.

    Attributes:
        name: such as "blk.0.ffn_gate_exps.weight".
        parts: the tensors of the layout that it holds, one, or a layer's experts in their order.
        shape: numpy order.
    """

    name: str
    parts: tuple[str, ...]
    shape: tuple[int, ...]


def gguf_names(config: LlamaConfig) -> list[GgufName]:
    """Every tensor of a GGUF file of this model but `rope_freqs.weight`, in the order of use."""
    out: dict[str, GgufName] = {}
    for name, shape in layout(config).items():
        if name in _TOP:
            out[name] = GgufName(_TOP[name], (name,), shape)
            continue
        _, layer, kind = name.split(".", 2)
        if not kind.startswith("experts."):
            out[name] = GgufName(f"blk.{layer}.{_LAYER[kind]}.weight", (name,), shape)
            continue
        stacked = f"blk.{layer}.ffn_{kind.rsplit('.', 1)[1]}_exps.weight"
        parts = (*out[stacked].parts, name) if stacked in out else (name,)
        out[stacked] = GgufName(stacked, parts, (len(parts), *shape))
    return list(out.values())


class GgufWeights(Source):
    """The weights of a GGUF file, in the file's own bits and in place.

    Args:
        file: the opened file.
        config: what it holds; None: as its metadata says.
    """

    kind = "GGUF file"

    def __init__(self, file: GgufFile, config: LlamaConfig | None = None) -> None:
        super().__init__()
        self._file = file
        self._config = config
        self._used = {_ROPE}
        self.path: Path = file.path
        self.tokenizer: Mapping[str, object] = file.metadata

    @property
    def config(self) -> LlamaConfig:  # type: ignore[override]
        """The model, read from the metadata when it is first asked for."""
        if self._config is None:
            self._config = LlamaConfig.from_gguf(self._file.metadata, set(self._file.tensors))
        return self._config

    @property
    def metadata(self) -> Mapping[str, object]:
        """The file's keys and values."""
        return self._file.metadata

    def rope_factors(self) -> npt.NDArray[np.float32] | None:
        """Divisors of the rotation frequencies [head_dim / 2], where the file has them (Llama 3.1 and later).

        None where the config has the scaling already: it must not count twice.
        """
        tensor = self._file.tensors.get(_ROPE)
        if tensor is None or self.config.rope_scaling is not None:
            return None
        return self._vector(_ROPE, tensor)

    def unused(self) -> list[str]:
        return [name for name in sorted(set(self._file.tensors) - self._used) if not _HARMLESS.fullmatch(name)]

    def ignored(self) -> list[str]:
        return [name for name in sorted(set(self._file.tensors) - {_ROPE}) if _HARMLESS.fullmatch(name)]

    def files(self) -> list[Path]:
        return list(self._file.paths)

    def tensor(self, name: str) -> Tensor:
        if name in _TOP:
            return self._whole(name, _TOP[name])
        _, layer, kind = name.split(".", 2)
        if kind.startswith("experts."):
            _, expert, part = kind.split(".")
            return self._expert(layer, int(expert), part)
        return self._whole(name, f"blk.{layer}.{_LAYER[kind]}.weight")

    def _whole(self, name: str, stored: str) -> Tensor:
        tensor = self._find(stored)
        if is_vector(name):
            values = self._vector(stored, tensor)
            return Tensor(stored, "F32", 1, len(values), values.view(np.uint8))
        self._check_dimensions(stored, tensor, 2)
        return Tensor(stored, tensor.format, tensor.shape[0], tensor.shape[1], tensor.data)

    def _expert(self, layer: str, expert: int, part: str) -> Tensor:
        """An expert's matrix: a range of the rows of what holds the experts of a layer."""
        stacked, merged = f"blk.{layer}.ffn_{part}_exps.weight", f"blk.{layer}.ffn_gate_up_exps.weight"
        if stacked in self._file.tensors:
            return self._slice(stacked, expert, part, 1, 0)
        if merged in self._file.tensors and part in ("gate", "up"):
            return self._slice(merged, expert, part, 2, ("gate", "up").index(part))
        single = f"blk.{layer}.ffn_{part}.{expert}.weight"
        if single in self._file.tensors:
            return self._whole(part, single)
        self._find(stacked)  # says that this is missing
        raise AssertionError(stacked)

    def _slice(self, stored: str, expert: int, part: str, count: int, index: int) -> Tensor:
        """Part `index` of the `count` equal parts that an expert's rows in a stacked tensor are."""
        tensor = self._find(stored)
        self._check_dimensions(stored, tensor, 3)
        experts, rows, cols = tensor.shape
        if experts != self.config.num_local_experts or rows % count:
            raise CheckpointError(
                f"{self.path}: the tensor '{stored}' is {list(tensor.shape)}, expected were "
                f"{self.config.num_local_experts} experts; convert the model again."
            )
        size = len(tensor.data) // (experts * count)
        begin = (expert * count + index) * size
        label = f"{stored}[{expert}]" if count == 1 else f"{stored}[{expert}.{part}]"
        return Tensor(label, tensor.format, rows // count, cols, tensor.data[begin : begin + size])

    def _find(self, stored: str) -> GgufTensor:
        tensor = self._file.tensors.get(stored)
        if tensor is None:
            raise CheckpointError(
                f"{self.path}: the tensor '{stored}' is missing; convert or download the model again."
            )
        self._used.add(stored)
        return tensor

    def _vector(self, stored: str, tensor: GgufTensor) -> npt.NDArray[np.float32]:
        self._check_dimensions(stored, tensor, 1)
        stored_vector = Tensor(stored, tensor.format, 1, tensor.shape[0], tensor.data)
        return stored_vector.weight().dequantize().reshape(-1)

    def _check_dimensions(self, stored: str, tensor: GgufTensor, count: int) -> None:
        if len(tensor.shape) != count:
            raise CheckpointError(
                f"{self.path}: the tensor '{stored}' must have {count} dimension{'s' if count > 1 else ''}, "
                f"is {list(tensor.shape)}; convert the model again."
            )
