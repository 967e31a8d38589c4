"""Volumes of simulated and of real brains: counted alike, and told apart in table and plot."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from benchmarks import simulation

LEFT_VENTRICLE, CORTEX, WHITE, OUTER, HIPPOCAMPUS = 52, 150, 81, 1, 47


def test_shares_of_a_label_map(tmp_path: Path) -> None:
    voxels = np.array([LEFT_VENTRICLE, *[CORTEX] * 4, *[WHITE] * 4, HIPPOCAMPUS, *[OUTER] * 5, 0])
    path = tmp_path / "sub-1_dseg.nii.gz"
    nib.save(nib.Nifti1Image(voxels.reshape(4, 2, 2).astype(np.int16), np.eye(4)), path)
    assert simulation.shares_of_map(path) == {"LV": 10, "CTX": 40, "WM": 40, "HIP": 10}


def test_shares_of_a_record_are_the_same() -> None:
    volumes = {"brain": 1000.0, "cortex": 400.0, "left_lateral_ventricle": 60.0,
               "right_lateral_ventricle": 40.0, "left_cerebral_white_matter": 200.0,
               "right_cerebral_white_matter": 200.0, "left_hippocampus": 50.0,
               "right_hippocampus": 50.0}  # fmt: skip
    found = simulation.shares_of_record({"volumes_ml": volumes})
    assert found == {"LV": 10, "CTX": 40, "WM": 40, "HIP": 10}


def test_change_a_year_is_found_in_each_group() -> None:
    ages = np.linspace(20, 80, 13)
    frames = [
        pd.DataFrame(
            {
                "age": ages,
                "group": group,
                "CTX": 40 * np.exp(-0.002 * (ages - 50)),
                "WM": 40 + np.sin(ages),
                "HIP": 1 + 0.01 * np.sin(ages),
                "LV": 2 * np.exp(rate * (ages - 50)),
            }
        )
        for group, rate in ((simulation.REAL, 0.03), (simulation.SIMULATED, 0.02))
    ]
    frame = pd.concat(frames, ignore_index=True)
    rows = {row[0]: row[1:] for row in simulation.rows_of(frame)}
    assert [rows["lateral ventricles"][i] for i in (0, 1, 3, 4)] == ["2.00", "+3.05", "2.00",
                                                                     "+2.02"]  # fmt: skip
    assert float(rows["cerebral cortex"][1]) == pytest.approx(-0.2, abs=0.01)
    figure = simulation.plot(frame)
    assert [axes.get_title() for axes in figure.axes] == list(simulation.SHOWN.values())
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [
        simulation.REAL, simulation.SIMULATED]  # fmt: skip
