"""Figures of importance maps."""

from __future__ import annotations

import io
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from bidsapp.reporting.importance_figures import MOST, MapSection, Shade, map_figure, region_bars

SHAPE = (24, 28, 22)


def template() -> np.ndarray:
    place = np.indices(SHAPE) - np.reshape(SHAPE, (3, 1, 1, 1)) / 2
    return np.where((place**2).sum(0) < 100, 1.0, 0).astype(np.float32)


def spot(value: float) -> np.ndarray:
    values = np.zeros(SHAPE, np.float32)
    values[8:12, 12:16, 9:13] = value
    return values


def colours(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_the_map_shows_where_it_is_high() -> None:
    png = map_figure(spot(1), template(), (2, 2, 2), columns=3)
    assert png == map_figure(spot(1), template(), (2, 2, 2), columns=3)
    blank = colours(map_figure(np.zeros(SHAPE, np.float32), template(), (2, 2, 2), columns=3))
    picture = colours(png)
    assert picture.shape[1] == 1400
    coloured = (np.ptp(picture, axis=2) > 60).mean()
    assert 0.002 < coloured < 0.2 and coloured > (np.ptp(blank, axis=2) > 60).mean()


def test_older_is_orange_and_younger_blue() -> None:
    values = spot(5) - spot(10)[::-1]
    shade = Shade.of(values, template() > 0, "years")
    older, younger = shade(np.array([5.0, -10.0]))
    assert older[0] > older[2] and younger[2] > younger[0]
    assert [text[0] for text, _ in shade.legend] == ["+", "+", "-", "-"]
    assert all(text.endswith(" years") for text, _ in shade.legend)
    assert shade(np.array(0.0))[3] == 0


def test_another_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="a map of"):
        map_figure(spot(1)[1:], template(), (2, 2, 2))


def rows(number: int, **changes: Any) -> list[dict[str, Any]]:
    return [{"region": f"A & {n}", "hemisphere": "LR"[n % 2], "mean_importance": 1.0 / (n + 1),
             "importance_low": 0.1, "importance_high": 1.2, **changes}
            for n in range(number)]  # fmt: skip


def test_bars_name_the_first_regions() -> None:
    svg = region_bars(rows(20), "years")
    root = ElementTree.fromstring(svg)
    said = "".join(root.itertext())
    assert "A & 0 left" in said and "A & 1 right" in said and "years" in said
    assert f"A & {MOST - 1}" in said and f"A & {MOST} " not in said
    assert region_bars(rows(2, importance_low=None, importance_high=None, mean_importance=-1.0))
    assert region_bars([])


def test_a_section_carries_its_pictures() -> None:
    section = MapSection("Noise", ["What it is."], b"png", "<svg/>")
    assert section.picture_uri.startswith("data:image/png;base64,")
    assert section.bars_uri.startswith("data:image/svg+xml;base64,")
