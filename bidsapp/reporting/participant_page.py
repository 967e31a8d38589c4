"""The report of one participant: one self-contained HTML page, a part per scan."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jinja2

from bidsapp.reporting import reference
from bidsapp.reporting.figures import REGISTRATION_COLUMNS, age_bars
from bidsapp.reporting.importance_figures import MapSection
from bidsapp.reporting.lifespan import Point, lifespan_figure, sessions_figure
from bidsapp.reporting.methods import (
    NOT_A_MEDICAL_DEVICE,
    Record,
    methods_text,
    parameter_words,
    short_hash,
    stem_of,
    step_name,
    tool_words,
    words,
)
from bidsapp.reporting.quality_strips import QUALITY, titled

Card = Mapping[str, Any]
Figure = tuple[bytes | str, str, str]
"""Content, MIME type, alternative text (if empty, that of `ALTERNATIVE_TEXTS`)."""

ALTERNATIVE_TEXTS = {
    "mask": "Axial, coronal and sagittal cuts of the scan with the outline of the brain mask.",
    "segmentation": "The same cuts with the tissues and regions of the brain in colour.",
    "registration": "Cuts of the scan in template space with the outlines of the template's brain "
    "and white matter.",
    "registered": "The scan in template space.",
    "template": "The template, in the same cuts.",
}
"""The figures with a place of their own in the page; any other comes after them."""


def participant_page(
    participant_id: str,
    records: Sequence[Record],
    figures: Mapping[str, Mapping[str, Figure]],
    cards: Mapping[str, Card],
    version: str,
    maps: Mapping[str, Sequence[MapSection]] | None = None,
    limits: Mapping[str, str] | None = None,
) -> str:
    """Build the HTML page of one participant.

    Parameters
    ----------
    participant_id : str
        "sub-01".
    records : sequence of records
        The `*_brainage.json` of the participant's scans, in the order they are shown.
    figures : mapping from stem to (mapping from name to figure)
        Figures of each scan; a figure is (content, MIME type, alternative text). The names of
        `ALTERNATIVE_TEXTS` have their place, others are shown after them.
    cards : mapping from model to card
        Model cards as dictionaries.
    version : str
        Version of this app.
    maps : mapping from stem to importance maps, optional
        Of each scan.
    limits : mapping from quality figure to its limits in words, optional
        Of those that have limits.

    Returns
    -------
    str
        A page that needs no other file and makes no request. All text of records, cards and
        labels is escaped; null is shown as "not known".
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bidsapp.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = environment.get_template("flicker.js.j2").render()
    scans = [
        _scan(r, figures.get(stem_of(r), {}), cards, limits or {})
        | {"maps": (maps or {}).get(stem_of(r))}
        for r in records
    ]
    several = len(records) > 1
    return environment.get_template("participant.html.j2").render(
        participant=participant_id,
        scans=scans,
        sessions=_sessions_picture(records, scans) if several else None,
        lifespan=_lifespan(records, scans, cards),
        panels=REGISTRATION_COLUMNS,
        methods=methods_text(records, cards, version),
        cite=_to_cite(records, cards, version),
        version=version,
        not_a_medical_device=NOT_A_MEDICAL_DEVICE,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _scan(
    record: Record, figures: Mapping[str, Figure], cards: Mapping[str, Card],
    limits: Mapping[str, str],
) -> dict:  # fmt: skip
    """Everything the page says about one scan, as text."""
    predictions = record.get("predictions") or {}
    quality = record.get("quality") or {}
    titles = {name: str(card.get("title") or name) for name, card in cards.items()}
    titles["ensemble"] = "Models together" if len(predictions) > 2 else "Predicted age"
    shown = _chart_rows(predictions)
    pictures = {name: _picture(name, *figure) for name, figure in figures.items()}
    seconds = record.get("seconds") or {}
    return {
        "stem": stem_of(record),
        "title": _title(record),
        "facts": _facts(record),
        "tiles": _tiles(record, predictions, quality),
        "predicted_age": _number(_main(predictions).get("predicted_age"), 1),
        "interval": _interval(_main(predictions)),
        "gap": _signed(_main(predictions).get("brain_age_gap")),
        "flags": len(quality.get("flags") or ()),
        "chart": _picture("ages", age_bars(shown, record.get("age"), titles), "image/svg+xml",
                          _chart_words(shown, titles)),
        "passed": quality.get("passed"),
        "warnings": _quality_warnings(quality) + _prediction_warnings(predictions, cards),
        "pictures": pictures,
        "other_pictures": [p for n, p in pictures.items() if n not in ALTERNATIVE_TEXTS],
        "volumes": _volume_rows(record.get("volumes_ml") or {}),
        "quality": _quality_rows(quality, limits),
        "models": [_model_row(n, p, cards.get(n, {})) for n, p in predictions.items()],
        "steps": [_step_row(step) for step in record.get("steps") or ()],
        "seconds": [(_spaced(name), words(value)) for name, value in seconds.items()],
        "software": [(str(name), words(v)) for name, v in (record.get("software") or {}).items()],
        "fingerprint": _fingerprint(record.get("fingerprint")),
    }  # fmt: skip


def _title(record: Record) -> str:
    """The entities of a scan in words: "session 1, run 2"."""
    names = {"ses": "session", "acq": "acquisition", "rec": "reconstruction", "run": "run"}
    entities = [part.partition("-") for part in stem_of(record).split("_")]
    said = [f"{names.get(key, key)} {value}" for key, _, value in entities if key != "sub"]
    return ", ".join(said).capitalize() or "Scan"


# --- ages ------------------------------------------------------------------------------------


def _chart_rows(predictions: Mapping[str, Record]) -> dict[str, Record]:
    """The ensemble first; with one model, that alone, since the two are equal."""
    models = {name: p for name, p in predictions.items() if name != "ensemble"}
    if "ensemble" not in predictions or len(models) == 1:
        return models
    return {"ensemble": predictions["ensemble"], **models}


def _chart_words(predictions: Mapping[str, Record], titles: Mapping[str, str]) -> str:
    said = [f"{titles.get(n, n)} {_years(p.get('predicted_age'))}" for n, p in predictions.items()]
    return f"Predicted age of each model with its interval: {'; '.join(said) or 'none'}."


def _main(predictions: Mapping[str, Record]) -> Record:
    return predictions.get("ensemble") or next(iter(predictions.values()), {})


def _tiles(
    record: Record, predictions: Mapping[str, Record], quality: Record
) -> list[dict[str, str]]:
    """What one looks for first: title, value, unit, and what goes with it."""
    prediction, age = _main(predictions), record.get("age")
    interval, gap = _interval(prediction), prediction.get("brain_age_gap")
    passed, flags = str(quality.get("passed")), len(quality.get("flags") or ())
    words_of = {"True": "passed", "False": f"{flags} flag{'s' * (flags != 1)}"}
    sound = passed == "True"
    sex = {"F": "female", "M": "male"}.get(str(record.get("sex")), words(record.get("sex")))
    return [
        _tile("Predicted age", _number(prediction.get("predicted_age"), 1), "years",
              f"{_coverage(prediction)} interval {interval}" if interval else ""),
        _tile("Age at the scan", _number(age, 1), "years", f"Sex {sex}"),
        _tile("Brain-age gap", _signed(gap), "years", _gap_words(prediction, age)),
        _tile("Quality", words_of.get(passed, "not known"), "",
              f"{'No quality flag was raised. ' if sound else ''}Look at the pictures"
              f"{' all the same' if sound else ''}.",
              {"True": "good", "False": "look"}.get(passed, "unknown")),
    ]  # fmt: skip


def _facts(record: Record) -> list[tuple[str, str]]:
    """Where the scan comes from, and what making its results took."""
    volumes, seconds = record.get("volumes_ml") or {}, record.get("seconds") or {}
    took = sum(value for name, value in seconds.items() if name != "total" and _is_number(value))
    return [
        ("Scan", words(record.get("source"))),
        *((key.capitalize(), words(record[key])) for key in ("site", "group") if record.get(key)),
        ("Brain volume", f"{_number(volumes.get('brain'), 0)} ml"),
        *([("Processing", f"{took:.0f} seconds")] if took else ()),
    ]


def _tile(title: str, value: str, unit: str, more: str, state: str = "") -> dict[str, str]:
    known = value != "not known"
    return {"title": title, "value": value, "unit": unit if known else "", "more": more,
            "state": state}  # fmt: skip


def _gap_words(prediction: Record, age: float | None) -> str:
    gap = prediction.get("brain_age_gap")
    if age is None or gap is None:
        return "because the age is not known" if age is None else ""
    said = f"The prediction is {'above' if gap > 0 else 'below'} the age"
    low, high = prediction.get("interval") or (None, None)
    if low is None or high is None:
        return f"{said}."
    return f"{said}, which lies {'inside' if low <= age <= high else 'outside'} the interval."


def _model_row(name: str, prediction: Record, card: Card) -> dict[str, Any]:
    low, high = (card.get("contract") or {}).get("ages") or (None, None)
    trained_on = f" ({low:g} to {high:g} years)" if high is not None else ""
    weights = prediction.get("weights_sha256") or card.get("weights_sha256")
    return {
        "title": "Ensemble" if name == "ensemble" else str(card.get("title") or name),
        "name": name,
        "version": str(card.get("version") or ""),
        "predicted_age": _number(prediction.get("predicted_age"), 1),
        "standard_deviation": _number(prediction.get("standard_deviation"), 1),
        "interval": _interval(prediction) or "not known",
        "coverage": _coverage(prediction),
        "gap": _signed(prediction.get("brain_age_gap")),
        "within": words(prediction.get("within_training_ages")) + trained_on,
        "sex_assumed": words(prediction.get("sex_assumed")),
        "weights": short_hash(weights) if weights else "",
        "license": str(prediction.get("license") or card.get("license") or ""),
        "summary": str(card.get("summary") or ""),
        "known_failures": [str(failure) for failure in card.get("known_failures") or ()],
    }


# --- the person among others, and over time ---------------------------------------------------

_REGION_TITLES = {
    "lateral_ventricles": "Lateral ventricles",
    "cortex": "Cortex",
    "hippocampus": "Hippocampus",
}


def _lifespan(
    records: Sequence[Record], scans: Sequence[Mapping[str, Any]], cards: Mapping[str, Card]
) -> dict[str, Any]:
    """Pictures of the person among reference people, and who these are."""
    known = [(r, s) for r, s in zip(records, scans) if _is_number(r.get("age"))]
    curves = reference.load()
    panels, people = [], []
    ages = [_of_predicted_age(record, curves, cards) for record, _ in known]
    if ages and all(of is not None and of is ages[0] for of in ages) and ages[0]:
        title = "Predicted age (years)"
        points = [(s, _point(r)) for r, s in known]
        panels.append(_lifespan_panel(title, "years", ages[0], points, equal=True))
        people.append(f"Ages: {curves.people['predicted_age']}.")
    volumes = [record.get("volumes_ml") or {} for record, _ in known]
    whole = "intracranial" if all(of.get("csf") is not None for of in volumes) else "brain"
    unit = "% of intracranial volume" if whole == "intracranial" else "% of brain volume"
    for region, title in _REGION_TITLES.items():
        shares = [reference.percent(of, region, whole) for of in volumes]
        points = [
            (scan, Point(float(record["age"]), share))
            for (record, scan), share in zip(known, shares) if share is not None
        ]  # fmt: skip
        if points:
            of_region = curves.volumes[whole][region]
            panels.append(_lifespan_panel(f"{title} ({unit})", unit, of_region, points))
    if any(panel["is_volume"] for panel in panels):
        people.append(f"Volumes: {curves.people['volumes']}.")
        if whole == "brain":
            people.append("Of a scan that came stripped, what was cut off is missing here.")
    return {"panels": panels, "people": people, "age_known": bool(known)}


def _of_predicted_age(
    record: Record, curves: reference.Reference, cards: Mapping[str, Card]
) -> reference.Curves | None:
    predictions = record.get("predictions") or {}
    if _main(predictions).get("predicted_age") is None:
        return None
    beside = {name for name, card in cards.items() if not card.get("in_ensemble", True)}
    voting = {name: p for name, p in predictions.items() if name not in beside}
    return curves.predicted_age(voting or predictions)


def _lifespan_panel(
    title: str,
    unit: str,
    curves: reference.Curves,
    points: Sequence[tuple[Mapping[str, Any], Point]],
    equal: bool = False,
) -> dict[str, Any]:
    svg = lifespan_figure(title, curves, [point for _, point in points], equal)
    said = []
    for scan, point in points:
        lead = f"{scan['title']}: " if len(points) > 1 else ""
        where = _percentile_words(curves.percentile(point.age, point.value))
        said.append(f"{lead}{point.value:#.3g} {unit.split()[0]}, {where}")
    caption = "; ".join(said)
    return {
        **_picture("lifespan", svg, "image/svg+xml", f"{title} by age. {caption}."),
        "caption": caption,
        "is_volume": not equal,
    }


def _percentile_words(percentile: float | None) -> str:
    if percentile is None:
        return "no reference people of this age"
    first, last = reference.PERCENTILES[0], reference.PERCENTILES[-1]
    if percentile <= first + 0.01:
        return f"at or below percentile {first} of this age"
    if percentile >= last - 0.01:
        return f"at or above percentile {last} of this age"
    return f"percentile {percentile:.0f} of this age"


def _point(record: Record, place: float | None = None) -> Point:
    prediction = _main(record.get("predictions") or {})
    low, high = prediction.get("interval") or (None, None)
    interval = None if low is None or high is None else (float(low), float(high))
    age = float(record["age"]) if place is None else place
    return Point(age, float(prediction["predicted_age"]), interval)


def _sessions_picture(
    records: Sequence[Record], scans: Sequence[Mapping[str, Any]]
) -> dict[str, str] | None:
    """Predicted age over time: over the age where it is known of all scans, else in order."""
    shown = [
        (record, scan) for record, scan in zip(records, scans)
        if _main(record.get("predictions") or {}).get("predicted_age") is not None
    ]  # fmt: skip
    if len(shown) < 2:
        return None
    ages = {record.get("age") for record, _ in shown}
    by_age = len(ages) > 1 and all(map(_is_number, ages))
    points = [_point(r, None if by_age else n) for n, (r, _) in enumerate(shown, 1)]
    named = [replace(point, name=scan["title"]) for point, (_, scan) in zip(points, shown)]
    said = "; ".join(
        f"{scan['title']} {scan['predicted_age']} ({scan['interval']})" for _, scan in shown
    )
    svg = sessions_figure(named, by_age)
    return _picture("sessions", svg, "image/svg+xml", f"Predicted age of each scan: {said}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and value == value


def _to_cite(records: Sequence[Record], cards: Mapping[str, Card], version: str) -> list[str]:
    """The software, and the papers of the models that were run."""
    used = {name: None for r in records for name in r.get("predictions") or {}}
    papers = [str(cards[name].get("citation") or "") for name in used if name in cards]
    papers = [paper for paper in papers if paper not in ("", "This software.")]
    software = (
        "The brainage developers. brainage: brain age from T1-weighted MRI, as a BIDS App. "
        f"Version {version}."
    )
    return [software, *dict.fromkeys(papers)]


# --- quality, volumes, steps -----------------------------------------------------------------


def _quality_warnings(quality: Record) -> list[str]:
    said = []
    for flag in quality.get("flags") or ():
        known = QUALITY.get(str(flag))
        if known is None:
            said.append(f"{_spaced(str(flag)).capitalize()}.")
            continue
        value = f"{_number(quality.get(str(flag)), known.digits)} {known.unit}".strip()
        said.append(f"{known.warning} ({known.title[0].lower()}{known.title[1:]}: {value}).")
    return said


def _prediction_warnings(
    predictions: Mapping[str, Record], cards: Mapping[str, Card]
) -> list[str]:
    said = []
    for name, prediction in predictions.items():
        if name == "ensemble" and len(predictions) > 1:
            continue  # says no more than its models do
        title = cards.get(name, {}).get("title") or name
        if prediction.get("within_training_ages") is False:
            low, high = (cards.get(name, {}).get("contract") or {}).get("ages") or (None, None)
            ages = f", {low:g} to {high:g} years" if high is not None else ""
            said.append(f"{title}: outside the ages it was trained on{ages}.")
        if prediction.get("sex_assumed"):
            said.append(f"{title}: sex is not known; the predictions for both were averaged.")
    return said


def _quality_rows(quality: Record, limits: Mapping[str, str]) -> list[dict[str, Any]]:
    flags = {str(flag) for flag in quality.get("flags") or ()}
    rows = []
    for name, value in quality.items():
        if name in ("passed", "flags"):
            continue
        known = titled(name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        shown = _number(value, known.digits) if number else words(value)
        rows.append(
            {
                "title": known.title,
                "value": f"{shown} {known.unit if value is not None else ''}".strip(),
                "meaning": known.meaning,
                "limits": limits.get(name, ""),
                "flagged": name in flags,
            }
        )
    return rows


_REGIONS = {"csf": "Outer CSF", "gray_matter": "Grey matter"}


def _volume_rows(volumes: Mapping[str, Any]) -> list[dict[str, str]]:
    """Left and right of one region share a row; each also as a share of the brain."""
    brain = volumes.get("brain")
    sided: dict[str, dict[str, Any]] = {}
    for key, value in volumes.items():
        side, _, region = key.partition("_")
        if side in ("left", "right") and region:
            sided.setdefault(region, {})[side] = value
        else:
            sided.setdefault(key, {})["total"] = value
    rows = []
    for region, of in sided.items():
        left, right, total = of.get("left"), of.get("right"), of.get("total")
        if total is None and left is not None and right is not None:
            total = left + right
        share = 100 * total / brain if total is not None and brain else None
        rows.append(
            {
                "region": _REGIONS.get(region, _spaced(region).capitalize()),
                "left": _number(left, 1) if "left" in of else "",
                "right": _number(right, 1) if "right" in of else "",
                "total": _number(total, 1),
                "share": _number(share, 1),
            }
        )
    return rows


def _fingerprint(given: Any) -> str:
    if isinstance(given, Mapping):
        return ", ".join(f"{name} {digest}" for name, digest in given.items())
    return str(given or "")


def _step_row(step: Record) -> dict[str, str]:
    told_elsewhere = ("step", "name", "tool", "version", "parameters", "seconds")
    results = {key: value for key, value in step.items() if key not in told_elsewhere}
    return {
        "name": _spaced(step_name(step)).capitalize(),
        "tool": tool_words(step),
        "parameters": parameter_words(step.get("parameters") or {}),
        "results": parameter_words(results),
        "seconds": _number(step["seconds"], 1) if "seconds" in step else "",
    }


# --- words -----------------------------------------------------------------------------------


def _picture(name: str, content: bytes | str, mime: str, alt: str) -> dict[str, str]:
    data = content.encode() if isinstance(content, str) else content
    return {
        "name": _spaced(name).capitalize(),
        "uri": f"data:{mime};base64,{base64.b64encode(data).decode()}",
        "alt": alt or ALTERNATIVE_TEXTS.get(name, _spaced(name).capitalize()),
    }


def _number(value: Any, digits: int) -> str:
    return "not known" if value is None or value != value else f"{value:.{digits}f}"


def _years(value: Any) -> str:
    return words(None) if value is None else f"{value:.1f} years"


def _signed(value: Any) -> str:
    return "not known" if value is None else f"{value:+.1f}".replace("-", "\N{MINUS SIGN}")


def _interval(prediction: Record) -> str:
    low, high = prediction.get("interval") or (None, None)
    return "" if low is None or high is None else f"{low:.1f} to {high:.1f}"


def _coverage(prediction: Record) -> str:
    coverage = prediction.get("coverage")
    return "" if coverage is None else f"{100 * coverage:.0f} %"


def _spaced(name: str) -> str:
    return name.replace("_", " ")
