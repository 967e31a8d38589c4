"""Two results are the same exactly where what they depend on is the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from bidsapp import fingerprint as module
from bidsapp.demographics import Demographics
from bidsapp.fingerprint import PACKAGES, fingerprint, software
from bidsapp.settings import Settings
from bidsapp.study import Scan

SETTINGS = Settings("/in", "/out", ("participant",), nprocs=1)
SCAN = Scan(
    Path("/in/sub-01/anat/sub-01_T1w.nii.gz"), "bids:raw:sub-01/anat/sub-01_T1w.nii.gz", "sub-01",
    None, "sub-01", Demographics(30.0, "F", None, None),
)  # fmt: skip


def prints(
    *, settings: dict[str, Any] | None = None, scan: dict[str, Any] | None = None, **changes: Any
) -> dict[str, str]:
    """Fingerprint of a scan, with some of what it depends on changed."""
    given = {
        "scan_sha256": "1", "template_sha256": "2", "segmentation_sha256": "3",
        "models": {"wssa": "card"}, "references": {},
    } | changes  # fmt: skip
    return fingerprint(
        scan=dataclasses.replace(SCAN, **(scan or {})),
        settings=dataclasses.replace(SETTINGS, **(settings or {})),
        **given,
    )


def test_the_same_is_the_same() -> None:
    assert prints() == prints()
    assert set(prints()) == {"preprocessing", "prediction"}
    assert all(len(value) == 64 for value in prints().values())
    assert prints(models={"a": "1", "b": "2"}) == prints(models={"b": "2", "a": "1"})


@pytest.mark.parametrize(
    "changes",
    [
        {"scan_sha256": "9"},
        {"template_sha256": "9"},
        {"segmentation_sha256": "9"},
        {"settings": {"template": "MNI152NLin6Asym"}},
        {"settings": {"skull_strip_t1w": "skip"}},
        {"settings": {"random_seed": 2}},
    ],
    ids=str,
)
def test_what_images_depend_on(changes: dict[str, Any]) -> None:
    for part in ("preprocessing", "prediction"):
        assert prints(**changes)[part] != prints()[part]


@pytest.mark.parametrize(
    "changes",
    [
        {"models": {"wssa": "another card"}},
        {"models": {"sfcn": "card"}},
        {"models": {}},
        {"models": {"wssa": "card", "sfcn": "card"}},
        {"references": {"wssa": "hash"}},
        {"scan": {"demographics": Demographics(31.0, "F", None, None)}},
        {"scan": {"demographics": Demographics(30.0, None, None, None)}},
        {"scan": {"demographics": Demographics(30.0, "F", "north", None)}},
        {"scan": {"source": "bids:raw:elsewhere"}},
        {"settings": {"quality": "fail"}},
    ],
    ids=str,
)
def test_what_predictions_alone_depend_on(changes: dict[str, Any]) -> None:
    assert prints(**changes)["prediction"] != prints()["prediction"]
    assert prints(**changes)["preprocessing"] == prints()["preprocessing"]


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": {"nprocs": 8, "verbose": 2, "low_mem": True}},
        {"settings": {"output_dir": "/elsewhere", "bids_dir": "/moved"}},
        {"settings": {"participant_label": ("01",), "models": ("wssa",)}},
        {"scan": {"path": Path("/moved/sub-01_T1w.nii.gz")}},
    ],
    ids=str,
)
def test_what_nothing_depends_on(changes: dict[str, Any]) -> None:
    assert prints(**changes) == prints()


@pytest.mark.parametrize("name", ["MARGIN", "LARGEST_SHARE"])
def test_the_rule_of_the_ensemble_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = prints()
    monkeypatch.setattr(module, name, 0.25)
    assert prints()["prediction"] != before["prediction"]
    assert prints()["preprocessing"] == before["preprocessing"]


def test_what_preprocessing_depends_on_is_hashed_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Were it hashed otherwise, every finished scan would be preprocessed again."""
    monkeypatch.setattr(module, "software", lambda: {"brainage": "1"})
    assert prints()["preprocessing"] == (
        "eeee25ac950e22d62ac63c0e83c219661bc63fc94e78d6d188d20247192eea0f"
    )


def test_versions_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = prints()
    assert set(software()) == {"brainage", *PACKAGES} and all(software().values())
    monkeypatch.setattr(module, "__version__", "99")
    assert software()["brainage"] == "99"
    assert prints()["preprocessing"] != before["preprocessing"]
