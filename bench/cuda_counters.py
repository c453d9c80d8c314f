"""What one step of decoding asks of a GPU's memory, launch by launch, against the least that it could ask.

    python bench/cuda_counters.py --preset 1b --type bf16 q4_0 [--context 512] [--json]
    python bench/cuda_counters.py --model model.gguf

A step of one row, greedy, runs on the virtual GPU (`make virtual-gpu`), which counts 32-byte sectors; nothing here is
a time.
The floor of a launch is what it has to read: its weights, keys and values, and its input, each once. Columns:

  floor        sectors of that
  unique       different sectors that the launch read, over the floor: what an unlimited cache would fetch
  weights      sectors of weights that were asked for, over the weights' own: 1.00 asks for each once
  reread       sectors of everything else that were asked for, over what is different among them: how often a block
               fetches again, from the second-level cache, what another block has read too
  16-byte      share of the weights' bytes that come in loads of 16 bytes a lane (the rest are scales and high bits)
  conflicts    passes over shared memory beyond the fewest possible

Rows of the table are kinds of launches; a kind's worst launch counts for quotients.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "build" / "virtual_gpu" / "libcuda.so.1"
SECTOR = 32


def vector_bytes(instruction: Any, program: Any) -> int:
    """Bytes of a launch's inputs that are no matrix and no cache: activations, norms, rotation tables, logits."""
    from llama_ext import _core

    hidden = program.hidden
    if isinstance(instruction, _core.Embed):
        # A row of the table, the inverse frequencies in float64; the id, the step, two sectors about each rotation.
        ropes = sum(8 * len(rope) + 2 * SECTOR for rope in program.ropes)
        return instruction.table.nbytes // instruction.table.rows + ropes + 2 * SECTOR
    if isinstance(instruction, _core.Sample):
        return 4 * program.vocab
    if isinstance(instruction, _core.Qkv):
        return 4 * (2 * hidden + instruction.head_dim * (instruction.rope >= 0))
    if isinstance(instruction, _core.Attention):
        return 4 * (instruction.heads + 2 * instruction.kv_heads) * instruction.head_dim
    if isinstance(instruction, _core.Output | _core.Down):
        return 4 * (instruction.weight.cols + hidden)
    if isinstance(instruction, _core.GateUp | _core.Route | _core.Head):
        return 4 * 2 * hidden
    return 0


def matrix_bytes(instruction: Any) -> int:
    """Bytes of the matrices that a launch multiplies with."""
    from llama_ext import _core

    if isinstance(instruction, _core.Embed):  # takes a row of its table
        return 0
    return sum(w.nbytes for w in _core.weights(instruction) if w.rows > 1)


def is_weight(access: dict[str, Any]) -> bool:
    """Quants are read past the first-level cache; scales are what else is read-only and narrow, norms are wide."""
    narrow = ".nc" in access["instruction"] and access["bytes_per_lane"] < 16
    return access["space"] == "global" and ("no_allocate" in access["instruction"] or narrow)


def measure(model: Path, context: int, card: str) -> dict[str, Any]:
    """One step at position `context` of a model's decoding on the virtual card."""
    os.environ["LLAMA_EXT_LIBCUDA"] = os.environ.get("LLAMA_EXT_LIBCUDA") or str(LIBRARY)
    os.environ["LLAMA_EXT_VGPU_CARD"] = card
    import llama_ext
    from llama_ext import _core

    library = ctypes.CDLL(os.environ["LLAMA_EXT_LIBCUDA"])
    library.vgpuReport.restype = library.vgpuFaults.restype = ctypes.c_char_p
    llm = llama_ext.load(model, device="cuda", max_context=context + 32)
    executor, native = llm.executor, llm.program.native
    assert isinstance(executor, _core.cuda.Executor)
    # Keys and values of positions that were never computed would not be there to read; any tokens will do.
    session = llm.session()
    if context:
        session.prefill(np.random.default_rng(0).integers(0, native.vocab, context))
    library.vgpuReport()
    session.draw(1, llama_ext.SamplingParams(temperature=0))
    launches = json.loads(library.vgpuReport())
    faults = json.loads(library.vgpuFaults())
    if faults:
        sys.exit(f"the virtual GPU reports: {faults[0]}")
    plan = str(executor.plan(1)).splitlines()
    assert len(plan) == len(launches), f"{len(plan)} launches planned, {len(launches)} seen"
    named = {instruction_label(i): i for i in native.code}
    costs = {instruction_label(i): native.cost(n, 1, context) for n, i in enumerate(native.code)}
    rows = []
    for line, launch in zip(plan, launches, strict=True):
        label = line.partition(":")[0]
        rows.append(figures(label, launch, named[label], costs[label], native))
    return {"model": str(model), "card": card, "context": context, "launches": rows}


def instruction_label(instruction: Any) -> str:
    from llama_ext import _core

    name = _core.name(instruction)
    layer = getattr(instruction, "layer", -1)
    return name if layer < 0 else f"layers.{layer}.{name}"


def figures(label: str, launch: dict[str, Any], instruction: Any, cost: Any, program: Any) -> dict[str, Any]:
    loads = [a for a in launch["accesses"] if a["space"] == "global" and a["opcode"].startswith(("ld", "cp"))]
    weight_bytes = matrix_bytes(instruction)
    weights = [a for a in loads if is_weight(a)] if weight_bytes else []
    floor = weight_bytes + cost.cache_bytes + vector_bytes(instruction, program)
    wide = sum(a["bytes"] for a in weights if a["bytes_per_lane"] == 16)
    asked = sum(a["sectors"] for a in weights)
    unique = sum(a["sectors_unique"] for a in weights)
    rest_unique = launch["global_load_sectors_unique"] - unique
    return {
        "label": label,
        "kernel": launch["kernel"],
        "blocks": int(np.prod(launch["grid"])),
        "floor_sectors": floor / SECTOR,
        "unique_sectors": launch["global_load_sectors_unique"],
        "requested_sectors": launch["global_load_sectors_requested"],
        "weight_sectors": weight_bytes / SECTOR,
        "weight_sectors_requested": asked,
        "rest_requested": launch["global_load_sectors_requested"] - asked,
        "rest_unique": rest_unique,
        "weight_bytes_in_16": wide / weight_bytes if weight_bytes else None,
        "bank_conflicts": launch["shared_bank_conflicts"],
        "instructions": launch["instructions"],
    }


def table(result: dict[str, Any]) -> Iterable[str]:
    """Markdown."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in result["launches"]:
        kinds.setdefault(f"{row['label'].rpartition('.')[2]} ({row['kernel']})", []).append(row)
    yield "| launch | times | floor, sectors | unique | weights | reread | 16-byte | conflicts |"
    yield "|---|---|---|---|---|---|---|---|"
    for kind, rows in kinds.items():
        worst = max(r["unique_sectors"] / max(r["floor_sectors"], 1) for r in rows)
        weights = [r["weight_sectors_requested"] / r["weight_sectors"] for r in rows if r["weight_sectors"]]
        wide = [r["weight_bytes_in_16"] for r in rows if r["weight_bytes_in_16"] is not None]
        reread = max(r["rest_requested"] / max(r["rest_unique"], 1) for r in rows)
        yield (
            f"| {kind} | {len(rows)} | {rows[0]['floor_sectors']:,.0f} | {worst:.3f} | "
            f"{f'{max(weights):.3f}' if weights else '-'} | {reread:,.1f} | "
            f"{f'{min(wide):.1%}' if wide else '-'} | {sum(r['bank_conflicts'] for r in rows):,} |"
        )

    def total(figure: str) -> float:
        return sum(row[figure] for row in result["launches"])

    yield (
        f"| the step | {len(result['launches'])} | {total('floor_sectors'):,.0f} | "
        f"{total('unique_sectors') / total('floor_sectors'):.3f} | "
        f"{total('weight_sectors_requested') / total('weight_sectors'):.3f} | | | {total('bank_conflicts'):,.0f} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model's file; without it one of random weights is written")
    parser.add_argument("--preset", default="1b", help="shape of that (bench/make_model.py; default: %(default)s)")
    parser.add_argument("--type", nargs="+", default=["bf16", "q4_0"], help="types of its weights (default: bf16 q4_0)")
    parser.add_argument("--context", type=int, default=64, help="position of the step (default: %(default)s)")
    parser.add_argument("--card", default="sm_90", help="of the virtual GPU (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    if not (os.environ.get("LLAMA_EXT_LIBCUDA") or LIBRARY.exists()):
        sys.exit(f"{LIBRARY} is not there: run `make virtual-gpu`")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in [options.model.name] if options.model else options.type:
            path = options.model
            if path is None:
                sys.path.insert(0, str(ROOT / "bench"))
                import make_model

                path = Path(folder) / f"{options.preset}-{kind}.gguf"
                make_model.main(["--preset", options.preset, "--type", kind, str(path)])
            results[kind] = measure(path, options.context, options.card)
            print(f"\n{kind}, position {options.context}, {options.card}\n")
            print("\n".join(table(results[kind])))
            if options.model is None:
                path.unlink()
    if options.json:
        print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
