"""The steps of the group level on planted truth, and on the little that real studies may have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bidsapp.analysis import ModelResult, analyse_model, compare_gaps, main_model, measure_accuracy
from bidsapp.cohort import Cohort, collect
from bidsapp.derivatives import Derivatives
from bidsapp.errors import UserError
from bidsapp.settings import Settings
from bidsapp.statistics.association import COLUMNS, Contrast
from bidsapp.statistics.bias_correction import fit


def collected(settings: Settings) -> Cohort:
    return collect(
        Derivatives(settings.output_dir, settings.bids_dir, settings.template), settings
    )


def analysed(settings: Settings, model: str = "wssa") -> ModelResult:
    return analyse_model(model, collected(settings), settings)


def compared(settings: Settings, *contrasts: Contrast) -> tuple[pd.DataFrame, dict[str, str]]:
    cohort = collected(settings)
    results = [analyse_model(model, cohort, settings) for model in cohort.distinct_models]
    tests, verdicts = compare_gaps(results, cohort, contrasts, settings)
    return tests, {verdict.name: verdict.text for verdict in verdicts}


def names(result: ModelResult) -> set[str]:
    return {verdict.name for verdict in result.verdicts}


def test_the_correction_removes_age_from_the_reference(
    make_records: Any, write_records: Any
) -> None:
    result = analysed(write_records(make_records(150)))
    reference = result.reference
    assert reference["group"].unique().tolist() == ["control"]
    assert abs(np.corrcoef(reference["age"], reference["brain_age_gap"])[0, 1]) > 0.5
    assert abs(np.corrcoef(reference["age"], reference["corrected_gap"])[0, 1]) < 0.1
    assert result.correction is not None
    assert result.correction.slope == pytest.approx(0.8, abs=0.08)
    others = result.sample[~result.sample["is_reference"]]
    assert others["corrected_gap"].mean() == pytest.approx(8, abs=1.5)


def test_others_get_the_fit_of_the_whole_reference(make_records: Any, write_records: Any) -> None:
    result = analysed(write_records(make_records(60)))
    reference, others = result.reference, result.sample[~result.sample["is_reference"]]
    alone = fit(reference["age"], reference["predicted_age"])
    _, gaps = alone.apply(others["age"], others["predicted_age"])
    assert others["corrected_gap"].to_numpy() == pytest.approx(gaps)
    _, in_sample = alone.apply(reference["age"], reference["predicted_age"])
    assert not np.allclose(reference["corrected_gap"], in_sample)  # by others, not by oneself


@pytest.mark.parametrize(
    ("method", "degree", "fitted"),
    [("offset", "2", ("offset", 2)), ("cole", "auto", ("cole", 1)),
     ("smith", "auto", ("smith", 2)), ("offset", "bic", ("offset", 1))],
)  # fmt: skip
def test_method_and_degree(
    method: str, degree: str, fitted: tuple[str, int], make_records: Any, write_records: Any
) -> None:
    settings = write_records(make_records(60), bias_correction=method, bias_degree=degree)
    correction = analysed(settings).correction
    assert correction is not None
    assert (correction.method, correction.degree) == fitted


def test_no_correction(make_records: Any, write_records: Any) -> None:
    result = analysed(write_records(make_records(60), bias_correction="none"))
    assert result.correction is None
    assert result.frame["corrected_gap"].isna().all()


def test_method_and_degree_that_do_not_go_together(make_records: Any, write_records: Any) -> None:
    settings = write_records(make_records(60), bias_correction="cole", bias_degree="3")
    with pytest.raises(UserError, match="cole does not go with --bias-degree 3"):
        analysed(settings)


def test_a_network_that_has_learnt_nothing_is_not_corrected(
    make_records: Any, write_records: Any
) -> None:
    records = make_records(60, slope=0.1)
    result = analysed(write_records(records))
    assert "weak_slope" in names(result)
    assert result.frame["corrected_gap"].isna().all()
    assert result.frame["brain_age_gap"].notna().all()
    forced = analysed(write_records([], bias_force=True))
    assert forced.frame["corrected_gap"].notna().all()


def test_sites_are_corrected_apart(make_records: Any, write_records: Any) -> None:
    records = make_records(150, sites=("Köln", "Ulm"))
    for record in records:
        record["predictions"]["wssa"]["predicted_age"] += 20 * (record["site"] == "Ulm")
    result = analysed(write_records(records, allow_mixed=True))
    gaps = result.reference.groupby("site")["corrected_gap"].mean()
    assert gaps.to_numpy() == pytest.approx([0, 0], abs=1)
    assert set(result.correction.sites) == {"Köln", "Ulm"}  # type: ignore[union-attr]


def test_an_earlier_correction_knows_the_only_site(make_records: Any, write_records: Any) -> None:
    records = make_records(150, effect=0, sites=("Köln", "Ulm"))
    for record in records:
        record["predictions"]["wssa"]["predicted_age"] += 16 * (record["site"] == "Ulm")
    settings = write_records(records)
    earlier = analysed(settings).correction
    for path in settings.output_dir.glob("sub-*/anat/*.json"):
        path.unlink()
    cohort = collected(write_records([each for each in records if each["site"] == "Ulm"]))
    result = analyse_model("wssa", cohort, settings, earlier)
    assert result.frame["corrected_gap"].mean() == pytest.approx(0, abs=1)
    assert "site_unseen" not in names(result)


def test_harmonisation_equals_spread(make_records: Any, write_records: Any) -> None:
    records = make_records(200, slope=1.0, sites=("Köln", "Ulm"))
    for record in records:
        one = record["predictions"]["wssa"]
        if record["site"] == "Ulm":
            one["predicted_age"] = record["age"] + 3 * (one["predicted_age"] - record["age"])
    settings = write_records(records)
    before = analysed(settings).reference.groupby("site")["corrected_gap"].std()
    result = analysed(replace(settings, harmonize=True))
    after = result.reference.groupby("site")["corrected_gap"].std()
    assert before["Ulm"] / before["Köln"] > 2
    assert after["Ulm"] / after["Köln"] == pytest.approx(1, abs=0.15)
    assert result.site_effects is not None
    both = result.frame[["corrected_age", "age", "corrected_gap"]]
    assert (both["corrected_age"] - both["age"]).to_numpy() == pytest.approx(both["corrected_gap"])


def test_harmonisation_needs_sites(make_records: Any, write_records: Any) -> None:
    settings = write_records(make_records(60), harmonize=True)
    with pytest.raises(UserError, match="[Hh]armoni"):
        analysed(settings)


def test_intervals_are_calibrated_locally(make_records: Any, write_records: Any) -> None:
    records = make_records(150)
    for record in records:
        record["predictions"]["wssa"]["interval"] = [-5, 150]
    result = analysed(write_records(records))
    reference = result.reference
    inside = reference["age"].between(
        reference["interval_low_local"], reference["interval_high_local"]
    )
    assert 0.8 < inside.mean() < 0.98
    assert (reference["interval_source"] == "pooled").all()
    assert (reference["interval_high_local"] - reference["interval_low_local"]).max() < 60


def test_accelerated_ageing(make_records: Any, write_records: Any) -> None:
    frame = analysed(write_records(make_records(150, effect=30))).frame
    patients = frame[frame["group"] == "AD"]["accelerated_p"]
    assert (patients < 0.05).all()
    assert frame[frame["group"] == "control"]["accelerated_p"].mean() == pytest.approx(
        0.5, abs=0.05
    )


def test_accuracy_is_of_the_reference_and_of_groups(make_records: Any, write_records: Any) -> None:
    result = analysed(write_records(make_records(90)))
    table = measure_accuracy([result], Settings("/a", "/b", ("group",))).set_index(
        ["stratum", "level", "prediction"]
    )
    assert table.loc[("all", "all", "raw"), "n"] == 60
    assert table.loc[("group", "AD", "raw"), "n"] == 30
    assert {"sex", "decade"} <= set(table.index.get_level_values("stratum"))
    all_ = table.loc[("all", "all", "raw")]
    assert all_["mae"] == pytest.approx(result.reference["brain_age_gap"].abs().mean())


# --- tests ---


def test_the_planted_difference_is_found(make_records: Any, write_records: Any) -> None:
    tests, _ = compared(write_records(make_records(150)))
    assert set(tests) == set(COLUMNS)
    gap = tests[(tests["model"] == "wssa") & (tests["measure"] == "difference")].iloc[0]
    assert gap["contrast"].endswith("AD - control")
    assert gap["effect_low"] < 8 < gap["effect_high"]
    assert gap["p_permutation"] == pytest.approx(0.01)
    assert gap["q"] < 0.001
    volumes = tests[tests["model"].isin(["ventricles", "gray_matter"])]
    assert (volumes[volumes["measure"] == "difference"]["p"] > 0.01).all()
    given = tests[tests["term"].str.contains(", given ventricles and gray_matter")]
    assert (
        set(given["measure"]) == {"difference", "odds ratio per SD"}
        or (given["verdict"] == "separation").any()
    )
    means = tests[tests["measure"] == "mean"]
    assert means["outcome"].tolist() == ["brain_age_gap", "corrected_gap"]
    assert means.iloc[1]["effect_low"] < 0 < means.iloc[1]["effect_high"]


def test_the_model_of_volumes_takes_their_place(make_records: Any, write_records: Any) -> None:
    records = make_records(60, models=("wssa", "volumes"))
    tests, _ = compared(write_records(records))
    assert set(tests["model"]) == {"wssa", "volumes", "ensemble"}
    given = tests[tests["term"].str.endswith(", given volumes_gap")]
    assert set(given["model"]) == {"ensemble"} and given["n"].gt(0).all()


def test_contrasts_and_phenotypes_that_were_asked_for(
    make_records: Any, write_records: Any
) -> None:
    records = make_records(90)
    lines = ["participant_id\tscore\tremission"]
    for record in records:
        score = 100 - record["predictions"]["wssa"]["brain_age_gap"] + len(lines) % 3
        lines.append(f"{record['participant_id']}\t{score}\t{len(lines) // 2 % 2}")
    settings = write_records(records, {"participants.tsv": "\n".join(lines)},
                             phenotype_terms=("score", "remission"))  # fmt: skip
    tests, _ = compared(settings, Contrast("sex", "M", "F"))
    of_model = tests[tests["model"] == "wssa"].set_index(["term", "measure"])
    assert of_model.loc[("score", "partial r"), "effect"] < -0.9
    assert ("remission", "odds ratio per SD") in of_model.index
    assert ("sex", "difference") in of_model.index
    assert "group" not in tests["term"].tolist()


@pytest.mark.parametrize(("known", "told"), [(59, True), (61, False)])
def test_a_column_that_many_lack_is_told(
    known: int, told: bool, make_records: Any, write_records: Any
) -> None:
    records = make_records(90)
    lines = [f"{each['participant_id']}\t{n % 7}" for n, each in enumerate(records[:known])]
    table = "\n".join(["participant_id\tIQ", *lines])
    settings = write_records(records, {"participants.tsv": table}, covariates=("IQ",))
    _, verdicts = compared(settings)
    assert ("many_missing" in verdicts) == told
    if told:
        assert "IQ is not known for 31 of 90 participants" in verdicts["many_missing"]


def test_a_person_counts_once(make_records: Any, write_records: Any) -> None:
    tests, _ = compared(write_records(make_records(40, sessions=("ses-1", "ses-2"))))
    first = tests[tests["measure"] == "difference"].iloc[0]
    assert first["n"] == 40


def test_a_shifted_reference_is_told(make_records: Any, write_records: Any) -> None:
    records = make_records(60, slope=1.0)
    for record in records:
        record["predictions"]["wssa"]["predicted_age"] += 12
        record["predictions"]["ensemble"]["predicted_age"] += 12
    _, verdicts = compared(write_records(records))
    assert "should be 0 and is not (reference: +1" in verdicts["reference_gap"]
    _, verdicts = compared(write_records([]))
    assert "reference_gap" in verdicts


def test_the_ensemble_comes_first(make_records: Any, write_records: Any) -> None:
    cohort = collected(write_records(make_records(20, models=("a", "b"))))
    settings = Settings("/a", "/b", ("group",))
    results = [analyse_model(model, cohort, settings) for model in cohort.distinct_models]
    assert main_model(results).model == "ensemble"
    assert main_model(results[:1]).model == "a"
