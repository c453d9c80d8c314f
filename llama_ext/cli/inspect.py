"""Show what a model consists of, without loading its weights.

llama-ext inspect -m model.gguf
llama-ext inspect -m model.gguf --program    (the instructions of one step, with bytes and operations)
llama-ext inspect -m llama-4-scout --weights q4_0 --kv-cache q8_0    (a model of that name, without any file)
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from llama_ext import _core, plan
from llama_ext.cli import common
from llama_ext.config import LlamaConfig
from llama_ext.config.presets import Preset, find_preset
from llama_ext.errors import OptionError
from llama_ext.loading import Checkpoint, open_checkpoint
from llama_ext.machine import available_memory

__all__ = ["add_arguments", "preset_summary", "run", "summary"]


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
    common.add_model(parser, load=False, more=", or a released model's name: llama-4-scout")
    parser.add_argument(
        "--weights",
        metavar="FORMAT",
        help="what it takes with matrices in this format (default: those of the file; of a name, bf16)",
    )
    common.add_json(parser, "everything as one JSON object")


def run(options: argparse.Namespace) -> None:
    preset = _preset(options.model)
    if preset is not None:
        if options.program:
            raise OptionError(f"--program lists what a file holds, {preset.name} is a name; give a .gguf file.")
        facts = preset_summary(
            preset, weights=options.weights or "bf16", kv_cache=options.kv_cache, tokens=options.context
        )
    else:
        checkpoint = open_checkpoint(options.model, kv_cache=options.kv_cache, max_context=options.context)
        _check_step(checkpoint, options.rows, options.position)
        facts = summary(checkpoint, weights=options.weights)
        if options.program and not options.json:
            common.write(checkpoint.program.listing(rows=options.rows, position=options.position) + "\n")
            return
        if options.program:
            facts["program"] = _instructions(checkpoint, options.rows, options.position)
    if options.json:
        common.print_json(facts)
    else:
        common.write(_text(facts) + "\n")


_PUBLISHERS = ("meta-llama", "mistralai", "huggingfacetb", "tinyllama")
"""Whose models the presets are, as the hub names them."""


def _preset(model: str) -> Preset | None:
    """The preset of that name; None where it names a file, or what `load` says more of."""
    if model == "smollm2" or Path(model).suffix == ".gguf" or Path(model).exists():
        return None
    # "./models/llama-3-8b" that is not there, or somebody else's "llama-3-8b", is not the released one.
    if "/" in model and model.rpartition("/")[0].lower() not in _PUBLISHERS:
        return None
    try:
        return find_preset(model)
    except OptionError as error:
        if "/" in model:
            return None
        raise OptionError(f"there is no file {model!r:.60}, and {error}") from None


def _check_step(checkpoint: Checkpoint, rows: int, position: int) -> None:
    native = checkpoint.program.native
    most = min(native.max_rows, native.max_context)
    if not 1 <= rows <= most:
        raise OptionError(f"--rows must be from 1 to {most}, the tokens that a step takes, not {rows}.")
    if not 0 <= position <= native.max_context - rows:
        raise OptionError(
            f"--position must be from 0 to {native.max_context - rows}, where {rows} more fit into "
            f"the context, not {position}."
        )


def summary(checkpoint: Checkpoint, weights: str | None = None) -> dict[str, Any]:
    """The facts of a checkpoint as plain values; with `weights`, also what it takes in that format."""
    config, program, tokenizer = checkpoint.config, checkpoint.program, checkpoint.tokenizer
    native = program.native
    lengths = [n for n in (512, 2048, 8192, 32768, *plan.CONTEXTS[1:]) if n < native.max_context]
    lengths.append(native.max_context)
    cache = native.caches[0].format
    exact = checkpoint.weight_sizes()
    return {
        "path": str(checkpoint.path),
        "file_bytes": checkpoint.file_bytes,
        "config": _config(config),
        "parameters": checkpoint.parameters,
        "active_parameters": config.parameters()[1],
        "weight_bytes": checkpoint.weight_bytes,
        "weight_bytes_per_token": program.weight_bytes_per_token,
        "bits_per_weight": 8 * checkpoint.weight_bytes / checkpoint.parameters,
        "formats": {
            name: {"parameters": parameters, "bytes": size, "share": size / checkpoint.weight_bytes}
            for name, (parameters, size) in checkpoint.formats().items()
        },
        "cache": {
            "format": cache,
            "max_context": native.max_context,
            "bytes": {str(n): program.cache_bytes(n) for n in lengths},
            "kinds": _cache_kinds(config, lengths, cache),
        },
        "memory": _memory(
            config,
            exact if weights is None else weights,
            cache,
            native.max_context,
            checkpoint.convert_command() if weights is None else f"llama-ext convert --weights {weights.lower()}",
        ),
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


def preset_summary(
    preset: Preset, *, weights: str = "bf16", kv_cache: str = "f16", tokens: int | None = None
) -> dict[str, Any]:
    """The facts of a model that is known by name, as plain values.

    Raises:
        OptionError: an unknown format, or more tokens than the model was trained for.
    """
    config = preset.config
    wanted = plan.plan(config, weights=weights, kv_cache=kv_cache, tokens=tokens)
    lengths = [n for n in plan.context_lengths(config) if n < wanted.tokens] + [wanted.tokens]
    kinds = _cache_kinds(config, lengths, kv_cache)
    total, active = config.parameters()
    by_format = {name: plan.weight_bytes(config, name) for name in _core.formats}
    return {
        "preset": preset.name,
        "generation": preset.generation,
        "released": preset.released,
        "note": preset.note,
        "published": {
            "parameters": round(preset.published_total * 1e9),
            "active_parameters": round(preset.published_active * 1e9),
        },
        "config": _config(config),
        "parameters": total,
        "active_parameters": active,
        "vision_parameters": preset.vision_parameters,
        "total_parameters": total + preset.vision_parameters,
        "weights": {
            name: {"bytes": size.total, "bytes_per_token": size.per_token, "bits_per_weight": 8 * size.total / total}
            for name, size in by_format.items()
        },
        "cache": {
            "format": kv_cache,
            "max_context": wanted.tokens,
            "bytes": {str(n): sum(kind["bytes"][str(n)] for kind in kinds.values()) for n in lengths},
            "kinds": kinds,
        },
        "memory": _memory(config, weights, kv_cache, wanted.tokens),
    }


def _config(config: LlamaConfig) -> dict[str, Any]:
    found = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name != "extra"}
    if config.rope_scaling is not None:
        found["rope_scaling"] = dataclasses.asdict(config.rope_scaling)
    return found


def _cache_kinds(config: LlamaConfig, lengths: list[int], kv_cache: str) -> dict[str, Any]:
    """Kind of layer -> how many there are, and tokens -> bytes of their keys and values."""
    tables = {n: plan.cache_bytes(config, n, kv_cache) for n in lengths}
    return {
        kind: {"layers": config.layer_kinds.count(kind), "bytes": {str(n): tables[n][kind] for n in lengths}}
        for kind in tables[lengths[0]]
    }


def _memory(
    config: LlamaConfig, weights: str | plan.WeightBytes, kv_cache: str, tokens: int, convert: str | None = None
) -> dict[str, Any]:
    wanted = plan.check_fits(config, weights=weights, kv_cache=kv_cache, tokens=tokens, memory=2**80)
    free = available_memory()
    return {
        "weights": wanted.weights.lower(),
        "kv_cache": kv_cache,
        "tokens": tokens,
        "bytes": {
            "weights": wanted.weight.total,
            "cache": sum(wanted.cache.values()),
            "buffers": wanted.buffers,
            "total": wanted.total,
        },
        "available": free,
        "fits": free is None or wanted.total <= free,
        "proposals": [] if free is None else plan.proposals(config, wanted, free, convert=convert),
    }


def _token(checkpoint: Checkpoint, index: int | None) -> dict[str, Any] | None:
    return None if index is None else {"id": index, "text": checkpoint.tokenizer.token_text(index)}


def _instructions(checkpoint: Checkpoint, rows: int, position: int) -> list[dict[str, Any]]:
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
    config, cache = facts["config"], facts["cache"]
    total, active = facts["parameters"], facts["active_parameters"]
    count = f"{total:,}" + (f", {active:,} of them active" if active != total else "")
    if "preset" in facts:
        note = f" ({facts['note']})" if facts["note"] else ""
        published = [f"{facts['published'][key] / 1e9:g} B" for key in ("parameters", "active_parameters")]
        if vision := facts["vision_parameters"]:
            count = f"{total + vision:,}: {total:,} of text, {active:,} of them active, and {vision:,} of vision"
        rows = [
            ("model", f"{facts['preset']}, {facts['generation']}{note}"),
            ("parameters", f"{count} (published: {', '.join(dict.fromkeys(published))})"),
        ]
    else:
        rows = [
            ("model", config["name"] or facts["path"]),
            ("file", f"{facts['path']} ({_size(facts['file_bytes'])})"),
            ("parameters", f"{count} in {_size(facts['weight_bytes'])}, {facts['bits_per_weight']:.2f} bits each"),
            ("read a token", f"{_size(facts['weight_bytes_per_token'])} of weights"),
        ]
    lines = [f"{name:<14}{value}" for name, value in [*rows, *_config_rows(config, cache), *_tokenizer_rows(facts)]]
    if "preset" in facts:
        lines += ["", f"{'weights':<14}{'bits':>8}{'bytes':>12}{'read a token':>18}"]
        for name, entry in facts["weights"].items():
            size, read = _size(entry["bytes"]), _size(entry["bytes_per_token"])
            lines.append(f"{name.lower():<14}{entry['bits_per_weight']:>8.2f}{size:>12}{read:>18}")
    else:
        lines += ["", f"{'weights':<14}{'share':>8}{'bytes':>12}{'parameters':>18}"]
        for name, entry in facts["formats"].items():
            size = _size(entry["bytes"])
            lines.append(f"{name:<14}{entry['share']:>8.1%}{size:>12}{entry['parameters']:>18,}")
    kinds = cache["kinds"]
    heads = [f"{entry['layers']} {kind}" for kind, entry in kinds.items()]
    lines += ["", f"{'cache':<14}{'tokens':>12}{'bytes':>12}" + "".join(f"{h:>14}" for h in heads if len(kinds) > 1)]
    for tokens, size in cache["bytes"].items():
        parts = [_size(entry["bytes"][tokens]) for entry in kinds.values()] if len(kinds) > 1 else []
        whole = "   (all it was trained for)" if int(tokens) == config["max_position_embeddings"] else ""
        line = f"{cache['format']:<14}{int(tokens):>12,}{_size(size):>12}" + "".join(f"{p:>14}" for p in parts)
        lines.append(line + whole)
    return "\n".join([*lines, "", *_memory_lines(facts["memory"])])


def _config_rows(config: dict[str, Any], cache: dict[str, Any]) -> list[tuple[str, str]]:
    kinds = config["layer_kinds"]
    extents = {"chunked": f" {config['attention_chunk_size']:,}", "sliding": f" {config['sliding_window']:,}"}
    layers = ", ".join(f"{kinds.count(kind)} {kind}{extents.get(kind, '')}" for kind in dict.fromkeys(kinds))
    still = config["rope_layers"].count(False)
    scaling = config["rope_scaling"]
    experts = config["num_local_experts"]
    dense = config["moe_layers"].count(False)
    inner = f"{config['intermediate_size']:,}{' an expert' if experts else ''}"
    if experts and dense:
        inner += f", {config['intermediate_size_mlp'] or config['intermediate_size']:,} in dense layers"
    elif not experts:
        inner = f"{config['intermediate_size_mlp'] or config['intermediate_size']:,}"
    rows = [
        ("layers", f"{len(kinds)} ({layers})"),
        ("hidden", f"{config['hidden_size']:,}, feed-forward {inner}"),
    ]
    if experts:
        shared = " and a shared one" if config["shared_expert"] else ""
        rows.append(
            (
                "experts",
                f"{experts} in {config['moe_layers'].count(True)} layers, {config['num_experts_per_tok']} a token"
                f"{shared}, by {config['expert_scoring']}",
            )
        )
    extras = (", qk-norm" if config["use_qk_norm"] else "") + (
        ", temperature" if config["attn_temperature_tuning"] else ""
    )
    rows += [
        (
            "attention",
            f"{config['num_attention_heads']} heads, {config['num_key_value_heads']} for keys and values, "
            f"of {config['head_dim']}{extras}",
        ),
        ("context", f"{cache['max_context']:,} of {config['max_position_embeddings']:,} trained"),
        (
            "rope",
            f"theta {config['rope_theta']:,g}"
            + (f", frequencies scaled by up to {scaling['factor']:g}" if scaling else "")
            + (f", none in {still} layers" if still else ""),
        ),
        ("head", "the embedding" if config["tie_word_embeddings"] else "its own"),
    ]
    return rows


def _tokenizer_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    if "tokenizer" not in facts:
        return []
    tokenizer = facts["tokenizer"]
    return [
        (
            "tokenizer",
            f"{tokenizer['kind']}, {tokenizer['vocab_size']:,} tokens, "
            f"{'with' if tokenizer['add_bos'] else 'no'} BOS, "
            f"{'a' if tokenizer['chat_template'] else 'no'} chat template",
        ),
        ("ends", ", ".join(f"{end['text']} ({end['id']})" for end in tokenizer["ends"]) or "none"),
    ]


def _memory_lines(memory: dict[str, Any]) -> list[str]:
    sizes = memory["bytes"]
    weights = "the file's weights" if memory["weights"] == "file" else f"{memory['weights']} weights"
    free = "unknown" if memory["available"] is None else _size(memory["available"])
    lines = [
        f"{'memory':<14}{_size(sizes['total'])}: {weights} {_size(sizes['weights'])}, {memory['kv_cache']} cache of "
        f"{memory['tokens']:,} tokens {_size(sizes['cache'])}, buffers {_size(sizes['buffers'])}",
        f"{'here':<14}{free} free: {'fits' if memory['fits'] else 'does not fit'}",
    ]
    if not memory["fits"]:
        mends = [common.in_words_of_the_command_line(mend) for mend in memory["proposals"]]
        lines.append(f"{'would fit':<14}{' or '.join(mends) or 'a smaller model'}")
    return lines


_size = plan.size_text
