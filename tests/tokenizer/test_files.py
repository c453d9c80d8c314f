"""Folders: which file is taken, what the files beside it change, and one clear error for each damaged one."""

from __future__ import annotations

import base64
import json
import random
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama_ext.chat_template import chat_template_for
from llama_ext.errors import CheckpointError
from llama_ext.tokenizer import (
    tokenizer_from_folder,
    tokenizer_from_gguf,
    tokenizer_from_json,
    tokenizer_from_sentencepiece,
    tokenizer_from_tiktoken,
)

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def _tiny_json(*, specials: tuple[str, ...] = ("<s>", "</s>", "<|eot_id|>"), **changes: Any) -> dict[str, Any]:
    characters = [*map(chr, range(0x21, 0x7F)), *map(chr, range(0xA1, 0xAD)), *map(chr, range(0xAE, 0x100))]
    characters += [chr(256 + index) for index in range(256 - len(characters))]
    tokens = [*characters, "ab", "Ġab"]
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": len(tokens) + index, "content": text, "special": True}
            | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            for index, text in enumerate(specials)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {text: index for index, text in enumerate(tokens)},
            "merges": [["a", "b"], ["Ġ", "ab"]],
        },
    } | changes


BOS, EOS, EOT = 258, 259, 260


def _folder(root: Path, **files: Any) -> Path:
    """A folder; names without the extension .json, contents as JSON or as bytes or text."""
    root.mkdir(exist_ok=True)
    for name, content in ({"tokenizer": _tiny_json()} | files).items():
        if content is None:
            continue
        if isinstance(content, dict):
            content = json.dumps(content)
        data = content.encode() if isinstance(content, str) else content
        (root / (name if "." in name else f"{name}.json")).write_bytes(data)
    return root


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


PIECES: list[tuple[str, float, int]] = [
    ("<unk>", 0, UNKNOWN),
    ("<s>", 0, CONTROL),
    ("</s>", 0, CONTROL),
    *((f"<0x{byte:02X}>", 0, BYTE) for byte in range(256)),
    ("▁a", -1, NORMAL),
    ("▁", -5, NORMAL),
    ("a", -6, NORMAL),
    ("b", -7, NORMAL),
]


def _model(
    pieces: list[tuple[str, float, int]] = PIECES,
    *,
    size: int | None = None,
    kind: int = 2,
    normalizer: bytes = _number(4, 0),
) -> bytes:
    out = b"".join(
        _bytes(1, _bytes(1, text.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, kind))
        for text, score, kind in pieces
    )
    trainer = _number(3, kind) + _number(4, len(pieces) if size is None else size) + _number(35, 1)
    return out + _bytes(2, trainer) + _bytes(3, _bytes(1, b"identity") + normalizer)


# What the files beside the vocabulary say


def test_bos_eos_and_ends(tmp_path: Path) -> None:
    tokenizer = tokenizer_from_folder(_folder(tmp_path))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.end_ids) == (None, None, {EOS, EOT})
    _folder(
        tmp_path,
        tokenizer_config={"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": True},
        generation_config={"eos_token_id": [EOT, 97, 98], "bos_token_id": 5},
        config={"eos_token_id": 99, "vocab_size": 261},
    )
    tokenizer = tokenizer_from_folder(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (BOS, EOS, True)
    assert tokenizer.end_ids == {EOS, EOT, 97, 98}
    assert tokenizer.encode("ab") == [BOS, 256]
    again = tokenizer_from_gguf(tokenizer.gguf_metadata())
    assert again.end_ids == tokenizer.end_ids and again.bos_id == BOS and again.add_bos
    assert again.gguf_metadata()["tokenizer.ggml.eot_token_id"] == EOT


def test_ids_of_config_where_nothing_else_speaks(tmp_path: Path) -> None:
    config = {"text_config": {"bos_token_id": BOS, "eos_token_id": [EOS, 97], "vocab_size": 261}}
    tokenizer = tokenizer_from_folder(_folder(tmp_path, config=config, generation_config={}))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.end_ids) == (BOS, EOS, {EOS, EOT, 97})
    assert not tokenizer.add_bos  # the file has no rule that adds one


def test_special_tokens_map(tmp_path: Path) -> None:
    special = {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    tokenizer = tokenizer_from_folder(
        _folder(tmp_path, special_tokens_map=special, tokenizer_config={"eos_token": "<|eot_id|>"})
    )
    assert (tokenizer.bos_id, tokenizer.eos_id) == (BOS, EOT)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"tokenizer_config": {"chat_template": "one"}}, "one"),
        ({"tokenizer_config": {"chat_template": None}}, None),
        (
            {
                "tokenizer_config": {
                    "chat_template": [
                        {"name": "tool_use", "template": "two"},
                        {"name": "default", "template": "three"},
                    ]
                }
            },
            "three",
        ),
        ({"tokenizer_config": {"chat_template": [{"name": "rag", "template": "four"}]}}, "four"),
        ({"tokenizer_config": {"chat_template": "one"}, "chat_template.jinja": "fünf"}, "fünf"),
        ({"chat_template": {"chat_template": "six"}}, "six"),
    ],
)
def test_chat_templates(tmp_path: Path, files: dict[str, Any], expected: str | None) -> None:
    tokenizer = tokenizer_from_folder(_folder(tmp_path, **files))
    assert tokenizer.chat_template == expected
    assert tokenizer_from_gguf(tokenizer.gguf_metadata()).chat_template == expected


def test_a_template_gets_the_tokens_and_one_bos(tmp_path: Path) -> None:
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    folder = _folder(
        tmp_path, tokenizer_config=config | {"chat_template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"}
    )
    tokenizer = tokenizer_from_folder(folder)
    text = chat_template_for(tokenizer).render([{"role": "user", "content": "ab"}])
    assert tokenizer.encode(text) == [BOS, 256, EOS]


def test_a_smaller_vocabulary_is_filled_up(tmp_path: Path) -> None:
    for tokenizer in (
        tokenizer_from_folder(_folder(tmp_path / "a", config={"vocab_size": 264})),
        tokenizer_from_folder(
            _folder(tmp_path / "b", tokenizer=None, **{"tokenizer.model": _model(), "params": {"vocab_size": 264}})
        ),
    ):
        size = tokenizer.vocab_size
        assert size == 264
        assert tokenizer.token_text(size - 1) == "[PAD263]" and tokenizer.find("[PAD263]") == 263
        assert tokenizer.token_bytes(size - 1, special=True) == b"" and not tokenizer.is_special(size - 1)
        assert size - 1 not in tokenizer.encode("[PAD263]")
        again = tokenizer_from_gguf(tokenizer.gguf_metadata())
        assert again.vocab_size == size and again.token_text(size - 1) == "[PAD263]"
        assert again.encode("[PAD263] ab") == tokenizer.encode("[PAD263] ab")


def test_a_vocabulary_with_gaps(tmp_path: Path) -> None:
    tokenizer = tokenizer_from_folder(_folder(tmp_path, tokenizer=_changed(["model", "vocab", "ab"], 300)))
    assert tokenizer.vocab_size == 301
    assert tokenizer.encode("ab") == [300]
    assert tokenizer.token_text(256) == "[PAD256]" and tokenizer.decode([256, 300]) == "ab"
    again = tokenizer_from_gguf(tokenizer.gguf_metadata())
    assert again.encode("ab </s>[PAD256]") == tokenizer.encode("ab </s>[PAD256]")


def test_minus_one_means_as_many_as_there_are(tmp_path: Path) -> None:
    folder = _folder(tmp_path, tokenizer=None, **{"tokenizer.model": _model(), "params": {"vocab_size": -1}})
    assert tokenizer_from_folder(folder).vocab_size == len(PIECES)


@pytest.mark.parametrize("kind", ["json", "model"])
def test_added_tokens(tmp_path: Path, kind: str) -> None:
    size = 261 if kind == "json" else len(PIECES)
    files = {} if kind == "json" else {"tokenizer": None, "tokenizer.model": _model()}
    added = {
        str(size): {"content": "<|im_start|>", "special": True},
        str(size + 1): {"content": "<u>", "special": False},
    }
    tokenizer = tokenizer_from_folder(_folder(tmp_path, tokenizer_config={"added_tokens_decoder": added}, **files))
    assert tokenizer.vocab_size == size + 2
    assert tokenizer.is_special(size) and tokenizer.is_user_defined(size + 1)
    for one in (tokenizer, tokenizer_from_gguf(tokenizer.gguf_metadata())):
        assert one.encode("<|im_start|>", add_bos=False) == [size]
        assert size not in one.encode("<|im_start|>", parse_special=False)
        assert one.encode("<u>", add_bos=False, parse_special=False)[-1] == size + 1


def test_tokenizer_json_is_preferred(tmp_path: Path) -> None:
    folder = _folder(tmp_path, **{"tokenizer.model": _model()})
    assert tokenizer_from_folder(folder).find("Ġab") == 257


def test_models_are_told_apart_by_content(tmp_path: Path, llama3_model: Path) -> None:
    folder = _folder(tmp_path, tokenizer=None, **{"tokenizer.model": _model()})
    assert tokenizer_from_folder(folder).find("<0x0A>") is not None
    (folder / "tokenizer.model").write_bytes(llama3_model.read_bytes())
    tokenizer = tokenizer_from_folder(_folder(tmp_path, tokenizer=None, params={"vocab_size": 128_256}))
    assert tokenizer.find("<|eot_id|>") == 128_009 and chat_template_for(tokenizer).name == "llama3"


def test_metas_tokenizer_lies_above_the_folders_of_all_sizes(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(_model())
    folder = _folder(tmp_path / "7B", tokenizer=None, params={"vocab_size": -1})
    assert tokenizer_from_folder(folder).vocab_size == len(PIECES)
    (folder / "params.json").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer"):
        tokenizer_from_folder(folder)


def test_plain_text_never_becomes_a_control_token(tmp_path: Path) -> None:
    """`ignore_merges` makes a word of the vocabulary that token, and the library looks among control tokens too."""
    content = _tiny_json(specials=("<<>>",))
    content["model"]["vocab"]["<<>>"] = 258
    content["model"]["ignore_merges"] = True
    for merged in (tokenizer_from_folder(_folder(tmp_path, tokenizer=content)),):
        for tokenizer in (merged, tokenizer_from_gguf(merged.gguf_metadata())):
            assert tokenizer.encode("a<<>>") == [tokenizer.find("a"), 258]
            ids = tokenizer.encode("<<>>", parse_special=False)
            assert 258 not in ids and tokenizer.decode(ids) == "<<>>"


def test_truncation_padding_and_dropout_are_off(tmp_path: Path) -> None:
    content = _tiny_json(
        truncation={"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        padding={
            "strategy": {"Fixed": 8},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "!",
        },
    )
    content["model"]["dropout"] = 0.9
    tokenizer = tokenizer_from_folder(_folder(tmp_path, tokenizer=content))
    assert tokenizer.encode("abab ab") == [256, 256, 257]


def test_a_file_that_removes_spaces(tmp_path: Path) -> None:
    import sentencepiece

    data = _model(normalizer=_number(4, 1))
    theirs = sentencepiece.SentencePieceProcessor(model_proto=data)
    tokenizer = tokenizer_from_folder(_folder(tmp_path, tokenizer=None, **{"tokenizer.model": data}))
    for text in ("a  a", "  a ", " ", "a\n  b", "", "▁▁a", "x  "):
        for one in (tokenizer, tokenizer_from_gguf(tokenizer.gguf_metadata())):
            assert one.encode(text, add_bos=False) == theirs.encode(text), text


def test_no_space_prefix(tmp_path: Path) -> None:
    data = _model(normalizer=_number(3, 0) + _number(4, 0))
    tokenizer = tokenizer_from_folder(_folder(tmp_path, tokenizer=None, **{"tokenizer.model": data}))
    for one in (tokenizer, tokenizer_from_gguf(tokenizer.gguf_metadata())):
        assert one.decode(one.encode("a a")) == "a a"
        assert one.encode("a", add_bos=False) == [tokenizer.find("a")]


# Damaged and hostile files


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"looked for tokenizer\.json and tokenizer\.model"):
        tokenizer_from_folder(tmp_path)
    with pytest.raises(CheckpointError, match="is no folder"):
        tokenizer_from_folder(tmp_path / "none")
    for read in (tokenizer_from_json, tokenizer_from_sentencepiece, tokenizer_from_tiktoken):
        with pytest.raises(CheckpointError, match=r"none\.x cannot be read"):
            read(tmp_path / "none.x")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"


def _changed(path: list[str | int], value: Any, **others: Any) -> dict[str, Any]:
    out = _tiny_json(**others)
    at: Any = out
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return out


@pytest.mark.parametrize(
    ("files", "said"),
    [
        # tokenizer.json
        ({"tokenizer": b""}, r"tokenizer\.json is not understood"),
        ({"tokenizer": b"{}"}, r"tokenizer\.json is not understood"),
        ({"tokenizer": b"[" * 100_000}, r"tokenizer\.json is not understood"),
        ({"tokenizer": json.dumps(_tiny_json())[:700]}, r"tokenizer\.json is not understood"),
        ({"tokenizer": b"\xff\xfe"}, r"tokenizer\.json is not understood"),
        ({"tokenizer": POINTER}, r"tokenizer\.json is a pointer of Git LFS"),
        ({"tokenizer": _changed(["model", "vocab", "ab"], 2**32)}, r"tokenizer\.json is not understood"),
        ({"tokenizer": _changed(["model", "vocab", "ab"], 2**31)}, r"tokenizer\.json has 261 tokens and the id"),
        ({"tokenizer": _changed(["model", "vocab", "ab"], 1)}, r"tokenizer\.json"),
        ({"tokenizer": _changed(["model", "merges"], [["a", "c"]])}, r"tokenizer\.json is not understood"),
        ({"tokenizer": _changed(["model", "type"], "WordLevel")}, r"tokenizer\.json"),
        ({"tokenizer": _changed(["added_tokens", 1, "id"], 4_000_000_000)}, r"'</s>' has the id 4000000000"),
        ({"tokenizer": _changed(["added_tokens", 1, "id"], 300)}, r"'</s>' has the id 300"),
        ({"tokenizer": _changed(["added_tokens", 2, "id"], 9, specials=("]}", '"[', "x]"))}, r"'x\]' has the id 9"),
        ({"tokenizer": _changed(["pre_tokenizer"], {"type": "Whitespace"})}, "neither byte-level nor SentencePiece"),
        (
            {
                "tokenizer": _changed(
                    ["pre_tokenizer"],
                    {"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False},
                )
            },
            r"tokenizer\.json is not understood",
        ),
        # beside it
        ({"tokenizer_config": b'{"bos_token": "<s'}, r"tokenizer_config\.json is no valid JSON"),
        ({"tokenizer_config": b"[" * 100_000}, r"tokenizer_config\.json is no valid JSON"),
        ({"tokenizer_config": b"\xff"}, r"tokenizer_config\.json is no valid JSON"),
        ({"tokenizer_config": b"[]"}, r"tokenizer_config\.json holds a list"),
        ({"tokenizer_config": POINTER}, "pointer of Git LFS"),
        ({"tokenizer_config": {"bos_token": 5}}, r"tokenizer_config\.json: bos_token is 5"),
        ({"tokenizer_config": {"bos_token": "<none>"}}, r"bos_token is '<none>', which tokenizer\.json does not have"),
        ({"tokenizer_config": {"add_bos_token": "yes"}}, "add_bos_token is 'yes'"),
        ({"tokenizer_config": {"chat_template": 5}}, "chat_template is 5"),
        ({"tokenizer_config": {"chat_template": [{"name": "default", "template": 1}]}}, "chat_template is 1"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": {"content": "y"}}}}, "added_tokens_decoder"),
        ({"tokenizer_config": {"added_tokens_decoder": [1]}}, "added_tokens_decoder"),
        ({"tokenizer_config": {"added_tokens_decoder": {"9" * 5000: {"content": "y"}}}}, "added_tokens_decoder"),
        ({"tokenizer_config": {"added_tokens_decoder": {"900": {"content": "y"}}}}, "token 900 is 'y'"),
        ({"tokenizer_config": {"added_tokens_decoder": {"258": {"content": "y"}}}}, "token 258 is 'y'"),
        ({"added_tokens": {"y": -1}}, r"added_tokens\.json: y is -1"),
        ({"special_tokens_map": {"eos_token": []}}, r"special_tokens_map\.json: eos_token is \[\]"),
        ({"generation_config": {"eos_token_id": [EOS, 261]}}, r"generation_config\.json: eos_token_id is 261"),
        ({"generation_config": {"eos_token_id": "2"}}, "eos_token_id is '2'"),
        ({"generation_config": {"eos_token_id": [True]}}, r"eos_token_id is \[True\]"),
        ({"config": {"bos_token_id": 10**30}}, r"config\.json: bos_token_id is 1000"),
        ({"config": {"vocab_size": 260}}, r"config\.json: vocab_size is 260, but tokenizer\.json has 261"),
        ({"config": {"vocab_size": 10**12}}, "vocab_size is 1000000000000"),
        ({"config": {"vocab_size": "many"}}, "vocab_size is 'many'"),
        ({"params": {"vocab_size": 0}}, r"params\.json: vocab_size is 0"),
        ({"chat_template.jinja": b"\xff"}, r"chat_template\.jinja is no UTF-8"),
    ],
)
def test_damaged_folders(tmp_path: Path, files: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        tokenizer_from_folder(_folder(tmp_path, **files))


def test_an_expression_that_never_ends(tmp_path: Path) -> None:
    """The library panics, which is no Exception; the tokenizer is whole afterwards."""
    pattern = {"type": "Split", "pattern": {"Regex": "(a+)+b"}, "behavior": "Isolated", "invert": False}
    rest = _tiny_json()["pre_tokenizer"]
    content = _tiny_json(pre_tokenizer={"type": "Sequence", "pretokenizers": [pattern, rest]})
    tokenizer = tokenizer_from_folder(_folder(tmp_path, tokenizer=content))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json has rules that fail on this text"):
        tokenizer.encode("a" * 30)
    assert tokenizer.encode("ab") == [256]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "missing"),
        (b"\x00\x00\x00\x00", "field|missing"),
        (b"\x0a\xff\xff\xff\xff\x7f", "claims"),
        (b"\x0a" + b"\xff" * 20, "64 bits"),
        (b"PK\x03\x04 a zip", "SentencePiece"),
        (b"\x80\x04\x95 a pickle", "SentencePiece"),
        (_model()[:2000], "missing|claims|inside"),
        (_model(size=10**9), "says 1000000000"),
        (_model(PIECES[:-1], size=len(PIECES)), f"has {len(PIECES) - 1} pieces and says {len(PIECES)}"),
        (_model(kind=1), "no BPE"),
        (_model([*PIECES[:-1], PIECES[-2]]), "'a' twice"),
        (_model([*PIECES[:-1], ("", 0, NORMAL)]), "is empty"),
        (_model([*PIECES[:-1], ("c", float("nan"), NORMAL)]), "is nan"),
        (_model([*PIECES[:-1], ("c", 0, 77)]), "malformed"),
        (_model([*PIECES, ("<0x0a>", 0, BYTE)]), "sentencepiece refuses"),
        (_model(normalizer=_bytes(2, b"charsmap")), "rewrites text"),
        (POINTER, "Git LFS"),
    ],
)
def test_damaged_sentencepiece_files(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"(?s)tokenizer\.model.*({said})"):
        tokenizer_from_sentencepiece(path)


def test_every_cut_of_a_sentencepiece_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    data = _model()
    whole = len(data) - len(_bytes(3, _bytes(1, b"identity") + _number(4, 0)))
    for size in range(0, len(data), 7):
        path.write_bytes(data[:size])
        if size == whole:
            continue  # only the normalizer's settings are missing, all of which have defaults
        with pytest.raises(CheckpointError, match=r"tokenizer\.model"):
            tokenizer_from_sentencepiece(path)


def test_changed_bytes_never_crash(tmp_path: Path) -> None:
    generator = random.Random(6)
    path = tmp_path / "tokenizer.model"
    outcomes = set()
    for data, read in (
        (_model(), tokenizer_from_sentencepiece),
        (json.dumps(_tiny_json()).encode(), tokenizer_from_json),
    ):
        for _ in range(150):
            changed = bytearray(data)
            for _ in range(generator.randint(1, 4)):
                changed[generator.randrange(len(data))] = generator.randrange(256)
            path.write_bytes(changed)
            try:
                tokenizer = read(path)
            except CheckpointError:
                outcomes.add("refused")
                continue
            tokenizer.decode(tokenizer.encode("ab </s>"))
            outcomes.add("read")
    assert outcomes == {"refused", "read"}


def _line(token: bytes, rank: int) -> bytes:
    return base64.b64encode(token) + b" %d\n" % rank


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda lines: lines[:-1], "has 127999 ranks"),
        (lambda lines: [*lines, _line(b"\x00\x00\x00\x01", 128_000)], "has 128001 ranks"),
        (lambda lines: [*lines[:500], b"!!!! 500\n", *lines[501:]], "line 501"),
        (lambda lines: [*lines[:500], b"YQ 500\n", *lines[501:]], "line 501"),
        (lambda lines: [*lines[:500], b"YWJj\n", *lines[501:]], "line 501"),
        (lambda lines: [*lines[:500], b"YWJj -1\n", *lines[501:]], "line 501"),
        (lambda lines: [*lines[:500], b"YWJj " + b"9" * 5000 + b"\n", *lines[501:]], "line 501"),
        (lambda lines: [*lines[:-1], lines[-1][:3]], "line 128000"),
        (lambda lines: [*lines[:500], *lines[501:], _line(b"\x00\x00\x00\x01", 499)], "has the rank 499 twice"),
        (lambda lines: [*lines[:500], *lines[501:], _line(b"\x00\x00\x00\x01", 128_000)], "lacks the rank 500"),
        (lambda lines: [*lines[:500], _line(b"a", 500), *lines[501:]], "the token b'a' twice"),
        (lambda lines: [_line(b"\x00\x00\x00\x01", 0), *lines[1:]], "no token for the byte"),
        (lambda lines: [], "has 0 ranks"),
    ],
)
def test_damaged_ranks(tmp_path: Path, llama3_model: Path, damage: Any, said: str) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"".join(damage(llama3_model.read_bytes().splitlines(keepends=True))))
    with pytest.raises(CheckpointError, match=rf"tokenizer\.model.* {said}"):
        tokenizer_from_tiktoken(path)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"params": {"vocab_size": 32_000}}, r"params\.json: vocab_size is 32000"),
        ({"generation_config": {"eos_token_id": 128_256}}, "eos_token_id is 128256"),
        ({"tokenizer_config": {"added_tokens_decoder": {"5": {"content": "y"}}}}, "adds token 5"),
        ({"tokenizer_config": {"eos_token": "<|im_end|>"}}, "eos_token is '<|im_end|>'"),
    ],
)
def test_files_of_two_models(tmp_path: Path, llama3_model: Path, files: dict[str, Any], said: str) -> None:
    folder = _folder(tmp_path, tokenizer=None, **{"tokenizer.model": llama3_model.read_bytes()}, **files)
    with pytest.raises(CheckpointError, match=said.replace("|", r"\|")):
        tokenizer_from_folder(folder)


def test_order_of_lines_and_line_ends_do_not_matter(tmp_path: Path, llama3_model: Path) -> None:
    path = tmp_path / "tokenizer.model"
    lines = llama3_model.read_bytes().splitlines()
    path.write_bytes(b"\r\n".join([*lines[::-1], b""]))
    text = "Hello, 世界 12345"
    assert tokenizer_from_tiktoken(path).encode(text) == tokenizer_from_tiktoken(llama3_model).encode(text)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"llama_ext.tokenizer.end_token_ids": [1]}, "not an array"),
        ({"llama_ext.tokenizer.end_token_ids": np.array([261])}, "names token 261"),
        ({"llama_ext.tokenizer.json": 5}, "is a int"),
        ({"llama_ext.tokenizer.json": "{"}, "not understood"),
        (
            {"llama_ext.tokenizer.json": json.dumps(_tiny_json(specials=tuple(f"<{i}>" for i in range(9))))},
            "more tokens",
        ),
        ({"llama_ext.tokenizer.merge_by_rank": True, "tokenizer.ggml.pre": "smollm"}, "does not go with"),
        (
            {
                "llama_ext.tokenizer.merge_by_rank": True,
                "tokenizer.ggml.pre": "gpt-2",
                "tokenizer.ggml.token_type": np.ones(261, np.int32) * [3, *[1] * 260],
            },
            "no list of ranks",
        ),
    ],
)
def test_damaged_own_keys(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    metadata = tokenizer_from_folder(_folder(tmp_path)).gguf_metadata()
    with pytest.raises(CheckpointError, match=said):
        tokenizer_from_gguf({**metadata, **change})


def test_reading_is_quiet(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer = tokenizer_from_folder(_folder(tmp_path))
        tokenizer_from_gguf(tokenizer.gguf_metadata())
