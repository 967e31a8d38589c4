"""The fit behind the bias correction: coverage of its intervals, designs by site."""

import numpy as np
import pytest
from scipy.stats import binom
from scipy.stats import t as student_t

from bidsapp.statistics.age_curve import Curve, Data, choose_slopes, slope, solve

SITES = np.repeat(np.array(["a", "b"], dtype=object), 30)


def study(seed: int) -> Data:
    """30 people each at two sites 3 years apart; the gap falls by 0.2 a year."""
    random = np.random.default_rng(seed)
    t = random.uniform(-30, 30, 60)
    return Data(t, 3.0 * (SITES == "b") - 0.2 * t + random.normal(0, 4, 60), SITES, np.arange(60))


def is_95_percent(hits: int, trials: int) -> bool:
    low, high = binom.interval(0.999, trials, 0.95)
    return low <= hits <= high


def test_intervals_hold_the_truth():
    """In 95 % of 400 studies, for both slopes and the difference of the sites."""
    curve = Curve(1, {"a": 30, "b": 30}, ("a", "b"), False)
    wanted = np.array([[0, 0, 1, 0], [-1, 1, 0, 0], [0, 0, 0, 1]])
    hits, of_slope = np.zeros(3, int), 0
    for seed in range(400):
        data = study(seed)
        found = solve(data, curve)
        errors = np.sqrt(np.diag(wanted @ found.covariance @ wanted.T))
        off = wanted @ found.coefficients - [-0.2, 3.0, -0.2]
        hits += np.abs(off) < student_t.ppf(0.975, 56) * errors
        line = slope(data)
        of_slope += line.low < 0.8 < line.high
    assert all(is_95_percent(int(count), 400) for count in (*hits, of_slope))


def test_intervals_of_repeated_scans_hold_the_truth():
    """People scanned twice, with an error that stays with the person."""
    hits = naive = 0
    person = np.repeat(np.arange(100), 2)
    for seed in range(300):
        random = np.random.default_rng(seed)
        t = np.repeat(random.uniform(-30, 30, 100), 2)
        gap = -0.2 * t + random.normal(0, 4, 100)[person] + random.normal(0, 1, 200)
        line, alone = (slope(Data(t, gap, None, who)) for who in (person, np.arange(200)))
        hits += line.low < 0.8 < line.high
        naive += alone.low < 0.8 < alone.high
    assert is_95_percent(hits, 300) and not is_95_percent(naive, 300)


def test_a_site_without_its_own_slope_has_the_common_or_the_mean_one():
    counts = {"a": 30, "b": 60, "c": 10}
    t, site = np.array([2.0]), ["c"]
    shared = Curve(2, counts, ("a",))
    assert shared.terms == (
        "intercept[a]", "intercept[b]", "intercept[c]", "age", "age[a]", "age^2",
    )  # fmt: skip
    assert shared.design(t, site).tolist() == [[0, 0, 1, 2, 0, 4]]
    assert shared.design(t, ["a"]).tolist() == [[1, 0, 0, 0, 2, 4]]
    mean = Curve(1, counts, ("a", "b"), False)
    np.testing.assert_allclose(mean.design(t, site), [[0, 0, 1, 2 / 3, 4 / 3]])
    np.testing.assert_allclose(mean.design(t, ["new"]), [[0.3, 0.6, 0.1, 2 / 3, 4 / 3]])
    np.testing.assert_allclose(mean.design(t, None), mean.design(t, ["new"]))


def test_a_curve_where_sites_are_missing():
    curve = Curve(1, {"a": 30, "b": 30, "c": 30}, ("a", "b"))
    assert curve.within({"a": 9, "b": 9}).terms == (
        "intercept[a]", "intercept[b]", "age[a]", "age[b]",
    )  # fmt: skip
    assert curve.within({"c": 9}).terms == ("intercept[c]", "age")
    assert curve.within({}).terms == ("intercept", "age")


def test_slopes_are_chosen_by_number_and_strength():
    data = study(1)
    curve, weak = choose_slopes(data)
    assert curve.own_slope == ("a", "b") and not curve.shared_slope and not weak
    flat = Data(data.t, np.where(SITES == "b", -data.t, data.gap), SITES, data.person)
    curve, weak = choose_slopes(flat)
    assert curve.own_slope == () and curve.shared_slope and list(weak) == ["b"]
    curve, _ = choose_slopes(data.where(np.arange(60) > 0))
    assert curve.own_slope == () and curve.shared_slope


@pytest.mark.parametrize("t", [np.zeros(20), np.full(20, 1e-15), np.repeat([-1.0, 1.0], 10)])
def test_what_cannot_be_solved(t):
    data = Data(t, np.arange(20.0), None, np.arange(20))
    assert solve(data, Curve(2, {})) is None
