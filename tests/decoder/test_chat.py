"""`chat`: the template, and a cache that is kept from turn to turn without changing an answer."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from tiny_model import write_tiny

import llama_ext

FRANCE = {"role": "user", "content": "What is the capital of France?"}
ITALY = {"role": "user", "content": "And of Italy?"}


def fresh(path: Path, messages: list[dict[str, str]], **options: Any) -> list[int]:
    return llama_ext.load(path, threads=1).chat(messages, **options).token_ids


def test_the_capital_of_france(smollm2: llama_ext.Llama) -> None:
    result = smollm2.chat([FRANCE])
    assert "Paris" in result.text and result.finish_reason == "stop"
    assert result.stop_reason == smollm2.tokenizer.find("<|im_end|>")
    stream = smollm2.chat_stream([FRANCE])
    assert "".join(stream) == result.text


def test_the_cache_is_kept(smollm2: llama_ext.Llama) -> None:
    first = smollm2.chat([FRANCE])
    messages = [FRANCE, {"role": "assistant", "content": first.text}, ITALY]
    second = smollm2.chat(messages)
    assert "Rome" in second.text
    # All of the first turn but the end token, which was drawn and never run.
    assert second.timings.cached_tokens == len(first.prompt_ids) + len(first.token_ids)
    # The very same question again: its last token is run for its logits.
    again = smollm2.chat(messages)
    assert again.text == second.text
    assert again.timings.cached_tokens == again.timings.prompt_tokens - 1
    alone = smollm2.generate(second.prompt_ids)
    assert alone.token_ids == second.token_ids and alone.timings.cached_tokens == 0


def test_a_conversation_that_begins_anew(tiny: llama_ext.Llama, tiny_path: Path) -> None:
    for content in ("hello", "help", "something else altogether", "h"):
        messages = [{"role": "user", "content": content}]
        got = tiny.chat(messages, max_new_tokens=20, temperature=1.0, seed=1)
        assert got.token_ids == fresh(tiny_path, messages, max_new_tokens=20, temperature=1.0, seed=1)


def test_windows_that_cannot_go_back(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "sliding.gguf", sliding_window=32)
    llm = llama_ext.load(path, threads=1)
    long = [{"role": "user", "content": "a" * 700}]
    short = [{"role": "user", "content": "a" * 50}]
    llm.chat(long, max_new_tokens=10)
    # 12 tokens of the header and 50 letters are shared, but 600 lie between.
    after = llm.chat(short, max_new_tokens=10)
    assert after.timings.cached_tokens == 0
    assert after.token_ids == fresh(path, short, max_new_tokens=10)
    near = [{"role": "user", "content": "a" * 55}]
    assert llm.chat(near, max_new_tokens=10).timings.cached_tokens > 50


def test_an_abandoned_answer(tiny: llama_ext.Llama, tiny_path: Path) -> None:
    messages = [{"role": "user", "content": "hello"}]
    for piece in tiny.chat_stream(messages, max_new_tokens=50, temperature=1.0, seed=5):
        assert piece
        break
    got = tiny.chat(messages, max_new_tokens=20)
    assert got.token_ids == fresh(tiny_path, messages, max_new_tokens=20)


def test_two_conversations_at_once(tiny: llama_ext.Llama, tiny_path: Path) -> None:
    contents = ["hello", "good morning", "how are you", "what is new"]
    results: dict[str, list[int]] = {}

    def work(content: str) -> None:
        for _ in range(3):
            result = tiny.chat([{"role": "user", "content": content}], max_new_tokens=30)
            results[content] = result.token_ids

    threads = [threading.Thread(target=work, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for content in contents:
        assert results[content] == fresh(tiny_path, [{"role": "user", "content": content}], max_new_tokens=30)


def test_interleaved_streams(tiny: llama_ext.Llama, tiny_path: Path) -> None:
    one, two = [{"role": "user", "content": "one"}], [{"role": "user", "content": "two"}]
    a, b = tiny.chat_stream(one, max_new_tokens=20), tiny.chat_stream(two, max_new_tokens=20)
    for _ in zip(a, b, strict=False):
        pass
    assert a.finish().token_ids == fresh(tiny_path, one, max_new_tokens=20)
    assert b.finish().token_ids == fresh(tiny_path, two, max_new_tokens=20)


@pytest.mark.parametrize(
    "messages", [[], "hello", [{"role": "user"}], ["hello"], [{"role": "user", "content": 5}], None]
)
def test_bad_messages(tiny: llama_ext.Llama, messages: Any) -> None:
    with pytest.raises(llama_ext.OptionError):
        tiny.chat(messages)


def test_a_conversation_past_the_context(tiny: llama_ext.Llama) -> None:
    with pytest.raises(llama_ext.ContextError, match="the context holds 2,048"):
        tiny.chat([{"role": "user", "content": "x" * 3000}])
    assert tiny.chat([{"role": "user", "content": "x"}], max_new_tokens=1).token_ids


def test_a_window_and_prompts_that_shrink(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "sliding.gguf", sliding_window=32)
    llm = llama_ext.load(path, threads=1)
    for letters in (700, 520, 330):
        messages = [{"role": "user", "content": "a" * letters}]
        got = llm.chat(messages, max_new_tokens=5).token_ids
        assert got == fresh(path, messages, max_new_tokens=5)
