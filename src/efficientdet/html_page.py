"""Reports as one HTML file each: no request, no script, light and dark, for a phone, a desktop and a printer.

    section = Section("size", "Box sizes", table([{"size": "small", "boxes": 12}], text=("size",)))
    text = page("My dataset", [section])

What is put in is text, and escaped, unless a function of this module made it (`Html`).
"""

from __future__ import annotations

import base64
import importlib.resources
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from efficientdet.text import in_html

TEMPLATE = "html_page.html"
# Characters of what is never broken into two lines, such as an interval.
LONGEST_NUMBER = 16
# Pixels around a box at the edge of its image, so that its line is seen.
MARGIN = 2
_WITHOUT_END = ("img", "input", "rect", "image", "path", "line", "circle")


class Html(str):
    """Markup in which all text is escaped."""


class Section(NamedTuple):
    """A part of a page, with an entry in its table of contents.

    Attributes:
        anchor: its id, which links lead to; letters, digits and hyphens.
        heading: its title.
        body: what is in it.
        badge: beside the title here and in the contents, such as a number; empty for none.
        tone: color of the badge: `error`, `warning`, `note` or empty.
    """

    anchor: str
    heading: str
    body: Html
    badge: str = ""
    tone: str = ""


class MarkedBox(NamedTuple):
    """A box to draw over an image.

    Attributes:
        xyxy: left, top, right, bottom in pixels of the image; may reach beyond it.
        tone: `hit` (what the figure is about), `other`, `truth` or `found`.
        title: shown where the pointer rests on it.
    """

    xyxy: Sequence[float]
    tone: str = "hit"
    title: str = ""


class Line(NamedTuple):
    """A line of a chart.

    Attributes:
        name: what it is, in the legend.
        points: (x, y) in order.
        marks: whether each point is marked.
    """

    name: str
    points: Sequence[tuple[float, float]]
    marks: bool = False


class Figure(NamedTuple):
    """An image with boxes and a caption.

    Attributes:
        jpeg: the encoded image; small, since it becomes part of the page.
        window: left, top, right, bottom of what it shows, in pixels of the original image.
        boxes: drawn over it.
        caption: text below it.
        alt: what it shows, for those who do not see it.
        kinds: what a gallery can be filtered by, such as ("class", "cat").
        more: what stands below the caption.
    """

    jpeg: bytes
    window: tuple[float, float, float, float]
    boxes: Sequence[MarkedBox]
    caption: str
    alt: str
    kinds: tuple[tuple[str, str], ...] = ()
    more: Html = Html("")


def element(tag: str, *children: object, **attributes: object) -> Html:
    """An element; children that are not `Html` are escaped.

    Args:
        tag: its name.
        *children: text or elements.
        **attributes: `class_` is `class`, other underscores are hyphens; None and False leave one out, True gives it no
            value.
    """
    given = "".join(
        f" {name.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{in_html(value)}"')
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    inside = join(children)
    return Html(f"<{tag}{given}/>" if tag in _WITHOUT_END and not children else f"<{tag}{given}>{inside}</{tag}>")


def join(children: Iterable[object]) -> Html:
    """Text and elements one after another."""
    return Html("".join(child if isinstance(child, Html) else in_html(child) for child in children))


def paragraph(*children: object, class_: str | None = None) -> Html:
    """A paragraph."""
    return element("p", *children, class_=class_)


def badge(text: str, tone: str = "") -> Html:
    """A word or number on a colored ground."""
    return element("span", text, class_=f"badge {tone}".strip())


def tiles(facts: Mapping[str, object]) -> Html:
    """Numbers with their names, side by side."""
    cells = (element("div", element("dt", name), element("dd", value)) for name, value in facts.items())
    return element("dl", *cells, class_="tiles")


def bar(share: float, text: str, tone: str = "") -> Html:
    """A number with a bar as long as its share of the cell, 0 to 1."""
    width = 100 * min(max(share, 0.0), 1.0)
    drawn = element("rect", width=f"{width:.1f}", height=8, rx=1)
    ground = element("rect", width=100, height=8, rx=1, class_="ground")
    chart = element(
        "svg", ground, drawn, viewBox="0 0 100 8", preserveAspectRatio="none", aria_hidden="true",
        class_=f"bar {tone}".strip(),
    )  # fmt: skip
    return element("span", element("span", text), chart, class_="barred")


def chart(
    lines: Sequence[Line],
    x_name: str,
    y_name: str,
    summary: str,
    x_range: tuple[float, float] = (0.0, 1.0),
    y_range: tuple[float, float] = (0.0, 1.0),
) -> Html:
    """Lines as vector graphics with a legend.

    Args:
        lines: at most as many as there are colors, 8.
        x_name: what the horizontal axis is.
        y_name: what the vertical axis is.
        summary: what the chart shows, for those who do not see it.
        x_range: ends of the horizontal axis.
        y_range: ends of the vertical axis.
    """
    left, top, width, height = 44, 10, 320, 220
    parts = []
    for tick in range(0, 11, 2):
        x, y = left + width * tick / 10, top + height * (1 - tick / 10)
        parts += [
            element("line", x1=left, x2=left + width, y1=f"{y:g}", y2=f"{y:g}", class_="grid"),
            element("line", x1=f"{x:g}", x2=f"{x:g}", y1=top, y2=top + height, class_="grid"),
            element("text", _at(tick, y_range), x=left - 6, y=f"{y + 4:g}", text_anchor="end"),
            element("text", _at(tick, x_range), x=f"{x:g}", y=top + height + 16, text_anchor="middle"),
        ]
    parts += [
        element("text", x_name, x=left + width / 2, y=top + height + 34, text_anchor="middle"),
        element("text", y_name, x=12, y=top + height / 2, text_anchor="middle", class_="upright"),
    ]
    for number, one in enumerate(lines):
        color = f"line{number % 8}"
        places = [(left + width * _share(x, x_range), top + height * (1 - _share(y, y_range))) for x, y in one.points]
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(Html(f'<polyline points="{drawn}" class="curve {color}"/>'))  # longer than text may be
        if one.marks:
            parts += [element("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=3, class_=f"mark {color}") for x, y in places]
    drawing = element("svg", *parts, viewBox="0 0 376 272", role="img", aria_label=summary, class_="chart")
    names = [element("li", one.name, class_=f"line{number % 8}") for number, one in enumerate(lines)]
    legend = element("ul", *names, class_="legend") if len(lines) > 1 else Html("")
    return element("div", drawing, legend, class_="charted")


def _at(tick: int, ends: tuple[float, float]) -> str:
    """The number at a tenth of an axis."""
    return f"{ends[0] + (ends[1] - ends[0]) * tick / 10:.3g}"


def _share(value: float, ends: tuple[float, float]) -> float:
    return (value - ends[0]) / (ends[1] - ends[0])


def table(rows: Sequence[Mapping[str, object]], text: Sequence[str] = (), caption: str = "") -> Html:
    """A table of rows with the same keys, which becomes a list of cards on a phone.

    Args:
        rows: values by column.
        text: columns that hold text, which are aligned left.
        caption: what it shows.
    """
    if not rows:
        return Html("")
    columns = list(rows[0])
    left = {name: "text" if name in text else None for name in columns}
    head = element("tr", *(element("th", name, scope="col", class_=left[name]) for name in columns))

    def cell(name: str, value: object) -> Html:
        is_short = len(str(value)) <= LONGEST_NUMBER
        return element("td", value, data_label=name, class_=left[name] or ("short" if is_short else None))

    body = [element("tr", *(cell(name, row[name]) for name in columns)) for row in rows]
    title = element("caption", caption) if caption else Html("")
    return element("div", element("table", title, element("thead", head), element("tbody", *body)), class_="scroll")


def code(text: str) -> Html:
    """A command, which wraps rather than runs out of the page."""
    return element("pre", element("code", text))


def folded(title: str, *children: object) -> Html:
    """What is shown on request, and printed always."""
    return element("details", element("summary", title), *children)


def figure(shown: Figure) -> Html:
    """An image with its boxes as vector graphics over it."""
    left, top, right, bottom = _with_boxes(shown)
    x1, y1, x2, y2 = shown.window
    uri = f"data:image/jpeg;base64,{base64.b64encode(shown.jpeg).decode('ascii')}"
    pixels = Html(
        f'<image href="{uri}" x="{x1:g}" y="{y1:g}" width="{x2 - x1:g}" height="{y2 - y1:g}" '
        'preserveAspectRatio="none"/>'
    )
    drawing = element(
        "svg", pixels, *(_drawn(box) for box in shown.boxes), role="img", aria_label=shown.alt,
        viewBox=f"{left:g} {top:g} {right - left:g} {bottom - top:g}",
    )  # fmt: skip
    kinds = " ".join(_slug(kind) for kind in shown.kinds) or None
    return element("figure", drawing, element("figcaption", shown.caption, shown.more), data_kinds=kinds)


def gallery(figures: Sequence[Figure], name: str = "gallery") -> Html:
    """Figures side by side, filterable by all their kinds at once, without a script.

    Args:
        figures: what to show.
        name: of the gallery, different for each of a page.
    """
    shown = element("div", *map(figure, figures), class_="gallery")
    counts = Counter(kind for one in figures for kind in dict.fromkeys(one.kinds))
    groups = {group: [kind for kind in counts if kind[0] == group] for group, _ in counts}
    groups = {group: kinds for group, kinds in groups.items() if len(kinds) > 1}
    if not groups:
        return shown
    place, selects, rules = f"{_slug(name)}-filter", [], ""
    for group, kinds in groups.items():
        options = [element("option", f"all ({len(figures)})", value="")]
        options += [element("option", f"{kind[1]} ({counts[kind]})", value=_slug(kind)) for kind in kinds]
        selects.append(element("label", f"{group} ", element("select", *options)))
        rules += "".join(
            f'#{place}:has(option[value="{_slug(kind)}"]:checked) figure:not([data-kinds~="{_slug(kind)}"])'
            "{display:none}"
            for kind in kinds
        )
    return element("div", Html(f"<style>{rules}</style>"), element("div", *selects, class_="filters"), shown, id=place)


def page(title: str, sections: Sequence[Section], subtitle: str = "", summary: Html | None = None) -> str:
    """The whole page.

    Args:
        title: its heading, and the name of its tab.
        sections: its parts, in order.
        subtitle: a line below the title.
        summary: what stands before the sections.
    """
    entries = (element("li", element("a", one.heading, *_badge_of(one), href=f"#{one.anchor}")) for one in sections)
    contents = element("nav", element("ul", *entries), aria_label="Contents") if len(sections) > 1 else Html("")
    bodies = (
        element(
            "section", element("h2", one.heading, *_badge_of(one), id=one.anchor), one.body, aria_labelledby=one.anchor
        )
        for one in sections
    )
    template = importlib.resources.files("efficientdet").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return string.Template(template).substitute(
        title=in_html(title),
        subtitle=paragraph(subtitle, class_="subtitle") if subtitle else "",
        summary=summary or "",
        contents=contents,
        sections="\n".join(bodies),
    )


def _badge_of(section: Section) -> list[Html]:
    return [badge(section.badge, section.tone)] if section.badge else []


def _with_boxes(shown: Figure) -> tuple[float, float, float, float]:
    """The window, widened to show boxes beyond the image, by a side of it at most."""
    left, top, right, bottom = shown.window
    width, height = right - left, bottom - top
    hits = [box.xyxy for box in shown.boxes if box.tone == "hit"]
    return (
        max(min([left, *(box[0] - MARGIN for box in hits)]), left - width),
        max(min([top, *(box[1] - MARGIN for box in hits)]), top - height),
        min(max([right, *(box[2] + MARGIN for box in hits)]), right + width),
        min(max([bottom, *(box[3] + MARGIN for box in hits)]), bottom + height),
    )


def _drawn(box: MarkedBox) -> Html:
    x1, y1, x2, y2 = box.xyxy
    place: dict[str, Any] = {"x": f"{min(x1, x2):g}", "y": f"{min(y1, y2):g}"}
    place |= {"width": f"{max(abs(x2 - x1), 0.5):g}", "height": f"{max(abs(y2 - y1), 0.5):g}"}
    title = [element("title", box.title)] if box.title else []
    return join([element("rect", class_="casing", **place), element("rect", *title, class_=f"box {box.tone}", **place)])


def _slug(text: str | tuple[str, ...]) -> str:
    """A word for an attribute or a style rule: letters and digits of ASCII; others become their number."""
    if not isinstance(text, str):
        return "_".join(map(_slug, text))
    return "".join(c if c.isascii() and c.isalnum() else f"-{ord(c):x}-" for c in text) or "-"
