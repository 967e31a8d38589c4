"""Seconds and memory of the group level on simulated records.

    python benchmarks/group.py [--participants 100 1000 10000 50000] [--models 3]
                               [--write]

Prints a Markdown table; `--write` puts it into docs/group.md. Every run is a fresh process, pinned
to one core: the whole command, from its start to the last file, by the clock and by what it used
of the core. Linux only. `--keep FOLDER` leaves the simulated studies, whose reports show all that
the group level can draw: three groups, three sites, repeated scans, scans that failed quality and
people without age.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.markdown import put, table  # noqa: E402
from bidsapp import __version__  # noqa: E402

GROUPS = {"control": 0.0, "MCI": 1.5, "AD": 5.0}
"""Planted difference of the gap from controls, years."""
SITES = {"Köln": 0.0, "Oslo": 2.0, "Ulm": -1.5}
"""Planted shift of the gap, years."""
SLOPE = 0.8
"""Of predicted on chronological age: the age bias."""


def main() -> None:
    """Simulate studies of several sizes, run the group level on each, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--participants", type=int, nargs="+", default=[100, 1000, 10_000, 50_000])
    parser.add_argument("--models", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="folder to leave the simulated studies in")
    parser.add_argument("--write", action="store_true", help="put the table into docs/group.md")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for participants in options.participants:
            folder = (options.keep or Path(scratch)) / f"{participants}"
            simulate(folder, participants, options.models)
            clock, used, peak = measure(folder)
            size = (folder / "out" / "group.html").stat().st_size / 2**20
            each = 1000 * used / participants
            rows.append([f"{participants:,}", f"{clock:.1f}", f"{used:.1f}", f"{each:.2f}",
                         f"{peak:.0f}", f"{size:.1f}"])  # fmt: skip
    header = ["participants", "seconds", "of the core", "ms per participant", "peak memory, MiB",
              "report, MiB"]  # fmt: skip
    words = f"{options.models} models and their ensemble; one core of {_processor()}."
    text = f"{words}\n\n{table(header, rows)}"
    print(text)
    if options.write:
        put(REPOSITORY / "docs" / "group.md", "scale", text)


def simulate(folder: Path, participants: int, models: int, seed: int = 1) -> None:
    """Write a study of simulated records: `folder`/bids (tables alone) and `folder`/out.

    Ages are uniform over 20 to 85 years. One person in ten has a second scan, one in 50 a scan
    that failed quality, one in 100 no age.
    """
    random = np.random.default_rng(seed)
    bids, out = folder / "bids", folder / "out"
    bids.mkdir(parents=True)
    (bids / "dataset_description.json").write_text(
        json.dumps({"Name": f"Simulation of {participants}", "BIDSVersion": "1.10.0"})
    )
    lines = ["participant_id\tage\tsex\tsite\tgroup\tscore"]
    for number in range(participants):
        person = f"sub-{number:06d}"
        age = float(random.uniform(20, 85))
        sex, site = random.choice(["F", "M"]), random.choice(list(SITES))
        group = random.choice(list(GROUPS), p=[0.6, 0.2, 0.2])
        own = random.normal(0, 4)  # what makes this brain older or younger than its age
        score = 30 - 0.3 * (own + GROUPS[group]) + random.normal(0, 3)
        known = age if number % 100 else "n/a"
        lines.append(f"{person}\t{known}\t{sex}\t{site}\t{group}\t{score}")
        sessions = ("ses-1", "ses-2")[: 2 if number % 10 == 0 else 1]
        if len(sessions) > 1:  # a retest, of the same age
            rows = "".join(f"{session}\t{known}\n" for session in sessions)
            (bids / person).mkdir()
            (bids / person / f"{person}_sessions.tsv").write_text(f"session_id\tage\n{rows}")
        for session in sessions:
            gap = SLOPE * (age - 50) + 50 - age + own + GROUPS[group] + SITES[site]
            ages = age + gap + random.normal(0, 2, models) + random.normal(0, 1.5)
            record = _record(person, session, age, ages, number % 50 != 7, random)
            record |= {"sex": sex, "site": site, "group": group}
            record["age"] = age if number % 100 else None
            path = out / person / session / "anat" / f"{person}_{session}_brainage.json"
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps(record, indent=2), encoding="utf-8")
    (bids / "participants.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _record(
    person: str, session: str, age: float, ages: Any, passed: bool, random: np.random.Generator
) -> dict[str, Any]:
    """A record with the keys and about the size of a real one."""
    predicted = [float(value) for value in ages]
    named = {f"model{n}": value for n, value in enumerate(predicted, 1)}
    named["ensemble"] = float(np.mean(predicted))
    volumes = {"brain": 1250 + random.normal(0, 90), "csf": None, "cortex": 500.0}
    volumes["gray_matter"] = 0.52 * volumes["brain"] - 1.2 * (age - 50) + random.normal(0, 15)
    volumes["ventricles"] = 22 + 0.4 * max(age - 40, 0) + random.gamma(2, 3)
    return {
        "participant_id": person,
        "session_id": session,
        "source": f"bids:raw:{person}/{session}/anat/{person}_{session}_T1w.nii.gz",
        "age": age,
        "predictions": {
            name: {
                "predicted_age": value,
                "standard_deviation": 5.0,
                "interval": [value - 8, value + 8],
                "coverage": 0.9,
                "within_training_ages": True,
                "sex_assumed": False,
                "weights_sha256": f"{name:0<64}",
                "license": "CC0-1.0",
                "brain_age_gap": value - age,
            }
            for name, value in named.items()
        },
        "quality": {"passed": passed, "flags": [] if passed else ["cnr"], "cnr": 1.5, "snr": 9.0},
        "volumes_ml": volumes,
        "steps": [{"step": "registration", "matrix": random.normal(0, 1, (4, 4)).tolist()}] * 6,
        "software": {"brainage": __version__},
        "seconds": {"registration": 9.0},
    }


def measure(folder: Path) -> tuple[float, float, float]:
    """Run the group level on one core; seconds by the clock, of the core, and peak MiB."""
    program = (
        "import os, resource, sys\n"
        "os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})\n"
        "from bidsapp.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)\n"
        "sys.exit(code)\n"
    )
    command = [sys.executable, "-c", program, folder / "bids", folder / "out", "group"]
    command += ["--phenotype-terms", "score", "--importance", "none"]
    began = time.perf_counter()
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    done = subprocess.run(
        list(map(str, command)), cwd=REPOSITORY, env=os.environ | threads,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True,
    )  # fmt: skip
    used, peak = map(float, done.stdout.splitlines()[-1].split())
    return time.perf_counter() - began, used, peak


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
