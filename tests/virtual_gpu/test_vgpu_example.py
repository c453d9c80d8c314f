"""The example is built and run as docs/virtual-gpu.md says: a CUDA program that knows nothing of the virtual GPU."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import ROOT, Gpu, find_nvcc, library_path

HERE = Path(__file__).resolve().parent
DOCS = ROOT / "docs" / "virtual-gpu.md"

Shell = Callable[..., subprocess.CompletedProcess[str]]


def commands(shape: str) -> list[str]:
    """The lines of the document's shell block that has `shape` in it."""
    blocks: list[str] = [block for block in re.findall(r"^```sh\n(.*?)^```$", DOCS.read_text(), re.M | re.S)]
    (block,) = (block for block in blocks if shape in block)
    return block.splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the example is built, once."""
    return tmp_path_factory.mktemp("build")


@pytest.fixture
def shell(gpu: Gpu, folder: Path) -> Shell:
    """Runs a line of the document, with the folders of this machine; a card of `gpu` says what is missing."""
    include = runpy.run_path(str(HERE / "build.py"))["find_include"]()
    assert include, "no cuda.h of CUDA 13: set CUDA_HOME"
    nvcc = find_nvcc()
    assert nvcc

    def run(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
        output = re.search(r"-o (build/example/\S+)", line)
        if output and (folder / output.group(1).removeprefix("build/")).exists():
            return subprocess.CompletedProcess(line, 0, "", "")
        line = line.replace("build/example", str(folder / "example"))
        line = line.replace("build/virtual_gpu", str(library_path().parent))
        line = re.sub(r"^nvcc\b", nvcc, line)
        names = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_EXT_")}
        return subprocess.run(
            ["bash", "-c", line],
            cwd=ROOT,
            env={**names, "CUDA_HOME": str(include.parent), **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


def build_and_run(shell: Shell, lines: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    *build, last = lines
    for line in build:
        done = shell(line)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return shell(last, **environment)


def test_the_example_runs_as_the_document_says(shell: Shell) -> None:
    lines = commands("main.cpp")
    done = build_and_run(shell, lines)
    assert (done.returncode, done.stderr) == (0, "")
    text = DOCS.read_text()
    printed = text[text.index(lines[-1]) :].split("```")[2].strip()
    assert done.stdout.strip() == printed == "on virtual H100 (sm_90)\nsum 34997.0, expected 34997.0"


def test_every_seed_and_card(shell: Shell) -> None:
    lines = commands("main.cpp")
    build_and_run(shell, lines)
    for seed, name in enumerate(["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"]):
        done = build_and_run(shell, lines[-1:], LLAMA_EXT_VGPU_CARD=name, LLAMA_EXT_VGPU_SEED=str(seed))
        assert (done.returncode, done.stderr) == (0, "")
        assert f"({name})" in done.stdout and "sum 34997.0" in done.stdout


def test_the_forgotten_barrier(shell: Shell, tmp_path: Path) -> None:
    """As the document shows it, in words and as JSON, with the line that is wrong."""
    build_and_run(shell, commands("main.cpp"))
    source = (HERE / "example" / "kernels.cu").read_text().splitlines()
    wrong = next(i + 1 for i, line in enumerate(source) if "part[threadIdx.x + half]" in line)
    for seed in range(5):
        report = tmp_path / f"report{seed}.json"
        done = build_and_run(
            shell,
            commands("FORGET_BARRIER"),
            LLAMA_EXT_VGPU_SEED=str(seed),
            LLAMA_EXT_VGPU_REPORT=str(report),
        )
        assert done.returncode == 1
        assert "virtual GPU: race: " in done.stderr and f"kernels.cu:{wrong}, block [" in done.stderr
        assert "CUDA_ERROR_LAUNCH_FAILED" in done.stderr
        found = json.loads(report.read_text())
        races = [fault for fault in found["faults"] if fault["kind"] == "race"]
        assert any(fault["line"] == wrong and fault["space"] == "shared" for fault in races)
        assert all(fault["kernel"] == "block_sum" for fault in found["faults"])
        assert [launch["kernel"] for launch in found["launches"]][:2] == ["saxpy", "block_sum"]


def test_quiet(shell: Shell) -> None:
    build_and_run(shell, commands("main.cpp"))
    done = build_and_run(shell, commands("FORGET_BARRIER"), LLAMA_EXT_VGPU_QUIET="1")
    assert done.returncode == 1 and "virtual GPU" not in done.stderr


def test_no_device(shell: Shell) -> None:
    done = build_and_run(shell, commands("main.cpp"), LLAMA_EXT_VGPU_DEVICES="0")
    assert done.returncode == 1 and "CUDA_ERROR_NO_DEVICE" in done.stderr


def test_the_report_in_the_document_is_of_this_program() -> None:
    """The lines that it names say what it says, and its instructions are the kernel's."""
    text = DOCS.read_text()
    source = (HERE / "example" / "kernels.cu").read_text().splitlines()
    named = {int(line) for line in re.findall(r"kernels\.cu:(\d+)", text)}
    assert named
    for line in named:
        assert "part[" in source[line - 1], source[line - 1]
