"""The report of the group level: one self-contained HTML page."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import jinja2
import pandas as pd
from markupsafe import Markup

from bidsapp.reporting.group_figures import OTHERS
from bidsapp.reporting.group_methods import Account, group_methods
from bidsapp.reporting.importance_figures import MapSection
from bidsapp.reporting.methods import NOT_A_MEDICAL_DEVICE
from bidsapp.reporting.quality_strips import Dot, strip_figure, titled

MOST_ROWS = 1000
"""Rows of the table of participants in the page; the file has all."""
MOST_NOTES = 30
MOST_DOTS = 300
"""Scans in a strip of quality figures."""
_MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Results:
    """Everything the page shows.

    Attributes
    ----------
    study
        Name of the data set.
    main
        The model that comes first.
    frames
        By model (without an ensemble that repeats another): one row per scan, with the columns of
        the group table and ``tested``.
    accuracy, statistics, reliability
        The tables as written.
    changes
        By model: change over sessions (`Change`), or nothing.
    decades
        By model: what is left of the bias in each decade.
    coverages
        By model: how much of the reference its intervals hold.
    pairs
        By model: agreement of two scans (`BlandAltman`) of the gap, where there are repeats.
    verdicts
        In the order of the steps; with ``severity`` and ``text``.
    account
        For the methods text.
    quality
        Quality figures of the scans, with the rows of a frame.
    """

    study: str
    main: str
    frames: Mapping[str, pd.DataFrame]
    accuracy: pd.DataFrame
    statistics: pd.DataFrame
    reliability: pd.DataFrame
    changes: Mapping[str, Any]
    decades: Mapping[str, pd.DataFrame]
    coverages: Mapping[str, pd.DataFrame]
    pairs: Mapping[str, Any]
    verdicts: Sequence[Any]
    account: Account
    quality: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def short(self) -> dict[str, str]:
        """Titles of models and volumes without what stands in parentheses, for tables."""
        titles = {name: t.partition(" (")[0] for name, t in self.account.titles.items()}
        return {"ventricles": "ventricles", "gray_matter": "grey matter"} | titles


FIGURES = {
    "predicted": "Predicted against chronological age. Dashed: both are equal. Solid: fitted to "
    "the reference. A line flatter than the dashed one is the age bias.",
    "gap": "Brain-age gap against age. Solid: fitted to the reference. Diamonds: mean of each "
    "decade of the reference with its 95 % interval, which should hold 0.",
    "groups": "Every person's gap by group. Diamonds: mean with its 95 % interval, not adjusted.",
    "effects": "Adjusted differences between groups in standard deviations (Hedges' g) with 95 % "
    "intervals. Circles: brain age. Squares: volumes, for comparison.",
    "phenotypes": "Partial correlations and 95 % intervals. Circles: brain age. Squares: volumes.",
    "calibration": "Share of the reference whose age lies inside of the interval. On the dashed "
    "line, an interval holds what it promises. Bars: 95 % intervals.",
    "agreement": "Differences between two scans of the same person. Solid: mean. Dashed: limits "
    "of agreement. Bands: their 95 % intervals.",
}
JOINED = "Groups that have no mark of their own are drawn together, as other groups."
"""In a caption where there are more groups than marks."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what is read, the number it is sorted by, and whose page it leads to."""

    text: str
    sort: float | None = None
    flagged: bool = False
    quiet: bool = False
    wraps: bool = False
    participant: str = ""

    @property
    def classes(self) -> str:
        """Names of its looks, for the style sheet."""
        return " ".join(name for name in ("flagged", "quiet", "wraps") if getattr(self, name))

    @property
    def number(self) -> bool:
        """Whether it holds a number."""
        return self.sort is not None

    @property
    def content(self) -> str | dict[str, Any]:
        """For JSON; a cell that is only read is its text."""
        if not (self.number or self.classes or self.participant):
            return self.text
        return {"text": self.text, "sort": self.sort, "classes": self.classes,
                "participant": self.participant}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A table that can be sorted and copied."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    filters: bool = False
    remarks: Sequence[str] = ()
    numeric: frozenset[int] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        found = {place for row in self.rows for place, cell in enumerate(row) if cell.number}
        object.__setattr__(self, "numeric", frozenset(found))

    @property
    def content(self) -> dict[str, Any]:
        """For JSON."""
        return vars(self) | {
            "rows": [[cell.content for cell in row] for row in self.rows],
            "numeric": sorted(self.numeric),
        }


def group_content(results: Results, version: str) -> dict[str, Any]:
    """All that the page says, as text and numbers that JSON can hold.

    `group_page` makes the page of it, now or when it is read back.
    """
    account = results.account
    severe = [each for each in results.verdicts if each.severity != "note"]
    notes = [each.text for each in results.verdicts if each.severity == "note"]
    methods = group_methods(account, version)
    tables = (_who, _accuracy, _corrections, _tests, _reliability, _participants)
    return {
        "study": results.study,
        "scans": account.scans,
        "participants": account.participants,
        "warnings": sorted({each.text: each.severity for each in severe}.items(),
                           key=_refused_first),
        "notes": list(dict.fromkeys(notes))[:MOST_NOTES],
        "more_notes": max(0, len(set(notes)) - MOST_NOTES),
        "headline": list(_headline(results)),
        "counts": account.counts,
        "tables": {made.name: made.content for made in (make(results) for make in tables)},
        "changes": list(_changes(results)),
        "quality": _quality(results),
        "methods": {"paragraphs": methods.paragraphs, "references": methods.references},
        "version": version,
    }  # fmt: skip


def group_page(
    content: Mapping[str, Any],
    figures: Mapping[str, str],
    version: str,
    maps: Sequence[MapSection] = (),
    remarks: Sequence[str] = (),
    pages: Collection[str] = (),
) -> str:
    """Build the page; it needs no other file and makes no request, and all text is escaped.

    Parameters
    ----------
    content
        From `group_content`.
    figures
        SVG text by name, of those in `FIGURES`.
    maps, remarks
        Importance maps, and what else is to be said of them.
    pages
        The participants who have a page of their own beside this one, to which dots and names
        lead.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bidsapp.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    links = {participant: f"./{quote(participant)}.html" for participant in pages}
    script = environment.get_template("tables.js.j2").render()
    return environment.get_template("group.html.j2").render(
        content=content,
        tables=content["tables"],
        figures={name: _picture(svg, _caption(name, svg)) for name, svg in figures.items()},
        strips=list(_strips(content["quality"], links)),
        links=links,
        maps=maps,
        remarks=remarks,
        version=version,
        not_a_medical_device=NOT_A_MEDICAL_DEVICE,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def forest_rows(results: Results, measure: str) -> pd.DataFrame:
    """What `forest_figure` draws: effects of one measure, of all models and volumes."""
    titles = results.short
    standardised = measure == "difference"
    effect = ("hedges_g", "hedges_g_low", "hedges_g_high") if standardised else (
        "effect", "effect_low", "effect_high")  # fmt: skip
    rows = []
    tests = results.statistics
    tests = tests[tests["measure"] == measure] if len(tests) else tests
    for test in tests[_is_plain(tests)].itertuples() if len(tests) else ():
        value, low, high = (getattr(test, name) for name in effect)
        if not _has(value):
            continue
        words = f"{_signed(value, 2)} [{_number(low, 2)}, {_number(high, 2)}]  p {_p(test.p)}"
        rows.append({
            "label": titles.get(test.model, test.model),
            "heading": str(test.contrast if _has(test.contrast) else test.term),
            "effect": value, "low": low, "high": high, "words": words,
            "is_model": test.model in results.frames,
        })  # fmt: skip
    return pd.DataFrame(rows)


# --- at a glance ---


def _headline(results: Results) -> Iterator[dict[str, str]]:
    """The few figures one looks for first: title, figure, and what goes with it."""
    frame = results.frames[results.main]
    tested = frame[frame["tested"]]
    reference = tested[tested["is_reference"]]
    people, others = reference["participant_id"].nunique(), tested["participant_id"].nunique()
    yield {
        "title": "Participants in the analysis",
        "value": str(others),
        "more": f"{people} of them are the reference ({results.account.reference})",
    }
    title = results.short[results.main]
    all_ = _accuracy_of(results.accuracy, results.main, "all", "all", "raw")
    if all_ is not None:
        yield {
            "title": f"Mean absolute error, {title}",
            "value": f"{_number(all_.mae, 1)} years",
            "more": f"{_interval(all_.mae_low, all_.mae_high, 1)} in the reference; r "
            f"{_number(all_.r, 2)}; not corrected",
        }
        yield {
            "title": "Mean gap of the reference",
            "value": f"{_signed(all_.bias, 1)} years",
            "more": f"{_interval(all_.bias_low, all_.bias_high, 1)}; should hold 0, not corrected",
        }
    tests = results.statistics
    if len(tests):
        of_main = (tests["model"] == results.main) & (tests["measure"] == "difference")
        plain = of_main & (tests["verdict"] == "tested") & _is_plain(tests)
        for test in tests[plain].head(2).itertuples():
            yield {
                "title": str(test.contrast),
                "value": f"{_signed(test.effect, 1)} years",
                "more": f"{_interval(test.effect_low, test.effect_high, 1)}, adjusted; g "
                f"{_signed(test.hedges_g, 2)}; p {_p(test.p)}, q {_p(test.q)}",
            }


def _is_plain(tests: pd.DataFrame) -> pd.Series:
    """Tests that are not about what the gap adds to volumes."""
    return ~tests["term"].fillna("").str.contains(", given ")


def _who(results: Results) -> Table:
    """Groups by what their scans count as."""
    frame = results.frames[results.main]
    groups = frame["group"].astype(object).where(frame["group"].notna(), "not known").astype(str)
    counts = pd.crosstab(groups, frame["role"])
    counts = counts[sorted(counts, key=lambda role: (role != "reference", role[:8] == "excluded"))]
    rows = []
    for group, of_group in counts.iterrows():
        of = frame[(groups == group) & frame["tested"]]
        sexes = of.drop_duplicates("participant_id")["sex"].value_counts()
        rows.append([
            Cell(str(group)),
            *(_count(number) for number in of_group),
            Cell(f"{_number(of['age'].min(), 0)} to {_number(of['age'].max(), 0)}"
                 if len(of) else "n/a"),
            Cell(_number(of["age"].mean(), 1), _sortable(of["age"].mean())),
            Cell(f"{sexes.get('F', 0)} / {sexes.get('M', 0)}"),
        ])  # fmt: skip
    columns = ["Group", *map(str, counts.columns), "Ages", "Mean age", "Women / men"]
    return Table("groups", columns, rows, "Scans by what they count as. Ages and sexes: of those "
                 "in the analysis.")  # fmt: skip


# --- tables ---


def _accuracy_of(
    table: pd.DataFrame, model: str, stratum: str, level: str, prediction: str
) -> Any | None:
    if table.empty:
        return None
    wanted = {"model": model, "stratum": stratum, "level": level, "prediction": prediction}
    rows = table
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    return next(rows.itertuples(), None)


def _accuracy(results: Results) -> Table:
    table = results.accuracy
    rows = []
    raw = table[table["prediction"] == "raw"] if len(table) else table
    order = {name: place for place, name in enumerate(results.frames)}
    raw = raw.sort_values("model", key=lambda names: names.map(order), kind="stable") if len(
        raw) else raw  # fmt: skip
    for row in raw.itertuples():
        after = _accuracy_of(table, row.model, row.stratum, row.level, "corrected")
        stratum = "age" if row.stratum == "decade" else row.stratum
        rows.append([
            Cell(results.short.get(row.model, row.model)),
            Cell("reference" if stratum == "all" else f"{stratum} {row.level}"),
            _count(row.n),
            Cell(f"{_number(row.age_low, 0)} to {_number(row.age_high, 0)}"),
            _bounded(row.mae, row.mae_low, row.mae_high, 1),
            _bounded(row.bias, row.bias_low, row.bias_high, 1, signed=True),
            _bounded(row.r, row.r_low, row.r_high, 2),
            _cell(row.r2, 2),
            _cell(row.slope, 2),
            _cell(row.gap_age_r, 2, signed=True),
            _cell(after.mae if after else None, 1, quiet=True),
            _cell(after.r if after else None, 2, quiet=True),
        ])  # fmt: skip
    columns = ["Model", "Of", "n", "Ages", "MAE", "Mean gap", "r", "R²", "Slope",
               "r (gap, age)", "MAE corrected", "r corrected"]  # fmt: skip
    note = (
        "Of the reference, and of the groups beside it. Years; brackets: 95 % intervals by "
        "bootstrap of people. MAE: mean absolute error; slope: of predicted on chronological age. "
        "Errors of sets with other age ranges do not compare. Corrected ages contain the age "
        "itself: the last two columns say nothing about the model."
    )
    return Table("accuracy", columns, rows, note)


def _corrections(results: Results) -> Table:
    rows = []
    for model, each in results.account.corrections.items():
        if not each:
            continue
        refused = [v["text"] for v in each["verdicts"] if v["severity"] == "refused"]
        spread = [row[place] ** 0.5 if row[place] else None
                  for place, row in enumerate(each["covariance"])]  # fmt: skip
        said = [
            f"{term} {_signed(value, 3)}" + (f" (SE {_number(error, 3)})" if error else "")
            for term, value, error in zip(each["terms"], each["coefficients"], spread)
        ]
        rows.append([
            Cell(results.short[model]),
            Cell(f"{each['method']}, degree {each['degree']}{', robust' * each['robust']}"),
            _count(each["n"]),
            Cell(f"{_number(each['age_low'], 0)} to {_number(each['age_high'], 0)}"),
            _bounded(each["slope"], each["slope_low"], each["slope_high"], 2),
            Cell("; ".join(said), wraps=True),
            _cell(each["residual_sd"], 1),
            Cell("refused" if refused and not each["forced"] else
                 "forced" if each["forced"] else "used", flagged=bool(refused)),
        ])  # fmt: skip
    columns = ["Model", "Method", "n", "Ages", "Slope", "Coefficients of the gap",
               "SD left (years)", "Verdict"]  # fmt: skip
    note = (
        "Fitted on the reference. Slope: of predicted on chronological age; 1 is no bias, and "
        "below 0.5 a corrected gap is little more than the age again. Ages in coefficients count "
        "from the reference's mean."
    )
    return Table("corrections", columns, rows, note)


def _tests(results: Results) -> Table:
    rows, remarks = [], dict[str, int]()
    for test in results.statistics.itertuples():
        years = test.model in results.frames
        unit = str(test.measure) in ("difference", "mean")
        digits = 1 if unit and years else 2
        about = str(test.contrast if _has(test.contrast) else test.term)
        given = str(test.term).partition(", given ")[2].replace("gray_matter", "grey matter")
        outcome = "" if test.outcome != "corrected_gap" else ", corrected gap"
        how = [f"Adjusted for {test.covariates}." if _has(test.covariates) else "", test.notes]
        how_text = " ".join(str(part) for part in how if _has(part))
        how_text = how_text.replace("age2", "age²").replace("gray_matter", "grey matter")
        tested = test.verdict in ("tested", "described")
        row = [
            Cell(f"{about}{f', given {given}' if given else ''}", wraps=True),
            Cell(f"{results.short.get(test.model, test.model)}{outcome}"),
            Cell(str(test.measure) if tested else str(test.verdict).replace("_", " "),
                 flagged=not tested),
            _count(test.n),
            _bounded(test.effect, test.effect_low, test.effect_high, digits,
                     signed="odds" not in str(test.measure)),
            _bounded(test.hedges_g, test.hedges_g_low, test.hedges_g_high, 2, signed=True),
            Cell(_p(test.p), _sortable(test.p)),
            Cell(_p(test.p_permutation), _sortable(test.p_permutation)),
            Cell(_p(test.q), _sortable(test.q)),
            Cell(f"{_number(test.auc, 2)} / {_number(test.auc_without, 2)}"
                 if _has(test.auc) else "", _sortable(test.auc)),
            Cell(str(remarks.setdefault(how_text, len(remarks) + 1)) if how_text else ""),
        ]  # fmt: skip
        rows.append([Cell("") if cell.text == "n/a" else cell for cell in row])
    columns = ["Test", "Of", "Effect is", "n", "Effect", "Hedges' g", "p", "p permuted", "q",
               "AUC with / without", "Remark"]  # fmt: skip
    note = (
        "Differences and means of gaps are in years, of volumes in percent of the brain. "
        "Brackets: 95 % intervals. q: false discovery rate over all tests of this run."
    )
    return Table("tests", columns, rows, note, remarks=tuple(remarks))


def _reliability(results: Results) -> Table:
    rows = [
        [
            Cell(results.short.get(row.model, row.model)),
            Cell(str(row.quantity).replace("_", " ")),
            Cell(str(row.type)),
            _bounded(row.icc, row.low, row.high, 3),
            _cell(row.sem, 2),
            _cell(row.sdc, 2),
            _count(row.n),
            _count(row.k),
        ]
        for row in results.reliability.itertuples()
    ]
    columns = ["Model", "Of", "Type", "ICC", "SEM (years)", "Smallest detectable change (years)",
               "People", "Scans of each"]  # fmt: skip
    note = (
        "ICC(2,1): absolute agreement; ICC(3,1): consistency. The correlation of predicted ages "
        "is raised by the range of ages; that of the gap is the one to quote."
    )
    return Table("reliability", columns, rows, note)


def _changes(results: Results) -> Iterator[str]:
    for model, change in results.changes.items():
        if change.method == "none":
            continue
        yield (
            f"{results.short[model]}: per year of time, predicted age rises by "
            f"{_number(change.age_change, 2)} years "
            f"({_interval(change.age_low, change.age_high, 2)}), so that the gap changes by "
            f"{_signed(change.gap_change, 2)} (p {_p(change.p)}); {change.scans} scans of "
            f"{change.participants} people over {_number(change.mean_years, 1)} years on average; "
            f"{change.method}."
        )


def _participants(results: Results) -> Table:
    frame = results.frames[results.main]
    shown = frame
    if len(frame) > MOST_ROWS:
        size = frame["corrected_gap"].fillna(frame["brain_age_gap"]).abs()
        shown = frame.loc[size.sort_values(ascending=False).index[:MOST_ROWS]].sort_index()
    sessions = shown["session_id"].notna().any()
    rows = []
    for row in shown.itertuples():
        flags = str(row.quality_flags or "").replace(",", ", ").replace("_", " ")
        rows.append([
            Cell(str(row.participant_id), participant=str(row.participant_id)),
            *([Cell(_word(row.session_id))] if sessions else ()),
            _cell(row.age, 1),
            Cell(_word(row.sex)),
            Cell(_word(row.site)),
            Cell(_word(row.group)),
            _cell(row.predicted_age, 1),
            Cell(_interval(row.interval_low_local, row.interval_high_local, 1)),
            _cell(row.brain_age_gap, 1, signed=True),
            _cell(row.corrected_gap, 1, signed=True),
            Cell(_p(row.accelerated_p), _sortable(row.accelerated_p)),
            Cell(flags or ("passed" if row.quality_passed else "not known"), flagged=bool(flags)),
            Cell(str(row.role), flagged=str(row.role).startswith("excluded")),
        ])  # fmt: skip
    columns = ["Participant", *(["Session"] if sessions else ()), "Age", "Sex", "Site", "Group",
               "Predicted age", "Interval", "Gap", "Corrected gap", "p", "Quality",
               "Role"]  # fmt: skip
    note = (
        f"{results.short[results.main]}; years. Interval: calibrated on the reference, "
        "where it is large enough. p: share of the reference with a corrected gap at least as "
        "large; not corrected for the number of people."
    )
    if len(frame) > len(shown):
        note += (
            f" Shown are the {len(shown):,} of {len(frame):,} scans with the largest gaps; "
            "group_brainage.tsv has all."
        )
    return Table("participants", columns, rows, note, filters=True)


# --- quality ---


def _quality(results: Results) -> dict[str, Any]:
    """Figures of the scans that the strips show: of a large study, all flagged and every n-th."""
    frame, figures = results.frames[results.main].reset_index(drop=True), results.quality
    frame["session_id"] = frame["session_id"].where(frame["session_id"].notna(), None)
    flags = frame["quality_flags"].fillna("").astype(str)
    flagged, sound = frame.index[flags != ""][:MOST_DOTS], frame.index[flags == ""]
    step = max(1, -(-len(sound) // max(MOST_DOTS - len(flagged), 1)))
    rows = sorted([*flagged, *sound[::step]])
    named = [name for name in figures if figures[name].iloc[rows].notna().any()]
    return {
        "all": len(frame),
        "scans": [
            {
                "participant": str(frame["participant_id"][row]),
                "session": str(frame["session_id"][row] or ""),
                "flags": [flag for flag in flags[row].split(",") if flag],
            }
            for row in rows
        ],
        "figures": {
            name: [_sortable(value) for value in figures[name].iloc[rows]] for name in named
        },
    }  # fmt: skip


def _strips(quality: Mapping[str, Any], links: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """A strip for each figure, with dots that lead to the participants' pages."""
    for name, values in quality["figures"].items():
        known = titled(name)
        dots = [
            Dot(value, f"{scan['participant']} {scan['session']}".strip(), name in scan["flags"],
                links.get(scan["participant"], ""))
            for scan, value in zip(quality["scans"], values) if value is not None
        ]  # fmt: skip
        yield {
            "title": known.title,
            "meaning": known.meaning,
            "flagged": sum(dot.flagged for dot in dots),
            "svg": Markup(strip_figure(known.title, known.unit, known.digits, dots)),
        }


# --- cells ---


def _cell(value: Any, digits: int, signed: bool = False, quiet: bool = False) -> Cell:
    text = _signed(value, digits) if signed else _number(value, digits)
    return Cell(text, _sortable(value), quiet=quiet)


def _bounded(value: Any, low: Any, high: Any, digits: int, signed: bool = False) -> Cell:
    text = _signed(value, digits) if signed else _number(value, digits)
    if _has(value) and _has(low) and _has(high):
        text += f" [{_number(low, digits)}, {_number(high, digits)}]"
    return Cell(text, _sortable(value))


def _count(value: Any) -> Cell:
    return Cell(f"{int(value):,}" if _has(value) else "n/a", _sortable(value))


def _has(value: Any) -> bool:
    return value is not None and value == value and value != ""


def _sortable(value: Any) -> float | None:
    return float(value) if _has(value) else None


def _number(value: Any, digits: int) -> str:
    if not _has(value):
        return "n/a"
    rounded = f"{value:.{digits}f}"
    zero = not rounded.strip("-0.")
    return rounded.removeprefix("-") if zero else rounded.replace("-", _MINUS)


def _signed(value: Any, digits: int) -> str:
    text = _number(value, digits)
    return f"+{text}" if _has(value) and value > 0 and text.strip("0.") else text


def _interval(low: Any, high: Any, digits: int) -> str:
    if not (_has(low) and _has(high)):
        return "no interval"
    return f"{_number(low, digits)} to {_number(high, digits)}"


def _p(value: Any) -> str:
    if not _has(value):
        return "n/a"
    if value < 0.0001:
        return "< 0.0001"
    return f"{value:.4f}" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def _word(value: Any) -> str:
    return str(value) if _has(value) else "n/a"


def _refused_first(item: tuple[str, str]) -> bool:
    return item[1] != "refused"


def _caption(name: str, svg: str) -> str:
    return f"{FIGURES[name]} {JOINED}" if f">{OTHERS}" in svg else FIGURES[name]


def _picture(svg: str, caption: str) -> dict[str, str]:
    """A figure for the page, at the size it was drawn for: 9 point are 14 pixels there."""
    data = base64.b64encode(svg.encode()).decode()
    points = re.search(r'width="([\d.]+)pt"', svg)
    width = 1.55 * float(points[1]) if points else 960
    return {
        "uri": f"data:image/svg+xml;base64,{data}",
        "caption": caption,
        "width": f"{width:.0f}",
    }
