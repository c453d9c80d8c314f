"""Continue a prompt and print the text as it comes.

llama-ext generate -m smollm2 "Once upon a time"
llama-ext generate -m model.gguf --file prompt.txt --temperature 0.8 --top-p 0.95 --json
echo "def fib(n):" | llama-ext generate -m model.gguf
"""

from __future__ import annotations

import argparse
import sys

from llama_ext.cli import common
from llama_ext.errors import OptionError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", nargs="?", metavar="PROMPT", help="default: standard input")
    parser.add_argument("-p", "--prompt", metavar="PROMPT", help="the prompt, if not given by itself")
    parser.add_argument("-f", "--file", metavar="PATH", help="read the prompt from a file (- is stdin)")
    common.add_model(parser)
    common.add_sampling(parser, max_new_tokens=256)
    common.add_json(parser, "one JSON object at the end instead of the text")


def run(options: argparse.Namespace) -> None:
    common.check_sampling(options)
    prompt = _prompt(options)
    llm = common.load_model(options)
    stream = llm.stream(prompt, **common.generation_options(options))
    if options.json:
        common.print_json(stream.finish().to_dict())
    else:
        for piece in stream:
            common.write(piece)
        common.write("\n")
    if options.timings:
        print(f"{stream.result.timings}, seed {stream.result.seed}", file=sys.stderr)


def _prompt(options: argparse.Namespace) -> str:
    given = [value for value in (options.text, options.prompt, options.file) if value is not None]
    if len(given) > 1:
        raise OptionError("give the prompt once: by itself, with --prompt or with --file.")
    if options.file is not None:
        return common.read_text(options.file)
    if given:
        return str(given[0])
    if sys.stdin.isatty():
        raise OptionError('there is no prompt; give one, such as "Once upon a time", or --file.')
    # What echo and editors put at the end is no part of the prompt.
    return common.read_text("-").removesuffix("\n").removesuffix("\r")
