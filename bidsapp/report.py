"""Figures of a scan and pages of participants: from images and records to files."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import models
from bidsapp import __version__
from bidsapp.derivatives import Derivatives
from bidsapp.errors import UserError
from bidsapp.study import Scan

if TYPE_CHECKING:
    from bidsapp.preprocessing.image import Image
    from bidsapp.preprocessing.segmentation import Segmentation

log = logging.getLogger(__name__)

FIGURES = ("segmentation", "registration", "registered", "template")


def write_figures(
    scan: Scan, found: Segmentation, registered: Image, template: Image, out: Derivatives
) -> None:
    """The pictures of a scan's report, as PNG files."""
    from bidsapp.reporting.figures import mask_mosaic, registration_figure
    from models.segmentation.labels import LABELS

    segmentation = mask_mosaic(
        found.working.data,
        found.working_labels,
        found.working.zooms,
        {label.index: label.color for label in LABELS},
        {label.index: _without_side(label.name) for label in LABELS},
        brain=found.working_mask,
    )
    pair = registration_figure(template.data, registered.data, registered.zooms)
    pictures = (segmentation, pair.contours, pair.registered, pair.template)
    for name, picture in zip(FIGURES, pictures, strict=True):
        out.write_bytes(out.figure(scan.participant_id, scan.stem, name), picture)


def _without_side(name: str) -> str:
    return name.removeprefix("Left ").removeprefix("Right ").capitalize()


def write_participants(scans: Sequence[Scan], out: Derivatives, names: Iterable[str]) -> None:
    """One page per participant, from the records and pictures that are there.

    Sessions that this run was not about keep their part of the page.
    """
    from bidsapp.reporting.methods import citation_markdown, stem_of
    from bidsapp.reporting.participant_page import participant_page

    cards = {name: asdict(models.card(name)) for name in names if name in models.known()}
    every: list[dict[str, Any]] = []
    for participant in sorted({scan.participant_id for scan in scans}):
        records = []
        for path in out.record_paths(participant):
            try:
                records.append(out.read_record(path))
            except UserError as error:
                log.warning("%s", error)
        if records:
            stems = map(stem_of, records)
            figures = {stem: _figures(participant, stem, out) for stem in stems}
            page = participant_page(participant, records, figures, cards, __version__)
            out.write_text(out.report(participant), page)
            every += records
    if every:
        out.prepare(citation_markdown(every, cards, __version__))
        log.info("Reports: %s", out.report("sub-*"))


def _figures(
    participant_id: str, stem: str, out: Derivatives
) -> dict[str, tuple[bytes, str, str]]:
    paths = {name: out.figure(participant_id, stem, name) for name in FIGURES}
    return {
        name: (path.read_bytes(), "image/png", "") for name, path in paths.items() if path.exists()
    }
