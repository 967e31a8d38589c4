"""Voxel-based morphometry: how much tissue a brain has where the template has it.

Brains that were registered linearly still differ in where a fold or a ventricle's wall lies. Here
the brain's maps of tissue are warped to those of the template (SyN; Avants 2008), and multiplied
by the volume that the warp took from each voxel ("modulated"; Ashburner 2000, Good 2001). So
amounts stay what they were, and every voxel is the same place in everybody.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import ants
import numpy as np
import torch
from numpy.typing import NDArray

from models import coarse
from models.contract import TISSUES

Maps = NDArray[np.float32]
ITERATIONS = (40, 40, 5)
"""At 16, 8 and 4 mm. Finer warps take minutes, and what ages is larger."""
WARPED = ("WM", "GM")
"""Tissues whose maps are matched. Not the fluid, of which strips leave more or less."""


def modulated_tissue(
    shares: Maps, template: Maps, seed: int, work_dir: Path | None = None
) -> tuple[Maps, dict[str, Any]]:
    """Warp a brain's tissue to the template's, and keep its amount.

    With one ITK thread and a seed in the environment, as ``execution`` sets them, the result is
    the same to the bit in every run; ``seed`` is for the record.

    Parameters
    ----------
    shares
        (3, X, Y, Z), of ``models.contract.TISSUES``, at 2 mm, registered linearly.
    template
        The same of the template, on the same grid.
    work_dir
        Where ANTs may put its temporary files; the system's folder by default.

    Returns
    -------
    (3, X, Y, Z) float32, in the template: tissue in each voxel, in voxels; and the record.
    """
    moving, fixed = ([_to_ants(x, 2) for x in at_4_mm(maps)] for maps in (shares, template))
    first, *others = (TISSUES.index(name) for name in WARPED)
    with tempfile.TemporaryDirectory(prefix="brainage-", dir=work_dir) as folder:
        found = ants.registration(
            fixed[first], moving[first], type_of_transform="SyNOnly", syn_metric="meansquares",
            multivariate_extras=[("MeanSquares", fixed[i], moving[i], 1, 0) for i in others],
            reg_iterations=ITERATIONS, flow_sigma=3, total_sigma=0.5, outprefix=f"{folder}/",
        )  # fmt: skip
        warp = next(name for name in found["fwdtransforms"] if "Warp" in Path(name).name)
        grid = _to_ants(template[first], 1)
        volume = ants.create_jacobian_determinant_image(fixed[first], warp)
        volume = ants.resample_image_to_target(volume, grid, "linear").numpy()
        warped = [ants.apply_transforms(grid, _to_ants(x, 1), [warp]).numpy() for x in shares]
    record = {
        "step": "warp",
        "tool": "ANTsPy registration",
        "version": ants.__version__,
        "parameters": {
            "maps": "modulated", "type": "SyN", "metric": "mean squares", "tissues": list(WARPED),
            "mm": 4.0, "iterations": list(ITERATIONS), "flow_sigma": 3, "total_sigma": 0.5,
            "seed": seed,
        },
        "volume_range": [float(v) for v in np.percentile(volume[template.sum(0) > 0.5], (1, 99))],
    }  # fmt: skip
    return np.stack([each * volume for each in warped]).astype(np.float32), record


def at_4_mm(maps: Maps) -> Maps:
    """(3, X, Y, Z) at 2 mm -> means of blocks of eight voxels, sides rounded up."""
    return coarse.at_4_mm(torch.from_numpy(maps)[None])[0].numpy()


def _to_ants(values: Maps, size: int) -> ants.ANTsImage:
    """An image whose voxels are ``size`` voxels of the grid wide, in units of these."""
    middle = (size - 1) / 2
    return ants.from_numpy(np.ascontiguousarray(values), (middle,) * 3, (float(size),) * 3)
