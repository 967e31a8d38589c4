"""Permutation tests in linear models with nuisance terms."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

SHUFFLED_VALUES = 10_000_000
"""Rows times permutations of one test, at most."""
FEWEST_PERMUTATIONS = 1_000
CHUNK_VALUES = 500_000


def permutation_count(asked: int, n: int) -> int:
    """Permutations for `n` rows: as many as asked for, but fewer (1,000 at least) in large tables.

    With 1,000 permutations a p of 0.05 has a standard error of 0.007.
    """
    return min(asked, max(FEWEST_PERMUTATIONS, SHUFFLED_VALUES // max(n, 1)))


def freedman_lane(
    outcome: Matrix, interest: Matrix, nuisance: Matrix, permutations: int, seed: int
) -> float:
    """Permutation p-value of the columns of interest (Freedman & Lane 1983; Winkler 2014).

    Residuals of the nuisance terms are shuffled. The statistic is Wald's with HC3 variances, so
    that groups of unequal size and variance are borne with (DiCiccio & Romano 2017).

    Parameters
    ----------
    outcome
        (n,)
    interest
        (n, q), of full rank beside `nuisance`; no row has a leverage of 1.
    nuisance
        (n, k), with the constant, of full rank.
    """
    bases = _bases(interest, nuisance)
    residuals = outcome - bases.nuisance @ (bases.nuisance.T @ outcome)
    residuals = residuals / residuals.std()
    observed = _wald(residuals[None], bases)[0]
    random = np.random.default_rng(seed)
    reached = 0
    chunk = max(1, CHUNK_VALUES // len(residuals))
    for start in range(0, permutations, chunk):
        rows = np.tile(residuals, (min(chunk, permutations - start), 1))
        random.permuted(rows, axis=1, out=rows)
        reached += int((_wald(rows, bases) >= observed * (1 - 1e-9)).sum())
    return (1 + reached) / (1 + permutations)


class _Bases(NamedTuple):
    """Orthonormal columns, and what the variance of the interest's scores is summed with."""

    nuisance: Matrix
    interest: Matrix
    weights: Matrix


def _bases(interest: Matrix, nuisance: Matrix) -> _Bases:
    basis = np.linalg.qr(nuisance)[0]
    directions = np.linalg.qr(interest - basis @ (basis.T @ interest))[0]
    free = 1 - (basis**2).sum(axis=1) - (directions**2).sum(axis=1)
    products = directions[:, :, None] * directions[:, None, :]
    return _Bases(basis, directions, (products / free[:, None, None] ** 2).reshape(len(free), -1))


def _wald(outcomes: Matrix, bases: _Bases) -> Matrix:
    """Wald statistics, (B, n) -> (B,), of outcomes with a variance near 1.

    The columns of interest are orthonormal and orthogonal to the nuisance, so that the estimate is
    the score and its variance is the meat of the sandwich.
    """
    score = outcomes @ bases.interest
    residuals = (
        outcomes - (outcomes @ bases.nuisance) @ bases.nuisance.T - score @ bases.interest.T
    )
    q = score.shape[1]
    meat = (residuals**2 @ bases.weights).reshape(-1, q, q)
    meat += 1e-12 * np.eye(q)  # against a variance of exactly 0 in tiny tables
    return np.einsum("bi,bi->b", score, np.linalg.solve(meat, score[:, :, None])[:, :, 0])
