"""What the system, a container or a job allows."""

import os

import pytest

from bidsapp.resources import available_cpus, available_memory_gb, default_nprocs


@pytest.mark.parametrize(
    ("cpus", "mem_gb", "per_scan_gb", "expected"),
    [(8, 64, 2, 8), (8, 9, 2, 4), (8, 1, 2, 1), (1, 64, 2, 1), (2, 4.0, 2.0, 2)],
)
def test_default_nprocs(cpus, mem_gb, per_scan_gb, expected):
    assert default_nprocs(cpus, mem_gb, per_scan_gb) == expected


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A made-up machine with 16 processors and 8.192 GB free; returns a function to limit it."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(16)), raising=False)

    def write(membership: str, **limits: str):
        memory = "MemTotal: 16000000 kB\nMemAvailable:    8000000 kB\n"
        files = {"proc/self/cgroup": membership, "proc/meminfo": memory, **limits}
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        places = tmp_path / "proc", tmp_path / "cgroup"
        return available_cpus(*places), available_memory_gb(*places)

    return write


CASES = {
    "no limits": ("", {}, 16, 8.192),
    "v2, of a group above": (
        "0::/job/step\n",
        {"cgroup/job/memory.max": "3000000000", "cgroup/job/step/memory.max": "max",
         "cgroup/job/step/cpu.max": "max 100000", "cgroup/job/cpu.max": "250000 100000"},
        2, 3.0,
    ),
    "v2, inside a container": (
        "0::/\n", {"cgroup/memory.max": "2000000000", "cgroup/cpu.max": "50000 100000"}, 1, 2.0,
    ),
    "v1, of the container though named by the host": (
        "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n",
        {"cgroup/memory/memory.limit_in_bytes": "1500000000",
         "cgroup/cpu/cpu.cfs_quota_us": "400000", "cgroup/cpu/cpu.cfs_period_us": "100000"},
        4, 1.5,
    ),
    "v1, unlimited": (
        "5:cpu,cpuacct:/\n4:memory:/\n",
        {"cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
         "cgroup/cpu/cpu.cfs_quota_us": "-1", "cgroup/cpu/cpu.cfs_period_us": "100000"},
        16, 8.192,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_limits(machine, case):
    membership, limits, cpus, mem_gb = CASES[case]
    assert machine(membership, **limits) == (cpus, pytest.approx(mem_gb))


def test_this_machine():
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)
    assert available_memory_gb() > 0.1
