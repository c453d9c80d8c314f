"""Kernels with exactly one thing taken out, which the virtual GPU has to report."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuda_worker import Remote

KERNELS = Path(__file__).resolve().parents[2] / "csrc" / "cuda" / "kernels"

BARRIER = {"race", "uninitialised", "async_pending"}
"""Kinds of fault that would do as a report of a missing barrier, fence or wait."""
BOUND = {"out_of_bounds", "uninitialised"}
INITIALISATION = {"uninitialised"}


@dataclass(frozen=True)
class Mutation:
    name: str
    file: str
    old: str
    new: str
    run: tuple[str, dict[str, Any]]
    card: str = "sm_80"
    which: int = 0  # of the places where `old` stands
    places: int = 1
    source: str = ""  # the .cu to compile, where `file` is a header of it
    reported_in: str = ""  # the file of the fault, where it is another


def mutate(mutation: Mutation, folder: Path) -> Path:
    """A copy of the kernels, one of them with the change, and nothing else."""
    target = folder / "cuda" / "kernels"
    shutil.copytree(KERNELS, target)
    changed = target / mutation.file
    parts = changed.read_text().split(mutation.old)
    assert len(parts) == mutation.places + 1, f"{mutation.old!r} stands {len(parts) - 1} times in {mutation.file}"
    before, after = parts[: mutation.which + 1], parts[mutation.which + 1 :]
    changed.write_text(mutation.old.join(before) + mutation.new + mutation.old.join(after))
    return changed


def compile_kernels(nvcc: str, folder: Path, card: str, source: Path) -> bytes:
    """PTX of one file."""
    target = folder / "kernels.ptx"
    command = [
        *(nvcc, "-ptx", f"-arch=compute_{card.removeprefix('sm_')}", "-std=c++17", "-lineinfo"),
        *("-I", folder, "-I", KERNELS.parents[1], "-o", target, source),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return target.read_bytes()


def check_reported(
    mutation: Mutation, kinds: set[str], card_of: Callable[[str], Remote], nvcc: str, folder: Path
) -> None:
    """The run passes as it is; with the change the first fault is of one of the kinds, at a line of code."""
    function, arguments = mutation.run
    card = card_of(mutation.card)
    card.call(function, **arguments)
    changed = mutate(mutation, folder)
    source = changed if changed.suffix == ".cu" else KERNELS.joinpath(mutation.source or "missing")
    source = folder / "cuda" / "kernels" / source.name
    faults = card.faults(function, image=compile_kernels(nvcc, folder, mutation.card, source), **arguments)
    assert faults, f"nothing was reported without {mutation.old.strip()!r}"
    first = faults[0]
    reported_in = mutation.reported_in or mutation.file
    assert first["kind"] in kinds and Path(first["file"]).name == reported_in, first
    line = (folder / "cuda" / "kernels" / reported_in).read_text().splitlines()[first["line"] - 1].strip()
    assert line and not line.startswith(("//", "#", "}")), f"line {first['line']} is no code: {line}"
