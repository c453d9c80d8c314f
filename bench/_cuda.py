"""What the benches of a CUDA device share: the driver to open, the bandwidth of a copy, a model of random weights."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama_ext import _core

ROOT = Path(__file__).resolve().parents[1]
VIRTUAL = ROOT / "build" / "virtual_gpu" / "libcuda.so.1"
NEVER_RUN = "Times of the virtual GPU are those of an interpreter: they say nothing about a GPU."


def use_virtual_gpu() -> None:
    """For a run that only shows that the bench runs through. Before llama_ext is imported."""
    os.environ.setdefault("LLAMA_EXT_LIBCUDA", str(VIRTUAL))
    if not Path(os.environ["LLAMA_EXT_LIBCUDA"]).exists():
        sys.exit(f"{VIRTUAL} is not there: run `make virtual-gpu`")


def median_ms(stream: _core.cuda.Stream, device: _core.cuda.Device, work: _core.cuda.Graph, runs: int) -> float:
    """The median of `runs` runs, on the device's clock, after one that does not count."""
    from llama_ext import _core

    before, after = _core.cuda.Event(device), _core.cuda.Event(device)
    times = []
    for turn in range(runs + 1):
        stream.record(before)
        stream.run(work)
        stream.record(after)
        if turn:
            times.append(after.milliseconds_since(before))
        else:
            stream.synchronize()
    return statistics.median(times)


def copy_bandwidth(device: _core.cuda.Device, megabytes: int, runs: int = 9) -> float:
    """Bytes a second of a copy within the device's memory, reads and writes both: what a kernel can be held against."""
    from llama_ext import _core

    stream = _core.cuda.Stream(device)
    size = megabytes << 20
    source, target = _core.cuda.Buffer(device, size), _core.cuda.Buffer(device, size)
    stream.fill(source, 1)
    graph = stream.capture(lambda: stream.copy(target, source))
    return 2 * size / (1e-3 * median_ms(stream, device, graph, runs))


def random_model(preset: str, kind: str, folder: Path | None = None) -> Path:
    """A GGUF of bench/make_model.py, written where there is none yet."""
    path = (folder or Path(tempfile.gettempdir())) / f"random-{preset}-{kind}.gguf"
    if not path.exists():
        made = path.with_suffix(".part")
        command = [sys.executable, str(ROOT / "bench" / "make_model.py"), "--preset", preset, "--type", kind, str(made)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        made.rename(path)
    return path
