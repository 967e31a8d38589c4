"""Bias field: N4 (Tustison 2010) inside the brain mask, estimated at 2 mm and applied in full."""

from __future__ import annotations

from typing import Any

import ants
import numpy as np
from numpy.typing import NDArray

from bidsapp.preprocessing.image import Image
from bidsapp.preprocessing.resampling import same_view
from bidsapp.preprocessing.segmentation import Segmentation

SHRINKS = (3, 2)
"""Shrink factors in the order they are tried. On one scan in 141 the fit ran away at 3 (a field of
0.1 in one corner of the cerebellum) and held at 2, which takes three times as long."""
PLAUSIBLE = (0.4, 2.5)
"""Range of a field inside the brain, around a mean of 1, that head coils can make."""
ITERATIONS = (50, 50, 30, 20)
TOLERANCE = 1e-4


def correct_bias_field(
    scan: Image, segmentation: Segmentation
) -> tuple[Image, Image, dict[str, Any]]:
    """Divide a scan by its bias field.

    The field is smooth, so that 2 mm are enough to estimate it; it is interpolated onto the
    scan's own grid. Its level is arbitrary and set to a mean of 1 inside the brain.

    Returns
    -------
    (corrected scan, corrected working image, record)
    """
    working, mask = segmentation.working, segmentation.on_working.mask
    low, high = PLAUSIBLE
    for shrink in SHRINKS:
        field = _n4_field(working, mask, shrink)
        field /= field[mask].mean()
        if low < field[mask].min() and field[mask].max() < high:
            break
    field = np.clip(field, low, high)
    full = field if field.shape == scan.data.shape else same_view(field, scan.data.shape)
    record = {
        "step": "bias_field",
        "tool": "ANTsPy n4_bias_field_correction",
        "version": ants.__version__,
        "parameters": {
            "shrink_factor": shrink,
            "iterations": list(ITERATIONS),
            "tolerance": TOLERANCE,
        },
        "field_range": [float(v) for v in np.percentile(field[mask], (1, 99))],
    }
    return scan.with_data(scan.data / full), working.with_data(working.data / field), record


def _n4_field(image: Image, mask: NDArray[np.bool_], shrink: int) -> NDArray[np.float32]:
    spacing = image.zooms
    # N4 works on logarithms: the zeros of a stripped scan are outside the mask anyway
    positive = np.maximum(image.data, 1e-3 * float(image.data[mask].mean()))
    field = ants.n4_bias_field_correction(
        ants.from_numpy(positive.astype(np.float32), spacing=spacing),
        mask=ants.from_numpy(mask.astype(np.float32), spacing=spacing),
        shrink_factor=shrink,
        convergence={"iters": list(ITERATIONS), "tol": TOLERANCE},
        return_bias_field=True,
    )
    return field.numpy()
