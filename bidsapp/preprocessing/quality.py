"""Quality figures of a scan and of its registration, and the flags they raise."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bidsapp.preprocessing.image import Image
from bidsapp.preprocessing.segmentation import Segmentation
from models.segmentation import labels

LIMITS: dict[str, tuple[float, float]] = {
    "registration_correlation": (0.4, np.inf),
    "mask_overlap": (0.9, np.inf),
    "brain_volume_ml": (800, 2000),
    "affine_determinant": (0.4, 1.9),
    "cnr": (0.7, np.inf),
    "largest_voxel_mm": (0, 4.0),
}
"""Acceptable range of each figure; ``docs/quality.md`` says where they come from."""


def assess(
    segmentation: Segmentation,
    corrected: Image,
    scan: Image,
    registered: Image,
    registered_mask: NDArray[np.bool_],
    template: Image,
    template_mask: NDArray[np.bool_],
    to_scan: NDArray[np.float64],
) -> dict[str, Any]:
    """Figures, then ``flags`` (names of those out of ``LIMITS``) and ``passed``.

    Parameters
    ----------
    corrected
        The bias-corrected image on the working grid of the segmentation.
    registered, template
        The scan's brain and the template's on the same grid in template space.
    to_scan
        (4, 4) template mm -> scan mm.
    """
    figures: dict[str, float] = {
        "registration_correlation": _correlation(
            registered.data, template.data, registered_mask & template_mask
        ),
        "mask_overlap": _dice(registered_mask, template_mask),
        "brain_volume_ml": float(segmentation.working_mask.sum() * corrected.voxel_ml),
        "affine_determinant": float(np.linalg.det(to_scan[:3, :3])),
        "affine_shear": _shear(to_scan),
        "largest_voxel_mm": max(scan.zooms),
        **_contrast(corrected.data, segmentation.working_labels),
    }
    flags = [
        name for name, (low, high) in LIMITS.items() if not low <= figures[name] <= high
    ]  # a NaN fails both comparisons and is flagged
    return {"passed": not flags, "flags": flags, **figures}


def _correlation(a: NDArray, b: NDArray, mask: NDArray[np.bool_]) -> float:
    return float(np.corrcoef(a[mask], b[mask])[0, 1]) if mask.any() else float("nan")


def _dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float(2 * (a & b).sum() / max(a.sum() + b.sum(), 1))


def _shear(matrix: NDArray[np.float64]) -> float:
    """Largest shear of the affine: off-diagonal over diagonal of its RQ-like stretch part."""
    _, upper = np.linalg.qr(matrix[:3, :3])
    stretch = upper / np.diag(upper)[:, None]
    return float(np.abs(np.triu(stretch, 1)).max())


def _contrast(image: NDArray, found: NDArray[np.uint8]) -> dict[str, float]:
    """Contrast and noise between cortex and white matter (Magnotta 2006; Ganzetti 2016)."""
    grey = image[np.isin(found, labels.indices(structure="CTX"))]
    white = image[np.isin(found, labels.indices(structure="WM"))]
    if grey.size < 100 or white.size < 100:
        return {"cnr": float("nan"), "snr": float("nan"), "cjv": float("nan")}
    difference = float(white.mean() - grey.mean())
    spread = float(np.hypot(grey.std(), white.std()))
    return {
        "cnr": abs(difference) / max(spread, 1e-12),
        "snr": float(white.mean() / max(white.std(), 1e-12)),
        "cjv": float((grey.std() + white.std()) / max(abs(difference), 1e-12)),
    }
