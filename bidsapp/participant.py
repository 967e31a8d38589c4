"""The participant level: every T1w scan of a study becomes a record with its brain age.

Methods, in order: load and validate; segment; correct the bias field (N4) inside the brain;
register linearly to the template; resample once; scale intensities as each model was trained;
predict; record; report.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

import models
from bidsapp import logs, report
from bidsapp.derivatives import Derivatives, new_run_id
from bidsapp.errors import NothingToDo, ScanError, UserError
from bidsapp.execution import Crew, run_scans, worker_environment
from bidsapp.fingerprint import fingerprint, software
from bidsapp.settings import Settings
from bidsapp.study import Scan, Study, load_study
from models import registry
from models.contract import InputContract, ModelCard, ModelError, VolumeContract
from models.intensity import TISSUES

if TYPE_CHECKING:
    from torch import nn

    from bidsapp.preprocessing.image import Image, T1w
    from bidsapp.preprocessing.segmentation import Segmentation
    from bidsapp.preprocessing.templates import Template
    from models.prediction import BrainAgeModel

log = logging.getLogger(__name__)

GRID_SHAPE = (91, 109, 91)
GRID_AFFINE = np.array([[2.0, 0, 0, -90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
"""The 2 mm MNI grid of the written images, RAS."""
DEGREES_OF_FREEDOM = 12
MODEL_REGISTRATION = "model_registration"
"""Step that is done for models alone that take another template, or another registration."""
TIMED = ("segmentation", "bias_field", "registration", "resampling", "quality", "figures")
"""Steps whose seconds stay in the record when a scan is only predicted again."""


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
    names = _model_names(settings)
    _check_resources(settings, names)
    if settings.dry_run:
        _list(study, out)
        return 0
    no_atlas = _lacking_atlas(settings)
    run_id = new_run_id()
    warnings = [*out.prepare(), *study.warnings, *no_atlas]
    out.write_text(out.log_dir(run_id) / "settings.toml", settings.to_toml())
    with logs.to_console_and_file(out.log_dir(run_id) / "log.txt", settings.log_level):
        for warning in warnings:
            log.warning("%s", warning)
        failed = _process_all(study.scans, settings, out, run_id)
        participants = {scan.participant_id for scan in study.scans}
        report.write_participants(participants, out, settings.output_level == "full")
    return 1 if failed else 0


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


@dataclass(frozen=True)
class Toolbox:
    """What a worker loads once: networks, template, and the template on the standard grid."""

    segmentation: nn.Module
    segmentation_sha256: str
    template: Template
    template_brain: Image
    template_mask: NDArray[np.bool_]
    models: dict[str, BrainAgeModel]


@dataclass
class Prepared:
    """A scan after preprocessing, and what a model's image is made of.

    ``brain`` lies on the standard grid, zero outside ``mask``, and so do the ``shares`` of
    tissue, (3, X, Y, Z); ``native`` is None where the images of an earlier run serve.
    """

    brain: Image
    mask: NDArray[np.bool_]
    shares: NDArray[np.float32]
    levels: dict[str, float]
    volumes_ml: dict[str, float | None]
    quality: dict[str, Any]
    steps: list[dict[str, Any]]
    seconds: dict[str, float]
    native: Native | None = None

    @property
    def segmentation(self) -> Segmentation:
        """Of a scan that was preprocessed in this run."""
        assert self.native is not None
        return self.native.segmentation


@dataclass(frozen=True)
class Native:
    """The bias-corrected scan on its own grid, and its brain on the working grid."""

    t1w: T1w
    corrected: Image
    working: Image
    segmentation: Segmentation
    to_scan: NDArray[np.float64]
    transforms: dict[tuple[str, int], NDArray[np.float64]] = field(default_factory=dict)


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
    earlier = _earlier_record(scan, out)
    if out.record(scan).exists() and not _same_images(earlier, key):
        out.remove_scan(scan)  # before it is read: should it fail, nothing of another one stays
        earlier = {}
    todo = _maps_to_make(scan, key, tools, settings, out)
    if earlier.get("fingerprint") == key and _complete(scan, settings, out) and not todo:
        _refuse(scan, earlier["quality"], settings)
        return "skipped"
    out.remove_stale(out.record(scan).parent)
    if _can_reuse(earlier, key, scan, settings, tools, out):
        prepared = _reload(earlier, scan, out)
    else:
        t1w = load_t1w(scan.path)
        for warning in t1w.warnings:
            log.warning("%s", warning)
        with _naming(scan):
            prepared = preprocess(t1w, tools, settings)
        if settings.output_level == "minimal":
            _remove_images(scan, settings, out)
        else:
            _write_images(prepared, scan, settings, out)
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
    """Segmentation -> bias field -> registration -> one resampling -> quality figures."""
    from bidsapp.preprocessing import bias_field, intensity, quality, registration, segmentation
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
    return Prepared(registered, inside, shares, levels, volumes, figures, steps, seconds, native)


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


def model_input(
    prepared: Prepared, card: ModelCard, tools: Toolbox, settings: Settings
) -> NDArray[np.float32]:
    """What a model takes: the brain on its grid with its intensities, or volumes in ml."""
    if isinstance(card.contract, VolumeContract):
        return np.array(card.contract.select(prepared.volumes_ml), np.float32)
    return _on_model_grid(prepared, card.contract, tools, settings)[0]


def _on_model_grid(
    prepared: Prepared, contract: InputContract, tools: Toolbox, settings: Settings
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float64]]:
    """Image and mask of a model's contract, and from voxels of the standard grid to its (4, 4)."""
    from bidsapp.preprocessing import registration
    from bidsapp.preprocessing.resampling import resample
    from bidsapp.preprocessing.templates import load_template
    from bidsapp.preprocessing.tissue import tissue_shares
    from models import intensity

    if _takes_standard_grid(contract, tools.template.name):
        image, mask = intensity.view(
            prepared.brain.data, prepared.mask, prepared.shares, prepared.levels,
            contract.intensity,
        )  # fmt: skip
        return image, mask, np.eye(4)
    native = prepared.native
    assert native is not None  # _can_reuse sees to it
    place = contract.template, contract.degrees_of_freedom
    if place not in native.transforms:
        native.transforms[place], record = registration.register(
            native.working, load_template(contract.template), contract.degrees_of_freedom,
            settings.random_seed, settings.work_dir,
        )  # fmt: skip
        prepared.steps.append(record | {"step": MODEL_REGISTRATION})
    to_scan, affine = native.transforms[place], np.array(contract.affine)
    brain = native.corrected.with_data(native.segmentation.on_scan.brain.astype(np.float32))
    mask = resample(brain, to_scan, contract.shape, affine, order=1).data > 0.5
    image = resample(native.corrected, to_scan, contract.shape, affine).data.clip(0) * mask
    shares = tissue_shares(native.segmentation, to_scan, contract.shape, affine)
    image, inside = intensity.view(image, mask, shares, prepared.levels, contract.intensity)
    from_standard = np.linalg.inv(to_scan @ affine) @ native.to_scan @ prepared.brain.affine
    return image, inside, from_standard


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
        contract = tools.models[name].card.image_contract
        image, mask, from_standard = _on_model_grid(prepared, contract, tools, settings)
        return explain.View(Brain(image, mask, scan.demographics.sex), from_standard)

    what = explain.Explained(scan, view, prepared.mask, tools.template_brain, key["preprocessing"])
    explain.write_maps(what, todo, tools.models, settings, out)


@lru_cache(maxsize=1)
def toolbox(settings: Settings) -> Toolbox:
    """Load networks and template, once per process."""
    import torch

    from bidsapp.preprocessing.templates import load_template

    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    template = load_template(settings.template)
    try:
        segmentation, card = registry.load_segmentation()
        loaded = {
            name: models.load(name, device, settings.model_paths.get(name))
            for name in _model_names(settings)
        }
    except ModelError as error:
        raise UserError(str(error)) from error
    return Toolbox(
        segmentation,
        str(card["weights_sha256"]),
        template,
        *template.on(GRID_SHAPE, GRID_AFFINE),
        loaded,
    )


def _model_names(settings: Settings) -> tuple[str, ...]:
    """The models to run: those asked for, else all whose weights are here and the user's own."""
    ready = models.available()
    names = settings.models or (*ready, *settings.model_paths)
    for name in names:
        if name in settings.model_paths or name in ready:
            continue
        if name in models.known():
            raise UserError(
                f"--models {name}: its weights are not part of this software; "
                f"{registry.how_to_get(models.card(name))}."
            )
        known = ", ".join(models.known()) or "none"
        raise UserError(f"--models: there is no model '{name}'; known are {known}.")
    return tuple(dict.fromkeys(names))


def _card(name: str, settings: Settings) -> ModelCard:
    """The card of a model, if need be of the user's own, whose weights are checked too."""
    path = settings.model_paths.get(name)
    if path is None:
        return models.card(name)
    try:
        return registry.own_card(name, path)
    except ModelError as error:
        raise UserError(f"--model-file {name}={path} cannot be used: {error}") from error


def _check_resources(settings: Settings, names: tuple[str, ...]) -> None:
    """Learn once, and before the first scan, what a model lacks, or that there is no GPU."""
    from bidsapp.preprocessing.templates import load_template

    wanted = {settings.template: ""}
    for name in names:
        why = f"The model '{name}' wants another template; --models can leave it out. "
        contract = _card(name, settings).contract
        if isinstance(contract, InputContract):
            wanted.setdefault(contract.template, why)
    for template in sorted(wanted.keys() - {Settings.template}):  # the default one is bundled
        try:
            load_template(template)
        except UserError as error:
            raise UserError(f"{wanted[template]}{error}") from error
    if settings.device == "cuda" and not settings.dask_scheduler:  # this may be a login node
        import torch

        if not torch.cuda.is_available():
            raise UserError("--device cuda: no GPU was found that PyTorch can use.")


def _lacking_atlas(settings: Settings) -> list[str]:
    """Learn once, and before the first scan, that the maps of this level have no atlas."""
    from bidsapp.preprocessing import atlas

    methods = settings.importance_at("participant")
    why = atlas.lacking(settings.atlas) if methods else ""
    what = "No tables of regions" + (", no occlusion maps" if "occlusion" in methods else "")
    return [f"{what}. {why}"] if why else []


def _takes_standard_grid(contract: InputContract, template: str) -> bool:
    return (
        contract.template == template
        and contract.degrees_of_freedom == DEGREES_OF_FREEDOM
        and contract.shape == GRID_SHAPE
        and bool(np.allclose(contract.affine, GRID_AFFINE))
    )


# --- what is on disk ---


def _images(scan: Scan, settings: Settings, out: Derivatives) -> dict[str, Any]:
    """The files of a scan beside its record."""
    return {
        "mask": out.brain_mask(scan),
        "dseg": out.dseg(scan),
        "forward": out.xfm(scan, "T1w", settings.template),
        "inverse": out.xfm(scan, settings.template, "T1w"),
        "preproc": out.preproc(scan),
        "template_mask": out.template_mask(scan),
        **{tissue: out.tissue(scan, tissue) for tissue in TISSUES},
    }


def _missing(scan: Scan, settings: Settings, out: Derivatives) -> list[str]:
    return [n for n, path in _images(scan, settings, out).items() if not path.exists()]


def _complete(scan: Scan, settings: Settings, out: Derivatives) -> bool:
    """Whether all the images are there that the settings want to be kept."""
    return settings.output_level == "minimal" or not _missing(scan, settings, out)


def _earlier_record(scan: Scan, out: Derivatives) -> dict[str, Any]:
    """The record of an earlier run; empty where there is none or it is damaged."""
    if not out.record(scan).exists():
        return {}
    try:
        return out.read_record(out.record(scan))
    except UserError:
        return {}


def _same_images(earlier: dict[str, Any], key: dict[str, str]) -> bool:
    """Whether preprocessing would make the images of an earlier record again."""
    before = earlier.get("fingerprint")
    return isinstance(before, dict) and before.get("preprocessing") == key["preprocessing"]


def _can_reuse(
    earlier: dict[str, Any], key: dict[str, str], scan: Scan, settings: Settings,
    tools: Toolbox, out: Derivatives,
) -> bool:  # fmt: skip
    """Whether only the predictions are out of date, and the written image serves every model."""
    from bidsapp.preprocessing import quality

    return (
        _same_images(earlier, key)
        and not _missing(scan, settings, out)
        and quality.LIMITS.keys() <= (earlier.get("quality") or {}).keys()
        and all(
            isinstance(model.card.contract, VolumeContract)
            or _takes_standard_grid(model.card.contract, settings.template)
            for model in tools.models.values()
        )
    )


def _reload(earlier: dict[str, Any], scan: Scan, out: Derivatives) -> Prepared:
    from bidsapp.preprocessing.image import Image

    steps = [step for step in earlier["steps"] if step["step"] != MODEL_REGISTRATION]
    return Prepared(
        Image(*out.read_image(out.preproc(scan))),
        out.read_image(out.template_mask(scan))[0] > 0,
        np.stack([out.read_image(out.tissue(scan, tissue))[0] for tissue in TISSUES]),
        next(step["levels"] for step in steps if step["step"] == "intensity"),
        earlier["volumes_ml"],
        {key: of for key, of in earlier["quality"].items() if key not in ("passed", "flags")},
        steps,
        {step: earlier["seconds"][step] for step in TIMED if step in earlier["seconds"]},
    )


def _write_images(prepared: Prepared, scan: Scan, settings: Settings, out: Derivatives) -> None:
    native = prepared.native
    assert native is not None
    t1w, found, paths = native.t1w, native.segmentation.on_scan, _images(scan, settings, out)
    out.remove(out.record(scan))  # of other settings: it must not vouch for the new images
    by = {step["step"]: step for step in prepared.steps}
    raw = {"Sources": [scan.source]}
    segmented = raw | {"Steps": [by["segmentation"]]}
    for name, labels in (("mask", found.intracranial), ("dseg", found.labels)):
        on_file = t1w.on_file_grid(labels).astype(np.uint8)
        out.write_image(paths[name], on_file, t1w.file_affine, segmented, np.uint8)
    transform = raw | {"Steps": [by["registration"]]}
    out.write_transform(paths["forward"], native.to_scan, transform)
    out.write_transform(paths["inverse"], np.linalg.inv(native.to_scan), transform)
    sources = [scan.source, out.uri(paths["mask"]), out.uri(paths["forward"])]
    in_template = {"Sources": sources, "Steps": prepared.steps}
    brain = prepared.brain
    out.write_image(paths["preproc"], brain.data, brain.affine, in_template, np.float32)
    out.write_image(
        paths["template_mask"], prepared.mask.astype(np.uint8), brain.affine, in_template, np.uint8
    )
    for tissue, share in zip(TISSUES, prepared.shares):
        out.write_image(paths[tissue], share, brain.affine, in_template, np.float32)


def _remove_images(scan: Scan, settings: Settings, out: Derivatives) -> None:
    """Remove what an earlier run of another output level has left, and the new record belies."""
    out.remove(out.record(scan))
    for path in _images(scan, settings, out).values():
        out.remove_with_sidecar(path)
    for name in report.FIGURES:
        out.remove(out.figure(scan.participant_id, scan.stem, name))
    out.remove(out.report(scan.participant_id))


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
