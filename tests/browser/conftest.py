"""A headless Chromium that reaches nothing but files, and pages of simulated people."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.group import simulate
from bidsapp import group, report
from bidsapp.derivatives import Derivatives
from bidsapp.reporting import figures, mosaic, reference
from bidsapp.settings import Settings
from bidsapp.study import Demographics, Scan

EVIL = "<img src=x onerror=alert(1)><b>bold</b>"
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PERSON = "sub-000000"


@dataclass
class Watched:
    """A page, what it wrote to the console, and what it asked for beside itself."""

    page: Any
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def route(self, route: Any) -> None:
        """Let files through, and count and block everything else."""
        if route.request.url.startswith("file:"):
            route.continue_()
        else:
            self.requests.append(route.request.url)
            route.abort()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="no playwright: pip install brainage[browser]"
    )
    named = os.environ.get("BRAINAGE_BROWSER") or next(
        filter(None, map(shutil.which, NAMES)), None
    )
    if not named:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed; BRAINAGE_BROWSER=PATH")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=named, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def visit(browser: Any) -> Callable[..., Any]:
    """Context manager (path, width, **options) of a watched page."""

    @contextmanager
    def visit(path: Path, width: int = 1280, **options: Any) -> Iterator[Watched]:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        page = context.new_page()
        page.set_default_timeout(120_000)
        watched = Watched(page)
        page.on("console", lambda message: watched.messages.append(message.text))
        page.on("pageerror", lambda error: watched.messages.append(str(error)))
        page.on("dialog", lambda dialog: watched.messages.append(f"dialog {dialog.message}"))
        context.route("**/*", watched.route)
        page.goto(path.as_uri())
        yield watched
        context.close()

    return visit


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of both levels: 60 simulated people, pictures of one of them."""
    folder = tmp_path_factory.mktemp("reports") / "study"
    simulate(folder, 60, 1)
    out = Derivatives(folder / "out", folder / "bids", Settings.template)
    for record in out.records():  # the group level warns of scans that are gone
        scan = folder / "bids" / record["source"].removeprefix("bids:raw:")
        scan.parent.mkdir(parents=True, exist_ok=True)
        scan.touch()
    originals = {path: path.read_text() for path in out.record_paths(PERSON)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mosaic, "_DPI", 40)
        for number, path in enumerate(originals):
            record = out.read_record(path)
            complete(record, age=61.0 + 2.5 * number)
            out.write_json(path, record)
            write_pictures(record, shift=2 * number, out=out)
    hostile = out.read_record(out.record_paths("sub-000003")[0])
    hostile |= {"site": EVIL, "sex": EVIL, "group": EVIL, "participant_id": "sub-000003"}
    hostile["quality"] |= {"flags": [EVIL], "passed": False, "snr": 12.0}  # a dot of its own
    out.write_json(out.record_paths("sub-000003")[0], hostile)
    lines = (folder / "bids" / "participants.tsv").read_text().splitlines()
    cells = [line.split("\t") for line in lines]
    cells[4][4] = EVIL  # group of sub-000003
    table = "\n".join("\t".join(line) for line in cells)
    (folder / "bids" / "participants.tsv").write_text(table + "\n")
    report.write_participants([PERSON, "sub-000003"], out)
    for path, text in originals.items():  # of the models of the others
        path.write_text(text)
    settings = Settings(folder / "bids", folder / "out", ("group",), permutations=0,
                        importance=("none",), phenotype_terms=("score",))  # fmt: skip
    assert group.run(settings) == 0
    return folder / "out"


def complete(record: dict[str, Any], age: float) -> None:
    """Let a simulated record be of the models in use, with the volumes that have curves."""
    one = record["predictions"]["ensemble"] | {"predicted_age": age + 3, "brain_age_gap": 3.0}
    one |= {"interval": [age - 6, age + 12]}
    record["age"] = age
    record["predictions"] = {
        name: one | {"weights_sha256": digest} for name, digest in reference.load().weights.items()
    } | {"ensemble": one}
    record["volumes_ml"] |= {
        "brain": 1250.0, "csf": 220.0, "cortex": 520.0, "left_lateral_ventricle": 11.0,
        "right_lateral_ventricle": 12.0, "left_hippocampus": 4.0, "right_hippocampus": 4.2,
    }  # fmt: skip
    record["steps"] = [{"step": "bias_field", "tool": "ANTsPy n4_bias_field_correction"}]


def write_pictures(record: dict[str, Any], shift: int, out: Derivatives) -> None:
    """Pictures of a ball: dark in the middle, and off its place in the template by `shift`."""
    x, y, z = np.ogrid[:48, :56, :50]
    radius = np.sqrt((x - 24.0) ** 2 + (y - 28.0) ** 2 + (z - 25.0) ** 2)
    labels = np.select([radius < 5, radius < 14, radius < 19], [3, 2, 1], 0)
    scan = np.array([5.0, 60, 110, 20])[labels]
    zooms, colors = (4.0, 4.0, 4.0), {1: "#E69F00", 2: "#ffffff", 3: "#0072B2"}
    names = {1: "Cortex", 2: "White matter", 3: "Ventricle"}
    pair = figures.registration_figure(scan, np.roll(scan, 3 + shift, axis=0) * 0.6, zooms)
    pictures = {
        "mask": figures.brain_mosaic(scan, labels > 0, zooms),
        "segmentation": figures.mask_mosaic(scan, labels, zooms, colors, names),
        "registration": pair.contours,
        "registered": pair.registered,
        "template": pair.template,
    }
    source = record["source"]
    stem = source.rpartition("/")[2].removesuffix("_T1w.nii.gz")
    of = Scan(Path(stem), source, PERSON, record["session_id"], stem, Demographics())
    for name, picture in pictures.items():
        out.write_bytes(out.figure(of.participant_id, of.stem, name), picture)
