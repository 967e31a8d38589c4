from __future__ import annotations

import numpy as np
import pytest
import torch

from models.intensity import OUTSIDE
from models.training.augmentation import augment, augment_tissues, bounding_box, random_curve
from models.training.options import AUGMENTATIONS, AugmentationOptions

NONE = AugmentationOptions.none()
SEEDS = range(12)


@pytest.fixture
def image() -> torch.Tensor:
    """A lopsided brain: white 1 with a grey half."""
    volume = torch.zeros(24, 28, 24)
    volume[4:18, 5:22, 6:19] = 1.0
    volume[4:8, 5:22, 6:19] = 0.6
    return volume


def only(name: str) -> AugmentationOptions:
    return NONE.without() if name == "" else AugmentationOptions(**{
        each: each == name for each in AUGMENTATIONS
    })  # fmt: skip


def views(image: torch.Tensor, options: AugmentationOptions) -> list[torch.Tensor]:
    return [augment(image, options, np.random.default_rng(seed)) for seed in SEEDS]


def test_none_leaves_the_image(image: torch.Tensor) -> None:
    assert torch.equal(augment(image, NONE, np.random.default_rng(1)), image)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_each_can_be_switched_on_alone(name: str, image: torch.Tensor) -> None:
    before = image.clone()
    assert any(not torch.equal(view, image) for view in views(image, only(name)))
    assert torch.equal(image, before)


def test_flip_mirrors_about_the_middle_of_the_grid(image: torch.Tensor) -> None:
    assert all(
        torch.equal(view, image) or torch.equal(view, image.flip(0))
        for view in views(image, only("flip"))
    )


def test_translation_moves_by_two_voxels_at_most(image: torch.Tensor) -> None:
    allowed = [
        image.roll((x, y, z), (0, 1, 2))
        for x in range(-2, 3) for y in range(-2, 3) for z in range(-2, 3)
    ]  # fmt: skip
    for view in views(image, only("translation")):
        assert any(torch.equal(view, each) for each in allowed)


def test_a_brain_at_the_edge_may_leave_the_grid() -> None:
    full = torch.ones(6, 6, 6)
    for view in views(full, only("translation")):
        assert view.shape == full.shape


def test_affine_keeps_intensities_and_roughly_the_volume(image: torch.Tensor) -> None:
    for view in views(image, only("affine")):
        inside = view[view > 0]
        assert inside.min() > 0.59 and inside.max() < 1.01
        assert len(inside) == pytest.approx(int((image > 0).sum()), rel=0.25)


@pytest.mark.parametrize("name", ["curve", "bias", "noise", "blur", "erosion"])
def test_nothing_appears_outside_the_brain(name: str, image: torch.Tensor) -> None:
    for view in views(image, only(name)):
        assert (view[image == 0] == 0).all()
        assert view.min() >= 0 and view.max() <= 1.5


def test_erosion_takes_the_rim_alone(image: torch.Tensor) -> None:
    inner = torch.zeros_like(image, dtype=torch.bool)
    inner[5:17, 6:21, 7:18] = True
    for view in views(image, only("erosion")):
        assert torch.equal(view[inner], image[inner])


def test_curve_is_monotone_and_keeps_white_matter() -> None:
    ramp = torch.linspace(0, 1.5, 301).view(1, 1, -1)
    for seed in SEEDS:
        curve = random_curve(ramp, np.random.default_rng(seed)).flatten()
        assert (curve.diff() >= 0).all()
        assert curve[0] == 0
        assert curve[200].item() == pytest.approx(1, abs=0.01)


def test_the_generator_decides(image: torch.Tensor) -> None:
    one, same, other = (
        augment(image, AugmentationOptions(), np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_bounding_box(image: torch.Tensor) -> None:
    assert bounding_box(image) == (slice(4, 18), slice(5, 22), slice(6, 19))
    assert bounding_box(image, 5) == (slice(0, 23), slice(0, 27), slice(1, 24))
    assert bounding_box(torch.zeros(3, 4, 5)) == (slice(0, 3), slice(0, 4), slice(0, 5))


@pytest.fixture
def tissues() -> tuple[torch.Tensor, torch.Tensor]:
    """A tissue map of a lopsided brain in fluid, and the same stripped tightly."""
    image = torch.full((24, 28, 24), OUTSIDE)
    image[3:19, 4:23, 5:20] = 0.4
    image[4:18, 5:22, 6:19] = 0.0
    image[4:8, 5:22, 6:19] = 1.0
    stripped = torch.where(image == 0.4, OUTSIDE, image)
    return image.half(), stripped.half()


def tissue_views(
    tissues: tuple[torch.Tensor, torch.Tensor], options: AugmentationOptions
) -> list[torch.Tensor]:
    return [augment_tissues(*tissues, options, np.random.default_rng(seed)) for seed in SEEDS]


def test_a_tissue_map_is_left_alone_without_augmentation(
    tissues: tuple[torch.Tensor, torch.Tensor],
) -> None:
    for view in tissue_views(tissues, NONE):
        assert torch.allclose(view, tissues[0].float(), atol=1e-3)


@pytest.mark.parametrize("name", ["", "flip", "affine", "translation", "erosion"])
def test_maps_of_several_tissues_move_together(
    tissues: tuple[torch.Tensor, torch.Tensor], name: str
) -> None:
    """One brain is moved, and not each of its tissues; outside of it there is nothing."""
    whole, stripped = (torch.stack([each, 2 * each, 0 * each]) for each in tissues)
    views = tissue_views((whole, stripped), only(name))
    for view in views:
        assert view.shape == whole.shape and not view[2].any()
        torch.testing.assert_close(view[1], 2 * view[0])
    moved = sum(not torch.allclose(view, whole.float(), atol=1e-3) for view in views)
    assert (moved == 0) is (name == "")


def test_erosion_of_a_tissue_map_strips_it(tissues: tuple[torch.Tensor, torch.Tensor]) -> None:
    found = tissue_views(tissues, only("erosion"))
    bare = [torch.allclose(view, tissues[1].float(), atol=1e-3) for view in found]
    assert 3 <= sum(bare) <= 9
    assert all(
        b or torch.allclose(view, tissues[0].float(), atol=1e-3) for b, view in zip(bare, found)
    )


@pytest.mark.parametrize("name", ["flip", "affine", "translation"])
def test_a_tissue_map_is_moved_and_stays_one(
    name: str, tissues: tuple[torch.Tensor, torch.Tensor]
) -> None:
    found = tissue_views(tissues, only(name))
    assert any(not torch.allclose(view, tissues[0].float(), atol=1e-3) for view in found)
    for view in found:
        assert view.shape == tissues[0].shape
        corners = view[0, 0, 0].item(), view[-1, -1, -1].item()  # nothing comes in at the edge
        assert corners == pytest.approx((OUTSIDE, OUTSIDE), abs=1e-3)
        assert view.min() > -1e-3 and view.max() < 1 + 1e-3
        assert view.sum() == pytest.approx(float(tissues[0].float().sum()), rel=0.02)
    same = tissue_views(tissues, only(name))
    assert all(torch.equal(a, b) for a, b in zip(found, same))
