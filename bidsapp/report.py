"""Figures of a scan and pages of participants: from images and records to files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import models
from bidsapp import __version__
from bidsapp.derivatives import Derivatives
from bidsapp.errors import UserError
from bidsapp.study import Scan

if TYPE_CHECKING:
    from bidsapp.preprocessing.image import Image
    from bidsapp.preprocessing.segmentation import Segmentation
    from bidsapp.reporting.group_page import Results
    from bidsapp.reporting.importance_figures import MapSection

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


def write_participants(
    scans: Sequence[Scan], out: Derivatives, names: Iterable[str], pages: bool = True
) -> None:
    """One page per participant, from the records and pictures that are there; and what to cite.

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
        every += records
        if records and pages:
            stems = map(stem_of, records)
            figures = {stem: _figures(participant, stem, out) for stem in stems}
            maps = {stem: _map_sections(participant, stem, out) for stem in figures}
            page = participant_page(participant, records, figures, cards, __version__, maps)
            out.write_text(out.report(participant), page)
    if every:
        out.prepare(citation_markdown(every, cards, __version__))
    if every and pages:
        log.info("Reports: %s", out.report("sub-*"))


def map_sections(
    maps: Mapping[str, Mapping[str, Any]], figure: Callable[[str, str], Path], out: Derivatives
) -> list[MapSection]:
    """What a page shows of importance maps, from their sidecars and pictures.

    Parameters
    ----------
    maps
        Sidecars by the labels of the maps.
    figure
        From a map's label and the name of a picture to its file.
    """
    from bidsapp.reporting.importance_figures import MapSection

    titles = model_titles(str(about.get("Model")) for about in maps.values())
    sections = []
    for label, about in maps.items():
        picture, bars = (out.read_bytes(figure(label, n)) for n in ("map.png", "regions.svg"))
        words = [f"{about.get('Description')}.", *about.get("Notes", ())]
        if about.get("AtlasMissing"):
            words.append(f"No table of regions. {about['AtlasMissing']}")
        title = f"{str(about.get('Method')).capitalize()}, {titles[str(about.get('Model'))]}"
        if picture:
            of_group = "SplitHalfCorrelation" in about
            sections.append(MapSection(title, words, picture, (bars or b"").decode(), of_group))
    return sections


def model_titles(names: Iterable[str]) -> dict[str, str]:
    """What to call each model: the title of its card, where there is one."""
    known = models.known()
    titles = {name: models.card(name).title if name in known else name for name in names}
    return titles | ({"ensemble": "All models together"} if "ensemble" in titles else {})


def write_group_figures(results: Results, out: Derivatives) -> dict[str, str]:
    """The figures of the group, by name; those of an earlier run do not stay."""
    from bidsapp.reporting.group_page import FIGURES as NAMES

    figures = _group_figures(results)
    for name in NAMES:
        if name in figures:
            out.write_text(out.group_figure(name), figures[name])
        else:
            out.remove(out.group_figure(name))
    return figures


def write_group(
    results: Results, figures: Mapping[str, str], out: Derivatives, remarks: Sequence[str] = ()
) -> None:
    """The page of the group, with its figures and with the importance maps that are there.

    Parameters
    ----------
    remarks
        What is to be said of importance maps, such as why there are none.
    """
    from bidsapp.reporting.group_page import group_page

    maps = map_sections(out.group_importance_maps(), out.group_importance_figure, out)
    page = group_page(results, figures, __version__, maps, remarks)
    out.write_text(out.group_report, page)
    log.info("Report: %s", out.group_report)


def _group_figures(results: Results) -> dict[str, str]:
    """The figures that the data allow."""
    from bidsapp.reporting import group_figures as draw
    from bidsapp.reporting.group_page import forest_rows

    titles = results.short
    frames = {titles[name]: frame for name, frame in results.frames.items()}
    decades = {titles[name]: table for name, table in results.decades.items()}
    coverages = {titles[n]: t for n, t in results.coverages.items() if t["observed"].notna().any()}
    pairs = {titles[name]: pair for name, pair in results.pairs.items()}
    effects = forest_rows(results, "difference")
    correlations = forest_rows(results, "partial r")
    figures = {
        "predicted": draw.predicted_figure(frames),
        "gap": draw.gap_figure(frames, decades),
    }
    if any(frame.loc[frame["tested"], "group"].nunique() > 1 for frame in frames.values()):
        figures["groups"] = draw.group_figure(frames)
    if len(effects):
        figures["effects"] = draw.forest_figure(effects, "Adjusted difference", "Hedges' g")
    if len(correlations):
        figures["phenotypes"] = draw.forest_figure(correlations, "Phenotypes", "Partial r")
    if coverages:
        figures["calibration"] = draw.calibration_figure(coverages)
    if pairs:
        figures["agreement"] = draw.agreement_figure(pairs)
    return figures


def _map_sections(participant_id: str, stem: str, out: Derivatives) -> list[MapSection]:
    figure = partial(out.importance_figure, participant_id, stem)
    return map_sections(out.importance_maps(participant_id, stem), figure, out)


def _figures(
    participant_id: str, stem: str, out: Derivatives
) -> dict[str, tuple[bytes, str, str]]:
    paths = {name: out.figure(participant_id, stem, name) for name in FIGURES}
    return {
        name: (path.read_bytes(), "image/png", "") for name, path in paths.items() if path.exists()
    }
