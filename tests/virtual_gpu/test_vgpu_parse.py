"""The virtual GPU's PTX parser, under address and undefined-behaviour sanitizers: whole modules and damaged ones."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent


def test_parse(tmp_path: Path) -> None:
    program = tmp_path / "parse_test"
    sources = [HERE / "native/parse_test.cpp", *sorted((HERE / "src/ptx").glob("*.cpp"))]
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Wall", "-Wextra", "-Werror"]
    flags = ["-std=c++20", "-O1", *checks, f"-I{HERE / 'src'}"]
    command = [os.environ.get("CXX", "c++"), *flags, *map(str, sources), "-o", str(program)]
    subprocess.run(command, check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(" checks\n")
