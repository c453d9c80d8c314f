"""The small files beside a vocabulary: BOS, EOS, the ends of a generation, added tokens, the chat template."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llama_ext.errors import CheckpointError
from llama_ext.tokenizer.vocabulary import END_TOKEN_IDS, Vocabulary

__all__ = ["AddedToken", "Sidecars", "apply_sidecars", "read_bytes", "read_json", "read_sidecars"]

_MAX_VOCABULARY_FILE = 256 << 20  # the largest known, Llama 4's tokenizer.json, has 28 MB
_MAX_SMALL_FILE = 32 << 20


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token of `added_tokens.json` or of `added_tokens_decoder` in tokenizer_config.json."""

    text: str
    index: int
    special: bool


@dataclass(slots=True)
class Sidecars:
    """What the files beside a vocabulary say; None and empty where they are silent.

    Attributes:
        bos, eos, unk: texts of special tokens (tokenizer_config.json, special_tokens_map.json).
        bos_id, eos_id: ids of special tokens (generation_config.json, config.json).
        end_ids: `eos_token_id`, the whole list, of generation_config.json, else of config.json.
        add_bos: `add_bos_token` of tokenizer_config.json.
        added: further tokens.
        chat_template: Jinja source.
        model_type: `model_type` of config.json.
        vocab_size: rows of the embedding (config.json, params.json).
        sources: file name of each field that is given, for messages.
    """

    bos: str | None = None
    eos: str | None = None
    unk: str | None = None
    bos_id: int | None = None
    eos_id: int | None = None
    end_ids: tuple[int, ...] = ()
    add_bos: bool | None = None
    added: tuple[AddedToken, ...] = ()
    chat_template: str | None = None
    model_type: str | None = None
    vocab_size: int | None = None
    sources: dict[str, Path] = field(default_factory=dict)

    def check_ids(self, vocabulary_file: Path, size: int) -> None:
        """Raises CheckpointError where a special id lies outside of a vocabulary of `size` tokens."""
        for name, ids in (("bos_id", (self.bos_id,)), ("eos_id", (self.eos_id,)), ("end_ids", self.end_ids)):
            for index in ids:
                if index is not None and index >= size:
                    key = "bos_token_id" if name == "bos_id" else "eos_token_id"
                    raise CheckpointError(
                        f"{self.sources[name]}: {key} is {index}, but {vocabulary_file.name} has the ids 0 to"
                        f" {size - 1}: use files of one model."
                    )

    def padded_size(self, vocabulary_file: Path, size: int) -> int:
        """The size of the vocabulary with the rows that the embedding has beyond its `size` tokens.

        Raises:
            CheckpointError: the embedding has fewer rows than there are tokens, or absurdly more.
        """
        wanted = self.vocab_size
        if wanted is None or wanted == size:
            return size
        if wanted < size or wanted > 2 * size + (1 << 16):
            raise CheckpointError(
                f"{self.sources['vocab_size']}: vocab_size is {wanted}, but {vocabulary_file.name} has {size} tokens:"
                " use files of one model."
            )
        return wanted


def read_bytes(path: Path, limit: int = _MAX_VOCABULARY_FILE) -> bytes:
    """The content of a file of the checkpoint.

    Raises:
        CheckpointError: it cannot be read, is larger than any real one, or is a pointer of Git LFS.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}): check the path and its rights.") from error
    if len(data) > limit:
        raise CheckpointError(f"{path} has more than {limit >> 20} MiB, no tokenizer's file has: download it again.")
    if data.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a pointer of Git LFS, not the file itself: run `git lfs pull` in its folder.")
    return data


def read_json(path: Path) -> dict[str, Any]:
    """An object from a small JSON file.

    Raises:
        CheckpointError: it is no JSON or no object.
    """
    data = read_bytes(path, _MAX_SMALL_FILE)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no valid JSON ({str(error)[:200]}): download it again.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, not an object: download it again.")
    return value


def _wrong(path: Path, key: str, value: object, wanted: str) -> CheckpointError:
    return CheckpointError(f"{path}: {key} is {value!r:.80}, not {wanted}: correct it or download the file again.")


def _token_text(path: Path, values: Mapping[str, Any], key: str) -> str | None:
    """A special token: its text, or an object with the text in `content`."""
    value = values.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise _wrong(path, key, value, "a token's text")
    return value


def _ids(path: Path, values: Mapping[str, Any], key: str) -> tuple[int, ...]:
    value = values.get(key)
    if value is None:
        return ()
    found = value if isinstance(value, list) else [value]
    if not all(type(index) is int and index >= -1 for index in found):
        raise _wrong(path, key, value, "a token id or a list of them")
    return tuple(index for index in found if index >= 0)  # -1: none


def _template(path: Path, value: object) -> str | None:
    """A chat template: Jinja source, or a list of named ones, of which `default` is the one for chat."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, dict):
        named = value
    elif isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        named = {entry.get("name"): entry.get("template") for entry in value}
    else:
        raise _wrong(path, "chat_template", value, "a text or a list of named texts")
    if not named:
        return None
    chosen = named.get("default", next(iter(named.values())))
    if not isinstance(chosen, str):
        raise _wrong(path, "chat_template", chosen, "a text")
    return chosen


def _added(path: Path, values: Mapping[str, Any]) -> list[AddedToken]:
    value = values.get("added_tokens_decoder")
    if value is None:
        return []
    out = []
    if not isinstance(value, dict):
        raise _wrong(path, "added_tokens_decoder", value, "an object of ids and tokens")
    for index, entry in value.items():
        text = entry.get("content") if isinstance(entry, dict) else None
        if not index.isdecimal() or len(index) > 9 or not isinstance(text, str):
            raise _wrong(path, "added_tokens_decoder", {index: entry}, "an object of ids and tokens")
        out.append(AddedToken(text, int(index), entry.get("special") is True))
    return out


def read_sidecars(folder: Path) -> Sidecars:
    """Read the small files that `folder` has; none is required.

    Raises:
        CheckpointError: one of them is damaged.
    """
    out = Sidecars()
    _read_tokenizer_config(folder, out)
    path = folder / "special_tokens_map.json"
    if path.is_file():
        values = read_json(path)
        for name in ("bos", "eos", "unk"):
            found = _token_text(path, values, f"{name}_token")
            if found is not None and getattr(out, name) is None:
                setattr(out, name, found)
                out.sources[name] = path
    _read_ids(folder, out)
    for name in ("chat_template.json", "chat_template.jinja"):  # the later wins, as in transformers
        path = folder / name
        if not path.is_file():
            continue
        if name.endswith(".jinja"):
            try:
                out.chat_template = read_bytes(path, _MAX_SMALL_FILE).decode()
            except UnicodeDecodeError as error:
                raise CheckpointError(f"{path} is no UTF-8 ({error}): download it again.") from error
        elif out.chat_template is None:
            out.chat_template = _template(path, read_json(path).get("chat_template"))
    return out


def _read_tokenizer_config(folder: Path, out: Sidecars) -> None:
    added: dict[int, AddedToken] = {}
    path = folder / "added_tokens.json"
    if path.is_file():
        for text, index in read_json(path).items():
            if type(index) is not int or not 0 <= index < 10**9:
                raise _wrong(path, text, index, "a token id")
            added[index] = AddedToken(text, index, True)
            out.sources["added"] = path
    path = folder / "tokenizer_config.json"
    if path.is_file():
        values = read_json(path)
        for name in ("bos", "eos", "unk"):
            found = _token_text(path, values, f"{name}_token")
            if found is not None:
                setattr(out, name, found)
                out.sources[name] = path
        add_bos = values.get("add_bos_token")
        if add_bos is not None and not isinstance(add_bos, bool):
            raise _wrong(path, "add_bos_token", add_bos, "true or false")
        out.add_bos = add_bos
        out.chat_template = _template(path, values.get("chat_template"))
        for token in _added(path, values):
            known = added.get(token.index)
            if known is not None and known.text != token.text:
                raise CheckpointError(
                    f"{path}: token {token.index} is {token.text!r}, but {known.text!r} in added_tokens.json: use"
                    " files of one model."
                )
            added[token.index] = token
            out.sources["added"] = path
    out.added = tuple(added[index] for index in sorted(added))


def _read_ids(folder: Path, out: Sidecars) -> None:
    for name in ("generation_config.json", "config.json"):  # the first wins
        path = folder / name
        if not path.is_file():
            continue
        values = read_json(path)
        text_config = values.get("text_config")
        # Llama 4: what concerns the text model lies in an object of its own.
        values = {**values, **text_config} if isinstance(text_config, dict) else values
        bos, ends = _ids(path, values, "bos_token_id"), _ids(path, values, "eos_token_id")
        if bos and out.bos_id is None:
            out.bos_id, out.sources["bos_id"] = bos[0], path
        if ends and not out.end_ids:
            out.end_ids, out.eos_id = ends, ends[0]
            out.sources["end_ids"] = out.sources["eos_id"] = path
        if name == "config.json":
            model_type = values.get("model_type")
            out.model_type = model_type if isinstance(model_type, str) else None
            _read_size(path, values, out)
    path = folder / "params.json"
    if out.vocab_size is None and path.is_file():
        _read_size(path, read_json(path), out)


def _read_size(path: Path, values: Mapping[str, Any], out: Sidecars) -> None:
    size = values.get("vocab_size")
    if size is None or size == -1:  # Llama 1 and 2: "as many as the tokenizer has"
        return
    if type(size) is not int or size < 1:
        raise _wrong(path, "vocab_size", size, "a number of tokens")
    out.vocab_size, out.sources["vocab_size"] = size, path


def named_id(sidecars: Sidecars, name: str, find: Callable[[str], int | None], vocabulary_file: Path) -> int | None:
    """The id of the token `name` ("bos", "eos", "unk"): by its text, else by the id that a config gives.

    Raises:
        CheckpointError: the text is not in the vocabulary.
    """
    text: str | None = getattr(sidecars, name)
    if text is None:
        index: int | None = getattr(sidecars, f"{name}_id", None)
        return index
    found = find(text)
    if found is None:
        raise CheckpointError(
            f"{sidecars.sources[name]}: {name}_token is {text!r}, which {vocabulary_file.name} does not have: use files"
            " of one model."
        )
    return found


def chat_format(sidecars: Sidecars) -> str | None:
    """The built-in format that the config points to where there is no template and no special token tells."""
    return "mistral-v1" if sidecars.chat_template is None and sidecars.model_type in ("mistral", "mixtral") else None


def apply_sidecars(
    metadata: dict[str, object],
    sidecars: Sidecars,
    ids: Mapping[str, int],
    vocabulary_file: Path,
    *,
    bos: int | None,
    eos: int | None,
) -> None:
    """Complete GGUF `metadata` by what the files beside the vocabulary say; `bos` and `eos` where they are silent."""
    for name, default in (("bos", bos), ("eos", eos)):
        # A vocabulary file that names its own BOS knows better than the ids of a config, which are often stale.
        index = default if default is not None and getattr(sidecars, name) is None else None
        if index is None:
            index = named_id(sidecars, name, ids.get, vocabulary_file)
        if index is not None:
            metadata[f"tokenizer.ggml.{name}_token_id"] = index
    if sidecars.chat_template is not None:
        metadata["tokenizer.chat_template"] = sidecars.chat_template
    hint = chat_format(sidecars)
    if hint is not None:
        metadata["llama_ext.tokenizer.chat_format"] = hint
    if sidecars.end_ids:
        ends = Vocabulary(metadata).ends | set(sidecars.end_ids)
        eos_id = metadata.get("tokenizer.ggml.eos_token_id")
        if isinstance(eos_id, int):
            ends.add(eos_id)
        metadata[END_TOKEN_IDS] = np.array(sorted(ends), np.int32)
