"""Importance maps of the cohort: the noise model is fitted, maps are averaged and tested.

Needs the images that the participant level has written. They are read one at a time, so that
memory does not grow with the number of scans.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

import models
from bidsapp.derivatives import Derivatives
from bidsapp.explain import (
    NO_IMAGE,
    UNITS,
    View,
    atlas_of,
    describe,
    grid_of,
    make,
    noise_model,
    regions_note,
    seen_files,
    suited,
    view_of_tissue,
)
from bidsapp.importance import noise as noise_method
from bidsapp.importance import regions, sanity
from bidsapp.importance.brain import Array, Brain, Mask
from bidsapp.importance.noise import NoiseModel
from bidsapp.importance.population import Population
from bidsapp.importance.sidecar import PREPROCESSING, belongs, preprocessing_of, weights_of
from bidsapp.preprocessing.templates import load_template
from bidsapp.progress import Steps
from bidsapp.reporting.importance_figures import map_figure, region_bars
from bidsapp.settings import Settings
from bidsapp.study import Demographics, Scan, asked_for
from models import intensity
from models.contract import (
    TISSUES,
    InputContract,
    ModelError,
    MorphometryContract,
    VolumeContract,
)
from models.prediction import BrainAgeModel

log = logging.getLogger(__name__)

FEWEST_TO_FIT = 20
"""Scans below which no noise model is fitted: it would learn them by heart."""
FEWEST_OF_DECADE = 5
"""Scans of an age decade below which it gets no map of its own."""
CHECKED_SCANS, CHECKED_STAGES, CHECK_STEPS = 4, 4, 100
"""Of the tests of the maps: scans, models more and more randomised, steps of noise refitted."""

CHECK_COLUMNS: dict[str, Any] = {
    "model": "Model whose maps are tested",
    "method": "Method that made the maps",
    "check": {
        "Description": "What is tested",
        "Levels": {
            "randomised": "Spearman's correlation of maps with those of the model whose layers "
            "from the end to the one named are randomised; should fall towards 0",
            "deletion": "Years by which the prediction moves when the most important voxels are "
            "erased, mean over shares of the brain of 1 to 50 %; should exceed that of random",
            "insertion": "Years between the prediction and that of a blank brain with the most "
            "important voxels alone, likewise; should be below that of random",
            "split_halves": "Correlation of the mean maps of two halves of the scans",
            "agreement": "Spearman's correlation of the mean map with that of another method or "
            "model",
        },
    },
    "detail": "The layer, the order of the voxels, or the other map",
    "value": "Correlation, or years",
    "scans": "Number of scans",
}


@dataclass(frozen=True)
class Source:
    """A scan whose images are there, and what its record says."""

    scan: Scan
    age: float | None
    sex: str | None
    levels: Mapping[str, float]
    weights: Mapping[str, str]
    key: str


class Images(Sequence[Brain]):
    """The brains of scans as a model takes them, read from disk when they are asked for."""

    def __init__(self, sources: Sequence[Source], model: BrainAgeModel, out: Derivatives) -> None:
        self.sources, self.card, self.out = sources, model.card, out

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: Any) -> Any:
        return self.view(index)[0].brain

    def view(self, index: int) -> tuple[View, NDArray[np.float64]]:
        """A brain, and the affine (4, 4) of the standard grid."""
        source = self.sources[index]
        if isinstance(self.card.contract, MorphometryContract):
            modulated, affine = self._tissue(source.scan, self.out.modulated)
            return view_of_tissue(modulated, source.sex), affine
        contract = self.card.image_contract
        image, affine = self.out.read_image(self.out.preproc(source.scan))
        mask = self.out.read_image(self.out.template_mask(source.scan))[0] > 0
        shares = np.array([])
        if contract.intensity == intensity.TISSUE_MAP:
            shares = self._tissue(source.scan, self.out.tissue)[0]
        to_model = np.linalg.inv(np.array(contract.affine)) @ affine
        brain = _as_contract(image, mask, shares, to_model, contract)
        seen, inside = intensity.view(*brain, source.levels, contract.intensity)
        return View(Brain(seen, inside, source.sex), to_model, mask), affine

    def mask(self, index: int) -> Mask:
        """Where maps of a brain are, on the standard grid."""
        if isinstance(self.card.contract, MorphometryContract):
            return self.view(index)[0].mask
        return self.out.read_image(self.out.template_mask(self.sources[index].scan))[0] > 0

    def _tissue(
        self, scan: Scan, path: Callable[[Scan, str], Path]
    ) -> tuple[Array, NDArray[np.float64]]:
        """(3, X, Y, Z), maps of tissue, and their affine."""
        found = [self.out.read_image(path(scan, tissue)) for tissue in TISSUES]
        return np.stack([np.asarray(each, np.float32) for each, _ in found]), found[0][1]


def _as_contract(
    image: Array, mask: Mask, shares: Array, to_model: NDArray[np.float64],
    contract: InputContract,
) -> tuple[Array, Mask, Array]:  # fmt: skip
    """Image, mask and shares of tissue on a model's grid.

    Where the model has another template of the MNI152 family, its millimetres are taken as those
    of the images: a few millimetres are lost, which a population map does not show.
    """
    image = np.asarray(image, np.float32)
    if image.shape == contract.shape and np.allclose(to_model, np.eye(4)):
        return image, mask, shares
    to_image = np.linalg.inv(to_model)

    def moved(values: Array) -> Array:
        return ndimage.affine_transform(
            values, to_image[:3, :3], to_image[:3, 3], output_shape=contract.shape, order=1,
            output=np.float32,
        )  # fmt: skip

    inside = moved(mask.astype(np.float32)) > 0.5
    return moved(image) * inside, inside, np.array([moved(share) for share in shares])


def population(settings: Settings, out: Derivatives) -> list[str]:
    """Make the maps of the group that the settings ask for; those of an earlier run are gone.

    Returns
    -------
    list of str
        What a reader should know about maps that were not made; said in the log as well.

    Raises
    ------
    UserError
        An atlas or a noise model that the user named cannot be used.
    """
    methods, asked = settings.importance_at("group"), asked_for(settings)
    everybody = [
        source
        for source in good_sources(out)
        if asked(source.scan.participant_id, source.scan.session_id, source.scan.source)
    ]
    names = _models(settings, everybody)
    if not names:
        return [_said("No importance maps: no scan of good quality has images there.")]
    if why := atlas_of(settings.atlas, settings.template)[1]:
        log.warning("No tables of regions. %s", why)
    rows: list[dict[str, Any]] = []
    checks: list[dict[str, Any]] = []
    means: dict[tuple[str, str], tuple[Array, Mask]] = {}
    remarks: list[str] = []
    for name in names:
        try:
            model = models.load(name, _device(settings), settings.model_paths.get(name))
        except ModelError as error:
            remarks.append(_said(f"No importance maps of {name}: {error}"))
            continue
        if isinstance(model.card.contract, VolumeContract):
            remarks.append(_said(NO_IMAGE.format(name)))
            continue
        sources = spread(
            [s for s in everybody if s.weights.get(name) == model.card.weights_sha256],
            settings.importance_max_scans,
        )
        for method in methods:
            if not suited(method, model):
                continue
            group = _Group(model, method, sources, settings, out)
            found = group.made()
            remarks += group.remarks
            if found is None:
                continue
            means[name, method] = found.all.mean, found.all.shown
            rows += group.table
            if settings.importance_check:
                checks += group.checks(found)
    if rows:
        out.write_table(out.group("regions.tsv"), rows, regions.COLUMNS)
    if checks:
        checks += _agreement(means)
        out.write_table(out.group("importance_check.tsv"), checks, CHECK_COLUMNS)
    return remarks


def _said(remark: str) -> str:
    log.warning("%s", remark)
    return remark


# --- who and what ---


def good_sources(out: Derivatives) -> Iterator[Source]:
    """The scans of good quality whose images are there."""
    for path in out.record_paths():
        record = out.read_record(path)
        stem = path.name.removesuffix("_brainage.json")
        scan = Scan(
            Path(stem), str(record.get("source") or ""), str(record.get("participant_id")),
            record.get("session_id"), stem, Demographics(),
        )  # fmt: skip
        needed = [out.preproc(scan), out.template_mask(scan)]
        needed += [
            path(scan, tissue) for path in (out.tissue, out.modulated) for tissue in TISSUES
        ]
        there = all(path.is_file() for path in needed)
        levels = [s["levels"] for s in record.get("steps") or () if s.get("step") == "intensity"]
        passed = (record.get("quality") or {}).get("passed") is not False
        if there and levels and passed:
            weights = weights_of(record)
            key = preprocessing_of(record)
            yield Source(scan, record.get("age"), record.get("sex"), levels[0], weights, key)


def _models(settings: Settings, sources: Sequence[Source]) -> list[str]:
    """The models to explain: embedded ones and the user's own, of those that predicted."""
    predicted = {name for source in sources for name in source.weights}
    names = settings.models or (*models.embedded(), *settings.model_paths)
    return [name for name in dict.fromkeys(names) if name in predicted]


def _device(settings: Settings) -> str:
    import torch

    if settings.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return settings.device


def spread(sources: Sequence[Source], most: int) -> list[Source]:
    """At most so many scans, spread evenly over the ages; in the order of their names."""
    by_age = sorted(sources, key=lambda s: (s.age is None, s.age or 0.0, s.scan.stem))
    if len(by_age) > most:
        places = np.linspace(0, len(by_age) - 1, most).round().astype(int)
        by_age = [by_age[place] for place in places]
    return sorted(by_age, key=lambda source: source.scan.stem)


# --- one model and method ---


class _Group:
    """The maps of one model by one method, and what becomes of them."""

    def __init__(
        self,
        model: BrainAgeModel,
        method: str,
        sources: Sequence[Source],
        settings: Settings,
        out: Derivatives,
    ) -> None:
        self.model, self.method, self.settings, self.out = model, method, settings, out
        self.name = model.card.name
        if method != "noise":
            sources = [s for s in sources if self._map_of(s)]
        self.images = Images(sources, model, out)
        self.atlas, self.no_atlas = atlas_of(settings.atlas, settings.template)
        self.noise: NoiseModel | None = None
        self.table: list[dict[str, Any]] = []
        self.remarks: list[str] = []

    def _map_of(self, source: Source) -> dict[str, Any]:
        """Sidecar of the scan's own map, if it is of the image and the weights of its record."""
        path = self.out.importance(source.scan, self.name, self.method)
        sidecar = self.out.read_sidecar(path)
        return sidecar if belongs(sidecar, source.key, source.weights) else {}

    def made(self) -> Population | None:
        """The population map, written; None where there is nothing to make it of."""
        if not len(self.images):
            why = f"run the participant level with --importance {self.method}"
            if self.method == "noise":
                why = "no scan has images and predictions of these weights"
            self.remarks.append(_said(f"No {self.method} map of {self.name}: {why}."))
            return None
        if self.method == "noise":
            self.noise = self._noise_model()
            if self.noise is None:
                return None
        found, of_regions = self._averaged()
        self._write(found, of_regions)
        return found

    def _noise_model(self) -> NoiseModel | None:
        """The user's, else one fitted to this cohort, else, for few scans, the shipped one."""
        card, files = self.model.card, self.settings.noise_model
        given = noise_model(files, card.name, card.weights_sha256, self.model.device)
        if given and (files or len(self.images) < FEWEST_TO_FIT):
            log.info("Importance by noise, %s: by a noise model fitted to others.", card.name)
            return given
        if len(self.images) < FEWEST_TO_FIT:
            few = f"{len(self.images)} scans are too few to fit a noise model to"
            said = f"No noise map of {card.name}: {few}, and none of these weights is at hand."
            self.remarks.append(_said(said))
            return None
        return self._fitted()

    def _fitted(self) -> NoiseModel:
        path = self.out.group_noise_model(self.name)
        checkpoint = self.out.group_noise_model(self.name, "checkpoint")
        options = noise_method.Options(seed=self.settings.random_seed)
        keys = [(s.scan.stem, s.key) for s in self.images.sources]
        cohort = hashlib.sha256(json.dumps(keys).encode()).hexdigest()
        if before := self.out.read_bytes(path):
            earlier = NoiseModel.from_bytes(before, self.model.device)
            if earlier.belongs(self.model, cohort, options):
                return earlier
        with Steps(f"Importance by noise, {self.name}") as progress:
            noise = noise_method.fit(
                self.model, self.images, options, cohort=cohort,
                checkpoint=self.out.read_bytes(checkpoint),
                keep=lambda content: self.out.write_bytes(checkpoint, content),
                progress=progress,
            )  # fmt: skip
        self.out.write_bytes(path, noise.to_bytes())
        self.out.write_json(path.with_suffix(".json"), noise.about)
        self.out.remove(checkpoint)
        return noise

    def _maps(self) -> Iterator[tuple[Source, Array, Mask, NDArray[np.float64]]]:
        """The map of each scan on the standard grid."""
        for index, source in enumerate(self.images.sources):
            if self.method == "noise":
                view, affine = self.images.view(index)
                maps = make("noise", self.model, view, self.noise, None)
                yield source, view.on_standard(maps.whole), view.mask, affine
            else:
                path = self.out.importance(source.scan, self.name, self.method)
                values, affine = self.out.read_image(path)
                yield source, values, self.images.mask(index), affine

    def _averaged(self) -> tuple[Population, NDArray[np.float64]]:
        """Population map, and the means of each scan's regions, (scans, regions)."""
        found: Population | None = None
        of_regions = []
        with Steps(f"Maps by {self.method}, {self.name}") as progress:
            for number, (source, values, mask, affine) in enumerate(self._maps(), start=1):
                if found is None:
                    x, y, z = values.shape
                    found = Population((x, y, z))
                    self.affine = affine
                    self.labels = self.atlas.on((x, y, z), affine) if self.atlas else None
                found.add(values, mask, source.age)
                if self.atlas and self.labels is not None:
                    of_regions.append(
                        regions.region_means(values, self.labels, mask, self.atlas.regions)
                    )
                if self._is_for_scans(source):
                    self._write_of_scan(source, values, affine)
                progress(number, len(self.images))
        assert found is not None
        return found, np.array(of_regions)

    def _is_for_scans(self, source: Source) -> bool:
        """Whether a map of the scan's own was asked for and is not there.

        One of the participant level serves; one of this level that an earlier noise model made
        does not.
        """
        if self.noise is None or "noise" not in self.settings.importance:
            return False
        there = self._map_of(source)
        of_participant_level = "Fingerprint" in there
        about = json.loads(json.dumps(self.noise.about))  # as it would be read back
        return not of_participant_level and there.get("NoiseModel") != about

    # --- what is written ---

    def _write_of_scan(self, source: Source, values: Array, affine: NDArray[np.float64]) -> None:
        """The scan's own map by the cohort's noise model."""
        card, out = self.model.card, self.out
        sidecar = describe("noise", card, self.settings.template, self.noise)
        sidecar |= {
            "Sources": [out.uri(path) for path in seen_files(source.scan, card, out)],
            PREPROCESSING: source.key,
        }
        path = self.out.importance(source.scan, self.name, "noise")
        self.out.write_image(path, values, affine, sidecar, np.float32)

    def _write(self, found: Population, of_regions: NDArray[np.float64]) -> None:
        out, unit = self.out, UNITS.get(self.method, "")
        self._tabulate(found, of_regions)
        sidecar = describe(self.method, self.model.card, self.settings.template, self.noise)
        sidecar |= {
            "Sources": [
                out.uri(path)
                for s in self.images.sources
                for path in seen_files(s.scan, self.model.card, out)
            ],
            "Scans": found.all.scans,
            "SplitHalfCorrelation": found.split_half_r,
            "Notes": list(self._words(found)),
            **regions_note(self.atlas, self.no_atlas),
        }
        parts: dict[str, tuple[str, Array, int]] = {
            "stat-std": ("Standard deviation over scans. ", found.all.standard_deviation,
                         found.all.scans),
        }  # fmt: skip
        for decade, maps in sorted(found.decades.items()):
            if maps.scans >= FEWEST_OF_DECADE:
                about = f"Mean over the scans at {decade} to {decade + 9} years. "
                parts[f"age-{decade}to{decade + 9}"] = about, maps.mean, maps.scans
        for part, (about, values, scans) in parts.items():
            note = sidecar | {"Description": about + sidecar["Description"], "Scans": scans}
            for key in ("Sources", "SplitHalfCorrelation", "Notes"):
                note.pop(key)
            path = out.group_importance(self.name, self.method, part)
            out.write_image(path, values, self.affine, note, np.float32)
        self._draw(found.all.mean, unit)
        path = out.group_importance(self.name, self.method)
        sidecar["Description"] = "Mean over scans. " + sidecar["Description"]
        out.write_image(path, found.all.mean, self.affine, sidecar, np.float32)

    def _tabulate(self, found: Population, of_regions: NDArray[np.float64]) -> None:
        if not self.atlas or self.labels is None:
            return
        voxel_ml = abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000
        rows = regions.region_table(
            of_regions,
            regions.region_volumes(self.labels, self.atlas.regions, voxel_ml),
            self.atlas.regions,
            self.settings.random_seed,
        )
        shared = {"model": self.name, "method": self.method, "split_half_r": found.split_half_r}
        self.table = [shared | row for row in rows]

    def _words(self, found: Population) -> Iterator[str]:
        """What the report says of the map."""
        yield f"Mean of {found.all.scans} scans."
        if found.split_half_r is not None:
            yield f"Mean maps of two halves of the scans agree with r = {found.split_half_r:.2f}."
        if self.noise:
            about = self.noise.about
            others = "" if self._is_of_cohort() else (
                f"The noise model was fitted to {about['scans']} other scans. "
            )  # fmt: skip
            yield (
                f"{others}The noise moves predictions by {about['moved_years']:.2f} years, of "
                f"{about['tolerance_years']:.2f} allowed; weight {about['weight']:.3g}."
            )

    def _is_of_cohort(self) -> bool:
        return self.out.group_noise_model(self.name).is_file() and not self.settings.noise_model

    def _draw(self, mean: Array, unit: str) -> None:
        x, y, z = mean.shape
        template, _ = load_template(self.settings.template).on((x, y, z), self.affine)
        label = self.name + self.method
        picture = map_figure(mean, template.data, template.zooms, unit)
        self.out.write_bytes(self.out.group_importance_figure(label, "map.png"), picture)
        if self.table:
            path = self.out.group_importance_figure(label, "regions.svg")
            self.out.write_text(path, region_bars(self.table, unit))

    # --- whether it means something ---

    def checks(self, found: Population) -> list[dict[str, Any]]:
        """Rows of ``group_importance_check.tsv``."""
        places = np.linspace(0, len(self.images) - 1, min(CHECKED_SCANS, len(self.images)))
        views = [self.images.view(int(place))[0] for place in places.round()]
        shape, affine = grid_of(self.model.card, self.affine)
        labels = self.atlas.on(shape, affine) if self.atlas else None
        maps = [make(self.method, self.model, v, self.noise, labels).whole for v in views]
        rows = [("split_halves", "", found.split_half_r, found.all.scans)]
        rows += [("randomised", *row) for row in self._randomised(views, maps, labels)]
        rows += list(self._curves(views, maps))
        return [
            {"model": self.name, "method": self.method, "check": check, "detail": detail,
             "value": value, "scans": scans}
            for check, detail, value, scans in rows
        ]  # fmt: skip

    def _randomised(
        self, views: Sequence[View], maps: Sequence[Array], labels: NDArray[np.int32] | None
    ) -> Iterator[tuple[str, float, int]]:
        stages = 1 if self.method == "noise" else CHECKED_STAGES  # one fit is long enough
        for layer, model in sanity.cascade(self.model, stages, self.settings.random_seed):
            noise = self._refitted(model) if self.method == "noise" else None
            others = [make(self.method, model, view, noise, labels).whole for view in views]
            alike = [sanity.similarity(mine, other, view.brain.mask)
                     for mine, other, view in zip(maps, others, views)]  # fmt: skip
            yield layer, float(np.mean(alike)), len(views)

    def _refitted(self, model: BrainAgeModel) -> NoiseModel:
        options = noise_method.Options(seed=self.settings.random_seed)
        options = replace(options, steps=min(options.steps, CHECK_STEPS))
        with Steps(f"Importance by noise, {self.name} randomised") as progress:
            return noise_method.fit(model, self.images, options, progress=progress)

    def _curves(
        self, views: Sequence[View], maps: Sequence[Array]
    ) -> Iterator[tuple[str, str, float, int]]:
        orders = {
            self.method: maps,
            "random": [sanity.random_order(v.brain.mask, n) for n, v in enumerate(views)],
        }
        for detail, of_scans in orders.items():
            every = [sanity.curves(self.model, view.brain, values)
                     for view, values in zip(views, of_scans)]  # fmt: skip
            mean = sanity.mean_curves(every)
            yield "deletion", detail, sanity.area(mean.deletion), len(views)
            yield "insertion", detail, sanity.area(mean.insertion), len(views)


def _agreement(
    means: Mapping[tuple[str, str], tuple[Array, Mask]],
) -> Iterable[dict[str, Any]]:
    """How alike the population maps are."""
    names = list(means)
    for number, one in enumerate(names):
        for other in names[number + 1 :]:
            both = means[one][1] & means[other][1]
            alike = sanity.similarity(means[one][0], means[other][0], both)
            yield {"model": one[0], "method": one[1], "check": "agreement",
                   "detail": f"{other[0]} {other[1]}", "value": alike}  # fmt: skip
