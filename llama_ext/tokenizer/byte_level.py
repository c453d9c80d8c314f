"""Byte-level BPE: a regular expression cuts words, merges act on their UTF-8 bytes."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from llama_ext.errors import CheckpointError
from llama_ext.tokenizer.interface import Tokenizer
from llama_ext.tokenizer.vocabulary import CONTROL, Vocabulary, common_fields, tokenizer_keys

if TYPE_CHECKING:
    import tokenizers

__all__ = ["PRE_TOKENIZERS", "ByteLevelTokenizer", "PreTokenizer", "byte_characters", "bytes_of"]


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """How a byte-level vocabulary cuts text into words before it merges inside them.

    Attributes:
        patterns: regular expressions (Oniguruma), applied one after the other to the pieces of the one
            before; what a pattern matches and what lies between its matches both become pieces.
        ignore_merges: a word that is in the vocabulary is that token, whether or not merges lead to it
            (tiktoken's rule).
        add_bos: whether a BOS is added where the file does not say.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False


# The expressions are those of the models' own tokenizers (tokenizer.json, tiktoken).
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _WORDS % "{1,3}"
_QWEN2 = _WORDS % ""
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}" + _CASED_TAIL
)
_TEKKEN = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}" + _CASED_TAIL

_DIGITS_THEN_GPT2 = PreTokenizer((r"\p{N}", _GPT2))
_PLAIN_GPT2 = PreTokenizer((_GPT2,))
_LLAMA3_LIKE = PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True)
_QWEN2_LIKE = PreTokenizer((_QWEN2,))

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"), _LLAMA3_LIKE),
    **dict.fromkeys(("smaug-bpe", "dbrx"), PreTokenizer((_LLAMA3,))),
    # llama.cpp does not set ignore_merges for Llama 4; the model's own tokenizer (tiktoken) always takes the
    # whole word.
    "llama4": PreTokenizer((_O200K,), ignore_merges=True),
    "gpt-4o": PreTokenizer((_O200K,)),
    "tekken": PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True),
    **dict.fromkeys(("qwen2", "stablelm2", "megrez", "deepseek-r1-qwen"), _QWEN2_LIKE),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), _DIGITS_THEN_GPT2),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion"), _PLAIN_GPT2),
}


@cache
def byte_characters() -> tuple[str, ...]:
    """The character that stands for each byte 0-255 in a byte-level vocabulary (GPT-2's `bytes_to_unicode`).

    Printable Latin-1 characters stand for themselves, all others for the characters from U+0100 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    out: list[str] = []
    shifted = 0
    for byte in range(256):
        if byte in printable:
            out.append(chr(byte))
        else:
            out.append(chr(256 + shifted))
            shifted += 1
    return tuple(out)


@cache
def _bytes_of_characters() -> dict[str, int]:
    return {character: byte for byte, character in enumerate(byte_characters())}


def bytes_of(text: str) -> bytes:
    """The bytes of a token of a byte-level vocabulary; characters that stand for no byte give their UTF-8."""
    table = _bytes_of_characters()
    out = bytearray()
    for character in text:
        byte = table.get(character)
        if byte is None:
            out += character.encode("utf-8", "surrogateescape")
        else:
            out.append(byte)
    return bytes(out)


class ByteLevelTokenizer(Tokenizer):
    """Byte-level BPE: a regular expression cuts words, merges act on their UTF-8 bytes."""

    def __init__(self, vocabulary: Vocabulary, metadata: Mapping[str, object]) -> None:
        name = metadata.get("tokenizer.ggml.pre")
        if name is None or name == "":
            # Files from before the key existed (spring 2024): llama.cpp falls back to the same rule.
            warnings.warn(
                "The checkpoint does not say how its tokenizer cuts text (tokenizer.ggml.pre); the old"
                " default may give other tokens than it was trained on: convert the model again.",
                stacklevel=3,
            )
            name = "default"
        pre = PRE_TOKENIZERS.get(name) if isinstance(name, str) else None
        if pre is None:
            raise CheckpointError(
                f"The tokenizer's rule for cutting text, tokenizer.ggml.pre = {name!r}, is not known:"
                f" supported are {', '.join(sorted(PRE_TOKENIZERS))}."
            )
        super().__init__(vocabulary, **common_fields(vocabulary, metadata, add_bos=pre.add_bos))
        self._metadata = metadata
        self._backend = self._build(vocabulary, metadata, pre)

    @staticmethod
    def _build(vocabulary: Vocabulary, metadata: Mapping[str, object], pre: PreTokenizer) -> tokenizers.Tokenizer:
        from tokenizers import Regex
        from tokenizers import Tokenizer as Backend
        from tokenizers.models import BPE
        from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
        from tokenizers.pre_tokenizers import PreTokenizer as Step

        lines = metadata.get("tokenizer.ggml.merges")
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            raise CheckpointError(
                "The checkpoint has a byte-level vocabulary but no merges (tokenizer.ggml.merges):"
                " convert the model again."
            )
        merges: list[Any] = [tuple(line.split(" ", 1)) for line in lines]
        ids = vocabulary.ids
        if pre.ignore_merges:
            # Else a word of plain text that spells a control token would become it.
            kinds = vocabulary.kinds
            ids = {text: index for text, index in ids.items() if kinds[index] != CONTROL}
        try:
            model = BPE(ids, merges, ignore_merges=pre.ignore_merges)
        except Exception as error:  # the library raises a bare Exception for a merge that leads to no token
            raise CheckpointError(
                f"The tokenizer's merges do not fit its tokens ({error}): convert the model again."
            ) from error
        backend = Backend(model)
        steps: list[Step] = [Split(Regex(pattern), "isolated") for pattern in pre.patterns]
        steps.append(ByteLevel(add_prefix_space=False, use_regex=False))
        # SmolLM2 has no token for 21 of the 256 bytes. The library would drop such a byte and then merge
        # across the gap; cut there instead, as llama.cpp does.
        missing = "".join(re.escape(character) for character in byte_characters() if character not in ids)
        if missing:
            steps.append(Split(Regex(f"[{missing}]"), "removed"))
        backend.pre_tokenizer = Sequence(steps)
        return backend

    def _encode_plain(self, text: str, *, after_special: bool) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def _plain_bytes(self, index: int) -> bytes:
        return bytes_of(self._vocabulary.text(index))

    def _own_metadata(self) -> dict[str, object]:
        return tokenizer_keys(self._metadata)
