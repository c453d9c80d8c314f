"""Talk with a model. With a message, answer it and end; without one, converse.

  llama-ext chat -m smollm2 "What is the capital of France?"
  llama-ext chat -m model.gguf --system "Answer in one sentence."

In a conversation Ctrl-C stops an answer, Ctrl-D ends the program, and these lines are commands:
  /reset   forget the conversation
  /quit    end the program
  /help    list the commands
Without a terminal each line of standard input is a message.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from typing import TYPE_CHECKING

from llama_ext.cli import common
from llama_ext.errors import ContextError, OptionError

if TYPE_CHECKING:
    from llama_ext.decoder import Llama

__all__ = ["add_arguments", "run"]

_HELP = "/reset forgets the conversation, /quit (or Ctrl-D) ends the program, Ctrl-C stops an answer."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("message", nargs="?", metavar="MESSAGE", help="answer this and end")
    parser.add_argument("-p", "--prompt", metavar="MESSAGE", help="the message, if not given by itself")
    parser.add_argument("--system", metavar="TEXT", help="what the model shall be and do")
    common.add_model(parser)
    common.add_sampling(parser, max_new_tokens=1024)
    common.add_json(parser, "one JSON object an answer instead of the text")


def run(options: argparse.Namespace) -> None:
    common.check_sampling(options)
    if options.message is not None and options.prompt is not None:
        raise OptionError("give the message once: by itself or with --prompt.")
    message = options.message if options.prompt is None else options.prompt
    if message is not None and not message.strip():
        raise OptionError("the message is empty; give one, or leave it out to converse.")
    conversation = _Conversation(common.load_model(options), options)
    if message is not None:
        conversation.say(message)
    else:
        _converse(conversation, options)


class _Conversation:
    def __init__(self, llm: Llama, options: argparse.Namespace) -> None:
        self._llm = llm
        _ = llm.chat_template  # a model without one says so now, not after the first message
        self._options = options
        self.messages: list[dict[str, str]] = []
        self.reset()

    def reset(self) -> None:
        system = self._options.system
        self.messages = [] if system is None else [{"role": "system", "content": system}]

    def say(self, message: str, *, interruptible: bool = False) -> None:
        """Answers `message` on stdout. What fails leaves the conversation as it was."""
        before = list(self.messages)
        self.messages.append({"role": "user", "content": message})
        pieces: list[str] = []
        try:
            stream = self._llm.chat_stream(self.messages, **common.generation_options(self._options))
            for piece in stream:
                pieces.append(piece)
                if not self._options.json:
                    common.write(piece)
        except KeyboardInterrupt:
            if not interruptible:
                raise
            if pieces and not self._options.json and not _on_terminals(self._options):
                common.write("\n")
            _say(" [stopped]\n", self._options)
            # The part that was said belongs to the conversation; a question without an answer does not.
            answer = {"role": "assistant", "content": "".join(pieces)}
            self.messages = [*self.messages, answer] if pieces else before
            return
        except BaseException:
            self.messages = before
            raise
        self.messages.append({"role": "assistant", "content": stream.result.text})
        if self._options.json:
            common.print_json(stream.result.to_dict())
        else:
            common.write("\n")
        if self._options.timings:
            print(f"{stream.result.timings}, seed {stream.result.seed}", file=sys.stderr)


def _on_terminals(options: argparse.Namespace) -> bool:
    """Whether someone types and reads here, so that standard output may hold more than answers."""
    return sys.stdin.isatty() and sys.stdout.isatty() and not options.json


def _say(text: str, options: argparse.Namespace) -> None:
    """Shows what is no answer."""
    stream = sys.stdout if _on_terminals(options) else sys.stderr
    print(text, end="", file=stream, flush=True)


def _converse(conversation: _Conversation, options: argparse.Namespace) -> None:
    terminal = sys.stdin.isatty()
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (line editing in input())
        print(_HELP, file=sys.stderr)
    while True:
        try:
            if terminal and not _on_terminals(options):
                _say("> ", options)
            line = input("> " if _on_terminals(options) else "").strip()
        except EOFError:
            if terminal:
                _say("\n", options)
            return
        except UnicodeDecodeError as error:
            raise OptionError(f"the message is no UTF-8 text (byte {error.start}).") from None
        except OSError as error:
            error.filename = error.filename or "standard input"
            raise
        except KeyboardInterrupt:
            if not terminal:
                raise
            print(f"\n{_HELP}", file=sys.stderr)
            continue
        match line:
            case "":
                pass
            case "/quit" | "/exit":
                return
            case "/reset":
                conversation.reset()
            case "/help":
                print(_HELP, file=sys.stderr)
            case _ if re.fullmatch(r"/\w+", line):
                print(f"There is no command {line}. {_HELP}", file=sys.stderr)
            case _:
                try:
                    conversation.say(line, interruptible=terminal)
                except ContextError as error:
                    sentence = common.in_words_of_the_command_line(str(error))
                    print(f"llama-ext: {sentence} /reset begins anew.", file=sys.stderr)
