"""Linear registration of the brain to the template (ANTs; Avants 2011)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import ants
import numpy as np
from numpy.typing import NDArray

from bidsapp.preprocessing.image import Image
from bidsapp.preprocessing.resampling import to_working_grid
from bidsapp.preprocessing.templates import Template

_KINDS = {6: "Rigid", 7: "Similarity", 12: "Affine"}
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def register(
    brain: Image,
    template: Template,
    degrees_of_freedom: int,
    seed: int,
    work_dir: Path | None = None,
) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Estimate the transform at 2 mm with Mattes mutual information.

    With one ITK thread and a seed in the environment, as ``execution`` sets them before ANTs is
    imported, the result is the same to the bit in every run; ``seed`` is for the record.

    Parameters
    ----------
    brain
        Bias-corrected, skull-stripped, on the working grid.
    degrees_of_freedom
        6 (rigid), 7 (similarity) or 12 (affine).
    work_dir
        Where ANTs may put its temporary files; the system's folder by default.

    Returns
    -------
    (4, 4) matrix that takes mm of the template to mm of the scan (RAS), and the record.
    """
    kind = _KINDS[degrees_of_freedom]
    fixed, moving = _to_ants(to_working_grid(template.brain)), _to_ants(brain)
    with tempfile.TemporaryDirectory(prefix="brainage-", dir=work_dir) as folder:
        result = ants.registration(fixed, moving, type_of_transform=kind, outprefix=f"{folder}/")
        matrix = _matrix(ants.read_transform(result["fwdtransforms"][0]))
    record = {
        "step": "registration",
        "tool": "ANTsPy registration",
        "version": ants.__version__,
        "parameters": {"type": kind, "degrees_of_freedom": degrees_of_freedom, "seed": seed},
        "template": {
            "name": template.name, "source": template.source, "sha256": template.sha256
        },
        "matrix": matrix.tolist(),
    }  # fmt: skip
    return matrix, record


def _to_ants(image: Image) -> ants.ANTsImage:
    """An ANTs image of the same place: ITK counts mm to the left and to the back."""
    affine = _LPS @ image.affine
    zooms = image.zooms
    return ants.from_numpy(
        np.asarray(image.data, np.float32),
        origin=affine[:3, 3].tolist(),
        spacing=zooms,
        direction=affine[:3, :3] / zooms,
    )


def _matrix(transform: ants.ANTsTransform) -> NDArray[np.float64]:
    """ITK: y = A (x - centre) + translation + centre, in LPS; here as one RAS matrix."""
    parameters = np.asarray(transform.parameters)
    centre = np.asarray(transform.fixed_parameters)
    linear, translation = parameters[:9].reshape(3, 3), parameters[9:]
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = translation + centre - linear @ centre
    return _LPS @ matrix @ _LPS
