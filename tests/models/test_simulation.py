"""Simulated brains: do they change where and by how much they are meant to?"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from models.simulation import dataset
from models.simulation.__main__ import main
from models.simulation.brain import (
    LIFESPAN_AGES,
    LIFESPAN_VOLUMES_ML,
    TEMPLATE_AGE,
    Ageing,
    Appearance,
    Regions,
    Template,
    _ventricle_core,
    acquire,
    ageing_at,
    cortex_fraction,
    csf_fraction,
    find_regions,
    flow,
    grow_old,
    lifespan_volume,
)

VALIDATOR = Path(sys.executable).parent / "bids-validator-deno"


def make_toy() -> Template:
    """A brain as a ball: two ventricles in white matter, a cortical shell, fluid around it."""
    axes = np.meshgrid(*[np.arange(-48, 49, dtype=np.float32)] * 3, indexing="ij")
    radius = np.sqrt(sum(a**2 for a in axes))
    x, y, z = axes
    ventricles = ((np.abs(x) - 11) / 4) ** 2 + ((y + 4) / 10) ** 2 + ((z - 16) / 5) ** 2 < 1
    brain = radius < 45

    def blur(mask: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(mask.astype(np.float32), 0.7) * brain

    white, gray = blur((radius < 38) & ~ventricles), blur((radius >= 38) & (radius < 43))
    t1 = np.where(brain, 0.25 + 0.4 * gray + 0.65 * white, 0).astype(np.float32)
    affine = np.eye(4)
    affine[:3, 3] = -48
    return Template(t1=t1, gray=gray, white=white, affine=affine)


@pytest.fixture(scope="module")
def toy() -> Template:
    return make_toy()


@pytest.fixture(scope="module")
def toy_regions(toy: Template) -> Regions:
    return find_regions(toy)


@pytest.fixture(scope="module")
def template() -> Template:
    return dataset.load_template()


@pytest.fixture(scope="module")
def regions(template: Template) -> Regions:
    return find_regions(template)


def ventricle_ruler(before: Template) -> Callable[[Template], float]:
    """Measure the ventricles (voxels) of what became of a brain, by its intensities alone."""
    fluid = csf_fraction(before)
    core = ndimage.binary_dilation(_ventricle_core(before, fluid), iterations=2)
    near = ndimage.distance_transform_edt(~core) < 8
    threshold = (np.median(before.t1[fluid > 0.9]) + np.median(before.t1[before.white > 0.9])) / 2

    def dark(brain: Template, where: np.ndarray) -> int:
        t1 = brain.t1[where]
        return int(((t1 > 0) & (t1 < threshold)).sum())

    elsewhere = dark(before, near & ~core)  # third ventricle and cisterns, which do not grow
    return lambda brain: float(dark(brain, near) - elsewhere)


# ---------------------------------------------------------------------- how much, at what age


@pytest.mark.parametrize("region", LIFESPAN_VOLUMES_ML)
def test_lifespan_curve_passes_through_the_published_medians(region: str) -> None:
    values = [lifespan_volume(region, age) for age in LIFESPAN_AGES]
    assert values == pytest.approx(LIFESPAN_VOLUMES_ML[region])
    slope = np.diff([lifespan_volume(region, age) for age in range(18, 91)])
    assert (slope > 0).all() if region == "ventricles" else (slope < 0).all()


def test_ages_without_a_curve_are_refused() -> None:
    with pytest.raises(ValueError, match="18 to 90"):
        ageing_at(5)


def test_template_age_asks_for_no_change() -> None:
    assert ageing_at(TEMPLATE_AGE) == Ageing(1, 1)


@pytest.mark.parametrize("factors", [(7, 1), (0.2, 1), (1, 0.3), (1, 2)])
def test_impossible_factors_are_refused(factors: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="may change by a factor"):
        Ageing(*factors)


# --------------------------------------------------------------------------- the deformation


def test_regions_of_the_toy(toy: Template, toy_regions: Regions) -> None:
    assert toy_regions.ventricles.sum() * 8 == pytest.approx(
        2 * 4 / 3 * np.pi * 4 * 10 * 5, rel=0.1
    )
    assert toy_regions.cortex.sum() * 8 == pytest.approx(cortex_fraction(toy).sum(), rel=1e-3)
    both = toy_regions.csf.sum() + toy_regions.ventricles.sum()
    assert both * 8 == pytest.approx(csf_fraction(toy).sum(), rel=1e-3)


def test_other_grids_and_brains_without_ventricles_are_refused(toy: Template) -> None:
    wide = Template(toy.t1, toy.gray, toy.white, np.diag([2.0, 2, 2, 1]))
    with pytest.raises(ValueError, match="1 mm"):
        find_regions(wide)
    solid = Template(toy.t1, toy.gray, 1 - toy.gray, toy.affine)
    with pytest.raises(ValueError, match="no lateral ventricles"):
        find_regions(solid)


@pytest.mark.parametrize("ageing", [Ageing(2.5, 0.8), Ageing(0.7, 1.1)])
def test_flow_does_not_fold(toy_regions: Regions, ageing: Ageing) -> None:
    displacement = flow(toy_regions, ageing)
    gradient = [[np.gradient(part, 2, axis=axis) for axis in range(3)] for part in displacement]
    jacobian = np.moveaxis(np.array(gradient), (0, 1), (-2, -1)) + np.eye(3)
    assert np.linalg.det(jacobian).min() > 0.05


def test_ventricles_grow_alone_and_cortex_thins_alone(toy: Template, toy_regions: Regions) -> None:
    ventricles = ventricle_ruler(toy)
    for ageing in (Ageing(ventricles=2), Ageing(cortex=0.8)):
        old = grow_old(toy, toy_regions, ageing)
        thinned = cortex_fraction(old).sum() / cortex_fraction(toy).sum()
        assert ventricles(old) / ventricles(toy) == pytest.approx(ageing.ventricles, rel=0.1)
        assert thinned == pytest.approx(ageing.cortex, rel=0.02)
        assert (old.t1 > 0).sum() == pytest.approx((toy.t1 > 0).sum(), rel=0.02)
        assert 0 <= old.t1.min() <= old.t1.max() < 1.1 * toy.t1.max()


def test_no_change_is_no_change(toy: Template, toy_regions: Regions) -> None:
    assert grow_old(toy, toy_regions, Ageing()) is toy
    assert not flow(toy_regions, Ageing()).any()


def test_cortex_recedes_from_the_outside(toy: Template, toy_regions: Regions) -> None:
    darker = toy.t1 - grow_old(toy, toy_regions, Ageing(cortex=0.75)).t1
    x, y, z = np.indices(toy.t1.shape) - 48
    radius = np.sqrt(x**2 + y**2 + z**2)
    upper = z > 10
    assert darker[(radius > 41) & (radius < 43.5) & upper].mean() > 0.05
    assert abs(darker[(radius < 30) & upper].mean()) < 0.005


@pytest.mark.integration
@pytest.mark.parametrize("age", [20, 50, 80])
def test_average_brain_follows_the_lifespan_curves(
    template: Template, regions: Regions, age: int
) -> None:
    aim = ageing_at(age)
    old = grow_old(template, regions, aim)
    ventricles = ventricle_ruler(template)
    grown = ventricles(old) / ventricles(template)
    thinned = cortex_fraction(old).sum() / cortex_fraction(template).sum()
    assert grown == pytest.approx(aim.ventricles, rel=0.1)
    assert thinned == pytest.approx(aim.cortex, rel=0.03)
    assert (old.t1 > 0).sum() == pytest.approx((template.t1 > 0).sum(), rel=0.02)


@pytest.mark.integration
def test_regions_of_the_average_brain(template: Template, regions: Regions) -> None:
    assert 12 < regions.ventricles.sum() * 8 / 1000 < 25  # ml
    half = regions.ventricles.shape[0] // 2
    left, right = regions.ventricles[:half].sum(), regions.ventricles[half:].sum()
    assert left == pytest.approx(right, rel=0.1)
    cortex = cortex_fraction(template)
    places = {"thalamus": (10, -20, 8), "putamen": (26, 4, 2), "cerebellum": (25, -65, -40)}
    for place in places.values():
        assert cortex[tuple(p + o for p, o in zip(place, (98, 134, 72)))] == 0
    for place in ((0, 38, 20), (58, -20, 6), (10, -85, 4)):  # cingulate, temporal, calcarine
        around = tuple(slice(p + o - 4, p + o + 5) for p, o in zip(place, (98, 134, 72)))
        assert cortex[around].max() > 0.8


# ----------------------------------------------------------------------------------- the scan

SCAN = Appearance(rotation=5, translation=3, scale=0.02, warp=1, bias=0.1, noise=0.03)


def test_same_seed_same_scan(toy: Template) -> None:
    first, again, other = (
        acquire(toy, SCAN, np.random.default_rng(seed))[0] for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_plain_scan_shows_the_brain_in_place(toy: Template) -> None:
    image, affine = acquire(toy, Appearance(), np.random.default_rng(1))
    start = np.round(np.linalg.inv(affine) @ toy.affine[:, 3]).astype(int)[:3]
    box = tuple(slice(s, s + n) for s, n in zip(start, toy.t1.shape))
    assert np.allclose(image[box], toy.t1, atol=1e-3)


@pytest.mark.parametrize("resolution", [1.0, 2.0, 3.0])
def test_volume_is_kept_at_any_resolution(toy: Template, resolution: float) -> None:
    appearance = Appearance(resolution=resolution, rotation=20, translation=2)
    image, affine = acquire(toy, appearance, np.random.default_rng(3))
    assert np.abs(np.diag(affine)[:3]) == pytest.approx(resolution)
    volume = (image > 0).sum() * abs(np.linalg.det(affine[:3, :3]))
    assert volume == pytest.approx((toy.t1 > 0).sum(), rel=0.02)


def test_a_smaller_head_has_less_volume_in_voxels_of_the_same_size(toy: Template) -> None:
    image, affine = acquire(toy, Appearance(resolution=1, size=0.8), np.random.default_rng(3))
    assert np.abs(np.diag(affine)[:3]) == pytest.approx(1)
    assert (image > 0).sum() == pytest.approx(0.8**3 * (toy.t1 > 0).sum(), rel=0.02)
    edges = np.concatenate([image[i] for i in (0, -1)])
    assert not edges.any()  # the whole of it is in the field of view
    border = image.copy()
    border[1:-1, 1:-1, 1:-1] = 0
    assert not border.any()


def test_noise_and_bias_have_the_strength_asked_for(toy: Template) -> None:
    deep = np.zeros(toy.t1.shape, bool)
    deep[30:67, 30:67, 20:45] = True  # white matter, where the toy is flat
    deep = np.pad(deep, 10)
    noisy, _ = acquire(toy, Appearance(noise=0.05), np.random.default_rng(1))
    white = float(np.median(toy.t1[toy.white > 0.99]))
    assert noisy[deep].std() == pytest.approx(0.05 * white, rel=0.1)
    middles = [
        acquire(toy, Appearance(resolution=3, bias=0.1), np.random.default_rng(seed))[0][
            20, 20, 14
        ]
        for seed in range(12)
    ]
    assert 0.05 < np.std(np.log(middles)) < 0.17


# ------------------------------------------------------------------------------- the data set


@pytest.fixture
def toy_template(toy: Template, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "load_template", lambda: toy)


def subjects() -> list[dataset.Subject]:
    return [
        dataset.average_brain(),
        *dataset.degrees([70, 40], resolution=3),
        *dataset.people(1, resolution=3, seed=1),
    ]


@pytest.mark.usefixtures("toy_template")
def test_dataset_is_bids_and_says_the_truth(tmp_path: Path, toy: Template) -> None:
    root = tmp_path / "bids"
    dataset.write_dataset(root, subjects(), seed=1)
    header, *rows = (line.split("\t") for line in (root / "participants.tsv").open())
    names = ["sub-average", "sub-degree0", "sub-degree1", "sub-person001"]
    assert [row[0] for row in rows] == names
    assert [float(row[header.index("age")]) for row in rows[:3]] == [TEMPLATE_AGE, 40, 70]
    for name in names:
        image = nib.load(root / name / "anat" / f"{name}_T1w.nii.gz")
        assert image.get_data_dtype() == np.int16
        assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 1
    average = nib.load(root / "sub-average" / "anat" / "sub-average_T1w.nii.gz")
    assert np.allclose(average.get_fdata() / dataset.INTENSITY, toy.t1, atol=1e-3)
    assert np.allclose(average.affine[:3], dataset.HEAD_SIZE * toy.affine[:3])

    done = subprocess.run(
        [VALIDATOR, "--json", str(root)], capture_output=True, text=True, check=False
    )
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []


@pytest.mark.usefixtures("toy_template")
def test_same_call_same_bytes(tmp_path: Path) -> None:
    few = subjects()[1:2]
    for name in ("a", "b"):
        dataset.write_dataset(tmp_path / name, few, seed=1)
    dataset.write_dataset(tmp_path / "a", few, seed=1)  # over what is there already
    first, second = (sorted((tmp_path / name).rglob("*.*")) for name in ("a", "b"))
    assert len(first) == 4
    assert [f.read_bytes() for f in first] == [f.read_bytes() for f in second]


@pytest.mark.usefixtures("toy_template")
def test_folders_that_are_not_ours_are_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    assert main([str(tmp_path), "--ages"]) == 2
    assert "holds something else" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]

    ours = tmp_path / "ours"
    assert main([str(ours), "--ages"]) == 0
    assert main([str(ours), "--ages", "40"]) == 0
    assert main([str(ours), "--ages"]) == 2
    assert "sub-degree0" in capsys.readouterr().err


def test_unknown_ages_are_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "bids"), "--ages", "120"]) == 2
    assert "18 to 90 years, not to 120" in capsys.readouterr().err
    assert not (tmp_path / "bids").exists()
