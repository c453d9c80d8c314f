# ruff: noqa: RUF001 (special tokens are spelled as they are, look-alike characters included)
"""The list of tokens: their texts, what kind each is, and which of them end a generation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from llama_ext.errors import CheckpointError

__all__ = [
    "BYTE",
    "CONTROL",
    "END_TOKEN_IDS",
    "NORMAL",
    "UNKNOWN",
    "UNUSED",
    "USER_DEFINED",
    "Vocabulary",
    "common_fields",
    "marker_ends",
    "padding_text",
    "tokenizer_keys",
]

# tokenizer.ggml.token_type
UNDEFINED, NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(7)

# Our own key: every token that ends a generation, where GGUF knows an eos, an eot and an eom only.
END_TOKEN_IDS = "llama_ext.tokenizer.end_token_ids"

# A token with one of these texts ends a generation. llama.cpp also makes a control token of it whatever its
# type says (many converted files have it wrong), and so do we, or the text would be read differently.
_END_MARKERS = (
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
    "</s>",
    "<eos>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
)

# Llama 4 ends a message or a turn with these (`eos_token_id` of its generation_config.json); llama.cpp has no
# rule for them.
_LLAMA4_END_MARKERS = ("<|eot|>", "<|eom|>")

# Tokens of fill-in-the-middle, by the GGUF key that may name them and their usual texts. They are control
# tokens whatever their type says; the last three also end a generation: a model that emits them leaves the
# file it was writing.
_FIM_TOKENS: tuple[tuple[tuple[str, ...], tuple[str, ...], bool], ...] = (
    (
        ("fim_pre_token_id", "prefix_token_id"),
        ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>"),
        False,
    ),
    (
        ("fim_suf_token_id", "suffix_token_id"),
        ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>"),
        False,
    ),
    (
        ("fim_mid_token_id", "middle_token_id"),
        ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>"),
        False,
    ),
    (("fim_pad_token_id",), ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"), True),
    (("fim_rep_token_id",), ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"), True),
    (("fim_sep_token_id",), ("<|file_sep|>",), True),
)

KNOWN_MARKERS = (*_END_MARKERS, *(name for _, names, _ in _FIM_TOKENS for name in names))


def padding_text(index: int) -> str:
    """The text of a token that fills the vocabulary up to the rows of the embedding and stands for nothing."""
    return f"[PAD{index}]"


def marker_ends(special_ids: Mapping[str, int]) -> set[int]:
    """Those of the special tokens (text -> id) whose text says that they end a generation."""
    ends = {special_ids[text] for text in (*_END_MARKERS, *_LLAMA4_END_MARKERS) if text in special_ids}
    for _, names, is_end in _FIM_TOKENS:
        found = [special_ids[name] for name in names if name in special_ids]
        if is_end and found:
            ends.add(min(found))
    return ends


class Vocabulary:
    """The token list of a GGUF file with what its metadata says about each token.

    Attributes:
        kinds: one of NORMAL, CONTROL, ... a token.
        ends: ids of the tokens that end a generation, EOS aside; `complete_ends` says whether EOS is among them.
    """

    def __init__(self, metadata: Mapping[str, object]) -> None:
        self._metadata = metadata
        self.texts = self._texts()
        self.ids = {text: index for index, text in enumerate(self.texts)}
        if len(self.ids) != len(self.texts):
            twice = next(text for index, text in enumerate(self.texts) if self.ids[text] != index)
            raise CheckpointError(
                f"The token {twice!r} occurs twice in tokenizer.ggml.tokens: convert the model again."
            )
        types = self.numbers("tokenizer.ggml.token_type", "iu")
        self.kinds: list[int] = [NORMAL] * len(self.texts) if types is None else types.tolist()
        self.ends = self._promote_known_markers()
        own = self._own_ends()
        self.complete_ends = own is not None
        if own is not None:
            self.ends = own

    def __len__(self) -> int:
        return len(self.texts)

    def text(self, index: int) -> str:
        return self.texts[index]

    def find(self, text: str) -> int | None:
        return self.ids.get(text)

    def _texts(self) -> list[str]:
        texts = self._metadata.get("tokenizer.ggml.tokens")
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise CheckpointError(
                "The checkpoint has no list of tokens (tokenizer.ggml.tokens): use a file with a tokenizer."
            )
        if "" in texts:
            # Several empty entries occur as padding; the same stand-ins as llama.cpp's keep them apart.
            return [text or f"[EMPTY_{index}]" for index, text in enumerate(texts)]
        return texts

    def numbers(self, key: str, kinds: str) -> npt.NDArray[Any] | None:
        """One number a token from array `key`, of a numpy kind in `kinds`; None where the file has no such
        array."""
        values = self._metadata.get(key)
        if values is None:
            return None
        if not isinstance(values, np.ndarray) or values.dtype.kind not in kinds:
            raise CheckpointError(f"{key} is not an array of numbers: convert the model again.")
        if len(values) < len(self.texts):
            raise CheckpointError(
                f"{key} has {len(values)} entries for {len(self.texts)} tokens: convert the model again."
            )
        return values[: len(self.texts)]

    def flag(self, key: str, default: bool) -> bool:
        value = self._metadata.get(f"tokenizer.ggml.{key}", default)
        if not isinstance(value, bool):
            raise CheckpointError(f"tokenizer.ggml.{key} is {value!r}, not true or false: convert the model again.")
        return value

    def special_id(self, key: str, default: int | None = None) -> int | None:
        """The token that `tokenizer.ggml.<key>` names; `default` where the file does not say and has such a
        token."""
        value = self._metadata.get(f"tokenizer.ggml.{key}")
        if value is None:
            return default if default is not None and default < len(self.texts) else None
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < len(self.texts):
            raise CheckpointError(
                f"tokenizer.ggml.{key} is {value!r}, but the vocabulary has {len(self.texts)} tokens:"
                " convert the model again."
            )
        return value

    def _own_ends(self) -> set[int] | None:
        values = self._metadata.get(END_TOKEN_IDS)
        if values is None:
            return None
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "iu":
            raise CheckpointError(f"{END_TOKEN_IDS} is not an array of token ids: convert the model again.")
        ends = {int(value) for value in values}
        wrong = next((index for index in sorted(ends) if not 0 <= index < len(self.texts)), None)
        if wrong is not None:
            raise CheckpointError(
                f"{END_TOKEN_IDS} names token {wrong}, but the vocabulary has {len(self.texts)} tokens:"
                " convert the model again."
            )
        return ends

    def _promote_known_markers(self) -> set[int]:
        """Make control tokens of the known markers; return those that end a generation."""
        ends: set[int] = set()
        for text in _END_MARKERS:
            index = self.ids.get(text)
            if index is not None:
                self.kinds[index] = CONTROL
                ends.add(index)
        for text in _LLAMA4_END_MARKERS:
            index = self.ids.get(text)
            if index is not None and self.kinds[index] in (CONTROL, USER_DEFINED):
                ends.add(index)
        for keys, names, is_end in _FIM_TOKENS:
            index = next((found for key in keys if (found := self.special_id(key)) is not None), None)
            if index is None:
                # llama.cpp takes whichever its hash table yields first; the lowest id is the reproducible
                # choice.
                index = min((self.ids[name] for name in names if name in self.ids), default=None)
                if index is None:
                    continue
                self.kinds[index] = CONTROL
            if is_end:
                ends.add(index)
        for key in ("eot_token_id", "eom_token_id"):
            index = self.special_id(key)
            if index is not None:
                ends.add(index)
        return ends


def common_fields(
    vocabulary: Vocabulary,
    metadata: Mapping[str, object],
    *,
    add_bos: bool,
    bos: int | None = None,
    eos: int | None = None,
) -> dict[str, Any]:
    """The arguments of `Tokenizer` that GGUF metadata gives; `add_bos`, `bos` and `eos` where it is silent."""
    bos_id = vocabulary.special_id("bos_token_id", bos)
    eos_id = vocabulary.special_id("eos_token_id", eos)
    ends = vocabulary.ends
    if eos_id is not None and not vocabulary.complete_ends:
        ends = ends | {eos_id}
    template, chat_format = metadata.get("tokenizer.chat_template"), metadata.get("llama_ext.tokenizer.chat_format")
    return {
        "bos_id": bos_id,
        "eos_id": eos_id,
        "end_ids": ends,
        "add_bos": vocabulary.flag("add_bos_token", add_bos),
        "chat_template": template if isinstance(template, str) else None,
        "chat_format": chat_format if isinstance(chat_format, str) else None,
    }


def tokenizer_keys(metadata: Mapping[str, object]) -> dict[str, object]:
    """The part of a file's metadata that describes its tokenizer."""
    own = ("llama_ext.tokenizer.keep_user_defined", "llama_ext.tokenizer.merge_by_rank", "llama_ext.tokenizer.json")
    return {
        key: value
        for key, value in metadata.items()
        if value is not None and (key.startswith("tokenizer.") or key in own)
    }
