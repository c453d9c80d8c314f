"""Readers of checkpoints: each presents one file format as named tensors of one layout, a config and a vocabulary."""

from __future__ import annotations

from llama_ext.checkpoint.gguf import GgufFile, GgufTensor
from llama_ext.checkpoint.open import open_source, resolve
from llama_ext.checkpoint.quantized import quantized
from llama_ext.checkpoint.source import Source, Tensor

__all__ = ["GgufFile", "GgufTensor", "Source", "Tensor", "open_source", "quantized", "resolve"]
