"""Cards of the virtual GPU, each in a process of its own, and the compiler for tests that compile kernels.

LLAMA_EXT_TEST_CUDA=real takes a driver (the system's, or that of LLAMA_EXT_LIBCUDA) and the first of its devices for
every card. A driver reports no faults and counts nothing, and its seed is its own: tests of those are skipped.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from cuda_worker import Remote  # noqa: E402

from llama_ext import _core  # noqa: E402

REAL = os.environ.get("LLAMA_EXT_TEST_CUDA") == "real"


@pytest.fixture(scope="session")
def virtual_gpu() -> Path:
    """The libcuda.so.1 of our own."""
    if not _core.cuda.built:
        pytest.skip(f"this build has {_core.cuda.about}")
    if REAL:
        pytest.skip("needs the virtual GPU")
    path = Path(os.environ.get("LLAMA_EXT_LIBCUDA") or ROOT / "build" / "virtual_gpu" / "libcuda.so.1")
    if not path.exists():
        pytest.fail(f"{path} is not there: run `make virtual-gpu`")
    return path


@pytest.fixture(scope="session")
def libcuda(request: pytest.FixtureRequest) -> Path:
    """The driver that tests run on."""
    if not REAL:
        return Path(request.getfixturevalue("virtual_gpu"))
    if not _core.cuda.built:
        pytest.skip(f"this build has {_core.cuda.about}")
    return Path(os.environ.get("LLAMA_EXT_LIBCUDA") or "libcuda.so.1")


@pytest.fixture(scope="session")
def card_of(libcuda: Path) -> Iterator[Callable[[str], Remote]]:
    """ "sm_80" -> its process, started when it is first asked for."""
    started: dict[str, Remote] = {}

    def get(name: str) -> Remote:
        name = "real" if REAL else name
        if name not in started or started[name].process.poll() is not None:
            started[name] = Remote(libcuda, name)
        return started[name]

    yield get
    for remote in started.values():
        remote.close()


@pytest.fixture(params=["real"] if REAL else ["sm_80", "sm_90"])
def card(request: pytest.FixtureRequest, card_of: Callable[[str], Remote]) -> Remote:
    """One without and one with programmatic dependent launch."""
    return card_of(request.param)


@pytest.fixture(scope="session")
def nvcc() -> str:
    """The CUDA compiler: of the environment, of the system, or of the packages beside the interpreter."""
    candidates = (
        os.environ.get("CUDACXX"),
        shutil.which("nvcc"),
        "/usr/local/cuda/bin/nvcc",
        Path(sysconfig.get_path("purelib"), "nvidia", "cu13", "bin", "nvcc"),
    )
    for candidate in candidates:
        if candidate and Path(candidate).exists():
            return str(candidate)
    if _core.cuda.built:
        pytest.fail("no nvcc: install the packages that `make install-test` installs, or set CUDACXX")
    pytest.skip(f"no nvcc, and this build has {_core.cuda.about}")
