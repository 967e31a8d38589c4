"""Figures of a scan and pages of participants: from images and records to files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import UndefinedError

import models
from bidsapp import __version__
from bidsapp.derivatives import Derivatives
from bidsapp.errors import UserError
from bidsapp.importance.sidecar import belongs, preprocessing_of, weights_of
from bidsapp.study import Scan

if TYPE_CHECKING:
    from bidsapp.preprocessing.image import Image
    from bidsapp.preprocessing.segmentation import Segmentation
    from bidsapp.reporting.group_page import Results
    from bidsapp.reporting.importance_figures import MapSection

log = logging.getLogger(__name__)

FIGURES = ("mask", "segmentation", "registration", "registered", "template")


def write_figures(
    scan: Scan, found: Segmentation, registered: Image, template: Image, out: Derivatives
) -> None:
    """The pictures of a scan's report, as PNG files."""
    from bidsapp.reporting.figures import brain_mosaic, mask_mosaic, registration_figure
    from models.segmentation.labels import LABELS

    working = found.working
    mask = brain_mosaic(working.data, found.on_working.intracranial, working.zooms)
    segmentation = mask_mosaic(
        working.data,
        found.on_working.labels,
        working.zooms,
        {label.index: label.color for label in LABELS},
        {label.index: _without_side(label.name) for label in LABELS},
        brain=found.on_working.mask,
    )
    pair = registration_figure(template.data, registered.data, registered.zooms)
    pictures = (mask, segmentation, pair.contours, pair.registered, pair.template)
    for name, picture in zip(FIGURES, pictures, strict=True):
        out.write_bytes(out.figure(scan.participant_id, scan.stem, name), picture)


def _without_side(name: str) -> str:
    return name.removeprefix("Left ").removeprefix("Right ").capitalize()


def write_participants(participants: Iterable[str], out: Derivatives, pages: bool = True) -> int:
    """One page per participant, from the records and pictures that are there; and what to cite.

    All records of a participant have their part of the page, whichever run made them.

    Returns
    -------
    int
        How many of the participants have a record.
    """
    from bidsapp.preprocessing.quality import LIMITS, limits_in_words
    from bidsapp.reporting.methods import citation_markdown, stem_of
    from bidsapp.reporting.participant_page import participant_page

    limits = {name: limits_in_words(*pair) for name, pair in LIMITS.items()}

    cards = {name: asdict(card) for name, card in models.known().items()}
    every: list[dict[str, Any]] = []
    written = 0
    for participant in sorted(set(participants)):
        records = []
        for path in out.record_paths(participant):
            try:
                records.append(out.read_record(path))
            except UserError as error:
                log.warning("%s", error)
        every += records
        written += bool(records)
        if records and pages:
            by_stem = {stem_of(record): record for record in records}
            figures = {stem: _figures(participant, stem, out) for stem in by_stem}
            maps = {
                stem: _map_sections(participant, stem, record, out)
                for stem, record in by_stem.items()
            }
            page = participant_page(
                participant, records, figures, cards, __version__, maps, limits
            )
            out.write_text(out.report(participant), page)
    if every:
        out.prepare(citation_markdown(every, cards, __version__))
    if every and pages:
        log.info("Reports: %s", out.report("sub-*"))
    return written


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
    return titles | ({"ensemble": "Models together"} if "ensemble" in titles else {})


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

    What the page says is kept beside it, so that `rewrite_group` can make it again.

    Parameters
    ----------
    remarks
        What is to be said of importance maps, such as why there are none.
    """
    from bidsapp.reporting.group_page import group_content

    content = group_content(results, __version__) | {"remarks": list(remarks)}
    out.write_json(out.group_page_content, content)
    _write_group_page(content, figures, out)


def rewrite_group(out: Derivatives) -> None:
    """Make the page of the group again from what an earlier run has kept and drawn.

    Raises
    ------
    UserError
        No earlier run of the group level has left what is needed, or it is damaged.
    """
    from bidsapp.reporting.group_page import FIGURES as NAMES

    pictures = {name: out.read_bytes(out.group_figure(name)) for name in NAMES}
    figures = {name: svg.decode() for name, svg in pictures.items() if svg is not None}
    content = out.read_group_page_content()
    try:
        _write_group_page(content, figures, out)
    except (KeyError, TypeError, ValueError, UndefinedError) as error:
        raise UserError(
            f"{out.group_page_content} is not what this version writes ({error}); run the group "
            "level without --reports-only."
        ) from error


def _write_group_page(
    content: Mapping[str, Any], figures: Mapping[str, str], out: Derivatives
) -> None:
    from bidsapp.reporting.group_page import group_page

    maps = map_sections(out.group_importance_maps(), out.group_importance_figure, out)
    pages = {each for each in out.participants() if out.report(each).is_file()}
    page = group_page(content, figures, __version__, maps, content["remarks"], pages)
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


def _map_sections(
    participant_id: str, stem: str, record: Mapping[str, Any], out: Derivatives
) -> list[MapSection]:
    """The maps that explain the ages of the record, not what an earlier image has left."""
    key, weights = preprocessing_of(record), weights_of(record)
    there = out.importance_maps(participant_id, stem)
    maps = {label: about for label, about in there.items() if belongs(about, key, weights)}
    return map_sections(maps, partial(out.importance_figure, participant_id, stem), out)


def _figures(
    participant_id: str, stem: str, out: Derivatives
) -> dict[str, tuple[bytes, str, str]]:
    paths = {name: out.figure(participant_id, stem, name) for name in FIGURES}
    return {
        name: (path.read_bytes(), "image/png", "") for name, path in paths.items() if path.exists()
    }
