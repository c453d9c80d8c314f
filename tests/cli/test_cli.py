"""The commands: what they print, and how they fail."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

import llama_ext
from llama_ext import _core
from llama_ext.cli import main

Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, *arguments: object, status: int = 0) -> str:
    assert main([str(argument) for argument in arguments]) == status
    captured = capsys.readouterr()
    assert captured.err == "" or status
    return captured.out if status == 0 else captured.err


def run_json(capsys: Capture, *arguments: object) -> dict[str, Any]:
    lines = run(capsys, *arguments, "--json").splitlines()
    assert len(lines) == 1
    value: dict[str, Any] = json.loads(lines[0])
    return value


def stdin(monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text), encoding="utf-8"))


@pytest.mark.parametrize("command", ["", "generate", "chat", "bench", "perplexity", "inspect", "convert"])
def test_help(capsys: Capture, command: str) -> None:
    with pytest.raises(SystemExit) as end:
        main([*command.split(), "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and "usage: llama-ext" in text
    if command:
        assert f"llama-ext {command} -m" in text and "--json" in text and "--model" in text
    else:
        for name in ("generate", "chat", "bench", "perplexity", "inspect", "convert"):
            assert name in text


def test_version(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"llama-ext {llama_ext.__version__}\n"


def test_wrong_usage(capsys: Capture) -> None:
    for arguments in ([], ["sing"], ["generate"], ["chat", "-m", "smollm2", "--kv-cache", "q8"]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2
    assert "required: -m/--model" in capsys.readouterr().err


# generate


def test_generate(capsys: Capture) -> None:
    out = run(capsys, "generate", "-m", "smollm2", "The capital of France is", "-n", 6)
    assert out.startswith(" Paris") and out.endswith("\n")
    value = run_json(capsys, "generate", "-m", "smollm2", "-p", "The capital of France is", "-n", 6)
    assert value["text"] + "\n" == out and value["finish_reason"] == "length"
    assert len(value["token_ids"]) == value["timings"]["generated_tokens"] == 6
    assert value["timings"]["tokens_per_second"] > 0 and "logprobs" not in value


def test_generate_options(capsys: Capture, tiny_file: str) -> None:
    arguments = ["generate", "--model", tiny_file, "abc", "--temperature", 1, "--top-k", 40, "--top-p", 0.9]
    arguments += ["--min-p", 0.01, "--repetition-penalty", 1.1, "--seed", 5, "-n", 8, "--logprobs", 2]
    arguments += ["--threads", 1, "--context", 100, "--kv-cache", "f32", "--stop", "zz", "--stop", "yy"]
    value = run_json(capsys, *arguments)
    assert value["sampling"] == {
        "temperature": 1.0,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.01,
        "repetition_penalty": 1.1,
        "seed": 5,
    }
    assert len(value["logprobs"]) == len(value["token_ids"]) and len(value["logprobs"][0]["top"]) == 2
    assert run_json(capsys, *arguments)["token_ids"] == value["token_ids"]


def test_where_a_prompt_comes_from(
    capsys: Capture, tiny_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompt.txt").write_text("from a file\n")
    command = ["generate", "-m", tiny_file, "-n", 1]
    assert bytes(run_json(capsys, *command, "-f", tmp_path / "prompt.txt")["prompt_ids"]) == b"from a file\n"
    stdin(monkeypatch, b"from a pipe\r\n")
    assert bytes(run_json(capsys, *command)["prompt_ids"]) == b"from a pipe"
    stdin(monkeypatch, "Grüße".encode())
    assert bytes(run_json(capsys, *command, "-f", "-")["prompt_ids"]).decode() == "Grüße"
    assert "give the prompt once" in run(capsys, *command, "a", "-p", "b", status=2)
    stdin(monkeypatch, b"")
    assert "prompt is empty" in run(capsys, *command, status=2)
    stdin(monkeypatch, b"\xff\xfe")
    assert "standard input is no UTF-8 text (byte 0)" in run(capsys, *command, status=2)
    stdin(monkeypatch, b"")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert "there is no prompt; give one" in run(capsys, *command, status=2)


def test_generate_with_drafts(capsys: Capture) -> None:
    prompt = "one two three four five six seven eight one two three four five six seven"
    arguments = ["generate", "-m", "smollm2", "-n", "24", "--json", prompt]
    assert main(arguments) == 0
    plain = json.loads(capsys.readouterr().out)
    assert main([*arguments, "--draft", "lookup", "--draft-tokens", "6", "--timings"]) == 0
    out, err = capsys.readouterr()
    drafted = json.loads(out)
    assert drafted["token_ids"] == plain["token_ids"] and plain["timings"]["drafted_tokens"] == 0
    assert drafted["timings"]["accepted_tokens"] > 0 and drafted["timings"]["passes"] < 23
    assert "drafted tokens accepted" in err


def test_timings_go_to_stderr(capsys: Capture, tiny_file: str) -> None:
    assert main(["generate", "-m", tiny_file, "abc", "-n", "3", "--timings"]) == 0
    captured = capsys.readouterr()
    assert "3 tokens at" in captured.err and "seed" in captured.err and "tokens at" not in captured.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-m", "/nowhere.gguf", "x"], "/nowhere.gguf: cannot be opened (No such file or directory)"),
        (["-m", "TINY", "x", "--top-p", "2"], "--top-p must be"),
        (["-m", "TINY", ""], "the prompt is empty"),
        (["-m", "TINY", "x" * 3000], "the prompt has 3,000 tokens, the context holds 2,048"),
        (["-m", "TINY", "x", "--device", "tpu"], "--device tpu is unknown; use --device cpu or --device cuda."),
        (["-m", "TINY", "x", "--threads", "0"], "--threads must be an integer of at least 1, not 0"),
        (["-m", "TINY", "x", "--context", "9999"], "--context 9999 is out of range"),
        (
            ["-m", "TINY", "x", "--resident-limit", "1GB"],
            "every token reads all of its weights; leave --resident-limit",
        ),
        (["-m", "TINY", "x", "-n", "0"], "--max-new-tokens must be"),
        (["-m", "TINY", "x", "--logprobs", "2"], "--logprobs shows nothing without --json"),
        (["-m", "TINY", "x", "--draft-tokens", "16"], "--draft-tokens 16 is too many; draft up to 15 tokens"),
        (["-m", "TINY", "x", "--draft", "nowhere.gguf"], "nowhere.gguf"),
        (["-m", "TINY", "-f", "/nowhere.txt"], "/nowhere.txt: No such file or directory."),
        (["-m", "TINY", "-f", "/"], "/: Is a directory."),
    ],
)
def test_errors(capsys: Capture, tiny_file: str, arguments: list[str], sentence: str) -> None:
    filled = [tiny_file if argument == "TINY" else argument for argument in arguments]
    text = run(capsys, "generate", *filled, status=2)
    assert text.startswith("llama-ext: error: ") and sentence in text and text.count("\n") == 1


@pytest.mark.parametrize(
    ("built", "sentence"),
    [
        (False, "this build has no CUDA (a reason); install llama_ext with LLAMA_EXT_CUDA=ON in the environment"),
        pytest.param(
            *(True, "LLAMA_EXT_LIBCUDA=/nowhere.so does not load"),
            marks=pytest.mark.skipif(not _core.cuda.built, reason=_core.cuda.about),
        ),
    ],
)
def test_cuda(capsys: Capture, tiny_file: str, monkeypatch: pytest.MonkeyPatch, built: bool, sentence: str) -> None:
    monkeypatch.setenv("LLAMA_EXT_LIBCUDA", "/nowhere.so")
    if not built:
        monkeypatch.setattr(_core.cuda, "built", False)
        monkeypatch.setattr(_core.cuda, "about", "no CUDA (a reason)")
    text = run(capsys, "generate", "-m", tiny_file, "x", "--device", "cuda", status=2)
    assert text.startswith("llama-ext: error: --device cuda: ") and sentence in text
    assert text.endswith(", or use --device cpu.\n") and text.count("\n") == 1


# chat


def test_chat_with_a_message(capsys: Capture) -> None:
    assert "Paris" in run(capsys, "chat", "--model", "smollm2", "What is the capital of France?")
    value = run_json(capsys, "chat", "-m", "smollm2", "--system", "Answer in French.", "-p", "Hello!", "-n", 4)
    llm = llama_ext.load("smollm2")
    prompt = llm.tokenizer.decode(value["prompt_ids"], skip_special=False)
    assert "Answer in French." in prompt and "Hello!" in prompt
    assert "message is empty" in run(capsys, "chat", "-m", "smollm2", " ", status=2)
    assert "message once" in run(capsys, "chat", "-m", "smollm2", "a", "-p", "b", status=2)


def test_chat_by_lines(capsys: Capture, tiny_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, b"hello\n\nagain\n/reset\nanew\n/quit\nnever read\n")
    lines = run(capsys, "chat", "-m", tiny_file, "-n", 3, "--json", "--system", "Be brief.").splitlines()
    values = [json.loads(line) for line in lines]
    decoded = [bytes(i for i in value["prompt_ids"] if i < 256).decode(errors="replace") for value in values]
    assert len(values) == 3
    assert "hello" in decoded[0] and "hello" in decoded[1] and "again" in decoded[1]
    assert "hello" not in decoded[2] and "anew" in decoded[2] and all("Be brief." in text for text in decoded)
    assert values[1]["timings"]["cached_tokens"] >= values[0]["timings"]["prompt_tokens"]


def test_chat_past_the_context_goes_on(capsys: Capture, tiny_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, b"x" * 3000 + b"\n/rest\nhello\n")
    assert main(["chat", "-m", tiny_file, "-n", "3", "--json"]) == 0
    captured = capsys.readouterr()
    assert "the context holds 2,048" in captured.err and "/reset begins anew" in captured.err
    assert "no command /rest." in captured.err
    value = json.loads(captured.out)
    assert len(value["prompt_ids"]) < 100


# bench, perplexity, inspect


def test_bench(capsys: Capture, tiny_file: str) -> None:
    arguments = ["bench", "-m", tiny_file, "--prompt", 40, "--decode", 6, "--repeat", 2, "-t", 1]
    value = run_json(capsys, *arguments)
    assert value["load_seconds"] > 0 and value["threads"] == 1 and value["prompt"] == 40
    assert len(value["decode"]["seconds"]) == len(value["read_bandwidth"]["seconds"]) == 2
    assert value["decode"]["tokens_per_second"] > 0 and value["prefill"]["tokens_per_second"] > 0
    assert value["bytes_per_token"] == value["weight_bytes_per_token"] + value["cache_bytes_per_token"]
    assert value["cache_bytes_per_token"] == 2 * 2 * 32 * 2 * (43 + 1 + 1)  # read 44, write one
    share = value["bytes_per_token"] * value["decode"]["tokens_per_second"]
    share /= value["read_bandwidth"]["bytes_per_second"]
    assert math.isclose(value["bandwidth_share"], share, rel_tol=1e-9)
    text = run(capsys, *arguments)
    for word in ("load", "prefill", "decode", "GB/s", "%"):
        assert word in text
    assert "--repeat must be at least 1" in run(capsys, *arguments, "--repeat", 0, status=2)
    assert "2100 tokens, the context holds 2048" in run(capsys, *arguments, "--prompt", 2094, status=2)


def test_perplexity(capsys: Capture, tiny_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.txt").write_bytes(b"line\r\n" * 50)
    arguments = ["perplexity", "-m", tiny_file, "--file", tmp_path / "text.txt", "--window", 100]
    value = run_json(capsys, *arguments)
    assert (value["tokens"], value["scored"], value["windows"]) == (300, 297, 3)
    assert math.isclose(value["perplexity"], math.exp(value["nll"]))
    assert run_json(capsys, *arguments, "--stride", 50)["scored"] == 299
    assert f"perplexity {value['perplexity']:.4f}" in run(capsys, *arguments)
    stdin(monkeypatch, b"line\r\n" * 50)
    piped = run_json(capsys, "perplexity", "-m", tiny_file, "--file", "-", "--window", 100)
    assert piped["nll"] == value["nll"]
    assert "window must be" in run(capsys, *arguments, "--window", 1, status=2)


def test_inspect(capsys: Capture) -> None:
    value = run_json(capsys, "inspect", "-m", "smollm2", "--kv-cache", "f32", "--context", 4096)
    assert value["parameters"] == 134_515_008 and value["config"]["num_hidden_layers"] == 30
    assert math.isclose(sum(entry["share"] for entry in value["formats"].values()), 1)
    assert sum(entry["bytes"] for entry in value["formats"].values()) == value["weight_bytes"]
    slot = 30 * 2 * 3 * 64 * 4
    assert value["cache"]["bytes"] == {str(n): n * slot for n in (512, 2048, 4096)}
    assert value["tokenizer"]["vocab_size"] == 49152 and value["tokenizer"]["chat_template"] is True
    assert {"id": 2, "text": "<|im_end|>"} in value["tokenizer"]["ends"]
    text = run(capsys, "inspect", "-m", "smollm2")
    for words in ("134,515,008", "Q4_1", "68.7%", "<|im_end|> (2)", "8,192"):
        assert words in text


def test_inspect_the_program(capsys: Capture, tiny_file: str) -> None:
    text = run(capsys, "inspect", "-m", tiny_file, "--program")
    assert "attention" in text and "layer 0-1" in text and "total" in text
    value = run_json(capsys, "inspect", "-m", tiny_file, "--program", "--position", 99)
    assert [entry["name"] for entry in value["program"]][:3] == ["embed", "qkv", "attention"]
    assert value["program"][2]["cache_bytes"] == 2 * 32 * 2 * (100 + 1)
    assert value["program"][1]["weights"][1]["shape"] == [64, 64]


@pytest.mark.parametrize("arguments", [["--rows", 0], ["--rows", 257], ["--position", -1], ["--position", 2048]])
def test_steps_that_do_not_exist(capsys: Capture, tiny_file: str, arguments: list[object]) -> None:
    text = run(capsys, "inspect", "-m", tiny_file, "--program", *arguments, status=2)
    assert f"{arguments[0]} must be from" in text and text.count("\n") == 1


def test_a_chat_on_half_a_terminal(capsys: Capture, tiny_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, b"hello\n")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert main(["chat", "-m", tiny_file, "-n", "3", "--json"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)["token_ids"]) <= 3 and out.count("\n") == 1 and "> " in err
