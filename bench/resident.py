"""Decode a mixture of experts within less memory than it has weights, and see what that costs.

For each limit, in a fresh process: tokens a second (median of `--runs` runs of `--tokens` tokens), the most memory that
the process held by the kernel's own account (VmHWM), how often the experts that a router chose were in memory, and how
many bytes a token had to bring in. `quarter` and `half` are shares of the file's size; `none` holds all weights, if
there is memory for that. With `--cold` the file is dropped from the page cache before each run, so that every miss goes
to the disk; without, it is read once first, as far as memory reaches.

    python bench/make_model.py --preset moe-large --type q4_0 /tmp/moe.gguf
    python bench/resident.py --model /tmp/moe.gguf --limits quarter,half,none
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from _machine import CpuWindow, describe_machine

CONTEXT = 4096


def drop_from_page_cache(path: Path) -> None:
    """Tells the system that it need not keep the file."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_through(path: Path) -> None:
    """Puts the file into the page cache."""
    with path.open("rb") as file:
        while file.read(1 << 24):
            pass


def status(field: str) -> int:
    """A number of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def worker(options: argparse.Namespace) -> dict[str, Any]:
    """One limit: loads, decodes, prints what it took."""
    import llama_ext

    started = time.perf_counter()
    llm = llama_ext.load(
        options.model, threads=options.threads, max_context=CONTEXT, resident_limit=options.limit or None
    )
    load = time.perf_counter() - started
    session = llm.session()
    ids = np.random.default_rng(1).integers(0, llm.config.vocab_size, options.tokens * (options.runs + 1)).tolist()
    for token in ids[: options.tokens]:  # the first run fills the budget
        session.step(token)
    rates, hits, misses, foreign = [], 0, 0, 0.0
    for run in range(1, options.runs + 1):
        if options.cold:
            drop_from_page_cache(Path(options.model))
        before = llm.executor.residency or {"hits": 0, "misses": 0}
        window = CpuWindow()
        started = time.perf_counter()
        for token in ids[run * options.tokens : (run + 1) * options.tokens]:
            session.step(token)
        rates.append(options.tokens / (time.perf_counter() - started))
        foreign = max(foreign, window.close(options.threads)["foreign"] or 0.0)
        after = llm.executor.residency or before
        hits += after["hits"] - before["hits"]
        misses += after["misses"] - before["misses"]
    experts = llm.checkpoint.experts
    layers, used = sum(llm.config.moe_layers), llm.config.num_experts_per_tok
    # An expert comes in two parts; misses count those.
    part = sum(w.nbytes for w in experts) / len({w.name for w in experts}) * 3 / 2
    return {
        "limit": options.limit,
        "tokens_per_second": statistics.median(rates),
        "rates": rates,
        "load_seconds": load,
        "most_resident": status("VmHWM"),
        "residency": llm.executor.residency,
        "hit_rate": hits / (hits + misses) if hits + misses else 1.0,
        "bytes_brought_in_per_token": misses * part / (options.runs * options.tokens),
        "expert_bytes_per_token": layers * used * 2 * part,
        "foreign_share": foreign,
    }


def limit_bytes(text: str, size: int) -> int:
    """Bytes of a limit: a share of the file by name, a number of bytes, or 0 for none."""
    named = {"none": 0, "quarter": size // 4, "third": size // 3, "half": size // 2}
    if text in named:
        return named[text]
    from llama_ext.loading import byte_count

    return byte_count("--limits", text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a .gguf file of a mixture of experts")
    parser.add_argument("--limits", default="quarter,half,none", help="a list (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--tokens", type=int, default=32, help="a run (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--cold", action="store_true", help="drop the file from the page cache before each run")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--limit", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.limit is not None:
        print(json.dumps(worker(options)))
        return 0

    path = Path(options.model)
    try:
        size = path.stat().st_size
        limits = [limit_bytes(text, size) for text in options.limits.split(",")]
    except (OSError, ValueError) as error:
        print(f"resident: {error}", file=sys.stderr)
        return 2
    if not options.cold:
        read_through(path)
    results = []
    print(f"{path.name}: {size / 1e9:.2f} GB, {options.threads} threads, {'cold' if options.cold else 'warm'}")
    print(f"{'limit':>10}{'most held':>12}{'tokens/s':>10}{'in memory':>11}{'brought in a token':>20}{'others':>8}")
    for limit in limits:
        command = [sys.executable, __file__, "--model", str(path), "--limit", str(limit)]
        command += ["--threads", str(options.threads), "--tokens", str(options.tokens), "--runs", str(options.runs)]
        done = subprocess.run(command + ["--cold"] * options.cold, capture_output=True, text=True, check=False)
        name = f"{limit / 1e9:.2f} GB" if limit else "none"
        if done.returncode:
            print(f"{name:>10}  {done.stderr.strip().splitlines()[-1]}")
            continue
        facts = json.loads(done.stdout)
        results.append(facts)
        print(
            f"{name:>10}{facts['most_resident'] / 1e9:>9.2f} GB{facts['tokens_per_second']:>10.2f}"
            f"{facts['hit_rate']:>11.0%}{facts['bytes_brought_in_per_token'] / 1e6:>17.0f} MB"
            f"{facts['foreign_share']:>8.0%}"
        )
    if options.json:
        settings = {key: getattr(options, key) for key in ("threads", "tokens", "runs", "cold")}
        facts = {"model": path.name, "bytes": size, "settings": settings, "machine": describe_machine()}
        print(json.dumps({**facts, "results": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
