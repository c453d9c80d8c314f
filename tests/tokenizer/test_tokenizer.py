"""The tokenizer's interface: BOS, decoding, streaming, special tokens, and errors that name what is wrong."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizer_oracles import BYTE, CONTROL, NORMAL, UNKNOWN, Pair

from llama_ext.checkpoint.gguf import GgufFile
from llama_ext.errors import CheckpointError, OptionError
from llama_ext.tokenizer import tokenizer_from_gguf

Vocabulary = Callable[..., Pair]
NAMES = ["smollm2", "llama3", "sentencepiece"]
TEXTS = [
    "",
    "Hello",
    " Hello",
    "  two",
    "a\r\n\tb ",
    "日本語 👩‍👩‍👧 é",
    "</x> 123\x00\x7f",
    "naïve ▁",
    "\U0010ffff",
]


@pytest.mark.parametrize("name", NAMES)
def test_decode_undoes_encode(vocabulary: Vocabulary, name: str) -> None:
    tokenizer = vocabulary(name).ours
    for text in TEXTS:
        if name == "smollm2" and "\U0010ffff" in text:
            continue  # this vocabulary has no token for the byte F4
        if name == "sentencepiece" and "▁" in text:
            continue  # U+2581 is how this vocabulary writes a space
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.decode(tokenizer.encode(text, add_bos=False)) == text


def test_text_between_special_tokens_survives_in_sentencepiece(vocabulary: Vocabulary) -> None:
    tokenizer = vocabulary("sentencepiece").ours
    text = "<s>one</s>two </s> three"
    assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text
    assert tokenizer.decode(tokenizer.encode(text)) == "onetwo  three"


def test_bos(vocabulary: Vocabulary) -> None:
    tokenizer = vocabulary("llama3").ours
    bos = tokenizer.bos_id
    assert bos == 128000
    assert tokenizer.encode("Hi")[0] == bos
    assert tokenizer.encode("Hi", add_bos=False)[0] != bos
    assert tokenizer.encode("") == [bos]
    for add_bos in (None, True, False):
        ids = tokenizer.encode("<|begin_of_text|>Hi", add_bos=add_bos)
        assert ids.count(bos) == 1 and ids[0] == bos
    assert tokenizer.encode("<|begin_of_text|>Hi", add_bos=True, parse_special=False).count(bos) == 1
    smollm2 = vocabulary("smollm2").ours
    assert not smollm2.add_bos
    assert smollm2.encode("Hi", add_bos=True)[0] == smollm2.bos_id


def test_a_bos_that_the_vocabulary_lacks(vocabulary: Vocabulary) -> None:
    metadata = dict(vocabulary("smollm2").metadata)
    del metadata["tokenizer.ggml.bos_token_id"], metadata["tokenizer.ggml.eos_token_id"]
    tokenizer = tokenizer_from_gguf({**metadata, "tokenizer.ggml.add_bos_token": True})
    assert tokenizer.bos_id is None and tokenizer.eos_id is None and not tokenizer.add_bos
    tokenizer.encode("x")
    with pytest.raises(OptionError, match="no BOS"):
        tokenizer.encode("x", add_bos=True)


def test_special_tokens(vocabulary: Vocabulary) -> None:
    tokenizer = vocabulary("smollm2").ours
    end = tokenizer.find("<|im_end|>")
    assert end == 2 == tokenizer.eos_id and end in tokenizer.end_ids
    assert tokenizer.is_special(2) and not tokenizer.is_special(1000)
    assert tokenizer.token_bytes(2) == b"" and tokenizer.token_bytes(2, special=True) == b"<|im_end|>"
    assert tokenizer.encode("<|im_end|>") == [2]
    assert 2 not in tokenizer.encode("<|im_end|>", parse_special=False)
    assert tokenizer.decode([2], skip_special=False) == "<|im_end|>"
    assert tokenizer.find("no such token") is None
    assert tokenizer.token_text(2) == "<|im_end|>"


def test_end_ids_from_the_files_keys(vocabulary: Vocabulary) -> None:
    changes = {
        "tokenizer.ggml.eot_token_id": 100,
        "tokenizer.ggml.eom_token_id": 101,
        "tokenizer.ggml.eos_token_id": 102,
    }
    pair = vocabulary("smollm2", changes)
    assert {100, 101, 102} <= pair.ours.end_ids
    assert pair.ours.end_ids == pair.theirs.end_ids()


@pytest.mark.parametrize("name", NAMES)
def test_streaming_never_splits_a_character(vocabulary: Vocabulary, name: str) -> None:
    tokenizer = vocabulary(name).ours
    text = "Grüße 日本語 👩‍👩‍👧‍👦 🇩🇪 ok\ufffd"
    stream = tokenizer.stream()
    pieces = [stream.push(index) for index in tokenizer.encode(text, add_bos=False)]
    assert stream.flush() == ""
    assert "".join(pieces).lstrip(" ") == text
    assert "".join(pieces).count("\ufffd") == 1


def test_streaming_flushes_what_is_incomplete(vocabulary: Vocabulary) -> None:
    tokenizer = vocabulary("sentencepiece").ours
    first_byte = tokenizer.find("<0xE6>")
    letter = tokenizer.find("a")
    assert first_byte is not None and letter is not None
    stream = tokenizer.stream()
    assert stream.push(first_byte) == ""
    assert stream.flush() == "\ufffd"
    assert stream.push(letter) == "a"
    stream.push(first_byte)
    assert stream.push(letter) == "\ufffda"
    assert tokenizer.decode([first_byte]) == "\ufffd"
    hidden, shown = tokenizer.stream(), tokenizer.stream(skip_special=False)
    assert (hidden.push(2), shown.push(2)) == ("", "</s>")


@pytest.mark.parametrize("name", NAMES)
def test_a_lone_surrogate_is_refused(vocabulary: Vocabulary, name: str) -> None:
    with pytest.raises(OptionError, match=r"lone surrogate .*index 2"):
        vocabulary(name).ours.encode("ab\ud800c")
    with pytest.raises(OptionError, match="pass a str"):
        vocabulary(name).ours.encode(b"ab")  # type: ignore[arg-type]


@pytest.mark.parametrize("index", [-1, 49152, 10**12])
def test_an_unknown_id_is_refused(vocabulary: Vocabulary, index: int) -> None:
    tokenizer = vocabulary("smollm2").ours
    for call in (tokenizer.token_bytes, tokenizer.is_special, tokenizer.token_text, tokenizer.stream().push):
        with pytest.raises(OptionError, match="no token"):
            call(index)
    with pytest.raises(OptionError, match="no token"):
        tokenizer.decode([index])


TINY: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["<s>", "</s>", "a", "b", "ab", "Ġ", "Ġab"],
    "tokenizer.ggml.merges": ["a b", "Ġ ab"],
    "tokenizer.ggml.token_type": np.array([CONTROL, CONTROL, NORMAL, NORMAL, NORMAL, NORMAL, NORMAL], np.int32),
}


def test_a_tiny_vocabulary() -> None:
    tokenizer = tokenizer_from_gguf(TINY)
    assert tokenizer.encode("ab ab</s>aXb") == [
        4,
        6,
        1,
        2,
        3,
    ]  # X has no token: dropped, and nothing merges across it
    assert tokenizer.end_ids == {1}
    assert tokenizer.decode([6, 4]) == " abab"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokenizer.ggml.model": None}, "no tokenizer"),
        ({"tokenizer.ggml.model": "bert"}, "'bert' is not supported"),
        ({"tokenizer.ggml.pre": "made-up"}, "'made-up'"),
        ({"tokenizer.ggml.pre": 3}, "= 3"),
        ({"tokenizer.ggml.tokens": None}, "no list of tokens"),
        ({"tokenizer.ggml.tokens": []}, "no list of tokens"),
        ({"tokenizer.ggml.tokens": np.zeros(3, np.int32)}, "no list of tokens"),
        ({"tokenizer.ggml.tokens": ["a", "b", "a", "c", "d", "e", "f"]}, "'a' occurs twice"),
        ({"tokenizer.ggml.tokens": ["<s>", "</s>", "a", "b", "ab", "Ġ", "Ġab\udc80"]}, "merges do not fit"),
        ({"tokenizer.ggml.merges": None}, "no merges"),
        ({"tokenizer.ggml.merges": ["ab"]}, "merges do not fit"),
        ({"tokenizer.ggml.merges": ["b a"]}, "merges do not fit"),
        ({"tokenizer.ggml.merges": ["x y"]}, "merges do not fit"),
        ({"tokenizer.ggml.merges": ["\udc80 a"]}, "merges do not fit"),
        ({"tokenizer.ggml.token_type": np.zeros(3, np.int32)}, "3 entries for 7 tokens"),
        ({"tokenizer.ggml.token_type": ["x"] * 7}, "not an array of numbers"),
        ({"tokenizer.ggml.token_type": np.zeros(7, np.float32)}, "not an array of numbers"),
        ({"tokenizer.ggml.bos_token_id": 7}, "bos_token_id is 7"),
        ({"tokenizer.ggml.eos_token_id": -1}, "eos_token_id is -1"),
        ({"tokenizer.ggml.eot_token_id": True}, "eot_token_id is True"),
        ({"tokenizer.ggml.add_bos_token": 1}, "add_bos_token is 1"),
    ],
)
def test_a_damaged_vocabulary_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        tokenizer_from_gguf({**TINY, **change})


def test_a_missing_rule_is_the_old_default_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="convert the model again"):
        tokenizer = tokenizer_from_gguf({**TINY, "tokenizer.ggml.pre": None})
    assert tokenizer.encode("ab") == [4]


def test_a_sentencepiece_vocabulary_without_bytes_uses_unknown() -> None:
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁", "a", "▁a"],
        "tokenizer.ggml.scores": np.array([0, 0, 0, -3, -2, -1], np.float32),
        "tokenizer.ggml.token_type": np.array([UNKNOWN, CONTROL, CONTROL, NORMAL, NORMAL, NORMAL], np.int32),
    }
    tokenizer = tokenizer_from_gguf(metadata)
    assert tokenizer.encode("aa aX") == [1, 5, 4, 5, 0]
    assert tokenizer.decode([1, 5, 4, 5]) == "aa a"
    with pytest.raises(CheckpointError, match="sentencepiece"):
        kinds = np.array([UNKNOWN, CONTROL, CONTROL, NORMAL, NORMAL, BYTE], np.int32)
        tokenizer_from_gguf({**metadata, "tokenizer.ggml.token_type": kinds})


def test_importing_costs_no_tokenizer_library(smollm2_path: Path) -> None:
    code = (
        "import sys, llama_ext.tokenizer, llama_ext.chat_template, llama_ext.checkpoint.gguf as g\n"
        f"g.GgufFile({str(smollm2_path)!r})\n"
        "heavy = {'torch', 'tokenizers', 'sentencepiece', 'tiktoken', 'jinja2', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_loading_smollm2_is_quiet(smollm2_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tokenizer_from_gguf(GgufFile(smollm2_path).metadata).vocab_size == 49152


@pytest.mark.parametrize("ids", [[1.5], "ab", 5, [True], None])
def test_ids_that_are_none(smollm2_path: Path, ids: object) -> None:
    with pytest.raises(OptionError, match="integer"):
        tokenizer_from_gguf(GgufFile(smollm2_path).metadata).decode(ids)  # type: ignore[arg-type]
