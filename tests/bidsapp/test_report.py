"""Pages of participants from what lies in the output folder, and the pictures in them."""

from __future__ import annotations

import base64
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bidsapp import report
from bidsapp.derivatives import Derivatives
from bidsapp.preprocessing.image import Image
from bidsapp.preprocessing.segmentation import Parts, Segmentation
from bidsapp.settings import Settings
from bidsapp.study import Demographics, Scan
from models.segmentation import labels

PNG = b"\x89PNG\r\n\x1a\n"


def scan_of(stem: str) -> Scan:
    participant, _, session = stem.partition("_")
    source = f"bids:raw:{participant}/anat/{stem}_T1w.nii.gz"
    return Scan(Path(stem), source, participant, session or None, stem, Demographics())


def record_of(scan: Scan, age: float = 41.5) -> dict[str, Any]:
    return {
        "participant_id": scan.participant_id,
        "session_id": scan.session_id,
        "source": scan.source,
        "age": 38.0,
        "sex": "F",
        "predictions": {"ensemble": {"predicted_age": age, "interval": [age - 6, age + 7],
                                     "coverage": 0.9, "brain_age_gap": age - 38}},
        "quality": {"passed": True, "flags": []},
        "volumes_ml": {"brain": 1234.5},
        "steps": [],
        "software": {"brainage": "0"},
        "seconds": {},
    }  # fmt: skip


@pytest.fixture
def out(tmp_path: Path) -> Derivatives:
    return Derivatives(tmp_path / "out", tmp_path / "study", Settings.template)


FIRST, SECOND, OTHER = (scan_of(stem) for stem in ("sub-01_ses-a", "sub-01_ses-b", "sub-10"))


def write(out: Derivatives, scan: Scan, age: float = 41.5) -> None:
    out.write_json(out.record(scan), record_of(scan, age))
    picture = PNG + scan.stem.encode()
    out.write_bytes(out.figure(scan.participant_id, scan.stem, "segmentation"), picture)


def ids(*scans: Scan) -> list[str]:
    return [scan.participant_id for scan in scans]


def embedded(scan: Scan) -> str:
    """Of a picture, as far as one page can be told from another by it."""
    return base64.b64encode(PNG + scan.stem.encode()).decode()


def page(out: Derivatives, participant: str = "sub-01") -> str:
    return out.report(participant).read_text()


def test_one_page_per_participant_with_all_sessions_and_their_pictures(out: Derivatives) -> None:
    for scan, age in ((FIRST, 41.5), (SECOND, 43.5), (OTHER, 61.5)):
        write(out, scan, age)
    report.write_participants(ids(FIRST, SECOND, OTHER), out)
    assert sorted(path.name for path in out.root.glob("*.html")) == ["sub-01.html", "sub-10.html"]
    assert "41.5" in page(out) and "43.5" in page(out) and "61.5" not in page(out)
    assert embedded(FIRST) in page(out) and embedded(SECOND) in page(out)
    assert embedded(OTHER) not in page(out)
    assert "61.5" in page(out, "sub-10")
    assert (out.root / "logs" / "CITATION.md").exists()


def test_sessions_that_a_run_is_not_about_stay_in_the_page(out: Derivatives) -> None:
    write(out, FIRST, 41.5)
    write(out, SECOND, 43.5)
    report.write_participants(ids(FIRST), out)
    assert "43.5" in page(out) and embedded(SECOND) in page(out)


def test_a_participant_without_a_record_gets_no_page(out: Derivatives) -> None:
    write(out, FIRST)
    report.write_participants(ids(FIRST, OTHER), out)
    assert not out.report("sub-10").exists()
    report.write_participants(ids(OTHER), out)
    assert not out.report("sub-10").exists()


def test_nothing_at_all_is_no_fault(out: Derivatives) -> None:
    report.write_participants(ids(OTHER), out)
    assert not out.root.exists()


def test_a_damaged_record_does_not_stop_the_others(
    out: Derivatives, caplog: pytest.LogCaptureFixture
) -> None:
    for scan, age in ((FIRST, 41.5), (SECOND, 43.5), (OTHER, 61.5)):
        write(out, scan, age)
    out.record(FIRST).write_text("{")
    with caplog.at_level(logging.WARNING):
        report.write_participants(ids(FIRST, SECOND, OTHER), out)
    assert "43.5" in page(out) and "41.5" not in page(out)
    assert str(out.record(FIRST)) in caplog.text
    assert out.report("sub-10").exists()


def test_pictures_that_are_missing_are_left_out(out: Derivatives) -> None:
    write(out, FIRST)
    out.figure("sub-01", FIRST.stem, "segmentation").unlink()
    report.write_participants(ids(FIRST), out)
    assert "41.5" in page(out) and "image/png" not in page(out)


def test_the_cards_of_the_models_that_ran_are_described(out: Derivatives) -> None:
    write(out, FIRST)
    report.write_participants(ids(FIRST), out)
    assert out.report("sub-01").exists()


def test_pictures_of_a_scan(out: Derivatives) -> None:
    axis = np.linspace(-1, 1, 40)
    r = np.sqrt(sum(each**2 for each in np.meshgrid(axis, axis, axis, indexing="ij")))
    found = np.where(r < 0.8, labels.indices(structure="CTX")[0], 0).astype(np.uint8)
    found[r < 0.5] = labels.indices(structure="WM")[0]
    head = Image(np.where(r < 0.9, 1 - r / 2, 0).astype(np.float32), np.diag([4.0, 4, 4, 1]))
    brain = head.with_data(head.data * (found > 0))
    parts = Parts(found, found > 0, found > 0)
    segmented = Segmentation(head, parts, parts, {})
    report.write_figures(OTHER, segmented, brain, brain, out)
    pictures = {path.name: path.read_bytes() for path in out.figures("sub-10").iterdir()}
    assert set(pictures) == {f"sub-10_desc-{name}_T1w.png" for name in report.FIGURES}
    assert all(content.startswith(PNG) for content in pictures.values())
    # the same arrays in another run give the same bytes
    report.write_figures(OTHER, segmented, brain, brain, out)
    for name, content in pictures.items():
        assert (out.figures("sub-10") / name).read_bytes() == content
    out.write_json(out.record(OTHER), record_of(OTHER))
    report.write_participants(ids(OTHER), out)
    assert page(out, "sub-10").count("data:image/png;base64,") == len(report.FIGURES)
