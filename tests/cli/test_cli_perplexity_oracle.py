"""`llama-ext perplexity` against transformers in float32 over the same GGUF file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import llama_ext
from llama_ext.cli import main

TEXT = Path(__file__).resolve().parents[1] / "data" / "english.txt"


def test_perplexity_of_a_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["perplexity", "-m", "smollm2", "--file", str(TEXT), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["windows"] == 1 and found["scored"] == found["tokens"] - 1 > 500
    checkpoint = llama_ext.load("smollm2", threads=1).checkpoint
    ids = torch.tensor([checkpoint.tokenizer.encode(TEXT.read_text())])
    path = checkpoint.path
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    with torch.inference_mode():
        loss = float(theirs(ids, labels=ids).loss)
    assert abs(found["perplexity"] / math.exp(loss) - 1) < 0.005
