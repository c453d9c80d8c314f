"""Readers of checkpoints: each presents one file format as named tensors and metadata."""

from __future__ import annotations

from llama_ext.checkpoint.gguf import GgufFile, GgufTensor

__all__ = ["GgufFile", "GgufTensor"]
