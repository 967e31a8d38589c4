"""The standard grid: 2 mm, in the template, RAS. All images of the output lie on it."""

from __future__ import annotations

import numpy as np

GRID_SHAPE = (91, 109, 91)
GRID_AFFINE = np.array([[2.0, 0, 0, -90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
"""Voxel -> template mm."""
