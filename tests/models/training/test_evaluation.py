from __future__ import annotations

import io

import numpy as np
import pytest

from models.training.evaluation import accuracy, calibration_plot, uncertainty

TRUE = np.array([20.0, 40.0, 60.0, 80.0])
PREDICTED = np.array([30.0, 38.0, 64.0, 72.0])


def test_figures_by_hand() -> None:
    figures = accuracy(TRUE, PREDICTED, ["a", "b", "c", "d"])
    # errors: +10, -2, +4, -8
    assert figures.mae == pytest.approx(6.0)
    assert figures.rmse == pytest.approx(np.sqrt(184 / 4))
    assert figures.mean_error == pytest.approx(1.0)
    # sum of products -30*-21 + -10*-13 + 10*13 + 30*21 = 1520; of squares 2000 and 1220
    assert figures.slope == pytest.approx(1520 / 2000)
    assert figures.r == pytest.approx(1520 / np.sqrt(2000 * 1220))
    assert figures.spearman == pytest.approx(1.0)
    assert figures.baseline_mae == pytest.approx(20.0)
    assert (figures.n, figures.people) == (4, 4)


def test_bootstrap_holds_the_estimate_and_resamples_people() -> None:
    random = np.random.default_rng(1)
    true = random.uniform(20, 80, 60)
    predicted = true + random.normal(0, 5, 60)
    alone = accuracy(true, predicted, list(range(60)))
    assert alone.mae_low < alone.mae < alone.mae_high
    assert alone.r_low < alone.r < alone.r_high < 1
    # the standard error of the mean absolute error, times 1.96
    half = 1.96 * np.abs(predicted - true).std() / np.sqrt(60)
    assert (alone.mae_high - alone.mae_low) / 2 == pytest.approx(half, rel=0.15)
    thrice = accuracy(np.tile(true, 3), np.tile(predicted, 3), list(range(60)) * 3)
    assert (thrice.n, thrice.people) == (180, 60)
    assert thrice.mae_high - thrice.mae_low == pytest.approx(alone.mae_high - alone.mae_low)


def test_constant_predictions_have_no_correlation() -> None:
    figures = accuracy(TRUE, np.full(4, 50.0), ["a", "b", "c", "d"])
    assert np.isnan(figures.r)
    assert figures.mae == pytest.approx(figures.baseline_mae)


def test_uncertainty_is_of_true_minus_predicted() -> None:
    error = np.linspace(-10, 30, 401)
    found = uncertainty(50 + error, np.full(401, 50.0))
    assert found.interval == pytest.approx((-8.0, 28.0))
    assert found.standard_deviation == pytest.approx(error.std(ddof=1))
    assert found.coverage == 0.9


def test_calibration_plot_draws() -> None:
    figures = accuracy(TRUE, PREDICTED, ["a", "b", "c", "d"])
    stream = io.BytesIO()
    calibration_plot(TRUE, PREDICTED, ["x", "x", "y", "y"], figures).savefig(stream, format="svg")
    assert b"MAE 6.00 y" in stream.getvalue() or b"<svg" in stream.getvalue()
