"""The machine a figure was taken on, and how much of it other processes used meanwhile (Linux)."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "CpuWindow",
    "describe_machine",
    "foreign_share",
    "judge",
    "memory_of_this_process",
    "physical_cores",
    "usable_cpus",
]

#: The instruction sets that decide how fast a decoder can be.
FLAGS_OF_INTEREST = frozenset(
    {
        *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512vbmi"),
        *("avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
        *("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2"),
    }
)

#: The share of a window up to which a tick may stand before /proc/stat is too coarse for it.
TICKS_TELL = 0.06


def usable_cpus() -> set[int]:
    """The logical processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _quota() -> float | None:
    """The control group's limit in processors, if it has one."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        return None


def physical_cores() -> int:
    """The physical cores that this process may use: hardware threads of one core count once."""
    cores = set()
    for cpu in usable_cpus():
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text().strip())
        except OSError:
            cores.add(str(cpu))
    quota = _quota()
    return max(1, min(len(cores), int(quota)) if quota else len(cores))


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory and system: what a reader needs to place a figure."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    memory = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "family": fields.get("cpu family"),
        "model": fields.get("model"),
        "flags": sorted(FLAGS_OF_INTEREST & flags),
        "cores": physical_cores(),
        "logical_cpus": len(usable_cpus()),
        "memory_bytes": memory,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def memory_of_this_process() -> dict[str, int]:
    """Bytes in memory now and at the highest, pages of mapped files included."""
    sizes = {}
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            key, _, value = line.partition(":")
            if key in ("VmHWM", "VmRSS", "RssAnon", "RssFile"):
                sizes[key] = int(value.split()[0]) * 1024
    except OSError:
        pass
    return sizes


def busy_seconds(stat: str, cpus: set[int], ticks_per_second: int) -> float:
    """The seconds that `cpus` were busy since boot, from the text of /proc/stat.

    Stolen time counts: another guest of the same host disturbs as a process here does. Guest time is
    part of user time.
    """
    total = 0
    for line in stat.splitlines():
        name, *fields = line.split() or [""]
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cpus:
            user, nice, system, _idle, _wait, interrupts, soft, steal = (
                int(field) for field in [*fields, *"0" * 8][:8]
            )
            total += user + nice + system + interrupts + soft + steal
    return total / ticks_per_second


def foreign_share(busy: float, own: float, wall: float, threads: int, slack: float) -> float:
    """The share of `threads` processors that others took for `wall` seconds.

    `busy` is what all processes used, `own` what the measured one did; `slack` seconds are what the
    ticks of /proc/stat cannot tell apart. Two of three threads' time taken by others is 0.67.
    """
    if wall <= 0:
        return 0.0
    return max(0.0, busy - own - slack) / (wall * threads)


def judge(others: float | None, waiting: float | None, resolution: float) -> float | None:
    """The share of its processors that a turn lost to others, from what there is to tell it by.

    `others` is their share by /proc/stat, which counts in ticks: good for a window that is long against
    them. In a shorter one (`resolution` is a tick's share of it) what tells is `waiting`: how long the
    process's threads were ready to run and did not, to the nanosecond. It is the second choice because
    threads of one process can also wait for each other's processor.
    """
    if others is not None and resolution <= TICKS_TELL:
        return others
    return waiting


def waiting_seconds() -> float | None:
    """How long this process's threads have been ready to run without running, all together."""
    total = 0
    try:
        for file in Path("/proc/self/task").glob("*/schedstat"):
            total += int(file.read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return total / 1e9


@dataclass(frozen=True)
class _Instant:
    wall: float
    own: float
    busy: float | None
    waiting: float | None


class CpuWindow:
    """Measures, from its creation to `close`, what this process and all others used of the processors."""

    def __init__(self) -> None:
        self._cpus = usable_cpus()
        self._ticks = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
        self._start = self._now()

    def _now(self) -> _Instant:
        try:
            busy = busy_seconds(Path("/proc/stat").read_text(), self._cpus, self._ticks)
        except (OSError, ValueError):
            busy = None
        waiting = waiting_seconds()
        return _Instant(time.perf_counter(), time.process_time(), busy, waiting)

    def close(self, threads: int) -> dict[str, float | None]:
        """What the window saw, None where the system does not tell.

        `wall` seconds, `own` processor seconds, the share that `others` used by /proc/stat, the share
        of its time that this process spent `waiting`, and `foreign`: which of the two is to be
        believed.
        """
        end, start = self._now(), self._start
        wall, own = end.wall - start.wall, end.own - start.own
        slack = len(self._cpus) / self._ticks  # a tick a processor
        others = waiting = None
        if end.busy is not None and start.busy is not None:
            others = foreign_share(end.busy - start.busy, own, wall, threads, slack)
        if end.waiting is not None and start.waiting is not None:
            waiting = max(0.0, end.waiting - start.waiting) / (wall * threads)
        foreign = judge(others, waiting, slack / (wall * threads))
        return {"wall": wall, "own": own, "others": others, "waiting": waiting, "foreign": foreign}
