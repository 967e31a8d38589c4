"""A real SLURM of one node on this machine, for as long as a test or benchmark takes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel")
CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
MaxArraySize=9
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName=localhost NodeAddr=127.0.0.1 NodeHostname={host} CPUs=2 RealMemory={memory} State=UNKNOWN
PartitionName=tests Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Slurm:
    """A running SLURM, and the environment in which its commands find it."""

    folder: Path
    environment: Mapping[str, str]

    def run(self, *command: object, **variables: str) -> str:
        """What a command prints; its messages too where it fails."""
        done = subprocess.run(
            list(map(str, command)), env={**self.environment, **variables}, check=False,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def jobs(self) -> dict[str, str]:
        """State of every task that waits or runs, by its name such as ``4_2``."""
        lines = self.run("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)

    def wait(self, seconds: float = 1800) -> None:
        """Until nothing is left to do."""
        deadline = time.monotonic() + seconds
        while self.jobs():
            assert time.monotonic() < deadline, self.jobs()
            time.sleep(0.5)


def why_not() -> str:
    """What keeps SLURM from being started here; empty if nothing does."""
    absent = [name for name in PROGRAMS if not shutil.which(name, path=PATH)]
    if absent:
        return f"no SLURM: {', '.join(absent)} not found (Debian: slurm-wlm, munge)"
    return "" if os.geteuid() == 0 else "starting SLURM takes root"


@contextmanager
def local_slurm(folder: Path) -> Iterator[Slurm]:
    """Start it, with all its files in `folder`; end its jobs and daemons at the end."""
    environment = {**os.environ, "PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(
            folder=folder, host=socket.gethostname(), ports=_free_ports(2), memory=_memory_mb()
        )
    )
    slurm = Slurm(folder, environment)
    munge = {
        f"--{name}={folder}/munge.{name.removesuffix('-file')}"
        for name in ("socket", "key-file", "pid-file", "log-file", "seed-file")
    }
    slurm.run("munged", "--force", *munge)
    try:
        slurm.run("slurmctld")
        slurm.run("slurmd", "-N", "localhost")
        _until_idle(slurm)
        yield slurm
        for state in ("PENDING", "RUNNING"):
            slurm.run("scancel", f"--state={state}", "--user=root")
        slurm.wait(60)
    finally:
        subprocess.run(["scontrol", "shutdown"], env=environment, check=False)
        subprocess.run(["munged", "--stop", f"--socket={folder}/munge.socket"], env=environment,
                       check=False)  # fmt: skip


def _until_idle(slurm: Slurm) -> None:
    for _ in range(240):
        state = slurm.run("scontrol", "--oneliner", "show", "node", "localhost")
        if "State=IDLE" in state:
            return
        time.sleep(0.5)
    raise AssertionError(state)


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _memory_mb() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20 - 1000
