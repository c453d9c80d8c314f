"""What `make sanitize` runs: `_core` built with AddressSanitizer and UndefinedBehaviorSanitizer under the tests of
the program and of the CPU executor, then the thread team under ThreadSanitizer.

    python tests/native/sanitize.py [--build DIR] [pytest arguments]

The package of the checkout is overlaid with the sanitized `_core`, so nothing that is installed changes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("tests/program", "tests/cpu", "tests/sampling")


def build(folder: Path) -> Path:
    """Configures and builds `_core`; gives the folder that holds it."""
    import pybind11

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    subprocess.run(
        [
            *("cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"),
            f"-DSKBUILD_PROJECT_VERSION={project['version']}",
            *("-DLLAMA_EXT_OPS=OFF", "-DLLAMA_EXT_SANITIZE=address,undefined"),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ],
        check=True,
    )
    subprocess.run(["cmake", "--build", str(folder), "--target", "_core"], check=True)
    return folder


def overlay(folder: Path, built: Path) -> None:
    """A package folder of links to the checkout's files, and the sanitized `_core` in place of its own."""
    package = folder / "llama_ext"
    package.mkdir()
    for source in (ROOT / "llama_ext").iterdir():
        if source.suffix != ".so" and source.name != "__pycache__":
            (package / source.name).symlink_to(source)
    (core,) = built.glob("_core.*.so")
    (package / core.name).symlink_to(core)


def library(name: str) -> str:
    compiler = os.environ.get("CXX", "c++")
    return subprocess.run(
        [compiler, f"-print-file-name={name}"], check=True, capture_output=True, text=True
    ).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "sanitize", help="folder to build in")
    options, rest = parser.parse_known_args()
    os.environ["PATH"] = str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"]
    built = build(options.build)
    with tempfile.TemporaryDirectory() as folder:
        overlay(Path(folder), built)
        environment = os.environ | {
            "PYTHONPATH": folder,
            "LD_PRELOAD": f"{library('libasan.so')} {library('libubsan.so')}",
            # Python itself never frees some of what it allocates. Shadow memory takes terabytes of address space.
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        }
        command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        # RLIMIT_AS and AddressSanitizer's shadow do not go together.
        command += ["--deselect", "tests/cpu/test_cpu_executor.py::test_a_system_without_threads_is_an_error"]
        status = subprocess.run([*command, *(rest or TESTS)], cwd=ROOT, env=environment).returncode
    if status == 0 and not rest:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/native"]
        status = subprocess.run(command, cwd=ROOT).returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
