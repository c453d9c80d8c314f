"""Cores and quotas, on made-up trees of /sys and /proc."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from llama_ext.machine import cpu_quota, physical_cores, usable_cpus


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def cpus(siblings: Mapping[int, str], name: str = "thread_siblings_list") -> dict[str, str]:
    return {f"sys/devices/system/cpu/cpu{cpu}/topology/{name}": text for cpu, text in siblings.items()}


def test_this_machine() -> None:
    assert 1 <= physical_cores() <= len(usable_cpus())


def test_threads_of_a_core_count_once(tmp_path: Path) -> None:
    root = tree(tmp_path, cpus({0: "0,4", 1: "1,5", 2: "2,6", 3: "3,7", 4: "0,4", 5: "1,5", 6: "2,6", 7: "3,7"}))
    assert physical_cores(root, range(8)) == 4
    assert physical_cores(root, [0, 4]) == 1
    assert physical_cores(root, [0, 1, 4]) == 2
    assert physical_cores(root, [5]) == 1


def test_the_newer_name_of_the_list(tmp_path: Path) -> None:
    root = tree(tmp_path, cpus({0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}, "core_cpus_list"))
    assert physical_cores(root, range(4)) == 2


def test_no_topology(tmp_path: Path) -> None:
    assert physical_cores(tmp_path, range(3)) == 3
    assert physical_cores(tmp_path, []) == 1
    assert cpu_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "quota", "cores"),
    [
        ("max 100000", None, 8),
        ("200000 100000", 2.0, 2),
        ("150000 100000", 1.5, 2),
        ("10000 100000", 0.1, 1),
        ("1600000 100000", 16.0, 8),
        ("max", None, 8),
        ("nonsense here", None, 8),
        ("0 100000", None, 8),
    ],
)
def test_quotas_of_version_2(tmp_path: Path, text: str, quota: float | None, cores: int) -> None:
    root = tree(tmp_path, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": text})
    assert cpu_quota(root) == quota
    assert physical_cores(root, range(8)) == cores


def test_the_smallest_enclosing_quota_holds(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user.slice/run-1.scope",
            "sys/fs/cgroup/user.slice/cpu.max": "300000 100000",
            "sys/fs/cgroup/user.slice/run-1.scope/cpu.max": "max 100000",
        },
    )
    assert cpu_quota(root) == 3
    tree(root, {"sys/fs/cgroup/user.slice/run-1.scope/cpu.max": "120000 100000"})
    assert cpu_quota(root) == 1.2


@pytest.mark.parametrize("folder", ["cpu,cpuacct", "cpu"])
def test_quotas_of_version_1(tmp_path: Path, folder: str) -> None:
    root = tree(
        tmp_path,
        {
            # The host's path, which does not exist inside the container.
            "proc/self/cgroup": "12:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/system.slice",
            f"sys/fs/cgroup/{folder}/cpu.cfs_quota_us": "250000",
            f"sys/fs/cgroup/{folder}/cpu.cfs_period_us": "100000",
        },
    )
    assert cpu_quota(root) == 2.5 and physical_cores(root, range(8)) == 3
    tree(root, {f"sys/fs/cgroup/{folder}/cpu.cfs_quota_us": "-1"})
    assert cpu_quota(root) is None and physical_cores(root, range(8)) == 8
