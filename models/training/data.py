"""Training data: what the app's participant level has written, from one or several data sets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from models.coarse import at_4_mm
from models.contract import (
    TISSUES,
    Affine,
    ModelCard,
    ModelError,
    MorphometryContract,
    VolumeContract,
)
from models.intensity import TISSUE_MAP, scale, tissue_map

RECORD = "_brainage.json"
IMAGE = "_space-*_res-2_desc-preproc_T1w.nii.gz"
MODULATED = "modulated"
"""In place of a rule of intensities: modulated maps of tissue at 4 mm."""
CLOSED = 3
"""Voxels of 2 mm by which the gaps between gyri are closed to find a tight mask."""


@dataclass(frozen=True, eq=False)
class TrainingScan:
    """One scan of a person of known age.

    Attributes
    ----------
    name
        The entities that tell the scan from others of its data set.
    age
        Years.
    sex
        "F", "M" or None.
    image
        (X, Y, Z), float16, scaled by the intensity rule; or modulated tissue at 4 mm,
        (3, X, Y, Z), float32; or the scan's volumes, (V,), float32, ml.
    stripped
        Of maps of tissue, the same without the fluid around the brain, as a tight strip leaves it.
    """

    name: str
    dataset: str
    participant_id: str
    age: float
    sex: str | None
    site: str
    image: Tensor
    stripped: Tensor | None = None

    @property
    def person(self) -> tuple[str, str]:
        """Two data sets may give the same label to two people."""
        return self.dataset, self.participant_id

    @property
    def stratum(self) -> str:
        """What folds are balanced over, beside age."""
        return f"{self.dataset}/{self.site}"


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """All scans, and the grid they share (voxel indices -> template RAS mm).

    Attributes
    ----------
    skipped
        How many records had no age.
    content
        SHA-256 over the images as they were read: where preprocessing has changed, it has too.
    """

    scans: tuple[TrainingScan, ...]
    template: str
    affine: Affine
    skipped: int = 0
    content: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along the axes of the grid."""
        x, y, z = self.scans[0].image.shape
        return x, y, z

    @property
    def ages(self) -> np.ndarray:
        """Years, one per scan."""
        return np.array([scan.age for scan in self.scans])

    def pooled(self, size: int) -> TrainingSet:
        """The same scans, averaged over blocks of ``size`` voxels along each axis."""
        if size == 1 or self.scans[0].image.dim() == 4:  # these are at 4 mm
            return self
        scans = [
            replace(
                scan,
                image=_block_means(scan.image, size),
                stripped=None if scan.stripped is None else _block_means(scan.stripped, size),
            )
            for scan in self.scans
        ]
        return replace(self, scans=tuple(scans))

    def fingerprint(self) -> str:
        """SHA-256 over who is in it, to tell one training set from another."""
        rows = [f"{scan.dataset}\t{scan.name}\t{scan.age:.4f}\n" for scan in self.scans]
        return hashlib.sha256("".join(sorted(rows)).encode()).hexdigest()


def _block_means(image: Tensor, size: int) -> Tensor:
    """(X, Y, Z) -> float16, each side divided by ``size`` and rounded up."""
    ends = [length for side in image.shape[::-1] for length in (0, -side % size)]
    padded = functional.pad(image.float()[None, None], ends)
    return functional.avg_pool3d(padded, size)[0, 0].half()


def load_training_set(roots: Sequence[Path], intensity: str) -> TrainingSet:
    """Read every scan with a known age below the output folders of the app.

    Parameters
    ----------
    roots
        Output folders of the participant level.
    intensity
        Rule of ``models.intensity``.

    Raises
    ------
    ModelError
        Where there is no such scan, an image or its intensity levels are missing, or grids
        differ.
    """
    scans: list[TrainingScan] = []
    grids: dict[tuple[str, Affine, tuple[int, ...]], str] = {}
    skipped = 0
    for path, record, dataset in _records(roots):
        if record.get("age") is None:
            skipped += 1
            continue
        scan, template, affine = _load_scan(path, record, dataset, intensity)
        scans.append(scan)
        grids.setdefault((template, affine, scan.image.shape), scan.name)
    if not scans:
        raise _nobody(roots)
    if len(grids) > 1:
        names = " and ".join(list(grids.values())[:2])
        raise ModelError(f"The scans {names} lie on different grids; use one template for all.")
    return TrainingSet(tuple(scans), template, affine, skipped, _content(scans))


def _content(scans: Sequence[TrainingScan]) -> str:
    digest = hashlib.sha256()
    for scan in scans:
        for image in (scan.image, scan.stripped):
            digest.update(b"" if image is None else image.numpy().tobytes())
    return digest.hexdigest()


def load_inputs(card: ModelCard, roots: Sequence[Path]) -> TrainingSet:
    """The images, maps or volumes that a model takes; see the functions for each."""
    if isinstance(card.contract, VolumeContract):
        return load_volumes(roots, card.contract.volumes)
    if isinstance(card.contract, MorphometryContract):
        return load_morphometry(roots)
    return load_training_set(roots, card.contract.intensity)


def load_images(roots: Sequence[Path], intensity: str) -> TrainingSet:
    """Images by a rule of ``models.intensity``, or by that of `MODULATED` maps of tissue."""
    if intensity == MODULATED:
        return load_morphometry(roots)
    return load_training_set(roots, intensity)


def load_morphometry(roots: Sequence[Path]) -> TrainingSet:
    """Read maps of modulated tissue, and average them to 4 mm, in place of images.

    Parameters
    ----------
    roots
        Output folders of the participant level.

    Raises
    ------
    ModelError
        Where there is no scan of known age, maps are missing, or they are of several templates.
    """
    scans, skipped, templates = [], 0, set()
    for path, record, dataset in _records(roots):
        if record.get("age") is None:
            skipped += 1
            continue
        name, image = path.name.removesuffix(RECORD), _image_of(path)
        maps = _tissue(image, "_desc-modulated")[0]
        whole, stripped = (
            at_4_mm(torch.from_numpy(each)[None])[0] for each in (maps, maps * _tight(maps))
        )
        scans.append(replace(_scan(name, record, dataset, whole), stripped=stripped))
        templates.add(_template_of(image, name))
    if not scans:
        raise _nobody(roots)
    if len(templates) > 1:
        names = " and ".join(sorted(templates))
        raise ModelError(f"The scans lie in several templates, {names}; use one for all.")
    return TrainingSet(tuple(scans), templates.pop(), (), skipped, _content(scans))


def load_volumes(roots: Sequence[Path], names: Sequence[str]) -> TrainingSet:
    """Read volumes in place of images, from the records alone.

    Parameters
    ----------
    roots
        Output folders of the participant level.
    names
        Keys of the records' ``volumes_ml``.

    Raises
    ------
    ModelError
        Where there is no scan of known age, or a volume is missing.
    """
    scans, skipped = [], 0
    for path, record, dataset in _records(roots):
        if record.get("age") is None:
            skipped += 1
            continue
        volumes = record.get("volumes_ml") or {}
        found = [volumes.get(name) for name in names]
        if None in found:
            raise ModelError(
                f"The record {path} has no volume '{names[found.index(None)]}'; run the"
                " participant level again."
            )
        name = path.name.removesuffix(RECORD)
        scans.append(_scan(name, record, dataset, torch.tensor(found, dtype=torch.float32)))
    if not scans:
        raise _nobody(roots)
    return TrainingSet(tuple(scans), template="", affine=(), skipped=skipped)


def _records(roots: Sequence[Path]) -> Iterator[tuple[Path, dict[str, Any], str]]:
    """Every record below the folders: its path, what it says, and its data set."""
    for root in roots:
        dataset = dataset_name(root)
        for path in sorted(root.glob(f"sub-*/**/*{RECORD}")):
            yield path, _read_json(path), dataset


def _nobody(roots: Sequence[Path]) -> ModelError:
    folders = ", ".join(map(str, roots))
    return ModelError(
        f"There is no scan of known age below {folders}; run the participant level on a data set"
        " whose participants.tsv has an age column."
    )


def _scan(name: str, record: dict[str, Any], dataset: str, image: Tensor) -> TrainingScan:
    return TrainingScan(
        name,
        dataset,
        record["participant_id"],
        float(record["age"]),
        record.get("sex"),
        record.get("site") or "",
        image,
    )


def _load_scan(
    path: Path, record: dict[str, Any], dataset: str, intensity: str
) -> tuple[TrainingScan, str, Affine]:
    """The scan that belongs to a record, its template and its affine."""
    name, path_of_image = path.name.removesuffix(RECORD), _image_of(path)
    stripped = None
    if intensity == TISSUE_MAP:
        shares, affine = _tissue(path_of_image)
        scaled = tissue_map(shares)
        stripped = torch.from_numpy(tissue_map(shares * _tight(shares))).half()
    else:
        voxels, affine = _voxels(path_of_image)
        scaled = scale(voxels, _levels(path, record), intensity)
    if not np.isfinite(scaled).all():
        raise ModelError(f"The image {path_of_image} holds values that are not finite.")
    image = torch.from_numpy(scaled).half()
    scan = replace(_scan(name, record, dataset, image), stripped=stripped)
    return scan, _template_of(path_of_image, name), affine


def _image_of(record: Path) -> Path:
    """The image in the template that lies beside a record."""
    name = record.name.removesuffix(RECORD)
    images = sorted(record.parent.glob(name + IMAGE))
    if len(images) != 1:
        raise ModelError(
            f"Beside {record} there must be one image {name}{IMAGE}, not {len(images)}; run the"
            " participant level again."
        )
    return images[0]


def _template_of(image: Path, name: str) -> str:
    return image.name.removeprefix(f"{name}_space-").split("_")[0]


def _tissue(image: Path, described: str = "") -> tuple[NDArray[np.float32], Affine]:
    """Maps of tissue, (3, X, Y, Z), that lie beside an image, and their affine."""
    there = image.name.removesuffix("desc-preproc_T1w.nii.gz")
    ending = f"{described}_probseg.nii.gz"
    found = [_voxels(image.with_name(f"{there}label-{t}{ending}")) for t in TISSUES]
    return np.stack([share for share, _ in found]), found[0][1]


def _tight(shares: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Grey and white matter, ventricles, and of the fluid around them what sulci hold."""
    solid = np.pad(shares[:2].sum(0) > 0.5, CLOSED)
    closed = ndimage.binary_closing(solid, iterations=CLOSED)
    inner = (slice(CLOSED, -CLOSED),) * 3
    return ndimage.binary_fill_holes(closed)[inner]


def _voxels(path: Path) -> tuple[NDArray[np.float32], Affine]:
    """(X, Y, Z) of an image, and its affine."""
    try:
        loaded: Any = nib.load(path)
        voxels = np.asarray(loaded.dataobj, dtype=np.float32)
    except (OSError, EOFError, nib.filebasedimages.ImageFileError) as error:
        raise ModelError(f"The image {path} cannot be read: {error}.") from None
    return voxels, tuple(tuple(map(float, row)) for row in loaded.affine)


def _levels(path: Path, record: dict[str, Any]) -> dict[str, float]:
    steps: Iterable[dict[str, Any]] = record.get("steps", ())
    for step in steps:
        if "intensity" in (step.get("step"), step.get("name")):
            return step["levels"]
    raise ModelError(
        f"The record {path} has no intensity levels; run the participant level again."
    )


def dataset_name(root: Path) -> str:
    """Last part of the address of the data set an output folder was made from.

    Parameters
    ----------
    root
        Output folder; its own name serves where it does not say.
    """
    about = _read_json(root / "dataset_description.json", missing={})
    for source in about.get("SourceDatasets", ()):
        name = Path(unquote(urlsplit(source.get("URL", "")).path)).name
        if name and name != "..":
            return name
    return root.resolve().name


def _read_json(path: Path, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    if missing is not None and not path.is_file():
        return missing
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"The file {path} cannot be read: {error}.") from None
