"""The page of the group: warnings first, everything escaped, nothing fetched."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bidsapp.reporting import group_page as page_module
from bidsapp.reporting.group_methods import Account
from bidsapp.reporting.group_page import Results, forest_rows, group_content, group_page

EVIL = "<script>alert(1)</script>"
CORRECTION: dict[str, Any] = {
    "method": "offset", "degree": 1, "robust": False, "terms": ["intercept", "age"],
    "coefficients": [0.5, -0.25], "covariance": [[0.04, 0], [0, 0.0001]], "n": 60,
    "participants": 60, "age_low": 20.0, "age_high": 80.0, "sites": {}, "slope": 0.75,
    "slope_low": 0.7, "slope_high": 0.8, "residual_sd": 4.0, "forced": False, "verdicts": [],
}  # fmt: skip


def scans(n: int = 6) -> pd.DataFrame:
    numbers = np.arange(n)
    return pd.DataFrame({
        "participant_id": [f"sub-{i:02d}" for i in numbers], "session_id": None,
        "age": 30.0 + numbers, "sex": "F", "site": None,
        "group": np.where(numbers % 2, "AD", "control"), "predicted_age": 33.0 + numbers,
        "interval_low_local": 20.0, "interval_high_local": 50.0, "brain_age_gap": 3.0 - numbers,
        "corrected_gap": 2.0 - numbers, "accelerated_p": 0.00001, "quality_passed": True,
        "quality_flags": ["cnr,mask_overlap", *[""] * (n - 1)],
        "role": ["excluded: failed quality", *["reference", "other"] * n][:n],
        "tested": numbers > 0, "is_reference": numbers % 2 == 0,
    })  # fmt: skip


def row_of(**changes: Any) -> dict[str, Any]:
    row = dict.fromkeys(
        ("term", "contrast", "measure", "effect", "effect_low", "effect_high", "hedges_g",
         "hedges_g_low", "hedges_g_high", "p", "p_permutation", "q", "auc", "auc_without",
         "covariates", "notes"), np.nan,
    )  # fmt: skip
    row |= {"model": "wssa", "outcome": "brain_age_gap", "verdict": "tested", "n": 60}
    return row | changes


TESTS = pd.DataFrame([
    row_of(term="group", contrast="AD - control", measure="difference", effect=4.25,
             effect_low=-1.0, effect_high=9.5, hedges_g=0.4, hedges_g_low=-0.1, hedges_g_high=0.9,
             p=0.03, q=0.06, covariates="age + age2", notes="3 left out."),
    row_of(model="gray_matter", outcome="gray_matter", term="group", contrast="AD - control",
             measure="difference", effect=-0.75, hedges_g=-0.5, hedges_g_low=-0.9,
             hedges_g_high=-0.1, p=0.00002),
    row_of(term="group, given ventricles and gray_matter", contrast="AD - control",
             measure="difference", effect=1.0, hedges_g=0.1, p=0.5),
    row_of(term=EVIL, verdict="too_few", notes="2 participants."),
])  # fmt: skip
ACCURACY = pd.DataFrame([
    {"model": "wssa", "stratum": "all", "level": "all", "prediction": prediction, "n": 60,
     "age_low": 20.0, "age_high": 80.0, "mae": mae, "mae_low": mae - 1, "mae_high": mae + 1,
     "bias": 2.7, "bias_low": 0.85, "bias_high": 4.5, "r": 0.73, "r_low": 0.6, "r_high": 0.8,
     "r2": 0.5, "slope": 0.56, "gap_age_r": -0.6}
    for prediction, mae in (("raw", 9.2), ("corrected", 6.1))
])  # fmt: skip
RESULTS = Results(
    study=f"Study {EVIL}",
    main="wssa",
    frames={"wssa": scans()},
    accuracy=ACCURACY,
    statistics=TESTS,
    reliability=pd.DataFrame([
        {"model": "wssa", "quantity": "brain_age_gap", "type": "ICC(2,1)", "icc": 0.95,
         "low": 0.9, "high": 0.98, "sem": 1.0, "sdc": 2.8, "n": 20, "k": 2}
    ]),
    changes={"wssa": SimpleNamespace(
        method="mixed model", age_change=1.2, age_low=0.8, age_high=1.6, gap_change=0.2, p=0.2,
        scans=40, participants=20, mean_years=2.1,
    )},
    decades={}, coverages={}, pairs={},
    verdicts=[
        SimpleNamespace(severity="note", text="Just a note."),
        SimpleNamespace(severity="warning", text=f"Careful {EVIL}."),
        SimpleNamespace(severity="refused", text="No slope."),
        SimpleNamespace(severity="warning", text=f"Careful {EVIL}."),
    ],
    account=Account(
        scans=6, participants=6, reference="group = control", titles={"wssa": "WSSA (2024)"},
        weights={}, versions=("1.0",), counts=(("records with a prediction", 6),),
        corrections={"wssa": CORRECTION},
        calibrations={"wssa": {"quantile": float("nan"), "coverage": 0.9, "participants": 3}},
        tests=TESTS, reliability=pd.DataFrame(), changed=True,
        options={"include_failed_quality": False, "bias_correction_from": None,
                 "bias_degree": "auto", "harmonize": False, "permutations": 99,
                 "random_seed": 1},
    ),
)  # fmt: skip
FIGURES = {"predicted": '<svg width="100pt">1</svg>', "calibration": "<svg>2</svg>"}


class _Page(HTMLParser):
    """Tables by id, as text; addresses; and elements left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.addresses: list[str] = []
        self.open: list[str] = []
        self._name = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.addresses += [str(values[key]) for key in ("src", "href") if key in values]
        if tag not in ("meta", "img", "input", "br"):
            self.open.append(tag)
        if str(values.get("id", "")).startswith("table-"):
            self._name = str(values["id"])[6:]
            self.tables[self._name] = []
        if tag == "tr":
            self.tables[self._name].append([])
        if tag in ("td", "th"):
            self.tables[self._name][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[self._name][-1][-1] += data


@pytest.fixture(scope="module")
def text() -> str:
    return group_page(group_content(RESULTS, "9.9"), FIGURES, "9.9")


@pytest.fixture(scope="module")
def page(text: str) -> _Page:
    return _Page(text)


def test_it_is_whole_and_needs_nothing_else(text: str, page: _Page) -> None:
    assert page.open == []
    assert all(address[0] == "#" or address[:5] == "data:" for address in page.addresses)
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL)
    policy = re.search(r"'sha256-([^']+)'", text)
    assert script and policy
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert policy[1] == digest


def test_text_of_the_data_is_escaped(text: str) -> None:
    assert text.count("<script>") == 1
    assert "Study &lt;script&gt;" in text


def test_warnings_come_first_and_once(text: str) -> None:
    warning = text.index("Careful")
    assert text.count("Careful") == 1
    assert text.index("<strong>Refused.</strong> No slope.") < warning < text.index("<h2>")
    assert text.index("Notes (1)") > warning
    assert "No warning was raised" not in text
    calm = replace(RESULTS, verdicts=[])
    assert "No warning was raised" in group_page(group_content(calm, "9.9"), {}, "9.9")


def test_headline_figures(text: str) -> None:
    for words in ("9.2 years", "8.2 to 10.2 in the reference", "+2.7 years", "+4.2 years",
                  "p 0.030, q 0.060"):  # fmt: skip
        assert words in text, words


def test_raw_and_corrected_accuracy_stand_side_by_side(page: _Page) -> None:
    head, row = page.tables["accuracy"]
    cells = dict(zip(head, row, strict=True))
    assert (cells["MAE"], cells["MAE corrected"]) == ("9.2 [8.2, 10.2]", "6.1")


def test_tests_are_listed_with_their_remarks(text: str, page: _Page) -> None:
    head, *rows = page.tables["tests"]
    first, volume, given, not_tested = (dict(zip(head, row, strict=True)) for row in rows)
    assert first["Effect"] == "+4.2 [\N{MINUS SIGN}1.0, 9.5]"
    assert first["Of"] == "WSSA"
    assert (volume["Of"], volume["p"]) == ("grey matter", "< 0.0001")
    assert given["Test"] == "AD - control, given ventricles and grey matter"
    assert not_tested["Effect is"] == "too few" and not_tested["p"] == ""
    assert "<li>Adjusted for age + age². 3 left out.</li>" in text
    assert first["Remark"] == "1"


def test_correction_and_repeats(text: str, page: _Page) -> None:
    row = page.tables["corrections"][1]
    assert "0.75 [0.70, 0.80]" in row and row[-1] == "used"
    assert "intercept +0.500 (SE 0.200); age \N{MINUS SIGN}0.250 (SE 0.010)" in row
    assert "0.950 [0.900, 0.980]" in page.tables["reliability"][1]
    assert "predicted age rises by 1.20 years (0.80 to 1.60)" in text


def test_participants_are_all_there_and_marked(text: str, page: _Page) -> None:
    head, *rows = page.tables["participants"]
    assert len(rows) == 6
    first = dict(zip(head, rows[0], strict=True))
    assert (first["Quality"], first["Role"]) == ("cnr, mask overlap", "excluded: failed quality")
    assert "Session" not in head
    assert 'data-sort="30.0"' in text


def test_a_long_table_is_cut_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "MOST_ROWS", 2)
    text = group_page(group_content(RESULTS, "9.9"), {}, "9.9")
    rows = _Page(text).tables["participants"][1:]
    assert [row[0] for row in rows] == ["sub-00", "sub-05"]  # the largest gaps
    assert "Shown are the 2 of 6 scans with the largest gaps" in text


def test_figures_have_their_size_and_words(text: str) -> None:
    assert 'style="width: 155px"' in text
    assert text.count("<figure>") == 2
    assert "<h2>Intervals</h2>" in text
    assert "<h2>Intervals</h2>" not in group_page(group_content(RESULTS, "9.9"), {}, "9.9")


def test_nothing_but_scans_is_a_page_too() -> None:
    nothing = pd.DataFrame()
    bare = replace(
        RESULTS, accuracy=nothing, statistics=nothing, reliability=nothing, changes={},
        frames={"wssa": scans().assign(tested=False, group=None)},
        account=replace(RESULTS.account, tests=nothing, corrections={"wssa": None}),
    )  # fmt: skip
    text = group_page(group_content(bare, "9.9"), {}, "9.9")
    for words in ("Too few people", "Not corrected.", "nothing to compare"):
        assert words in text, words


def test_rows_of_the_forest() -> None:
    rows = forest_rows(RESULTS, "difference")
    assert rows["label"].tolist() == ["WSSA", "grey matter"]  # not the one given volumes
    assert rows["is_model"].tolist() == [True, False]
    assert rows["effect"].tolist() == [0.4, -0.5]
    assert forest_rows(replace(RESULTS, statistics=pd.DataFrame()), "difference").empty


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.00001, "< 0.0001"), (0.00012, "0.0001"), (0.0123, "0.012"), (0.5, "0.50"), (None, "n/a"),
     (float("nan"), "n/a")],
)  # fmt: skip
def test_p_values(value: float | None, words: str) -> None:
    assert page_module._p(value) == words


@pytest.mark.parametrize(
    ("value", "words"), [(2.25, "+2.2"), (-0.04, "0.0"), (-3, "\N{MINUS SIGN}3.0"), (None, "n/a")]
)
def test_signs(value: float | None, words: str) -> None:
    assert page_module._signed(value, 1) == words
