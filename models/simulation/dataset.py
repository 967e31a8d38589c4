"""A BIDS data set of simulated brains: who is in it, and its files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np

from models.simulation.brain import (
    TEMPLATE_AGE,
    Ageing,
    Appearance,
    Template,
    acquire,
    ageing_at,
    find_regions,
    grow_old,
)

HEAD_SIZE = 0.87
"""Edge of a head as a multiple of the template's, whose brain has 1.9 litres: it was fitted to a
space larger than the heads it is the average of. Now it is that of a woman."""
TITLE = "Simulated ageing of the average brain"
README = f"""# {TITLE}

No person was scanned for this data set. Every image is the ICBM 152 nonlinear symmetric average
brain (version 2009a, skull removed, as bundled with nilearn), deformed so that its lateral
ventricles grow and its cortex thins as they do, at the median, in women of a given age, made as
large as a woman's ({HEAD_SIZE} of its edges), and then sampled as a scanner would: turned, with a
bias field and noise. `sub-average` is the average brain itself, its voxels untouched but for their
size. `participants.tsv` says how far each brain was changed.

ICBM 152 average brain: Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre,
Montreal Neurological Institute, McGill University; free to use, copy, modify and distribute as
long as this notice stays.
"""
COLUMNS = {
    "age": {"Description": "Age that participants.tsv would hold for a person", "Units": "years"},
    "sex": {"Description": "Sex", "Levels": {"F": "female", "M": "male"}},
    "brain_age": {"Description": "Age whose median volumes were simulated", "Units": "years"},
    "ventricles": {
        "Description": "Volume of the lateral ventricles, as a multiple of the template's"
    },
    "cortex": {"Description": "Volume of the cerebral cortex, as a multiple of the template's"},
}
SCANNER = Appearance(size=HEAD_SIZE, rotation=3, translation=3, bias=0.08, noise=0.02)
"""The same head in a scanner: position, bias field and noise."""
INTENSITY = 1000  # of the brightest template voxel, in stored units


@dataclass(frozen=True)
class Subject:
    """One simulated participant; `brain_age` is the truth that a model should find."""

    participant_id: str
    age: float
    sex: str
    brain_age: float
    appearance: Appearance

    @property
    def ageing(self) -> Ageing:
        """What is done to the template; nothing at the template's own age."""
        return Ageing() if self.brain_age == TEMPLATE_AGE else ageing_at(self.brain_age)


def load_template() -> Template:
    """The ICBM 2009a symmetric brain that nilearn bundles, intensities 0 to 1."""
    from nilearn.datasets import (
        load_mni152_gm_template,
        load_mni152_template,
        load_mni152_wm_template,
    )

    t1 = load_mni152_template(resolution=1)
    gray = load_mni152_gm_template(resolution=1)
    white = load_mni152_wm_template(resolution=1)
    return Template(
        t1=t1.get_fdata(dtype=np.float32),
        gray=gray.get_fdata(dtype=np.float32),
        white=white.get_fdata(dtype=np.float32),
        affine=t1.affine,
    )


def average_brain() -> Subject:
    """The template's own voxels, as if they were a scan of a person of the template's age."""
    untouched = Appearance(size=HEAD_SIZE)
    return Subject("sub-average", TEMPLATE_AGE, "n/a", TEMPLATE_AGE, untouched)


def degrees(ages: Sequence[float], resolution: float) -> list[Subject]:
    """One and the same head at several ages (years), scanned anew each time."""
    scanner = replace(SCANNER, resolution=resolution)
    return [
        Subject(f"sub-degree{n}", age, "F", age, scanner) for n, age in enumerate(sorted(ages))
    ]


def people(number: int, resolution: float, seed: int, deviation: float = 4.0) -> list[Subject]:
    """People of 20 to 80 years, each with a head of their own.

    Parameters
    ----------
    number
        How many.
    resolution
        Voxel edge in mm.
    seed
        Decides their ages and brain ages.
    deviation
        Standard deviation of brain age around age, in years.
    """
    rng = np.random.default_rng(seed)
    appearance = replace(SCANNER, resolution=resolution, scale=0.03, warp=1.0)
    ages = rng.uniform(20, 80, number).round(1)
    brain_ages = np.clip(ages + rng.normal(0, deviation, number), 18, 90).round(1)
    return [
        Subject(f"sub-person{n:03d}", float(age), "FM"[n % 2], float(brain_age), appearance)
        for n, (age, brain_age) in enumerate(zip(ages, brain_ages, strict=True), start=1)
    ]


def write_dataset(
    root: Path,
    subjects: Sequence[Subject],
    seed: int = 1,
    progress: Callable[[str], None] = lambda line: None,
) -> None:
    """Simulate every subject and write the BIDS folder.

    `dataset_description.json` is written last: with it, the data set is complete.

    Parameters
    ----------
    root
        Folder to write to: a new one, an empty one, or one that this function wrote before for the
        same subjects.
    subjects
        Who is in it.
    seed
        Each subject's random numbers follow from it and from the subject's place in the list.
    progress
        Called with a line after each subject.

    Raises
    ------
    FileExistsError
        If the folder holds something else.
    ValueError
        If a brain age lies where there is no lifespan curve.
    """
    changes = [subject.ageing for subject in subjects]
    _check_ours(root, {s.participant_id for s in subjects})
    root.mkdir(parents=True, exist_ok=True)
    (root / "README").write_text(README, encoding="utf-8")
    template = load_template()
    regions = find_regions(template)
    for number, (subject, change) in enumerate(zip(subjects, changes, strict=True)):
        rng = np.random.default_rng([seed, number])
        brain = grow_old(template, regions, change)
        if subject.appearance == Appearance(size=HEAD_SIZE):
            image, affine = brain.t1, np.diag([HEAD_SIZE] * 3 + [1]) @ brain.affine
        else:
            image, affine = acquire(brain, subject.appearance, rng)
        _write_scan(root, subject.participant_id, image, affine)
        progress(f"{subject.participant_id}: brain age {subject.brain_age:g} years")
    _write_tables(root, subjects)


def _check_ours(root: Path, expected: set[str]) -> None:
    if not root.exists() or not any(root.iterdir()):
        return
    readme = root / "README"
    if not readme.is_file() or TITLE not in readme.read_text(encoding="utf-8", errors="replace"):
        raise FileExistsError(f"{root} holds something else; choose a new or an empty folder")
    others = sorted(p.name for p in root.glob("sub-*") if p.name not in expected)
    if others:
        raise FileExistsError(
            f"{root} holds simulated subjects of another call ({others[0]}); "
            "choose another folder or remove it"
        )


def _write_scan(root: Path, participant_id: str, image: np.ndarray, affine: np.ndarray) -> None:
    stored = np.clip(np.rint(image * INTENSITY), 0, np.iinfo(np.int16).max).astype(np.int16)
    nifti = nib.Nifti1Image(stored, affine)
    nifti.set_qform(affine, code=1)
    nifti.set_sform(affine, code=1)
    nifti.header.set_xyzt_units("mm", "sec")
    folder = root / participant_id / "anat"
    folder.mkdir(parents=True, exist_ok=True)
    nib.save(nifti, folder / f"{participant_id}_T1w.nii.gz")


def _write_tables(root: Path, subjects: Sequence[Subject]) -> None:
    lines = ["\t".join(("participant_id", *COLUMNS))]
    for s in subjects:
        change = s.ageing
        row = (s.age, s.sex, s.brain_age, round(change.ventricles, 4), round(change.cortex, 4))
        lines.append("\t".join((s.participant_id, *(f"{value}" for value in row))))
    (root / "participants.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    description = {
        "Name": TITLE,
        "BIDSVersion": "1.10.0",
        "DatasetType": "raw",
        "Authors": ["The brainage simulation"],
    }
    for name, content in (("participants", COLUMNS), ("dataset_description", description)):
        text = json.dumps(content, indent=2) + "\n"
        (root / f"{name}.json").write_text(text, encoding="utf-8")
