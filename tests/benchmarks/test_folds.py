"""Figures under several assignments of people to folds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from benchmarks import folds
from models.training import linear
from models.training.data import TrainingScan, TrainingSet


def test_every_assignment_gives_figures_of_each_data_set() -> None:
    rng = np.random.default_rng(1)
    scans = [
        TrainingScan(f"s{n}", "ab"[n % 2], f"p{n}", age, "F", "",
                     torch.from_numpy(rng.normal(age / 100, 0.01, (12, 14, 12))).half())
        for n, age in enumerate(np.linspace(20, 80, 24).tolist())
    ]  # fmt: skip
    data = TrainingSet(tuple(scans), "t", tuple(map(tuple, np.eye(4))))
    found = pd.concat([folds.figures(linear.method(data), data, seed) for seed in (1, 2)])
    assert [*found["dataset"]] == ["a", "b"] * 2 and (found["mae"] < 3).all()
    assert found["mae"].nunique() == 4 and (found["r"] > 0.9).all()


def test_summary_says_ours_and_the_range() -> None:
    figures = ((1, 6.0, 0.8), (2, 5.0, 0.9), (3, 7.0, 0.7))
    found = pd.DataFrame(
        [{"model": "m", "dataset": "d", "seed": s, "mae": mae, "r": r} for s, mae, r in figures]
    )
    assert folds.summary(found) == [
        ["m", "d", "5.00", "6.00 (5.00 to 7.00)", "0.900", "0.800 (0.700 to 0.900)"]
    ]
