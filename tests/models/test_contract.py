"""The card of a model: what it must hold, and that it survives being written and read."""

import dataclasses
import subprocess
import sys
import tomllib

import numpy as np
import pytest

from models.contract import ModelCard, ModelError, to_toml

CARD = """
name = "tiny"
title = "A small model"
version = "1"
summary = "For tests."
license = "MIT"
citation = "Nobody (2026)."
known_failures = ["infants"]

[contract]
template = "MNI152NLin2009aSym"
degrees_of_freedom = 12
shape = [9, 10, 11]
affine = [[-2, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]]
skull_stripped = true
bias_corrected = true
intensity = "white_matter"
ages = [20, 80]

[uncertainty]
standard_deviation = 5
interval = [-8.0, 8.5]
"""


def test_from_toml_reads_every_part():
    card = ModelCard.from_toml(CARD)
    assert card.contract.shape == (9, 10, 11)
    assert card.contract.affine[0] == (-2, 0, 0, 90)
    assert card.contract.ages == (20, 80)
    assert card.uncertainty.interval == (-8.0, 8.5)
    assert (card.output.offset, card.output.scale) == (0, 1)
    assert card.architecture == "tiny"


def test_to_toml_reads_back_equal():
    card = dataclasses.replace(
        ModelCard.from_toml(CARD),
        title='A "quoted"\ttitle\nof two lines, with a \\, a \x7f and an é',
        weights_sha256="0" * 64,
        network={"channels": [4, 8], "shared": False},
        training={"folds": {"count": 5, "seeds": [1, 2]}, "studies": [{"name": "IXI", "n": 141}]},
        figures={"mae": np.float32(4.5), "n": np.int64(141), "tiny": 1e-7, "r squared": 0.5},
    )
    again = ModelCard.from_toml(card.to_toml())
    assert again == card
    assert type(again.figures["n"]) is int


def test_to_toml_leaves_out_none_and_refuses_what_toml_cannot_hold():
    assert tomllib.loads(to_toml({"a": None, "b": 1})) == {"b": 1}
    with pytest.raises(TypeError, match="complex"):
        to_toml({"a": 1j})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "A small model"', "", "the key title is missing"),
        ("degrees_of_freedom = 12", "", "the key contract.degrees_of_freedom is missing"),
        ("degrees_of_freedom = 12", "degrees_of_freedom = 9", r"must be 6 \(rigid\), 7 .* or 12"),
        ('version = "1"', 'version = "1"\ncolour = "red"', "unknown key colour"),
        ('version = "1"', "version = 1", "version must be of type str, not int"),
        ("skull_stripped = true", 'skull_stripped = "no"', "must be of type bool, not str"),
        ("shape = [9, 10, 11]", "shape = [9, 10]", "three positive whole numbers"),
        ("[0, 0, 0, 1]]", "[0, 0, 1, 1]]", "last row 0 0 0 1"),
        ("ages = [20, 80]", "ages = [80, 20]", "a younger and an older age"),
        ("standard_deviation = 5", "standard_deviation = 0", "above 0 years"),
        ("[-8.0, 8.5]", "[8.5, -8.0]", "a lower and an upper bound"),
        ('name = "tiny"', 'name = "../tiny"', "lower-case letters and digits"),
        ('name = "tiny"', 'name = "tiny"\nweights_sha256 = "12"', "64 hexadecimal digits"),
        ("[uncertainty]", "uncertainty = 5\n[other]", "uncertainty"),
        ("[contract]", "[contract", "not a valid model card"),
    ],
)
def test_a_faulty_card_is_refused_by_one_line_that_names_file_and_fault(old, new, message):
    assert old in CARD
    with pytest.raises(ModelError, match=message) as caught:
        ModelCard.from_toml(CARD.replace(old, new), "there/card.toml")
    assert str(caught.value).startswith("there/card.toml is not a valid model card: ")
    assert "\n" not in str(caught.value)


def test_importing_models_and_listing_cards_does_not_import_torch():
    code = "import sys, models; models.known(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
