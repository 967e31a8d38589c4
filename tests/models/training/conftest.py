"""Synthetic output of the app's participant level: brains whose ventricle grows with age."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

SHAPE = (20, 24, 20)
TEMPLATE = "MNI152NLin2009aSym"
MakeDerivatives = Callable[..., Path]


def brain(age: float, random: np.random.Generator) -> np.ndarray:
    """An ellipsoid of white matter 100 in a rim of cortex 60, with a dark hole."""
    axes = [np.linspace(-1, 1, n) for n in SHAPE]
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))
    image = np.where(radius < 0.7, 100.0, 60.0) + random.normal(0, 2, SHAPE)
    image[radius < 0.15 + age / 200] = 15
    return np.where(radius < 0.9, image, 0).astype(np.float32)


def tissues(image: np.ndarray) -> dict[str, np.ndarray]:
    """Shares of tissue in such a brain, and a rim of fluid around it."""
    axes = [np.linspace(-1, 1, n) for n in SHAPE]
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))
    there = {
        "GM": (image > 30) & (image < 80),
        "WM": image >= 80,
        "CSF": ((radius < 1.1) & (image == 0)) | ((image > 0) & (image <= 30)),
    }
    return {tissue: mask.astype(np.float32) for tissue, mask in there.items()}


@pytest.fixture
def make_derivatives(tmp_path: Path) -> MakeDerivatives:
    """Function (name, ages, repeats=...) that writes an output folder of the app."""

    def make(name: str, ages: list[float | None], repeats: int = 1) -> Path:
        root, random = tmp_path / name, np.random.default_rng(7)
        root.mkdir()
        about = {"SourceDatasets": [{"URL": f"file:///somewhere/{name}-raw"}]}
        (root / "dataset_description.json").write_text(json.dumps(about))
        for number, age in enumerate(ages):
            person = f"sub-{number:02d}"
            folder = root / person / "anat"
            folder.mkdir(parents=True)
            for run in range(1, repeats + 1):
                stem = f"{person}_run-{run}"
                image = nib.Nifti1Image(brain(age or 0, random), np.diag([2, 2, 2, 1]))
                there = f"{stem}_space-{TEMPLATE}_res-2"
                nib.save(image, folder / f"{there}_desc-preproc_T1w.nii.gz")
                for tissue, share in tissues(image.get_fdata()).items():
                    for desc, maps in (("", share), ("_desc-modulated", 0.75 * share)):
                        nib.save(
                            nib.Nifti1Image(maps, image.affine),
                            folder / f"{there}_label-{tissue}{desc}_probseg.nii.gz",
                        )
                record = {
                    "participant_id": person,
                    "age": age,
                    "sex": "FM"[number % 2],
                    "site": None,
                    "steps": [
                        {"step": "resampling"},
                        {"step": "intensity", "levels": {"cortex": 60.0, "white_matter": 100.0}},
                    ],
                }
                (folder / f"{stem}_brainage.json").write_text(json.dumps(record))
        return root

    return make
