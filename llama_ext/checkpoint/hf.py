"""Hugging Face folders: config.json and *.safetensors, mapped, as tensors of the one layout.

What differs from the layout is put right lazily, when a tensor's bytes are read:

- Llama 1 to 3, Mistral and Mixtral keep the rows of q and k in halves (row i of a head turns with row
  i + head_dim / 2): they are reordered, k by its own number of heads. Llama 4's are neighbours already
  (`view_as_complex` in its model).
- Llama 4 keeps a layer's experts transposed, `gate_up_proj` [experts, hidden, 2 * intermediate] (gate first) and
  `down_proj` [experts, intermediate, hidden].
- Mixtral's experts lie one by one, `block_sparse_moe.experts.{e}.w1` (gate), `w3` (up), `w2` (down); what
  transformers 5 holds in memory is served too: `mlp.experts.gate_up_proj` [experts, 2 * intermediate, hidden] and
  `down_proj` [experts, hidden, intermediate], not transposed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llama_ext.checkpoint.assemble import Part, assemble, bytes_of, interleave
from llama_ext.checkpoint.safetensors import SafetensorsFile, SafetensorsTensor, values_of
from llama_ext.checkpoint.source import Source, Tensor, to_float32
from llama_ext.config import LlamaConfig
from llama_ext.config.layout import is_vector, layout
from llama_ext.errors import CheckpointError

__all__ = ["HfSource", "read_json"]

_MAX_JSON = 256 << 20  # the index of a model of a million tensors has some 100 MB

_LAYER = {
    "attention_norm": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "ffn_norm": "post_attention_layernorm.weight",
}
_MATRICES = {"gate": "gate_proj.weight", "up": "up_proj.weight", "down": "down_proj.weight"}
_MIXTRAL = {"gate": "w1.weight", "up": "w3.weight", "down": "w2.weight"}

# Where the text model's tensors begin: alone, and inside of a model that sees.
_PREFIXES = ("model.", "language_model.model.", "model.language_model.", "")
_HEADS = ("lm_head.weight", "language_model.lm_head.weight", "model.lm_head.weight")

# Rotation frequencies, which follow from the config; older versions of transformers saved them.
_TABLES = re.compile(r"(.*\.)?rotary_emb\.inv_freq")
_VISION = re.compile(r"(model\.)?(vision_model|multi_modal_projector)\..*")

_SHARD = re.compile(r"(?P<stem>.+)-(?P<no>\d+)-of-(?P<count>\d+)\.safetensors")


class HfSource(Source):
    """The weights of a Hugging Face folder: `model.safetensors`, or shards with or without an index.

    Args:
        folder: what holds config.json and the weights.
        config: the model; None: as config.json says.

    Raises:
        CheckpointError: a file is missing or damaged, or the folder holds what is not served.
    """

    kind = "Hugging Face folder"

    def __init__(self, folder: str | os.PathLike[str], config: LlamaConfig | None = None) -> None:
        super().__init__()
        self.path: Path = Path(folder)
        self.tokenizer: Path = self.path
        if config is None:
            values = read_json(self.path / "config.json")
            method = values.get("quantization_config")
            if method is not None:
                method = method.get("quant_method") if isinstance(method, dict) else None
                raise CheckpointError(
                    f"{self.path}: its weights are quantized by {method or 'a tool of its own'!s:.40} "
                    "('quantization_config' in config.json), which is not served: use the original model, and "
                    "weights='q4_0' or the like."
                )
            config = LlamaConfig.from_hf(values)
        self._files = _weight_files(self.path)
        self._stored: dict[str, SafetensorsTensor] = {}
        for name, file in self._files.items():
            for stored, tensor in file.tensors.items():
                if stored in self._stored:
                    raise CheckpointError(
                        f"{self.path}: the tensor '{stored}' is in {name} and in {self._stored[stored].path.name}: "
                        "keep the shards of one model only."
                    )
                self._stored[stored] = tensor
        self._used: set[str] = set()
        self._prefix = next((p for p in _PREFIXES if f"{p}embed_tokens.weight" in self._stored), _PREFIXES[0])
        self._head = next((name for name in _HEADS if name in self._stored), _HEADS[0])
        self.config = self._check_tied(config)
        self._shapes = layout(self.config)

    def unused(self) -> list[str]:
        return sorted(set(self._stored) - self._used - set(self.ignored()))

    def ignored(self) -> list[str]:
        llama4 = self.config.model_type == "llama4"
        return [
            name
            for name in sorted(self._stored)
            if _TABLES.fullmatch(name)
            or (llama4 and _VISION.fullmatch(name))
            or (self.config.tie_word_embeddings and name == self._head)
        ]

    def files(self) -> list[Path]:
        return [file.path for file in self._files.values()]

    def tensor(self, name: str) -> Tensor:
        if name == "embed":
            return self._whole(name, f"{self._prefix}embed_tokens.weight")
        if name == "norm":
            return self._whole(name, f"{self._prefix}norm.weight")
        if name == "head":
            return self._whole(name, self._head)
        _, layer, kind = name.split(".", 2)
        prefix = f"{self._prefix}layers.{layer}."
        if kind in _LAYER:
            return self._whole(name, prefix + _LAYER[kind])
        model = self.config.model_type
        if model == "mixtral":
            module = self._either(prefix + "block_sparse_moe.", prefix + "mlp.")
            if kind == "router":
                return self._whole(name, module + "gate.weight")
            _, expert, part = kind.split(".")
            return self._mixtral(name, module, int(expert), part)
        module = prefix + ("feed_forward." if model == "llama4" else "mlp.")
        if kind == "router":
            return self._whole(name, module + "router.weight")
        if kind.startswith("experts."):
            _, expert, part = kind.split(".")
            return self._llama4(name, module, int(expert), part)
        if kind.startswith("shared."):
            return self._whole(name, f"{module}shared_expert.{_MATRICES[kind.removeprefix('shared.')]}")
        return self._whole(name, module + _MATRICES[kind])

    def _whole(self, name: str, stored: str) -> Tensor:
        values = self._values(stored, self._shapes[name])
        form = self._stored[stored].format
        if is_vector(name):
            data = to_float32(bytes_of(values), form)
            return Tensor(stored, "F32", 1, len(data), data.view(np.uint8))
        rows, cols = values.shape
        heads = self._halved_heads(name)
        if heads:
            return Tensor(stored, form, rows, cols, lambda: bytes_of(interleave(values, heads)))
        return Tensor.of(stored, form, values)

    def _halved_heads(self, name: str) -> int:
        """The number of heads whose rows are to be brought from halves to neighbours; 0 where nothing is."""
        kind = name.rsplit(".", 1)[-1]
        if self.config.model_type == "llama4" or kind not in ("q", "k"):
            return 0
        return self.config.num_attention_heads if kind == "q" else self.config.num_key_value_heads

    def _llama4(self, name: str, module: str, expert: int, part: str) -> Tensor:
        """[hidden, 2 * intermediate] or [intermediate, hidden] of one expert, transposed."""
        rows, cols = self._shapes[name]
        experts, size = self.config.num_local_experts, self.config.intermediate_size
        if part == "down":
            stored = module + "experts.down_proj"
            values = self._values(stored, (experts, cols, rows))[expert]
        else:
            stored = module + "experts.gate_up_proj"
            values = self._values(stored, (experts, cols, 2 * rows))[expert]
            values = values[:, :size] if part == "gate" else values[:, size:]
        label = f"{stored}[{expert}]" if part == "down" else f"{stored}[{expert}.{part}]"
        parts = [Part(values, transposed=True)]
        return Tensor(label, self._stored[stored].format, rows, cols, lambda: assemble(parts, rows, cols))

    def _mixtral(self, name: str, module: str, expert: int, part: str) -> Tensor:
        merged = module + ("experts.down_proj" if part == "down" else "experts.gate_up_proj")
        if merged not in self._stored:
            return self._whole(name, f"{module}experts.{expert}.{_MIXTRAL[part]}")
        rows, cols = self._shapes[name]
        experts, size = self.config.num_local_experts, self.config.intermediate_size
        if part == "down":
            values, label = self._values(merged, (experts, rows, cols))[expert], f"{merged}[{expert}]"
        else:
            values = self._values(merged, (experts, 2 * rows, cols))[expert]
            values = values[:size] if part == "gate" else values[size:]
            label = f"{merged}[{expert}.{part}]"
        return Tensor.of(label, self._stored[merged].format, values)

    def _either(self, first: str, second: str) -> str:
        """The module of two that has a router."""
        return second if f"{second}gate.weight" in self._stored else first

    def _values(self, stored: str, shape: Sequence[int]) -> npt.NDArray[Any]:
        tensor = self._stored.get(stored)
        if tensor is None:
            raise CheckpointError(
                f"{self.path}: the tensor '{stored}' is missing; download the model again, all of its files."
            )
        self._used.add(stored)
        if tensor.shape != tuple(shape):
            raise CheckpointError(
                f"{tensor.path}: the tensor '{stored}' is {list(tensor.shape)}, the config asks for {list(shape)}: "
                "take config.json and the weights from the same model."
            )
        return values_of(tensor)

    def _check_tied(self, config: LlamaConfig) -> LlamaConfig:
        """The config, untied where a head of its own lies in the file: so does transformers decide."""
        embedding, head = self._stored.get(f"{self._prefix}embed_tokens.weight"), self._stored.get(self._head)
        if not config.tie_word_embeddings or embedding is None or head is None:
            return config
        same = head.format == embedding.format and head.shape == embedding.shape
        if same and np.array_equal(head.data, embedding.data):
            return config
        return replace(config, tie_word_embeddings=False)


def _weight_files(folder: Path) -> dict[str, SafetensorsFile]:
    """The safetensors files of a folder's model by their names, opened."""
    index = folder / "model.safetensors.index.json"
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error.strerror}): check the path.") from error
    # "consolidated" files are the same weights under Meta's names; "adapter" ones are no whole model.
    inside = [name for name in names if name.endswith(".safetensors")]
    inside = [name for name in inside if not name.startswith(("consolidated", "adapter"))]
    if index.name in names:
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index}: has no 'weight_map': download it again.")
        for stored, name in weight_map.items():
            if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
                raise CheckpointError(
                    f"{index}: the tensor '{stored}' is said to be in {name!r:.80}, which is no file name: "
                    "download the index again."
                )
        chosen = sorted(set(weight_map.values()))
        missing = [name for name in chosen if name not in names]
        if missing:
            raise CheckpointError(f"{folder}: {_listed(missing)} of {len(chosen)} files of weights missing: {_AGAIN}")
        files = {name: SafetensorsFile(folder / name) for name in chosen}
        for stored, name in weight_map.items():
            if stored not in files[name].tensors:
                raise CheckpointError(
                    f"{folder / name}: the tensor '{stored}' is not in it, as {index.name} says: {_AGAIN}"
                )
        return files
    if "model.safetensors" in inside:
        inside = ["model.safetensors"]
    if not inside:
        raise CheckpointError(f"{folder}: {_no_weights(names)}")
    for match in filter(None, map(_SHARD.fullmatch, inside)):
        count, width = int(match["count"]), len(match["no"])
        if count > 10_000:
            raise CheckpointError(f"{folder}: {match[0]} is one of {count:,} files by its name: {_AGAIN}")
        wanted = [f"{match['stem']}-{n:0{width}d}-of-{match['count']}.safetensors" for n in range(1, count + 1)]
        if missing := [name for name in wanted if name not in inside]:
            raise CheckpointError(f"{folder}: {_listed(missing)} of {count} files of weights missing: {_AGAIN}")
    return {name: SafetensorsFile(folder / name) for name in inside}


_AGAIN = "download the model again, all of its files."


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _no_weights(names: Sequence[str]) -> str:
    pickled = [name for name in names if name.startswith("pytorch_model") and name.endswith(".bin")]
    if pickled:
        return (
            f"its weights are in {pickled[0]}, a pickle, which can run code when it is opened and is not read: convert "
            "it to safetensors (transformers: model.save_pretrained(folder))."
        )
    return "it has a config.json and no *.safetensors: download the weights too."


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        CheckpointError: the file is missing, too large, no UTF-8, no JSON or no object.
    """
    try:
        if path.stat().st_size > _MAX_JSON:
            raise CheckpointError(f"{path}: has more than {_MAX_JSON:,} bytes, it cannot be what it is named for.")
        values = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be opened ({error.strerror}): check the path.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is no JSON ({error!s:.100}): download it again.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: is no JSON object: download it again.")
    return values
