"""Figures: orientation, place of the cuts, colours, sizes; the same bytes every time."""

import io
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from bidsapp.reporting import figures, mosaic

ZOOMS = (2.0, 2.0, 2.0)
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    monkeypatch.setattr(mosaic, "_DPI", 40)


def mosaic_of(t1w, labels, colors=None, names=None):
    return figures.mask_mosaic(t1w, labels, ZOOMS, colors, names, columns=3)


def registration_of(template, registered):
    return figures.registration_figure(template, registered, ZOOMS, columns=3)


@pytest.fixture
def brain():
    """A ball of grey matter (1) around white matter (2), off the centre of its grid."""
    x, y, z = np.ogrid[:48, :56, :50]
    radius = np.sqrt((x - 22.0) ** 2 + (y - 30.0) ** 2 + (z - 26.0) ** 2)
    return np.where(radius < 10, 2, np.where(radius < 16, 1, 0))


@pytest.fixture
def t1w(brain):
    return np.array([10.0, 60.0, 110.0])[brain]


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def near(picture: np.ndarray, color: str, tolerance: int = 16) -> np.ndarray:
    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return (np.abs(picture - rgb) <= tolerance).all(axis=-1)


def of_hue(picture: np.ndarray, color: str) -> np.ndarray:
    """Pixels of a colour, however thin and mixed with grey."""
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)], float)
    chroma = picture - picture.mean(axis=-1, keepdims=True)
    strength = np.linalg.norm(chroma, axis=-1)
    wanted = (rgb - rgb.mean()) / np.linalg.norm(rgb - rgb.mean())
    return (strength > 20) & (chroma @ wanted > 0.85 * strength)


def panel(picture: np.ndarray, row: int, column: int, columns: int) -> np.ndarray:
    """One panel of a mosaic whose three rows are of equal height."""
    height, width = picture.shape[0] // 3, picture.shape[1] // columns
    return picture[row * height : (row + 1) * height, column * width : (column + 1) * width]


def test_mosaic_is_a_png_and_the_same_every_time(t1w, brain):
    first = mosaic_of(t1w, brain)
    assert first.startswith(b"\x89PNG") and b"tEXt" not in first and b"tIME" not in first
    assert first == mosaic_of(t1w, brain)


def test_left_is_left_and_front_is_right_in_sagittal_cuts():
    cube = np.zeros((40, 40, 40))
    cube[4:36, 4:36, 4:36] = 50
    cube[4:18, 24:36, 4:36] = 200  # left and in front
    picture = pixels(mosaic_of(cube, np.zeros(cube.shape, int)))
    axial = panel(picture, 0, 1, 3).min(axis=-1) > 150
    rows, columns = np.nonzero(axial)
    assert columns.mean() < axial.shape[1] / 2, "left must be shown on the left"
    assert rows.mean() < axial.shape[0] / 2, "front must be shown on top"
    cuts = mosaic.views(cube > 0, ZOOMS, 3, margin=0)
    sagittal = cuts[2][0]
    assert sagittal.side == "left"
    assert np.nonzero(sagittal.of(cube) > 150)[1].min() > 16, "front must be shown on the right"


def test_cuts_pass_through_the_brain(brain):
    for axis, row in zip((2, 1, 0), mosaic.views(brain > 0, ZOOMS, 7, margin=20), strict=True):
        assert len(row) == 7 and {cut.axis for cut in row} == {axis}
        assert all(cut.of(brain).any() for cut in row)
    sides = [cut.side for cut in mosaic.views(brain > 0, ZOOMS, 3, margin=0)[2]]
    assert sides == ["left", "", "right"]


def test_voxel_size_sets_the_shape_of_a_cut():
    cut = mosaic.views(np.ones((10, 20, 30), bool), (3.0, 2.0, 1.0), 1, margin=0)[0][0]
    assert cut.size == (30.0, 40.0)


def test_labels_are_shown_in_their_colours_and_named(t1w, brain):
    colors, names = {1: "#D55E00", 2: "#0072B2"}, {1: "cortex", 2: "white", 9: "absent"}
    picture = pixels(mosaic_of(t1w, brain, colors, names))
    plain = pixels(mosaic_of(t1w, brain, colors))
    assert all(near(picture, color).sum() > 40 for color in colors.values()), "no legend"
    ball = panel(plain, 0, 1, 3)
    middle, beside = (
        ball[ball.shape[0] // 2, round(share * ball.shape[1])] for share in (0.47, 0.2)
    )
    assert middle[2] > middle[0] + 20, "white matter must be tinted blue"
    assert beside[0] > beside[2] + 20, "cortex must be tinted red"
    assert of_hue(plain, figures.BRAIN_EDGE).sum() > 200
    assert picture.shape[0] > plain.shape[0], "the legend needs a strip of its own"


def test_labels_of_one_name_are_listed_once(t1w, brain):
    names = {1: "brain", 2: "brain"}
    once = mosaic_of(t1w, brain, {1: "#D55E00", 2: "#0072B2"}, names)
    named = mosaic_of(t1w, brain, {1: "#D55E00", 2: "#0072B2"}, {1: "brain"})
    assert once == named


def test_the_brain_mask_is_outlined_where_it_is_given(t1w, brain):
    colors = {1: "#0072B2", 2: "#0072B2"}
    inner = figures.mask_mosaic(t1w, brain, ZOOMS, colors, brain=brain == 2, columns=3)
    widths = [
        np.ptp(np.nonzero(of_hue(panel(pixels(png), 1, 1, 3), figures.BRAIN_EDGE))[1])
        for png in (inner, mosaic_of(t1w, brain, colors))
    ]
    # voxels from side to side: 20 inside, 32 over all, in panels of 40 and 48 voxels
    assert widths[0] / widths[1] == pytest.approx((20 / 40) / (32 / 48), rel=0.1)


def test_the_outline_alone_follows_the_mask_and_leaves_the_scan(t1w, brain):
    picture = pixels(figures.brain_mosaic(t1w, brain == 2, ZOOMS, columns=3))
    yellow = of_hue(picture, figures.BRAIN_EDGE)
    width = np.ptp(np.nonzero(panel(yellow, 1, 1, 3))[1]) / (picture.shape[1] / 3)
    assert width == pytest.approx(20 / 40, rel=0.1)  # voxels of the mask in those of a panel
    coloured = np.ptp(picture, axis=-1) > 24
    assert (coloured & ~yellow).mean() < 0.01
    none = pixels(figures.brain_mosaic(t1w, brain == 3, ZOOMS, columns=3))
    assert not of_hue(none, figures.BRAIN_EDGE).any() and none.any()


def test_without_labels_the_scan_is_shown_alone(t1w):
    picture = pixels(mosaic_of(t1w, np.zeros(t1w.shape, int)))
    assert np.ptp(picture, axis=-1).max() < 16 and picture.max() > 200


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan])
def test_a_constant_or_missing_scan_is_drawn(brain, value):
    assert mosaic_of(np.full(brain.shape, value), brain).startswith(b"\x89PNG")


def test_grids_must_agree(t1w, brain):
    with pytest.raises(ValueError, match="one 3D grid"):
        mosaic_of(t1w, brain[1:])
    with pytest.raises(ValueError, match="one 3D grid"):
        registration_of(t1w[0], t1w[0])


def test_flicker_pair_overlays_and_ignores_the_unit_of_the_scan(t1w, brain):
    template = np.where(brain > 0, t1w, 0)
    good = registration_of(template, 0.25 * template)
    assert good.registered == good.template
    moved = registration_of(template, np.roll(template, 4, axis=0))
    assert moved.template == good.template and moved.registered != good.registered
    registered, contours = pixels(moved.registered), pixels(moved.contours)
    assert registered.shape == pixels(moved.template).shape
    assert registered.shape[1] == contours.shape[1]
    for edge in (figures.BRAIN_EDGE, figures.TISSUE_EDGE):
        assert of_hue(contours, edge).sum() > 200 and not of_hue(registered, edge).any()


def test_outlines_are_the_templates(t1w, brain):
    """The scan moves below them, they stay."""
    template = np.where(brain > 0, t1w, 0)
    still = registration_of(template, 0 * template).contours
    moved = registration_of(template, np.roll(template, 6, axis=1)).contours
    for color in (figures.BRAIN_EDGE, figures.TISSUE_EDGE):
        edge = of_hue(pixels(still), color)
        edge[-20:] = False  # the legend
        assert edge.sum() > 200 and of_hue(pixels(moved), color)[edge].mean() > 0.8


def test_otsu_separates_three_classes():
    rng = np.random.default_rng(1)
    classes = [rng.normal(mean, 3, 1000) for mean in (20, 60, 110)]
    low, high = figures._otsu_thresholds(np.concatenate(classes))
    assert 30 < low < 50 and 70 < high < 100


PREDICTIONS = {
    "ensemble": {"predicted_age": 41.2, "interval": [35.0, 47.1]},
    "wssa": {"predicted_age": 55.0, "interval": [50.0, 60.0]},
}


def test_age_bars_places_ages_and_intervals_on_one_scale():
    root = ElementTree.fromstring(figures.age_bars(PREDICTIONS, 38.8))
    dots = [float(dot.get("cx")) for dot in root.iter(f"{SVG}circle")]
    bars = [
        (float(line.get("x1")), float(line.get("x2")))
        for line in root.iter(f"{SVG}line")
        if line.get("stroke-width") == "8"
    ]
    age = [float(n.get("x1")) for n in root.iter(f"{SVG}line") if n.get("stroke-dasharray")]
    per_year = (dots[1] - dots[0]) / (55.0 - 41.2)
    assert per_year > 0
    assert age == [pytest.approx(dots[0] + (38.8 - 41.2) * per_year, abs=0.3)]
    for dot, bar, prediction in zip(dots, bars, PREDICTIONS.values(), strict=True):
        for end, year in zip(bar, prediction["interval"], strict=True):
            assert end == pytest.approx(
                dot + (year - prediction["predicted_age"]) * per_year, abs=0.3
            )
    assert "41.2 (35.0 to 47.1)" in root.find(f"{SVG}title").text


def test_age_bars_without_age_or_prediction():
    svg = figures.age_bars({"wssa": {"predicted_age": None, "interval": None}}, None)
    assert "not known" in svg and "stroke-dasharray" not in svg and "None" not in svg
    ElementTree.fromstring(figures.age_bars({}, None))


def test_age_bars_shows_markup_as_text():
    svg = figures.age_bars({"a": PREDICTIONS["wssa"]}, 50.0, {"a": "<script>&\"'"})
    texts = [node.text for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert any(text.startswith("<script>&\"'") for text in texts)
    assert "<script" not in svg
