"""hpc/slurm.sh on a real SLURM: what it submits, what it repeats, and that results agree."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.cluster.local_slurm import Slurm

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "hpc" / "slurm.sh"
SCANS = 8

STAND_IN = """\
#!/bin/bash
# Stands for brainage: a scan is done by touching its record; sub-bad never is.
bids=$1 out=$2 labels=()
[[ $* != *--output-level\\ minimal* ]] && exit 5
while (($#)); do
    [[ $1 == --participant-label ]] && labels=("${@:2}") && break
    shift
done
if [[ ${*: -1} == --dry-run || ${#labels[@]} == 0 ]]; then
    for scan in "$bids"/sub-*; do
        name=${scan##*/}
        [[ -e $out/$name.json ]] && there=' (has a record)' || there=''
        echo "$name: $scan -> $out/$name.json$there"
    done
    exit
fi
code=0
for label in "${labels[@]}"; do
    echo "$label" >> "$out/began.txt"
    [[ $label == sub-bad ]] && code=1 || touch "$out/$label.json"
done
exit $code
"""


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """The stand-in, a data set of five participants, and an output folder."""
    program = tmp_path / "brainage"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    for label in ("01", "02", "03", "04", "bad"):
        (tmp_path / "bids" / f"sub-{label}").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    return program, tmp_path / "bids", tmp_path / "out"


def submit(slurm: Slurm, *arguments: object, **variables: str) -> str:
    # The machine of the tests may have less memory than the script asks for.
    variables = {"SBATCH_MEM_PER_NODE": "1000", **variables}
    said = slurm.run(SCRIPT, *arguments, **variables)
    return said


def began(out: Path) -> list[str]:
    path = out / "began.txt"
    return sorted(path.read_text().split()) if path.exists() else []


def test_only_failures_are_submitted_again(slurm: Slurm, folders: tuple[Path, Path, Path]) -> None:
    said = submit(slurm, *folders, "--output-level", "minimal")
    assert "5 participants in 5 tasks" in said
    slurm.wait(300)
    out = folders[2]
    assert began(out) == ["sub-01", "sub-02", "sub-03", "sub-04", "sub-bad"]
    assert len(list((out / "logs" / "slurm").glob("*_*.txt"))) == 5
    (out / "began.txt").unlink()
    (out / "sub-02.json").unlink()
    said = submit(slurm, *folders, "--output-level", "minimal")
    assert "2 participants in 2 tasks" in said
    slurm.wait(300)
    assert began(out) == ["sub-02", "sub-bad"]
    (out / "sub-bad.json").touch()
    assert "nothing to submit" in submit(slurm, *folders, "--output-level", "minimal")


def test_several_participants_a_task(slurm: Slurm, folders: tuple[Path, Path, Path]) -> None:
    said = submit(slurm, *folders, "--output-level", "minimal", PER_TASK="2")
    assert "5 participants in 3 tasks" in said
    slurm.wait(300)
    assert began(folders[2]) == ["sub-01", "sub-02", "sub-03", "sub-04", "sub-bad"]


def test_an_array_keeps_to_the_limit_of_the_cluster(
    slurm: Slurm, folders: tuple[Path, Path, Path]
) -> None:
    for number in range(10, 20):
        (folders[1] / f"sub-{number}").mkdir()
    said = submit(slurm, *folders, "--output-level", "minimal")  # MaxArraySize is 9
    assert "15 participants in 8 tasks" in said
    slurm.wait(300)
    assert len(began(folders[2])) == len(set(began(folders[2]))) == 15


def test_labels_are_asked_for_by_file(slurm: Slurm, folders: tuple[Path, Path, Path]) -> None:
    done = subprocess.run(
        [SCRIPT, *folders, "--participant-label", "01"], env=slurm.environment, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "LABELS" in done.stderr


# --- real scans ---


def study_of(source: Path, root: Path, number: int) -> Path:
    """The first scans of IXI, as a data set of their own."""
    labels = sorted(path.name for path in source.glob("sub-*"))[:number]
    root.mkdir()
    for label in labels:
        shutil.copytree(source / label, root / label)
    shutil.copyfile(source / "dataset_description.json", root / "dataset_description.json")
    head, *rows = (source / "participants.tsv").read_text().splitlines()
    rows = [row for row in rows if row.split("\t")[0] in labels]
    (root / "participants.tsv").write_text("\n".join([head, *rows]) + "\n")
    return root


def test_killed_and_resubmitted_it_gives_what_a_serial_run_gives(
    slurm: Slurm,
    shared_data: Path,
    tmp_path: Path,
    read_results: Callable[[Path], dict[str, Any]],
) -> None:
    bids = study_of(shared_data / "ixi", tmp_path / "bids", SCANS)
    program = tmp_path / "brainage"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{REPOSITORY}/run.py" "$@"\n')
    program.chmod(0o755)
    out, serial = tmp_path / "out", tmp_path / "serial"

    submit(slurm, program, bids, out, "--stop-on-first-crash", AT_ONCE="2",
           SBATCH_MEM_PER_NODE="4000")  # fmt: skip
    victim = kill_one(slurm, out)
    slurm.wait()
    there = {path.name.split("_")[0] for path in out.rglob("sub-*_brainage.json")}
    assert len(there) == SCANS - 1, f"task {victim} was killed, and no other"
    submit(slurm, program, bids, out, "--stop-on-first-crash", AT_ONCE="2",
           SBATCH_MEM_PER_NODE="4000")  # fmt: skip
    slurm.wait()

    code = subprocess.run([program, bids, serial, "participant", "--nprocs", "1"], check=False)
    assert code.returncode == 0
    results = read_results(out)
    assert results == read_results(serial)
    assert sum(name.endswith("_brainage.json") for name in results) == SCANS
    runs = [path for path in (out / "logs").iterdir() if (path / "log.txt").exists()]
    assert len(runs) == SCANS + 1
    description = json.loads((out / "dataset_description.json").read_text())
    assert description == json.loads((serial / "dataset_description.json").read_text())
    assert (out / ".bidsignore").read_bytes() == (serial / ".bidsignore").read_bytes()
    assert not list(out.rglob("*.tmp"))


def kill_one(slurm: Slurm, out: Path) -> str:
    """Kill a task of the array, as a node that fails does, when it has begun with its scan."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        for name, state in slurm.jobs().items():
            log = out / "logs" / "slurm" / f"{name}.txt"
            if state == "RUNNING" and log.exists() and "sub-" in log.read_text():
                time.sleep(8)
                slurm.run("scancel", "--signal=KILL", "--full", name)
                return name
        time.sleep(0.1)
    raise AssertionError("no task has begun")
