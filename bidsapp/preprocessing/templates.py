"""Templates by their TemplateFlow names; the default one comes with nilearn, no download."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bidsapp.errors import UserError
from bidsapp.preprocessing.image import Image
from bidsapp.preprocessing.resampling import resample

BUNDLED = "MNI152NLin2009aSym"
"""ICBM 2009a, linear symmetric average (Fonov 2011), brain only, 1 mm, RAS."""


@dataclass(frozen=True)
class Template:
    """``brain``: the skull-stripped average at 1 mm; ``mask`` (X, Y, Z) on the same grid."""

    name: str
    brain: Image
    mask: NDArray[np.bool_]
    source: str
    sha256: str

    def on(
        self, shape: tuple[int, int, int], affine: NDArray[np.float64]
    ) -> tuple[Image, NDArray[np.bool_]]:
        """The brain and its mask on another grid (voxel -> template mm)."""
        mask = self.brain.with_data(self.mask.astype(np.float32))
        brain, inside = (
            resample(each, np.eye(4), shape, affine, order=1) for each in (self.brain, mask)
        )
        return brain, inside.data > 0.5


@lru_cache(maxsize=4)
def load_template(name: str = BUNDLED) -> Template:
    """The template's brain, from nilearn's package or from TemplateFlow.

    Raises
    ------
    UserError
        If TemplateFlow does not know it or it cannot be had offline.
    """
    if name == BUNDLED:
        path, mask_path, source = _bundled_path(), None, "nilearn package data"
    else:
        path, mask_path, source = *_templateflow_paths(name), "TemplateFlow"
    image = nib.as_closest_canonical(nib.load(path))
    data = np.clip(image.get_fdata(dtype=np.float32), 0, None)
    if mask_path is None:
        mask = data > 0
    else:
        mask = np.asarray(nib.as_closest_canonical(nib.load(mask_path)).dataobj) > 0.5
        data = data * mask
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Template(name, Image(data, np.asarray(image.affine)), mask, source, digest)


def _bundled_path() -> Path:
    import nilearn.datasets

    folder = Path(nilearn.datasets.__file__).parent / "data"
    return folder / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"


def _templateflow_paths(name: str) -> tuple[Path, Path]:
    from templateflow import api

    try:
        found = [
            api.get(name, resolution=1, desc=desc, suffix=suffix, extension=".nii.gz",
                    raise_empty=True)
            for desc, suffix in ((None, "T1w"), ("brain", "mask"))
        ]  # fmt: skip
    except Exception as error:  # requests' and templateflow's own errors have no common base
        raise UserError(
            f"The template {name} cannot be had ({type(error).__name__}); check its name, or put "
            "it into TEMPLATEFLOW_HOME on a machine with a network."
        ) from error
    paths = [Path(p[0] if isinstance(p, list) else p) for p in found]
    if any(path.stat().st_size == 0 for path in paths):
        raise UserError(
            f"The template {name} is only a placeholder in TEMPLATEFLOW_HOME (0 bytes); "
            "fetch it on a machine with a network."
        )
    return paths[0], paths[1]
