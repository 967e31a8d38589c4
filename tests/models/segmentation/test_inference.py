"""From a head at 2 mm to structures: scale, mirror, look twice."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from models.segmentation import inference
from models.segmentation.inference import brain_mask, intracranial_mask, normalise, segment
from models.segmentation.labels import HEMISPHERE_CHANNEL, OUTER_CSF, STRUCTURES
from models.segmentation.network import SegmentationUNet

CHANNELS = HEMISPHERE_CHANNEL + 1
WHITE = [structure.abbreviation for structure in STRUCTURES].index("WM")
RNG = np.random.default_rng(1)
BOX = (48, 56, 32)


@pytest.fixture(autouse=True)
def small_box(monkeypatch):
    """The real one takes a second for each network and head."""
    monkeypatch.setattr(inference, "BOX", BOX)


class Bright(nn.Module):
    """White matter where it is bright; left where the first half of x is."""

    multiple = 16

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, image):
        assert all(side % self.multiple == 0 for side in image.shape[2:])
        self.seen.append(tuple(image.shape))
        logits = torch.full((1, CHANNELS, *image.shape[2:]), -30.0)
        logits[:, WHITE] = 20 * (image[:, 0] - 0.5)
        logits[:, 0] = -logits[:, WHITE]
        logits[:, -1] = torch.linspace(9, -9, image.shape[2])[:, None, None]
        return logits


def ball(shape, centre, radius):
    away = np.stack(np.indices(shape), -1) - centre
    return np.linalg.norm(away, axis=-1) < radius


def tiny_network():
    torch.manual_seed(0)
    return SegmentationUNet(CHANNELS, (8, 16)).eval()


# Intensities


def test_scale_does_not_depend_on_the_unit():
    image = RNG.random((20, 20, 20)).astype(np.float32)
    np.testing.assert_allclose(normalise(image * 4000), normalise(image), rtol=1e-5)
    assert normalise(image).dtype == np.float32


def test_air_around_a_head_hardly_changes_its_scale():
    head = RNG.uniform(0.3, 1, (40, 40, 40)).astype(np.float32)
    head[:, :, :8] = 0
    scales = [
        (normalise(np.pad(head, air))[air:, air:, air:][20, 20, 20] / head[20, 20, 20])
        for air in (0, 5, 20)
    ]
    np.testing.assert_allclose(scales, scales[0], rtol=0.03)


def test_bright_spots_are_clipped_and_negatives_are_air():
    image = RNG.uniform(0.5, 1, (30, 30, 30)).astype(np.float32)
    image[0, 0, 0], image[0, 0, 1] = 1000, -1000
    scaled = normalise(image)
    assert scaled[0, 0, 0] == 2 and scaled[0, 0, 1] == 0
    assert np.percentile(scaled, 99) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("value", [0, 5])
def test_an_image_of_one_value_stays_finite(value):
    assert np.isfinite(normalise(np.full((8, 8, 8), value, np.float32))).all()


# Two looks


@pytest.mark.parametrize("shape", [(33, 40, 17), (48, 48, 48), (66, 60, 50)])
def test_any_shape_is_padded_and_cut_back(shape):
    image = ball(shape, np.array(shape) / 2, 7).astype(np.float32)
    network = Bright()
    found = segment(network, image)
    assert found.shape == (CHANNELS, *shape) and found.dtype == np.float32
    np.testing.assert_array_equal(found[WHITE] > 0.5, image > 0)
    np.testing.assert_allclose(found[:-1].sum(0), 1, atol=1e-5)
    assert found.min() >= 0 and found.max() <= 1 + 1e-6
    boxed = tuple(min(n, box) for n, box in zip(shape, BOX))
    first, last = (tuple(n + -n % 16 for n in sides) for sides in (shape, boxed))
    assert network.seen[0] == (1, 1, *first) and network.seen[-1] == (1, 1, *last)


def test_the_second_look_is_centred_on_the_brain_and_the_rest_is_background():
    shape, centre = (100, 100, 100), (65, 45, 70)
    image = ball(shape, centre, 18).astype(np.float32)
    image[2:5, 2:5, 2:5] = 1  # an island that the first look takes for brain
    found = segment(Bright(), image)
    inside = np.zeros(shape, bool)
    inside[tuple(slice(c - b // 2, c - b // 2 + b) for c, b in zip(centre, BOX))] = True
    np.testing.assert_array_equal(found[WHITE] > 0.5, (image > 0) & inside)
    assert (found[0][~inside] == 1).all() and not found[1:, ~inside].any()


def test_a_brain_at_the_edge_is_not_lost():
    image = ball((60, 60, 60), (3, 30, 58), 14).astype(np.float32)
    np.testing.assert_array_equal(segment(Bright(), image)[WHITE] > 0.5, image > 0)


def test_the_second_look_has_its_own_scale():
    """What is bright outside the box must not set the scale inside it."""
    image = 0.7 * ball((100, 56, 32), (24, 28, 16), 14).astype(np.float32)
    image[60:90, 10:40] = 0.35
    image[95] = 1.2
    seen = []

    class Watching(Bright):
        def forward(self, volume):
            seen.append(float(volume[0, 0, 24, 28, 16]))  # which is the middle of the box too
            return super().forward(volume)

    segment(Watching(), image)
    assert seen[0] < 0.6 and seen[1:] == pytest.approx([1] * len(seen[1:]))


def test_nothing_found_is_returned_as_it_is():
    found = segment(Bright(), np.zeros((32, 32, 32), np.float32))
    assert not (found[2:HEMISPHERE_CHANNEL] > 0.5).any()
    assert not brain_mask(found).any()


# Mirror images


def test_a_mirrored_head_gives_the_mirrored_answer(monkeypatch):
    """Structures are mirrored; left and right change places."""
    monkeypatch.setattr(inference, "BOX", (96, 96, 96))
    image, network = RNG.random((32, 48, 16)).astype(np.float32), tiny_network()
    direct, mirrored = (segment(network, np.ascontiguousarray(i)) for i in (image, image[::-1]))
    np.testing.assert_allclose(mirrored[:-1, ::-1], direct[:-1], atol=1e-5)
    np.testing.assert_allclose(1 - mirrored[-1, ::-1], direct[-1], atol=1e-5)
    # which is no matter of course
    with torch.inference_mode():
        one, other = (
            network(torch.from_numpy(i.copy())[None, None]) for i in (image, image[::-1])
        )
    assert (one.flip(2) - other).abs().max() > 0.01


def test_left_is_the_first_half_of_x():
    found = segment(Bright(), ball((48, 56, 32), (24, 28, 16), 14).astype(np.float32))
    assert (found[-1, :23] > 0.5).all() and (found[-1, 25:] < 0.5).all()


def test_the_same_head_gives_the_same_bits():
    image, network = RNG.random((48, 48, 48)).astype(np.float32), tiny_network()
    np.testing.assert_array_equal(segment(network, image), segment(network, image))


# Brain mask


def structures(labels):
    """Probabilities that are sure of a label image."""
    return np.stack([(labels == n).astype(np.float32) for n in range(CHANNELS)])


def test_the_mask_is_the_largest_piece_without_fluid_and_without_holes():
    shape = (40, 40, 40)
    labels = np.zeros(shape, np.uint8)
    labels[ball(shape, (20, 20, 20), 14)] = OUTER_CSF
    labels[ball(shape, (20, 20, 20), 12)] = WHITE
    labels[ball(shape, (20, 20, 20), 2)] = 0  # a hole
    labels[2:5, 2:5, 2:5] = WHITE  # an island
    mask = brain_mask(structures(labels))
    np.testing.assert_array_equal(mask, ball(shape, (20, 20, 20), 12))
    assert ndimage.label(mask)[1] == 1


def test_a_mask_of_nothing():
    assert not brain_mask(structures(np.full((8, 8, 8), OUTER_CSF))).any()


def test_the_skull_encloses_the_brain_and_the_fluid_that_touches_it():
    shape = (40, 40, 40)
    labels = np.zeros(shape, np.uint8)
    labels[ball(shape, (20, 20, 20), 14)] = OUTER_CSF
    labels[ball(shape, (20, 20, 20), 12)] = WHITE
    labels[20, 20, 32] = 0  # a hole in the fluid
    labels[2:5, 2:5, 2:5] = OUTER_CSF  # an eye
    found = structures(labels)
    enclosed = intracranial_mask(found, brain_mask(found))
    np.testing.assert_array_equal(enclosed, ball(shape, (20, 20, 20), 14))
