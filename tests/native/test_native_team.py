"""csrc/cpu/team under ThreadSanitizer: clean as it is, and a planted race is reported."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def stress(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("native") / "team_stress"
    sources = [ROOT / "tests/native/team_stress.cpp", ROOT / "csrc/cpu/team.cpp"]
    flags = ["-std=c++20", "-O1", "-g", "-fsanitize=thread", "-Wall", "-Wextra", "-Werror", "-pthread"]
    command = [os.environ.get("CXX", "c++"), *flags, f"-I{ROOT / 'csrc'}", *map(str, sources), "-o", str(program)]
    subprocess.run(command, check=True)
    return program


def _run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(program), *arguments],
        env=os.environ | {"TSAN_OPTIONS": "exitcode=66"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_clean(stress: Path) -> None:
    done = _run(stress, "clean", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    assert done.stdout.endswith(" 0 failures\n") and int(done.stdout.split()[0]) >= 16


def test_a_planted_race_is_reported(stress: Path) -> None:
    done = _run(stress, "race")
    assert done.returncode == 66
    assert "WARNING: ThreadSanitizer: data race" in done.stderr
