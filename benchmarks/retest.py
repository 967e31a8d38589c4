"""A data set of the same heads scanned again, as far as a computer can: turned, moved, noisier.

    python benchmarks/retest.py BIDS_DIR RETEST_DIR
    ./run.py RETEST_DIR RETEST_OUT participant
    python benchmarks/ages.py --again RETEST_OUT --alone TRAINING ...

Every head is there five times, told apart by `acq-`; an age should not change with them. Networks
that have seen the head as it was know it by heart, so that ages must come from one that has not.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from bidsapp.settings import Settings  # noqa: E402
from bidsapp.study import Scan, load_study  # noqa: E402
from models import registry  # noqa: E402
from models.training.data import TrainingScan  # noqa: E402

DEGREES, NOISE, SEED = 10.0, 0.03, 1
AS_IT_WAS = "asitwas"
Image = Any


def rotated(image: Image) -> Image:
    """The head turned by 10 degrees about the first and the last axis, interpolated once."""
    turn = np.deg2rad(DEGREES)
    c, s = np.cos(turn), np.sin(turn)
    matrix = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ [[1, 0, 0], [0, c, -s], [0, s, c]]
    voxels = np.asarray(image.dataobj, np.float32)
    zooms = np.diag(image.header.get_zooms()[:3])
    matrix = np.linalg.inv(zooms) @ matrix @ zooms
    middle = (np.array(voxels.shape) - 1) / 2
    turned = ndimage.affine_transform(voxels, matrix, middle - matrix @ middle, order=3)
    return nib.Nifti1Image(turned.clip(0).astype(np.float32), image.affine)


def shifted(image: Image) -> Image:
    """The head moved by one voxel along each axis."""
    voxels = np.asarray(image.dataobj, np.float32)
    return nib.Nifti1Image(np.roll(voxels, 1, (0, 1, 2)), image.affine)


def noisy(image: Image) -> Image:
    """Gaussian noise of 3 % of the brightest voxels."""
    voxels = np.asarray(image.dataobj, np.float32)
    grain = np.random.default_rng(SEED).normal(0, NOISE * np.percentile(voxels, 99), voxels.shape)
    return nib.Nifti1Image((voxels + grain).clip(0).astype(np.float32), image.affine)


def int16(image: Image) -> Image:
    """The same, in 16 bits and another unit."""
    saved = nib.Nifti1Image(np.asarray(image.dataobj, np.float32) * 3.7, image.affine)
    saved.set_data_dtype(np.int16)
    return saved


CHANGES: dict[str, Callable[[Image], Image]] = {
    "rotated": rotated,
    "shifted": shifted,
    "noisy": noisy,
    "int16": int16,
}


def ages_again(folder: Path, scans: Sequence[TrainingScan]) -> pd.DataFrame:
    """Age of each scan by the networks of the fold that held its person out.

    Parameters
    ----------
    folder
        Training folder of a model whose members are the folds' networks, fold by fold.
    scans
        Of the output folder of such a data set, as the model takes them.

    Returns
    -------
    DataFrame
        Columns ``person``, ``change``, ``model`` and ``age``, in years.
    """
    name = registry.read_card(folder / registry.CARD).name
    model = registry.load(name, weights=folder)
    table = pd.read_csv(folder / "out_of_fold.tsv", sep="\t", dtype={"participant_id": str})
    folds = dict(zip(table["participant_id"], table["fold"]))
    each, rows = len(model.networks) // table["fold"].nunique(), []
    for scan in scans:
        first = each * folds[scan.participant_id]
        alone = replace(model, networks=model.networks[first : first + each])
        age = alone.predict(scan.image.float().numpy(), scan.sex).predicted_age
        change = scan.name.split("_acq-")[1].split("_")[0]
        rows.append({"person": scan.participant_id, "change": change, "model": name, "age": age})
    return pd.DataFrame(rows)


def moves_of(ages: pd.DataFrame) -> pd.DataFrame:
    """Years by which each change moves each person: (people, changes), from one model's ages."""
    wide = ages.pivot(index="person", columns="change", values="age")
    return wide.drop(columns=AS_IT_WAS).sub(wide[AS_IT_WAS], axis=0).abs()


def main(arguments: list[str] | None = None) -> None:
    """Write the data set."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("bids_dir", type=Path)
    parser.add_argument("retest_dir", type=Path)
    parser.add_argument("--participants", type=int, default=10, help="(%(default)s)")
    options = parser.parse_args(arguments)
    study = load_study(Settings(options.bids_dir, options.retest_dir, ("participant",)))
    known = [scan for scan in study.scans if scan.demographics.age is not None]
    people = spread_over_ages(known, options.participants)
    options.retest_dir.mkdir(parents=True, exist_ok=True)
    about = {"Name": f"{options.bids_dir.name}, scanned again", "BIDSVersion": "1.10.0"}
    (options.retest_dir / "dataset_description.json").write_text(json.dumps(about))
    rows = [{"participant_id": scan.participant_id, "age": scan.demographics.age,
             "sex": scan.demographics.sex} for scan in people]  # fmt: skip
    pd.DataFrame(rows).to_csv(options.retest_dir / "participants.tsv", sep="\t", index=False)
    for scan in people:
        write_again(scan, options.retest_dir)
    print(f"{options.retest_dir}: {len(people)} people, {len(CHANGES) + 1} scans each")


def spread_over_ages(scans: list[Scan], number: int) -> list[Scan]:
    """So many scans, evenly spaced in the order of age."""
    ordered = sorted(scans, key=lambda scan: (scan.demographics.age, scan.participant_id))
    places = np.linspace(0, len(ordered) - 1, min(number, len(ordered))).round().astype(int)
    return [ordered[place] for place in places]


def write_again(scan: Scan, root: Path) -> None:
    """A scan as it was, and changed in every way."""
    folder = root / scan.participant_id / "anat"
    folder.mkdir(parents=True, exist_ok=True)

    def place(label: str) -> Path:
        return folder / f"{scan.participant_id}_acq-{label}_T1w.nii.gz"

    shutil.copyfile(scan.path, place(AS_IT_WAS))
    image = nib.as_closest_canonical(nib.load(scan.path))
    for label, change in CHANGES.items():
        nib.save(change(image), place(label))


if __name__ == "__main__":
    main()
