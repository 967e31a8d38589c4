"""The participant page: self-contained, escaped, complete, and honest about what is not known."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from bidsapp.reporting import reference
from bidsapp.reporting.participant_page import participant_page

PNG = (b"\x89PNG", "image/png", "")
FIGURES = dict.fromkeys(("mask", "segmentation", "registration", "registered", "template"), PNG)
VOID = {"meta", "img", "input", "br", "link", "hr"}
HOSTILE = "<script>alert(1)</script>\"'&"


def prediction(age=41.2, **changes):
    return {
        "predicted_age": age,
        "standard_deviation": 3.1,
        "interval": [age - 6, age + 6],
        "coverage": 0.9,
        "brain_age_gap": 2.4,
        "within_training_ages": True,
        "sex_assumed": False,
        "weights_sha256": "3fa9c1b2" * 8,
        "license": "Apache-2.0",
    } | changes


def record(session="ses-1", **changes):
    stem = f"sub-01_{session}"
    return {
        "participant_id": "sub-01",
        "session_id": session,
        "source": f"bids:raw:sub-01/{session}/anat/{stem}_T1w.nii.gz",
        "age": 38.8,
        "sex": "F",
        "predictions": {"wssa": prediction(), "ensemble": prediction()},
        "quality": {"passed": True, "flags": [], "mask_overlap": 0.961, "cnr": None},
        "volumes_ml": {
            "brain": 1200.0,
            "csf": None,
            "left_hippocampus": 3.9,
            "right_hippocampus": 4.0,
        },
        "steps": [{"step": "bias_field", "tool": "N4", "parameters": {"shrink_factor": 2}}],
        "software": {"torch": "2.13.0"},
        "seconds": {"total": 11.2},
        "fingerprint": "ef" * 32,
    } | changes


CARDS = {
    "wssa": {
        "title": "WSSA network",
        "version": "1.0.0",
        "contract": {"ages": [20, 82]},
        "known_failures": ["Large lesions."],
    }
}


def page(*records, figures=None, cards=CARDS, participant="sub-01"):
    records = records or (record(),)
    if figures is None:
        figures = {"sub-01_ses-1": FIGURES, "sub-01_ses-2": FIGURES}
    return participant_page(participant, records, figures, cards, "0.1.0")


class Elements(HTMLParser):
    """Start tags with their attributes; fails on tags that do not close in order."""

    def __init__(self, html):
        super().__init__()
        self.found, self.open, self.text = [], [], []
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))


def test_page_is_self_contained():
    html = page(record(), record("ses-2"))
    elements = Elements(html)
    assert not elements.all("link") and not elements.all("iframe") and "@import" not in html
    assert all(image["src"].startswith("data:image/") for image in elements.all("img"))
    assert all(link["href"].startswith("#") for link in elements.all("a"))
    assert all("src" not in script for script in elements.all("script"))
    assert "url(" not in html


def test_policy_allows_our_script_and_nothing_else():
    html = page()
    script = re.search(r"<script>(.*?)</script>", html, re.S).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(m["content"] for m in Elements(html).all("meta") if "http-equiv" in m)
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_markup_in_any_label_or_value_is_shown_as_text():
    hostile = json.loads(json.dumps(record()).replace("N4", "TOOL"))
    hostile |= {"sex": HOSTILE, "fingerprint": HOSTILE, "software": {HOSTILE: HOSTILE}}
    hostile["source"] = f"bids:raw:sub-01/ses-1/anat/sub-01_ses-1{HOSTILE}_T1w.nii.gz"
    hostile["steps"][0] |= {"tool": HOSTILE, "parameters": {HOSTILE: HOSTILE}, "note": HOSTILE}
    hostile["quality"] |= {"flags": [HOSTILE], "passed": False, HOSTILE: HOSTILE}
    hostile["volumes_ml"][HOSTILE] = 1.0
    hostile["predictions"] = {HOSTILE: prediction(license=HOSTILE, weights_sha256=HOSTILE)}
    cards = {HOSTILE: {"title": HOSTILE, "summary": HOSTILE, "citation": HOSTILE,
                       "known_failures": [HOSTILE], "training": {"data": HOSTILE}}}  # fmt: skip
    figures = {f"sub-01_ses-1{HOSTILE}": {HOSTILE: (b"", "image/png", HOSTILE)}}
    html = page(hostile, cards=cards, figures=figures, participant=HOSTILE)
    assert "<script>alert" not in html
    elements = Elements(html)
    assert len(elements.all("script")) == 1
    assert elements.words.count("alert(1)") > 15


def test_quality_flags_come_first_and_in_plain_words():
    quality = {"passed": False, "flags": ["mask_overlap", "new_flag"], "mask_overlap": 0.612}
    words = Elements(page(record(quality=quality))).words
    warning = words.index("The brain outline may not match the template")
    assert warning < words.index("Predicted age 41.2 years")
    assert "0.612" in words[warning : warning + 120] and "New flag." in words
    assert "(flagged)" in words


def test_figures_stand_beside_their_limits():
    html = participant_page("sub-01", [record()], {}, CARDS, "1", limits={"mask_overlap": "at 7"})
    assert "Overlap with the template's brain 0.961 at 7 Dice" in Elements(html).words


@pytest.mark.parametrize(
    ("passed", "words"),
    [(True, "No quality flag was raised"), (False, "Quality flags were raised"),
     (None, "quality is sufficient is not known")],
)  # fmt: skip
def test_verdict_on_quality(passed, words):
    assert words in Elements(page(record(quality={"passed": passed, "flags": []}))).words


def test_age_interval_and_gap_at_the_top():
    words = Elements(page()).words
    glance = words[: words.index("Among reference people")]
    assert "Predicted age 41.2 years 90 % interval 35.2 to 47.2" in glance
    assert "Age at the scan 38.8 years" in glance and "Quality passed" in glance
    gap = "+2.4 years The prediction is above the age, which lies inside the interval."
    assert f"Brain-age gap {gap}" in glance
    outside = record(age=20.0, predictions={"wssa": prediction(brain_age_gap=21.2)})
    assert "which lies outside the interval" in Elements(page(outside)).words


def among_reference(**changes):
    """A record of the models in use, with the volumes that have curves."""
    weights = reference.load().weights
    predictions = {name: prediction(weights_sha256=sha) for name, sha in weights.items()}
    volumes = {
        "brain": 1200.0, "csf": 200.0, "cortex": 530.0,
        "left_lateral_ventricle": 7.0, "right_lateral_ventricle": 7.0,
        "left_hippocampus": 4.0, "right_hippocampus": 4.0,
    }  # fmt: skip
    return record(
        predictions=predictions | {"ensemble": prediction()}, volumes_ml=volumes
    ) | changes  # fmt: skip


def test_the_person_among_reference_people():
    elements = Elements(page(among_reference()))
    panels = [i["alt"] for i in elements.all("img") if " by age. " in i["alt"]]
    assert [alt.split(" (")[0] for alt in panels] == [
        "Predicted age", "Lateral ventricles", "Cortex", "Hippocampus"
    ]  # fmt: skip
    assert "37.9 %, percentile" in elements.words and "41.2 years, percentile" in elements.words
    assert "No clinical norm." in elements.words
    assert all(who in elements.words for who in reference.load().people.values())


def test_reference_people_are_those_of_the_models_and_of_the_age():
    other = among_reference(predictions={"wssa": prediction(weights_sha256="0" * 64)})
    assert "41.2 years, percentile" not in Elements(page(other)).words
    old = Elements(page(among_reference(age=97.0))).words
    assert "no reference people of this age" in old
    stripped = among_reference()
    stripped["volumes_ml"]["csf"] = None
    assert "44.2 %, percentile" in Elements(page(stripped)).words
    huge = among_reference()
    huge["volumes_ml"] |= {"left_lateral_ventricle": 90.0}
    assert "at or above percentile 95 of this age" in Elements(page(huge)).words


def test_a_model_without_a_vote_does_not_hide_the_curves():
    beside = among_reference()
    beside["predictions"]["volumes"] = prediction(weights_sha256="1" * 64)
    cards = CARDS | {"volumes": {"title": "Volumes", "in_ensemble": False}}
    assert "41.2 years, percentile" in Elements(page(beside, cards=cards)).words
    assert "41.2 years, percentile" not in Elements(page(beside)).words


def test_several_scans_are_shown_over_time():
    later = among_reference(session_id="ses-2", age=43.0)
    later["source"] = "bids:raw:sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz"
    elements = Elements(page(among_reference(), later))
    alts = [image["alt"] for image in elements.all("img")]
    assert sum(alt.startswith("Predicted age of each scan: Session 1 41.2") for alt in alts) == 1
    assert sum(" by age. " in alt for alt in alts) == 4, "one lifespan picture for all scans"
    assert "Session 1: 41.2 years, percentile" in elements.words
    assert elements.words.count("Among reference people") == 1
    unknown = among_reference(age=None)
    assert "number of the scan" in images(page(unknown, unknown | {"session_id": "ses-2"}))


def images(html):
    found = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', html)
    return " ".join(base64.b64decode(image).decode() for image in found)


def test_what_to_cite():
    cards = {"wssa": CARDS["wssa"] | {"citation": "Somebody (2024). A paper."}}
    words = Elements(page(cards=cards)).words
    start = words.index("How to cite")
    cite = words[start : words.index("Methods", start)]
    assert "Version 0.1.0" in cite and "Somebody (2024)" in cite
    own = {"wssa": CARDS["wssa"] | {"citation": "This software."}}
    words = Elements(page(cards=own)).words
    assert "This software." not in words[words.index("How to cite") : words.index("References")]


def test_null_is_not_known():
    empty = dict.fromkeys(prediction())
    unknown = record(age=None, sex=None, predictions={"wssa": empty}, quality={}, volumes_ml={})
    words = Elements(page(unknown, cards={})).words
    assert "Predicted age not known Age at the scan not known" in words
    assert "Brain-age gap not known because the age is not known" in words
    assert "Not shown, because the age is not known." in words
    assert "Sex not known" in words
    assert not re.search(r"\b(None|nan|null|Undefined)\b", words)


def test_a_record_with_little_in_it_still_makes_a_page():
    words = Elements(page({"participant_id": "sub-01"}, cards={}, figures={})).words
    assert "not known" in words and "This picture was not made" in words
    assert "No scan of this participant" in Elements(participant_page("x", [], {}, {}, "1")).words


def test_warns_outside_training_ages_and_where_sex_was_assumed():
    odd = prediction(within_training_ages=False, sex_assumed=True)
    words = Elements(page(record(predictions={"wssa": odd, "ensemble": odd}))).words
    assert words.count("WSSA network: outside the ages it was trained on, 20 to 82 years.") == 1
    assert words.count("WSSA network: sex is not known") == 1


def test_one_part_per_scan():
    elements = Elements(page(record(), record("ses-2")))
    assert [s["id"] for s in elements.all("section")] == [
        "scans", "scan-1", "scan-2", "methods"
    ]  # fmt: skip
    assert {"#scan-1", "#scan-2"} <= {link["href"] for link in elements.all("a")}
    assert "Session 1" in elements.words and "Session 2" in elements.words
    assert not Elements(page()).all("nav")


def test_ids_are_unique_and_links_and_labels_lead_somewhere():
    elements = Elements(page(record(), record("ses-2")))
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"][1:] for link in elements.all("a")} <= set(ids)
    assert [label["for"] for label in elements.all("label")] == [
        i["id"] for i in elements.all("input")
    ]
    names = [i["name"] for i in elements.all("input")]
    assert sorted(set(names)) == ["flicker-1", "flicker-2", "slider-1", "slider-2"]
    assert all(image["alt"] for image in elements.all("img"))


def test_figures_have_their_places_and_others_follow():
    figures = {"sub-01_ses-1": FIGURES | {"importance_map": ("<svg/>", "image/svg+xml", "A map.")}}
    elements = Elements(page(figures=figures))
    alts = [image["alt"] for image in elements.all("img")]
    assert len(alts) == 8 and alts[-1] == "A map." and "Importance map" in elements.words
    assert elements.all("img")[-1]["src"] == "data:image/svg+xml;base64,PHN2Zy8+"
    assert not Elements(page(figures={})).all("input"), "no flicker without pictures"


def test_tables_hold_what_the_record_holds():
    words = Elements(page()).words
    assert "Hippocampus 3.9 4.0 7.9 0.7" in words and "Outer CSF not known" in words
    assert "3fa9c1b23fa9" in words and "3fa9c1b23fa9c" not in words
    assert "yes (20 to 82 years)" in words and "Apache-2.0" in words and "Large lesions." in words
    assert "Bias field N4 shrink factor 2" in words and "total 11.2" in words
    assert "ef" * 32 in words and "torch 2.13.0" in words


def test_methods_and_the_sentence_on_medical_use():
    words = Elements(page()).words
    assert "not a medical device" in words and "Tustison" in words and "brainage 0.1.0" in words


def test_same_input_same_page():
    assert page() == page()
