"""Intensity rules: the scan's own tissues set the scale."""

import numpy as np
import pytest

from models import intensity, known
from models.contract import InputContract, ModelError
from models.intensity import GREY, HIGHEST, RULES, WHITE, scale

LEVELS = {"cortex": 300.0, "white_matter": 500.0}
IMAGE = np.array([0, 150, 300, 400, 500, 600, 5000], np.float32).reshape(1, 1, 7)


@pytest.mark.parametrize("rule", RULES)
def test_the_unit_of_the_scan_does_not_matter(rule):
    louder = {name: 7 * level for name, level in LEVELS.items()}
    np.testing.assert_allclose(scale(7 * IMAGE, louder, rule), scale(IMAGE, LEVELS, rule), 1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_shape_type_and_background(rule):
    found = scale(IMAGE, LEVELS, rule)
    assert found.shape == IMAGE.shape and found.dtype == np.float32
    dark, rises = (1.3, -1) if rule == "fluid_bright" else (0, 1)
    assert found[0, 0, 0] == np.float32(dark)
    assert (rises * np.diff(found[0, 0, :6]) > 0).all()


def test_tissue_puts_both_tissues_at_their_levels():
    found = scale(IMAGE, LEVELS, "tissue")[0, 0]
    np.testing.assert_allclose(
        found, [0, GREY / 2, GREY, (GREY + WHITE) / 2, WHITE, 1.2, HIGHEST], atol=1e-6
    )


def test_tissue_takes_the_contrast_of_the_scanner_out():
    """Two scanners, one of which shows cortex darker."""
    (weak, levels), (strong, others) = (
        (np.float32([[[0, grey, 300, 300 + (300 - grey) / 2]]]),
         {"cortex": grey, "white_matter": 300}) for grey in (200, 100)
    )  # fmt: skip
    weak, strong = scale(weak, levels, "tissue"), scale(strong, others, "tissue")
    np.testing.assert_allclose(weak, strong, atol=1e-6)


@pytest.mark.parametrize("cortex", [500.0, 800.0, 0.0, -3.0])
def test_out_of_t1_order_only_the_white_matter_is_anchored(cortex):
    levels = {"cortex": cortex, "white_matter": 500.0}
    found = scale(IMAGE, levels, "tissue")
    np.testing.assert_array_equal(found, scale(IMAGE, levels, "white_matter"))
    assert np.isfinite(found).all()


def test_white_matter_is_one_and_the_top_is_clipped():
    found = scale(IMAGE, LEVELS, "white_matter")[0, 0]
    np.testing.assert_allclose(found, [0, 0.3, 0.6, 0.8, 1, 1.2, HIGHEST], rtol=1e-6)


def test_a_tissue_map_tells_tissues_and_outside_apart_and_sees_no_intensity():
    shares = np.zeros((3, 1, 1, 6), np.float32)
    shares[0, 0, 0] = [1, 0, 0, 0, 0.5, 0]
    shares[1, 0, 0] = [0, 1, 0, 0, 0.5, 0]
    shares[2, 0, 0] = [0, 0, 1, 0, 0.0, 0.4]
    image, mask = np.zeros((1, 1, 6), np.float32), np.zeros((1, 1, 6), bool)
    seen, shown = intensity.view(image, mask, shares, LEVELS, "tissue_map")
    np.testing.assert_allclose(seen[0, 0], [1, 0, 0.4, 0.6, 0.5, 0.52], atol=1e-6)
    assert shown[0, 0].tolist() == [True, True, True, False, True, False]
    again, _ = intensity.view(image + 7, ~mask, shares, {}, "tissue_map")
    np.testing.assert_array_equal(seen, again)


def test_other_rules_see_the_scan_in_its_mask():
    mask = IMAGE > 0
    seen, shown = intensity.view(IMAGE, mask, np.zeros((3, 1, 1, 7)), LEVELS, "white_matter")
    np.testing.assert_array_equal(seen, scale(IMAGE, LEVELS, "white_matter"))
    assert shown is mask


def test_mean_is_that_of_the_whole_grid_of_which_the_network_sees_a_crop():
    """The crop [11:171, 13:205, 11:171] of 182 x 218 x 182 voxels; outside it there is air."""
    whole = np.zeros((182, 218, 182), np.float32)
    whole[40:140, 40:170, 30:140] = np.random.default_rng(1).random((100, 130, 110))
    crop = (slice(11, 171), slice(13, 205), slice(11, 171))
    found = scale(whole[crop], LEVELS, "mean")
    np.testing.assert_allclose(found, (whole / whole.mean())[crop], rtol=1e-4)


def test_an_unknown_rule_is_named_with_those_that_exist():
    with pytest.raises(ModelError, match="'zscore'.*tissue, white_matter, fluid_bright, mean"):
        scale(IMAGE, LEVELS, "zscore")


def test_every_model_that_is_known_asks_for_a_rule_that_exists():
    for card in known().values():
        if isinstance(card.contract, InputContract):
            assert card.contract.intensity in (*intensity.RULES, intensity.TISSUE_MAP)
