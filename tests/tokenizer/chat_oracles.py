"""Meta's and Mistral's own chat formats, imported without the packages that serve pictures and sound only."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

_STAND_INS = (
    "PIL",
    "PIL.Image",
    "jsonschema",
    "jsonschema.exceptions",
    "jsonschema.validators",
    "pydantic_extra_types",
    "pydantic_extra_types.language_code",
    "torchvision",
    "torchvision.transforms",
    "torchvision.transforms.functional",
)


def _stand_in(name: str) -> types.ModuleType:
    def attribute(wanted: str) -> type:
        if wanted.startswith("__"):
            raise AttributeError(wanted)
        return type(wanted, (Exception,), {})

    module = types.ModuleType(name)
    module.__spec__, module.__path__ = ModuleSpec(name, None), []
    module.__getattr__ = attribute  # type: ignore[method-assign]
    if name.endswith("language_code"):
        module.LanguageAlpha2 = str  # type: ignore[attr-defined]
    return module


@contextmanager
def _without_media_packages() -> Iterator[None]:
    """Stand-ins for packages that are not installed, as long as the import takes."""
    put: list[str] = []
    for name in _STAND_INS:
        parent, _, child = name.rpartition(".")
        if parent in put or (not parent and importlib.util.find_spec(name) is None):
            sys.modules[name] = _stand_in(name)
            if parent:
                setattr(sys.modules[parent], child, sys.modules[name])
            put.append(name)
    try:
        yield
    finally:
        for name in put:
            del sys.modules[name]


def meta_ids(generation: str, messages: list[dict[str, str]]) -> list[int]:
    """The prompt's ids by `ChatFormat.encode_dialog_prompt` of llama-models."""
    with _without_media_packages():
        chat: Any = importlib.import_module(f"llama_models.{generation}.chat_format")
        kinds: Any = importlib.import_module("llama_models.datatypes")
        tokenizer: Any = importlib.import_module(f"llama_models.{generation}.tokenizer")
    given = [kinds.RawMessage(role=message["role"], content=message["content"]) for message in messages]
    ids: list[int] = chat.ChatFormat(tokenizer.Tokenizer.get_instance()).encode_dialog_prompt(given).tokens
    return ids


def mistral_ids(path: Path, messages: list[dict[str, str]]) -> list[int]:
    """The prompt's ids by `MistralTokenizer.encode_chat_completion` of mistral-common."""
    with _without_media_packages():
        mistral: Any = importlib.import_module("mistral_common.tokens.tokenizers.mistral")
        kinds: Any = importlib.import_module("mistral_common.protocol.instruct.messages")
        request: Any = importlib.import_module("mistral_common.protocol.instruct.request")
    classes = {"user": kinds.UserMessage, "assistant": kinds.AssistantMessage, "system": kinds.SystemMessage}
    given = [classes[message["role"]](content=message["content"]) for message in messages]
    encoded = mistral.MistralTokenizer.from_file(str(path)).encode_chat_completion(
        request.ChatCompletionRequest(messages=given)
    )
    ids: list[int] = encoded.tokens
    return ids
