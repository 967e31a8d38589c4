"""The group level: from the records of all scans to corrected gaps, tests and a report.

Needs the output folder; the tables of the data set where they are there. Images are read for
importance maps alone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import pandas as pd

import models
from bidsapp import __version__, group_tables, logs, report
from bidsapp.analysis import (
    ModelResult,
    analyse_model,
    compare_gaps,
    main_model,
    measure_accuracy,
)
from bidsapp.cohort import Cohort, collect
from bidsapp.derivatives import Derivatives, new_run_id
from bidsapp.description import NAME
from bidsapp.errors import NothingToDo, UserError
from bidsapp.reporting.group_methods import Account
from bidsapp.reporting.group_page import Results
from bidsapp.settings import Settings
from bidsapp.statistics.association import Contrast, parse_contrast
from bidsapp.statistics.bias_correction import Correction
from bidsapp.statistics.reliability import Reliability, change, reliability
from bidsapp.statistics.verdict import Verdict
from bidsapp.study import study_name

log = logging.getLogger(__name__)

COLUMNS = group_tables.BRAINAGE


def run(settings: Settings) -> int:
    """Analyse the records below the output folder.

    Raises
    ------
    NothingToDo
        If there is no record with a prediction.
    UserError
        If an option does not fit the data, or records do not compare.
    """
    out = Derivatives(settings.output_dir, settings.bids_dir, settings.template)
    if settings.reports_only:
        return _write_report(out, settings)
    try:
        cohort = collect(out, settings)
    except NothingToDo:
        if not (settings.dry_run and "participant" in settings.analysis_level):
            raise
        print(f"group: {settings.output_dir} holds no predictions yet")
        return 0
    earlier = _earlier_corrections(cohort, settings)
    contrasts = _contrasts(cohort, settings)
    if settings.dry_run:
        _tell(cohort, out, settings)
        return 0
    warnings = out.prepare()
    with _logged(out, settings):
        for warning in warnings:
            log.warning("%s", warning)
        _say(cohort.counts, cohort.verdicts)
        results = {
            model: analyse_model(model, cohort, settings, earlier.get(model))
            for model in cohort.predictions
        }
        distinct = [results[model] for model in cohort.distinct_models]
        accuracy = measure_accuracy(distinct, settings)
        tests, design = compare_gaps(distinct, cohort, contrasts, settings)
        repeats = {each.model: reliability(each.sample) for each in distinct}
        seen = [verdict for each in distinct for verdict in _seen_in_training(each.model, out)]
        findings = [*seen, *design, *_of_models(distinct, repeats)]
        _say((), findings)

        tables = {
            "accuracy": accuracy,
            "statistics": tests,
            "reliability": _reliability_table(repeats),
        }
        verdicts = [*cohort.verdicts, *findings]
        if settings.importance_at("group"):
            from bidsapp import explain  # late: it needs torch

            # what was named and cannot be used stops the run before anything is removed
            explain.lacking(settings, "group")
        out.remove_group_importance()
        _write(out, results, tables, _corrections(results, verdicts, cohort, settings))
        page = _page(distinct, tables, repeats, verdicts, cohort, settings)
        figures = report.write_group_figures(page, out)
        report.write_group(page, figures, out)
        if settings.importance_at("group"):
            report.write_group(page, figures, out, _population_maps(settings, out))
        people = cohort.scans["participant_id"].nunique()
        log.info("Group table: %s (%d participants)", out.group("brainage.tsv"), people)
    return 0


def _population_maps(settings: Settings, out: Derivatives) -> list[str]:
    """Sections of the page on importance maps of the cohort, which are made here."""
    import torch

    from bidsapp import explain_group

    torch.set_num_threads(settings.omp_nthreads)  # more change the last bits
    return explain_group.population(settings, out)


@contextmanager
def _logged(out: Derivatives, settings: Settings) -> Iterator[None]:
    """Keep the settings and the messages of the run."""
    folder = out.log_dir(new_run_id())
    out.write_text(folder / "settings.toml", settings.to_toml())
    with logs.to_console_and_file(folder / "log.txt", settings.log_level):
        yield


def _write_report(out: Derivatives, settings: Settings) -> int:
    """Write the page again from what an earlier run has left."""
    if settings.dry_run:
        out.read_group_page_content()
        print(f"group: -> {out.group_report}")
        return 0
    with _logged(out, settings):
        report.rewrite_group(out)
    return 0


def _tell(cohort: Cohort, out: Derivatives, settings: Settings) -> None:
    """Print what would be analysed, what there is to know about it, and where it would go."""
    people = cohort.scans["participant_id"].nunique()
    models = ", ".join(cohort.distinct_models)
    print(f"group: {len(cohort.scans)} scans of {people} participants; models: {models}")
    for words, number in cohort.counts:
        print(f"group: {words}: {number}")
    for verdict in cohort.verdicts:
        print(f"group: {verdict.severity}: {verdict.text}")
    tables = (out.group(f"{name}.tsv") for name in ("brainage", *group_tables.OF))
    for path in (out.group_report, *tables, out.group("bias_correction.json")):
        print(f"group: -> {path}{' (is there)' if path.exists() else ''}")
    if methods := settings.importance_at("group"):
        print(f"group: -> importance maps by {', '.join(methods)}")


def _earlier_corrections(cohort: Cohort, settings: Settings) -> dict[str, Correction]:
    """Corrections of an earlier study, for the models of this one."""
    path = settings.bias_correction_from
    if path is None:
        return {}
    flag = f"--bias-correction-from {path}"
    try:
        of_models = json.loads(path.read_text(encoding="utf-8-sig"))["models"]
        there = {model: each for model, each in of_models.items() if each["correction"]}
        found = {model: Correction.from_json(each["correction"]) for model, each in there.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{flag} is no group_bias_correction.json of a group level: {error}."
        ) from error
    for model in cohort.distinct_models:
        if model not in found:
            names = ", ".join(found) or "no model"
            raise UserError(f"{flag} has no correction for {model}; it has some for {names}.")
        known, here = there[model].get("weights_sha256") or [], cohort.weights.get(model, ())
        if set(here) - set(known) and not settings.allow_mixed:
            raise UserError(
                f"{flag} was fitted on other weights of {model} than those that made these "
                "records; fit it again, or apply it all the same with --allow-mixed."
            )
    if "ensemble" in cohort.distinct_models:
        known = there["ensemble"].get("members") or {}
        if not _same_members(cohort.members, known) and not settings.allow_mixed:
            raise UserError(
                f"{flag} was not fitted on an ensemble of {', '.join(cohort.members)} with the "
                "weights that made these records; fit it again, or apply it all the same with "
                "--allow-mixed."
            )
    elif "ensemble" in cohort.predictions:  # it repeats the only model
        found["ensemble"] = found[cohort.distinct_models[0]]
    return found


def _same_members(here: Mapping[str, Sequence[str]], known: Mapping[str, Sequence[str]]) -> bool:
    """Whether an ensemble is of the known models, with no weights that are not known."""
    return here.keys() == known.keys() and all(
        set(here[name]) <= set(known[name]) for name in here
    )


def _contrasts(cohort: Cohort, settings: Settings) -> tuple[Contrast, ...]:
    """The contrasts that were asked for."""
    columns = {name.lower(): name for name in ("group", "sex", "site")}
    found = []
    for text in settings.contrast:
        column, colon, sides = text.partition(":")
        column = column.strip()
        text = f"{columns.get(column.lower(), column)}:{sides}" if colon else text
        found.append(parse_contrast(text, cohort.scans))
    return tuple(found)


def _seen_in_training(model: str, out: Derivatives) -> Iterator[Verdict]:
    """Warn where a model was trained on a data set of this name."""
    if model not in models.known():
        return
    trained_on = set(models.card(model).training.get("datasets", ()))
    if same := sorted(trained_on & out.source_names()):
        text = (
            f"{model} was trained on a data set of the same name ({', '.join(same)}). If these "
            "scans were part of it, its errors and gaps are too small and its intervals too "
            "narrow: only predictions out of fold would tell."
        )
        yield Verdict("seen_in_training", text)


def _of_models(
    results: Sequence[ModelResult], repeats: Mapping[str, Reliability]
) -> Iterator[Verdict]:
    """Verdicts of the steps of all models."""
    of: dict[Verdict, list[str]] = {}
    for result in results:
        more = repeats[result.model].verdicts if repeats[result.model].participants else ()
        for each in (*result.verdicts, *more):
            of.setdefault(each, []).append(result.model)
    for verdict, names in of.items():
        of_all = len(names) == len(results)
        lead = "" if of_all else f"{', '.join(names)}: "
        yield replace(verdict, text=f"{lead}{verdict.text}")


def _say(counts: Sequence[tuple[str, int]], verdicts: Sequence[Verdict]) -> None:
    for words, number in counts:
        log.info("%s: %d", words, number)
    for verdict in verdicts:
        level = logging.INFO if verdict.severity == "note" else logging.WARNING
        log.log(level, "%s", verdict.text)


# --- what is written ---


def _write(
    out: Derivatives,
    results: Mapping[str, ModelResult],
    tables: Mapping[str, pd.DataFrame],
    corrections: Mapping[str, Any],
) -> None:
    """Write all tables; one without rows is removed, should an earlier run have left it."""
    out.write_table(out.group("brainage.tsv"), _rows(results), COLUMNS)
    for name, table in tables.items():
        path = out.group(f"{name}.tsv")
        if len(table):
            out.write_table(path, table.to_dict("records"), group_tables.OF[name])
        else:
            out.remove(path)
            out.remove(path.with_suffix(".json"))
    out.write_json(out.group("bias_correction.json"), corrections)


def _rows(results: Mapping[str, ModelResult]) -> Iterator[dict[str, Any]]:
    """The group table, scan by scan and model by model."""
    names = list(COLUMNS)
    tables = [each.frame[names].itertuples(index=False, name=None) for each in results.values()]
    for rows in zip(*tables, strict=True):
        for row in rows:
            yield dict(zip(names, row, strict=True))


def _reliability_table(repeats: Mapping[str, Reliability]) -> pd.DataFrame:
    tables = [each.table.assign(model=model) for model, each in repeats.items() if len(each.table)]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _page(
    results: Sequence[ModelResult],
    tables: Mapping[str, pd.DataFrame],
    repeats: Mapping[str, Reliability],
    verdicts: Sequence[Verdict],
    cohort: Cohort,
    settings: Settings,
) -> Results:
    """All that the report shows, the main model first."""
    main = main_model(results)
    ordered = [main, *(each for each in results if each is not main)]
    changes = {each.model: change(each.sample) for each in ordered}
    pairs = {each.model: repeats[each.model].bland_altman for each in ordered}
    account = Account(
        scans=len(cohort.scans),
        participants=cohort.scans["participant_id"].nunique(),
        reference=cohort.reference,
        titles=report.model_titles(each.model for each in ordered),
        weights=cohort.weights,
        versions=cohort.versions,
        counts=cohort.counts,
        corrections={e.model: e.correction.to_json() if e.correction else None for e in ordered},
        calibrations={each.model: each.calibration for each in ordered},
        tests=tables["statistics"],
        reliability=tables["reliability"],
        changed=any(change.method != "none" for change in changes.values()),
        options={item.name: getattr(settings, item.name) for item in fields(settings)},
    )
    return Results(
        study=study_name(settings.bids_dir),
        main=main.model,
        frames={each.model: each.frame.assign(tested=each.tested) for each in ordered},
        **tables,
        changes=changes,
        decades={each.model: each.decades for each in ordered},
        coverages={each.model: each.coverages for each in ordered},
        pairs={model: of["brain_age_gap"] for model, of in pairs.items() if "brain_age_gap" in of},
        verdicts=verdicts,
        account=account,
        quality=cohort.quality,
    )


def _corrections(
    results: Mapping[str, ModelResult],
    verdicts: Sequence[Verdict],
    cohort: Cohort,
    settings: Settings,
) -> dict[str, Any]:
    """Content of group_bias_correction.json."""
    return {
        "GeneratedBy": {"Name": NAME, "Version": __version__},
        "reference": cohort.reference,
        "models": {
            model: {
                "weights_sha256": list(cohort.weights.get(model, ())),
                "members": cohort.members if model == "ensemble" else None,
                "correction": result.correction.to_json() if result.correction else None,
                "correction_from": str(settings.bias_correction_from or "") or None,
                "site_effects": result.site_effects,
                "calibration": result.calibration,
                "verdicts": [vars(verdict) for verdict in result.verdicts],
            }
            for model, result in results.items()
        },
        "verdicts": [vars(verdict) for verdict in verdicts],
    }
