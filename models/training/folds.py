"""Cross-validation folds: a person is in one fold with all scans; ages and sites are balanced."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from models.contract import ModelError


def assign_folds(
    people: Sequence[Hashable], strata: Sequence[str], ages: Sequence[float], folds: int, seed: int
) -> NDArray[np.intp]:
    """The fold that holds each scan out.

    Within a stratum people are ordered by age, and each run of ``folds`` neighbours is dealt to
    the folds at random: fold sizes differ by one person at most.

    Parameters
    ----------
    people
        Whose scan it is, one per scan.
    strata
        Data set or site of each scan; a person belongs to that of the first scan.
    ages
        Years, one per scan; people are ordered by their mean.
    folds
        At least 2.

    Returns
    -------
    ndarray of int, (scans,)
        0 ... ``folds`` - 1.

    Raises
    ------
    ModelError
        Where there are fewer people than folds, or fewer than 2 folds.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, person in enumerate(people):
        groups.setdefault(person, []).append(index)
    if not 2 <= folds <= len(groups):
        raise ModelError(
            f"{folds} folds cannot be made of {len(groups)} people; choose 2 or more folds, and no"
            " more than there are people."
        )
    ordered = sorted(
        groups.values(), key=lambda scans: (strata[scans[0]], np.mean([ages[i] for i in scans]))
    )
    random = np.random.default_rng(seed)
    result = np.empty(len(people), dtype=np.intp)
    for start in range(0, len(ordered), folds):
        for scans, fold in zip(ordered[start : start + folds], random.permutation(folds)):
            result[scans] = fold
    return result
