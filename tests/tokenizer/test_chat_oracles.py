"""The built-in chat formats give the ids of Meta's and Mistral's own packages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from chat_oracles import meta_ids, mistral_ids
from tokenizer_oracles import package_file

from llama_ext.chat_template import chat_template_for
from llama_ext.errors import CheckpointError, OptionError
from llama_ext.tokenizer import (
    Tokenizer,
    tokenizer_from_folder,
    tokenizer_from_gguf,
    tokenizer_from_sentencepiece,
    tokenizer_from_tiktoken,
)


def _turns(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


CONVERSATIONS = [
    _turns(("user", "Hi")),
    _turns(
        ("system", "Be  brief."),
        ("user", "Grüße, 日本語 👩‍👩‍👧"),
        ("assistant", "Yes.\n\n- a\n- b"),
        ("user", "And\nnow?"),
    ),
    _turns(("user", "a"), ("assistant", "b "), ("user", " c\t"), ("assistant", "d"), ("user", "e\n")),
    _turns(("user", "<b>&\"'</b> [X] {{ 1 }}"), ("assistant", "12345"), ("user", "\u00a0x")),
]


@pytest.fixture(scope="module")
def meta(llama3_model: Path, llama4_model: Path) -> dict[str, Tokenizer]:
    return {"llama3": tokenizer_from_tiktoken(llama3_model), "llama4": tokenizer_from_tiktoken(llama4_model)}


@pytest.mark.parametrize("generation", ["llama3", "llama4"])
def test_llama_formats(meta: dict[str, Tokenizer], generation: str) -> None:
    tokenizer = meta[generation]
    template = chat_template_for(tokenizer)
    assert template.name == generation
    for messages in CONVERSATIONS:
        ids = tokenizer.encode(template.render(messages))
        assert ids == meta_ids(generation, messages)
        assert ids.count(tokenizer.bos_id or 0) == 1


@pytest.mark.parametrize("generation", ["llama3", "llama4"])
def test_a_tools_answer(meta: dict[str, Tokenizer], generation: str) -> None:
    tokenizer = meta[generation]
    text = chat_template_for(tokenizer).render(_turns(("tool", "42")), add_generation_prompt=False)
    assert "ipython" in text and text.endswith({"llama3": "42<|eot_id|>", "llama4": "42<|eom|>"}[generation])
    assert tokenizer.encode(text) == meta_ids(generation, _turns(("tool", "42")))[: len(tokenizer.encode(text))]


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("tokenizer.model.v1", "mistral-v1"),
        ("mistral_instruct_tokenizer_240216.model.v2", "mistral-v3"),
        ("mistral_instruct_tokenizer_240323.model.v3", "mistral-v3"),
        ("mistral_instruct_tokenizer_241114.model.v7", "mistral-v7"),
    ],
)
def test_mistral_formats(tmp_path: Path, file: str, name: str) -> None:
    path = package_file("mistral_common", f"data/{file}")
    (tmp_path / "tokenizer.model").write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "mistral"}')
    loaded = tokenizer_from_folder(tmp_path)
    for tokenizer in (loaded, tokenizer_from_gguf(loaded.gguf_metadata())):
        template = chat_template_for(tokenizer)
        assert template.name == name
        for messages in CONVERSATIONS:
            assert tokenizer.encode(template.render(messages)) == mistral_ids(path, messages)
        with pytest.raises(OptionError, match="Mistral"):
            template.render(_turns(("tool", "x")))


def test_without_a_hint_sentencepiece_means_llama_2(sentencepiece_model: Path) -> None:
    assert chat_template_for(tokenizer_from_sentencepiece(sentencepiece_model)).name == "llama2"


def test_an_unknown_hint_is_no_format(vocabulary: Callable[..., object], sentencepiece_model: Path) -> None:
    tokenizer = tokenizer_from_sentencepiece(sentencepiece_model)
    tokenizer.chat_format = "made-up"
    assert chat_template_for(tokenizer).name == "llama2"
    tokenizer.eos_id = None
    with pytest.raises(CheckpointError, match="no chat template"):
        chat_template_for(tokenizer)
