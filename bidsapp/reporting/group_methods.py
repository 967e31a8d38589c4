"""The methods text of the group level: what was analysed and how, with its references."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as installed
from math import isfinite
from typing import Any

import pandas as pd

from bidsapp.reporting.methods import REFERENCES, Methods, resolve, short_hash

GROUP_REFERENCES: dict[str, str] = {
    "beheshti": "Beheshti I, Nugent S, Potvin O, Duchesne S (2019). Bias-adjustment in "
    "neuroimaging-based brain age frameworks: a robust scheme. NeuroImage: Clinical 24:102063. "
    "https://doi.org/10.1016/j.nicl.2019.102063",
    "delange2020": "de Lange AMG, Cole JH (2020). Commentary: correction procedures in brain-age "
    "prediction. NeuroImage: Clinical 26:102229. https://doi.org/10.1016/j.nicl.2020.102229",
    "cole": "Cole JH, Ritchie SJ, Bastin ME, et al. (2018). Brain age predicts mortality. "
    "Molecular Psychiatry 23:1385-1392. https://doi.org/10.1038/mp.2017.62",
    "smith": "Smith SM, Vidaurre D, Alfaro-Almagro F, Nichols TE, Miller KL (2019). Estimation of "
    "brain age delta from brain imaging. NeuroImage 200:528-539. "
    "https://doi.org/10.1016/j.neuroimage.2019.06.017",
    "le": "Le TT, Kuplicki RT, McKinney BA, et al. (2018). A nonlinear simulation framework "
    "supports adjusting for age when analyzing BrainAGE. Frontiers in Aging Neuroscience 10:317. "
    "https://doi.org/10.3389/fnagi.2018.00317",
    "huber": "Huber PJ (1964). Robust estimation of a location parameter. Annals of Mathematical "
    "Statistics 35(1):73-101. https://doi.org/10.1214/aoms/1177703732",
    "zhang": "Zhang B, Zhang S, Feng J, Zhang S (2023). Age-level bias correction in brain age "
    "prediction. NeuroImage: Clinical 37:103319. https://doi.org/10.1016/j.nicl.2023.103319",
    "butler": "Butler ER, Chen A, Ramadan R, et al. (2021). Pitfalls in brain age analyses. Human "
    "Brain Mapping 42(13):4092-4101. https://doi.org/10.1002/hbm.25533",
    "delange2022": "de Lange AMG, Anatürk M, Rokicki J, et al. (2022). Mind the gap: performance "
    "metric evaluation in brain-age prediction. Human Brain Mapping 43(10):3113-3129. "
    "https://doi.org/10.1002/hbm.25837",
    "combat": "Johnson WE, Li C, Rabinovic A (2007). Adjusting batch effects in microarray "
    "expression data using empirical Bayes methods. Biostatistics 8(1):118-127. "
    "https://doi.org/10.1093/biostatistics/kxj037",
    "fortin": "Fortin JP, Cullen N, Sheline YI, et al. (2018). Harmonization of cortical "
    "thickness measurements across scanners and sites. NeuroImage 167:104-120. "
    "https://doi.org/10.1016/j.neuroimage.2017.11.024",
    "conformal": "Lei J, G'Sell M, Rinaldo A, Tibshirani RJ, Wasserman L (2018). "
    "Distribution-free predictive inference for regression. Journal of the American Statistical "
    "Association 113(523):1094-1111. https://doi.org/10.1080/01621459.2017.1307116",
    "hierarchical": "Lee Y, Barber RF, Willett R (2023). Distribution-free inference with "
    "hierarchical data. arXiv:2306.06342. https://doi.org/10.48550/arXiv.2306.06342",
    "hc3": "MacKinnon JG, White H (1985). Some heteroskedasticity-consistent covariance matrix "
    "estimators with improved finite sample properties. Journal of Econometrics 29(3):305-325. "
    "https://doi.org/10.1016/0304-4076(85)90158-7",
    "freedman_lane": "Freedman D, Lane D (1983). A nonstochastic interpretation of reported "
    "significance levels. Journal of Business & Economic Statistics 1(4):292-298. "
    "https://doi.org/10.1080/07350015.1983.10509354",
    "winkler": "Winkler AM, Ridgway GR, Webster MA, Smith SM, Nichols TE (2014). Permutation "
    "inference for the general linear model. NeuroImage 92:381-397. "
    "https://doi.org/10.1016/j.neuroimage.2014.01.060",
    "hedges": "Hedges LV (1981). Distribution theory for Glass's estimator of effect size and "
    "related estimators. Journal of Educational Statistics 6(2):107-128. "
    "https://doi.org/10.3102/10769986006002107",
    "holm": "Holm S (1979). A simple sequentially rejective multiple test procedure. Scandinavian "
    "Journal of Statistics 6(2):65-70.",
    "bh": "Benjamini Y, Hochberg Y (1995). Controlling the false discovery rate: a practical and "
    "powerful approach to multiple testing. Journal of the Royal Statistical Society B "
    "57(1):289-300. https://doi.org/10.1111/j.2517-6161.1995.tb02031.x",
    "icc": "Shrout PE, Fleiss JL (1979). Intraclass correlations: uses in assessing rater "
    "reliability. Psychological Bulletin 86(2):420-428. "
    "https://doi.org/10.1037/0033-2909.86.2.420",
    "bland_altman": "Bland JM, Altman DG (1999). Measuring agreement in method comparison "
    "studies. Statistical Methods in Medical Research 8(2):135-160. "
    "https://doi.org/10.1177/096228029900800204",
    "doerfel2023": "Dörfel RP, Arenas-Gomez JM, Fisher PM, et al. (2023). Prediction of brain age "
    "using structural magnetic resonance imaging: a comparison of accuracy and test-retest "
    "reliability of publicly available software packages. Human Brain Mapping 44(17):6139-6148. "
    "https://doi.org/10.1002/hbm.26502",
    "doerfel2026": "Dörfel RP, Ozenne B, Ganz M, Svensson JE, Plavén-Sigray P (2026). Prediction "
    "of brain age using structural magnetic resonance imaging: a comparison of clinical utility "
    "of publicly available software packages. eBioMedicine 123:106094. "
    "https://doi.org/10.1016/j.ebiom.2025.106094",
    "bacas": "Bacas E, Kahhalé I, Raamana PR, et al. (2023). Probing multiple algorithms to "
    "calculate brain age: examining reliability, relations with demographics, and predictive "
    "power. Human Brain Mapping 44(9):3481-3492. https://doi.org/10.1002/hbm.26291",
    "motion": "Hanson JL, Adkins DJ, Bacas E, Zhou P (2024). Examining the reliability of brain "
    "age algorithms under varying degrees of participant motion. Brain Informatics 11:9. "
    "https://doi.org/10.1186/s40708-024-00223-0",
    "statsmodels": "Seabold S, Perktold J (2010). statsmodels: econometric and statistical "
    "modeling with Python. Proceedings of the 9th Python in Science Conference. "
    "https://doi.org/10.25080/Majora-92bf1922-011",
    "scipy": "Virtanen P, Gommers R, Oliphant TE, et al. (2020). SciPy 1.0: fundamental "
    "algorithms for scientific computing in Python. Nature Methods 17:261-272. "
    "https://doi.org/10.1038/s41592-019-0686-2",
}

_METHODS = {
    "offset": "by subtracting from the gap what is expected of it at that age [@beheshti] "
    "[@delange2020]",
    "cole": "by inverting the line of predicted on chronological age [@cole]",
    "smith": "by taking the residual of the gap on age and its square [@smith]",
}
_SOFTWARE = ("numpy", "scipy", "pandas", "statsmodels")


@dataclass(frozen=True)
class Account:
    """What the methods text has to know.

    Attributes
    ----------
    scans, participants
        Scans with a prediction, and people.
    reference
        Who the reference is, in words.
    titles
        Of the models, by name, as analysed.
    weights, versions
        That made the records.
    counts
        Scans by role: words and number.
    corrections
        By model: what `Correction.to_json` gives, or None.
    calibrations
        By model: what `Calibration.to_json` gives.
    tests, reliability
        Tables as written.
    changed
        Whether change over sessions could be measured.
    options
        The settings of the run, by name.
    """

    scans: int
    participants: int
    reference: str
    titles: Mapping[str, str]
    weights: Mapping[str, Sequence[str]]
    versions: Sequence[str]
    counts: Sequence[tuple[str, int]]
    corrections: Mapping[str, Mapping[str, Any] | None]
    calibrations: Mapping[str, Mapping[str, Any]]
    tests: pd.DataFrame
    reliability: pd.DataFrame
    changed: bool
    options: Mapping[str, Any]


def group_methods(account: Account, version: str) -> Methods:
    """State what was analysed and how."""
    paragraphs = (
        _sample(account, version),
        _correction(account),
        _intervals(account),
        _tests(account),
        _repeats(account),
        _cautions(account),
        _software(),
    )
    joined = (" ".join(sentence for sentence in sentences if sentence) for sentences in paragraphs)
    return resolve([text for text in joined if text], REFERENCES | GROUP_REFERENCES)


# --- paragraphs: sentences; "[@key]" marks a citation ---


def _sample(a: Account, version: str) -> Iterator[str]:
    yield (
        f"{a.scans} scans of {a.participants} participants were analysed with the group level of "
        f"brainage {version}, a BIDS App [@bids_apps] for BIDS [@bids] data."
    )
    if a.versions:
        yield f"The records were made by version {_listed(a.versions)}."
    models = []
    for name, title in a.titles.items():
        hashes = _listed([short_hash(value) for value in a.weights.get(name, ())])
        models.append(f"{title} (weights SHA-256 {hashes})" if hashes else title)
    yield f"Ages were predicted by {_listed(models)}."
    yield "The brain-age gap is the predicted minus the chronological age at the scan, in years."
    if a.reference == "everybody":
        yield "No group of controls was known: all participants served as the reference."
    else:
        yield f"The reference were the participants with {a.reference}."
    counts = [f"{words} ({number})" for words, number in a.counts]
    yield f"Counts: {_listed(counts)}."
    if a.options["include_failed_quality"]:
        yield "Scans that failed quality were not left out."


def _correction(a: Account) -> Iterator[str]:
    used = {name: each for name, each in a.corrections.items() if each}
    if not used:
        yield "No age-bias correction was made."
        return
    one = next(iter(used.values()))
    source = (
        "The age-bias correction of an earlier study was applied"
        if a.options["bias_correction_from"]
        else "The dependence of the gap on age was fitted on the reference and removed"
    )
    yield f"{source} {_METHODS[one['method']]}."
    for name, each in used.items():
        degree = {1: "a line", 2: "a quadratic", 3: "a cubic"}.get(each["degree"], "a curve")
        chosen = " chosen by BIC" if a.options["bias_degree"] == "bic" else ""
        robust = ", robustly (Huber) [@huber]" if each["robust"] else ""
        sites = f", an intercept for each of {len(each['sites'])} sites" if each["sites"] else ""
        own = [term for term in each["terms"] if term.startswith("age[")]
        slopes = f" and a slope of its own for {len(own)} of them" if own else ""
        refused = any(verdict["severity"] == "refused" for verdict in each["verdicts"])
        if each["forced"]:
            end = "; it was used although a guard advises against it"
        else:
            end = "; a guard refused it, and no corrected ages are given" if refused else ""
        yield (
            f"For {a.titles.get(name, name)}, it is {degree} in age{chosen}{sites}{slopes}"
            f"{robust}, fitted to {each['n']} scans of {each['participants']} people aged "
            f"{each['age_low']:.0f} to {each['age_high']:.0f} years{end}."
        )
    if not a.options["bias_correction_from"]:
        yield (
            "Members of the reference were corrected by fits to others (ten folds of people), "
            "everybody else by the fit to the whole reference."
        )
    yield (
        "Corrected ages contain the chronological age, so that their agreement with it is no "
        "measure of accuracy [@butler]; raw figures are given beside them. Bias that is left "
        "within an age level [@zhang] is shown by decade."
    )
    if a.options["harmonize"]:
        yield (
            "Shift and spread of the gap at each site were then estimated on the site's "
            "reference, adjusting for age and sex, and removed: ComBat's model [@combat] "
            "[@fortin] for one variable, without empirical Bayes."
        )


def _intervals(a: Account) -> Iterator[str]:
    calibrated = [each for each in a.calibrations.values() if isfinite(each["quantile"])]
    if calibrated:
        one = calibrated[0]
        yield (
            f"Intervals for {100 * one['coverage']:g} % of people were calibrated on "
            f"{one['participants']} people of the reference by split conformal prediction "
            "[@conformal], with scores divided by the model's standard deviation; that of each "
            "member of the reference comes from the others, and a person with several scans "
            "counts once [@hierarchical]."
        )
        if one.get("bins"):
            yield f"Sites with a calibration of their own: {_listed(list(one['bins']))}."
    else:
        yield "The reference was too small to calibrate intervals: those of the models stand."
    yield (
        "Accuracy was measured on the reference, and by sex, site and decade of age; its 95 % "
        "intervals are by bootstrap of people (1,000 resamples)."
    )


def _tests(a: Account) -> Iterator[str]:
    tests = a.tests
    if tests.empty or not (tests["verdict"] == "tested").any():
        yield "No hypothesis was tested."
        return
    tested = tests[tests["verdict"] == "tested"]
    measures = set(tested["measure"])
    outcome = "harmonised gap" if a.options["harmonize"] else "gap, as predicted,"
    covariates = "; or ".join(dict.fromkeys(tested["covariates"].dropna()))
    covariates = covariates.replace("age2", "age squared").replace("gray_matter", "grey matter")
    if measures & {"difference", "partial eta squared"}:
        yield (
            f"Groups were compared by the {outcome} in a linear model with heteroscedasticity-"
            "consistent (HC3) standard errors [@hc3]; with age among the covariates, a linear "
            "age-bias correction does not change this test [@le]. Effects are adjusted "
            "differences in years and Hedges' g [@hedges]."
        )
    if "partial eta squared" in measures:
        yield (
            "More than two groups were compared by an F test, and in pairs with Holm's p [@holm]."
        )
    if any(measure.startswith("partial r") or "Spearman" in measure for measure in measures):
        yield "Phenotypes were related to the gap by partial correlation, and by ranks."
    if "odds ratio per SD" in measures:
        yield (
            "Two-valued outcomes were modelled by logistic regression on the gap per standard "
            "deviation and the same covariates (likelihood ratio test; areas under the curve are "
            "in sample)."
        )
    yield f"Covariates: {covariates}."
    if tested["p_permutation"].notna().any():
        yield (
            f"Permutation p-values are by Freedman and Lane [@freedman_lane] [@winkler], with up "
            f"to {a.options['permutations']:,} permutations and seed {a.options['random_seed']}."
        )
    yield (
        f"q is the false discovery rate of Benjamini and Hochberg [@bh] over all "
        f"{int(tested['p'].notna().sum())} p-values of the run."
    )
    others = [name for name in ("ventricles", "gray_matter") if (tests["model"] == name).any()]
    if others:
        yield (
            "The volumes of ventricles and grey matter, in percent of the brain, were tested in "
            "the same way: brain age is of use where it tells more than they do [@doerfel2026]."
        )
    if tests["term"].fillna("").str.contains(", given volumes_gap").any():
        yield (
            "Groups were compared once more with the gap of the model of volumes among the "
            "covariates: brain age is of use where it tells more than volumes do [@doerfel2026]."
        )


def _repeats(a: Account) -> Iterator[str]:
    if not a.reliability.empty:
        yield (
            "Reliability of repeated scans (within half a year) was measured by intraclass "
            "correlations [@icc] with F intervals, the standard error of measurement (root of the "
            "residual mean square), the smallest detectable change (1.96 times the root of two "
            "times that), and limits of agreement [@bland_altman]. The correlation of predicted "
            "ages is raised by the range of ages; that of the gap is the one to quote."
        )
    if a.changed:
        yield (
            "Change over sessions was estimated by a mixed model of the gap on time since the "
            "first scan, age at it, and sex, with a random intercept for each person."
        )


def _cautions(a: Account) -> Iterator[str]:
    yield (
        "To be kept in mind: errors of cohorts with other age ranges do not compare "
        "[@delange2022]; packages differ widely on one and the same scan [@doerfel2023] [@bacas]; "
        "motion shifts predicted ages [@motion], which is why image quality stands beside every "
        "gap and can be a covariate."
    )


def _software() -> Iterator[str]:
    cited = {"scipy": " [@scipy]", "statsmodels": " [@statsmodels]"}
    listed = [f"{name} {installed(name)}{cited.get(name, '')}" for name in _SOFTWARE]
    yield f"Software: {', '.join(listed)}."


def _listed(words: Sequence[str]) -> str:
    """Words with commas and a last "and"."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
