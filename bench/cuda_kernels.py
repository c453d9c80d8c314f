"""How long each kernel of a decoding step takes on a CUDA device, against the device's own copy bandwidth.

    python bench/cuda_kernels.py [--preset 1b] [--type bf16 q4_0] [--context 512] [--json]
    python bench/cuda_kernels.py --virtual            runs through on the virtual GPU; its times mean nothing

Every launch of a step of one row is captured `--repeat` times over and timed between two events, so that the launch
itself costs next to nothing; its bytes are its instruction's weights, keys and values, each read once. `share` is the
bytes a second over those of a copy of `--copy` MB. A launch that repeats finds its small inputs in the cache, and a
matrix smaller than the second-level cache as well: compare with the whole step (bench/cuda_decode.py).

This has never been run on hardware. The last line is one JSON object with --json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from typing import Any

import _cuda


def launches(options: argparse.Namespace, kind: str) -> list[dict[str, Any]]:
    """Name, milliseconds and bytes of a step's launches, layers of one shape taken together by their median."""
    import llama_ext
    from llama_ext import _core

    llm = llama_ext.load(_cuda.random_model(options.preset, kind), device="cuda", max_context=options.context + 64)
    executor: Any = llm.executor
    session = llm.session()
    session.prefill([1] * options.context)
    native = llm.program.native
    bytes_of = {}
    for index, instruction in enumerate(native.code):
        layer = getattr(instruction, "layer", -1)
        cost = native.cost(index, 1, options.context)
        label = _core.name(instruction)
        bytes_of[f"layers.{layer}.{label}" if layer >= 0 else label] = cost.weight_bytes + cost.cache_bytes
    plan = executor.plan(1)
    device = _core.cuda.Device()
    stream, module = _core.cuda.Stream(device), _core.cuda.Module(device)
    found: dict[tuple[str, str], list[tuple[float, int]]] = defaultdict(list)
    parts: dict[str, int] = defaultdict(int)
    for label in plan.labels:
        parts[label] += 1
    seen: dict[tuple[str, str], int] = defaultdict(int)
    for at, (kernel, label) in enumerate(zip(plan.kernels, plan.labels, strict=True)):
        group = (label.split(".")[-1], kernel)
        seen[group] += 1
        if seen[group] > options.layers:
            continue
        graph = stream.capture(_core.cuda.Executable(module, plan.repeated(at, options.repeat)))
        milliseconds = _cuda.median_ms(stream, device, graph, options.runs) / options.repeat
        found[group].append((milliseconds, bytes_of.get(label, 0) if parts[label] == 1 else 0))
    rows = []
    for (name, kernel), values in found.items():
        values.sort()
        milliseconds, size = values[len(values) // 2]
        row = {"instruction": name, "kernel": kernel, "launches": seen[name, kernel]}
        rows.append({**row, "ms": milliseconds, "bytes": size})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="1b", help="the shape, of bench/make_model.py (default: %(default)s)")
    parser.add_argument("--type", nargs="+", default=["bf16", "q8_0", "q4_0", "q4_k"], help="of the weights")
    parser.add_argument("--context", type=int, default=512, help="tokens in the cache (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=4, help="layers whose launches are timed (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=20, help="times that a launch is repeated (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=9, help="runs, of which the median counts (default: %(default)s)")
    parser.add_argument("--copy", type=int, default=512, help="megabytes of the copy (default: %(default)s)")
    parser.add_argument("--virtual", action="store_true", help="on the virtual GPU, tiny shapes: times mean nothing")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    if options.virtual:
        _cuda.use_virtual_gpu()
        options.preset, options.type, options.context = "tiny", ["bf16"], 16
        options.layers, options.repeat, options.runs, options.copy = 1, 2, 1, 1

    from llama_ext import _core

    if not _core.cuda.built:
        sys.exit(f"this build has {_core.cuda.about}")
    device = _core.cuda.Device()
    bandwidth = _cuda.copy_bandwidth(device, options.copy)
    print(f"{device.name}: a copy of {options.copy} MB moves {bandwidth / 1e9:,.1f} GB/s")
    if options.virtual:
        print(_cuda.NEVER_RUN)
    facts: dict[str, Any] = {"device": device.name, "copy_bytes_per_second": bandwidth, "types": {}}
    facts |= {"preset": options.preset, "context": options.context, "virtual": options.virtual}
    if not hasattr(_core.cuda, "Executor"):
        print("this build has no executor for CUDA: no launches to time")
        options.type = []
    for kind in options.type:
        rows = launches(options, kind)
        facts["types"][kind] = rows
        print(f"\n{options.preset}, {kind}, {options.context} tokens in the cache\n")
        print("| instruction | kernel | launches | us | MB | GB/s | share |\n|---|---|--:|--:|--:|--:|--:|")
        for row in rows:
            rate = row["bytes"] / (1e-3 * row["ms"])
            known = f"{rate / 1e9:,.1f} | {rate / bandwidth:.0%}" if row["bytes"] else " | "
            print(
                f"| {row['instruction']} | {row['kernel']} | {row['launches']} | {1e3 * row['ms']:.2f} "
                f"| {row['bytes'] / 1e6:.2f} | {known} |"
            )
    if options.json:
        print(json.dumps(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
