"""Intensity levels of a scan's own tissues, on which the models' intensity rules are anchored."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bidsapp.errors import ScanError
from models.segmentation import labels


def tissue_levels(image: NDArray[np.float32], found: NDArray[np.uint8]) -> dict[str, float]:
    """Median intensity of cortex and of cerebral white matter on the working grid.

    Raises
    ------
    ScanError
        If either was not found, or the white matter is black.
    """
    cortex, white = (
        image[np.isin(found, labels.indices(structure=name))] for name in ("CTX", "WM")
    )
    if not cortex.size or not white.size or np.median(white) <= 0:
        raise ScanError(
            "no cortex or no white matter was found in it; check that it is a T1-weighted image "
            "of a whole brain."
        )
    return {"cortex": float(np.median(cortex)), "white_matter": float(np.median(white))}
