"""`generate` and `stream`: text, stop strings, whole characters, sampling, interrupts, threads."""

from __future__ import annotations

import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_model import BOS, END, START, VOCAB, write_tiny

import llama_ext

Script = Callable[[str | list[int]], None]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Makes the tiny model say a text, a byte a token, then end."""

    def say(what: str | list[int]) -> None:
        ids = iter([*what.encode(), END] if isinstance(what, str) else what)
        monkeypatch.setattr(llama_ext.Session, "sample", lambda self, logits, params: next(ids))
        monkeypatch.setattr(llama_ext.Session, "draw", lambda self, token, params: (self.step(token), next(ids))[1])

    return say


def test_a_greedy_continuation(smollm2: llama_ext.Llama) -> None:
    result = smollm2.generate("The capital of France is", max_new_tokens=8)
    assert result.text.startswith(" Paris") and str(result) == result.text
    assert result.finish_reason == "length" and result.stop_reason is None and result.logprobs is None
    assert len(result.token_ids) == 8 and smollm2.tokenizer.decode(result.token_ids) == result.text
    assert result.prompt_ids == smollm2.tokenizer.encode("The capital of France is")
    again = smollm2.generate(result.prompt_ids, max_new_tokens=8)
    assert again.token_ids == result.token_ids

    session = smollm2.session()
    token, ids = int(session.prefill(result.prompt_ids).argmax()), []
    for _ in range(8):
        ids.append(token)
        token = int(session.step(token).argmax())
    assert ids == result.token_ids


def test_timings(smollm2: llama_ext.Llama) -> None:
    timings = smollm2.generate("Once upon a time", max_new_tokens=6).timings
    assert (timings.prompt_tokens, timings.cached_tokens, timings.generated_tokens) == (4, 0, 6)
    assert 0 < timings.prompt_seconds <= timings.first_token_seconds
    assert timings.tokens_per_second == 5 / timings.decode_seconds
    assert timings.prompt_tokens_per_second == 4 / timings.prompt_seconds
    assert "6 tokens at" in str(timings)


def test_a_slow_reader_is_not_counted(tiny: llama_ext.Llama, script: Script) -> None:
    import time

    script("abcdef")
    stream = tiny.stream("x")
    begun, slept = time.perf_counter(), 0.0
    for _ in stream:
        paused = time.perf_counter()
        time.sleep(0.05)
        slept += time.perf_counter() - paused
    whole = time.perf_counter() - begun
    assert slept >= 0.3 and stream.result.timings.decode_seconds <= whole - slept


def test_pieces_join_to_the_text(smollm2: llama_ext.Llama) -> None:
    stream = smollm2.stream("Once upon a time", max_new_tokens=12)
    with pytest.raises(llama_ext.LlamaExtError, match="at its end"):
        _ = stream.result
    pieces = list(stream)
    assert len(pieces) > 3 and stream.done and "".join(pieces) == stream.result.text
    assert stream.result.text == smollm2.generate("Once upon a time", max_new_tokens=12).text
    assert list(stream) == []


def test_no_half_characters(tiny: llama_ext.Llama, script: Script) -> None:
    text = "Grüße, 日本 😀!"
    script(text)
    stream = tiny.stream("x")
    assert list(stream) == list(text)  # a byte a token, yet a character a piece
    assert stream.result.text == text and stream.result.stop_reason == END
    assert stream.result.finish_reason == "stop" and stream.result.token_ids == list(text.encode())


def test_a_character_that_never_ends(tiny: llama_ext.Llama, script: Script) -> None:
    script([*b"ab", 0xF0, 0x9F, END])
    stream = tiny.stream("x")
    assert list(stream) == ["a", "b", "�"] and stream.result.text == "ab�"
    script([0xE6, *b"ab", END])
    assert list(tiny.stream("x")) == ["�a", "b"]


def test_random_bytes(tiny: llama_ext.Llama) -> None:
    for seed in range(20):
        stream = tiny.stream("x", temperature=1.5, seed=seed, max_new_tokens=60)
        assert "".join(stream) == tiny.tokenizer.decode(stream.result.token_ids) == stream.result.text


@pytest.mark.parametrize(
    ("said", "stop", "text", "reason"),
    [
        ("hello world", "wor", "hello ", "wor"),
        ("hello world", ["zzz", "lo w"], "hel", "lo w"),
        ("hello world", "hello", "", "hello"),
        ("aaab", "aab", "a", "aab"),
        ("ababac", "abac", "ab", "abac"),
        ("abcd", ["bcd", "c"], "ab", "c"),  # the one that is complete first
        ("abcd", ["c", "abc"], "", "abc"),  # both at once: the longer
        ("user: hi\n\nuser:", ["\n\n", "user:\n"], "user: hi", "\n\n"),
        ("Ende 😀 nie", "😀", "Ende ", "😀"),
        ("nearly sto", "stop", "nearly sto", END),
        ("nothing", ["stop"], "nothing", END),
        ("nothing", [], "nothing", END),
    ],
)
def test_stop_strings(tiny: llama_ext.Llama, script: Script, said: str, stop: Any, text: str, reason: object) -> None:
    script(said)
    stream = tiny.stream("x", stop=stop)
    pieces = list(stream)
    result = stream.result
    assert ("".join(pieces), result.text, result.stop_reason) == (text, text, reason)
    assert result.finish_reason == "stop" and "" not in pieces
    if isinstance(reason, str):
        # Its tokens are among the ids, and nothing was drawn after it.
        assert bytes(result.token_ids).decode() == said[: said.index(reason) + len(reason)]


def test_stop_strings_whatever_the_tokens(smollm2: llama_ext.Llama) -> None:
    whole = smollm2.generate("Once upon a time", max_new_tokens=24).text
    for begin in range(3, 60, 8):
        stop = whole[begin : begin + 7]  # mostly across tokens
        stream = smollm2.stream("Once upon a time", max_new_tokens=24, stop=[stop])
        assert "".join(stream) == stream.result.text == whole[: whole.index(stop)]


def test_held_back_text_comes_at_the_limit(tiny: llama_ext.Llama, script: Script) -> None:
    script("abcST more")
    result = tiny.generate("x", stop="STOP", max_new_tokens=5)
    assert (result.text, result.finish_reason) == ("abcST", "length")


def test_seeds(smollm2: llama_ext.Llama) -> None:
    def run(**options: Any) -> llama_ext.GenerationResult:
        return smollm2.generate("My favourite animal is", max_new_tokens=8, temperature=1.2, **options)

    fresh = run()
    assert run(seed=fresh.seed).token_ids == fresh.token_ids
    assert len({tuple(run(seed=seed).token_ids) for seed in range(6)}) > 3
    assert run(seed=2**64 - 1, top_k=1).token_ids == run(top_p=1e-9).token_ids


def test_filters_imply_a_temperature(tiny: llama_ext.Llama) -> None:
    def temperature(**options: Any) -> float:
        return tiny.generate("x", max_new_tokens=1, **options).sampling.temperature

    assert temperature() == temperature(seed=3) == temperature(repetition_penalty=1.2) == 0
    assert temperature(top_k=5) == temperature(top_p=0.9) == temperature(min_p=0.1) == 1
    assert temperature(top_p=0.9, temperature=0) == 0


def test_the_penalty_sees_prompt_and_text(tiny: llama_ext.Llama) -> None:
    result = tiny.generate([1, 2, 3], max_new_tokens=40, repetition_penalty=1e6)
    assert len({1, 2, 3, *result.token_ids}) == 3 + len(result.token_ids)


def test_logprobs(smollm2: llama_ext.Llama) -> None:
    options: Any = {"max_new_tokens": 6, "temperature": 1.5, "seed": 4}
    result = smollm2.generate("Once upon a time", logprobs=3, **options)
    assert result.logprobs is not None and len(result.logprobs) == len(result.token_ids) == 6
    logits = smollm2.session().logits([*result.prompt_ids, *result.token_ids])[3:-1].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for entry, token, row in zip(result.logprobs, result.token_ids, expected, strict=True):
        assert entry.token_id == token and math.isclose(entry.logprob, row[token], rel_tol=1e-9)
        order = np.argsort(-row)[:3]
        assert [index for index, _ in entry.top] == order.tolist()
        np.testing.assert_allclose([value for _, value in entry.top], row[order], rtol=1e-9)
    only = smollm2.generate("Once upon a time", logprobs=0, **options).logprobs
    assert only is not None and only[0].top == () and only[0].logprob == result.logprobs[0].logprob
    assert result.to_dict()["logprobs"][0]["top"][0]["token_id"] == result.logprobs[0].top[0][0]


def test_all_logprobs_of_a_small_vocabulary(tiny: llama_ext.Llama) -> None:
    result = tiny.generate("x", max_new_tokens=1, logprobs=VOCAB)
    assert result.logprobs is not None
    assert math.isclose(sum(math.exp(value) for _, value in result.logprobs[0].top), 1, rel_tol=1e-9)
    assert result.logprobs[0].top[0][0] == result.token_ids[0]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"top_p": 2}, "top_p must be"),
        ({"top_k": -1}, "top_k must be"),
        ({"min_p": 1}, "min_p must be"),
        ({"temperature": -1}, "temperature must be"),
        ({"temperature": "hot"}, "temperature must be"),
        ({"repetition_penalty": 0}, "repetition_penalty must be"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 1.5}, "seed must be"),
        ({"max_new_tokens": 0}, "max_new_tokens must be an integer of at least 1, not 0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be"),
        ({"stop": ""}, "stop takes"),
        ({"stop": ["a", ""]}, "stop takes"),
        ({"stop": [1]}, "stop takes"),
        ({"stop": 5}, "stop takes"),
        ({"logprobs": -1}, "logprobs must be"),
        ({"progress": "yes"}, "progress must be True, False, None or a function"),
        ({"logprobs": True}, "logprobs must be"),
        ({"logprobs": 10_000}, "logprobs=10000 is too many: there are 260"),
    ],
)
def test_bad_options_fail_at_once(tiny: llama_ext.Llama, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(llama_ext.OptionError, match=sentence):
        tiny.stream("x", **options)


def test_options_that_do_not_exist(tiny: llama_ext.Llama) -> None:
    with pytest.raises(TypeError, match="no option 'max_tokens'; options are max_new_tokens, temperature"):
        tiny.generate("x", max_tokens=5)  # type: ignore[call-arg]


def test_bad_prompts(tiny: llama_ext.Llama, tmp_path: Path) -> None:
    nothing: list[str | list[int]] = ["", []]
    for empty in nothing:
        with pytest.raises(llama_ext.OptionError, match="prompt is empty"):
            tiny.generate(empty)
    for wrong in ([300], [1.5], 7, None, b"x", ["a"]):
        with pytest.raises(llama_ext.OptionError):
            tiny.generate(wrong)  # type: ignore[arg-type]
    with pytest.raises(
        llama_ext.ContextError, match=r"prompt has 3,000 tokens, the context holds 2,048; shorten it\.$"
    ):
        tiny.stream("x" * 3000)
    with_bos = llama_ext.load(write_tiny(tmp_path / "bos.gguf", add_bos=True), threads=1)
    with pytest.raises(llama_ext.OptionError, match="prompt is empty"):
        with_bos.generate("", max_new_tokens=1)
    assert with_bos.generate("a", max_new_tokens=1).prompt_ids == [BOS, ord("a")]


def test_many_stop_strings_cost_no_more_than_few() -> None:
    from llama_ext.decoder import _StopFinder

    def calls(count: int) -> tuple[int, str, _StopFinder]:
        """Function calls that a text costs against so many stop strings."""
        finder, made = _StopFinder(tuple(f"stop number {n:05d}" for n in range(count))), 0

        def count_call(frame: object, event: str, argument: object) -> None:
            nonlocal made
            made += event in ("call", "c_call")

        before = sys.getprofile()
        sys.setprofile(count_call)
        try:
            out = "".join(finder.push(letter) for letter in "stop number " * 200)
        finally:
            sys.setprofile(before)
        return made, out, finder

    few, _, _ = calls(2)
    many, out, finder = calls(20_000)
    assert many < 1.2 * few
    assert out == "stop number " * 199 and finder.push("00042") == "" and finder.found == "stop number 00042"


def test_the_end_of_the_context(tiny_path: Path, script: Script) -> None:
    llm = llama_ext.load(tiny_path, threads=1, max_context=10)
    for limit in (None, 100):
        script("abcdefghijklmnop")
        result = llm.generate("12345678", max_new_tokens=limit)
        # Two more fit; the third is drawn from the last logits and needs no place.
        assert (result.text, result.finish_reason) == ("abc", "length")
    script("a")
    assert llm.generate("1234567890").text == "a"
    with pytest.raises(llama_ext.ContextError, match="or load with max_context up to 2,048"):
        llm.generate("12345678901")


def test_special_tokens_are_no_text(tiny: llama_ext.Llama, script: Script) -> None:
    script([*b"a", START, *b"b", END])
    assert tiny.generate("x").text == "ab"
    script([END])
    assert tiny.generate("<|im_start|>x").prompt_ids == [START, ord("x")]


@pytest.fixture
def alarm() -> Iterator[Callable[[float], None]]:
    """Ctrl-C after some seconds."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds) and None
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_interrupts_leave_a_usable_model(
    smollm2: llama_ext.Llama, alarm: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = smollm2.generate("Once upon a time", max_new_tokens=5).text
    messages = [{"role": "user", "content": "Count from one to one thousand."}]
    calls: list[Callable[[], object]] = [
        lambda: smollm2.generate([1] * 4000, max_new_tokens=None),
        lambda: smollm2.generate("One, two, three,", max_new_tokens=None, stop="never said"),
        lambda: smollm2.chat(messages, max_new_tokens=None, temperature=2.0, seed=1),
    ]
    for seconds in (0.02, 0.3):
        with monkeypatch.context() as patch:
            patch.setattr(smollm2.tokenizer, "end_ids", frozenset())  # no fast machine ends before the alarm
            for call in calls:
                alarm(seconds)
                with pytest.raises(KeyboardInterrupt):
                    call()
        assert smollm2.generate("Once upon a time", max_new_tokens=5).text == expected
        assert "Paris" in smollm2.chat([{"role": "user", "content": "What is the capital of France?"}]).text


def test_interrupts_while_loading(tiny_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        llama_ext.load(tiny_path, threads=2, progress=interrupt)
    assert llama_ext.load(tiny_path, threads=2).generate("x", max_new_tokens=2).token_ids


def test_a_stream_left_early(tiny: llama_ext.Llama) -> None:
    with tiny.stream("abc", max_new_tokens=50) as stream:
        next(stream)
    assert not stream.done and list(stream) == []
    stream.close()


def test_threads_of_python(smollm2: llama_ext.Llama) -> None:
    prompts = ["Once upon a time", "The capital of Italy is", "def add(a, b):", "One, two, three, four,"]
    alone = [smollm2.generate(prompt, max_new_tokens=12).token_ids for prompt in prompts]
    together: dict[int, list[int]] = {}

    def work(index: int) -> None:
        together[index] = smollm2.generate(prompts[index], max_new_tokens=12).token_ids

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[index] for index in range(4)] == alone
