"""Batch-1 decoding of the Llama family, as fast as the memory allows.

    import llama_ext

    llm = llama_ext.load("model.gguf")
    for piece in llm.stream("Once upon a time", max_new_tokens=64):
        print(piece, end="", flush=True)

The names below are loaded when they are first used, so importing the package is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_ext.decoder import GenerationOptions, Llama, TextStream, load
    from llama_ext.errors import CheckpointError, ContextError, LlamaExtError, OptionError
    from llama_ext.results import GenerationResult, Timings, TokenLogprob
    from llama_ext.sampling import SamplingParams
    from llama_ext.session import Session

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ContextError",
    "GenerationOptions",
    "GenerationResult",
    "Llama",
    "LlamaExtError",
    "OptionError",
    "SamplingParams",
    "Session",
    "TextStream",
    "Timings",
    "TokenLogprob",
    "__version__",
    "build_info",
    "load",
]

_HOMES = {
    "decoder": ("GenerationOptions", "Llama", "TextStream", "load"),
    "errors": ("CheckpointError", "ContextError", "LlamaExtError", "OptionError"),
    "results": ("GenerationResult", "Timings", "TokenLogprob"),
    "sampling": ("SamplingParams",),
    "session": ("Session",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'llama_ext' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"llama_ext.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def build_info() -> str:
    """What the compiled part was built with: version, SIMD levels, CUDA or not, compiler, torch operators or not."""
    from importlib.machinery import EXTENSION_SUFFIXES
    from pathlib import Path

    from llama_ext import _core

    folder = Path(str(_core.__file__)).parent
    there = any((folder / f"_ops{suffix}").exists() for suffix in EXTENSION_SUFFIXES)
    return f"llama_ext {_core.version}: {_core.build}, {'with' if there else 'no'} torch operators (_ops)"


def _why_not(error: ImportError) -> str:
    """One sentence: why the compiled part does not load, and what mends that."""
    import sys
    from importlib.machinery import EXTENSION_SUFFIXES
    from pathlib import Path

    here = Path(__file__).parent
    mend = f"run '{sys.executable} -m pip install .' in llama_ext's source folder"
    if isinstance(error, ModuleNotFoundError) and error.name == "llama_ext._core":
        built = sorted(path.name for path in here.glob("_core.*") if path.suffix in (".so", ".pyd", ".dylib"))
        if built:
            fits = EXTENSION_SUFFIXES[0].strip(".").rsplit(".", 1)[0]
            return (
                f"llama_ext's compiled part was built for another Python ({', '.join(built)}; this one needs "
                f"{fits}): {mend}."
            )
        if (here.parent / "pyproject.toml").exists():
            mend += ", then start Python in another folder (this one's llama_ext hides the installed one)"
        return f"llama_ext's compiled part, _core, has not been built in {here}: {mend}."
    text = str(error)
    if "GLIBC" in text or "CXXABI" in text:
        cause = "was built on a system with newer libraries than this one"
    elif "undefined symbol" in text or "symbol not found" in text:
        cause = "was built against other libraries than are here"
    else:
        cause = "does not load on this system"
    return f"llama_ext's compiled part {cause} ({text}): {mend}."


def _check_core() -> None:
    try:
        core = importlib.import_module("llama_ext._core")
    except ImportError as error:
        raise ImportError(_why_not(error), name="llama_ext._core") from error
    found = getattr(core, "version", "unknown")
    if found != __version__:
        raise ImportError(
            f"llama_ext {__version__} found a compiled part of version {found}, left over from another "
            "build: run 'pip install --force-reinstall .' in llama_ext's source folder.",
            name="llama_ext._core",
        )


_check_core()
