"""Morphometry: tissue comes to lie where the template has it, and none is lost or made."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from bidsapp.preprocessing.morphometry import Maps, modulated_tissue
from models.contract import TISSUES

SHAPE = (64, 72, 65)


def brain(stretch: tuple[float, float, float] = (1, 1, 1), ventricle: float = 5) -> Maps:
    """Shells of fluid, grey and white matter around a ventricle; ``TISSUES``, 0 to 1."""
    axes = [np.arange(n) - (n - 1) / 2 for n in SHAPE]
    place = np.meshgrid(*axes, indexing="ij")
    r = np.sqrt(sum((x / s) ** 2 for x, s in zip(place, stretch, strict=True)))
    shares = {
        "GM": (r < 22) & (r >= 17),
        "WM": (r < 17) & (r >= ventricle),
        "CSF": (r < ventricle) | ((r < 24) & (r >= 22)),
    }
    smooth = [ndimage.gaussian_filter(shares[name].astype(np.float32), 0.7) for name in TISSUES]
    return np.stack(smooth)


def overlap(a: NDArray, b: NDArray) -> float:
    return float(np.minimum(a, b).sum() / np.maximum(a, b).sum())


@pytest.fixture(scope="module")
def template() -> Maps:
    return brain()


@pytest.fixture(scope="module")
def person() -> Maps:
    return brain(stretch=(1.1, 0.92, 1.05), ventricle=7)


@pytest.fixture(scope="module")
def modulated(person: Maps, template: Maps) -> Maps:
    found, record = modulated_tissue(person, template, 1)
    assert found.shape == person.shape and found.dtype == np.float32
    assert record["step"] == "warp" and record["parameters"]["seed"] == 1
    low, high = record["volume_range"]
    assert 0.3 < low < 1 < high < 3
    json.dumps(record)
    return found


def test_tissue_comes_to_lie_where_the_template_has_it(
    modulated: Maps, person: Maps, template: Maps
) -> None:
    for number in range(2):  # of the grey and of the white matter
        place = modulated[number] > 0.5
        before = overlap(person[number] > 0.5, template[number] > 0.5)
        assert overlap(place, template[number] > 0.5) > before + 0.1


def test_amounts_stay_what_they_were(modulated: Maps, person: Maps) -> None:
    before, after = (maps.sum((1, 2, 3), dtype=np.float64) for maps in (person, modulated))
    np.testing.assert_allclose(after, before, rtol=0.04)


def test_a_larger_ventricle_is_more_fluid_in_the_same_place(
    modulated: Maps, template: Maps
) -> None:
    inside = np.zeros(SHAPE, bool)
    inside[26:38, 30:42, 26:39] = True
    fluid = TISSUES.index("CSF")
    assert modulated[fluid][inside].sum() > 1.3 * template[fluid][inside].sum()


def test_the_template_itself_stays_as_it_is(template: Maps) -> None:
    found, record = modulated_tissue(template, template, 1)
    np.testing.assert_allclose(found, template, atol=0.05)
    np.testing.assert_allclose(record["volume_range"], 1, atol=0.02)


def test_the_same_bits_again(modulated: Maps, person: Maps, template: Maps) -> None:
    again, _ = modulated_tissue(person, template, 1)
    np.testing.assert_array_equal(again, modulated)
