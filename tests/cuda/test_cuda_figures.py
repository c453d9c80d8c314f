"""What the compiler made of every kernel that is built in: nothing spills, nothing has a stack, blocks fit."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llama_ext import _core

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

import cuda_figures  # noqa: E402

# Blocks of a multiprocessor that the host code counts on, where those are more than one (kernels/product.h).
TWO_BLOCKS = re.compile(r"product_\w+_[14]")


@pytest.fixture(scope="module")
def image() -> bytes:
    if not _core.cuda.built:
        pytest.skip(f"this build has {_core.cuda.about}")
    return Path(str(_core.__file__)).read_bytes()


def test_nothing_spills(image: bytes) -> None:
    figures, holds = cuda_figures.built(image)
    cards = [name for name in holds if name.startswith("sm_")]
    assert "sm_80" in cards and "sm_90" in cards
    sources = {path.stem for path in (ROOT / "csrc" / "cuda" / "kernels").glob("*.cu")}
    for card in cards:
        of_card = [f for f in figures if f.card == card]
        assert {name for name in sources if any(f.kernel.startswith(name) for f in of_card)} == sources
        for f in of_card:
            assert f.stack == 0, f"{f.kernel} on {card} has a stack of {f.stack} bytes: it spills, or indexes an array"
            assert f.blocks() >= (2 if TWO_BLOCKS.fullmatch(f.kernel) else 1), f"{f.kernel} on {card}: {f}"


def test_what_is_built_for(image: bytes) -> None:
    """Code for each architecture that the build names, in the fatbin of every file; and PTX."""
    found = list(cuda_figures.fatbin_entries(image))
    cards = re.findall(r"sm_(\d+)", _core.cuda.about)
    files = len(list((ROOT / "csrc" / "cuda" / "kernels").glob("*.cu")))
    for card in cards:
        assert sum(kind == cuda_figures.CODE and number == int(card) for kind, number, _ in found) == files, card
    for card in {cards[0], "90", cards[-1]} & set(cards):
        assert sum(kind == cuda_figures.PTX and number == int(card) for kind, number, _ in found) == files, card


def test_the_six_architectures(image: bytes) -> None:
    if "sm_80 sm_86 sm_89 sm_90 sm_100 sm_120" not in _core.cuda.about:
        pytest.skip(f"built for {_core.cuda.about} alone")
    _, holds = cuda_figures.built(image)
    assert set(cuda_figures.CARDS) <= set(holds)
    assert {"compute_80", "compute_90", "compute_120"} <= set(holds)
    if tool := shutil.which("cuobjdump"):
        listed = subprocess.run([tool, "--list-elf", str(_core.__file__)], capture_output=True, text=True, check=True)
        assert set(cuda_figures.CARDS) <= set(re.findall(r"sm_\d+", listed.stdout))


SPILLS = """
extern "C" __global__ void __launch_bounds__(1024, 2) spills(float *x) {
    __shared__ float kept[300];
    float v[64];
    for (int i = 0; i < 64; ++i) v[i] = x[i * 32 + threadIdx.x];
    kept[threadIdx.x % 300] = v[3];
    __syncthreads();
    for (int r = 0; r < 8; ++r)
        for (int i = 0; i < 64; ++i) v[i] = v[i] * v[(i * 7 + 3) % 64] + kept[i];
    for (int i = 0; i < 64; ++i) x[i * 32 + threadIdx.x] = v[i];
}
extern "C" __global__ void __launch_bounds__(96) small(float *x) { x[threadIdx.x] += 1; }
"""


@pytest.mark.parametrize("card", ["sm_80", "sm_90"])
def test_a_spill_is_seen(nvcc: str, card: str, tmp_path: Path) -> None:
    """What is read from code objects is what ptxas says, and what spills has a stack."""
    source = tmp_path / "spills.cu"
    source.write_text(SPILLS)
    found = {f.kernel: f for f in cuda_figures.compiled(nvcc, source, card)}
    command = [nvcc, "-cubin", f"-arch={card}", "-Xptxas", "-v", "-o", tmp_path / "a.cubin", source]
    says = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = re.findall(r"entry function '(\w+)'.*?Used (\d+) registers", says, re.DOTALL)
    assert {name: int(count) for name, count in registers} == {name: f.registers for name, f in found.items()}
    spills, small = found["spills"], found["small"]
    assert spills.spill and spills.stack and spills.registers <= 32
    assert (spills.threads, spills.shared) == (1024, 1200)
    assert (small.spill, small.stack, small.threads, small.shared) == (0, 0, 96, 0)


def test_occupancy() -> None:
    """By hand, after the CUDA occupancy calculator's rules."""

    def blocks(card: str, registers: int, threads: int, shared: int = 0) -> int:
        return cuda_figures.Figures("k", card, registers, 0, 0, 0, threads).blocks(shared)

    assert blocks("sm_90", 32, 256) == 8  # threads: 2048
    assert blocks("sm_86", 32, 256) == 6  # threads: 1536
    assert blocks("sm_80", 128, 256) == 2  # registers: 4 warps a quarter
    assert blocks("sm_80", 40, 256) == 6  # 1280 registers a warp, 12 warps a quarter
    assert blocks("sm_80", 16, 32) == 32  # blocks
    assert blocks("sm_89", 16, 64) == 24
    assert blocks("sm_80", 32, 128, 40 * 1024) == 4  # shared: 41 of 164 KiB each
    assert blocks("sm_90", 255, 1024) == 0  # cannot be launched
