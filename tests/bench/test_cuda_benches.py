"""The benches of a CUDA device run through on the virtual GPU, and say that its times mean nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llama_ext import _core

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "build" / "virtual_gpu" / "libcuda.so.1"


@pytest.mark.skipif(not _core.cuda.built, reason=_core.cuda.about)
@pytest.mark.parametrize("bench", ["cuda_kernels.py", "cuda_decode.py"])
def test_virtual(bench: str) -> None:
    command = [sys.executable, ROOT / "bench" / bench, "--virtual", "--json"]
    environment = {**os.environ, "LLAMA_EXT_LIBCUDA": str(LIBRARY), "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "say nothing about a GPU" in done.stdout
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["virtual"] and facts["device"].startswith("virtual ") and facts["copy_bytes_per_second"] > 0
    for row in facts.get("rows", []):
        assert row["ms"] > 0


def test_the_script_reads() -> None:
    """gpu.sh parses, and tells of its options what it takes."""
    script = ROOT / "bench" / "gpu.sh"
    subprocess.run(["bash", "-n", script], check=True, timeout=60)
    said = subprocess.run(["bash", script, "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode == 2
    assert "NEVER BEEN RUN ON HARDWARE" in said.stdout and "--virtual" in said.stdout
