"""The interface: text to token ids and back, one token at a time or all at once."""

from __future__ import annotations

import codecs
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np

from llama_ext.errors import OptionError
from llama_ext.tokenizer.vocabulary import BYTE, CONTROL, END_TOKEN_IDS, NORMAL, UNKNOWN, USER_DEFINED

__all__ = ["EACH_BYTE", "StreamDecoder", "Tokenizer"]

# How bytes that are no UTF-8 become text: tiktoken and Hugging Face's byte-level decoder write one U+FFFD for each
# longest beginning of a character ("replace"), sentencepiece one for each byte.
EACH_BYTE = "llama_ext.each_byte"


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(EACH_BYTE, _replace_each_byte)


class _Tokens(Protocol):
    """What a tokenizer needs to know about the tokens: see `Vocabulary`."""

    @property
    def kinds(self) -> Sequence[int]: ...

    def __len__(self) -> int: ...

    def text(self, index: int) -> str: ...

    def find(self, text: str) -> int | None: ...


def checked_ids(ids: Iterable[int]) -> Iterable[int]:
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise OptionError(f"Token ids are a list or an array of integers, not {ids!r:.60}: pass what `encode` gives.")
    return ids


class StreamDecoder:
    """Turns ids into text one at a time and never emits half a character: bytes wait until their character is
    complete."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._special = not skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors=tokenizer._errors)

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
        chat_format: the name of the built-in chat format that the checkpoint's config points to, where its
            special tokens do not tell; None otherwise.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    end_ids: frozenset[int]
    add_bos: bool
    chat_template: str | None
    chat_format: str | None
    _errors = "replace"

    def __init__(
        self,
        vocabulary: _Tokens,
        *,
        bos_id: int | None,
        eos_id: int | None,
        end_ids: Iterable[int],
        add_bos: bool,
        chat_template: str | None = None,
        chat_format: str | None = None,
    ) -> None:
        self._vocabulary = vocabulary
        self.vocab_size = len(vocabulary)
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.end_ids = frozenset(end_ids)
        self.add_bos = add_bos and bos_id is not None
        self.chat_template = chat_template
        self.chat_format = chat_format
        # The longest first, as llama.cpp does: where two texts overlap, the longer one is found.
        kinds = vocabulary.kinds
        marked = [
            (vocabulary.text(index), index)
            for index, kind in enumerate(kinds)
            if kind in (CONTROL, USER_DEFINED, UNKNOWN) and vocabulary.text(index)
        ]
        marked.sort(key=lambda entry: -len(entry[0].encode("utf-8", "surrogateescape")))
        self._all_specials = marked
        self._user_defined = [entry for entry in marked if kinds[entry[1]] == USER_DEFINED]

    @abstractmethod
    def _encode_plain(self, text: str, *, after_special: bool) -> list[int]:
        """The ids of text without special tokens; `after_special`: it begins the text or follows a special
        token."""

    @abstractmethod
    def _plain_bytes(self, index: int) -> bytes:
        """The bytes that a normal token stands for."""

    @abstractmethod
    def _own_metadata(self) -> dict[str, object]:
        """What `gguf_metadata` says beside the keys that every tokenizer has."""

    def gguf_metadata(self) -> dict[str, object]:
        """This tokenizer as the metadata of a GGUF file.

        `tokenizer_from_gguf` makes of it a tokenizer with the same ids for any text and the same end ids. Other
        readers find what GGUF can say: `tokenizer.ggml.model`, `pre`, `tokens`, `scores`, `token_type`, `merges`,
        the special ids, `add_bos_token`, `add_space_prefix` and `tokenizer.chat_template`. What it cannot say is
        under keys of our own:

        - `llama_ext.tokenizer.end_token_ids` (int32): all of `end_ids`.
        - `llama_ext.tokenizer.chat_format` (string): `chat_format`.
        - `llama_ext.tokenizer.keep_user_defined` (bool): user-defined pieces are read as a part of the text around
          them, as sentencepiece does; llama.cpp cuts there.
        - `llama_ext.tokenizer.merge_by_rank` (bool): tokens merge by their rank, which is their id, as in tiktoken.
        - `llama_ext.tokenizer.json` (string): the `tokenizer.json` of a tokenizer that the other keys do not
          describe to the last id.

        Returns:
            Strings, bools, ints, lists of strings and numpy arrays (float32 scores, int32 others), by key.

        Raises:
            CheckpointError: the vocabulary cannot be described.
        """
        out = self._own_metadata()
        for key, value in (("bos_token_id", self.bos_id), ("eos_token_id", self.eos_id)):
            if value is not None:
                out[f"tokenizer.ggml.{key}"] = value
        for key, markers in (
            ("eot_token_id", ("<|eot_id|>", "<|eot|>", "<|im_end|>")),
            ("eom_token_id", ("<|eom_id|>", "<|eom|>")),
        ):
            found = (self.find(text) for text in markers)
            index = next((index for index in found if index in self.end_ids), None)
            if index is not None:
                out.setdefault(f"tokenizer.ggml.{key}", index)
        out["tokenizer.ggml.add_bos_token"] = self.add_bos
        out[END_TOKEN_IDS] = np.array(sorted(self.end_ids), np.int32)
        if self.chat_template is not None:
            out["tokenizer.chat_template"] = self.chat_template
        if self.chat_format is not None:
            out["llama_ext.tokenizer.chat_format"] = self.chat_format
        return out

    def encode(self, text: str, *, add_bos: bool | None = None, parse_special: bool = True) -> list[int]:
        """The token ids of `text`.

        Args:
            text: any text without lone surrogates.
            add_bos: begin with BOS; None: as the checkpoint says. A text that begins with BOS already gets no
                second one.
            parse_special: read the text of a control token (``<|im_start|>``) as that token. False for text
                of others in a prompt: it then is plain characters. User-defined tokens are always read.

        Raises:
            OptionError: `text` is no str or holds a lone surrogate, or a BOS is asked for that the vocabulary
            lacks. CheckpointError: the rules of a tokenizer.json fail on the text.
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
        ids = self._encode_text(text, parse_special)
        wants_bos = self.add_bos if add_bos is None else add_bos
        if wants_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def _encode_text(self, text: str, parse_special: bool) -> list[int]:
        ids: list[int] = []
        after_special = True
        for piece in self._split(text, self._all_specials if parse_special else self._user_defined):
            if isinstance(piece, int):
                ids.append(piece)
                after_special = True
            else:
                ids += self._encode_plain(piece, after_special=after_special)
                after_special = False
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
        if kind == NORMAL:
            return self._plain_bytes(token_id)
        text = self._vocabulary.text(token_id)
        if kind == USER_DEFINED or (special and kind in (CONTROL, UNKNOWN)):
            return text.encode("utf-8", "surrogateescape")
        if kind == BYTE:
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
        pieces = (self.token_bytes(index, special=not skip_special) for index in checked_ids(ids))
        return b"".join(pieces).decode("utf-8", self._errors)

    def stream(self, *, skip_special: bool = True) -> StreamDecoder:
        """A decoder for ids that come one at a time, as a continuation: a leading space stays."""
        return StreamDecoder(self, skip_special=skip_special)

    def is_special(self, token_id: int) -> bool:
        """Whether the token is a control (or the unknown) token: one that stands for no text.

        Raises:
            OptionError: there is no such token.
        """
        return self._kind(token_id) in (CONTROL, UNKNOWN)

    def is_user_defined(self, token_id: int) -> bool:
        """Whether the token was added by hand: its text is always read as this token, and is part of the
        decoded text.

        Raises:
            OptionError: there is no such token.
        """
        return self._kind(token_id) == USER_DEFINED

    def token_text(self, token_id: int) -> str:
        """The token's entry in the vocabulary, as it stands there (``Ġthe``, ``▁the``, ``<|im_start|>``).

        Raises:
            OptionError: there is no such token.
        """
        self._kind(token_id)
        return self._vocabulary.text(token_id)

    def find(self, text: str) -> int | None:
        """The id of the token whose vocabulary entry is exactly `text`, None if there is none."""
        return self._vocabulary.find(text)
