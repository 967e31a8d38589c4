from __future__ import annotations

import numpy as np
import pytest

from models.contract import ModelError
from models.training.folds import assign_folds


def cohort() -> tuple[list[str], list[str], list[float]]:
    """Two sites, 40 and 21 people, every third of them scanned twice."""
    random = np.random.default_rng(3)
    people, sites, ages = [], [], []
    for number in range(61):
        for _ in range(2 if number % 3 == 0 else 1):
            people.append(f"p{number}")
            sites.append("a" if number < 40 else "b")
            ages.append(float(random.uniform(20, 80)))
    return people, sites, ages


def test_a_person_is_in_one_fold() -> None:
    people, sites, ages = cohort()
    folds = assign_folds(people, sites, ages, 5, seed=1)
    assert len({(p, f) for p, f in zip(people, folds)}) == 61


def test_folds_are_balanced_in_size_age_and_site() -> None:
    people, sites, ages = cohort()
    folds = assign_folds(people, sites, ages, 3, seed=1)
    first = [people.index(p) for p in dict.fromkeys(people)]
    sizes = np.bincount(folds[first])
    assert sizes.max() - sizes.min() <= 1
    for site, most in (("a", 1), ("b", 2)):  # one run of neighbours straddles the two
        counts = np.bincount([folds[i] for i in first if sites[i] == site], minlength=3)
        assert counts.max() - counts.min() <= most
    means = [np.mean([ages[i] for i in range(len(ages)) if folds[i] == f]) for f in range(3)]
    assert max(means) - min(means) < 4


def test_the_seed_decides() -> None:
    people, sites, ages = cohort()
    one, same, other = (assign_folds(people, sites, ages, 3, seed) for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()


@pytest.mark.parametrize("folds", [1, 4])
def test_impossible_folds_are_refused(folds: int) -> None:
    with pytest.raises(ModelError, match="folds cannot be made of 3 people"):
        assign_folds(["a", "b", "c"], ["s"] * 3, [20, 30, 40], folds, 1)
