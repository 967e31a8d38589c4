"""A small SVG writer: the marks of a chart, with every text escaped."""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree import ElementTree

Place = tuple[float, float]


class Svg:
    """An SVG with the few marks that a chart needs; ElementTree escapes every text."""

    def __init__(self, width: float, height: float, title: str, role: str = "img"):
        self.root = ElementTree.Element(
            "svg",
            {
                "xmlns": "http://www.w3.org/2000/svg",
                "viewBox": f"0 0 {width:g} {height:g}",
                "role": role,
                "aria-label": title,
                "font-family": "system-ui, sans-serif",
                "font-size": "14",
            },
        )
        ElementTree.SubElement(self.root, "title").text = title

    def line(
        self, x1: float, y1: float, x2: float, y2: float, color: str,
        width: float = 1, dashed: bool = False,
    ) -> None:  # fmt: skip
        """Draw a straight line."""
        places = zip(("x1", "y1", "x2", "y2"), (x1, y1, x2, y2), strict=True)
        attributes = {name: f"{value:.1f}" for name, value in places}
        attributes |= {"stroke": color, "stroke-width": f"{width:g}"}
        attributes |= {"stroke-dasharray": "4 3"} if dashed else {}
        ElementTree.SubElement(self.root, "line", attributes)

    def polyline(self, places: Iterable[Place], color: str, width: float = 1) -> None:
        """Draw a line through places."""
        attributes = {"points": _listed(places), "fill": "none", "stroke": color}
        ElementTree.SubElement(self.root, "polyline", attributes | {"stroke-width": f"{width:g}"})

    def area(self, places: Iterable[Place], color: str) -> None:
        """Fill what lies between places."""
        ElementTree.SubElement(self.root, "polygon", {"points": _listed(places), "fill": color})

    def dot(
        self, x: float, y: float, color: str, radius: float = 6, link: str = "", name: str = ""
    ) -> None:
        """Draw a point with a white rim; a link is out of the order of the Tab key."""
        attributes = {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": f"{radius:g}", "fill": color}
        above = self.root
        if link:
            target = {"href": link, "tabindex": "-1", "aria-label": name}
            above = ElementTree.SubElement(above, "a", target)
        circle = ElementTree.SubElement(above, "circle", attributes | {"stroke": "#fff"})
        if name:
            ElementTree.SubElement(circle, "title").text = name

    def text(
        self, x: float, y: float, text: str, anchor: str = "start", color: str = "#000",
        bold: bool = False, halo: bool = False,
    ) -> None:  # fmt: skip
        """Write a line of text; `anchor` is "start", "middle" or "end"."""
        attributes = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor, "fill": color}
        if bold:
            attributes["font-weight"] = "bold"
        if halo:  # keeps letters legible over the lines of the grid
            attributes |= {"stroke": "#fff", "stroke-width": "4", "paint-order": "stroke"}
        ElementTree.SubElement(self.root, "text", attributes).text = text

    def written(self) -> str:
        """Return the SVG."""
        return ElementTree.tostring(self.root, encoding="unicode")


def _listed(places: Iterable[Place]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
