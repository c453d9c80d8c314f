"""SentencePiece BPE with byte fallback: Llama 1 and 2, Mistral; from a GGUF file or a `tokenizer.model`."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from llama_ext.errors import CheckpointError
from llama_ext.tokenizer.interface import EACH_BYTE, Tokenizer, checked_ids
from llama_ext.tokenizer.sidecars import Sidecars, apply_sidecars, read_bytes
from llama_ext.tokenizer.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
    common_fields,
    padding_text,
    tokenizer_keys,
)

__all__ = ["SentencePieceTokenizer", "tokenizer_from_sentencepiece"]

_SPACE = "▁"  # U+2581, which stands for a space in a SentencePiece vocabulary
_MAX_PIECES = 1 << 22  # the largest vocabularies have 2**18
_KEEPS_USER_DEFINED = "llama_ext.tokenizer.keep_user_defined"


class SentencePieceTokenizer(Tokenizer):
    """SentencePiece BPE: merges by score over whole stretches of text, unknown characters as their bytes."""

    _errors = EACH_BYTE

    def __init__(self, vocabulary: Vocabulary, metadata: Mapping[str, object]) -> None:
        super().__init__(vocabulary, **common_fields(vocabulary, metadata, add_bos=True, bos=1, eos=2))
        self._metadata = metadata
        # sentencepiece reads user-defined pieces as a part of the text around them; llama.cpp, and a GGUF file
        # that does not say, cuts there and begins anew with a space.
        self._cuts_user_defined = metadata.get(_KEEPS_USER_DEFINED) is not True
        if not self._cuts_user_defined:
            self._all_specials = [entry for entry in self._all_specials if entry not in self._user_defined]
            self._user_defined = []
        self._removes_spaces = vocabulary.flag("remove_extra_whitespaces", False)
        self._adds_space = vocabulary.flag("add_space_prefix", True)
        unknown = vocabulary.special_id("unknown_token_id", 0)
        self._unknown_id = 0 if unknown is None else unknown

        from sentencepiece import SentencePieceProcessor

        backend = SentencePieceProcessor()
        try:
            backend.LoadFromSerializedProto(_model_proto(vocabulary, self._cuts_user_defined))
        except (RuntimeError, UnicodeError) as error:  # of a message that quotes a piece that is no UTF-8
            raise CheckpointError(
                f"sentencepiece refuses the vocabulary ({error}): convert the model again."
            ) from error
        self._backend = backend

    def _own_metadata(self) -> dict[str, object]:
        return tokenizer_keys(self._metadata) | {"tokenizer.ggml.add_space_prefix": self._adds_space}

    def _encode_plain(self, text: str, *, after_special: bool) -> list[int]:
        if self._removes_spaces:
            text = re.sub(" {2,}", " ", text.strip(" "))
        if self._adds_space and after_special and text:
            text = " " + text
        ids: list[int] = self._backend.EncodeAsIds(text.replace(" ", _SPACE))
        if self.vocab_size in ids:  # the stand-in for unknown that `_model_proto` adds
            ids = [self._unknown_id if index == self.vocab_size else index for index in ids]
        return ids

    def _plain_bytes(self, index: int) -> bytes:
        return self._vocabulary.text(index).replace(_SPACE, " ").encode("utf-8", "surrogateescape")

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        out = bytearray()
        after_special = self._adds_space
        for index in checked_ids(ids):
            kind = self._kind(index)
            piece = self.token_bytes(index, special=not skip_special)
            if kind in (CONTROL, UNKNOWN) or (kind == USER_DEFINED and self._cuts_user_defined):
                after_special = self._adds_space
            elif piece:
                # `encode` puts a space before text that begins or follows a special token, never as a byte.
                out += piece[1:] if after_special and kind != BYTE and piece[:1] == b" " else piece
                after_special = False
                continue
            out += piece
        return out.decode("utf-8", self._errors)


def _model_proto(vocabulary: Vocabulary, cuts_user_defined: bool = True) -> bytes:
    """A SentencePiece model file made from the vocabulary: a serialized `ModelProto`
    (sentencepiece_model.proto).

    Written by hand, it is only nested (tag, length, bytes) triples; the protobuf library would be a
    dependency for this. Special tokens are cut out before sentencepiece sees a text, so here user-defined
    ones are normal: they may still be the result of a merge, as in llama.cpp. Where `cuts_user_defined` is False
    they are left to sentencepiece.
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
    user_defined = NORMAL if cuts_user_defined else USER_DEFINED
    of_kind = {NORMAL: NORMAL, USER_DEFINED: user_defined, UNUSED: UNUSED, BYTE: BYTE}
    types = {kind: integer(3, of_kind.get(kind, CONTROL)) for kind in range(7)}
    control = integer(3, CONTROL)
    out = bytearray()
    bytes_found = 0
    for text, kind, score in zip(vocabulary.texts, vocabulary.kinds, scores, strict=True):
        if kind == BYTE:
            bytes_found += 1
        piece = text.encode("utf-8", "surrogateescape")
        out += message(1, message(1, piece) + b"\x15" + pack(score) + types.get(kind, control))
    # sentencepiece insists on exactly one unknown piece; files have none, one or several. Ours comes last, on
    # its own.
    unknown = "<unknown>"
    while unknown in vocabulary.ids:
        unknown += "_"
    out += message(1, message(1, unknown.encode()) + b"\x15" + pack(0.0) + integer(3, UNKNOWN))
    trainer = integer(3, 2) + integer(4, len(vocabulary) + 1)  # model_type BPE, vocab_size
    # Byte fallback is refused by sentencepiece unless all 256 byte pieces are there.
    trainer += integer(35, int(bytes_found == 256)) + integer(40, len(vocabulary)) + message(45, unknown.encode())
    out += message(2, trainer)
    # No normalization: no dummy prefix, no removal of extra spaces, no escaping (done before the call).
    out += message(3, message(1, b"identity") + integer(3, 0) + integer(4, 0) + integer(5, 0))
    return bytes(out)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number and where the next field begins. Raises IndexError at the end of `data`."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number has more than 64 bits")


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message: number and value, four- and eight-byte values as bytes.

    Raises:
        ValueError or IndexError: the message is damaged or cut short.
    """
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"a field of the unknown type {wire}")
        if size > len(data) - at:
            raise ValueError(f"a field claims {size} bytes, {len(data) - at} are left")
        yield number, data[at : at + size]
        at += size


class _ModelFile:
    """What a `tokenizer.model` says: pieces, scores and types, and the specs that matter for encoding.

    The numbers are those of sentencepiece_model.proto.
    """

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        self.texts: list[str] = []
        self.scores: list[float] = []
        self.kinds: list[int] = []
        self.trainer: dict[int, int | bytes] = {}
        self.normalizer: dict[int, int | bytes] = {}
        has_trainer = False
        try:
            for number, value in _fields(data):
                if number not in (1, 2, 3):
                    continue
                if isinstance(value, int):
                    raise ValueError(f"field {number} is a number")
                if number == 1:
                    self._add_piece(value)
                elif number == 2:
                    self.trainer, has_trainer = dict(_fields(value)), True
                else:
                    self.normalizer = dict(_fields(value))
        except (ValueError, IndexError) as error:
            reason = str(error) if isinstance(error, ValueError) else "it ends inside a field"
            raise self._damaged(reason) from error
        size = self.trainer.get(4)
        if not has_trainer or not self.texts:
            raise self._damaged("its pieces or its trainer's settings are missing")
        if size != len(self.texts):
            raise self._damaged(f"it has {len(self.texts)} pieces and says {size!r:.40}")
        if self.trainer.get(3) != 2:
            raise CheckpointError(f"{path} is no BPE model, and the family has no other: use its own tokenizer.model.")
        if self.normalizer.get(2, b"") != b"":
            raise CheckpointError(
                f"{path} rewrites text before it is cut (normalizer {self.normalizer.get(1)!r:.40}), which is not"
                " supported: use the checkpoint's tokenizer.json."
            )

    def _add_piece(self, data: bytes) -> None:
        text, score, kind = b"", 0.0, NORMAL
        for number, value in _fields(data):
            if number == 1 and isinstance(value, bytes):
                text = value
            elif number == 2 and isinstance(value, bytes) and len(value) == 4:
                score = float(struct.unpack("<f", value)[0])
            elif number == 3 and isinstance(value, int) and NORMAL <= value <= BYTE:
                kind = value
            elif number <= 3:
                raise ValueError(f"piece {len(self.texts)} is malformed")
        if len(self.texts) >= _MAX_PIECES:
            raise ValueError(f"it has more than {_MAX_PIECES} pieces")
        if not text:
            raise ValueError(f"piece {len(self.texts)} is empty")
        if score != score or abs(score) == float("inf"):
            raise ValueError(f"the score of piece {len(self.texts)} is {score}")
        self.texts.append(text.decode("utf-8", "surrogateescape"))
        self.scores.append(score)
        self.kinds.append(kind)

    def _damaged(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is no complete SentencePiece model ({reason}): download it again.")

    def flag(self, number: int, default: bool) -> bool:
        return bool(self.normalizer.get(number, default))

    def named(self, number: int, default: bytes) -> int | None:
        """The control token that the trainer's settings name under `number` (bos_piece, eos_piece)."""
        text = self.trainer.get(number, default)
        name = text.decode("utf-8", "replace") if isinstance(text, bytes) else ""
        index = self.texts.index(name) if name in self.texts else None
        return index if index is not None and self.kinds[index] == CONTROL else None


def tokenizer_from_sentencepiece(path: Path, *, sidecars: Sidecars | None = None) -> Tokenizer:
    """The tokenizer of a SentencePiece `tokenizer.model` (Llama 1 and 2, Mistral's v1 to v7).

    Args:
        path: the file.
        sidecars: what the files beside it say (`tokenizer_from_folder`); None: the file alone.

    Raises:
        CheckpointError: the file is damaged, cut short or no BPE model, or contradicts the files beside it.
    """
    path = Path(path)
    return _from_model_file(_ModelFile(path, read_bytes(path)), sidecars or Sidecars())


def _from_model_file(file: _ModelFile, sidecars: Sidecars) -> Tokenizer:
    path = file.path
    _add_tokens(file, sidecars)
    bos, eos = file.named(46, b"<s>"), file.named(47, b"</s>")
    size = len(file.texts)
    sidecars.check_ids(path, size)
    for index in range(size, sidecars.padded_size(path, size)):
        file.texts.append(padding_text(index))
        file.scores.append(-1000.0)
        file.kinds.append(UNUSED)
    metadata: dict[str, object] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": file.texts,
        "tokenizer.ggml.scores": np.array(file.scores, np.float32),
        "tokenizer.ggml.token_type": np.array(file.kinds, np.int32),
        "tokenizer.ggml.add_space_prefix": file.flag(3, True),
        "tokenizer.ggml.add_bos_token": True if sidecars.add_bos is None else sidecars.add_bos,
    }
    if file.flag(4, True):
        metadata["tokenizer.ggml.remove_extra_whitespaces"] = True
    if USER_DEFINED in file.kinds:
        metadata[_KEEPS_USER_DEFINED] = True
    if UNKNOWN in file.kinds:
        metadata["tokenizer.ggml.unknown_token_id"] = file.kinds.index(UNKNOWN)
    ids = {text: index for index, text in enumerate(file.texts)}
    if len(ids) != len(file.texts):
        twice = next(text for index, text in enumerate(file.texts) if ids[text] != index)
        raise CheckpointError(f"{path} has the piece {twice!r} twice: download it again.")
    apply_sidecars(metadata, sidecars, ids, path, bos=bos, eos=eos)
    try:
        return SentencePieceTokenizer(Vocabulary(metadata), metadata)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _add_tokens(file: _ModelFile, sidecars: Sidecars) -> None:
    for token in sidecars.added:
        source = sidecars.sources["added"]
        if token.index < len(file.texts):
            if file.texts[token.index] != token.text:
                raise CheckpointError(
                    f"{source}: token {token.index} is {token.text!r}, but {file.texts[token.index]!r} in"
                    f" {file.path.name}: use files of one model."
                )
            continue
        if token.index > len(file.texts):
            raise CheckpointError(
                f"{source}: adds token {token.index} to {file.path.name}, which has {len(file.texts)}: use files of"
                " one model."
            )
        file.texts.append(token.text)
        file.scores.append(-1000.0)
        file.kinds.append(CONTROL if token.special else USER_DEFINED)
