"""How fast the virtual GPU interprets our kernels, with every check on.

    python bench/virtual_gpu.py [--size 2048] [--runs 9] [--json]

The one-row bf16 product, size x size, on the processor of this machine. Not a word about the speed of a GPU: what
counts is how long the tests of the CUDA backend take. The last line is one JSON object with --json.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np

LIBRARY = Path(__file__).resolve().parents[1] / "build" / "virtual_gpu" / "libcuda.so.1"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2048, help="rows and columns of the matrix, a multiple of 8")
    parser.add_argument("--runs", type=int, default=9, help="launches, of which the median counts")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    if options.size < 8 or options.size % 8 or options.runs < 1:
        parser.error("--size must be a positive multiple of 8, --runs at least 1")
    os.environ.setdefault("LLAMA_EXT_LIBCUDA", str(LIBRARY))
    path = os.environ["LLAMA_EXT_LIBCUDA"]
    if not Path(path).exists():
        sys.exit(f"{path} is not there: run `make virtual-gpu`")

    from llama_ext import _core

    if not _core.cuda.built:
        sys.exit(f"this build of llama_ext has {_core.cuda.about}")
    cuda = _core.cuda
    device = cuda.Device()
    stream = cuda.Stream(device)
    random = np.random.default_rng(1)
    weight = (random.standard_normal((options.size, options.size), np.float32).view(np.uint32) >> 16).astype(np.uint16)
    x = random.standard_normal(options.size, np.float32)
    shape = {"format": "BF16", "rows": options.size, "cols": options.size}
    packed = cuda.pack(data=weight.view(np.uint8), **shape)
    step = np.array([0, 0, 1], np.int64)  # of one row
    buffers = {}
    for name, array in {"weight": packed, "x": x, "y": np.zeros(options.size, np.float32), "step": step}.items():
        buffers[name] = cuda.Buffer(device, array.nbytes)
        stream.write(buffers[name], array)
    work = cuda.Executable(cuda.Module(device), cuda.product(**buffers, **shape, max_rows=1))
    stream.run(work)
    stream.synchronize()
    library = ctypes.CDLL(path)
    library.vgpuReport.restype = ctypes.c_char_p
    launch = json.loads(library.vgpuReport())[-1]
    seconds = []
    for _ in range(options.runs):
        # The thread's own time: others on the machine do not count, though they take its caches.
        start = time.thread_time()
        stream.run(work)
        stream.synchronize()
        seconds.append(time.thread_time() - start)
    median = statistics.median(seconds)
    result = {
        "kernel": launch["kernel"],
        "size": options.size,
        "seconds": median,
        "seconds_least": min(seconds),
        "lane_instructions": launch["lane_instructions"],
        "lane_instructions_a_weight": launch["lane_instructions"] / options.size**2,
        "lane_instructions_a_second": launch["lane_instructions"] / median,
    }
    print(
        f"{result['kernel']} {options.size} x {options.size}: {median * 1e3:.1f} ms, "
        f"{result['lane_instructions'] / 1e6:.1f} M lane-instructions "
        f"({result['lane_instructions_a_weight']:.1f} a weight), "
        f"{result['lane_instructions_a_second'] / 1e6:,.0f} M a second"
    )
    if options.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
