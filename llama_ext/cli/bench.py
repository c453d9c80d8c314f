"""Measure load time, prompt and decoding speed, and the share of the memory bandwidth that decoding uses.

  llama-ext bench -m model.gguf --prompt 512 --decode 64 --repeat 5 --json

Decoding reads every weight and the keys and values so far once a token, so the bandwidth is its limit. What
the machine gives is measured in turn with the decoding, by the same threads on the same memory, and the best
of those probes is taken. Speeds are medians over the repetitions.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np

from llama_ext.cli import common
from llama_ext.errors import OptionError
from llama_ext.executor import describe

__all__ = ["add_arguments", "measure", "run"]

_PROBE_BYTES = 1 << 30  # at the most; a model's own weights where they are fewer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", type=int, default=512, metavar="N", help="tokens (default: %(default)s)")
    parser.add_argument(
        "--decode", type=int, default=64, metavar="N", help="tokens after the prompt (default: %(default)s)"
    )
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="repetitions (default: %(default)s)")
    common.add_model(parser)
    common.add_json(parser, "all figures as one JSON object")


def run(options: argparse.Namespace) -> None:
    figures = measure(options)
    if options.json:
        common.print_json(figures)
        return
    decode, prefill, probe = figures["decode"], figures["prefill"], figures["read_bandwidth"]
    used, there = decode["bytes_per_second"] / 1e9, probe["bytes_per_second"] / 1e9
    lines = [
        figures["summary"],
        f"load          {figures['load_seconds']:.2f} s",
        f"prefill       {prefill['tokens_per_second']:,.1f} tokens/s ({figures['prompt']:,} tokens)",
        f"decode        {decode['tokens_per_second']:,.1f} tokens/s "
        f"({decode['milliseconds_per_token']:.2f} ms a token, {figures['decode_tokens']:,} tokens)",
        f"read a token  {figures['bytes_per_token'] / 1e6:,.1f} MB "
        f"({figures['weight_bytes_per_token'] / 1e6:,.1f} weights, "
        f"{figures['cache_bytes_per_token'] / 1e6:,.1f} cache)",
        f"bandwidth     {used:,.1f} of {there:,.1f} GB/s: {figures['bandwidth_share']:.0%}",
    ]
    common.write("\n".join(lines) + "\n")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark and returns its figures: seconds, bytes, tokens and their quotients."""
    prompt, decode, repeat = options.prompt, options.decode, options.repeat
    for name, value in (("--prompt", prompt), ("--decode", decode), ("--repeat", repeat)):
        if value < 1:
            raise OptionError(f"{name} must be at least 1, not {value}.")
    start = time.perf_counter()
    llm = common.load_model(options)
    session = llm.session()
    load_seconds = time.perf_counter() - start
    if prompt + decode > llm.max_context:
        raise OptionError(
            f"--prompt {prompt} and --decode {decode} are {prompt + decode} tokens, the context holds "
            f"{llm.max_context}; use fewer, or a larger --context."
        )

    from llama_ext.session import progress_bar

    ids = np.random.default_rng(0).integers(0, llm.config.vocab_size, prompt + decode)
    chain = ids[prompt:].tolist()
    probe_bytes = max(1 << 20, min(llm.executor.weight_bytes, _PROBE_BYTES)) // 64 * 64
    llm.executor.read_seconds(probe_bytes)  # a first run touches pages and wakes threads
    session.prefill(ids[: min(prompt, 32)])
    prefill_seconds: list[float] = []
    decode_seconds: list[float] = []
    probe_seconds: list[float] = []
    with progress_bar(True, "measuring", " rounds") as report:
        for turn in range(repeat):
            session.reset()
            start = time.perf_counter()
            session.prefill(ids[:prompt])
            prefill_seconds.append(time.perf_counter() - start)
            start = time.perf_counter()
            for token in chain:
                session.step(token)
            decode_seconds.append(time.perf_counter() - start)
            probe_seconds.append(llm.executor.read_seconds(probe_bytes))
            report(turn + 1, repeat)

    native = llm.program.native
    # Costs grow linearly with the position inside a window, so the middle of the run stands for it.
    middle = prompt + decode // 2
    weight_bytes = llm.program.weight_bytes_per_token
    cache_bytes = sum(native.cost(index, 1, middle).cache_bytes for index in range(len(native.code)))
    seconds = statistics.median(decode_seconds) / decode
    bandwidth = probe_bytes / min(probe_seconds)
    achieved = (weight_bytes + cache_bytes) / seconds
    return {
        "model": str(llm.checkpoint.path),
        "summary": str(llm),
        "executor": describe(llm.executor),
        "threads": getattr(llm.executor, "threads", None),
        "simd": getattr(llm.executor, "simd", None),
        "prompt": prompt,
        "decode_tokens": decode,
        "repeat": repeat,
        "load_seconds": load_seconds,
        "prefill": {
            "tokens_per_second": prompt / statistics.median(prefill_seconds),
            "seconds": prefill_seconds,
        },
        "decode": {
            "tokens_per_second": 1 / seconds,
            "milliseconds_per_token": 1e3 * seconds,
            "bytes_per_second": achieved,
            "seconds": decode_seconds,
        },
        "weight_bytes_per_token": weight_bytes,
        "cache_bytes_per_token": cache_bytes,
        "bytes_per_token": weight_bytes + cache_bytes,
        "packed_weight_bytes": llm.executor.weight_bytes,
        "read_bandwidth": {
            "bytes_per_second": bandwidth,
            "probe_bytes": probe_bytes,
            "seconds": probe_seconds,
        },
        "bandwidth_share": achieved / bandwidth,
    }
