"""Tests of the gap agree with independent computations, find what was planted, and never break."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats
from sklearn.metrics import roc_auc_score
from statsmodels.stats.multitest import multipletests

from bidsapp.errors import UserError
from bidsapp.statistics.association import (
    COLUMNS,
    Contrast,
    Plan,
    added_value,
    binary_outcome,
    group_differences,
    mean_of,
    parse_contrast,
    phenotype_association,
    with_q,
)

PLAN = Plan(permutations=0)
AD = Contrast("group", "AD", "control")


def study(seed: int = 1, n: int = 120, effect: float = 3.0, **columns: Any) -> pd.DataFrame:
    """One scan per participant; the gap of AD is `effect` years more, and falls with age."""
    random = np.random.default_rng(seed)
    group = random.choice(["control", "AD", "MCI"], n, p=[0.5, 0.3, 0.2])
    age = random.uniform(20, 80, n) + 5 * (group == "AD")
    site = random.choice(["Köln", "東京"], n)
    volume = 650 - 2 * age + random.normal(0, 30, n)
    gap = random.normal(0, 5, n) - 0.3 * (age - 50) + effect * (group == "AD") + (site == "Köln")
    table = {
        "participant_id": [f"sub-{number:04d}" for number in range(n)],
        "gap": gap, "age": age, "sex": random.choice(["F", "M"], n), "site": site,
        "group": group, "volume": volume, "bmi": random.normal(25, 4, n) + 0.2 * gap,
        "smoker": random.integers(0, 2, n),
    }  # fmt: skip
    return pd.DataFrame(table).assign(**columns)


def only(tests: pd.DataFrame) -> pd.Series:
    assert len(tests) == 1 and tuple(tests.columns) == COLUMNS
    return tests.iloc[0]


# --- contrasts ---


@pytest.mark.parametrize(
    ("text", "level", "reference"),
    [
        ("group: AD - control", "AD", "control"),
        ("AD - control", "AD", "control"),
        ("Group: ad - CONTROL", "AD", "control"),
        ("group:control-AD", "control", "AD"),
        ("group: MCI-late − control", "MCI-late", "control"),
        ("group: MCI-late - größe 1", "MCI-late", "größe 1"),
    ],
)
def test_contrasts_as_people_write_them(text: str, level: str, reference: str) -> None:
    levels = ["AD", "control", "MCI-late", "größe 1", None]
    found = parse_contrast(text, pd.DataFrame({"group": levels}))
    assert found == Contrast("group", level, reference)


def test_numbers_are_levels_too() -> None:
    table = pd.DataFrame({"smoker": [0.0, 1.0, np.nan]})
    assert parse_contrast("smoker: 1 - 0", table) == Contrast("smoker", "1", "0")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("group: AD - controls", "'group', which are AD, control"),
        ("group: AD - AD", "which are AD, control"),
        ("group: AD", "COLUMN: LEVEL - REFERENCE"),
        ("", "COLUMN: LEVEL - REFERENCE"),
        ("diagnosis: AD - control", "no column 'diagnosis'; give one of group, age"),
        ("age: old - young", "which are none"),
    ],
)
def test_unclear_contrasts_are_explained(text: str, words: str) -> None:
    table = pd.DataFrame({"group": ["AD", "control"], "age": [np.nan, np.nan]})
    with pytest.raises(UserError, match=words):
        parse_contrast(text, table)


# --- agreement with others ---


def test_a_pair_is_the_formula_of_statsmodels() -> None:
    table = study()
    pair = table[table.group != "MCI"].assign(case=lambda rows: (rows.group == "AD") * 1.0)
    fit = smf.ols("gap ~ case + age + I(age**2) + sex + site", pair).fit()
    robust = fit.get_robustcov_results("HC3", use_t=True)
    at = robust.model.exog_names.index("case")
    found = only(group_differences(table, "gap", PLAN, contrasts=[AD], model="sfcn"))
    assert found.effect == pytest.approx(fit.params["case"])
    low, high = robust.conf_int()[at]
    assert (found.effect_low, found.effect_high) == (pytest.approx(low), pytest.approx(high))
    assert found.statistic == pytest.approx(robust.tvalues[at])
    assert found.p == pytest.approx(robust.pvalues[at]) and found.df == fit.df_resid
    n1, n0 = (pair.group == "AD").sum(), (pair.group == "control").sum()
    assert (found.n, found.n_level, found.n_reference) == (n1 + n0, n1, n0)
    adjusted = fit.tvalues["case"] * np.sqrt(1 / n1 + 1 / n0)
    assert found.cohens_d_adjusted == pytest.approx(adjusted, abs=1e-9)
    assert found.hedges_g == pytest.approx(adjusted * (1 - 3 / (4 * (n1 + n0) - 9)), abs=1e-9)
    assert found.hedges_g_low < found.hedges_g < found.hedges_g_high
    assert found.covariates == "age + age2 + sex + site" and found.verdict == "tested"
    assert (found.model, found.outcome, found.contrast) == ("sfcn", "gap", "AD - control")


def test_without_covariates_it_is_the_t_test() -> None:
    table = study()[["participant_id", "gap", "group"]]
    found = only(group_differences(table, "gap", PLAN, contrasts=[AD]))
    case, control = (table.gap[table.group == name] for name in ("AD", "control"))
    t = stats.ttest_ind(case, control).statistic
    d = t * np.sqrt(1 / len(case) + 1 / len(control))
    assert found.cohens_d == pytest.approx(d, abs=1e-9)
    assert found.cohens_d_adjusted == pytest.approx(d, abs=1e-9)
    assert found.effect == pytest.approx(case.mean() - control.mean())
    assert found.p == pytest.approx(
        stats.ttest_ind(case, control, equal_var=False).pvalue, rel=0.1
    )
    assert found.covariates == ""


def test_three_groups_have_an_omnibus_f_then_pairs_with_holm() -> None:
    table = study()
    tests = group_differences(table, "gap", PLAN, reference="control")
    assert list(tests.contrast) == ["", "AD - control", "MCI - control", "MCI - AD"]
    fit = smf.ols("gap ~ C(group) + age + I(age**2) + sex + site", table).fit()
    robust = fit.get_robustcov_results("HC3", use_t=True)
    f = robust.f_test(np.eye(7)[1:3])
    omnibus = tests.iloc[0]
    assert omnibus.statistic == pytest.approx(float(f.fvalue))
    assert (omnibus.df_effect, omnibus.df) == (2, fit.df_resid)
    assert omnibus.p == pytest.approx(float(f.pvalue))
    without = smf.ols("gap ~ age + I(age**2) + sex + site", table).fit()
    assert omnibus.effect == pytest.approx(1 - fit.ssr / without.ssr)
    assert list(tests.p_holm[1:]) == pytest.approx(multipletests(tests.p[1:], method="holm")[1])
    single = only(group_differences(table, "gap", PLAN, contrasts=[AD]))
    assert single.effect == tests.effect[1] and np.isnan(single.p_holm)


def test_partial_correlation() -> None:
    table = study()
    tests = phenotype_association(table, "gap", "bmi", PLAN)
    assert list(tests.measure) == ["partial r", "partial Spearman rho"]
    found = tests.iloc[0]
    words = [(table[name] == table[name].iloc[0]) * 1.0 for name in ("sex", "site")]
    columns = np.column_stack([table.gap, table.bmi, table.age, table.age**2, *words])
    precision = np.linalg.inv(np.corrcoef(columns.T))
    r = -precision[0, 1] / np.sqrt(precision[0, 0] * precision[1, 1])
    assert found.effect == pytest.approx(r) and found.df == len(table) - 2 - 4
    fit = smf.ols("gap ~ bmi + age + I(age**2) + sex + site", table).fit()
    assert found.p == pytest.approx(fit.pvalues["bmi"])
    half = stats.norm.ppf(0.975) / np.sqrt(len(table) - 3 - 4)
    expected = np.tanh(np.arctanh(r) + np.array([-half, half]))
    assert [found.effect_low, found.effect_high] == pytest.approx(expected)
    alone = table[["participant_id", "gap", "bmi"]]
    raw = phenotype_association(alone, "gap", "bmi", PLAN)
    pearson, spearman = stats.pearsonr(table.gap, table.bmi), stats.spearmanr(table.gap, table.bmi)
    assert list(raw.effect) == pytest.approx([pearson.statistic, spearman.statistic])
    assert list(raw.p) == pytest.approx([pearson.pvalue, spearman.pvalue])
    interval = pearson.confidence_interval()
    assert raw.effect_low[0] == pytest.approx(interval.low)
    assert raw.effect_high[0] == pytest.approx(interval.high)


def test_ranks_do_not_mind_a_monotone_scale() -> None:
    table = study()
    stretched = phenotype_association(table.assign(bmi=np.exp(table.bmi)), "gap", "bmi", PLAN)
    plain = phenotype_association(table, "gap", "bmi", PLAN)
    assert stretched.effect[1] == pytest.approx(plain.effect[1])
    assert abs(stretched.effect[0]) < abs(plain.effect[0])


def test_odds_ratio_is_the_formula_of_statsmodels() -> None:
    table = study()
    pair = table[table.group != "MCI"].assign(case=lambda rows: (rows.group == "AD") * 1)
    pair["scaled"] = pair.gap / pair.gap.std()
    terms = "age + I(age**2) + sex + site"
    fit = smf.logit(f"case ~ scaled + {terms}", pair).fit(disp=0)
    without = smf.logit(f"case ~ {terms}", pair).fit(disp=0)
    found = only(binary_outcome(table, "gap", AD, PLAN))
    assert found.effect == pytest.approx(np.exp(fit.params["scaled"]), rel=1e-5)
    low, high = np.exp(fit.conf_int().loc["scaled"])
    assert [found.effect_low, found.effect_high] == pytest.approx([low, high], rel=1e-5)
    assert found.p == pytest.approx(stats.chi2.sf(2 * (fit.llf - without.llf), 1), rel=1e-4)
    assert found.auc == pytest.approx(roc_auc_score(pair.case, fit.fittedvalues))
    assert found.auc_without == pytest.approx(roc_auc_score(pair.case, without.fittedvalues))


def test_kinds_of_phenotypes() -> None:
    table = study(smoker_words=lambda rows: rows.smoker.map({0: "no", 1: "yes"}))
    numbers = only(phenotype_association(table, "gap", "smoker", PLAN))
    words = only(phenotype_association(table, "gap", "smoker_words", PLAN))
    assert (numbers.contrast, words.contrast) == ("1 - 0", "yes - no")
    assert numbers.effect == words.effect and numbers.measure == "odds ratio per SD"
    texts = phenotype_association(table.assign(bmi=table.bmi.map(str)), "gap", "bmi", PLAN)
    assert texts.effect[0] == phenotype_association(table, "gap", "bmi", PLAN).effect[0]
    assert len(phenotype_association(table, "gap", "group", PLAN)) == 4
    assert "site" not in only(phenotype_association(table, "gap", "site", PLAN)).covariates


def test_permutation_stands_beside_the_parametric_p() -> None:
    table = study(effect=1.5)
    plan = Plan(permutations=2000)
    tests = pd.concat(
        [
            group_differences(table, "gap", plan, reference="control"),
            phenotype_association(table, "gap", "bmi", plan),
        ],
        ignore_index=True,
    )
    assert list(tests.p_permutation[:4]) == pytest.approx(list(tests.p[:4]), abs=0.04)
    assert list(tests.p_permutation[4:]) == pytest.approx(list(tests.p[4:]), abs=0.1)
    assert tests.method.str.contains("2,000 Freedman-Lane permutations").all()
    again = group_differences(table, "gap", plan, reference="control")
    assert list(again.p_permutation) == list(tests.p_permutation[:4])


def test_q_is_benjamini_hochberg_over_all_that_was_tested() -> None:
    table = study()
    tests = pd.concat(
        [
            group_differences(table, "gap", PLAN),
            mean_of(table, "gap", PLAN),
            phenotype_association(table, "gap", "volume", PLAN),
        ]
    )
    adjusted = with_q(tests)
    tested = adjusted.verdict == "tested"
    expected = multipletests(adjusted.p[tested], method="fdr_bh")[1]
    assert list(adjusted.q[tested]) == pytest.approx(expected)
    assert adjusted.q[~tested].isna().all() and (~tested).sum() == 1
    assert len(with_q(tests[:0])) == 0


def test_mean_of_controls() -> None:
    table = study()
    controls = table[table.group == "control"]
    found = only(mean_of(controls, "gap", Plan(confidence=0.9)))
    interval = stats.ttest_1samp(controls.gap, 0).confidence_interval(0.9)
    assert found.effect_low == pytest.approx(interval.low)
    assert found.effect_high == pytest.approx(interval.high)
    assert found.verdict == "described" and np.isnan(found.p)


# --- does brain age add anything? ---


def test_added_value_is_asked_in_both_directions() -> None:
    """The volume carries the disease, the gap nothing but noise beside the volume."""
    table = study(2, n=400, effect=0)
    table["volume"] -= 25 * (table.group == "AD")
    table["gap"] -= 0.15 * (table.volume - table.volume.mean())
    gap = added_value(table, "gap", ["volume"], AD, PLAN)
    volume = added_value(table, "volume", ["gap"], AD, PLAN)
    assert list(gap.measure) == ["difference", "odds ratio per SD"]
    assert set(gap.term) == {"group, given volume"}
    assert set(gap.covariates) == {"age + age2 + sex + site + volume"}
    assert (volume.p < 1e-4).all() and (gap.p > 0.05).all()
    assert volume.auc[1] > volume.auc_without[1] + 0.02
    alone = only(group_differences(table, "gap", PLAN, contrasts=[AD]))
    assert alone.p < 0.05 < gap.p[0]


def test_it_is_the_test_with_one_more_covariate() -> None:
    table = study()
    plan = Plan(("volume",), permutations=0)
    difference, odds = added_value(table, "gap", ["volume"], AD, PLAN).itertuples()
    assert difference.effect == only(group_differences(table, "gap", plan, contrasts=[AD])).effect
    assert odds.effect == only(binary_outcome(table, "gap", AD, plan)).effect
    absent = only(added_value(table, "gap", ["hippocampus"], AD, PLAN))
    assert absent.verdict == "no_column" and "hippocampus" in absent.notes


# --- who is left out, and is told ---


def test_a_participant_counts_once() -> None:
    table = study()
    later = table.assign(session_id="ses-2", age=table.age + 2, gap=99.0, group="AD")
    first = table.assign(session_id="ses-1")
    rerun = first.assign(gap=first.gap + 1)
    scans = pd.concat([later, rerun, first]).sample(frac=1, random_state=1)
    expected = only(
        group_differences(table.assign(gap=table.gap + 0.5), "gap", PLAN, contrasts=[AD])
    )
    found = only(group_differences(scans, "gap", PLAN, contrasts=[AD]))
    assert found.effect == pytest.approx(expected.effect) and found.n == expected.n
    assert "first session" in found.method
    first.loc[:, "gap"] = np.nan  # a first session without a gap is passed over
    assert only(mean_of(pd.concat([first, later]), "gap", PLAN)).effect == 99


def test_missing_values_are_left_out_and_counted() -> None:
    table = study(iq=lambda rows: rows.bmi**2)
    pair = table.index[table.group != "MCI"]
    for name, rows in {
        "gap": pair[:2],
        "age": pair[2:5],
        "sex": pair[5:6],
        "iq": pair[6:10],
    }.items():
        table.loc[rows, name] = None
    table.loc[pair[10], "iq"] = np.inf
    found = only(group_differences(table, "gap", Plan(("iq", "bmi"), 0), contrasts=[AD]))
    assert found.n == len(pair) - 11
    assert found.notes == "11 left out for lack of gap (2), age (3), sex (1), iq (5)."
    assert found.covariates == "age + age2 + sex + site + iq + bmi"


def test_covariates_that_cannot_serve_are_named() -> None:
    table = study(sex="F", iq=None, twin=lambda rows: 2 * rows.bmi)
    plan = Plan(("iq", "bmi", "twin", "hippocampus"), 0)
    found = only(group_differences(table, "gap", plan, contrasts=[AD]))
    assert found.covariates == "age + age2 + site + bmi" and found.verdict == "tested"
    for words in (
        "No such column, so not adjusted for: hippocampus.",
        "Unknown for most, so not adjusted for: iq.",
        "The same for all, so not adjusted for: sex.",
        "Determined by other covariates, so left out: twin.",
    ):
        assert words in found.notes


def test_who_is_alone_at_a_site_is_left_out() -> None:
    table = study()
    other = table.assign(site=table.site.where(table.index != 5, "solo"))
    found = only(group_differences(other, "gap", PLAN, contrasts=[Contrast("sex", "F", "M")]))
    same = only(
        group_differences(table.drop(index=5), "gap", PLAN, contrasts=[Contrast("sex", "F", "M")])
    )
    assert "1 left out who are alone in a level of a covariate." in found.notes
    assert (found.effect, found.p) == (pytest.approx(same.effect), pytest.approx(same.p))


def test_sites_with_one_group_say_nothing_about_the_odds() -> None:
    table = study()
    pair = table[table.group != "MCI"]
    healthy = pair[pair.group == "control"].assign(
        site="only healthy", participant_id=lambda rows: rows.participant_id + "x"
    )
    with_site = only(binary_outcome(pd.concat([pair, healthy]), "gap", AD, PLAN))
    without = only(binary_outcome(pair, "gap", AD, PLAN))
    assert with_site.n == without.n and with_site.effect == without.effect
    assert f"{len(healthy)} left out at levels" in with_site.notes


def test_separation_is_not_an_infinite_odds_ratio() -> None:
    table = study()
    perfect = table.gap + 1000 * (table.group == "AD")
    found = only(binary_outcome(table.assign(gap=perfect), "gap", AD, PLAN))
    assert found.verdict == "separation" and np.isnan(found.effect) and found.notes


def test_confounded_designs_give_no_figures() -> None:
    table = study(site=lambda rows: "of " + rows.group)
    found = only(group_differences(table, "gap", PLAN, contrasts=[AD]))
    assert found.verdict == "confounded" and np.isnan(found.effect)
    assert "follows exactly from the covariates" in found.notes
    assert only(binary_outcome(table, "gap", AD, PLAN)).verdict != "tested"
    shared = study(site=lambda rows: "of " + rows.group)
    shared.loc[shared.index[shared.group == "AD"][0], "site"] = "of control"
    single = only(group_differences(shared, "gap", PLAN, contrasts=[AD]))
    assert single.verdict == "confounded" and "single participant" in single.notes


def test_nearly_confounded_designs_are_remarked() -> None:
    table = study(age=lambda rows: 40 + 30.0 * (rows.group == "AD") + rows.bmi / 10)
    assert "explain" in only(group_differences(table, "gap", PLAN, contrasts=[AD])).notes


def test_many_levels() -> None:
    table = study(n=400, group=lambda rows: [f"g{number % 8}" for number in range(len(rows))])
    tests = group_differences(table, "gap", PLAN, reference="g0")
    assert len(tests) == 1 + 7 and tests.contrast[1:].str.endswith("- g0").all()
    assert "not all pairs" in tests.notes[0]
    assert len(group_differences(table, "gap", PLAN)) == 1
    table["group"] = [f"g{number % 80}" for number in range(len(table))]
    assert only(group_differences(table, "gap", PLAN)).verdict == "too_many_levels"


NOBODY = study()[:0]
DEGENERATE = {
    "nobody": NOBODY,
    "one participant": study()[:1],
    "two participants": study()[:2],
    "five participants": study()[:5],
    "one sex": study(sex="F"),
    "no sex known": study(sex=None),
    "no group known": study(group=None),
    "one group": study(group="control"),
    "a group of one": study(group=lambda rows: ["AD"] + ["control"] * (len(rows) - 1)),
    "a group each": study(group=lambda rows: rows.participant_id),
    "constant gap": study(gap=1.5),
    "gap of nobody": study(gap=np.nan),
    "gap told by age": study(gap=lambda rows: 2 + 0.1 * rows.age),
    "infinite gap": study(gap=lambda rows: [np.inf, -np.inf, *rows.gap[2:]]),
    "constant age": study(age=50.0),
    "no age known": study(age=np.nan),
    "constant covariate": study(bmi=3),
    "covariate of nobody": study(bmi=None),
    "covariate of words": study(bmi=lambda rows: rows.participant_id),
    "a site each": study(site=lambda rows: rows.participant_id),
    "site is group": study(site=lambda rows: rows.group),
    "everybody twice": pd.concat([study(), study()]),
    "only ids": study()[["participant_id"]],
    "only gap and group": study()[["gap", "group"]],
    "huge": study(gap=lambda rows: 1e100 * rows.gap),
    "tiny": study(gap=lambda rows: 1e-100 * rows.gap),
    "categories": study().astype({"group": "category", "site": "category", "sex": "category"}),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_tables_give_a_verdict_and_a_sentence(name: str) -> None:
    table = DEGENERATE[name]
    plan = Plan(("bmi", "ähnlich"), permutations=20)
    tests = pd.concat(
        [
            group_differences(table, "gap", plan, reference="control"),
            group_differences(table, "gap", plan, contrasts=[AD]),
            phenotype_association(table, "gap", "bmi", plan),
            phenotype_association(table, "gap", "smoker", plan),
            phenotype_association(table, "gap", "sex", plan),
            binary_outcome(table, "gap", AD, plan),
            added_value(table, "gap", ["volume"], AD, plan),
            mean_of(table, "gap", plan),
        ],
        ignore_index=True,
    )
    tested = tests.verdict == "tested"
    figures = ["effect", "statistic", "p", "n"]
    assert np.isfinite(tests.loc[tested, figures].to_numpy()).all()
    assert (tests.loc[~tested, "notes"] != "").sum() >= (~tested).sum() - 1  # the mean needs none
    assert tests.loc[~tested, "p"].isna().all() and (tests.verdict != "").all()
    assert len(with_q(tests)) == len(tests)


def test_order_and_name_of_rows_do_not_matter() -> None:
    table = study()
    mixed = table.sample(frac=1, random_state=2)
    for test in (group_differences, lambda t, o, p: phenotype_association(t, o, "bmi", p)):
        one, other = test(table, "gap", PLAN), test(mixed, "gap", PLAN)
        assert list(one.effect) == pytest.approx(list(other.effect))


# --- planted truth over many studies ---


@pytest.mark.integration
def test_error_rate_and_coverage_over_a_thousand_studies() -> None:
    """Through the public functions: unequal ages, unequal variances; half a minute or so."""
    runs = 1000
    low, high = stats.binom.ppf([0.0005, 0.9995], runs, 0.05)
    wrong: dict[str, int] = dict.fromkeys(("null", "planted", "g", "r", "odds"), 0)
    for seed in range(runs):
        table = study(seed, n=150, effect=0)
        table["bmi"] = np.random.default_rng(seed).normal(25, 4, len(table))
        case = (table.group == "AD").to_numpy()
        wrong["null"] += only(group_differences(table, "gap", PLAN, contrasts=[AD])).p < 0.05
        planted = table.assign(gap=table.gap + 4 * case)
        found = only(group_differences(planted, "gap", PLAN, contrasts=[AD]))
        wrong["planted"] += not found.effect_low <= 4 <= found.effect_high
        wrong["r"] += phenotype_association(table, "gap", "bmi", PLAN).p[0] < 0.05
        wrong["odds"] += only(binary_outcome(table, "gap", AD, PLAN)).p < 0.05
        bare = planted[["participant_id", "gap", "group"]].assign(
            gap=np.random.default_rng(seed).normal(0.8 * case)
        )
        found = only(group_differences(bare, "gap", PLAN, contrasts=[AD]))
        wrong["g"] += not found.hedges_g_low <= 0.8 <= found.hedges_g_high
    print(wrong)
    assert all(low <= count <= high for count in wrong.values()), wrong
