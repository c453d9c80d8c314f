"""`llama-ext inspect` of a model by its name, without any file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llama_ext import plan
from llama_ext.cli import main
from llama_ext.config.presets import PRESETS

Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, *arguments: object, status: int = 0) -> str:
    assert main(["inspect", *(str(argument) for argument in arguments)]) == status
    captured = capsys.readouterr()
    return captured.out if status == 0 else captured.err


def run_json(capsys: Capture, *arguments: object) -> dict[str, Any]:
    lines = run(capsys, *arguments, "--json").splitlines()
    assert len(lines) == 1
    value: dict[str, Any] = json.loads(lines[0])
    return value


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset(capsys: Capture, name: str) -> None:
    value = run_json(capsys, "-m", name)
    config = PRESETS[name].config
    assert (value["parameters"], value["active_parameters"]) == config.parameters()
    assert value["weights"]["Q4_0"]["bytes"] == plan.weight_bytes(config, "q4_0").total
    assert value["config"]["layer_kinds"] == list(config.layer_kinds)
    assert list(value["cache"]["bytes"]) == [str(n) for n in plan.context_lengths(config)]
    assert value["memory"]["weights"] == "bf16"
    text = run(capsys, "--model", name)
    assert f"{config.parameters()[0]:,}" in text and "(all it was trained for)" in text


def test_scout(capsys: Capture) -> None:
    text = run(capsys, "-m", "llama-4-scout", "--weights", "q4_0", "--kv-cache", "q8_0")
    for words in (
        "108,641,793,536: 107,769,861,120 of text, 17,172,894,720 of them active, and 871,932,416 of vision "
        "(published: 109 B, 17 B)",
        "36 chunked 8,192, 12 global",
        "16 in 48 layers, 1 a token and a shared one, by sigmoid",
        "qk-norm, temperature",
        "none in 12 layers",
        "60.64 GB",
        "10,485,760",
        "q4_0 weights",
    ):
        assert words in text
    value = run_json(capsys, "-m", "llama-4-scout", "--weights", "q4_0", "--kv-cache", "q8_0", "-c", 131072)
    config = PRESETS["llama-4-scout"].config
    expected = plan.plan(config, weights="q4_0", kv_cache="q8_0", tokens=131072)
    assert value["memory"]["bytes"]["total"] == expected.total
    assert value["memory"]["tokens"] == value["cache"]["max_context"] == 131072
    kinds = value["cache"]["kinds"]
    assert {kind: entry["layers"] for kind, entry in kinds.items()} == {"global": 12, "chunked": 36}
    for tokens, size in value["cache"]["bytes"].items():
        assert size == sum(entry["bytes"][tokens] for entry in kinds.values())


def test_what_fits(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama_ext.cli.inspect.available_memory", lambda: 32 * 10**9)
    text = run(capsys, "-m", "llama-3.1-8b")
    assert "does not fit" in text and "--weights q8_0 or --kv-cache q8_0 or --context " in text
    assert "32.00 GB free: fits" in run(capsys, "-m", "llama-3.1-8b", "--weights", "q8_0")
    monkeypatch.setattr("llama_ext.cli.inspect.available_memory", lambda: 10**9)
    assert "a smaller model" in run(capsys, "-m", "llama-3.1-405b")
    monkeypatch.setattr("llama_ext.cli.inspect.available_memory", lambda: None)
    assert "unknown free" in run(capsys, "-m", "llama-3.1-405b")


def test_behemoth_is_marked(capsys: Capture) -> None:
    assert "never released" in run(capsys, "-m", "llama-4-behemoth")
    assert run_json(capsys, "-m", "llama-4-behemoth")["released"] is False


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-m", "llama-4-scot"], "there is no file 'llama-4-scot'.*close are llama-4-scout"),
        (["-m", "gpt-2"], "is the name of no model; known are"),
        (["-m", "llama-3.2-11b"], "vision model"),
        (["-m", "llama-3-8b", "--weights", "q9"], "--weights q9 is unknown"),
        (["-m", "llama-3-8b", "--context", "9000"], "--context 9000 is out of range"),
        (["-m", "llama-3-8b", "--context", "0"], "--context 0 is out of range"),
        (["-m", "llama-3-8b", "--program"], "--program lists what a file holds"),
        (["-m", "missing.gguf"], "missing.gguf: cannot be opened"),
        (["-m", "a/folder/missing"], "a/folder/missing: cannot be opened"),
        (["-m", "./models/llama-3-8b"], "models/llama-3-8b: cannot be opened"),
        (["-m", "a/meta-llama/llama-3-8b"], "a/meta-llama/llama-3-8b: cannot be opened"),
    ],
)
def test_errors(capsys: Capture, arguments: list[str], said: str) -> None:
    import re

    text = run(capsys, *arguments, status=2)
    assert re.search(said, text) and text.count("\n") == 1


def test_a_file_counts_before_a_name(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llama-3-8b").write_bytes(b"not a model")
    monkeypatch.chdir(tmp_path)
    assert "llama-3-8b: " in run(capsys, "-m", "llama-3-8b", status=2)


def test_somebody_elses_model_of_that_name(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(name: str, **_: object) -> None:
        raise OSError(f"asked for {name}")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    assert "asked for someone/llama-3-8b" in run(capsys, "-m", "someone/llama-3-8b", status=2)
    assert run_json(capsys, "-m", "meta-llama/Meta-Llama-3-8B-Instruct")["preset"] == "llama-3-8b"


def test_a_file_shows_the_same(capsys: Capture) -> None:
    value = run_json(capsys, "-m", "smollm2")
    assert value["active_parameters"] == value["parameters"] == 134_515_008
    assert value["cache"]["kinds"]["global"]["layers"] == 30
    assert value["cache"]["kinds"]["global"]["bytes"] == value["cache"]["bytes"]
    assert value["memory"]["weights"] == "file"
    assert value["memory"]["bytes"]["weights"] == value["weight_bytes"]
    value = run_json(capsys, "-m", "smollm2", "--weights", "q8_0")
    assert value["memory"]["weights"] == "q8_0"
    assert value["memory"]["bytes"]["weights"] == plan.weight_bytes(PRESETS["smollm2-135m"].config, "q8_0").total
    text = run(capsys, "-m", "smollm2")
    assert "memory" in text and "the file's weights" in text
