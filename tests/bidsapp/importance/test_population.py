"""Running means are the means, and halves and decades are kept apart."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.importance.population import Population, Running, correlation

SHAPE = (6, 5, 4)


def maps(number: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(1)
    masks = [rng.random(SHAPE) < 0.9 for _ in range(number)]
    return [np.where(m, 1e4 + rng.normal(size=SHAPE), 0).astype(np.float32) for m in masks], masks


def test_mean_and_deviation_are_those_of_the_scans_that_hold_a_voxel() -> None:
    values, masks = maps(7)
    running = Running(SHAPE)
    for each, mask in zip(values, masks):
        running.add(each, mask)
    known = np.where(masks, values, np.nan)
    shown = np.mean(masks, axis=0) >= 0.5
    np.testing.assert_array_equal(running.shown, shown)
    np.testing.assert_allclose(running.mean[shown], np.nanmean(known, 0)[shown], rtol=1e-7)
    expected = np.nanstd(known.astype(np.float64), 0, ddof=1)
    np.testing.assert_allclose(running.standard_deviation[shown], expected[shown], rtol=1e-5)
    assert not running.mean[~shown].any()


def test_halves_agree_where_people_do() -> None:
    rng = np.random.default_rng(1)
    common, mask = rng.normal(size=SHAPE), np.ones(SHAPE, bool)
    alike, apart = Population(SHAPE), Population(SHAPE)
    for _ in range(20):
        own = rng.normal(size=SHAPE)
        alike.add((common + 0.3 * own).astype(np.float32), mask, None)
        apart.add(own.astype(np.float32), mask, None)
    assert alike.split_half_r is not None and alike.split_half_r > 0.97
    assert apart.split_half_r is not None and abs(apart.split_half_r) < 0.4
    assert alike.halves[0].scans == alike.halves[1].scans == 10
    assert alike.decades == {}


def test_decades() -> None:
    population, mask = Population(SHAPE), np.ones(SHAPE, bool)
    for age in (20, 29.9, 30, None):
        population.add(np.full(SHAPE, age or 0, np.float32), mask, age)
    assert {decade: maps.scans for decade, maps in population.decades.items()} == {20: 2, 30: 1}
    assert population.decades[20].mean == pytest.approx(24.95)


def test_a_flat_map_correlates_with_nothing() -> None:
    assert correlation(np.ones(5), np.arange(5.0)) is None
    assert correlation(np.arange(5.0), -np.arange(5.0)) == pytest.approx(-1)
