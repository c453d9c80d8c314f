"""What ptxas says of every kernel on every architecture: nothing spills, nothing has a stack, blocks fit."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

FIGURES = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for '(?P<card>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)
# By the beginning of a kernel's name: threads a block, and blocks a multiprocessor that the host code counts on.
THREADS = {"rms_norm": (1024, 1), "product": (256, 4), "attention_split": (128, 1), "attention_": (256, 1)}


@pytest.mark.parametrize("card", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"])
def test_registers_spills_and_stack(nvcc: str, card: str, tmp_path: Path) -> None:
    command = [
        *(nvcc, "-cubin", f"-arch={card}", "-std=c++17", "-Xptxas", "-v", "-I", ROOT / "csrc"),
        *("-o", tmp_path / "kernels.cubin", ROOT / "csrc" / "cuda" / "kernels" / "kernels.cu"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
    found = {figures["kernel"]: figures for figures in FIGURES.finditer(done.stderr)}
    assert len(found) == done.stderr.count("Compiling entry function") == 34
    for kernel, figures in found.items():
        assert figures["card"] == card
        assert (figures["stack"], figures["stores"], figures["loads"]) == ("0", "0", "0"), kernel
        threads, blocks = next(value for start, value in THREADS.items() if kernel.startswith(start))
        assert int(figures["registers"]) * threads * blocks <= 65536, kernel
