"""Importance maps of a scan: made by the methods that were asked for, written, and drawn.

Maps are made on the grid of each model's contract and written on the standard grid in the
template; a region table goes into the sidecar where an atlas is at hand.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from bidsapp.derivatives import Derivatives
from bidsapp.errors import UserError
from bidsapp.importance import attention, gradcam
from bidsapp.importance.brain import Array, Brain, Mask
from bidsapp.importance.noise import NoiseModel
from bidsapp.importance.occlusion import as_map, occlusion
from bidsapp.importance.regions import (
    Atlas,
    read_labels,
    region_means,
    region_table,
    region_volumes,
)
from bidsapp.importance.sidecar import PREPROCESSING
from bidsapp.preprocessing.atlas import load_atlas
from bidsapp.preprocessing.image import Image
from bidsapp.preprocessing.tissue import tissue_of_template
from bidsapp.reporting.importance_figures import map_figure, region_bars
from bidsapp.settings import Settings
from bidsapp.study import Scan
from models import registry
from models.coarse import TO_FINE, at_4_mm
from models.contract import TISSUES, ModelCard, ModelError, MorphometryContract, VolumeContract
from models.prediction import BrainAgeModel

log = logging.getLogger(__name__)

DESCRIPTIONS = {
    "noise": "1 where a place bears next to no noise without a change of the predicted age, 0 "
    "where it bears as much as was tried (Bintsi et al. 2021)",
    "gradcam": "Grad-CAM of all layers, each scaled to a highest value of 1, averaged; without "
    "its sign",
    "attention": "Attention of the class token times contribution to the age by guided "
    "backpropagation, each 0 to 1 within a sagittal slice (Jalal et al. 2025)",
    "occlusion": "Years that the region around each voxel adds to the predicted age: the age "
    "predicted from the image, less that with the region filled in from its surroundings",
}
OF_TISSUE = DESCRIPTIONS | {
    "occlusion": "Years that the region around each voxel adds to the predicted age: the age "
    "predicted from the tissue, less that with the template's tissue in the region",
}
"""The same, of models that see maps of tissue that was warped to the template."""
UNITS = {"occlusion": "years"}
NO_IMAGE = "No importance maps of {}: these methods map images, and it sees none."
FILLED = 0.3
"""Of a voxel by tissue, from which it counts as brain in maps of modulated tissue."""
NOISE_WEIGHTS = "noise.safetensors"
"""File of the noise model in a model's folder."""


@dataclass(frozen=True, eq=False)
class View:
    """A brain as a model takes it, and how to come back from there.

    Attributes
    ----------
    to_model
        (4, 4), from voxels of the standard grid to voxels of the model's.
    mask
        (X, Y, Z), the brain on the standard grid: as it lies in the template, or as it was warped
        to it where the model takes modulated tissue.
    """

    brain: Brain
    to_model: NDArray[np.float64]
    mask: Mask

    def on_standard(self, values: Array) -> Array:
        """A map of the model's grid on the standard grid, 0 outside of the brain."""
        if values.shape != self.mask.shape or not np.allclose(self.to_model, np.eye(4)):
            values = ndimage.affine_transform(
                values, self.to_model[:3, :3], self.to_model[:3, 3],
                output_shape=self.mask.shape, order=1, output=np.float32,
            )  # fmt: skip
        return np.where(self.mask, values, 0).astype(np.float32)


def view_of_tissue(modulated: Array, sex: str | None) -> View:
    """A brain as a model of morphometry takes it.

    Parameters
    ----------
    modulated
        (3, X, Y, Z) on the standard grid, in the template.
    """
    coarse = at_4_mm(torch.from_numpy(modulated)[None])[0].numpy()
    brain = Brain(coarse, coarse.sum(0) > FILLED, sex)
    to_model: NDArray[np.float64] = np.linalg.inv(np.array(TO_FINE))
    return View(brain, to_model, modulated.sum(0) > FILLED)


def grid_of(
    card: ModelCard, standard: NDArray[np.float64]
) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Shape and affine (4, 4) of a model's grid.

    Parameters
    ----------
    standard
        (4, 4), of the standard grid.
    """
    if isinstance(card.contract, MorphometryContract):
        return card.contract.grid, standard @ np.array(TO_FINE)
    return card.image_contract.shape, np.array(card.image_contract.affine)


@dataclass(frozen=True, eq=False)
class Maps:
    """What a method says of one brain, on the model's grid.

    ``layers`` are the maps that the whole is made of, by name, where there are such.
    """

    whole: Array
    layers: Mapping[str, Array]


def takes_image(model: BrainAgeModel) -> bool:
    """Whether there can be maps of a model; where it sees no image, this is said once."""
    if not isinstance(model.card.contract, VolumeContract):
        return True
    _say_once(NO_IMAGE.format(model.card.name))
    return False


def suited(method: str, model: BrainAgeModel) -> bool:
    """Whether a method can be used on a model."""
    kinds = {"gradcam": gradcam.suited, "attention": attention.suited}
    return method not in kinds or kinds[method](model)


def make(
    method: str,
    model: BrainAgeModel,
    view: View,
    noise: NoiseModel | None,
    labels: NDArray[np.int32] | None,
) -> Maps:
    """The map of one brain by one method.

    Parameters
    ----------
    noise
        For the method of that name.
    labels
        The atlas on the model's grid, for occlusion.
    """
    brain = view.brain
    if method == "noise":
        assert noise is not None
        return Maps(noise.importance(brain), {})
    if method == "gradcam":
        layers = gradcam.gradcam(model, brain)
        named = {f"layer{number}": each for number, each in enumerate(layers, start=1)}
        return Maps(gradcam.merged(layers), named)
    if method == "attention":
        return Maps(attention.attention(model, brain), {})
    assert method == "occlusion" and labels is not None
    changes = occlusion(model, brain, labels, average_brain(model.card))
    return Maps(as_map(changes, labels, brain.mask), {})


def average_brain(card: ModelCard) -> Array | None:
    """What occlusion puts in place of a region: the template's tissue, (3, X, Y, Z).

    On the model's grid. None for models of images, in which places of people differ.
    """
    if isinstance(card.contract, MorphometryContract):
        return _tissue_of_template(card.contract.template)
    return None


@lru_cache(maxsize=2)
def _tissue_of_template(name: str) -> Array:
    network, _ = registry.load_segmentation()
    found: Array = at_4_mm(torch.from_numpy(tissue_of_template(network, name))[None])[0].numpy()
    return found


# --- what maps are made with ---


@lru_cache(maxsize=1)
def atlas_of(named: tuple[str, ...], template: str) -> tuple[Atlas | None, str]:
    """The atlas, or None and why there is none.

    Raises
    ------
    UserError
        Where the atlas that the user named cannot be used.
    """
    try:
        found = load_atlas(named)
        regions = read_labels(found.table, str(found.table_path))
    except (UserError, ValueError) as error:
        if named:
            raise UserError(str(error).rstrip(".") + ".") from error
        return None, str(error)
    space = found.space or template
    return Atlas(found.name, found.labels, found.affine, regions, space), ""


def lacking(settings: Settings, level: str) -> list[str]:
    """Learn once, before there is anything to map, what the maps of a level will lack.

    Raises
    ------
    UserError
        Where an atlas or a noise model that the user named cannot be used.
    """
    methods = settings.importance_at(level)
    if "noise" in methods:
        for file in settings.noise_model:
            _read_noise_model(file, "cpu")
    why = atlas_of(settings.atlas, settings.template)[1] if methods else ""
    what = "No tables of regions" + (", no occlusion maps" if "occlusion" in methods else "")
    return [f"{what}. {why}"] if why else []


def _read_noise_model(file: str, device: str) -> NoiseModel:
    try:
        return NoiseModel.from_bytes(registry.read(Path(file)), device)
    except (ModelError, ValueError) as error:
        raise UserError(f"--noise-model {file} cannot be used: {error}.") from error


@lru_cache(maxsize=4)
def noise_model(
    files: tuple[str, ...], name: str, weights_sha256: str, device: str
) -> NoiseModel | None:
    """The noise model of a model: one of ``files``, else the one that comes with it.

    None where there is none, or the one that comes with the model is of other weights.

    Raises
    ------
    UserError
        Where a file is no noise model, or was fitted to other weights of this model.
    """
    for file in files:
        found = _read_noise_model(file, device)
        if found.about.get("model") == name:
            if found.about.get("weights_sha256") != weights_sha256:
                raise UserError(
                    f"--noise-model {file} was fitted to other weights of {name} than those in "
                    "use; fit it again (group level, --importance noise)."
                )
            return found
    shipped = registry.FOLDER / name / NOISE_WEIGHTS
    if not shipped.is_file():
        return None
    found = NoiseModel.from_bytes(registry.read(shipped), device)
    return found if found.about.get("weights_sha256") == weights_sha256 else None


# --- one scan ---


@dataclass(frozen=True, eq=False)
class Explained:
    """A scan whose maps are wanted.

    Attributes
    ----------
    scan
        Where the maps belong.
    views
        The brain as each model takes it, by model; called when it is needed.
    template
        The template's brain on the standard grid, under the maps in pictures.
    preprocessing
        Fingerprint of the preprocessed image, by which a map is known to be of it.
    """

    scan: Scan
    views: Callable[[str], View]
    template: Image
    preprocessing: str


def wanted(
    scan: Scan,
    key: Mapping[str, str],
    models: Mapping[str, BrainAgeModel],
    settings: Settings,
    out: Derivatives,
) -> dict[tuple[str, str], str]:
    """Model and method of each map that is to be made, and the fingerprint it will have.

    Those that are there and up to date are left out, and so is what cannot be made.

    Parameters
    ----------
    key
        Fingerprints of the scan's ``preprocessing`` and ``prediction``.
    """
    found = {}
    seeing = {name: model for name, model in models.items() if takes_image(model)}
    for method in settings.importance_at("participant"):
        for name, model in seeing.items():
            if not suited(method, model) or not _possible(method, model, settings):
                continue
            fingerprint = _fingerprint(method, model, key["prediction"], settings)
            before = out.read_sidecar(out.importance(scan, name, method))
            there = before.get("Fingerprint"), before.get(PREPROCESSING)
            if there != (fingerprint, key["preprocessing"]):
                found[name, method] = fingerprint
    return found


def _possible(method: str, model: BrainAgeModel, settings: Settings) -> bool:
    name, sha256 = model.card.name, model.card.weights_sha256
    if method == "noise" and noise_model(settings.noise_model, name, sha256, model.device) is None:
        shipped = (registry.FOLDER / name / NOISE_WEIGHTS).is_file()
        what = (
            f"The noise model that comes with {name} belongs to other weights than those in use"
            if shipped else f"No noise model of {name} is at hand"
        )  # fmt: skip
        _say_once(
            f"{what}: its noise map is left out here, and made at the group level or with "
            "--noise-model."
        )
        return False
    if method == "occlusion":
        return atlas_of(settings.atlas, settings.template)[0] is not None
    return True


@lru_cache(maxsize=32)
def _say_once(text: str) -> None:
    log.warning("%s", text)


def _fingerprint(method: str, model: BrainAgeModel, key: str, settings: Settings) -> str:
    words = describe(method, model.card, settings.template, None)["Description"]
    parts: list[Any] = [words, model.card.name, key]
    if method == "noise":
        sha256 = model.card.weights_sha256
        noise = noise_model(settings.noise_model, model.card.name, sha256, model.device)
        parts.append(noise.about if noise else None)
    atlas, _ = atlas_of(settings.atlas, settings.template)
    parts.append(_hash_of_atlas(atlas) if atlas else None)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _hash_of_atlas(atlas: Atlas) -> str:
    """Of all that shows in a map or its table: labels, where they lie, what they are called."""
    found = hashlib.sha256(atlas.labels.tobytes())
    found.update(atlas.affine.tobytes())
    names = [atlas.name, *map(astuple, atlas.regions)]
    found.update(json.dumps([atlas.labels.shape, names]).encode())
    return found.hexdigest()


def write_maps(
    what: Explained,
    todo: Mapping[tuple[str, str], str],
    models: Mapping[str, BrainAgeModel],
    settings: Settings,
    out: Derivatives,
) -> None:
    """Make and write the maps of a scan, with their sidecars and pictures."""
    atlas, why = atlas_of(settings.atlas, settings.template)
    for (name, method), fingerprint in todo.items():
        began = time.perf_counter()
        model, view = models[name], what.views(name)
        shape, affine = grid_of(model.card, what.template.affine)
        sha256 = model.card.weights_sha256
        noise = None
        if method == "noise":
            noise = noise_model(settings.noise_model, name, sha256, model.device)
        labels = atlas.on(shape, affine) if atlas else None
        maps = make(method, model, view, noise, labels)
        sidecar = describe(method, model.card, settings.template, noise)
        sidecar |= {
            "Sources": [out.uri(path) for path in seen_files(what.scan, model.card, out)],
            PREPROCESSING: what.preprocessing,
        }
        values = view.on_standard(maps.whole)
        rows = of_regions(values, view.mask, what.template.affine, atlas)
        sidecar |= regions_note(atlas, why) | ({"Regions": rows} if rows else {})
        if noise:
            sidecar["Notes"] = [f"The noise model was fitted to {noise.about['scans']} scans."]
        _write_figures(what, name + method, values, rows, UNITS.get(method, ""), out)
        for layer, of_layer in maps.layers.items():
            path = out.importance(what.scan, name, method + layer)
            note = sidecar | {"Description": f"Grad-CAM, {layer}, without its sign"}
            note.pop("Regions", None)
            on_grid = view.on_standard(of_layer)
            out.write_image(path, on_grid, what.template.affine, note, np.float32)
        sidecar |= {"Seconds": round(time.perf_counter() - began, 2), "Fingerprint": fingerprint}
        path = out.importance(what.scan, name, method)
        out.write_image(path, values, what.template.affine, sidecar, np.float32)


def seen_files(scan: Scan, card: ModelCard, out: Derivatives) -> list[Path]:
    """The images that a model sees of a scan."""
    if isinstance(card.contract, MorphometryContract):
        return [out.modulated(scan, tissue) for tissue in TISSUES]
    return [out.preproc(scan)]


def describe(
    method: str, card: ModelCard, template: str, noise: NoiseModel | None
) -> dict[str, Any]:
    """Keys that the sidecars of all maps have."""
    contract = card.contract
    assert not isinstance(contract, VolumeContract)  # it has no places
    space = contract.template
    made_in = "" if space == template else f"; made in {space}, on the model's own grid"
    words = DESCRIPTIONS
    if isinstance(contract, MorphometryContract):
        words, made_in = OF_TISSUE, made_in + "; of tissue that was warped to the template"
    found: dict[str, Any] = {
        "Description": words[method] + made_in,
        "Model": card.name,
        "WeightsSHA256": card.weights_sha256,
        "Method": method,
        "Units": UNITS.get(method, "arbitrary"),
    }
    return found | ({"NoiseModel": noise.about} if noise else {})


def regions_note(atlas: Atlas | None, why: str) -> dict[str, Any]:
    """What the sidecar says of the atlas."""
    if atlas is None:
        return {"Atlas": None, "AtlasMissing": why}
    how = "nearest label, by the millimetres of both spaces"
    return {"Atlas": {"Name": atlas.name, "Space": atlas.space, "Resampling": how}}


def of_regions(
    values: Array, mask: Mask, affine: NDArray[np.float64], atlas: Atlas | None
) -> list[dict[str, Any]]:
    """The region table of one map on the standard grid; empty without an atlas."""
    if atlas is None:
        return []
    x, y, z = values.shape
    labels = atlas.on((x, y, z), affine)
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    means = region_means(values, labels, mask, atlas.regions)[None]
    rows = region_table(means, region_volumes(labels, atlas.regions, voxel_ml), atlas.regions)
    return [{k: v for k, v in row.items() if v is not None} for row in rows]


def _write_figures(
    what: Explained, label: str, values: Array, rows: Iterable[Mapping[str, Any]], unit: str,
    out: Derivatives,
) -> None:  # fmt: skip
    who, stem = what.scan.participant_id, what.scan.stem
    picture = map_figure(values, what.template.data, what.template.zooms, unit)
    out.write_bytes(out.importance_figure(who, stem, label, "map.png"), picture)
    path = out.importance_figure(who, stem, label, "regions.svg")
    if rows:
        out.write_text(path, region_bars(list(rows), unit))
    else:
        out.remove(path)
