"""The command line: `llama-ext generate | chat | bench | perplexity | inspect | convert`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from llama_ext import __version__
from llama_ext.cli import common
from llama_ext.errors import CheckpointError, LlamaExtError

__all__ = ["build_parser", "main"]

_COMMANDS = {
    "generate": "continue a prompt",
    "chat": "talk with a model",
    "bench": "measure tokens a second, and the share of the memory bandwidth they use",
    "perplexity": "measure how well a model predicts a text",
    "inspect": "show what a model consists of, without loading it",
    "convert": "write a model as a GGUF file",
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="llama-ext", description="Decode models of the Llama family, one person at a time, fast."
    )
    parser.add_argument("--version", action="version", version=f"llama-ext {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in _COMMANDS.items():
        module = importlib.import_module(f"llama_ext.cli.{name}")
        command = commands.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        The exit status: 0, 2 where the user can mend what went wrong (said in one line on stderr), 130 after
        Ctrl-C, 141 where nobody reads the output any more.
    """
    _fill_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character shows "?"
    try:
        options = build_parser().parse_args(arguments)
        options.run(options)
        common.write("")
    except BrokenPipeError:
        _drop_output()
        return 141
    except CheckpointError as error:  # speaks of a file
        return _fail(str(error))
    except LlamaExtError as error:
        return _fail(common.in_words_of_the_command_line(str(error)))
    except OSError as error:
        if error.filename == common.STDOUT:
            _drop_output()
        return _fail(f"{error.filename}: {error.strerror}." if error.filename else str(error))
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    return 0


def _fill_closed_streams() -> None:
    """Gives the streams that the caller closed (`<&-`, `>&-`), which Python leaves None, to nowhere."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (open to the end)


def _drop_output() -> None:
    # What is still buffered has nowhere to go; without this the interpreter would complain at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str) -> int:
    print(f"llama-ext: error: {message}", file=sys.stderr)
    return 2
