"""Builds the virtual GPU; the last line that it prints is the path of its libcuda.so.1.

    python tests/virtual_gpu/build.py [--build FOLDER]

It needs NVIDIA's cuda.h and nothing else of CUDA: from CUDA_HOME, from the toolkit of the nvcc on PATH (or in CUDACXX),
or from the package nvidia-cuda-runtime, which is installed beside this Python if there is no other.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKAGE = "nvidia-cuda-runtime==13.0.*"


def candidates() -> Iterator[Path]:
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            yield Path(os.environ[variable]) / "include"
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc")
    if nvcc:
        # A dry run tells the toolkit's folder, also where nvcc is a script or a link.
        says = subprocess.run([nvcc, "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
        top = re.search(r"TOP=(\S+)", says)
        if top:
            yield Path(top.group(1)) / "include"
    yield Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "include"


def find_include() -> Path | None:
    """The first cuda.h of CUDA 13."""
    for folder in candidates():
        header = folder / "cuda.h"
        if header.exists() and (folder / "cudaTypedefs.h").exists():
            version = re.search(r"^#define CUDA_VERSION (\d+)", header.read_text(errors="replace"), re.M)
            if version and int(version.group(1)) >= 13000:
                return folder.resolve()
    return None


def tool(name: str) -> str:
    """cmake or ninja: of this Python's environment, or on PATH."""
    here = Path(sys.executable).parent / name
    found = str(here) if here.exists() else shutil.which(name)
    if not found:
        sys.exit(f"no {name}: {sys.executable} -m pip install {name}")
    return found


def run(command: list[str], stdout: int | None = None) -> None:
    status = subprocess.run(command, stdout=stdout).returncode
    if status != 0:
        sys.exit(status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "virtual_gpu", help="folder to build in")
    folder: Path = parser.parse_args().build.resolve()
    include = find_include()
    if include is None:
        print(f"No cuda.h of CUDA 13 found: installing {PACKAGE}")
        run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", PACKAGE])
        include = find_include()
    if include is None:
        sys.exit(f"{PACKAGE} brought no cuda.h; name a toolkit in CUDA_HOME")
    run(
        [
            *(tool("cmake"), "-S", str(HERE), "-B", str(folder), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            f"-DVIRTUAL_GPU_CUDA_INCLUDE={include}",
            f"-DPython3_EXECUTABLE={sys.executable}",
        ],
        stdout=subprocess.DEVNULL,
    )
    run([tool("cmake"), "--build", str(folder)])
    print(folder / "libcuda.so.1")


if __name__ == "__main__":
    main()
