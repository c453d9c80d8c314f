"""Hugging Face's `tokenizer.json`, run by the `tokenizers` library as it stands.

Two kinds of it occur in the family: byte-level BPE (Llama 3 and 4, SmolLM2), and BPE over whole stretches of text with
byte fallback, made of a SentencePiece model (Llama 1 and 2, Mistral, TinyLlama). The library encodes; special tokens,
BOS, the ends and decoding are ours, as for every other file.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llama_ext.errors import CheckpointError
from llama_ext.tokenizer.byte_level import PRE_TOKENIZERS, byte_characters, bytes_of
from llama_ext.tokenizer.interface import EACH_BYTE, Tokenizer, checked_ids
from llama_ext.tokenizer.sidecars import Sidecars, chat_format, named_id, read_bytes
from llama_ext.tokenizer.vocabulary import (
    BYTE,
    CONTROL,
    KNOWN_MARKERS,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
    common_fields,
    marker_ends,
    padding_text,
)

if TYPE_CHECKING:
    import tokenizers

__all__ = ["TOKENIZER_JSON", "JsonTokenizer", "json_tokenizer_from_metadata", "tokenizer_from_json"]

TOKENIZER_JSON = "llama_ext.tokenizer.json"

_SPACE = "▁"  # U+2581, which stands for a space in a SentencePiece vocabulary


@contextmanager
def _guarded(what: str, failure: str = "is not understood by") -> Iterator[None]:
    """Any failure of the library as a CheckpointError; a panic in it is no Exception."""
    try:
        yield
    except CheckpointError:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise CheckpointError(
                f"{what} {failure} the tokenizers library ({str(error)[:200]}): download it again."
            ) from error
        raise


def _state(component: Any) -> list[dict[str, Any]]:
    """A normalizer, pre-tokenizer or decoder as its settings, sequences flattened."""
    if component is None:
        return []
    out: list[dict[str, Any]] = []

    def flatten(value: dict[str, Any]) -> None:
        if value.get("type") == "Sequence":
            for key in ("normalizers", "pretokenizers", "decoders"):
                for part in value.get(key, ()):
                    flatten(part)
        else:
            out.append(value)

    flatten(json.loads(component.__getstate__()))
    return out


class _JsonVocabulary:
    """The tokens of a backend; nothing is listed before it is asked for, which takes as long as loading does."""

    def __init__(self, backend: tokenizers.Tokenizer, size: int) -> None:
        self._backend = backend
        kinds = bytearray([NORMAL]) * size
        if size > backend.get_vocab_size(with_added_tokens=True):  # filled up, or with gaps
            for index in range(size):
                if backend.id_to_token(index) is None:
                    kinds[index] = UNUSED
        if backend.model.byte_fallback:
            for byte in range(256):
                found = backend.token_to_id(f"<0x{byte:02X}>")
                if found is not None:
                    kinds[found] = BYTE
        for index, token in backend.get_added_tokens_decoder().items():
            special = UNKNOWN if token.content == "<unk>" else CONTROL
            kinds[index] = special if token.special else USER_DEFINED
        self.kinds = kinds

    def __len__(self) -> int:
        return len(self.kinds)

    def text(self, index: int) -> str:
        text: str | None = self._backend.id_to_token(index)
        return padding_text(index) if text is None else text

    def find(self, text: str) -> int | None:
        index: int | None = self._backend.token_to_id(text)
        if index is None:
            match = re.fullmatch(r"\[PAD(\d{1,9})\]", text)
            if match and int(match[1]) < len(self) and self.text(int(match[1])) == text:
                return int(match[1])
        return index


class JsonTokenizer(Tokenizer):
    """A `tokenizer.json` in the hands of the library it was written for."""

    def __init__(self, backend: tokenizers.Tokenizer, size: int, what: str, **fields: Any) -> None:
        vocabulary = _JsonVocabulary(backend, size)
        super().__init__(vocabulary, **fields)
        self._backend = backend
        self._what = what
        self._lock = threading.Lock()
        self._kinds = vocabulary.kinds
        self._normalizer = _state(backend.normalizer)
        self._pre = _state(backend.pre_tokenizer)
        self._byte_level = any(step["type"] == "ByteLevel" for step in (*self._pre, *self._normalizer))
        self._space_at = "" if self._byte_level else self._find_space()
        if not self._byte_level:
            self._errors = EACH_BYTE
        # With `ignore_merges` a word that is in the vocabulary is that token, a control token of it included.
        model = backend.model
        self._leaks = model.ignore_merges and any(
            model.token_to_id(text) is not None for text, index in self._all_specials if self._kinds[index] == CONTROL
        )

    def _find_space(self) -> str:
        """Where `encode` puts a space: "every" stretch between special tokens, only at the very "first", or "no"."""
        where, writes_space = "no", False
        for step in (*self._normalizer, *self._pre):
            if step["type"] == "Prepend" and step.get("prepend") == _SPACE:
                where = "every"
            elif step["type"] == "Replace" and step.get("content") == _SPACE:
                writes_space = True
            elif step["type"] == "Metaspace" and step.get("replacement") == _SPACE:
                writes_space = True
                where = {"always": "every", "first": "first"}.get(step.get("prepend_scheme", ""), where)
        if not writes_space:
            raise CheckpointError(
                f"{self._what} is neither byte-level nor SentencePiece-like BPE, and the Llama family has no other: use"
                " the model's own file."
            )
        return where

    def _encode(self, text: str, *, read_special: bool) -> list[int]:
        with self._lock, _guarded(self._what, "has rules that fail on this text in"):
            self._backend.encode_special_tokens = not read_special
            ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        if ids and max(ids) >= self.vocab_size:
            raise CheckpointError(
                f"{self._what} gives the id {max(ids)}, but the vocabulary has {self.vocab_size} tokens: download it"
                " again."
            )
        return ids

    def _encode_text(self, text: str, parse_special: bool) -> list[int]:
        if parse_special or not self._leaks:
            return self._encode(text, read_special=parse_special)
        # Letter by letter, so that no word spells a control token.
        ids: list[int] = []
        controls = [entry for entry in self._all_specials if self._kinds[entry[1]] == CONTROL]
        for piece in self._split(text, controls):
            parts = [piece] if isinstance(piece, str) else list(self._vocabulary.text(piece))
            for part in parts:
                ids += self._encode(part, read_special=False)
        return ids

    def _encode_plain(self, text: str, *, after_special: bool) -> list[int]:
        return self._encode(text, read_special=False)

    def _plain_bytes(self, index: int) -> bytes:
        text = self._vocabulary.text(index)
        return bytes_of(text) if self._byte_level else text.replace(_SPACE, " ").encode()

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        if self._space_at in ("", "no"):
            return super().decode(ids, skip_special=skip_special)
        out = bytearray()
        after_special = True
        for index in checked_ids(ids):
            kind = self._kind(index)
            piece = self.token_bytes(index, special=not skip_special)
            if kind in (CONTROL, UNKNOWN, USER_DEFINED):
                after_special = after_special or self._space_at == "every"
            elif piece:
                if after_special and piece[:1] == b" ":
                    piece = piece[1:]
                after_special = False
            out += piece
        return out.decode("utf-8", self._errors)

    def _own_metadata(self) -> dict[str, object]:
        texts = [self._vocabulary.text(index) for index in range(self.vocab_size)]
        ids = {text: index for index, text in enumerate(texts)}
        if len(ids) != len(texts):
            twice = next(text for index, text in enumerate(texts) if ids[text] != index)
            raise CheckpointError(f"{self._what} has the token {twice!r} twice: download it again.")
        source = self._backend.to_str()
        merges = [
            tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge)
            for merge in json.loads(source)["model"]["merges"]
        ]
        out: dict[str, object] = {
            "tokenizer.ggml.tokens": texts,
            "tokenizer.ggml.token_type": np.frombuffer(bytes(self._kinds), np.uint8).astype(np.int32),
        }
        if self._byte_level:
            pre, exact = self._rule()
            out["tokenizer.ggml.model"] = "gpt2"
            # Without a rule, a name that no other reader knows: better it refuses the file than that it reads other
            # tokens.
            out["tokenizer.ggml.pre"] = pre or TOKENIZER_JSON
            out["tokenizer.ggml.merges"] = [f"{left} {right}" for left, right in merges]
            # A GGUF cannot say that there are no merges.
            if not exact or not merges or not self._is_plain(ids):
                out[TOKENIZER_JSON] = source
            return out
        # Merges as the scores that a SentencePiece reader orders by. It may order pairs of the same token otherwise,
        # so our own reading is that of the library.
        scores = np.full(len(texts), -float(len(merges)), np.float32)
        for rank in range(len(merges) - 1, -1, -1):
            index = ids.get("".join(merges[rank]))
            if index is not None:
                scores[index] = -float(rank)
        out["tokenizer.ggml.model"] = "llama"
        out["tokenizer.ggml.pre"] = "default"
        out["tokenizer.ggml.scores"] = scores
        out["tokenizer.ggml.add_space_prefix"] = self._space_at != "no"
        unknown = ids.get(self._backend.model.unk_token or "<unk>")
        if unknown is not None:
            out["tokenizer.ggml.unknown_token_id"] = unknown
        out[TOKENIZER_JSON] = source
        return out

    def _rule(self) -> tuple[str | None, bool]:
        """The `tokenizer.ggml.pre` that cuts text as this file does, None if there is none; whether to the last
        character."""
        *before, last = self._pre or [{}]
        if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
            return None, False
        patterns = []
        exact = True
        for step in before:
            isolated = step["type"] == "Split" and step.get("behavior") == "Isolated" and not step.get("invert")
            if isolated and list(step["pattern"]) == ["Regex"]:
                patterns.append(step["pattern"]["Regex"])
            elif step["type"] == "Digits" and step.get("individual_digits"):
                patterns.append(r"\p{N}")
                exact = False  # the library's table of digits is of another year than the expressions'
            else:
                return None, False
        if last.get("use_regex"):
            patterns.append(PRE_TOKENIZERS["gpt-2"].patterns[0])
        ignore_merges = self._backend.model.ignore_merges
        for name, rule in PRE_TOKENIZERS.items():
            if rule.patterns == tuple(patterns) and rule.ignore_merges == ignore_merges:
                return name, exact
        return None, False

    def _is_plain(self, ids: Mapping[str, int]) -> bool:
        """Whether GGUF's keys say all that this byte-level file says, but for the rule that cuts text."""
        model = self._backend.model
        odd_model = (
            model.byte_fallback
            or model.unk_token is not None
            or model.continuing_subword_prefix
            or model.end_of_word_suffix
        )
        if odd_model or self._normalizer or self._leaks or any(text not in ids for text in byte_characters()):
            return False
        if any(text in ids and self._kinds[ids[text]] != CONTROL for text in KNOWN_MARKERS):
            return False
        added = self._backend.get_added_tokens_decoder().values()
        if any(token.lstrip or token.rstrip or token.single_word or len(token.content) > 256 for token in added):
            return False
        # Where the end of one special token is the beginning of another, the order in which they are looked for counts.
        texts = {token.content for token in added}
        beginnings = {text[:cut] for text in texts for cut in range(1, len(text))}
        return not any(text[cut:] in beginnings for text in texts for cut in range(1, len(text)))


def _open(data: bytes, what: str) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer as Backend

    with _guarded(what):
        backend = Backend.from_buffer(data)
    if type(backend.model).__name__ != "BPE":
        raise CheckpointError(
            f"{what} holds a {type(backend.model).__name__} model; the Llama family has BPE only: use the model's own"
            " file."
        )
    backend.no_truncation()
    backend.no_padding()
    backend.model.dropout = None
    _check_claims(data, backend, what)
    return backend


def _check_claims(data: bytes, backend: tokenizers.Tokenizer, what: str) -> None:
    """The library gives an added token the next free id, whatever id the file says; such a file is damaged."""
    text = data[max(data.find(b'"added_tokens"'), 0) :].decode("utf-8", "replace")
    try:
        claims, _ = json.JSONDecoder().raw_decode(text, text.index("["))
    except (ValueError, RecursionError):
        return
    for claim in claims:
        if not isinstance(claim, dict) or "content" not in claim:
            continue
        if backend.token_to_id(str(claim["content"])) != claim.get("id"):
            raise CheckpointError(
                f"{what}: the added token {claim.get('content')!r:.60} has the id {claim.get('id')!r:.20}, which does"
                " not follow the others: download it again."
            )


def _size(backend: tokenizers.Tokenizer, what: str) -> int:
    """The number of ids, gaps included."""
    size: int = backend.get_vocab_size(with_added_tokens=True)
    if size and None not in map(backend.id_to_token, range(size)):  # half the time of `get_vocab`
        return size
    ids = backend.get_vocab(with_added_tokens=True).values()
    if len(set(ids)) != len(ids) or not ids:
        raise CheckpointError(f"{what} gives one id to several tokens, or has none: download it again.")
    size = max(ids) + 1
    if size > 2 * len(ids) + (1 << 16):
        raise CheckpointError(f"{what} has {len(ids)} tokens and the id {size - 1}: download it again.")
    return size


def tokenizer_from_json(path: Path, *, sidecars: Sidecars | None = None) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`.

    Args:
        path: the file.
        sidecars: what the files beside it say (`tokenizer_from_folder`); None: the file alone, which knows BOS, but
            the ends of a generation only by the usual texts of their tokens.

    Raises:
        CheckpointError: the file is damaged, no BPE, cuts text in a way the family does not, or contradicts the files
        beside it.
    """
    path = Path(path)
    backend = _open(read_bytes(path), str(path))
    sidecars = sidecars or Sidecars()
    _add_tokens(backend, sidecars, path)
    size = _size(backend, str(path))
    sidecars.check_ids(path, size)
    special = {token.content: index for index, token in backend.get_added_tokens_decoder().items() if token.special}
    with _guarded(str(path)):
        begun: list[int] = backend.encode("", add_special_tokens=True).ids[:1]
    if not set(begun) <= set(special.values()):
        begun = []
    bos = named_id(sidecars, "bos", backend.token_to_id, path) if sidecars.bos else None
    if bos is None:
        bos = begun[0] if begun else named_id(sidecars, "bos", backend.token_to_id, path)
    eos = named_id(sidecars, "eos", backend.token_to_id, path)
    ends = marker_ends(special) | set(sidecars.end_ids) | ({eos} if eos is not None else set())
    return JsonTokenizer(
        backend,
        sidecars.padded_size(path, size),
        str(path),
        bos_id=bos,
        eos_id=eos,
        end_ids=ends,
        add_bos=(bos is not None and begun == [bos]) if sidecars.add_bos is None else sidecars.add_bos,
        chat_template=sidecars.chat_template,
        chat_format=chat_format(sidecars),
    )


def _add_tokens(backend: tokenizers.Tokenizer, sidecars: Sidecars, path: Path) -> None:
    """Add what tokenizer_config.json has beyond the file, as transformers does."""
    from tokenizers import AddedToken

    known = backend.get_added_tokens_decoder()
    for token in sidecars.added:
        listed = known.get(token.index)
        if listed is not None and listed.content == token.text:
            continue
        present = backend.token_to_id(token.text)
        if present is None and token.index == backend.get_vocab_size(with_added_tokens=True):
            present = token.index
        if present != token.index or listed is not None:
            raise CheckpointError(
                f"{sidecars.sources['added']}: token {token.index} is {token.text!r:.60}, which does not fit the"
                f" vocabulary of {path.name}: use files of one model."
            )
        with _guarded(str(path)):
            added = AddedToken(token.text, special=token.special, normalized=not token.special)
            backend.add_special_tokens([added]) if token.special else backend.add_tokens([added])


def json_tokenizer_from_metadata(vocabulary: Vocabulary, metadata: Mapping[str, object]) -> Tokenizer:
    """The tokenizer of a GGUF file that carries a tokenizer.json.

    Raises:
        CheckpointError: it is damaged or has other tokens than the file's own list.
    """
    source = metadata.get(TOKENIZER_JSON)
    if not isinstance(source, str):
        raise CheckpointError(f"{TOKENIZER_JSON} is a {type(source).__name__}, not a text: convert the model again.")
    backend = _open(source.encode("utf-8", "replace"), TOKENIZER_JSON)
    if _size(backend, TOKENIZER_JSON) > len(vocabulary):
        raise CheckpointError(
            f"{TOKENIZER_JSON} has more tokens than tokenizer.ggml.tokens ({len(vocabulary)}): convert the model again."
        )
    fields = common_fields(vocabulary, metadata, add_bos=False)
    return JsonTokenizer(backend, len(vocabulary), TOKENIZER_JSON, **fields)
