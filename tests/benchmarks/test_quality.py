"""Limits are chosen from sound scans, and what they catch is counted rightly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import quality as benchmark
from bidsapp.preprocessing.quality import LIMITS, TISSUE_SHARES


def people(n: int = 60) -> pd.DataFrame:
    """Sound scans of two scanners, which differ in contrast alone."""
    random = np.random.default_rng(1)
    frame = pd.DataFrame({name: random.normal(1, 0.01, 2 * n) for name in LIMITS})
    frame["dataset"] = ["ixi"] * n + ["ds002748"] * n
    frame.loc[frame["dataset"] == "ds002748", "cnr"] *= 2
    frame["clipped_share"] = frame["years_within_trained_ages"] = 0.0
    frame["half"] = frame.index % 2
    frame["stem"] = [f"sub-{index}" for index in frame.index]
    for name in TISSUE_SHARES:
        frame[f"share_{name}"] = random.normal(-2, 0.1, 2 * n)
    return frame


def corrupted(sound: pd.DataFrame) -> pd.DataFrame:
    """Of every person: strong noise, which harms; a little, which does not; and a refusal."""
    frames = [
        sound.assign(kind="noise", noise=3.0, moved=8.0, refused=False, strength=0.2),
        sound.assign(kind="blur", moved=1.0, refused=False, strength=3.0),
        sound.assign(kind="phantom", moved=np.nan, refused=True, strength=1.0),
    ]
    return pd.concat(frames, ignore_index=True)


def test_limits_reach_beyond_both_data_sets_by_their_gap() -> None:
    sound = people()
    limits = benchmark.choose(sound, 3)
    # medians 1 and 2, on a logarithmic scale, and 3 % of spread
    assert limits["cnr"] == (pytest.approx(0.5 * 0.97, rel=0.02), np.inf)
    low, high = limits["affine_determinant"]
    assert low == pytest.approx(0.97, abs=0.02) and high == pytest.approx(1.03, abs=0.02)
    assert limits["noise"][0] == -np.inf and limits["mask_overlap"][1] == np.inf
    assert list(limits) == list(LIMITS)
    assert limits["largest_voxel_mm"] == LIMITS["largest_voxel_mm"]


def test_more_spreads_are_more_lenient() -> None:
    sound = people()
    alarms = [benchmark.raised(sound, benchmark.choose(sound, k)).any(axis=1).mean()
              for k in (1, 2, 4)]  # fmt: skip
    assert alarms[0] > alarms[1] > alarms[2] == 0


def test_what_does_not_apply_raises_no_flag() -> None:
    sound = people(4).astype({"ghosting": object})
    sound.loc[0, "ghosting"] = None
    assert not benchmark.raised(sound, {"ghosting": (-np.inf, 2.0)}).any(axis=None)


def test_the_choice_catches_most_at_few_false_alarms() -> None:
    sound = people()
    spoilt = corrupted(sound)
    assert benchmark.best_multiple(sound, spoilt) == benchmark.MULTIPLES[-1]  # all catch all
    slight = spoilt.assign(noise=np.where(spoilt["kind"] == "noise", 1.04, 1.0))
    chosen = benchmark.best_multiple(sound, slight)
    assert chosen < benchmark.MULTIPLES[-1]
    alarms = benchmark.raised(sound, benchmark.choose(sound, chosen)).any(axis=1).mean()
    assert alarms <= benchmark.FALSE_ALARMS


def test_harm_and_catch() -> None:
    sound = people()
    spoilt = corrupted(sound)
    limits = benchmark.choose(sound, 4)
    by = spoilt["kind"]
    assert benchmark.harmful(spoilt).groupby(by).mean().to_dict() == {
        "noise": 1, "blur": 0, "phantom": 1,
    }  # fmt: skip
    assert benchmark.caught(spoilt, limits).groupby(by).mean().to_dict() == {
        "noise": 1, "blur": 0, "phantom": 1,
    }  # fmt: skip


def test_rounding_is_outwards() -> None:
    found = benchmark.rounded({"brain_volume_ml": (866.1, 1918.9), "noise": (-np.inf, 0.0571)})
    assert found == {"brain_volume_ml": (860, 2000), "noise": (-np.inf, 0.058)}


def test_the_page() -> None:
    sound = people()
    spoilt = corrupted(sound)
    missed = spoilt["kind"].eq("noise") & spoilt["stem"].isin(["sub-1", "sub-61"])
    spoilt.loc[missed, "noise"] = 1.0
    text = benchmark.page(sound, spoilt, 999, ["ixi", "ds002748"])
    lines = text.split("## Sensitivity")[1].split("## False alarms")[0].splitlines()
    rows = {line.split(" | ")[0].strip("| *"): line for line in lines}
    assert "360 of 999 cases" in text
    assert rows["noise"].endswith("| 60 | 0 | 8.0 | 60 | 58 of 60 (97 %) | none |")
    assert rows["blur"].endswith("| 60 | 0 | 1.0 | 0 | none | 0 of 60 (0 %) |")
    assert rows["phantom"].endswith("| 60 | 60 | n/a | 60 | 60 of 60 (100 %) | none |")
    assert "118 of 120 (98 %)" in rows["all"]
    part = text.split("## Missed")[1]
    assert part.count("| noise | 0.2 |") == 2 and "+8.0" in part


def test_the_limits_for_the_code_can_be_pasted() -> None:
    sound = people()
    text = benchmark.for_the_code(sound, corrupted(sound))
    body = text.split("LIMITS\n")[1].split("TISSUE_SHARES")[0]
    found = eval("{" + body + "}", {"np": np})  # as Python will read it
    assert list(found) == list(LIMITS)
    assert found["years_within_trained_ages"] == LIMITS["years_within_trained_ages"]
    shares = eval("{" + text.split("TISSUE_SHARES\n")[1] + "}")
    assert list(shares) == list(TISSUE_SHARES)
    assert shares["CTX"] == (pytest.approx(-2, abs=0.05), pytest.approx(0.1, rel=0.3))


def test_sound_scans_are_halved_by_age(tmp_path: Path) -> None:
    for label, age in (("01", 50.0), ("02", 20.0), ("03", 30.0)):
        record = {
            "participant_id": f"sub-{label}", "age": age, "quality": {"cnr": age},
            "volumes_ml": {"brain": 1000.0, "brain_stem_and_ventral_diencephalon": 100.0},
            "predictions": {"wssa": {"predicted_age": 1, "weights_sha256": "x"},
                            "volumes": {"predicted_age": 2, "weights_sha256": "y"},
                            "ensemble": {"predicted_age": 33.0}},
        }  # fmt: skip
        path = tmp_path / f"sub-{label}" / "anat" / f"sub-{label}_brainage.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(record))
    found = benchmark.sound_scans({"ixi": tmp_path})
    assert found["stem"].tolist() == ["sub-02", "sub-03", "sub-01"]
    assert found["half"].tolist() == [0, 1, 0]
    assert found["share_BS"][0] == pytest.approx(np.log(0.1), abs=1e-4)
    weights = json.loads(found["weights"][0])
    assert weights.pop("wssa") == "x" and "volumes" not in weights  # which does not vote
    assert not any(weights.values())  # of those that were not run
