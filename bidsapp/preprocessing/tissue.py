"""How much of each voxel of a template is grey matter, white matter or fluid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import nn

from bidsapp.preprocessing.grid import GRID_AFFINE, GRID_SHAPE
from bidsapp.preprocessing.resampling import resample
from bidsapp.preprocessing.segmentation import Segmentation, segment
from bidsapp.preprocessing.templates import load_template
from models.contract import TISSUES
from models.segmentation import labels

_COUNTED = {"GM": ("GM",), "WM": ("WM",), "CSF": ("CSF", "ventricle")}


def tissue_shares(
    found: Segmentation,
    to_scan: NDArray[np.float64],
    shape: tuple[int, int, int],
    affine: NDArray[np.float64],
) -> NDArray[np.float32]:
    """Carry the labels into a template, in one resampling.

    From the 2 mm grid on which they were found, whatever the voxels of the scan: so the maps of
    all scans are equally sharp, and a model cannot tell one resolution from another.

    Parameters
    ----------
    to_scan
        (4, 4), takes mm of the template to mm of the scan.
    shape, affine
        The grid: its size, and voxel -> template mm.

    Returns
    -------
    (3, X, Y, Z) float32, the shares of ``models.contract.TISSUES``, 0 to 1.
    """
    shares = np.empty((len(TISSUES), *shape), np.float32)
    for share, tissue in zip(shares, TISSUES):
        values = [value for each in _COUNTED[tissue] for value in labels.indices(tissue=each)]
        there = np.isin(found.on_working.labels, values).astype(np.float32)
        image = found.working.with_data(there)
        share[:] = resample(image, to_scan, shape, affine, order=1).data
    return shares


def tissue_of_template(network: nn.Module, name: str) -> NDArray[np.float32]:
    """Shares of tissue of a template on the standard grid, found as those of a scan; sides alike.

    Parameters
    ----------
    network
        Of segmentation.

    Returns
    -------
    (3, X, Y, Z) float32, as of ``tissue_shares``.
    """
    found, _ = segment(load_template(name).brain, network, "auto")
    shares = tissue_shares(found, np.eye(4), GRID_SHAPE, GRID_AFFINE)
    return ((shares + shares[:, ::-1]) / 2).astype(np.float32)
