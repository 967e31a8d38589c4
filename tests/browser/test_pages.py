"""The reports in a real browser: quiet, closed, usable by mouse and keys, and looking right."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

PHONE, DESKTOP = 390, 1280
PAGES = ("sub-000000", "sub-000003", "group")
STORED = Path(__file__).parent / "screenshots"
SHRUNK = 4
"""Screenshots are compared at a fraction of their size: the edges of letters do not count."""


def picture(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(float)


# --- closed and quiet ---


@pytest.mark.parametrize("name", PAGES)
def test_no_message_and_no_request(name: str, site: Path, visit: Callable[..., Any]) -> None:
    with visit(site / f"{name}.html") as watched:
        watched.page.wait_for_load_state("networkidle")
        assert watched.messages == [] and watched.requests == []
    assert (site / f"{name}.html").stat().st_size < 3e6


def test_a_request_would_be_seen(tmp_path: Path, visit: Callable[..., Any]) -> None:
    path = tmp_path / "page.html"
    path.write_text('<img src="https://example.org/x.png"><script>undefined.x</script>')
    with visit(path) as watched:
        watched.page.wait_for_load_state("networkidle")
        assert watched.requests == ["https://example.org/x.png"]
        assert any("undefined" in message for message in watched.messages)


@pytest.mark.parametrize("name", ["sub-000003", "group"])
def test_markup_in_labels_and_cells_is_text(
    name: str, site: Path, visit: Callable[..., Any]
) -> None:
    with visit(site / f"{name}.html") as watched:
        assert "<img src=x onerror=alert(1)>" in watched.page.inner_text("body")
        assert watched.page.locator("b, img[src=x]").count() == 0
        assert watched.messages == []


# --- the slider, the flicker ---


def test_the_slider_shows_the_template_on_the_left_of_every_cut(
    site: Path, visit: Callable[..., Any]
) -> None:
    with visit(site / "sub-000000.html") as watched:
        viewer = watched.page.locator(".flicker").first
        slider, stack = viewer.locator("input[type=range]"), viewer.locator(".stack")

        def seen(key: str, times: int = 1) -> np.ndarray:
            slider.focus()
            for _ in range(times):
                watched.page.keyboard.press(key)
            return picture(stack.screenshot())

        scan, template = seen("Home"), seen("End")
        assert viewer.locator("input[type=radio]").nth(1).is_checked()
        assert np.abs(scan - template).mean() > 2
        seen("Home")
        half = seen("ArrowRight", 50)
        assert slider.get_attribute("aria-valuetext") == "50 % template"
    width = half.shape[1] / 5
    for cut in range(5):
        left = slice(int(cut * width) + 2, int((cut + 0.5) * width) - 3)
        right = slice(int((cut + 0.5) * width) + 3, int((cut + 1) * width) - 2)
        for part, like, unlike in ((left, template, scan), (right, scan, template)):
            assert np.abs(half - like)[:, part].mean() < 0.5
            assert np.abs(half - unlike)[:, part].mean() > 1


def test_the_keyboard_swaps_scan_and_template(site: Path, visit: Callable[..., Any]) -> None:
    with visit(site / "sub-000000.html") as watched:
        viewer = watched.page.locator(".flicker").first
        before = picture(viewer.locator(".stack").screenshot())
        viewer.locator("input[type=radio]").first.focus()
        watched.page.keyboard.press("ArrowRight")
        assert viewer.locator("input[type=range]").input_value() == "100"
        assert np.abs(picture(viewer.locator(".stack").screenshot()) - before).mean() > 2


def test_alternating_starts_and_stops(site: Path, visit: Callable[..., Any]) -> None:
    with visit(site / "sub-000000.html") as watched:
        viewer = watched.page.locator(".flicker").first
        button, second = viewer.locator("button"), viewer.locator("input[type=radio]").nth(1)
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        for shown in ("", "!"):  # watched from inside: a look from here may come too late
            watched.page.wait_for_function(
                f"() => {shown}document.querySelector('.flicker .second').checked"
            )
        viewer.locator("label").first.click()  # that of the picture which is shown
        assert button.get_attribute("aria-pressed") == "false"
        watched.page.wait_for_timeout(1600)
        assert not second.is_checked(), "choosing a picture stops it"
    with visit(site / "sub-000000.html", reduced_motion="reduce") as watched:
        assert not watched.page.locator(".flicker button").first.is_visible()


def test_without_scripts_the_pictures_can_be_swapped(
    site: Path, visit: Callable[..., Any]
) -> None:
    with visit(site / "sub-000000.html", java_script_enabled=False) as watched:
        viewer = watched.page.locator(".flicker").first
        assert not viewer.locator("input[type=range]").is_visible()
        before = picture(viewer.locator(".stack").screenshot())
        viewer.locator("> label").nth(1).click()
        assert np.abs(picture(viewer.locator(".stack").screenshot()) - before).mean() > 2


# --- the group ---


def column(page: Any, heading: str) -> list[str]:
    """Texts of the cells that are shown below a heading of the table of participants."""
    headings = page.locator("#table-participants thead th").all_inner_texts()
    place = [text.strip() for text in headings].index(heading) + 1
    return page.locator(  # type: ignore[no-any-return]
        f"#table-participants tbody tr:not([hidden]) td:nth-child({place})"
    ).all_inner_texts()


def numbers(texts: list[str]) -> list[float]:
    return [float(text.replace("\N{MINUS SIGN}", "-")) for text in texts if text != "n/a"]


def test_sorting_by_mouse_and_by_key(site: Path, visit: Callable[..., Any]) -> None:
    with visit(site / "group.html") as watched:
        heading = watched.page.locator("#table-participants th", has_text="Corrected gap")
        before = numbers(column(watched.page, "Corrected gap"))
        heading.locator("button").click()
        rising = numbers(column(watched.page, "Corrected gap"))
        assert heading.get_attribute("aria-sort") == "ascending"
        assert rising == sorted(before) != before
        heading.locator("button").focus()
        watched.page.keyboard.press("Enter")
        assert numbers(column(watched.page, "Corrected gap")) == rising[::-1]
        assert column(watched.page, "Corrected gap")[-1] == "n/a", "what is not known comes last"


def test_filtering_by_words_and_by_numbers(site: Path, visit: Callable[..., Any]) -> None:
    with visit(site / "group.html") as watched:
        everybody = len(column(watched.page, "Age"))
        search = watched.page.get_by_label("Filter")
        search.fill("AD Ulm")
        assert set(column(watched.page, "Group")) == {"AD"}
        assert set(column(watched.page, "Site")) == {"Ulm"}
        search.fill("age>60 correctedgap<=0")
        ages, gaps = (numbers(column(watched.page, name)) for name in ("Age", "Corrected gap"))
        assert 0 < len(ages) < everybody
        assert min(ages) > 60 and max(gaps) <= 0
        said = watched.page.locator("#table-participants output").inner_text()
        assert said == f"{len(ages)} of {everybody}"
        search.fill("nobody-has-this")
        assert column(watched.page, "Age") == []
        search.fill("")
        assert len(column(watched.page, "Age")) == everybody


def test_dots_and_names_lead_to_the_participants(site: Path, visit: Callable[..., Any]) -> None:
    with visit(site / "group.html") as watched:
        watched.page.locator(".strips a[aria-label^=sub-000003]").last.click()
        watched.page.wait_for_url("**/sub-000003.html")
        watched.page.goto((site / "group.html").as_uri())
        watched.page.locator("#table-participants a", has_text="sub-000000").first.click()
        watched.page.wait_for_url("**/sub-000000.html")
        assert watched.page.inner_text("h1") == "Brain age of sub-000000"
        assert watched.requests == []


# --- for everybody ---


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("name", PAGES)
def test_accessible(name: str, width: int, site: Path, visit: Callable[..., Any]) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe-core")
    with visit(site / f"{name}.html", width) as watched:
        found = axe.Axe().run(watched.page).response["violations"]
        serious = [
            f"{each['id']}: {each['help']} ({each['nodes'][0]['html'][:200]})"
            for each in found if each["impact"] in ("serious", "critical")
        ]  # fmt: skip
        assert serious == []


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_wider_than_a_phone_or_a_sheet(
    name: str, site: Path, visit: Callable[..., Any]
) -> None:
    size = "[document.documentElement.scrollWidth, innerWidth]"
    with visit(site / f"{name}.html", PHONE) as watched:
        wide, window = watched.page.evaluate(size)
        assert wide <= window
    with visit(site / f"{name}.html", 680) as watched:  # A4 without its margins
        watched.page.emulate_media(media="print")
        wide, window = watched.page.evaluate(size)
        assert wide <= window
        hidden = watched.page.locator(".wide").evaluate_all(
            "boxes => boxes.filter(box => box.offsetParent)"
            ".filter(box => box.scrollWidth > box.clientWidth + 1)"
            ".map(box => box.getAttribute('aria-label'))"
        )
        assert hidden == [], "cut off on paper"


# --- what it looks like ---


def look(page: Any, width: int) -> Image.Image:
    """The upper part of a page, shrunk."""
    page.wait_for_load_state("networkidle")
    clip = {"x": 0, "y": 0, "width": width, "height": 2400}
    seen = Image.open(io.BytesIO(page.screenshot(full_page=True, clip=clip)))
    return seen.convert("RGB").reduce(SHRUNK)


def is_like(seen: Image.Image, before: Image.Image) -> bool:
    """Whether two pictures are the same but for the edges of letters."""
    if seen.size != before.size:
        return False
    now, then = (np.asarray(each.reduce(3)).astype(float) for each in (seen, before))
    off = np.abs(now - then).max(axis=-1)
    return bool(off.mean() < 8 and (off > 64).mean() < 0.04)


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("name", ["sub-000000", "group"])
def test_looks_as_before(name: str, width: int, site: Path, visit: Callable[..., Any]) -> None:
    """Against a stored screenshot; BRAINAGE_UPDATE=1 stores a new one."""
    with visit(site / f"{name}.html", width) as watched:
        seen = look(watched.page, width)
        watched.page.add_style_tag(content=".lifespan, .cards { display: none }")
        changed = look(watched.page, width)
    stored = STORED / f"{name}-{width}.png"
    if os.environ.get("BRAINAGE_UPDATE"):
        STORED.mkdir(exist_ok=True)
        seen.quantize(64).save(stored, optimize=True)
    before = Image.open(stored).convert("RGB")
    assert is_like(seen, before), f"{stored.name} is another picture; BRAINAGE_UPDATE=1 keeps it"
    assert not is_like(changed, before), "a part that is missing would not be seen"
