"""Show what a model consists of, without loading its weights.

llama-ext inspect -m model.gguf
llama-ext inspect -m model.gguf --program    (the instructions of one step, with bytes and operations)
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from llama_ext.cli import common
from llama_ext.decoder import Checkpoint, open_checkpoint
from llama_ext.errors import OptionError

__all__ = ["add_arguments", "run", "summary"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--program", action="store_true", help="list the instructions of one step")
    parser.add_argument(
        "--rows", type=int, default=1, metavar="N", help="with --program: tokens of the step (default: 1)"
    )
    parser.add_argument(
        "--position",
        type=int,
        default=0,
        metavar="N",
        help="with --program: the step's position (default: 0)",
    )
    common.add_model(parser, threads=False)
    common.add_json(parser, "everything as one JSON object")


def run(options: argparse.Namespace) -> None:
    checkpoint = open_checkpoint(options.model, kv_cache=options.kv_cache, max_context=options.context)
    native = checkpoint.program.native
    rows = min(native.max_rows, native.max_context)
    if not 1 <= options.rows <= rows:
        raise OptionError(f"--rows must be from 1 to {rows}, the tokens that a step takes, not {options.rows}.")
    if not 0 <= options.position <= native.max_context - options.rows:
        raise OptionError(
            f"--position must be from 0 to {native.max_context - options.rows}, where {options.rows} more fit into "
            f"the context, not {options.position}."
        )
    facts = summary(checkpoint)
    if options.json:
        if options.program:
            facts["program"] = _instructions(checkpoint, options.rows, options.position)
        common.print_json(facts)
    elif options.program:
        common.write(checkpoint.program.listing(rows=options.rows, position=options.position) + "\n")
    else:
        common.write(_text(facts) + "\n")


def summary(checkpoint: Checkpoint) -> dict[str, Any]:
    """The facts of a checkpoint as plain values."""
    config = {
        field.name: getattr(checkpoint.config, field.name)
        for field in dataclasses.fields(checkpoint.config)
        if field.name != "extra"
    }
    if checkpoint.config.rope_scaling is not None:
        config["rope_scaling"] = dataclasses.asdict(checkpoint.config.rope_scaling)
    program, tokenizer, native = checkpoint.program, checkpoint.tokenizer, checkpoint.program.native
    lengths = [n for n in (512, 2048, 8192, 32768, 131072, 524288) if n < native.max_context]
    return {
        "path": str(checkpoint.path),
        "file_bytes": checkpoint.path.stat().st_size,
        "config": config,
        "parameters": checkpoint.parameters,
        "weight_bytes": checkpoint.weight_bytes,
        "weight_bytes_per_token": program.weight_bytes_per_token,
        "bits_per_weight": 8 * checkpoint.weight_bytes / checkpoint.parameters,
        "formats": {
            name: {"parameters": parameters, "bytes": size, "share": size / checkpoint.weight_bytes}
            for name, (parameters, size) in checkpoint.formats().items()
        },
        "cache": {
            "format": native.caches[0].format,
            "max_context": native.max_context,
            "bytes": {str(n): program.cache_bytes(n) for n in [*lengths, native.max_context]},
        },
        "tokenizer": {
            "kind": type(tokenizer).__name__.strip("_"),
            "vocab_size": tokenizer.vocab_size,
            "bos": _token(checkpoint, tokenizer.bos_id),
            "eos": _token(checkpoint, tokenizer.eos_id),
            "ends": [_token(checkpoint, index) for index in sorted(tokenizer.end_ids)],
            "add_bos": tokenizer.add_bos,
            "chat_template": tokenizer.chat_template is not None,
        },
    }


def _token(checkpoint: Checkpoint, index: int | None) -> dict[str, Any] | None:
    return None if index is None else {"id": index, "text": checkpoint.tokenizer.token_text(index)}


def _instructions(checkpoint: Checkpoint, rows: int, position: int) -> list[dict[str, Any]]:
    from llama_ext import _core

    native = checkpoint.program.native
    out = []
    for index, instruction in enumerate(checkpoint.program.code):
        cost = native.cost(index, rows, position, 1)
        layer = getattr(instruction, "layer", None)
        out.append(
            {
                "name": _core.name(instruction),
                "layer": layer,
                "weights": [
                    {"name": w.name, "format": w.format, "shape": [w.rows, w.cols]} for w in _core.weights(instruction)
                ],
                "weight_bytes": cost.weight_bytes,
                "cache_bytes": cost.cache_bytes,
                "operations": cost.operations,
            }
        )
    return out


def _text(facts: dict[str, Any]) -> str:
    config, cache, tokenizer = facts["config"], facts["cache"], facts["tokenizer"]
    kinds = config["layer_kinds"]
    layers = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    rows = [
        ("model", config["name"] or facts["path"]),
        ("file", f"{facts['path']} ({_size(facts['file_bytes'])})"),
        (
            "parameters",
            f"{facts['parameters']:,} in {_size(facts['weight_bytes'])}, {facts['bits_per_weight']:.2f} bits each",
        ),
        ("read a token", f"{_size(facts['weight_bytes_per_token'])} of weights"),
        ("layers", f"{config['num_hidden_layers']} ({layers})"),
        ("hidden", f"{config['hidden_size']:,}, feed-forward {config['intermediate_size']:,}"),
        (
            "attention",
            f"{config['num_attention_heads']} heads, {config['num_key_value_heads']} for keys and values, "
            f"of {config['head_dim']}",
        ),
        ("context", f"{cache['max_context']:,} of {config['max_position_embeddings']:,} trained"),
        ("rope", f"theta {config['rope_theta']:,g}"),
        ("head", "the embedding" if config["tie_word_embeddings"] else "its own"),
        (
            "tokenizer",
            f"{tokenizer['kind']}, {tokenizer['vocab_size']:,} tokens, "
            f"{'with' if tokenizer['add_bos'] else 'no'} BOS, "
            f"{'a' if tokenizer['chat_template'] else 'no'} chat template",
        ),
        ("ends", ", ".join(f"{end['text']} ({end['id']})" for end in tokenizer["ends"]) or "none"),
    ]
    lines = [f"{name:<14}{value}" for name, value in rows]
    lines += ["", f"{'weights':<14}{'share':>8}{'bytes':>12}{'parameters':>18}"]
    for name, entry in facts["formats"].items():
        size = _size(entry["bytes"])
        lines.append(f"{name:<14}{entry['share']:>8.1%}{size:>12}{entry['parameters']:>18,}")
    lines += ["", f"{'cache':<14}{'tokens':>8}{'bytes':>12}"]
    for tokens, size in cache["bytes"].items():
        lines.append(f"{cache['format']:<14}{int(tokens):>8,}{_size(size):>12}")
    return "\n".join(lines)


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"
