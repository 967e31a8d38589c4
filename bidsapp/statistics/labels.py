"""Labels of rows: decades of age, people, sites."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

UNKNOWN = "n/a"


def decade(age: ArrayLike) -> pd.Series:
    """Decade of each age, "30-39", "100-109"; missing where the age is; an ordered category."""
    start = np.floor(np.asarray(age, dtype=float) / 10) * 10
    names = {s: f"{s:.0f}-{s + 9:.0f}" for s in np.unique(start[np.isfinite(start)])}
    kind = pd.CategoricalDtype(list(names.values()), ordered=True)
    return pd.Series([names.get(s) for s in start], dtype=kind)


def codes(labels: ArrayLike) -> NDArray[np.intp]:
    """Number of each row's label, from 0 in the order of their appearance."""
    return pd.factorize(pd.Series(labels), use_na_sentinel=False)[0]


def words(labels: ArrayLike | None, n: int) -> NDArray[np.object_]:
    """Each row's label as a word; `UNKNOWN` where it is missing, or where there are none."""
    if labels is None:
        return np.full(n, UNKNOWN, dtype=object)
    code, names = pd.factorize(np.asarray(labels, dtype=object))
    return np.array([*map(str, names), UNKNOWN], dtype=object)[code]  # the last, -1, is missing
