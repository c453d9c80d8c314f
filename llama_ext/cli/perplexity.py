"""Measure how well a model predicts a text: exp of the mean negative log-likelihood of its tokens.

  llama-ext perplexity -m model.gguf --file wiki.txt --json

The text is cut into windows, and the first token of each is not scored; with a stride below the window they
overlap, and every token but the first is scored once.
"""

from __future__ import annotations

import argparse
import dataclasses
import time

from llama_ext.cli import common

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--file", required=True, metavar="PATH", help="the text (- is stdin)")
    parser.add_argument("--window", type=int, metavar="N", help="tokens a window (default: 2048, at most the context)")
    parser.add_argument("--stride", type=int, metavar="N", help="from window to window (default: the window)")
    common.add_model(parser)
    common.add_json(parser, "the figures as one JSON object")


def run(options: argparse.Namespace) -> None:
    text = common.read_text(options.file)
    llm = common.load_model(options)
    from llama_ext.perplexity import perplexity

    start = time.perf_counter()
    result = perplexity(llm, text, window=options.window, stride=options.stride, progress=True)
    seconds = time.perf_counter() - start
    if options.json:
        figures = {"perplexity": result.perplexity, **dataclasses.asdict(result), "seconds": seconds}
        common.print_json({"model": str(llm.checkpoint.path), **figures})
        return
    windows = f"{result.windows} window{'s' if result.windows > 1 else ''} of up to {result.window:,} tokens"
    common.write(
        f"perplexity {result.perplexity:.4f} (nll {result.nll:.6f} a token): {result.scored:,} of "
        f"{result.tokens:,} tokens scored in {windows}, {seconds:.1f} s\n"
    )
