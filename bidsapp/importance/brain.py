"""What the methods of this package work on: a brain as a model takes it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]


class Unsuited(ValueError):
    """A method cannot be used on a model; the message says why."""


@dataclass(frozen=True, eq=False)
class Brain:
    """One image on the grid of a model's contract, with its intensities; or several, of tissue.

    Attributes
    ----------
    image
        (X, Y, Z), or (maps, X, Y, Z).
    mask
        (X, Y, Z), where the brain is.
    sex
        "F", "M" or None where it is not known.
    """

    image: Array
    mask: Mask
    sex: str | None = None
