"""Volumes of simulated brains against age, beside those of real label maps.

    python -m models.simulation SIMULATED --ages --people 40 --resolution 2
    ./run.py SIMULATED OUT participant
    python benchmarks/simulation.py --simulated OUT --real IXI --maps DLMUSE

Real volumes are counted in the label maps, simulated ones are those of the app's records. Writes
docs/simulation.svg and puts the table into docs/models.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import pandas as pd

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.markdown import put, table  # noqa: E402
from bidsapp.derivatives import Derivatives  # noqa: E402
from models.segmentation.labels import OUTER_CSF, STRUCTURES, structures_from_muse  # noqa: E402

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE, PLOT = REPOSITORY / "docs" / "models.md", REPOSITORY / "docs" / "simulation.svg"
SHOWN = {"LV": "lateral ventricles", "CTX": "cerebral cortex", "WM": "cerebral white matter",
         "HIP": "hippocampus"}  # fmt: skip
SIMULATED, REAL = "simulated", "real label maps"


def shares_of_record(record: Mapping[str, Any]) -> dict[str, float]:
    """Volumes of a record as percent of the brain."""
    volumes = record["volumes_ml"]
    parts = {"LV": ("left_lateral_ventricle", "right_lateral_ventricle"), "CTX": ("cortex",),
             "WM": ("left_cerebral_white_matter", "right_cerebral_white_matter"),
             "HIP": ("left_hippocampus", "right_hippocampus")}  # fmt: skip
    return {name: 100 * sum(volumes[key] for key in keys) / volumes["brain"]
            for name, keys in parts.items()}  # fmt: skip


def shares_of_map(path: Path) -> dict[str, float]:
    """Volumes of a MUSE label map as percent of the brain."""
    counts = np.bincount(structures_from_muse(np.asarray(nib.load(path).dataobj)).ravel(),
                         minlength=len(STRUCTURES))  # fmt: skip
    brain = counts[OUTER_CSF + 1 :].sum()
    by = {structure.abbreviation: counts[n] for n, structure in enumerate(STRUCTURES)}
    return {name: 100 * by[name] / brain for name in SHOWN}


def simulated(folder: Path) -> pd.DataFrame:
    """Age that was simulated, and shares, of everybody in an output folder of the app."""
    records = list(Derivatives(folder, folder, "").records())
    if not records:
        sys.exit(f"{folder} holds no records; run the participant level first.")
    return pd.DataFrame([shares_of_record(r) | {"age": r["age"], "group": SIMULATED}
                         for r in records if r["age"] is not None])  # fmt: skip


def real(bids_dir: Path, maps: Path) -> pd.DataFrame:
    """Age and shares of everybody who has one label map."""
    people = pd.read_csv(bids_dir / "participants.tsv", sep="\t", na_values="n/a")
    rows = []
    for who in people.dropna(subset="age").itertuples():
        found = sorted((maps / str(who.participant_id)).rglob("*.nii.gz"))
        if len(found) == 1:
            rows.append(shares_of_map(found[0]) | {"age": float(who.age), "group": REAL})
    return pd.DataFrame(rows)


def rows_of(frame: pd.DataFrame) -> list[list[str]]:
    """Of each structure, in each group: share at 50 years, change a year in percent of it, r."""
    rows = []
    for name, words in SHOWN.items():
        cells = [words]
        for group in (REAL, SIMULATED):
            part = frame[frame["group"] == group]
            slope, level = np.polyfit(part["age"] - 50, np.log(part[name]), 1)
            r = np.corrcoef(part["age"], part[name])[0, 1]
            cells += [f"{np.exp(level):.2f}", f"{100 * np.expm1(slope):+.2f}", f"{r:.2f}"]
        rows.append(cells)
    return rows


def plot(frame: pd.DataFrame) -> Figure:
    """Shares against age, a panel for each structure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6), layout="constrained")
    for axes, (name, words) in zip(figure.subplots(1, len(SHOWN)), SHOWN.items()):
        for group, color in ((REAL, "0.55"), (SIMULATED, "#0072B2")):
            part = frame[frame["group"] == group]
            axes.scatter(part["age"], part[name], s=8, color=color, label=group)
        axes.set_title(words, fontsize=9)
        axes.set_xlabel("age (years)", fontsize=8)
        axes.tick_params(labelsize=7)
    figure.axes[0].set_ylabel("percent of the brain", fontsize=8)
    figure.axes[0].legend(frameon=False, fontsize=7)
    return figure


def main(arguments: list[str] | None = None) -> None:
    """Write the plot and the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--simulated", type=Path, required=True, metavar="DIR",
                        help="output folder of the app")  # fmt: skip
    parser.add_argument("--real", type=Path, required=True, metavar="BIDS_DIR")
    parser.add_argument("--maps", type=Path, required=True, metavar="DIR", help="MUSE label maps")
    options = parser.parse_args(arguments)
    frame = pd.concat([simulated(options.simulated), real(options.real, options.maps)],
                      ignore_index=True)  # fmt: skip
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "brainage"}):
        plot(frame).savefig(PLOT, metadata={"Date": None})
    counts = frame["group"].value_counts()
    of = [f"{group} ({counts[group]})" for group in (REAL, SIMULATED)]
    header = ["structure", *(f"{group}: {what}" for group in of
                             for what in ("% at 50 y", "% a year", "r"))]  # fmt: skip
    found = table(header, rows_of(frame))
    put(PAGE, "simulation", found)
    print(found, PLOT, sep="\n")


if __name__ == "__main__":
    main()
