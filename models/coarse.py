"""Images at 4 mm: an eighth of the voxels, and what is left is what several people share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

LARGEST = 64
"""Voxels along an axis of an image that is taken as it is."""


NOTHING = 1e-12
"""Tissue in an empty voxel: a root has no slope at 0, which maps of importance would ask for."""
SOLID, POWER = 29000.0, 0.5
"""Of ``amounts``. So many voxels of grey and white matter people have in the template, at 4 mm."""
BALANCE = (0.5, 1.0, 0.25)
"""How much grey and white matter and fluid may say, by the variance of each. White matter most, as
in the tissue map: between scanners its border moves less than that of the cortex, and strips leave
more or less of the fluid."""
EVENNESS = 0.75
"""Power of its spread over people by which a voxel is divided, so that all may say about as much.
At home more is better; at 1, voxels in which the training people hardly differ decide on scans of
another scanner."""
TO_FINE = ((2.0, 0.0, 0.0, 0.5), (0.0, 2.0, 0.0, 0.5), (0.0, 0.0, 2.0, 0.5), (0.0, 0.0, 0.0, 1.0))
"""From voxels of 4 mm to those of 2 mm of which ``at_4_mm`` makes them."""


def at_4_mm(x: Tensor) -> Tensor:
    """(N, 1, X, Y, Z) at 2 mm -> means of blocks of eight voxels; at 4 mm -> as it is."""
    if max(x.shape[2:]) <= LARGEST:
        return x
    odd = [side % 2 for side in x.shape[2:]]
    return functional.avg_pool3d(functional.pad(x, (0, odd[2], 0, odd[1], 0, odd[0])), 2)


def smoothed(x: Tensor, times: int) -> Tensor:
    """The mean of 3 x 3 x 3 voxels, so many times over; edges go on outside."""
    for _ in range(times):
        x = functional.avg_pool3d(functional.pad(x, (1,) * 6, mode="replicate"), 3, 1)
    return x


def amounts(maps: Tensor, solid: float, power: float) -> Tensor:
    """Modulated maps of tissue as models see them, (N, 3, X, Y, Z).

    Parameters
    ----------
    solid
        Voxels of grey and white matter to which the maps of a person are scaled, so that the size
        of a brain tells nothing; 0 leaves them as they are.
    power
        To which what a voxel holds is raised. Below 1, a little tissue more tells more where there
        is little: amounts then vary by as much everywhere.
    """
    if solid:
        maps = maps * (solid / maps[:, :2].sum((1, 2, 3, 4), keepdim=True).clamp(min=1))
    return maps if power == 1 else maps.clamp(min=NOTHING) ** power


def voxels_per_4_mm(shape: Sequence[int]) -> int:
    """How many voxels of an image of this shape lie along 4 mm: 1 or 2."""
    return 1 if max(shape) <= LARGEST else 2
