"""The report of one participant: one self-contained HTML page, a part per scan."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from bidsapp.reporting.figures import age_bars
from bidsapp.reporting.importance_figures import MapSection
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

Card = Mapping[str, Any]
Figure = tuple[bytes | str, str, str]
"""Content, MIME type, alternative text (if empty, that of `ALTERNATIVE_TEXTS`)."""

ALTERNATIVE_TEXTS = {
    "segmentation": "Axial, coronal and sagittal cuts of the scan with the outline of the brain "
    "found and its regions in colour.",
    "registration": "Cuts of the scan in template space with the outlines of the template's brain "
    "and white matter.",
    "registered": "The scan in template space.",
    "template": "The template, in the same cuts.",
}
"""The figures with a place of their own in the page; any other comes after them."""


@dataclass(frozen=True)
class Quantity:
    """How a quality figure is named, and what it means when it is out of its accepted range."""

    title: str
    unit: str
    digits: int
    meaning: str
    warning: str


QUALITY = {
    "registration_correlation": Quantity(
        "Correlation with the template", "", 3, "1 is a perfect match",
        "The scan may not lie well on the template",
    ),
    "mask_overlap": Quantity(
        "Overlap with the template's brain", "", 3, "Dice, 1 is a perfect match",
        "The brain outline may not match the template",
    ),
    "brain_volume_ml": Quantity(
        "Brain volume", "ml", 0, "inside the brain mask",
        "The brain volume is implausible: the brain may not have been found correctly",
    ),
    "affine_determinant": Quantity(
        "Change of volume by registration", "", 2, "determinant of the affine",
        "The registration shrinks or stretches the brain implausibly",
    ),
    "affine_shear": Quantity(
        "Shear of the registration", "", 3, "0 is none",
        "The registration shears the brain implausibly",
    ),
    "largest_voxel_mm": Quantity(
        "Largest voxel side", "mm", 1, "as scanned",
        "The resolution is too coarse",
    ),
    "cnr": Quantity(
        "Contrast to noise", "", 2, "cortex against white matter, higher is better",
        "Grey and white matter are hard to tell apart",
    ),
    "snr": Quantity(
        "Signal to noise", "", 1, "in white matter, higher is better",
        "The image is noisy",
    ),
    "cjv": Quantity(
        "Joint variation", "", 2, "of cortex and white matter, lower is better",
        "The image is noisy or unevenly bright",
    ),
}  # fmt: skip


def participant_page(
    participant_id: str,
    records: Sequence[Record],
    figures: Mapping[str, Mapping[str, Figure]],
    cards: Mapping[str, Card],
    version: str,
    maps: Mapping[str, Sequence[MapSection]] | None = None,
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
    return environment.get_template("participant.html.j2").render(
        participant=participant_id,
        scans=[
            _scan(r, figures.get(stem_of(r), {}), cards) | {"maps": (maps or {}).get(stem_of(r))}
            for r in records
        ],
        methods=methods_text(records, cards, version),
        version=version,
        not_a_medical_device=NOT_A_MEDICAL_DEVICE,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _scan(record: Record, figures: Mapping[str, Figure], cards: Mapping[str, Card]) -> dict:
    """Everything the page says about one scan, as text."""
    predictions = record.get("predictions") or {}
    quality = record.get("quality") or {}
    titles = {name: str(card.get("title") or name) for name, card in cards.items()}
    titles["ensemble"] = "All models together" if len(predictions) > 2 else "Predicted age"
    shown = _chart_rows(predictions)
    pictures = {name: _picture(name, *figure) for name, figure in figures.items()}
    seconds = record.get("seconds") or {}
    return {
        "stem": stem_of(record),
        "title": _title(record),
        "source": words(record.get("source")),
        "age": _years(record.get("age")),
        "sex": {"F": "female", "M": "male"}.get(str(record.get("sex")), words(record.get("sex"))),
        "headline": _headline(predictions, record.get("age")),
        "chart": _picture("ages", age_bars(shown, record.get("age"), titles), "image/svg+xml",
                          _chart_words(shown, titles)),
        "passed": quality.get("passed"),
        "warnings": _quality_warnings(quality) + _prediction_warnings(predictions, cards),
        "pictures": pictures,
        "other_pictures": [p for n, p in pictures.items() if n not in ALTERNATIVE_TEXTS],
        "volumes": _volume_rows(record.get("volumes_ml") or {}),
        "quality": _quality_rows(quality),
        "models": [_model_row(n, p, cards.get(n, {})) for n, p in predictions.items()],
        "steps": [_step_row(step) for step in record.get("steps") or ()],
        "seconds": [(_spaced(name), words(value)) for name, value in seconds.items()],
        "software": [(str(name), words(v)) for name, v in (record.get("software") or {}).items()],
        "fingerprint": record.get("fingerprint"),
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


def _headline(predictions: Mapping[str, Record], age: float | None) -> dict[str, str]:
    prediction = predictions.get("ensemble") or next(iter(predictions.values()), {})
    interval = _interval(prediction)
    return {
        "age": _number(prediction.get("predicted_age"), 1),
        "interval": f"{_coverage(prediction)} interval {interval}" if interval else "",
        "gap": _gap_words(prediction, age),
    }


def _gap_words(prediction: Record, age: float | None) -> str:
    gap = prediction.get("brain_age_gap")
    if age is None or gap is None:
        return "not known, because the age is not known" if age is None else "not known"
    side = "above" if gap > 0 else "below"
    said = f"{_signed(gap)} years: the prediction is {side} the age"
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


def _quality_rows(quality: Record) -> list[dict[str, Any]]:
    flags = {str(flag) for flag in quality.get("flags") or ()}
    rows = []
    for name, value in quality.items():
        if name in ("passed", "flags"):
            continue
        known = QUALITY.get(name) or Quantity(_spaced(name).capitalize(), "", 3, "", "")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        shown = _number(value, known.digits) if number else words(value)
        rows.append(
            {
                "title": known.title,
                "value": f"{shown} {known.unit if value is not None else ''}".strip(),
                "meaning": known.meaning,
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
