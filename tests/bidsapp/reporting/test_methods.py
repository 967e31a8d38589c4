"""The methods text says what the records say, no more, and its citations add up."""

import pytest

from bidsapp.reporting.methods import REFERENCES, citation_markdown, methods_text, stem_of

STEPS = [
    {
        "step": "segmentation",
        "tool": "models.segmentation",
        "parameters": {"skull_strip_t1w": "auto"},
    },
    {
        "step": "bias_field",
        "tool": "ANTsPy n4_bias_field_correction",
        "version": "0.6.3",
        "parameters": {"shrink_factor": 2, "iterations": [50, 30]},
        "seconds": 3.3,
    },
    {
        "step": "registration",
        "tool": "ANTsPy registration",
        "version": "0.6.3",
        "parameters": {"degrees_of_freedom": 12},
        "template": {"name": "MNI152NLin2009aSym"},
    },
]
CARD = {
    "title": "WSSA",
    "version": "1.2.0",
    "license": "Apache-2.0",
    "contract": {
        "template": "MNI152NLin2009aSym",
        "degrees_of_freedom": 12,
        "shape": [91, 109, 91],
        "intensity": "white_matter",
        "ages": [20, 82],
    },
    "training": {"participants": 141},
    "figures": {"mae": 5.9},
}


def record(number=1, steps=STEPS, **prediction):
    name = f"sub-{number:02d}"
    prediction = {"predicted_age": 41.0, "coverage": 0.9, "weights_sha256": "ab" * 32} | prediction
    return {
        "participant_id": name,
        "source": f"bids:raw:{name}/anat/{name}_T1w.nii.gz",
        "predictions": {"wssa": prediction, "ensemble": prediction},
        "steps": steps,
        "software": {"torch": "2.13.0"},
    }


def flat(methods):
    return "\n".join(
        "".join(f"[{p}]" if isinstance(p, int) else p for p in paragraph)
        for paragraph in methods.paragraphs
    )


def test_states_steps_tools_versions_and_parameters():
    text = flat(methods_text([record()], {"wssa": CARD}, "0.1.0"))
    assert "brainage 0.1.0" in text and "one T1-weighted scan of one participant" in text
    assert "n4_bias_field_correction 0.6.3" in text
    assert "(shrink factor 2; iterations 50, 30)" in text
    assert "to the template MNI152NLin2009aSym" in text and "degrees of freedom 12" in text
    assert "91 x 109 x 91 voxels" in text and "aged 20 to 82 years" in text
    assert "WSSA" in text and "version 1.2.0" in text and "abababababab" in text
    assert "Accuracy, as its card states: mae 5.9" in text
    assert "90 %" in text and "torch 2.13.0" in text
    assert "3.3" not in text, "times belong to the record"


def test_a_step_that_was_not_run_is_neither_told_nor_cited():
    without = methods_text([record(steps=STEPS[:1])], {"wssa": CARD}, "0.1.0")
    assert "non-uniformity" not in flat(without) and REFERENCES["n4"] not in without.references
    assert REFERENCES["ants"] not in without.references
    skipped = [{"step": "bias_field", "skipped": "asked for by the user"}]
    text = flat(methods_text([record(steps=skipped)], {}, "0.1.0"))
    assert "“bias field” was skipped: asked for by the user." in text


def test_a_stripped_scan_is_said_to_be_one():
    steps = [STEPS[0] | {"already_stripped": True}]
    assert "stripped of its skull before" in flat(methods_text([record(steps=steps)], {}, "1"))
    assert "stripped of" not in flat(methods_text([record()], {}, "1"))


def test_an_unknown_step_is_told_by_its_name():
    steps = [{"step": "denoising", "tool": "ANTs DenoiseImage", "parameters": {"radius": 2}}]
    methods = methods_text([record(steps=steps)], {}, "1")
    assert "Step “denoising” was run with ANTs DenoiseImage" in flat(methods)
    assert REFERENCES["ants"] in methods.references


def test_citations_are_numbered_in_order_and_complete():
    methods = methods_text([record()], {"wssa": CARD}, "0.1.0")
    cited = [
        piece for paragraph in methods.paragraphs for piece in paragraph if isinstance(piece, int)
    ]
    assert list(dict.fromkeys(cited)) == list(range(1, len(methods.references) + 1))
    assert len(set(methods.references)) == len(methods.references)
    for key in ("bids_apps", "n4", "ants", "icbm2009", "wssa", "pytorch", "unet"):
        assert REFERENCES[key] in methods.references
    assert REFERENCES["sfcn"] not in methods.references


def test_a_card_brings_its_own_citation():
    card = CARD | {"citation": "Doe J (2026). A network. Journal 1:1."}
    methods = methods_text([record()], {"wssa": card}, "0.1.0")
    assert card["citation"] in methods.references and REFERENCES["wssa"] not in methods.references


def test_numbers_in_brackets_are_not_taken_for_citations():
    steps = [{"step": "odd", "tool": "tool [7] [@n4] [@nothing]", "parameters": {}}]
    methods = methods_text([record(steps=steps)], {}, "0.1.0")
    assert "tool [7] " in flat(methods) and "[@nothing]" in flat(methods)


def test_scans_treated_apart_are_told_apart():
    other = [STEPS[0], STEPS[1] | {"parameters": {"shrink_factor": 4}}]
    text = flat(methods_text([record(1), record(2), record(3, other)], {}, "1"))
    assert "three" not in text and "3 T1-weighted scans of 3 participants" in text
    assert "iterations 50, 30) [sub-01, sub-02]." in text and "(shrink factor 4) [sub-03]." in text
    assert text.count("were segmented") == 1


def test_many_ways_are_left_to_the_records():
    steps = [[STEPS[1] | {"parameters": {"shrink_factor": n}}] for n in range(5)]
    text = flat(methods_text([record(n, s) for n, s in enumerate(steps)], {}, "1"))
    assert text.count("non-uniformity") == 1 and "shrink factor" not in text
    assert "in the record of each scan" in text


def test_a_step_run_for_each_of_two_models_is_told_twice():
    steps = [{"step": "intensity", "parameters": {"rule": rule}} for rule in ("mean", "tissue")]
    text = flat(methods_text([record(1, steps), record(2, steps)], {}, "1"))
    assert "(rule mean)." in text and "(rule tissue)." in text and "[sub-01" not in text


@pytest.mark.parametrize(
    ("prediction", "words"),
    [({"brain_age_gap": 2.0}, "not corrected"), ({"sex_assumed": True}, "both sexes")],
)
def test_remarks_only_where_they_apply(prediction, words):
    assert words in flat(methods_text([record(**prediction)], {}, "1"))
    assert words not in flat(methods_text([record()], {}, "1"))


def test_ensemble_is_told_as_it_was():
    assert "the ensemble equals that model" in flat(methods_text([record()], {}, "1"))
    two = record()
    two["predictions"]["sfcn"] = {"predicted_age": 40.0}
    text = flat(methods_text([two], {}, "1"))
    assert "combination of these models" in text and "Model sfcn" in text


def test_citation_file_before_and_after_the_scans():
    before = citation_markdown([], {"wssa": CARD, "segmentation": {"title": "U-Net"}}, "0.1.0")
    assert before.startswith("# Methods") and "U-Net segmented the brain" in before
    assert "scan" not in before.split("## References")[0].split("Brain age")[1][:60]
    after = citation_markdown([record()], {"wssa": CARD}, "0.1.0")
    assert "not a medical device" in after and "\n1. Gorgolewski" in after
    assert "None" not in after + before


def test_stem_of_a_record():
    source = "bids:raw:sub-01/ses-2/anat/sub-01_ses-2_run-1_T1w.nii.gz"
    assert stem_of({"source": source}) == "sub-01_ses-2_run-1"
    assert stem_of({"participant_id": "sub-01", "session_id": "ses-2"}) == "sub-01_ses-2"
