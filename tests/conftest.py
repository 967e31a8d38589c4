"""Fixtures shared by all tests."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
MakeStudy = Callable[..., Path]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real scans in BIDS form; tests that need it are skipped without it."""
    default = REPOSITORY.parent / "shared" / "data"
    folder = Path(os.environ.get("BRAINAGE_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real scans: {folder} is absent (set BRAINAGE_SHARED_DATA)")
    return folder


@pytest.fixture(scope="session", autouse=True)
def no_fetched_models(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests see the embedded models alone, whatever was fetched on this machine."""
    os.environ["BRAINAGE_MODELS"] = str(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Networks made in a test start out the same in each run, whichever tests ran before."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def read_results() -> Callable[[Path], dict[str, Any]]:
    """Function that reads all that must not differ between two runs, by file name."""
    return _results


def _results(folder: Path) -> dict[str, Any]:
    """Records, sidecars, voxels, transforms and group tables; not what tells the time or place."""
    import nibabel as nib

    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.endswith(".nii.gz"):
            image = nib.load(path)
            found[name] = image.affine.tobytes(), np.asarray(image.dataobj).tobytes()
        elif name.startswith(("sub-", "group_")) and path.suffix == ".json":
            record = json.loads(path.read_text())
            found[name] = {key: record[key] for key in record if key != "seconds"}
        elif name.startswith(("sub-", "group_")) and path.suffix in (".txt", ".tsv"):
            found[name] = path.read_text()
    return found


@pytest.fixture
def make_study(tmp_path: Path) -> MakeStudy:
    """Function (images, tables={path: text}, root=...) that writes a small BIDS data set."""
    import nibabel as nib

    def make(
        images: Iterable[str],
        tables: dict[str, str] | None = None,
        root: Path = tmp_path / "study",
    ) -> Path:
        random = np.random.default_rng(1)
        root.mkdir(parents=True, exist_ok=True)
        description = {"Name": "Tiny", "BIDSVersion": "1.9.0", "License": "CC0"}
        (root / "dataset_description.json").write_text(json.dumps(description))
        for name in images:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            voxels = random.integers(0, 900, (6, 7, 5)).astype(np.int16)
            nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 2.0, 2.0, 1.0])), path)
        for name, text in (tables or {}).items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(text.encode("utf-8"))
        return root

    return make


@pytest.fixture
def tiny_study(make_study: MakeStudy) -> Path:
    """Two participants, one of them with two sessions and two runs, with ages and sexes."""
    return make_study(
        [
            "sub-01/anat/sub-01_T1w.nii.gz",
            "sub-02/ses-a/anat/sub-02_ses-a_run-1_T1w.nii.gz",
            "sub-02/ses-a/anat/sub-02_ses-a_run-2_T1w.nii.gz",
            "sub-02/ses-b/anat/sub-02_ses-b_acq-mprage_T1w.nii",
        ],
        {"participants.tsv": "participant_id\tage\tsex\nsub-01\t25\tF\nsub-02\t61.5\tM\n"},
    )
