"""The label scheme and how MUSE maps become it."""

import numpy as np
import pytest

from models.segmentation import labels
from models.segmentation.labels import (
    HEMISPHERE_CHANNEL,
    LABELS,
    OUTER_CSF,
    STRUCTURES,
    indices,
    join_hemispheres,
    left_from_muse,
    structures_from_muse,
)

MUSE = sorted(number for structure in STRUCTURES for number in structure.muse)
NUMBER = {structure.abbreviation: n for n, structure in enumerate(STRUCTURES)}


def test_labels_are_numbered_without_gaps_and_told_apart():
    assert [label.index for label in LABELS] == list(range(1, 20))
    for attribute in ("name", "abbreviation"):
        assert len({getattr(label, attribute) for label in LABELS}) == len(LABELS)
    assert all(len(label.color) == 7 and int(label.color[1:], 16) >= 0 for label in LABELS)
    assert len({label.color for label in LABELS}) == len(LABELS)
    assert {label.hemisphere for label in LABELS} == {"", "L", "R"}
    assert {label.tissue for label in LABELS} == {"CSF", "GM", "WM", "ventricle"}


def test_no_muse_number_belongs_to_two_structures():
    assert len(MUSE) == len(set(MUSE)) and max(MUSE) < 208
    assert STRUCTURES[0].muse == (0,) and STRUCTURES[OUTER_CSF].abbreviation == "CSF"
    assert len(STRUCTURES) == HEMISPHERE_CHANNEL == 12


@pytest.mark.parametrize(
    ("muse", "name"),
    [
        (1, "CSF"), (4, "V34"), (11, "V34"), (31, "AMY"), (32, "AMY"), (35, "BS"), (47, "HIP"),
        (48, "HIP"), (51, "LV"), (52, "LV"), (59, "DGM"), (38, "CBC"), (41, "CBW"), (82, "WM"),
        (100, "CTX"), (207, "CTX"), (0, "BG"),
    ],
)  # fmt: skip
def test_well_known_numbers(muse, name):
    assert structures_from_muse(np.full((2, 2, 2), muse))[0, 0, 0] == NUMBER[name]


@pytest.mark.parametrize("number", [99, 210, 255, 300, 256 + 4, -1])
def test_a_number_that_no_structure_claims_is_refused(number):
    with pytest.raises(ValueError, match=rf"\[{number}\] belong to no structure"):
        structures_from_muse(np.array([[[0, 1, number]]]))


def test_structure_and_side_make_the_label():
    numbers = np.arange(HEMISPHERE_CHANNEL)
    right, left = (join_hemispheres(numbers, np.full(12, side)) for side in (False, True))
    assert right[0] == left[0] == 0
    by_index = {label.index: label for label in LABELS}
    for number, structure in enumerate(STRUCTURES[1:], start=1):
        pair = by_index[int(right[number])], by_index[int(left[number])]
        expected = ["R", "L"] if structure.sided else ["", ""]
        assert [label.hemisphere for label in pair] == expected
        for label in pair:
            assert label.abbreviation.split("-")[-1] == structure.abbreviation
            assert label.tissue == structure.tissue
    assert {*right, *left} == set(range(20))  # every label can occur
    volume = np.zeros((3, 4, 5), np.int64)
    assert join_hemispheres(volume, volume == 0).shape == volume.shape


def test_indices_of_tissues_and_structures():
    assert indices() == tuple(range(1, 20))
    assert indices(tissue="CSF") == (OUTER_CSF,)
    assert len(indices(structure="LV")) == 2 and len(indices(structure="BS")) == 1
    assert set(indices("ventricle")) == {*indices(structure="LV"), *indices(structure="V34")}
    assert indices("GM", "WM") == () == indices(structure="nothing")
    groups = [indices(tissue) for tissue in ("CSF", "GM", "WM", "ventricle")]
    assert sorted(sum(groups, ())) == list(range(1, 20))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (32, 31), (48, 47), (52, 51), (50, 49), (60, 59), (39, 38), (82, 81), (30, 23),
        (101, 100), (207, 206),
    ],
)  # fmt: skip
def test_sides_of_muse_numbers(left, right):
    """As published for MUSE: of a pair in the cortex the even number lies on the right."""
    muse = np.zeros((6, 4, 4), np.uint8)
    muse[:2], muse[4:] = left, right
    assert structures_from_muse(muse)[0, 0, 0] == structures_from_muse(muse)[5, 0, 0]
    side = left_from_muse(muse)
    assert side[:2].all() and not side[4:].any()
    assert not left_from_muse(muse[::-1])[:2].any()
    assert side[2].all() and not side[3].any()  # what has no side takes the nearest


def test_every_sided_structure_has_all_its_numbers_on_one_side_or_the_other():
    """A number that is on neither list would take the side of its neighbours."""
    neither = []
    for structure in STRUCTURES:
        for number in structure.muse if structure.sided else ():
            beside = [left_from_muse(np.array([[[number, other]]]))[0, 0, 0] for other in (48, 47)]
            if beside[0] != beside[1]:
                neither.append(number)
    assert set(neither) <= {69, 95, 71, 72, 73}  # chiasm, corpus callosum, vermis: in the middle
    assert labels.left_from_muse(np.array([[[32]]]))[0, 0, 0]
