# ruff: noqa: RUF001 (special tokens are spelled as they are, look-alike characters included)
"""Tokenizers: the vocabulary inside a checkpoint behind one small interface.

Two kinds of vocabulary occur in the family. Llama 1 and 2 use SentencePiece BPE with byte fallback (GGUF
calls it ``llama``), Llama 3, Llama 4 and SmolLM2 byte-level BPE with a regular expression that cuts the text
first (``gpt2``). The merging itself is done by the `sentencepiece` and `tokenizers` libraries; what is ours
is everything around it, which has to agree with llama.cpp id for id: special tokens, the space before the
first word, BOS, the rules that cut.

Where the ids of llama.cpp and of the model's own tokenizer differ, we follow the model's own; the tests list
each such case.
"""

from __future__ import annotations

import codecs
import re
import struct
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from llama_ext.errors import CheckpointError, OptionError

if TYPE_CHECKING:
    import tokenizers

__all__ = ["StreamDecoder", "Tokenizer", "tokenizer_from_gguf"]

# tokenizer.ggml.token_type
_UNDEFINED, _NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(7)

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


@dataclass(frozen=True, slots=True)
class _PreTokenizer:
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

_DIGITS_THEN_GPT2 = _PreTokenizer((r"\p{N}", _GPT2))
_PLAIN_GPT2 = _PreTokenizer((_GPT2,))
_LLAMA3_LIKE = _PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True)
_QWEN2_LIKE = _PreTokenizer((_QWEN2,))

_PRE_TOKENIZERS: dict[str, _PreTokenizer] = {
    "default": _PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"), _LLAMA3_LIKE),
    **dict.fromkeys(("smaug-bpe", "dbrx"), _PreTokenizer((_LLAMA3,))),
    # llama.cpp does not set ignore_merges for Llama 4; the model's own tokenizer (tiktoken) always takes the
    # whole word.
    "llama4": _PreTokenizer((_O200K,), ignore_merges=True),
    "gpt-4o": _PreTokenizer((_O200K,)),
    "tekken": _PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True),
    **dict.fromkeys(("qwen2", "stablelm2", "megrez", "deepseek-r1-qwen"), _QWEN2_LIKE),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), _DIGITS_THEN_GPT2),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion"), _PLAIN_GPT2),
}


@cache
def _byte_characters() -> tuple[str, ...]:
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
    return {character: byte for byte, character in enumerate(_byte_characters())}


class _Vocabulary:
    """The token list of a checkpoint with what its metadata says about each token."""

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
        self.kinds: list[int] = [_NORMAL] * len(self.texts) if types is None else types.tolist()
        self.ends = self._promote_known_markers()

    def __len__(self) -> int:
        return len(self.texts)

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

    def _promote_known_markers(self) -> set[int]:
        """Make control tokens of the known markers; return those that end a generation."""
        ends: set[int] = set()
        for text in _END_MARKERS:
            index = self.ids.get(text)
            if index is not None:
                self.kinds[index] = _CONTROL
                ends.add(index)
        for text in _LLAMA4_END_MARKERS:
            index = self.ids.get(text)
            if index is not None and self.kinds[index] in (_CONTROL, _USER_DEFINED):
                ends.add(index)
        for keys, names, is_end in _FIM_TOKENS:
            index = next((found for key in keys if (found := self.special_id(key)) is not None), None)
            if index is None:
                # llama.cpp takes whichever its hash table yields first; the lowest id is the reproducible
                # choice.
                index = min((self.ids[name] for name in names if name in self.ids), default=None)
                if index is None:
                    continue
                self.kinds[index] = _CONTROL
            if is_end:
                ends.add(index)
        for key in ("eot_token_id", "eom_token_id"):
            index = self.special_id(key)
            if index is not None:
                ends.add(index)
        return ends


def _checked_ids(ids: Iterable[int]) -> Iterable[int]:
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise OptionError(f"Token ids are a list or an array of integers, not {ids!r:.60}: pass what `encode` gives.")
    return ids


class StreamDecoder:
    """Turns ids into text one at a time and never emits half a character: bytes wait until their character is
    complete."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._special = not skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes, often its own, "" while a character is incomplete.

        Raises:
            OptionError: there is no such token.
        """
        return self._decoder.decode(self._tokenizer.token_bytes(token_id, special=self._special))

    def flush(self) -> str:
        """What still waits at the end (an incomplete character as U+FFFD); the decoder can then be used
        anew."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


class Tokenizer(ABC):
    """Text to token ids and back, as the checkpoint's vocabulary says.

    Attributes:
        vocab_size: number of tokens.
        bos_id: the token that begins a text, None if the vocabulary has none.
        eos_id: the token that ends a text, None if the vocabulary has none.
        end_ids: every token that ends a generation: EOS, the ends of a turn and of a message.
        add_bos: whether `encode` begins with BOS unless told otherwise.
        chat_template: the checkpoint's Jinja template, None if it has none. It is untrusted code: see
            `chat_template.py`.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    end_ids: frozenset[int]
    add_bos: bool
    chat_template: str | None

    def __init__(
        self, vocabulary: _Vocabulary, metadata: Mapping[str, object], *, bos: int | None, eos: int | None
    ) -> None:
        self._vocabulary = vocabulary
        self.vocab_size = len(vocabulary)
        self.bos_id = vocabulary.special_id("bos_token_id", bos)
        self.eos_id = vocabulary.special_id("eos_token_id", eos)
        self.end_ids = frozenset(vocabulary.ends if self.eos_id is None else vocabulary.ends | {self.eos_id})
        template = metadata.get("tokenizer.chat_template")
        self.chat_template = template if isinstance(template, str) else None
        # The longest first, as llama.cpp does: where two texts overlap, the longer one is found.
        kinds = vocabulary.kinds
        marked = [index for index, kind in enumerate(kinds) if kind in (_CONTROL, _USER_DEFINED, _UNKNOWN)]
        by_length = sorted(marked, key=lambda index: -len(vocabulary.texts[index].encode("utf-8", "surrogateescape")))
        self._all_specials = [(vocabulary.texts[index], index) for index in by_length]
        self._user_defined = [entry for entry in self._all_specials if kinds[entry[1]] == _USER_DEFINED]

    @abstractmethod
    def _encode_plain(self, text: str, *, after_special: bool) -> list[int]:
        """The ids of text without special tokens; `after_special`: it begins the text or follows a special
        token."""

    @abstractmethod
    def _plain_bytes(self, index: int) -> bytes:
        """The bytes that a normal token stands for."""

    def encode(self, text: str, *, add_bos: bool | None = None, parse_special: bool = True) -> list[int]:
        """The token ids of `text`.

        Args:
            text: any text without lone surrogates.
            add_bos: begin with BOS; None: as the checkpoint says. A text that begins with BOS already gets no
                second one.
            parse_special: read the text of a control token (``<|im_start|>``) as that token. False for text
                of others in a
                prompt: it then is plain characters. User-defined tokens are always read.

        Raises:
            OptionError: `text` is no str or holds a lone surrogate, or a BOS is asked for that the vocabulary
            lacks.
        """
        if not isinstance(text, str):
            raise OptionError(f"The text to encode is a {type(text).__name__}: pass a str.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise OptionError(
                f"The text holds a lone surrogate ({text[error.start]!r} at index {error.start}), which is no"
                " character: decode its source with errors='replace'."
            ) from None
        if add_bos and self.bos_id is None:
            raise OptionError("The vocabulary has no BOS token: leave add_bos out.")
        ids: list[int] = []
        after_special = True
        for piece in self._split(text, self._all_specials if parse_special else self._user_defined):
            if isinstance(piece, int):
                ids.append(piece)
                after_special = True
            else:
                ids += self._encode_plain(piece, after_special=after_special)
                after_special = False
        wants_bos = self.add_bos if add_bos is None else add_bos
        if wants_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    @staticmethod
    def _split(text: str, specials: list[tuple[str, int]]) -> Iterator[str | int]:
        """Cut `text` at special tokens: non-empty strings and token ids, in order."""
        pieces: list[str | int] = [text]
        for special, index in specials:
            if special not in text:
                continue
            cut: list[str | int] = []
            for piece in pieces:
                if isinstance(piece, int):
                    cut.append(piece)
                    continue
                for number, part in enumerate(piece.split(special)):
                    if number:
                        cut.append(index)
                    cut.append(part)
            pieces = cut
        return (piece for piece in pieces if piece != "")

    def token_bytes(self, token_id: int, *, special: bool = False) -> bytes:
        """The bytes of one token, often only a part of a character.

        Args:
            token_id: the token.
            special: give the text of control tokens too, which otherwise stand for no bytes.

        Raises:
            OptionError: there is no such token.
        """
        kind = self._kind(token_id)
        text = self._vocabulary.texts[token_id]
        if kind == _NORMAL:
            return self._plain_bytes(token_id)
        if kind == _USER_DEFINED or (special and kind in (_CONTROL, _UNKNOWN)):
            return text.encode("utf-8", "surrogateescape")
        if kind == _BYTE:
            match = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", text)
            return bytes([int(match[1], 16)]) if match else b""
        return b""

    def _kind(self, token_id: int) -> int:
        if type(token_id) is not int and (isinstance(token_id, bool) or not isinstance(token_id, int | np.integer)):
            raise OptionError(f"A token id must be an integer, not {token_id!r:.60}: pass ids as `encode` gives them.")
        if not 0 <= token_id < self.vocab_size:
            raise OptionError(f"There is no token {token_id}: the vocabulary has the ids 0 to {self.vocab_size - 1}.")
        return self._vocabulary.kinds[token_id]

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`, bytes that are no UTF-8 as U+FFFD. It undoes `encode`, a space that `encode` put
        in included.

        Args:
            ids: token ids.
            skip_special: leave out the text of control tokens.

        Raises:
            OptionError: an id is not in the vocabulary.
        """
        pieces = (self.token_bytes(index, special=not skip_special) for index in _checked_ids(ids))
        return b"".join(pieces).decode("utf-8", "replace")

    def stream(self, *, skip_special: bool = True) -> StreamDecoder:
        """A decoder for ids that come one at a time, as a continuation: a leading space stays."""
        return StreamDecoder(self, skip_special=skip_special)

    def is_special(self, token_id: int) -> bool:
        """Whether the token is a control (or the unknown) token: one that stands for no text.

        Raises:
            OptionError: there is no such token.
        """
        return self._kind(token_id) in (_CONTROL, _UNKNOWN)

    def is_user_defined(self, token_id: int) -> bool:
        """Whether the token was added by hand: its text is always read as this token, and is part of the
        decoded text.

        Raises:
            OptionError: there is no such token.
        """
        return self._kind(token_id) == _USER_DEFINED

    def token_text(self, token_id: int) -> str:
        """The token's entry in the vocabulary, as it stands there (``Ġthe``, ``▁the``, ``<|im_start|>``).

        Raises:
            OptionError: there is no such token.
        """
        self._kind(token_id)
        return self._vocabulary.texts[token_id]

    def find(self, text: str) -> int | None:
        """The id of the token whose vocabulary entry is exactly `text`, None if there is none."""
        return self._vocabulary.ids.get(text)


class _ByteLevelTokenizer(Tokenizer):
    """Byte-level BPE: a regular expression cuts words, merges act on their UTF-8 bytes."""

    def __init__(self, vocabulary: _Vocabulary, metadata: Mapping[str, object]) -> None:
        super().__init__(vocabulary, metadata, bos=None, eos=None)
        name = metadata.get("tokenizer.ggml.pre")
        if name is None or name == "":
            # Files from before the key existed (spring 2024): llama.cpp falls back to the same rule.
            warnings.warn(
                "The checkpoint does not say how its tokenizer cuts text (tokenizer.ggml.pre); the old"
                " default may give other tokens than it was trained on: convert the model again.",
                stacklevel=3,
            )
            name = "default"
        pre = _PRE_TOKENIZERS.get(name) if isinstance(name, str) else None
        if pre is None:
            raise CheckpointError(
                f"The tokenizer's rule for cutting text, tokenizer.ggml.pre = {name!r}, is not known:"
                f" supported are {', '.join(sorted(_PRE_TOKENIZERS))}."
            )
        self.add_bos = vocabulary.flag("add_bos_token", pre.add_bos) and self.bos_id is not None
        self._backend = self._build(vocabulary, metadata, pre)

    @staticmethod
    def _build(vocabulary: _Vocabulary, metadata: Mapping[str, object], pre: _PreTokenizer) -> tokenizers.Tokenizer:
        from tokenizers import Regex
        from tokenizers import Tokenizer as Backend
        from tokenizers.models import BPE
        from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Sequence, Split

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
            ids = {text: index for text, index in ids.items() if kinds[index] != _CONTROL}
        try:
            model = BPE(ids, merges, ignore_merges=pre.ignore_merges)
        except Exception as error:  # the library raises a bare Exception for a merge that leads to no token
            raise CheckpointError(
                f"The tokenizer's merges do not fit its tokens ({error}): convert the model again."
            ) from error
        backend = Backend(model)
        steps: list[PreTokenizer] = [Split(Regex(pattern), "isolated") for pattern in pre.patterns]
        steps.append(ByteLevel(add_prefix_space=False, use_regex=False))
        # SmolLM2 has no token for 21 of the 256 bytes. The library would drop such a byte and then merge
        # across the gap; cut there instead, as llama.cpp does.
        missing = "".join(re.escape(character) for character in _byte_characters() if character not in ids)
        if missing:
            steps.append(Split(Regex(f"[{missing}]"), "removed"))
        backend.pre_tokenizer = Sequence(steps)
        return backend

    def _encode_plain(self, text: str, *, after_special: bool) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def _plain_bytes(self, index: int) -> bytes:
        table = _bytes_of_characters()
        out = bytearray()
        for character in self._vocabulary.texts[index]:
            byte = table.get(character)
            if byte is None:
                out += character.encode("utf-8", "surrogateescape")
            else:
                out.append(byte)
        return bytes(out)


_SPACE = "▁"  # U+2581, which stands for a space in a SentencePiece vocabulary


class _SentencePieceTokenizer(Tokenizer):
    """SentencePiece BPE: merges by score over whole stretches of text, unknown characters as their bytes."""

    def __init__(self, vocabulary: _Vocabulary, metadata: Mapping[str, object]) -> None:
        super().__init__(vocabulary, metadata, bos=1, eos=2)
        self.add_bos = vocabulary.flag("add_bos_token", True) and self.bos_id is not None
        self._adds_space = vocabulary.flag("add_space_prefix", True)
        unknown = vocabulary.special_id("unknown_token_id", 0)
        self._unknown_id = 0 if unknown is None else unknown

        from sentencepiece import SentencePieceProcessor

        backend = SentencePieceProcessor()
        try:
            backend.LoadFromSerializedProto(_model_proto(vocabulary))
        except RuntimeError as error:
            raise CheckpointError(
                f"sentencepiece refuses the vocabulary ({error}): convert the model again."
            ) from error
        self._backend = backend

    def _encode_plain(self, text: str, *, after_special: bool) -> list[int]:
        if self._adds_space and after_special:
            text = " " + text
        ids: list[int] = self._backend.EncodeAsIds(text.replace(" ", _SPACE))
        if self.vocab_size in ids:  # the stand-in for unknown that `_model_proto` adds
            ids = [self._unknown_id if index == self.vocab_size else index for index in ids]
        return ids

    def _plain_bytes(self, index: int) -> bytes:
        return self._vocabulary.texts[index].replace(_SPACE, " ").encode("utf-8", "surrogateescape")

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        out = bytearray()
        after_special = self._adds_space
        for index in _checked_ids(ids):
            kind = self._kind(index)
            piece = self.token_bytes(index, special=not skip_special)
            if kind in (_CONTROL, _UNKNOWN, _USER_DEFINED):
                after_special = self._adds_space
            elif piece:
                # `encode` puts a space before text that begins or follows a special token.
                out += piece[1:] if after_special and piece[:1] == b" " else piece
                after_special = False
                continue
            out += piece
        return out.decode("utf-8", "replace")


def _model_proto(vocabulary: _Vocabulary) -> bytes:
    """A SentencePiece model file made from the vocabulary: a serialized `ModelProto`
    (sentencepiece_model.proto).

    Written by hand, it is only nested (tag, length, bytes) triples; the protobuf library would be a
    dependency for this. Special tokens are cut out before sentencepiece sees a text, so here user-defined
    ones are normal: they may still be the result of a merge, as in llama.cpp.
    """

    def varint(value: int) -> bytes:
        out = bytearray()
        while value > 0x7F:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
        return bytes(out)

    def integer(field: int, value: int) -> bytes:
        return varint(field << 3) + varint(value)

    def message(field: int, content: bytes) -> bytes:
        return varint(field << 3 | 2) + varint(len(content)) + content

    given = vocabulary.numbers("tokenizer.ggml.scores", "iuf")
    scores: list[float] = [0.0] * len(vocabulary) if given is None else given.tolist()
    pack = struct.Struct("<f").pack
    of_kind = {_NORMAL: _NORMAL, _USER_DEFINED: _NORMAL, _UNUSED: _UNUSED, _BYTE: _BYTE}
    types = {kind: integer(3, of_kind.get(kind, _CONTROL)) for kind in range(7)}
    control = integer(3, _CONTROL)
    out = bytearray()
    bytes_found = 0
    for text, kind, score in zip(vocabulary.texts, vocabulary.kinds, scores, strict=True):
        if kind == _BYTE:
            bytes_found += 1
        piece = text.encode("utf-8", "surrogateescape")
        out += message(1, message(1, piece) + b"\x15" + pack(score) + types.get(kind, control))
    # sentencepiece insists on exactly one unknown piece; files have none, one or several. Ours comes last, on
    # its own.
    unknown = "<unknown>"
    while unknown in vocabulary.ids:
        unknown += "_"
    out += message(1, message(1, unknown.encode()) + b"\x15" + pack(0.0) + integer(3, _UNKNOWN))
    trainer = integer(3, 2) + integer(4, len(vocabulary) + 1)  # model_type BPE, vocab_size
    # Byte fallback is refused by sentencepiece unless all 256 byte pieces are there.
    trainer += integer(35, int(bytes_found == 256)) + integer(40, len(vocabulary)) + message(45, unknown.encode())
    out += message(2, trainer)
    # No normalization: no dummy prefix, no removal of extra spaces, no escaping (done before the call).
    out += message(3, message(1, b"identity") + integer(3, 0) + integer(4, 0) + integer(5, 0))
    return bytes(out)


def tokenizer_from_gguf(metadata: Mapping[str, object]) -> Tokenizer:
    """The tokenizer that a GGUF file's metadata describes.

    Args:
        metadata: `GgufFile.metadata`.

    Raises:
        CheckpointError: there is no vocabulary, its kind or its rule for cutting text is not supported, or
        its parts
            contradict each other.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model == "gpt2":
        return _ByteLevelTokenizer(_Vocabulary(metadata), metadata)
    if model == "llama":
        return _SentencePieceTokenizer(_Vocabulary(metadata), metadata)
    if model is None:
        raise CheckpointError(
            "The checkpoint has no tokenizer (tokenizer.ggml.model): use a file with a tokenizer inside."
        )
    raise CheckpointError(
        f"The tokenizer model {model!r} is not supported: llama (SentencePiece) and gpt2 (byte-level) are."
    )
