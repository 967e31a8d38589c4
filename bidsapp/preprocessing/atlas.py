"""The atlas of the region tables: CerebrA of TemplateFlow, or a user's own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import platformdirs
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
def load_atlas(named: tuple[str, ...] = ()) -> AtlasFiles:
    """The atlas that the settings name, else CerebrA (Manera et al. 2020) if it is here already.

    Parameters
    ----------
    named
        As in the settings: ("cerebra",), which TemplateFlow may fetch; the label image and its
        table; or nothing.

    Raises
    ------
    UserError
        Where it cannot be had or read; the message says what to do.
    """
    files = named if len(named) == 2 else ()
    path, table = (Path(files[0]), Path(files[1])) if files else _cerebra(fetch=bool(named))
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


def _cerebra(fetch: bool) -> tuple[Path, Path]:
    if here := _cached():
        return here
    if not fetch:
        raise UserError(
            f"The atlas {NAME} is not in TEMPLATEFLOW_HOME; --atlas cerebra fetches it once."
        )
    return _fetched()


def _cached() -> tuple[Path, Path] | None:
    """The atlas among TemplateFlow's files; to ask itself for it would be to fetch it."""
    home = os.environ.get("TEMPLATEFLOW_HOME") or platformdirs.user_cache_dir("templateflow", None)
    found = []
    # the name of the published table lacks a letter
    for name in (f"res-*1_atlas-{NAME}_dseg.nii.gz", "atlas-Cereb*A_dseg.tsv"):
        paths = Path(home).glob(f"tpl-{SPACE}/tpl-{SPACE}_{name}")
        found += sorted(path for path in paths if path.is_file() and path.stat().st_size)[:1]
    return (found[0], found[1]) if len(found) == 2 else None


def _fetched() -> tuple[Path, Path]:
    from templateflow import api

    try:
        image = api.get(SPACE, resolution=1, atlas=NAME, desc=None, suffix="dseg",
                        extension=".nii.gz", raise_empty=True)  # fmt: skip
        # the name of the published table lacks a letter
        table = api.get(SPACE, atlas=[NAME, "CerebA"], suffix="dseg", extension=".tsv",
                        raise_empty=True)  # fmt: skip
    except Exception as error:  # requests' and templateflow's own errors have no common base
        raise UserError(
            f"--atlas cerebra cannot be fetched ({type(error).__name__}); put "
            f"tpl-{SPACE} into TEMPLATEFLOW_HOME on a machine with a network, or name an atlas "
            "of your own with --atlas FILE LABELS."
        ) from error
    paths = [Path(each[0] if isinstance(each, list) else each) for each in (image, table)]
    if any(path.stat().st_size == 0 for path in paths):
        raise UserError(
            f"The atlas {NAME} is only a placeholder in TEMPLATEFLOW_HOME (0 bytes); fetch it on "
            "a machine with a network, or name an atlas of your own with --atlas FILE LABELS."
        )
    return paths[0], paths[1]
