"""The command as a process: signals, pipes, a terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
# -P: in a fresh clone the source folder, which has no compiled part, would hide the installed package.
COMMAND = [sys.executable, "-P", "-m", "llama_ext"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


def hear_interrupts() -> None:
    """A test run that a shell put in the background ignores SIGINT, and so would the programs it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_as_a_module(tiny_file: str) -> None:
    result = subprocess.run(
        [*COMMAND, "generate", "-m", tiny_file, "abc", "-n", "5"],
        capture_output=True,
        timeout=60,
        env=ENVIRONMENT,
        check=False,
    )
    assert result.returncode == 0 and result.stderr == b"" and len(result.stdout) > 1


def test_a_closed_pipe() -> None:
    process = subprocess.Popen(
        [*COMMAND, "generate", "-m", "smollm2", "Once upon a time", "-n", "2000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.read(5)
    process.stdout.close()
    assert process.wait(timeout=30) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


def test_ctrl_c() -> None:
    process = subprocess.Popen(
        [*COMMAND, "generate", "-m", "smollm2", "Once upon a time", "-n", "2000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        preexec_fn=hear_interrupts,
    )
    assert process.stdout is not None
    assert process.stdout.read(5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and errors == b"\n"


class Terminal:
    """A program that believes in a terminal."""

    def __init__(self, *arguments: str) -> None:
        self.ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=ENVIRONMENT,
            preexec_fn=hear_interrupts,
            close_fds=True,
        )
        os.close(theirs)
        self.seen = b""

    def expect(self, text: str, seconds: float = 30) -> None:
        """Reads until `text` has come after what was expected before."""
        deadline = time.monotonic() + seconds
        while text.encode() not in self.seen:
            ready, _, _ = select.select([self.ours], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no {text!r} in {self.seen!r}"
            self.seen += os.read(self.ours, 4096)
        self.seen = self.seen.split(text.encode(), 1)[1]

    def type(self, line: str) -> None:
        os.write(self.ours, line.encode())

    def close(self) -> int:
        status = self.process.wait(timeout=30)
        os.close(self.ours)
        return status


def test_a_conversation_on_a_terminal() -> None:
    terminal = Terminal("chat", "-m", "smollm2")
    try:
        terminal.expect("Ctrl-C stops an answer")
        terminal.expect("> ")
        terminal.type("What is the capital of France?\n")
        terminal.expect("Paris")
        terminal.expect("> ")
        terminal.type("Write a very long story about the sea.\n")
        terminal.expect("story about the sea.")
        terminal.expect(" the ")
        terminal.process.send_signal(signal.SIGINT)
        terminal.expect("[stopped]")
        terminal.expect("> ")
        # At the prompt it only explains. (readline prints the prompt just before it listens for signals.)
        time.sleep(0.3)
        terminal.process.send_signal(signal.SIGINT)
        terminal.expect("Ctrl-C stops an answer")
        terminal.expect("> ")
        terminal.type("/reset\n")
        terminal.expect("> ")
        terminal.type("\x04")
        assert terminal.close() == 0
    finally:
        terminal.process.kill()


def test_closed_streams_and_a_full_disk(tiny_file: str) -> None:
    def shell(redirections: str) -> subprocess.CompletedProcess[bytes]:
        words = [*COMMAND, "generate", "-m", tiny_file, "abc", "-n", "3"]
        return subprocess.run(
            ["sh", "-c", f'exec "$@" {redirections}', "sh", *words],
            capture_output=True,
            timeout=60,
            env=ENVIRONMENT,
            check=False,
        )

    for closed in (">&-", "<&-", "<&- >&- 2>&-"):
        result = shell(closed)
        assert (result.returncode, result.stderr) == (0, b"")
    result = shell("> /dev/full")
    assert result.returncode == 2
    assert result.stderr == b"llama-ext: error: standard output: No space left on device.\n"
