"""What this machine lets the process use: processors and memory."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["available_memory", "cpu_quota", "physical_cores", "resident_memory", "usable_cpus"]


def usable_cpus() -> set[int]:
    """The logical processors that this process may be scheduled on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def physical_cores(root: Path = Path("/"), cpus: Iterable[int] | None = None) -> int:
    """The cores that this process may keep busy: the default number of threads.

    Hardware threads of one core count once (they share its memory ports, a second one adds nothing), and a
    container's share of processor time counts, rounded up.

    Args:
        root: where /sys and /proc are found; for tests.
        cpus: the processors to count; None: those of the process's affinity mask.
    """
    cores = set()
    for cpu in usable_cpus() if cpus is None else cpus:
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        siblings = _text(topology / "core_cpus_list") or _text(topology / "thread_siblings_list")
        cores.add(siblings or str(cpu))
    quota = cpu_quota(root)
    count = len(cores) if quota is None else min(len(cores), math.ceil(quota))
    return max(1, count)


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Processors' worth of time that the control groups (v1 or v2) of this process grant, None: no limit.

    A limit of any enclosing group holds, so the smallest counts.
    """
    limits: list[float] = []
    groups = root / "sys/fs/cgroup"
    for line in (_text(root / "proc/self/cgroup") or "0::/").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            for folder in _ancestors(groups, path):
                limits += _ratio(*_text(folder / "cpu.max").split()[:2])
        elif "cpu" in controllers.split(","):
            for name in dict.fromkeys((controllers, "cpu", "cpu,cpuacct")):
                for folder in _ancestors(groups / name, path):
                    limits += _ratio(_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us"))
    return min(limits, default=None)


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes of memory that this process may still take; None where the system does not tell.

    The smaller of what the machine has to give (`MemAvailable`, which counts the page cache as free) and what each
    enclosing control group (v1 or v2) grants beyond what its processes hold now, their page cache not counted.

    Args:
        root: where /sys and /proc are found; for tests.
    """
    limits: list[int] = []
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        amount = rest.split()
        if name == "MemAvailable" and amount and amount[0].isdecimal():
            limits.append(int(amount[0]) * 1024)
    groups = root / "sys/fs/cgroup"
    for line in (_text(root / "proc/self/cgroup") or "0::/").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            for folder in _ancestors(groups, path):
                limits += _grant(folder, "memory.max", ("anon", "shmem"))
        elif "memory" in controllers.split(","):
            for folder in _ancestors(groups / "memory", path):
                limits += _grant(folder, "memory.limit_in_bytes", ("total_rss", "total_shmem"))
    return min(limits, default=None)


def resident_memory(root: Path = Path("/")) -> int:
    """Bytes of this process that lie in memory now; 0 where the system does not tell."""
    for line in _text(root / "proc/self/status").splitlines():
        name, _, rest = line.partition(":")
        amount = rest.split()
        if name == "VmRSS" and amount and amount[0].isdecimal():
            return int(amount[0]) * 1024
    return 0


def _grant(folder: Path, name: str, held: tuple[str, ...]) -> list[int]:
    """[what the group `folder` still grants], [] where there is no limit ("max") or no such file."""
    text = _text(folder / name)
    if not text.isdecimal() or int(text) >= 2**62:  # version 1 writes "no limit" as nearly 2**63
        return []
    counts = dict(line.split(" ", 1) for line in _text(folder / "memory.stat").splitlines() if " " in line)
    used = sum(int(counts[key]) for key in held if counts.get(key, "").isdecimal())
    return [max(0, int(text) - used)]


def _ancestors(mount: Path, path: str) -> list[Path]:
    # Inside a container the path may be the host's: what is not there is passed over, down to the mount.
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return [mount.joinpath(*parts[:length]) for length in range(len(parts), -1, -1)]


def _ratio(quota: str = "", period: str = "100000") -> list[float]:
    """[quota / period] in processors, [] where there is no limit ("max", -1) or no such file."""
    try:
        microseconds, of = int(quota), int(period)
    except ValueError:
        return []
    return [microseconds / of] if microseconds > 0 and of > 0 else []


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""
