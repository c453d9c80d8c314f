"""What drafting brings: the same answers with and without, in turn.

A prompt is answered greedily by plain decoding and with a drafter, one right after the other, `--rounds` times; who is
first alternates. For each prompt: the median of the rounds' quotients in tokens a second of decoding, the passes, and
how many drafted tokens were right. The answers must be the same, token by token, or it says so and fails.

    python bench/drafting.py                                   # SmolLM2 and prompt lookup
    python bench/drafting.py --model big.gguf --draft small.gguf
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from typing import Any

from _machine import CpuWindow, describe_machine, physical_cores

import llama_ext

CODE = """\
class Account:
    def __init__(self, owner, balance=0):
        self.owner = owner
        self.balance = balance
        self.history = []

    def deposit(self, amount):
        if amount <= 0:
            raise ValueError("amount must be positive")
        self.balance += amount
        self.history.append(("deposit", amount))

    def withdraw(self, amount):
        if amount <= 0:
            raise ValueError("amount must be positive")
        if amount > self.balance:
            raise ValueError("not enough money")
        self.balance -= amount
        self.history.append(("withdraw", amount))

    def report(self):
        for kind, amount in self.history:
            print(f"{kind}: {amount}")
        print(f"balance of {self.owner}: {self.balance}")
"""
TEXT = (
    "The harbour of Port Ellen lies on the south coast of the island. In the morning the ferry brings the post, the "
    "papers and a dozen visitors, most of whom walk straight to the old distillery on the hill. The path is steep, "
    "and in winter it is often covered with ice, so the council has put a handrail along the wall. From the top one "
    "can see the lighthouse, the three small islands where the seals live, and on clear days the coast of Ireland. "
    "In the evening the ferry returns, and the harbour is quiet again."
)
PROMPTS = {
    "edit code": f"Rename the class Account to Wallet and return the whole program:\n\n```python\n{CODE}```",
    "edit a text": f"Correct the mistakes in this text and change nothing else:\n\n{TEXT}",
    "summarise": f"Summarize this text:\n\n{TEXT}",
    "tell a story": "Tell a story about a fox and a crow.",
}


def measure(llms: dict[str, llama_ext.Llama], prompt: str, options: argparse.Namespace) -> dict[str, Any]:
    """Rounds of one prompt. -> medians, and what others used of the processors at the worst"""
    messages = [{"role": "user", "content": prompt}]
    rates: dict[str, list[float]] = {name: [] for name in llms}
    last: dict[str, llama_ext.GenerationResult] = {}
    foreign = 0.0
    for round_ in range(options.rounds + 1):  # the first is not counted
        for name in sorted(llms, reverse=bool(round_ % 2)):
            window = CpuWindow()
            last[name] = llms[name].chat(messages, max_new_tokens=options.tokens, draft_tokens=options.draft_tokens)
            if round_:
                rates[name].append(last[name].timings.tokens_per_second)
                foreign = max(foreign, window.close(options.threads)["foreign"] or 0.0)
    if last["drafted"].token_ids != last["plain"].token_ids:
        raise SystemExit("the answers differ: drafting must not change them")
    timings = last["drafted"].timings
    return {
        "tokens": timings.generated_tokens,
        "passes": timings.passes,
        "drafted_tokens": timings.drafted_tokens,
        "accepted_tokens": timings.accepted_tokens,
        "acceptance": timings.acceptance,
        "plain_tok_s": statistics.median(rates["plain"]),
        "drafted_tok_s": statistics.median(rates["drafted"]),
        "ratio": statistics.median(d / p for d, p in zip(rates["drafted"], rates["plain"], strict=True)),
        "others": foreign,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="what llama_ext.load takes (default: %(default)s)")
    parser.add_argument("--draft", default="lookup", help="lookup, or a smaller model (default: %(default)s)")
    parser.add_argument("--draft-tokens", type=int, default=15, help="for a pass at most (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--tokens", type=int, default=256, help="of an answer at most (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args()
    drafted = llama_ext.load(options.model, threads=options.threads, draft=options.draft)
    llms = {"plain": llama_ext.Llama(drafted.checkpoint, drafted.executor), "drafted": drafted}
    results = {name: measure(llms, prompt, options) for name, prompt in PROMPTS.items()}
    if options.json:
        settings = {name: getattr(options, name) for name in ("model", "draft", "draft_tokens", "threads", "rounds")}
        print(
            json.dumps({"bench": "drafting", "settings": settings, "results": results, "machine": describe_machine()})
        )
        return
    print(f"{'':14}{'plain tok/s':>12}{'drafted':>10}{'ratio':>8}{'tokens':>8}{'passes':>8}{'accepted':>16}")
    for name, r in results.items():
        accepted = f"{r['accepted_tokens']} of {r['drafted_tokens']}"
        print(
            f"{name:14}{r['plain_tok_s']:12.1f}{r['drafted_tok_s']:10.1f}{r['ratio']:8.2f}{r['tokens']:8}{r['passes']:8}"
            f"{accepted:>16}"
        )
    worst = max(r["others"] for r in results.values())
    print(f"others used at most {100 * worst:.1f}% of the processors", file=sys.stderr)


if __name__ == "__main__":
    main()
