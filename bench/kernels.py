"""The pieces of a step, each alone: products and attention in every format, packing, the barrier, reading memory.

Builds bench/kernels.cpp in build/bench and runs it. One-row products show how far a format's kernel is from the
memory's bandwidth (weights in memory) and what it could do without it (weights in the L2 cache); 256-row products
show the arithmetic of a prefill tile.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def build(folder: Path) -> Path:
    """Configures and builds the bench program; returns its path."""
    import pybind11

    cmake = shutil.which("cmake") or "cmake"
    configure = [
        cmake,
        "-S",
        str(ROOT),
        "-B",
        str(folder),
        "-G",
        "Ninja",
        "-DSKBUILD_PROJECT_VERSION=0.0.0",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DPython_EXECUTABLE={sys.executable}",
        "-DLLAMA_EXT_OPS=OFF",
    ]
    for command in (configure, [cmake, "--build", str(folder), "--target", "llama_ext_bench_kernels"]):
        subprocess.run(command, check=True, stdout=sys.stderr)
    return folder / "llama_ext_bench_kernels"


def table(results: list[dict[str, Any]]) -> str:
    """The results as text, a line each."""
    lines = []
    for r in results:
        where = f"{r['threads']} thread{'s' if r['threads'] > 1 else ''}"
        if r["what"] == "barrier":
            lines.append(f"barrier, {where}: {r['seconds'] * 1e9:.0f} ns")
        elif r["what"] == "read":
            lines.append(f"read, {r['pages']} pages, {where}: {r['gb_per_s']:.1f} GB/s")
        elif r["what"] == "attention":
            lines.append(
                f"attention over {r['slots']:,} slots, {r['format']:<4}, {r['simd']}, {where}: "
                f"{r['seconds'] * 1e3:.2f} ms {r['gb_per_s']:7.1f} GB/s"
            )
        elif r["what"] == "pack":
            lines.append(f"pack {r['format']}, {where}: {r['gb_per_s']:.1f} GB/s")
        else:
            place = "memory" if r["bytes"] > 64 << 20 else "L2"
            lines.append(
                f"product {r['format']:<5} {r['rows']:>3} row{'s' if r['rows'] > 1 else ' '}, "
                f"weights in {place:<6}, {r['simd']}, {where}: {r['gb_per_s']:7.1f} GB/s {r['gmac_per_s']:7.1f} GMAC/s"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--simd", default="", help="a SIMD level; default: the best")
    parser.add_argument("--json", action="store_true", help="one JSON object: machine and results")
    arguments = parser.parse_args()
    program = build(ROOT / "build" / "bench")
    command = [str(program), str(arguments.threads)] + ([arguments.simd] if arguments.simd else [])
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=dict(os.environ)).stdout
    results = [json.loads(line) for line in output.splitlines()]
    print(json.dumps({"results": results}) if arguments.json else table(results))


if __name__ == "__main__":
    main()
