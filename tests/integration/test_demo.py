"""The demo, as ``make demo`` runs it: predicted age follows the simulated one."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from models.registry import FOLDER, embedded

REPOSITORY = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        not embedded() or not (FOLDER / "segmentation" / "weights.safetensors").is_file(),
        reason="no embedded weights",
    ),
]


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Predicted age of the average brain, untouched and aged, by participant."""
    folder = tmp_path_factory.mktemp("demo")
    ages = ["20", "40", "60", "80"]
    _run("-m", "models.simulation", folder / "bids", "--ages", *ages, "--resolution", "2")
    _run(REPOSITORY / "run.py", folder / "bids", folder / "out", "participant", "group")
    records = [
        json.loads(path.read_text()) for path in (folder / "out").rglob("sub-*_brainage.json")
    ]
    assert not any(flag for record in records for flag in record["quality"]["flags"])
    table = pd.read_csv(folder / "out" / "group_brainage.tsv", sep="\t")
    assert set(table["role"]) == {"reference"}
    return {r["participant_id"]: r["predictions"]["ensemble"]["predicted_age"] for r in records}


def _run(*arguments: object) -> None:
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_predicted_age_rises_with_the_simulated_degree(predicted: dict[str, float]) -> None:
    by_degree = [predicted[f"sub-degree{n}"] for n in range(4)]
    assert all(older > younger for younger, older in pairwise(by_degree))
    assert by_degree[-1] - by_degree[0] > 12


def test_the_average_brain_of_young_people_is_not_old(predicted: dict[str, float]) -> None:
    assert predicted["sub-average"] < 45
