"""Write a model as one GGUF file, from the format it was published in, in the same or another weight format.

llama-ext convert -m folder -o model.gguf
llama-ext convert -m organization/name -o model.gguf --weights q4_0

SRC is a folder in Hugging Face's or Meta's format, a .gguf file, or the name of a model of the Hugging Face hub.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_ext.cli import common
from llama_ext.errors import CheckpointError, OptionError

if TYPE_CHECKING:
    from llama_ext.checkpoint.source import Source

__all__ = ["add_arguments", "run"]

_FORMATS = "f32, f16, bf16, q8_0, q6_k, q5_k, q4_k, q5_1, q5_0, q4_1, q4_0"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", required=True, metavar="SRC", help="what to convert")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the .gguf file to write")
    parser.add_argument("--weights", metavar="FORMAT", help=f"{_FORMATS} (default: as they are)")
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="default: the physical cores")
    parser.add_argument("--force", action="store_true", help="replace FILE if it is there")
    common.add_json(parser, "what was written as one JSON object")


def run(options: argparse.Namespace) -> None:
    from llama_ext.checkpoint.gguf import FORMATS
    from llama_ext.checkpoint.open import open_source
    from llama_ext.checkpoint.quantized import QuantizedSource, quantized, weight_format
    from llama_ext.checkpoint.write import write_gguf
    from llama_ext.machine import physical_cores
    from llama_ext.session import progress_bar

    threads = physical_cores() if options.threads is None else options.threads
    if not 1 <= threads <= 1024:
        raise OptionError(f"--threads must be from 1 to 1024, not {options.threads}.")
    form = None if options.weights is None else weight_format(options.weights)
    if form is not None and form not in FORMATS:
        raise OptionError(f"--weights {options.weights}: a GGUF file cannot hold {form}; use one of {_FORMATS}.")
    output = Path(options.output)
    if output.exists() and not output.is_dir() and not options.force:  # said before a model is downloaded
        raise OptionError(f"{output}: is there already; give another name, or --force to replace it.")
    source = open_source(options.model)
    if form is not None:
        source = quantized(source, form, threads)
    with progress_bar(True, "converting", "B") as report:
        size = write_gguf(source, output, tokenizer=_tokenizer(source), force=options.force, progress=report)
    facts: dict[str, Any] = {"output": str(output), "bytes": size, "source": source.describe()}
    if options.json:
        common.print_json(facts)
        return
    formats = ", ".join(f"{count:,} in {name}" for name, count in facts["source"]["matrices"].items())
    lines = [f"{output}: {size / 1e9:,.2f} GB; matrices: {formats}"]
    fallbacks = source.fallbacks() if isinstance(source, QuantizedSource) else {}
    if fallbacks:
        some = ", ".join(f"{name} ({target})" for name, target in list(fallbacks.items())[:3])
        more = f" and {len(fallbacks) - 3} more" if len(fallbacks) > 3 else ""
        lines.append(f"rows that are no multiple of {form}'s blocks are in another format: {some}{more}")
    common.write("\n".join(lines) + "\n")


def _tokenizer(source: Source) -> dict[str, object] | None:
    """The vocabulary's keys of a GGUF; None where the source is one and keeps its own."""
    if not isinstance(source.tokenizer, Path):
        return None
    from llama_ext.tokenizer import tokenizer_from_folder

    tokenizer = tokenizer_from_folder(source.tokenizer)
    if tokenizer.vocab_size != source.config.vocab_size:
        raise CheckpointError(
            f"{source.path}: the embedding has {source.config.vocab_size:,} rows, the tokenizer "
            f"{tokenizer.vocab_size:,} tokens; take both from the same model."
        )
    return dict(tokenizer.gguf_metadata())
