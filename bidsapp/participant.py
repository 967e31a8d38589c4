"""The participant level: every T1w scan of a study becomes a record with its brain age.

Methods, in order: load and validate; segment; correct the bias field (N4) inside the brain;
register linearly to the template; resample once; warp the tissue to the template's; scale
intensities as each model was trained; predict; record; report.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bidsapp import kept, logs, report
from bidsapp.derivatives import Derivatives, new_run_id
from bidsapp.errors import NothingToDo, ScanError, UserError
from bidsapp.execution import Crew, run_scans, worker_environment
from bidsapp.fingerprint import fingerprint, software
from bidsapp.prepared import (
    DEGREES_OF_FREEDOM,
    Native,
    Prepared,
    model_input,
    modulated_in,
    on_model_grid,
)
from bidsapp.preprocessing.grid import GRID_AFFINE, GRID_SHAPE
from bidsapp.settings import Settings
from bidsapp.study import Scan, Study, load_study
from bidsapp.toolbox import (
    Toolbox,
    check_resources,
    model_names,
    toolbox,
)
from models.contract import ModelError, MorphometryContract

if TYPE_CHECKING:
    from bidsapp.preprocessing.image import T1w

log = logging.getLogger(__name__)


def run(settings: Settings) -> int:
    """Process every scan the settings ask for; returns the exit code of the app.

    Raises
    ------
    UserError
        For everything that is wrong before the first scan is touched.
    """
    if settings.reports_only:
        return _write_reports(settings)
    study = load_study(settings)
    out = Derivatives(settings.output_dir, study.root, settings.template)
    names = model_names(settings)
    check_resources(settings, names)
    if settings.dry_run:
        _list(study, out)
        return 0
    lacking = _lacking_maps(settings)
    run_id = new_run_id()
    warnings = [*out.prepare(), *study.warnings, *lacking]
    out.write_text(out.log_dir(run_id) / "settings.toml", settings.to_toml())
    with logs.to_console_and_file(out.log_dir(run_id) / "log.txt", settings.log_level):
        for warning in warnings:
            log.warning("%s", warning)
        failed = _process_all(study.scans, settings, out, run_id)
        participants = {scan.participant_id for scan in study.scans}
        report.write_participants(participants, out, settings.output_level == "full")
    return 1 if failed else 0


def _lacking_maps(settings: Settings) -> list[str]:
    """What the maps of this level will lack, if any are wanted."""
    if not settings.importance_at("participant"):
        return []
    from bidsapp import explain  # late: it needs torch

    return explain.lacking(settings, "participant")


def _list(study: Study, out: Derivatives) -> None:
    """Say what a run would process and warn of; the list alone goes to the standard output."""
    for warning in [*out.check(), *study.warnings]:
        print(f"warning: {warning}", file=sys.stderr)
    for scan in study.scans:
        record = out.record(scan)
        there = " (has a record)" if record.exists() else ""
        print(f"{scan.stem}: {scan.path} -> {record}{there}")


def _write_reports(settings: Settings) -> int:
    """Write the pages again of all participants with records; needs the output folder alone."""
    out = Derivatives(settings.output_dir, settings.bids_dir, settings.template)
    asked = {f"sub-{label}" for label in settings.participant_label}
    there = [each for each in out.participants() if not asked or each in asked]
    if not there:
        raise NothingToDo(
            f"{settings.output_dir} holds no record (*_brainage.json) of these participants, so "
            "there is no report to write; run the participant level first."
        )
    if settings.dry_run:
        for participant in there:
            print(f"{participant}: {out.report(participant)}")
        return 0
    with logs.to_console_and_file(out.log_dir(new_run_id()) / "log.txt", settings.log_level):
        for warning in out.prepare():
            log.warning("%s", warning)
        report.write_participants(there, out)
    return 0


def _process_all(
    scans: tuple[Scan, ...], settings: Settings, out: Derivatives, run_id: str
) -> int:
    """Run the scans side by side; returns how many failed."""
    from models.segmentation.labels import LABELS

    out.write_label_table(LABELS)
    nprocs = min(settings.side_by_side, len(scans))
    if not settings.dask_scheduler:
        log.info("Scans side by side: %d", nprocs)
    outcomes = run_scans(
        scans,
        partial(process, settings=settings, out=out),
        nprocs=nprocs,
        threads=settings.omp_nthreads,
        seed=settings.random_seed,
        work_dir=settings.work_dir,
        crash=lambda scan, text: out.write_text(out.crash(run_id, scan.stem), text),
        stop_on_first_crash=settings.stop_on_first_crash,
        crew=_cluster(settings) if settings.dask_scheduler else None,
    )
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    done = sum(outcome.status == "done" for outcome in outcomes)
    log.info("%d computed, %d complete before, %d failed", done,
             len(outcomes) - done - len(failed), len(failed))  # fmt: skip
    for outcome in failed:
        log.error("%s failed: %s (%s)", outcome.scan.stem, outcome.message,
                  out.crash(run_id, outcome.scan.stem))  # fmt: skip
    return len(failed)


def _cluster(settings: Settings) -> Crew:
    try:
        from bidsapp.cluster import DaskCrew
    except ModuleNotFoundError as error:
        raise UserError(
            f"--dask-scheduler needs Dask ({error}); install 'distributed'."
        ) from error
    return DaskCrew(
        str(settings.dask_scheduler),
        worker_environment(settings.omp_nthreads, settings.random_seed, settings.work_dir),
        settings.output_dir,
        all_at_once=not settings.stop_on_first_crash,
    )


# --- one scan, in a worker process ---


def process(scan: Scan, settings: Settings, out: Derivatives) -> Literal["done", "skipped"]:
    """From a scan to its record; does only what an earlier run left undone.

    Raises
    ------
    ScanError
        Where the scan cannot be used; the message names the file, the fault and the remedy.
    """
    from bidsapp.preprocessing.image import file_sha256, load_t1w

    if settings.work_dir:  # of this machine, which may be one of many
        settings.work_dir.mkdir(parents=True, exist_ok=True)
    tools = toolbox(settings)
    digest = file_sha256(scan.path)
    cards = {name: model.card.to_toml() for name, model in tools.models.items()}
    references = {name: m.reference.sha256 for name, m in tools.models.items() if m.reference}
    key = fingerprint(
        scan, digest, settings, tools.template.sha256, tools.segmentation_sha256, cards, references
    )
    earlier = kept.earlier_record(scan, out)
    if out.record(scan).exists() and not kept.same_images(earlier, key):
        out.remove_scan(scan)  # before it is read: should it fail, nothing of another one stays
        earlier = {}
    todo = _maps_to_make(scan, key, tools, settings, out)
    if earlier.get("fingerprint") == key and kept.complete(scan, settings, out) and not todo:
        _refuse(scan, earlier["quality"], settings)
        return "skipped"
    out.remove_stale(out.record(scan).parent)
    if kept.can_reuse(earlier, key, scan, settings, tools, out):
        prepared = kept.reload(earlier, scan, out)
    else:
        t1w = load_t1w(scan.path)
        for warning in t1w.warnings:
            log.warning("%s", warning)
        with _naming(scan):
            prepared = preprocess(t1w, tools, settings)
        if settings.output_level == "minimal":
            kept.remove_images(scan, settings, out)
        else:
            kept.write_images(prepared, scan, settings, out)
            with _timed("figures", prepared.seconds):
                found = prepared.segmentation
                report.write_figures(scan, found, prepared.brain, tools.template_brain, out)
    with _naming(scan):
        predictions = predict(prepared, scan, tools, settings)
        prepared.quality = judged(prepared, predictions, tools, settings)
        if _is_refused(prepared.quality, settings):
            predictions = {}
        elif todo:
            _explain(prepared, scan, key, todo, tools, settings, out)
    out.write_json(out.record(scan), _record(scan, prepared, predictions, key))
    _refuse(scan, prepared.quality, settings)
    return "done"


def preprocess(t1w: T1w, tools: Toolbox, settings: Settings) -> Prepared:
    """Segmentation -> bias field -> registration -> one resampling -> warp -> quality."""
    from bidsapp.preprocessing import bias_field, intensity, quality, registration, segmentation
    from bidsapp.preprocessing.morphometry import modulated_tissue
    from bidsapp.preprocessing.resampling import resample
    from bidsapp.preprocessing.tissue import tissue_shares

    scan, seconds, steps = t1w.image, dict[str, float](), list[dict[str, Any]]()
    with _timed("segmentation", seconds):
        found, record = segmentation.segment(scan, tools.segmentation, settings.skull_strip_t1w)
        steps.append(record | {"weights_sha256": tools.segmentation_sha256})
    with _timed("bias_field", seconds):
        corrected, working, record = bias_field.correct_bias_field(scan, found)
        steps.append(record)
    with _timed("registration", seconds):
        brain = working.with_data(working.data * found.on_working.brain)
        to_scan, record = registration.register(
            brain, tools.template, DEGREES_OF_FREEDOM, settings.random_seed, settings.work_dir
        )
        steps.append(record)
    with _timed("resampling", seconds):
        mask = scan.with_data(found.on_scan.brain.astype(np.float32))
        on_grid = resample(corrected, to_scan, GRID_SHAPE, GRID_AFFINE)
        inside = resample(mask, to_scan, GRID_SHAPE, GRID_AFFINE, order=1).data > 0.5
        registered = on_grid.with_data(np.clip(on_grid.data, 0, None) * inside)
        shares = tissue_shares(found, to_scan, GRID_SHAPE, GRID_AFFINE)
        steps.append({"step": "resampling", "parameters": {"interpolation": "cubic spline",
                      "mm": 2.0, "shape": list(GRID_SHAPE)}})  # fmt: skip
    with _timed("warp", seconds):
        template = tools.template_tissue(tools.template.name)
        modulated, record = modulated_tissue(
            shares, template, settings.random_seed, settings.work_dir
        )
        steps.append(record)
    with _timed("quality", seconds):
        levels = intensity.tissue_levels(working.data, found.on_working.labels)
        steps.append({"step": "intensity", "levels": levels})
        by = {step["step"]: step for step in steps}
        figures = quality.assess(
            found, working, scan, registered, inside, tools.template_brain, tools.template_mask,
            to_scan, by["bias_field"]["field_range"], by["segmentation"]["already_stripped"],
        )  # fmt: skip
    known = {(tools.template.name, DEGREES_OF_FREEDOM): to_scan}
    native = Native(t1w, corrected, brain, found, to_scan, known)
    volumes = found.volumes_ml
    return Prepared(
        registered, inside, shares, modulated, levels, volumes, figures, steps, seconds, native
    )


def predict(
    prepared: Prepared, scan: Scan, tools: Toolbox, settings: Settings
) -> dict[str, dict[str, Any]]:
    """The age each model sees, and their combination under ``ensemble``."""
    from models.ensemble import combine, voters, within_ages

    who, found = scan.demographics, {}
    for name, model in tools.models.items():
        with _timed(name, prepared.seconds):
            taken = model_input(prepared, model.card, tools, settings)
            found[name] = model.predict(taken, who.sex, who.age)
    if not found:
        return {}
    cards = {name: model.card for name, model in tools.models.items()}
    entries = {
        name: asdict(prediction)
        | {"weights_sha256": cards[name].weights_sha256, "license": cards[name].license}
        for name, prediction in found.items()
    }
    voting = voters(cards)
    ages = [cards[name].contract.ages for name in voting]
    entries["ensemble"] = asdict(combine(within_ages([found[name] for name in voting], ages)))
    for entry in entries.values():
        entry["brain_age_gap"] = None if who.age is None else entry["predicted_age"] - who.age
    return entries


def judged(
    prepared: Prepared, predictions: dict[str, Any], tools: Toolbox, settings: Settings
) -> dict[str, Any]:
    """The quality of a scan as its record says it."""
    from bidsapp.preprocessing import quality
    from models.ensemble import voters

    cards = {name: model.card for name, model in tools.models.items()}
    members = [(predictions[n]["predicted_age"], cards[n].contract.ages) for n in voters(cards)]
    age = predictions["ensemble"]["predicted_age"] if predictions else None
    unlike = [
        tools.models[name].unlikeness(model_input(prepared, cards[name], tools, settings))
        for name in voters(cards)
    ]
    figures = quality.of_predictions(age, members, unlike)
    return quality.judge(prepared.quality | figures, settings.quality)


def _is_refused(found: dict[str, Any], settings: Settings) -> bool:
    return settings.quality == "fail" and found["passed"] is False


def _refuse(scan: Scan, found: dict[str, Any], settings: Settings) -> None:
    """Let a scan with a flag fail, if that is wanted; else warn."""
    from bidsapp.preprocessing import quality

    if not found["flags"]:
        return
    text = f"{scan.path} is of doubtful quality: {quality.words(found)}"
    if _is_refused(found, settings):
        raise ScanError(
            f"{text}. No age was written; look at the report, and supply a better scan or take "
            "this one with --quality warn."
        )
    log.warning("%s; look at the report before using its age.", text)


def _maps_to_make(
    scan: Scan, key: dict[str, str], tools: Toolbox, settings: Settings, out: Derivatives
) -> dict[tuple[str, str], str]:
    """Importance maps that were asked for and are not there, with their fingerprints."""
    if not settings.importance_at("participant"):
        return {}
    from bidsapp import explain

    return explain.wanted(scan, key, tools.models, settings, out)


def _explain(
    prepared: Prepared, scan: Scan, key: dict[str, str], todo: dict[tuple[str, str], str],
    tools: Toolbox, settings: Settings, out: Derivatives,
) -> None:  # fmt: skip
    from bidsapp import explain
    from bidsapp.importance.brain import Brain

    def view(name: str) -> explain.View:
        card, sex = tools.models[name].card, scan.demographics.sex
        if isinstance(card.contract, MorphometryContract):
            tissue = modulated_in(prepared, card.contract.template, tools, settings)
            return explain.view_of_tissue(tissue, sex)
        seen = on_model_grid(prepared, card.image_contract, tools, settings)
        image, mask, from_standard = seen
        return explain.View(Brain(image, mask, sex), from_standard, prepared.mask)

    what = explain.Explained(scan, view, tools.template_brain, key["preprocessing"])
    explain.write_maps(what, todo, tools.models, settings, out)


def _record(
    scan: Scan, prepared: Prepared, predictions: dict[str, Any], key: dict[str, str]
) -> dict[str, Any]:
    who = scan.demographics
    return {
        "participant_id": scan.participant_id,
        "session_id": scan.session_id,
        "source": scan.source,
        **asdict(who),
        "predictions": predictions,
        "quality": prepared.quality,
        "volumes_ml": prepared.volumes_ml,
        "steps": prepared.steps,
        "software": software(),
        "seconds": prepared.seconds,
        "fingerprint": key,
    }


@contextmanager
def _timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - began, 3)


@contextmanager
def _naming(scan: Scan) -> Iterator[None]:
    """Let every complaint about a scan begin with its path."""
    try:
        yield
    except (ScanError, ModelError) as error:
        if str(scan.path) in str(error):
            raise
        raise ScanError(f"{scan.path}: {error}") from error
