"""Training images: whatever is done to an image, its targets follow."""

import numpy as np
import pytest
from scipy import ndimage

from models.segmentation.inference import BOX
from models.segmentation.labels import HEMISPHERE_CHANNEL, OUTER_CSF, STRUCTURES
from models.training import synthesis
from models.training.synthesis import (
    SMALL_BOX,
    SURROUNDINGS,
    draw_example,
    paint_labels,
    prepare_head,
    random_contrast,
    remove_parts,
    smooth_field,
    spoil,
)

SHAPE = (80, 90, 84)
NUMBER = {structure.abbreviation: n for n, structure in enumerate(STRUCTURES)}
BRIGHTNESS = {"CSF": 0.2, "CTX": 0.6, "WM": 1.0, "HIP": 1.6}


def rng(seed):
    return np.random.default_rng(seed)


def ball(centre, radius, shape=SHAPE):
    away = np.stack(np.indices(shape), -1) - centre
    return np.linalg.norm(away, axis=-1) < radius


def muse_map():
    """Cortex around white matter; a hippocampus on the left alone, as a mark."""
    muse = np.zeros(SHAPE, np.uint8)
    muse[ball((40, 45, 46), 34)] = 1
    left = np.indices(SHAPE)[0] < 40
    for radius, pair in ((31, (101, 100)), (22, (82, 81))):
        inside = ball((40, 45, 46), radius)
        muse[inside & left], muse[inside & ~left] = pair
    muse[ball((30, 45, 40), 6)] = 48
    return muse


@pytest.fixture(scope="module")
def head():
    muse = muse_map()
    image = np.zeros(SHAPE, np.float32)
    for numbers, name in (((1,), "CSF"), ((100, 101), "CTX"), ((81, 82), "WM"), ((48,), "HIP")):
        image[np.isin(muse, numbers)] = BRIGHTNESS[name]
    image[ball((40, 45, 46), 40) & (muse == 0)] = 0.8  # scalp
    return prepare_head("sub-01", image, muse, 1)


# A head


def test_targets_and_paint_of_a_head(head):
    muse = muse_map()
    assert head.image.shape == head.paint.shape == head.structure.shape == head.left.shape == SHAPE
    np.testing.assert_array_equal(head.structure == NUMBER["HIP"], muse == 48)
    np.testing.assert_array_equal(head.structure == OUTER_CSF, muse == 1)
    assert head.left[muse == 48].all() and head.left[muse == 82].all()
    assert not head.left[muse == 100].any()
    np.testing.assert_array_equal(head.paint[muse > 0], muse[muse > 0])


def test_what_is_outside_is_painted_by_brightness():
    image = np.zeros(SHAPE, np.float32)
    for step in range(SURROUNDINGS):
        image[12 * step : 12 * step + 12] = step
    head = prepare_head("a", image, np.zeros(SHAPE, np.uint8) + (ball((76, 80, 80), 3)), 1)
    means = [image[head.paint == 208 + n].mean() for n in range(SURROUNDINGS)]
    assert means == sorted(means) and head.paint.max() == 208 + SURROUNDINGS - 1
    again = prepare_head("a", image, np.zeros(SHAPE, np.uint8) + (ball((76, 80, 80), 3)), 1)
    np.testing.assert_array_equal(head.paint, again.paint)


# Examples


@pytest.fixture
def undisturbed(monkeypatch):
    """Views alone: no contrast, no spoiling, nothing removed; painting shows the labels."""
    shade = np.zeros(256, np.float32)
    for numbers, name in (((1,), "CSF"), ((100, 101), "CTX"), ((81, 82), "WM"), ((48,), "HIP")):
        shade[list(numbers)] = BRIGHTNESS[name]
    monkeypatch.setattr(synthesis, "random_contrast", lambda image, _rng: image)
    monkeypatch.setattr(synthesis, "paint_labels", lambda paint, _rng: shade[paint])
    monkeypatch.setattr(synthesis, "spoil", lambda image, _rng: image)
    monkeypatch.setattr(synthesis, "remove_parts", lambda image, target, _rng: (image, target))
    monkeypatch.setattr(synthesis, "normalise", lambda image: image)


def test_image_and_targets_stay_together_in_every_view(head, undisturbed):
    sides = set()
    for seed in range(16):
        example = draw_example(head, rng(seed))
        image, structure, left = (
            each.numpy() for each in (example.image[0], example.structure, example.left)
        )
        assert image.shape == structure.shape == left.shape and image.shape in (BOX, SMALL_BOX)
        # intensities name the structure, up to half voxels at borders
        scale = np.median(image[structure == NUMBER["WM"]]) / BRIGHTNESS["WM"]
        for name, brightness in BRIGHTNESS.items():
            inner = ndimage.binary_erosion(structure == NUMBER[name])
            assert inner.any(), name
            assert np.abs(image[inner] / scale - brightness).mean() < 0.05, (seed, name)
        # left lies before right on an axis that runs to the right, mirrored or not
        brain = structure > OUTER_CSF
        x = np.indices(image.shape)[0]
        assert x[brain & (left == 1)].mean() + 15 < x[brain & (left == 0)].mean(), seed
        mark = left[structure == NUMBER["HIP"]]
        assert mark.min() == mark.max()
        sides.add(float(mark[0]))
    assert sides == {0.0, 1.0}  # mirrored half of the time


def test_the_same_seed_gives_the_same_example(head):
    first, again, other = (draw_example(head, rng(seed)) for seed in (3, 3, 4))
    for name in ("image", "structure", "left"):
        assert getattr(first, name).equal(getattr(again, name))
    assert first.image.shape != other.image.shape or not first.image.equal(other.image)


def test_examples_are_what_the_network_takes(head):
    for seed in range(6):
        example = draw_example(head, rng(seed))
        image = example.image
        assert image.dtype.is_floating_point and image.isfinite().all()
        assert image.min() >= 0 and image.max() <= 2 and image.std() > 0
        assert image.shape[0] == 1 and all(side % 16 == 0 for side in image.shape[1:])
        assert example.structure.min() >= 0 and example.structure.max() < HEMISPHERE_CHANNEL
        assert set(example.left.unique().tolist()) <= {0.0, 1.0}


# Contrast


def test_random_contrast_keeps_the_order_of_tissues():
    levels = np.linspace(0, 2, 200, dtype=np.float32)
    curves = [random_contrast(levels, rng(seed)) for seed in range(5)]
    for curve in curves:
        assert curve[0] == 0 and (np.diff(curve) > 0).all()
        assert np.interp(1, levels, curve) == pytest.approx(1, abs=0.02)
    assert np.ptp([curve[50] for curve in curves]) > 0.1


def test_paint_gives_every_label_a_level_of_its_own(head):
    orders = []
    for seed in range(30):
        image = paint_labels(head.paint, rng(seed))
        assert image.shape == SHAPE and image.min() >= 0 and np.isfinite(image).all()
        cores = {name: ndimage.binary_erosion(head.structure == NUMBER[name], iterations=2)
                 for name in ("CSF", "CTX", "WM")}  # fmt: skip
        fluid = ndimage.binary_erosion(head.structure == OUTER_CSF)
        levels = [image[fluid].mean(), image[cores["CTX"]].mean(), image[cores["WM"]].mean()]
        assert image[cores["WM"]].std() < 0.1
        orders.append(levels == sorted(levels))
    assert 10 < sum(orders) < 30  # T1 order half of the time, and now and then by chance


# Spoiling


def test_spoiling_moves_nothing():
    """Over many draws the brightest ball stays where it is, and values stay finite."""
    image = np.where(ball((20, 20, 20), 6, (40, 40, 40)), 1, 0.05).astype(np.float32)
    for seed in range(12):
        spoilt = spoil(image, rng(seed))
        assert spoilt.dtype == np.float32 and spoilt.min() >= 0 and np.isfinite(spoilt).all()
        bright = ndimage.gaussian_filter(spoilt, 2)
        peak = np.unravel_index(bright.argmax(), bright.shape)
        assert np.abs(np.array(peak) - 20).max() <= 5
    assert not spoil(np.zeros((8, 8, 8), np.float32), rng(1)).any()


def test_a_smooth_field_is_smooth():
    field = smooth_field((48, 40, 44), 4, rng(1))
    assert field.shape == (48, 40, 44) and 0.3 < field.std() < 1.5
    assert max(np.abs(np.diff(field, axis=axis)).max() for axis in range(3)) < 0.4


# Parts that scans lack


def test_what_is_removed_is_removed_from_image_and_target(head):
    image = head.image.astype(np.float32) + 0.1  # air is not 0, so that losses can be told
    brain = head.structure > OUTER_CSF
    lost = {"nothing": 0, "brain": 0, "outside only": 0, "skull": 0}
    for seed in range(60):
        new_image, new_structure = remove_parts(image, head.structure, rng(seed))
        gone = new_image == 0
        np.testing.assert_array_equal(new_image[~gone], image[~gone])
        np.testing.assert_array_equal(new_structure[~gone], head.structure[~gone])
        assert not new_structure[gone].any()
        lost["nothing"] += not gone.any()
        lost["brain"] += bool((gone & brain).any())
        lost["outside only"] += bool(gone.any() and not (gone & brain).any())
        lost["skull"] += bool(gone[~ndimage.binary_dilation(brain, iterations=6)].all())
        assert (gone & brain).sum() < 0.5 * brain.sum()
    assert all(times >= 5 for times in lost.values()), lost


def test_the_input_of_removal_is_left_alone(head):
    image, structure = head.image.astype(np.float32), head.structure.copy()
    for seed in range(5):
        remove_parts(image, structure, rng(seed))
    np.testing.assert_array_equal(image, head.image)
    np.testing.assert_array_equal(structure, head.structure)


def test_nothing_is_removed_where_there_is_no_brain():
    image, none = np.ones((16, 16, 16), np.float32), np.zeros((16, 16, 16), np.uint8)
    new_image, new_structure = remove_parts(image, none, rng(1))
    assert (new_image == 1).all() and not new_structure.any()
