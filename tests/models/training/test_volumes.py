"""Training the model of volumes: the relation that was planted is found, out of fold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from models.registry import load
from models.training.__main__ import main
from models.training.data import load_volumes
from models.training.volumes import REGIONS


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """40 people whose ventricles grow by 1 % a year, in heads of several sizes."""
    random, root = np.random.default_rng(3), tmp_path / "study"
    for number in range(40):
        age, size = random.uniform(20, 80), random.uniform(0.8, 1.2)
        volumes = {name: 100.0 * random.lognormal(0, 0.02) for name in REGIONS}
        for side in ("left", "right"):
            volumes[f"{side}_lateral_ventricle"] = 5 * np.exp(age / 100 + random.normal(0, 0.01))
        folder = root / f"sub-{number:02}" / "anat"
        folder.mkdir(parents=True)
        record = {"participant_id": f"sub-{number:02}", "age": age, "sex": "FM"[number % 2],
                  "volumes_ml": {name: size * ml for name, ml in volumes.items()}}  # fmt: skip
        (folder / f"sub-{number:02}_brainage.json").write_text(json.dumps(record))
    return root


def change(records: Path, **changes: object) -> None:
    path = next(records.rglob("*_brainage.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_out_of_fold_and_in_use(records: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    arguments = ["volumes", "--data", str(records), "--out", str(out), "--folds", "4",
                 "--whole"]  # fmt: skip
    assert main(arguments) == 0
    model = load("volumes", weights=out)
    assert model.card.figures["mae"] < 3 and model.card.figures["r"] > 0.98
    assert model.card.training["people"] == 40 and len(model.networks) == 1
    rows = [line.split("\t") for line in (out / "out_of_fold.tsv").read_text().splitlines()[1:]]
    assert {row[5] for row in rows} == {"0", "1", "2", "3"}
    scan = load_volumes([records], REGIONS).scans[0]
    assert model.predict(scan.image.numpy(), scan.sex).predicted_age == pytest.approx(
        scan.age, abs=6
    )
    first = (out / "weights.safetensors").read_bytes()
    assert main(arguments) == 0
    assert (out / "weights.safetensors").read_bytes() == first


def test_nobody_is_predicted_by_weights_that_saw_them(records: Path, tmp_path: Path) -> None:
    def predicted(name: str) -> dict[str, float]:
        out = tmp_path / name
        assert main(["volumes", "--data", str(records), "--out", str(out), "--folds", "4"]) == 0
        rows = (out / "out_of_fold.tsv").read_text().splitlines()[1:]
        return {row.split("\t")[1]: float(row.split("\t")[7]) for row in rows}

    before, path = predicted("before"), sorted(records.rglob("*_brainage.json"))[0]
    record = json.loads(path.read_text())
    # the folds stay, for nobody is between the two ages
    others = [json.loads(each.read_text())["age"] for each in records.rglob("*_brainage.json")]
    nearest = min((age for age in others if age > record["age"]), default=record["age"] + 1)
    change_to = (record["age"] + nearest) / 2
    path.write_text(json.dumps(record | {"age": change_to}))
    after = predicted("after")
    assert after[record["participant_id"]] == before[record["participant_id"]]
    assert after != before


def test_what_is_missing_is_named(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["volumes", "--data", str(records), "--out", str(tmp_path / "model")]
    change(records, sex=None)
    assert main(arguments) == 2
    assert "needs the sex" in capsys.readouterr().err
    change(records, volumes_ml={"brain": 1.0})
    assert main(arguments) == 2
    assert "has no volume 'left_cerebral_cortex'" in capsys.readouterr().err
    assert main(["volumes", "--data", str(tmp_path / "none"), "--out", str(tmp_path)]) == 2
    assert "no scan of known age" in capsys.readouterr().err
