"""Byte-level BPE by rank, tiktoken's way: the `tokenizer.model` of Llama 3 and Llama 4.

The file is a list of tokens and their ranks, which are their ids; the pair whose token has the lowest rank merges
first. The rule that cuts text and the special tokens are not in the file: they are those of Meta's own packages,
known by the number of ranks.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from llama_ext.errors import CheckpointError
from llama_ext.tokenizer.byte_level import PRE_TOKENIZERS, byte_characters, bytes_of
from llama_ext.tokenizer.interface import Tokenizer
from llama_ext.tokenizer.sidecars import Sidecars, apply_sidecars, read_bytes
from llama_ext.tokenizer.vocabulary import (
    CONTROL,
    NORMAL,
    UNUSED,
    Vocabulary,
    common_fields,
    padding_text,
    tokenizer_keys,
)

__all__ = ["MERGE_BY_RANK", "TiktokenTokenizer", "looks_like_ranks", "tokenizer_from_tiktoken"]

MERGE_BY_RANK = "llama_ext.tokenizer.merge_by_rank"


def _numbered(name: str, start: int, end: int) -> list[str]:
    return [f"<|{name}reserved_special_token_{index}|>" for index in range(start, end)]


def _llama3_specials() -> list[str]:
    """Ids 128,000 to 128,255. Llama 3.0 calls some of the reserved ones otherwise; no model uses those."""
    named = ["<|begin_of_text|>", "<|end_of_text|>", *_numbered("", 0, 2), "<|finetune_right_pad_id|>", "<|step_id|>"]
    named += ["<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>", "<|image|>"]
    return named + _numbered("", 2, 2 + 256 - len(named))


def _llama4_specials() -> list[str]:
    """Ids 200,000 to 202,047."""
    named = ["<|begin_of_text|>", "<|end_of_text|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
    named += ["<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>", "<|step|>"]
    named += _numbered("text_post_train_", 0, 6)
    named += ["<|python_start|>", "<|python_end|>", "<|finetune_right_pad|>"]
    named += _numbered("text_post_train_", 8, 69)
    named += ["<|image_start|>", "<|image_end|>", *_numbered("vision_", 0, 2)]
    named += ["<|tile_x_separator|>", "<|tile_y_separator|>", *_numbered("vision_", 2, 6)]
    named += ["<|image|>", *_numbered("vision_", 6, 7), "<|patch|>", *_numbered("vision_", 7, 1048)]
    named += [*_numbered("reasoning_", 0, 8), "<|reasoning_thinking_start|>", "<|reasoning_thinking_end|>"]
    return named + _numbered("", 0, 2048 - len(named))


# Number of ranks -> tokenizer.ggml.pre and the special tokens that follow them.
_GENERATIONS = {128_000: ("llama-bpe", _llama3_specials), 200_000: ("llama4", _llama4_specials)}

# Meta's tokenizers never show more to tiktoken at once, which grows slow and fails on longer stretches: at most so
# many characters, and no longer run of characters that are all white space or all none.
_MAX_CHARACTERS = 400_000
_MAX_RUN = 25_000
_LONG_RUN = re.compile(rf"\s{{{_MAX_RUN + 1},}}|\S{{{_MAX_RUN + 1},}}")


def _cut_long_runs(text: str) -> Iterator[str]:
    if len(text) <= _MAX_RUN:
        yield text
        return
    for start in range(0, len(text), _MAX_CHARACTERS):
        part = text[start : start + _MAX_CHARACTERS]
        done = 0
        for run in _LONG_RUN.finditer(part):
            for cut in range(run.start() + _MAX_RUN, run.end(), _MAX_RUN):
                yield part[done:cut]
                done = cut
        yield part[done:]


class TiktokenTokenizer(Tokenizer):
    """Byte-level BPE that merges by rank."""

    def __init__(
        self, vocabulary: Vocabulary, metadata: Mapping[str, object], tokens: list[bytes] | None = None
    ) -> None:
        super().__init__(vocabulary, **common_fields(vocabulary, metadata, add_bos=True))
        self._metadata = metadata
        pre = PRE_TOKENIZERS.get(str(metadata.get("tokenizer.ggml.pre")))
        if pre is None or len(pre.patterns) != 1:
            raise CheckpointError(
                f"The tokenizer's rule for cutting text, {metadata.get('tokenizer.ggml.pre')!r:.60}, does not go with"
                f" {MERGE_BY_RANK}: convert the model again."
            )
        if tokens is None:
            kinds = vocabulary.kinds
            count = next((index for index, kind in enumerate(kinds) if kind != NORMAL), len(kinds))
            tokens = [bytes_of(text) for text in vocabulary.texts[:count]]
        self._tokens = tokens
        ranks = {token: rank for rank, token in enumerate(self._tokens)}
        if len(ranks) != len(self._tokens) or any(kind == NORMAL for kind in vocabulary.kinds[len(ranks) :]):
            raise CheckpointError(
                "The tokens are no list of ranks followed by special tokens: convert the model again."
            )
        missing = next((byte for byte in range(256) if bytes([byte]) not in ranks), None)
        if missing is not None:
            raise CheckpointError(f"The ranks have no token for the byte {missing}: convert the model again.")
        import tiktoken

        self._backend = tiktoken.Encoding(
            "llama_ext", pat_str=pre.patterns[0], mergeable_ranks=ranks, special_tokens={}
        )

    def _encode_text(self, text: str, parse_special: bool) -> list[int]:
        ids: list[int] = []
        for part in _cut_long_runs(text):
            ids += super()._encode_text(part, parse_special)
        return ids

    def _encode_plain(self, text: str, *, after_special: bool) -> list[int]:
        return self._backend.encode_ordinary(text)

    def _plain_bytes(self, index: int) -> bytes:
        return self._tokens[index]

    def _own_metadata(self) -> dict[str, object]:
        out = tokenizer_keys(self._metadata)
        if "tokenizer.ggml.merges" not in out:
            out["tokenizer.ggml.merges"] = _merges(self._tokens)
        return out


def _merges(tokens: list[bytes]) -> list[str]:
    """The merges of a vocabulary of ranks: each pair of tokens that makes a token, in the order of its rank."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    texts = [_text(token) for token in tokens]
    out: list[str] = []
    for token in tokens:
        pairs = [
            (left, right)
            for cut in range(1, len(token))
            if (left := ranks.get(token[:cut])) is not None and (right := ranks.get(token[cut:])) is not None
        ]
        pairs.sort()
        out += [f"{texts[left]} {texts[right]}" for left, right in pairs]
    return out


def _text(token: bytes) -> str:
    return token.decode("latin-1").translate(_TABLE)


_TABLE = dict(enumerate(byte_characters()))


def looks_like_ranks(data: bytes) -> bool:
    """Whether the content of a `tokenizer.model` is text, as a list of ranks is; SentencePiece's is not."""
    head = data[:1024]
    return bool(head) and not head.strip(bytes(range(0x20, 0x7F)) + b"\r\n\t")


def _read_ranks(path: Path, data: bytes) -> list[bytes]:
    """The tokens in the order of their ranks.

    Raises:
        CheckpointError: a line is no base64 and a number, a token or a rank occurs twice or is missing.
    """
    lines = data.split(b"\n")
    tokens: list[bytes] = []
    ranks: list[bytes] = []
    decode = binascii.a2b_base64
    for number, line in enumerate(lines, 1):
        parts = line.split()
        if not parts:
            continue
        try:
            token, rank = parts
            tokens.append(decode(token, strict_mode=True))
            ranks.append(rank)
        except ValueError:
            token = b""
        if not token or not rank.isdigit() or len(rank) > 9:
            raise CheckpointError(
                f"{path} has {line[:40]!r} in line {number}, not a token in base64 and its rank: download it again."
            )
    numbers = np.array(ranks).astype(np.int64) if ranks else np.zeros(0, np.int64)
    order = np.argsort(numbers, kind="stable")
    wrong = np.flatnonzero(numbers[order] != np.arange(len(order)))
    if wrong.size:
        at = int(wrong[0])
        what = f"lacks the rank {at}" if numbers[order[at]] > at else f"has the rank {numbers[order[at]]} twice"
        raise CheckpointError(f"{path} {what}: download it again.")
    tokens = [tokens[index] for index in order.tolist()]
    known: dict[bytes, int] = {}
    for rank_number, token in enumerate(tokens):
        before = known.setdefault(token, rank_number)
        if before != rank_number:
            raise CheckpointError(
                f"{path} has the token {token!r:.60} twice, at rank {before} and {rank_number}: download it again."
            )
    return tokens


def tokenizer_from_tiktoken(path: Path, *, sidecars: Sidecars | None = None) -> Tokenizer:
    """The tokenizer of a `tokenizer.model` of Llama 3 or Llama 4: lines of a token in base64 and its rank.

    Args:
        path: the file.
        sidecars: what the files beside it say (`tokenizer_from_folder`); None: the file alone.

    Raises:
        CheckpointError: the file is damaged, cut short or of no known generation, or contradicts the files beside it.
    """
    path = Path(path)
    return _from_ranks(path, _read_ranks(path, read_bytes(path)), sidecars or Sidecars())


def _from_ranks(path: Path, tokens: list[bytes], sidecars: Sidecars) -> Tokenizer:
    generation = _GENERATIONS.get(len(tokens))
    if generation is None:
        raise CheckpointError(
            f"{path} has {len(tokens)} ranks, where Llama 3 has 128000 and Llama 4 200000: download it again, or use a"
            " folder with a tokenizer.json."
        )
    pre, specials = generation
    texts = [_text(token) for token in tokens] + specials()
    size = len(texts)
    sidecars.check_ids(path, size)
    for token in sidecars.added:
        # Hugging Face lists every special token; the names of reserved ones have changed over time.
        if token.index >= size or token.index < len(tokens):
            raise CheckpointError(
                f"{sidecars.sources['added']}: adds token {token.index}, but {path.name} has its special tokens at"
                f" {len(tokens)} to {size - 1}: use files of one model."
            )
        texts[token.index] = token.text
    padded = sidecars.padded_size(path, size)
    texts += [padding_text(index) for index in range(size, padded)]
    kinds = np.full(padded, UNUSED, np.int32)
    kinds[: len(tokens)] = NORMAL
    kinds[len(tokens) : size] = CONTROL
    metadata: dict[str, object] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.add_bos_token": True if sidecars.add_bos is None else sidecars.add_bos,
        MERGE_BY_RANK: True,
    }
    ids = {text: index for index, text in enumerate(texts[len(tokens) :], len(tokens))}
    apply_sidecars(metadata, sidecars, ids, path, bos=ids.get("<|begin_of_text|>"), eos=ids.get("<|end_of_text|>"))
    try:
        return TiktokenTokenizer(Vocabulary(metadata), metadata, tokens)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
