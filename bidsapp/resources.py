"""What this process may use: processors and memory, as the system, container or job allows."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def default_nprocs(cpus: int, mem_gb: float, per_scan_gb: float) -> int:
    """Scans that fit side by side, in processors and in memory (GB, 10^9 bytes); at least 1."""
    return max(1, min(cpus, math.floor(mem_gb / per_scan_gb)))


def available_cpus(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Processors this process may run on: its affinity (Slurm, taskset) and its cgroup's quota."""
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        cpus = os.cpu_count() or 1
    quotas = [line.split() for line in _limits("", "cpu.max", proc, cgroup)]
    v1 = [_limits("cpu", f"cpu.cfs_{what}_us", proc, cgroup) for what in ("quota", "period")]
    quotas += [list(pair) for pair in zip(*v1, strict=False)]
    shares = [int(quota) / int(period) for quota, period in quotas if quota not in ("max", "-1")]
    return max(1, math.floor(min([cpus, *shares])))


def available_memory_gb(
    proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")
) -> float:
    """Memory (GB, 10^9 bytes) that is free now, or what the cgroup is limited to if less."""
    try:
        fields = dict(line.split(":") for line in (proc / "meminfo").read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [*_limits("", "memory.max", proc, cgroup),
              *_limits("memory", "memory.limit_in_bytes", proc, cgroup)]  # fmt: skip
    return min([free, *(int(limit) for limit in limits if limit != "max")]) / 1e9


def _limits(controller: str, name: str, proc: Path, cgroup: Path) -> Iterator[str]:
    """Content of the file `name` in our cgroup and those above it; "" is the hierarchy of v2.

    Inside a container the path that the kernel tells may be the host's, which is not mounted;
    then the root of the mount holds the container's own limits.
    """
    try:
        ours = [line.split(":", 2) for line in (proc / "self/cgroup").read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in ours:
        if controller in controllers.split(","):
            here = Path(path.lstrip("/"))
            for folder in dict.fromkeys([here, *here.parents, Path()]):
                file = cgroup / controller / folder / name
                if file.is_file():
                    yield file.read_text().strip()
