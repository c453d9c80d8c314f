"""From a checkpoint to an executor: what was read and understood, whether it fits, and where its weights go."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llama_ext import _core, plan, program
from llama_ext.checkpoint.gguf import FORMATS
from llama_ext.checkpoint.open import open_source
from llama_ext.checkpoint.quantized import QuantizedSource, quantized, weight_format
from llama_ext.checkpoint.source import Source
from llama_ext.config import LlamaConfig
from llama_ext.errors import CheckpointError, LlamaExtError, OptionError
from llama_ext.executor import Executor
from llama_ext.machine import available_memory, resident_memory
from llama_ext.program import CACHE_FORMATS, Program
from llama_ext.tokenizer import Tokenizer, tokenizer_from_folder, tokenizer_from_gguf

__all__ = ["Checkpoint", "byte_count", "make_executor", "open_checkpoint"]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}

_GROWTH = 32 << 20
"""Bytes by which a process grows beside what is planned while it decodes: logits, texts, the interpreter's pools."""

_SHORT_CONTEXT = 512
"""Tokens that must fit where nobody says how many will come: memory for keys and values is taken as they do."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was read and understood, with no weight prepared for decoding yet.

    Attributes:
        path: the file or folder.
        config: the model.
        program: its instructions.
        tokenizer: its vocabulary.
        source: where the weights come from: in the file's own bits or converted as they are read.
        max_context: tokens that were asked for; None: as many as the model was trained for.
    """

    path: Path
    config: LlamaConfig
    program: Program
    tokenizer: Tokenizer
    source: Source
    max_context: int | None = field(default=None)

    @property
    def weights(self) -> list[_core.Weight]:
        """Every weight once, in the order of the program."""
        found = {w.name: w for instruction in self.program.code for w in _core.weights(instruction)}
        return list(found.values())

    @property
    def experts(self) -> list[_core.Weight]:
        """The weights of the experts that a router chooses among."""
        found: list[_core.Weight] = []
        for instruction in self.program.code:
            if isinstance(instruction, _core.ExpertsGateUp):
                found += instruction.gate + instruction.up
            elif isinstance(instruction, _core.ExpertsDown):
                found += instruction.down
        return found

    @property
    def parameters(self) -> int:
        """The number of weights; a tied embedding counts once."""
        return sum(w.rows * w.cols for w in self.weights)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights in the formats that they are decoded in."""
        return sum(w.nbytes for w in self.weights)

    @property
    def file_bytes(self) -> int:
        """Bytes of the files that hold the weights."""
        return sum(file.stat().st_size for file in self.source.files())

    def weight_sizes(self) -> plan.WeightBytes:
        """What the weights take on a CPU, for the planner: MXFP8 lies there as BF16."""

        def size(weights: list[_core.Weight]) -> int:
            return sum(2 * w.rows * w.cols if w.format == "MXFP8" else w.nbytes for w in weights)

        return plan.WeightBytes(size(self.weights), self.program.weight_bytes_per_token, size(self.experts))

    def convert_command(self) -> str | None:
        """What writes a file in which the experts can stay; None where they lie in theirs as they are decoded."""
        if all(w.in_file for w in self.experts):
            return None
        if not isinstance(self.source, QuantizedSource):
            return "llama-ext convert"
        form = self.source.format if self.source.format in FORMATS else "Q8_0"
        return f"llama-ext convert --weights {form.lower()}"

    def formats(self) -> dict[str, tuple[int, int]]:
        """Weight format -> (parameters, bytes), the largest first."""
        sums: dict[str, tuple[int, int]] = {}
        for w in self.weights:
            parameters, size = sums.get(w.format, (0, 0))
            sums[w.format] = parameters + w.rows * w.cols, size + w.nbytes
        return dict(sorted(sums.items(), key=lambda item: -item[1][1]))


def byte_count(name: str, value: object) -> int:
    """A number of bytes, or a text such as "8GB" (10^9), "1.5 GiB" (2^30) or "500M".

    Raises:
        OptionError: it is neither.
    """
    if isinstance(value, int | np.integer) and not isinstance(value, bool) and 0 < value < 2**63:
        return int(value)
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    count = float(match[1]) * _UNITS[(match[2] or "").lower()] if match else 0
    if not 1 <= count < 2**63:
        raise OptionError(f"{name} must be a number of bytes or a size such as '8GB', not {value!r:.40}.")
    return int(count)


def open_checkpoint(
    path: str | os.PathLike[str],
    *,
    weights: str | None = None,
    kv_cache: str | None = None,
    max_context: int | None = None,
    threads: int = 1,
) -> Checkpoint:
    """Reads a checkpoint's header, vocabulary and layout, none of its weights.

    Args:
        path: as in `llama_ext.load`.
        weights: the format that matrices are to be converted into when they are read; None: none.
        kv_cache: format of keys and values; None: f16.
        max_context: tokens that a session can hold; None: as many as the model was trained for.
        threads: to convert with.

    Raises:
        CheckpointError: it is missing, damaged, or holds what is not served. OptionError: an argument is wrong.
    """
    cache = "f16" if kv_cache is None else kv_cache
    if cache not in CACHE_FORMATS:
        raise OptionError(f"kv_cache={kv_cache!r} is unknown; use one of {', '.join(CACHE_FORMATS)}.")
    form = None if weights is None else weight_format(weights)
    source = open_source(path)
    found = source.path
    try:
        config = source.config
        if isinstance(source.tokenizer, Path):
            tokenizer = tokenizer_from_folder(source.tokenizer)
        else:
            tokenizer = tokenizer_from_gguf(source.tokenizer)
        embedding = source.tensor("embed")
        if embedding.rows != config.vocab_size or tokenizer.vocab_size != config.vocab_size:
            raise CheckpointError(
                f"the config has {config.vocab_size:,} tokens, the embedding {embedding.rows:,} and the "
                f"tokenizer {tokenizer.vocab_size:,}; convert the model again."
            )
        converted = source if form is None else quantized(source, form, threads)
        built = program.build(
            config, converted, max_context=max_context, kv_cache=cache, rope_factors=source.rope_factors()
        )
        if unused := source.unused():
            listed = ", ".join(unused[:4]) + (f" and {len(unused) - 4} more" if len(unused) > 4 else "")
            raise CheckpointError(
                f"this model has weights that llama_ext has no use for, so its answers would be wrong "
                f"({listed}); use a plain Llama."
            )
    except CheckpointError as error:
        if str(found) in str(error):
            raise
        raise CheckpointError(f"{found}: {error}") from error
    return Checkpoint(found, config, built, tokenizer, converted, max_context)


def make_executor(
    checkpoint: Checkpoint,
    *,
    device: int | None = None,
    threads: int,
    resident_limit: int | None = None,
    exact_prompt: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Executor:
    """Prepares the weights of a checkpoint for decoding.

    Args:
        checkpoint: what `open_checkpoint` gave.
        device: the ordinal of a CUDA device; None: the CPU.
        threads: of the team that decodes; for a CUDA device, that prepare its weights.
        resident_limit: bytes that the whole process may keep resident: its experts then stay in their file, and the
            most recently used of them in memory. None: all weights are held. On a CUDA device: bytes of its memory
            that weights and buffers may take; experts beyond that stay in the host's memory. None: what is free.
        exact_prompt: activations are never rounded more for a prompt than for single tokens; the CPU's alone.
        progress: of (bytes packed, bytes in all).

    Raises:
        OptionError: it does not fit into the memory there is, or into `resident_limit`; what would fit is named.
        CheckpointError: it does not fit whatever the options.
    """
    if device is not None:
        return _cuda_executor(checkpoint, device, threads, resident_limit, progress)
    native = checkpoint.program.native
    try:
        if resident_limit is not None:
            budget = _expert_budget(checkpoint, threads, resident_limit)
        else:
            budget = 0
            plan.check_fits(
                checkpoint.config,
                weights=checkpoint.weight_sizes(),
                kv_cache=native.caches[0].format,
                tokens=min(native.max_context, checkpoint.max_context or _SHORT_CONTEXT),
                memory=available_memory(),
                convert=checkpoint.convert_command(),
            )
        return _core.Executor(
            native, threads=threads, progress=progress, resident_experts=budget, exact_prompt=exact_prompt
        )
    except LlamaExtError:  # the model does not fit, or weights could not be converted
        raise
    except ValueError as error:
        if resident_limit is not None and str(error).startswith("the experts of one token"):
            raise OptionError(
                f"resident_limit={resident_limit} is too little: {error}; allow more, or a shorter max_context."
            ) from error
        raise OptionError(f"{error}.") from error
    except (MemoryError, RuntimeError) as error:
        raise LlamaExtError(
            f"{checkpoint.path}: there is no room to prepare {checkpoint.weight_bytes / 1e9:.1f} GB of "
            f"weights for {threads} threads ({error}); use a smaller model or fewer threads."
        ) from error


def _cuda_executor(
    checkpoint: Checkpoint,
    device: int,
    threads: int,
    limit: int | None,
    progress: Callable[[int, int], None] | None,
) -> _core.cuda.Executor:
    try:
        return _core.cuda.Executor(
            checkpoint.program.native, ordinal=device, threads=threads, memory_limit=limit or 0, progress=progress
        )
    except LlamaExtError:  # weights could not be converted
        raise
    except (ValueError, RuntimeError, MemoryError) as error:
        raise OptionError(f"{checkpoint.path.name} on CUDA device {device}: {error}.") from error


def _expert_budget(checkpoint: Checkpoint, threads: int, resident_limit: int) -> int:
    """Bytes that experts may take, of the limit for the whole process."""
    if not checkpoint.experts:
        raise OptionError(
            f"resident_limit={resident_limit}: {checkpoint.path.name} has no experts that could stay in their file, "
            "every token reads all of its weights; leave resident_limit out, or convert to a smaller format."
        )
    elsewhere = next((w for w in checkpoint.experts if not w.in_file), None)
    if elsewhere is not None:
        raise OptionError(
            f"resident_limit={resident_limit}: experts can stay in a file only as they are decoded, and "
            f"'{elsewhere.name}' is converted or reordered when it is read; write a .gguf file with "
            "'llama-ext convert' first, and load that."
        )
    native = checkpoint.program.native
    measured = _core.Executor.measure(native, threads=threads, experts_in_file=True)
    needs = {
        "the process itself": resident_memory() + _GROWTH,
        "the weights that every token reads": measured["packed"] + measured["kept"],
        "buffers": measured["buffers"],
        f"keys and values of {native.max_context:,} tokens": checkpoint.program.cache_bytes(native.max_context),
    }
    budget = resident_limit - sum(needs.values())
    if budget <= 0:
        listed = ", ".join(f"{plan.size_text(size)} {what}" for what, size in needs.items())
        raise OptionError(
            f"resident_limit={resident_limit} leaves nothing for experts: {listed}; allow more than "
            f"{plan.size_text(sum(needs.values()))}, or a shorter max_context."
        )
    free = available_memory()
    held = sum(needs.values()) - needs["the process itself"]
    if free is not None and held > free:
        raise OptionError(
            f"{checkpoint.path.name} needs {plan.size_text(held)} beside its experts, {plan.size_text(free)} are free; "
            "use a shorter max_context, kv_cache='q8_0', or a smaller format (llama-ext convert)."
        )
    return budget
