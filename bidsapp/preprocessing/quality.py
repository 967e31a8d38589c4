"""Quality figures of a scan, of its registration and of its prediction, and the flags they raise.

``docs/quality.md`` defines each figure; functions here take arrays and know no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bidsapp.preprocessing.image import Image
from bidsapp.preprocessing.segmentation import Segmentation
from models.segmentation import labels

Mask = NDArray[np.bool_]
Figures = dict[str, float | None]

LIMITS: dict[str, tuple[float, float]] = {
    "registration_correlation": (0.38, np.inf),
    "mask_overlap": (0.89, np.inf),
    "mask_asymmetry": (-np.inf, 0.083),
    "affine_determinant": (0.39, 1.1),
    "affine_shear": (-np.inf, 0.12),
    "rotation_degrees": (-np.inf, 38),
    "brain_volume_ml": (900, 1900),
    "tissue_deviation": (-np.inf, 2.4),
    "side_difference": (-np.inf, 0.048),
    "largest_cut_cm2": (-np.inf, 78),
    "weakest_slice": (0.73, np.inf),
    "cnr": (0.85, np.inf),
    "edge_sharpness": (0.35, np.inf),
    "noise": (-np.inf, 0.054),
    "bias_field_ratio": (-np.inf, 2.2),
    "ghosting": (-np.inf, 0.022),
    "clipped_share": (-np.inf, 0.001),
    "largest_voxel_mm": (-np.inf, 4),
    "model_disagreement_years": (-np.inf, 20),
    "years_within_trained_ages": (-10, np.inf),
    "distance_from_training": (-np.inf, 1.25),
}
"""Acceptable range of each figure: all but the last five as ``python benchmarks/quality.py table``
has chosen them from sound and corrupted scans, those by hand (``docs/quality.md``)."""

TISSUE_SHARES: dict[str, tuple[float, float]] = {
    "CTX": (-0.91, 0.057),
    "WM": (-1.02, 0.063),
    "LV": (-4.57, 0.44),
    "DGM": (-3.63, 0.040),
    "HIP": (-5.10, 0.082),
    "AMY": (-6.44, 0.099),
    "CBC": (-2.38, 0.070),
    "CBW": (-3.79, 0.058),
    "BS": (-3.81, 0.063),
}
"""Mean and standard deviation, over sound scans of adults, of the logarithm of each structure's
share in the brain; from the same program."""

FEWEST = 100
"""Voxels of a tissue, or of air, from which a figure can be computed."""


def judge(figures: Mapping[str, float | None], mode: str) -> dict[str, Any]:
    """What a record says under ``quality``: ``passed``, ``flags``, then the figures.

    Parameters
    ----------
    figures
        None where a figure does not apply to the scan, which raises no flag.
    mode
        The option ``--quality``; ``"off"`` leaves ``passed`` unknown.
    """
    flags = [
        name
        for name, (low, high) in LIMITS.items()
        if (value := figures.get(name)) is not None and not low <= value <= high
    ]
    verdict: dict[str, Any] = {"passed": not flags, "flags": flags}
    return ({"passed": None, "flags": []} if mode == "off" else verdict) | dict(figures)


def words(quality: Mapping[str, Any]) -> str:
    """The flags of a record with figure and limits, as in "mask_overlap 0.61 (at least 0.89)"."""
    return ", ".join(
        f"{name} {quality[name]:.3g} ({limits_in_words(*LIMITS[name])})"
        for name in quality["flags"]
    )


def limits_in_words(low: float, high: float) -> str:
    """A range of ``LIMITS``, as in "at least 0.89"."""
    if np.isinf(high):
        return f"at least {low:g}"
    return f"{low:g} to {high:g}" if low > 0 else f"at most {high:g}"


def assess(
    segmentation: Segmentation,
    corrected: Image,
    scan: Image,
    registered: Image,
    registered_mask: Mask,
    template: Image,
    template_mask: Mask,
    to_scan: NDArray[np.float64],
    field_range: Sequence[float],
    stripped: bool,
) -> Figures:
    """Figures of the image, of its segmentation and of its registration.

    What cannot be computed for want of tissue gets the value of the worst scan; what does not
    apply to the scan is None.

    Parameters
    ----------
    corrected
        The bias-corrected image on the working grid of the segmentation.
    registered, template
        The scan's brain and the template's on the same grid in template space, whose first axis
        is mirrored by the template's midplane.
    to_scan
        (4, 4) template mm -> scan mm.
    field_range
        Lower and upper percentile of the bias field in the brain.
    stripped
        Whether the scan came without its skull, so that there is no air to look at.
    """
    working, mask, found = (
        segmentation.working, segmentation.on_working.mask, segmentation.on_working.labels,
    )  # fmt: skip
    grey, white = (np.isin(found, labels.indices(structure=name)) for name in ("CTX", "WM"))
    return {
        "registration_correlation": _correlation(
            registered.data, template.data, registered_mask & template_mask
        ),
        "mask_overlap": _dice(registered_mask, template_mask),
        "mask_asymmetry": 1 - _dice(registered_mask, registered_mask[::-1]),
        "affine_determinant": float(np.linalg.det(to_scan[:3, :3])),
        "affine_shear": _shear(to_scan),
        "rotation_degrees": _rotation(to_scan),
        "brain_volume_ml": float(mask.sum() * working.voxel_ml),
        "tissue_deviation": _tissue_deviation(found, mask),
        "side_difference": _side_difference(found),
        "largest_cut_cm2": _largest_cut(mask, working.zooms),
        "weakest_slice": _weakest_slice(working.data, mask),
        **_contrast(corrected.data, grey, white),
        "edge_sharpness": _edge_sharpness(corrected.data, grey, white),
        "noise": _noise(working.data, white),
        "bias_field_ratio": float(field_range[1] / max(field_range[0], 1e-6)),
        "clipped_share": _clipped_share(working.data, mask),
        **(dict.fromkeys(("efc", "fber", "ghosting")) if stripped
           else _background(working.data, mask, white)),
        "largest_voxel_mm": max(scan.zooms),
    }  # fmt: skip


def of_predictions(
    age: float | None,
    models: Sequence[tuple[float, tuple[float, float]]],
    unlike: Sequence[float | None] = (),
) -> Figures:
    """How well the models of the ensemble agree, and how far the scan is from what they know.

    Parameters
    ----------
    age
        Of the ensemble, years; None where no model predicts.
    models
        For each member the predicted age, and the youngest and oldest age it was trained on.
    unlike
        Distance of the image from the training images of each model, None where not known.
    """
    inside = [each for each, (low, high) in models if age is not None and low <= age <= high]
    if age is not None and not inside:
        inside = [each for each, _ in models]
    ends = [min(age - low, high - age) for _, (low, high) in models if age is not None]
    return {
        "model_disagreement_years": float(np.ptp(inside)) if len(inside) > 1 else None,
        "years_within_trained_ages": max(ends, default=None),
        "distance_from_training": max((each for each in unlike if each is not None), default=None),
    }


# --- registration ---


def _correlation(a: NDArray, b: NDArray, mask: Mask) -> float:
    if mask.sum() < FEWEST or np.ptp(a[mask]) == 0:
        return 0.0
    return float(np.corrcoef(a[mask], b[mask])[0, 1])


def _dice(a: Mask, b: Mask) -> float:
    return float(2 * (a & b).sum() / max(a.sum() + b.sum(), 1))


def _shear(matrix: NDArray[np.float64]) -> float:
    """Largest shear of the affine: off-diagonal over diagonal of its RQ-like stretch part."""
    _, upper = np.linalg.qr(matrix[:3, :3])
    stretch = upper / np.diag(upper)[:, None]
    return float(np.abs(np.triu(stretch, 1)).max())


def _rotation(matrix: NDArray[np.float64]) -> float:
    """Angle of the rotation next to the affine (polar decomposition), degrees."""
    left, _, right = np.linalg.svd(matrix[:3, :3])
    cosine = (np.trace(left @ right) - 1) / 2
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


# --- brain and its parts ---


def _tissue_deviation(found: NDArray[np.uint8], mask: Mask) -> float:
    """Root mean square of the structures' z-scores; a voxel more keeps the logarithm finite."""
    brain = max(int(mask.sum()), 1)
    scores = [
        (np.log((np.isin(found, labels.indices(structure=name)).sum() + 1) / brain) - mean) / sd
        for name, (mean, sd) in TISSUE_SHARES.items()
    ]
    return float(np.sqrt(np.mean(np.square(scores))))


def _side_difference(found: NDArray[np.uint8]) -> float:
    """Largest |left - right| / (left + right) of cortex, white matter and cerebellum."""
    differences = []
    for name in ("CTX", "WM", "CBC"):
        one, other = ((found == index).sum() for index in labels.indices(structure=name))
        differences.append(abs(int(one) - int(other)) / max(int(one + other), 1))
    return float(max(differences))


def _largest_cut(mask: Mask, zooms: Sequence[float]) -> float:
    """Largest area in which the mask ends on one plane of the grid, cm^2."""
    padded = np.pad(mask, 1)
    areas = []
    for axis in range(3):
        step = np.diff(np.moveaxis(padded, axis, 0).astype(np.int8), axis=0)
        voxel = np.prod(zooms) / zooms[axis] / 100
        areas += [(step == sign).sum((1, 2)).max() * voxel for sign in (1, -1)]
    return float(max(areas))


def _weakest_slice(image: NDArray, mask: Mask) -> float:
    """Lowest mean of a slice of the brain's box over the median of the slices around it."""
    spans = [np.flatnonzero(mask.any(tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    if any(span.size < 15 for span in spans):
        return 0.0
    box = image[tuple(slice(span[0], span[-1] + 1) for span in spans)]
    worst = 1.0
    for axis in range(3):
        profile = box.mean(tuple({0, 1, 2} - {axis}))
        around = ndimage.median_filter(profile, 7, mode="nearest")
        inner = slice(profile.size // 8, -(profile.size // 8))  # the ends are thin anyway
        worst = min(worst, float((profile / np.maximum(around, 1e-9))[inner].min()))
    return worst


# --- image ---


def _contrast(image: NDArray, grey: Mask, white: Mask) -> Figures:
    """Contrast and noise between cortex and white matter (Magnotta 2006; Ganzetti 2016)."""
    if grey.sum() < FEWEST or white.sum() < FEWEST:
        return {"cnr": 0.0, "snr": 0.0, "cjv": None}
    cortex, white_matter = image[grey], image[white]
    difference = float(white_matter.mean() - cortex.mean())
    return {
        "cnr": difference / max(float(np.hypot(cortex.std(), white_matter.std())), 1e-12),
        "snr": float(white_matter.mean() / max(white_matter.std(), 1e-12)),
        "cjv": float((cortex.std() + white_matter.std()) / max(abs(difference), 1e-12)),
    }


def _edge_sharpness(image: NDArray, grey: Mask, white: Mask) -> float:
    """Median relative step from white matter to cortex beside it, over that of their medians."""
    steps = []
    for axis in range(3):
        here, is_grey, is_white = (np.moveaxis(each, axis, 0) for each in (image, grey, white))
        for one, other in ((slice(1, None), slice(-1)), (slice(-1), slice(1, None))):
            edge = is_grey[one] & is_white[other] & (here[other] > 0)
            steps.append(1 - here[one][edge] / here[other][edge])
    found = np.concatenate(steps)
    if found.size < FEWEST:
        return 0.0
    whole = 1 - float(np.median(image[grey]) / max(np.median(image[white]), 1e-12))
    return float(np.median(found)) / whole if whole > 0 else 0.0


def _noise(image: NDArray, white: Mask) -> float:
    """Robust standard deviation of second differences in white matter over the intensity there.

    Second differences of independent noise have six times its variance; anatomy and bias field
    are smooth at this scale.
    """
    found = []
    for axis in range(3):
        here, inside = (np.moveaxis(each, axis, 0) for each in (image, white))
        triple = inside[2:] & inside[1:-1] & inside[:-2] & (here[1:-1] > 0)
        bent = (here[2:] - 2 * here[1:-1] + here[:-2])[triple] / here[1:-1][triple]
        if bent.size >= FEWEST:
            found.append(1.4826 * np.median(abs(bent - np.median(bent))) / np.sqrt(6))
    return float(np.median(found)) if found else 1.0


def _clipped_share(image: NDArray, mask: Mask) -> float:
    """Share of the brain within half a percent of its highest intensity."""
    brain = image[mask]
    return float((brain >= 0.995 * brain.max()).mean()) if brain.size else 1.0


def _background(image: NDArray, mask: Mask, white: Mask) -> Figures:
    """Entropy focus, energy of head over air, and ghosts (Atkinson 1997; MRIQC)."""
    if not white.any():
        return dict.fromkeys(("efc", "fber", "ghosting"))
    level = float(np.median(image[white]))
    head = ndimage.binary_fill_holes(ndimage.binary_opening(image > 0.15 * level)) | mask
    air = ~ndimage.binary_dilation(head, iterations=3)
    share = np.abs(image[image != 0]) / np.sqrt(np.sum(np.square(image, dtype=np.float64)))
    root = np.sqrt(image.size)
    figures: Figures = {
        "efc": float(-np.sum(share * np.log(share)) / (root * np.log(root))),
        "fber": None,
        "ghosting": None,
    }
    if air.sum() >= FEWEST:
        energy = [float(np.mean(np.square(image[part], dtype=np.float64))) for part in (head, air)]
        figures["fber"] = float(np.log10(energy[0] / max(energy[1], 1e-12)))
    beside = []
    for axis in range(3):
        shadow = np.broadcast_to(head.any(axis, keepdims=True), air.shape)
        parts = air & shadow, air & ~shadow
        if min(part.sum() for part in parts) >= FEWEST:
            beside.append(float(image[parts[0]].mean() - image[parts[1]].mean()) / level)
    figures["ghosting"] = max(beside) if beside else None
    return figures
