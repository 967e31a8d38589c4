"""The permutation test and the HC3 statistic behind it."""

from __future__ import annotations

import time

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from statsmodels.regression.linear_model import OLS

from bidsapp.statistics.permutation import _bases, _wald, freedman_lane, permutation_count


def study(
    random: np.random.Generator, cases: int, controls: int, older: float = 0.0
) -> tuple[NDArray, NDArray]:
    """Membership (n, 1) and nuisance: constant, age, age squared, sex, two sites."""
    member = np.r_[np.ones(cases), np.zeros(controls)]
    age = random.normal(50, 12, len(member)) + older * member
    z = (age - age.mean()) / age.std()
    words = random.integers(0, 2, (len(member), 2))
    return member[:, None], np.column_stack([np.ones(len(member)), z, z**2, words])


def hc3_wald(outcomes: NDArray, interest: NDArray, nuisance: NDArray) -> NDArray:
    """The statistic that is permuted, of many outcomes at once: (B, n) -> (B,)."""
    spread = outcomes.std(axis=1, keepdims=True)
    centred = outcomes - outcomes.mean(axis=1, keepdims=True)
    return _wald(centred / spread, _bases(interest, nuisance))


def test_wald_is_the_square_of_statsmodels_hc3_t() -> None:
    random = np.random.default_rng(1)
    member, nuisance = study(random, 20, 35, 5)
    y = 1e4 * random.normal(size=(3, 55)) * (1 + member[:, 0]) + 1e6
    full = np.column_stack([nuisance, member])
    expected = [OLS(row, full).fit(cov_type="HC3").tvalues[-1] ** 2 for row in y]
    assert hc3_wald(y, member, nuisance) == pytest.approx(expected, rel=1e-6)


def test_wald_of_several_columns_is_statsmodels_hc3_f() -> None:
    random = np.random.default_rng(2)
    _, nuisance = study(random, 30, 30)
    levels = np.eye(3)[random.integers(0, 3, 60)][:, 1:]
    y = random.normal(size=60)
    fit = OLS(y, np.column_stack([nuisance, levels])).fit(cov_type="HC3", use_t=True)
    f = float(fit.f_test(np.eye(7)[5:]).fvalue)
    assert hc3_wald(y[None], levels, nuisance)[0] / 2 == pytest.approx(f, rel=1e-6)


@pytest.mark.parametrize(
    ("cases", "controls", "older", "spread"),
    [(50, 50, 0, 1), (50, 50, 15, 1), (30, 90, 8, 1), (30, 90, 8, 2), (90, 30, 8, 2)],
)
def test_type_one_error(cases: int, controls: int, older: float, spread: float) -> None:
    """1,000 studies without a group effect, on 20 designs; groups differ in age and variance."""
    random = np.random.default_rng(3)
    found = 0
    for _ in range(20):
        member, nuisance = study(random, cases, controls, older)
        size = (50, cases + controls)
        noise = random.normal(size=size) * np.where(member[:, 0], spread, 1)
        wald = hc3_wald(noise - 3 * nuisance[:, 1], member, nuisance)
        found += int((stats.f.sf(wald, 1, cases + controls - 6) < 0.05).sum())
    low, high = stats.binom.ppf([0.0005, 0.9995], 1000, 0.05)
    assert low <= found <= high


def test_permutation_agrees_with_the_parametric_p_under_normal_errors() -> None:
    random = np.random.default_rng(4)
    for effect in (0.0, 0.2, 0.4, 0.6):
        member, nuisance = study(random, 60, 60, 5)
        y = random.normal(size=120) + effect * member[:, 0]
        parametric = stats.f.sf(hc3_wald(y[None], member, nuisance)[0], 1, 114)
        permuted = freedman_lane(y, member, nuisance, 4000, seed=1)
        assert permuted == pytest.approx(parametric, abs=0.03)


def test_permutation_of_several_columns() -> None:
    random = np.random.default_rng(5)
    _, nuisance = study(random, 60, 60)
    levels = np.eye(3)[np.arange(120) % 3][:, 1:]
    y = random.normal(size=120) + 0.5 * levels[:, 0]
    parametric = stats.f.sf(hc3_wald(y[None], levels, nuisance)[0] / 2, 2, 113)
    assert freedman_lane(y, levels, nuisance, 4000, 1) == pytest.approx(parametric, abs=0.02)


def test_permutation_is_uniform_without_an_effect() -> None:
    """Skewed errors, unequal groups; 300 studies of 199 permutations."""
    random = np.random.default_rng(6)
    found = 0
    for seed in range(300):
        member, nuisance = study(random, 15, 35, 10)
        y = random.exponential(size=50) - 2 * nuisance[:, 1]
        found += freedman_lane(y, member, nuisance, 199, seed) <= 0.05
    low, high = stats.binom.ppf([0.0005, 0.9995], 300, 0.05)
    assert low <= found <= high


def test_unit_and_seed() -> None:
    random = np.random.default_rng(7)
    member, nuisance = study(random, 20, 20)
    y = random.normal(size=40) + 0.5 * member[:, 0]
    p = freedman_lane(y, member, nuisance, 500, 1)
    assert freedman_lane(1e-9 * y + 1, 1e6 * member, nuisance, 500, 1) == pytest.approx(
        p, abs=0.01
    )
    assert freedman_lane(y, member, nuisance, 500, 1) == p
    assert freedman_lane(y, member, nuisance, 500, 2) != p
    assert freedman_lane(y + 100 * member[:, 0], member, nuisance, 500, 1) == 1 / 501


def test_ten_thousand_permutations_of_a_thousand_rows_take_seconds() -> None:
    random = np.random.default_rng(8)
    member, nuisance = study(random, 400, 600)
    start = time.process_time()
    freedman_lane(random.normal(size=1000), member, nuisance, 10_000, 1)
    assert time.process_time() - start < 5


def test_large_tables_take_fewer_permutations() -> None:
    assert permutation_count(10_000, 1_000) == 10_000
    assert permutation_count(10_000, 4_000) == 2_500
    assert permutation_count(10_000, 50_000) == 1_000
    assert permutation_count(500, 50_000) == 500
    assert permutation_count(0, 10) == permutation_count(0, 0) == 0
