"""Maps of many scans as one: mean, deviation, halves and decades, one scan at a time.

Memory does not grow with the number of scans: running means (Welford 1962) are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bidsapp.importance.brain import Array, Mask

SHOWN = 0.5
"""Share of the scans that must hold a voxel for it to be shown."""


class Running:
    """Mean and deviation of maps, each voxel over the scans whose brain it lies in."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.scans = 0
        self._count = np.zeros(shape, np.int32)
        self._mean = np.zeros(shape, np.float64)
        self._squares = np.zeros(shape, np.float64)

    def add(self, values: Array, mask: Mask) -> None:
        """One more map (X, Y, Z) and the brain it was made of."""
        self.scans += 1
        self._count += mask
        change = np.where(mask, values - self._mean, 0)
        self._mean += change / np.maximum(self._count, 1)
        self._squares += np.where(mask, change * (values - self._mean), 0)

    @property
    def shown(self) -> Mask:
        """Voxels that lie in the brains of `SHOWN` of the scans."""
        return self._count >= max(1, SHOWN * self.scans)

    @property
    def mean(self) -> Array:
        """0 where not shown."""
        return np.where(self.shown, self._mean, 0).astype(np.float32)

    @property
    def standard_deviation(self) -> Array:
        """Over the scans, with n - 1; 0 where not shown or known of one scan alone."""
        variance = self._squares / np.maximum(self._count - 1, 1)
        return np.where(self.shown, np.sqrt(variance), 0).astype(np.float32)


@dataclass
class Population:
    """What becomes of the maps of one model and method."""

    shape: tuple[int, int, int]
    all: Running = field(init=False)
    halves: tuple[Running, Running] = field(init=False)
    decades: dict[int, Running] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.all = Running(self.shape)
        self.halves = Running(self.shape), Running(self.shape)

    def add(self, values: Array, mask: Mask, age: float | None) -> None:
        """One more map, of a person of an age in years."""
        self.halves[self.all.scans % 2].add(values, mask)
        self.all.add(values, mask)
        if age is not None:
            decade = int(age // 10 * 10)
            self.decades.setdefault(decade, Running(self.shape)).add(values, mask)

    @property
    def split_half_r(self) -> float | None:
        """Pearson's r over voxels between the mean maps of every other scan and of the rest."""
        one, other = self.halves
        both = one.shown & other.shown
        return correlation(one.mean[both], other.mean[both])


def correlation(a: NDArray[np.floating], b: NDArray[np.floating]) -> float | None:
    """Pearson's r; None where one of the two does not vary."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a.astype(np.float64), b.astype(np.float64))[0, 1])
