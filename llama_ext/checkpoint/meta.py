"""Meta's folders: params.json and consolidated.NN.pth, as tensors of the one layout.

Such a checkpoint is cut into one file a device of the machine it was made for. How a tensor was cut follows from its
shapes and the config, never from the model's version: the embedding of Llama 1 and 2 is cut by columns, that of
Llama 3 by rows. Rows of q and k have rotated pairs as neighbours, as the layout has.

Names of Llama 4 (the load hooks of Meta's llama_models, llama4/model.py, moe.py, ffn.py): `attention.wqkv` holds the
rows of q, k and v of its device; `mlp.fc1_weight` those of gate and up; norms may lie inside these modules. Experts are
transposed against y = W x: `moe_w_in_eD_F` (gate) and `moe_w_swiglu_eD_F` (up) [experts * hidden, intermediate],
`moe_w_out_eF_D` [experts * intermediate, hidden], the router `router_DE` [hidden, experts]. The shared expert is not:
`w_in_shared_FD` is its gate, `w_swiglu_FD` its up, `w_out_shared_DF` its down.

A .pth file is a pickle. It is opened by `torch.load(weights_only=True)`, which builds tensors and runs nothing else,
and mapped. torch is imported when the first one is opened.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llama_ext.checkpoint.assemble import Part, assemble, bytes_of, place
from llama_ext.checkpoint.hf import read_json
from llama_ext.checkpoint.safetensors import SafetensorsFile, values_of
from llama_ext.checkpoint.source import Source, Tensor, to_float32
from llama_ext.config import LlamaConfig
from llama_ext.config.layout import is_vector, layout
from llama_ext.errors import CheckpointError

__all__ = ["MetaSource"]

_TOP = {"embed": "tok_embeddings.weight", "norm": "norm.weight", "head": "output.weight"}
_NORMS = {
    "attention_norm": ("attention_norm.weight", "attention.wqkv.layer_norm_weight"),
    "ffn_norm": ("ffn_norm.weight", "feed_forward.norm.weight", "feed_forward.mlp.layer_norm_weight"),
}
_MATRICES = {
    "o": ("attention.wo.weight",),
    "gate": ("feed_forward.w1.weight", "feed_forward.mlp.fc1.weight"),
    "up": ("feed_forward.w3.weight", "feed_forward.mlp.fc3.weight"),
    "down": ("feed_forward.w2.weight", "feed_forward.mlp.fc2.weight", "feed_forward.mlp.fc2_weight"),
    "shared.gate": ("feed_forward.w_in_shared_FD.weight", "feed_forward.shared_expert.w1.weight"),
    "shared.up": ("feed_forward.w_swiglu_FD.weight", "feed_forward.shared_expert.w3.weight"),
    "shared.down": ("feed_forward.w_out_shared_DF.weight", "feed_forward.shared_expert.w2.weight"),
}
# An expert's matrices: all experts in one tensor, or (Mixtral in Mistral's files) each in its own.
_EXPERTS = {
    "gate": ("feed_forward.experts.moe_w_in_eD_F", "feed_forward.experts.w1", "w1.weight"),
    "up": ("feed_forward.experts.moe_w_swiglu_eD_F", "feed_forward.experts.w3", "w3.weight"),
    "down": ("feed_forward.experts.moe_w_out_eF_D", "feed_forward.experts.w2", "w2.weight"),
}

_IGNORED = re.compile(
    r"rope\.freqs|(.*\.)?rotary_emb\.inv_freq|.*\._extra_state|(vision_embeddings|vision_projection)\..*"
)
_NUMBERED = re.compile(r"consolidated\.(\d+)\.(pth|safetensors)")


@dataclass(frozen=True, slots=True, eq=False)
class _Stored:
    """One tensor of one shard; `values()` are its elements as unsigned words of their size."""

    path: Path
    shape: tuple[int, ...]
    format: str
    values: Callable[[], npt.NDArray[Any]]


class MetaSource(Source):
    """The weights of a folder in Meta's format.

    Args:
        folder: what holds params.json and the shards, consolidated.NN.pth or consolidated.safetensors.
        config: the model; None: as params.json and the shapes of the tensors say.

    Raises:
        CheckpointError: a file is missing or damaged, or holds what is not served; or torch is not installed.
    """

    kind = "folder in Meta's format"

    def __init__(self, folder: str | os.PathLike[str], config: LlamaConfig | None = None) -> None:
        super().__init__()
        self.path: Path = Path(folder)
        self.tokenizer: Path = self.path
        params = read_json(self.path / "params.json") if config is None else {}
        self._paths = _shard_files(self.path)
        self._shards = [_open(path) for path in self._paths]
        for path, shard in zip(self._paths, self._shards, strict=True):
            if different := set(shard) ^ set(self._shards[0]):
                raise CheckpointError(
                    f"{path}: its tensors are not those of {self._paths[0].name} ('{min(different)}'): "
                    "take all shards from one model."
                )
        self._used: set[str] = set()
        if config is None:
            config = LlamaConfig.from_meta(params, self._whole_shapes(params))
        self.config = self._check_tied(config)
        self._shapes = layout(self.config)

    def unused(self) -> list[str]:
        return sorted(set(self._shards[0]) - self._used - set(self.ignored()))

    def ignored(self) -> list[str]:
        tied = self.config.tie_word_embeddings
        names = sorted(self._shards[0])
        return [name for name in names if _IGNORED.fullmatch(name) or (tied and name == _TOP["head"])]

    def files(self) -> list[Path]:
        return list(self._paths)

    def tensor(self, name: str) -> Tensor:
        if name in _TOP:
            return self._join(name, _TOP[name])
        _, layer, kind = name.split(".", 2)
        prefix = f"layers.{layer}."
        if kind in ("q", "k", "v"):
            return self._attention(name, prefix, kind)
        if kind == "router":
            if prefix + "feed_forward.router_DE" in self._shards[0]:
                return self._join(name, prefix + "feed_forward.router_DE", lambda v: Part(v, transposed=True))
            return self._join(name, prefix + "feed_forward.gate.weight")
        if kind.startswith("experts."):
            _, expert, part = kind.split(".")
            return self._expert(name, prefix, int(expert), part)
        if kind in ("gate", "up") and prefix + "feed_forward.mlp.fc1_weight" in self._shards[0]:
            return self._fused(name, prefix + "feed_forward.mlp.fc1_weight", kind, ("gate", "up"), (1, 1))
        return self._join(name, self._first(prefix, _NORMS.get(kind) or _MATRICES[kind]))

    def _attention(self, name: str, prefix: str, kind: str) -> Tensor:
        fused = prefix + "attention.wqkv.weight"
        if fused in self._shards[0]:
            queries, keys = self.config.num_attention_heads, self.config.num_key_value_heads
            return self._fused(name, fused, kind, ("q", "k", "v"), (queries, keys, keys))
        return self._join(name, f"{prefix}attention.w{kind}.weight")

    def _fused(self, name: str, stored: str, kind: str, kinds: Sequence[str], weights: Sequence[int]) -> Tensor:
        """The rows of `kind` in a tensor that holds, on each device, rows of several kinds in proportion `weights`."""
        at = kinds.index(kind)
        total, before = sum(weights), sum(weights[:at])

        def rows(values: npt.NDArray[Any]) -> Part:
            if values.ndim != 2 or values.shape[0] % total:
                raise CheckpointError(
                    f"{self.path}: the tensor '{stored}' of shape {list(values.shape)} does not split into "
                    f"{', '.join(kinds)}: take params.json and the weights from the same model."
                )
            unit = values.shape[0] // total
            return Part(values[unit * before : unit * (before + weights[at])])

        return self._join(name, stored, rows, label=f"{stored}[{kind}]")

    def _expert(self, name: str, prefix: str, expert: int, part: str) -> Tensor:
        *stacked, single = _EXPERTS[part]
        stored = next((prefix + s for s in stacked if prefix + s in self._shards[0]), None)
        if stored is None and f"{prefix}feed_forward.experts.{expert}.{single}" in self._shards[0]:
            return self._join(name, f"{prefix}feed_forward.experts.{expert}.{single}")
        stored = stored or prefix + stacked[0]
        experts = self.config.num_local_experts

        def one(values: npt.NDArray[Any]) -> Part:
            if values.size % (experts * values.shape[-1]):
                raise CheckpointError(
                    f"{self.path}: the tensor '{stored}' of shape {list(values.shape)} does not split into {experts} "
                    "experts: take params.json and the weights from the same model."
                )
            return Part(values.reshape(experts, -1, values.shape[-1])[expert], transposed=True)

        return self._join(name, stored, one, label=f"{stored}[{expert}]")

    def _join(
        self,
        name: str,
        stored: str,
        cut: Callable[[npt.NDArray[Any]], Part] = Part,
        label: str | None = None,
    ) -> Tensor:
        """The tensor `name` from what `cut` takes of the stored one in each shard."""
        shards = [self._find(shard, stored) for shard in self._shards]
        values = [shard.values() for shard in shards]  # says which types are no weights
        form = shards[0].format
        if any(shard.format != form for shard in shards):
            raise CheckpointError(
                f"{self.path}: the tensor '{stored}' has different types in different shards: {_AGAIN}"
            )
        if is_vector(name):
            if shards[0].shape != self._shapes[name]:
                raise self._misfit(stored, shards, self._shapes[name])
            vector = to_float32(bytes_of(values[0]), form)
            return Tensor(label or stored, "F32", 1, len(vector), vector.view(np.uint8))
        rows, cols = self._shapes[name]
        if any(not shard.shape or 0 in shard.shape for shard in shards):
            raise self._misfit(stored, shards, (rows, cols))
        parts = [cut(array) for array in values]
        if any(part.values.ndim != 2 for part in parts):
            raise self._misfit(stored, shards, (rows, cols))
        if name.endswith((".k", ".v")):
            parts = self._without_copies(parts, rows, stored)
        placed = place(parts, rows, cols)
        if placed is None:
            raise self._misfit(stored, shards, (rows, cols))
        if len(placed) == 1 and not placed[0].transposed:
            return Tensor.of(label or stored, form, placed[0].values)
        return Tensor(label or stored, form, rows, cols, lambda: assemble(placed, rows, cols))

    def _without_copies(self, parts: list[Part], rows: int, stored: str) -> list[Part]:
        """One part of each run of equal ones: where there are more shards than key-value heads, neighbours hold the
        same head."""
        total = sum(part.shape[0] for part in parts)
        if len(parts) == 1 or total == rows or total % rows or len(parts) % (total // rows):
            return parts
        run = total // rows
        if run == len(parts):  # each shard holds all of them
            return parts
        for first in range(0, len(parts), run):
            if any(not np.array_equal(parts[first].values, p.values) for p in parts[first + 1 : first + run]):
                raise CheckpointError(
                    f"{self.path}: the shards' parts of '{stored}' are neither different heads nor copies of one: "
                    f"{_AGAIN}"
                )
        return parts[::run]

    def _find(self, shard: Mapping[str, _Stored], stored: str) -> _Stored:
        tensor = shard.get(stored)
        if tensor is None:
            raise CheckpointError(f"{self.path}: the tensor '{stored}' is missing: {_AGAIN}")
        self._used.add(stored)
        return tensor

    def _first(self, prefix: str, names: Sequence[str]) -> str:
        return next((prefix + name for name in names if prefix + name in self._shards[0]), prefix + names[0])

    def _misfit(self, stored: str, shards: Sequence[_Stored], shape: Sequence[int]) -> CheckpointError:
        shapes = " + ".join(str(list(s)) for s in dict.fromkeys(shard.shape for shard in shards))
        return CheckpointError(
            f"{self.path}: the tensor '{stored}' is {shapes} in {len(shards)} shard{'s' if len(shards) > 1 else ''}, "
            f"which do not make {list(shape)} by params.json: a shard is missing, or params.json is another model's."
        )

    def _whole_shapes(self, params: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Name -> shape of the tensors that params.json leaves open, put together from their shards."""
        count = len(self._shards)
        shapes: dict[str, tuple[int, ...]] = {}
        for name in (*_TOP.values(), "layers.0.feed_forward.w1.weight"):
            shape = self._shards[0][name].shape if name in self._shards[0] else None
            if shape is None:
                continue
            if len(shape) == 2 and all(len(shard[name].shape) == 2 for shard in self._shards):
                if count > 1 and shape[1] * count == params.get("dim"):
                    shape = (shape[0], shape[1] * count)
                else:
                    shape = (sum(shard[name].shape[0] for shard in self._shards), shape[1])
            shapes[name] = shape
        return shapes

    def _check_tied(self, config: LlamaConfig) -> LlamaConfig:
        """The config, tied where the head is a copy of the embedding, as in Llama 3.2: one of them will do."""
        names = _TOP["embed"], _TOP["head"]
        if config.tie_word_embeddings or any(name not in shard for name in names for shard in self._shards):
            return config
        pairs = [(shard[names[0]], shard[names[1]]) for shard in self._shards]
        if any(a.shape != b.shape or a.format != b.format or len(a.shape) != 2 for a, b in pairs):
            return config
        # The first rows tell most models apart at once; the rest is read only where they agree.
        for rows in (slice(0, 8), slice(None)):
            if any(not np.array_equal(a.values()[rows], b.values()[rows]) for a, b in pairs):
                return config
        return replace(config, tie_word_embeddings=True)


_AGAIN = "download the model again, all of its shards."


def _shard_files(folder: Path) -> list[Path]:
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error.strerror}): check the path.") from error
    for suffix in ("pth", "safetensors"):
        numbered = {int(m[1]): m[0] for m in map(_NUMBERED.fullmatch, names) if m and m[2] == suffix}
        if numbered:
            missing = next((n for n in range(max(numbered)) if n not in numbered), None)
            if missing is not None:
                raise CheckpointError(f"{folder}: consolidated.{missing:02d}.{suffix} is missing: {_AGAIN}")
            return [folder / numbered[n] for n in sorted(numbered)]
        if f"consolidated.{suffix}" in names:
            return [folder / f"consolidated.{suffix}"]
    raise CheckpointError(f"{folder}: it has a params.json and no consolidated.NN.pth: download the weights too.")


def _open(path: Path) -> dict[str, _Stored]:
    return _open_safetensors(path) if path.suffix == ".safetensors" else _open_pth(path)


def _open_safetensors(path: Path) -> dict[str, _Stored]:
    def stored(file: SafetensorsFile, name: str) -> _Stored:
        tensor = file.tensors[name]
        return _Stored(path, tensor.shape, tensor.format, lambda: values_of(tensor))

    file = SafetensorsFile(path)
    return {name: stored(file, name) for name in file.tensors}


def _open_pth(path: Path) -> dict[str, _Stored]:
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(
            f"{path}: torch reads Meta's .pth files and is not installed: run 'pip install torch', or use the same "
            "model as safetensors or GGUF."
        ) from error
    import zipfile  # late, as torch: other checkpoints do without

    if not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"{path}: is no archive of torch (the format before torch 1.6 is not read): download it again."
        )
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises whatever the damage leads to: pickle's, zip's and its own errors
        lines = str(error).strip().splitlines()
        refused = "weights_only" in str(error) or "Unsupported" in str(error)
        what = "holds more than tensors, which is not opened because it could run code" if refused else "cannot be read"
        raise CheckpointError(
            f"{path}: {what} ({type(error).__name__}: {(lines or [''])[0]:.120}): download it again from its maker."
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(name, str) for name in loaded):
        raise CheckpointError(f"{path}: holds no tensors by name: download it again from its maker.")

    formats = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}

    def stored(name: str, tensor: Any) -> _Stored:
        if not isinstance(tensor, torch.Tensor):
            return _Stored(path, (), type(tensor).__name__, lambda: refuse(name, type(tensor).__name__))
        shape = tuple(tensor.shape)
        form = formats.get(tensor.dtype)
        if form is None:
            kind = str(tensor.dtype).removeprefix("torch.")
            return _Stored(path, shape, kind, lambda: refuse(name, kind))
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not plain or tensor.untyped_storage().nbytes() < tensor.nbytes:
            return _Stored(path, shape, form, lambda: refuse(name, "a tensor that is not all there"))
        # numpy has no bfloat16: both sides take the elements for integers of their size.
        signed, word = (torch.int32, np.uint32) if form == "F32" else (torch.int16, np.uint16)
        return _Stored(path, shape, form, lambda: tensor.detach().view(signed).numpy().view(word))

    def refuse(name: str, what: str) -> npt.NDArray[Any]:
        raise CheckpointError(
            f"{path}: the tensor '{name}' is {what}; weights can be float32, float16 and bfloat16: use an unquantized "
            "version of the model."
        )

    return {name: stored(name, tensor) for name, tensor in loaded.items()}
