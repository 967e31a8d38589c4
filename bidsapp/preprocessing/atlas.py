"""The atlas of the region tables: CerebrA by TemplateFlow's name, or a user's own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bidsapp.errors import UserError

SPACE, NAME = "MNI152NLin2009cSym", "CerebrA"


@dataclass(frozen=True, eq=False)
class AtlasFiles:
    """A label image and the text of its table.

    ``labels`` (X, Y, Z), whole numbers, 0 for none; ``affine`` (4, 4), voxel -> mm of ``space``.
    """

    name: str
    space: str
    labels: NDArray[np.int32]
    affine: NDArray[np.float64]
    table: str
    table_path: Path


@lru_cache(maxsize=2)
def load_atlas(files: tuple[str, ...] = ()) -> AtlasFiles:
    """The atlas that the settings name, else CerebrA (Manera et al. 2020) from TemplateFlow.

    Raises
    ------
    UserError
        Where it cannot be had or read; the message says what to do.
    """
    path, table = (Path(files[0]), Path(files[1])) if files else _cerebra()
    try:
        image: Any = nib.load(path)
        values = np.asarray(image.dataobj)
        text = table.read_text(encoding="utf-8-sig")
    except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError) as error:
        raise UserError(
            f"The atlas {path} or its table {table} cannot be read: {error}."
        ) from error
    labels = np.rint(values)
    if labels.ndim != 3 or not np.isfinite(labels).all() or np.abs(labels - values).max() > 1e-3:
        raise UserError(f"The atlas {path} is no 3D image of whole numbers.")
    name, space = (path.name.split(".")[0], "") if files else (NAME, SPACE)
    affine = np.asarray(image.affine, np.float64)
    return AtlasFiles(name, space, labels.clip(0).astype(np.int32), affine, text, table)


def _cerebra() -> tuple[Path, Path]:
    from templateflow import api

    try:
        image = api.get(SPACE, resolution=1, atlas=NAME, desc=None, suffix="dseg",
                        extension=".nii.gz", raise_empty=True)  # fmt: skip
        # the name of the published table lacks a letter
        table = api.get(SPACE, atlas=[NAME, "CerebA"], suffix="dseg", extension=".tsv",
                        raise_empty=True)  # fmt: skip
    except Exception as error:  # requests' and templateflow's own errors have no common base
        raise UserError(
            f"The atlas {NAME} cannot be had; put "
            f"tpl-{SPACE} into TEMPLATEFLOW_HOME on a machine with a network, or name an atlas "
            "with --atlas."
        ) from error
    paths = [Path(each[0] if isinstance(each, list) else each) for each in (image, table)]
    if any(path.stat().st_size == 0 for path in paths):
        raise UserError(
            f"The atlas {NAME} is only a placeholder in TEMPLATEFLOW_HOME (0 bytes); fetch it on "
            "a machine with a network, or name an atlas with --atlas."
        )
    return paths[0], paths[1]
