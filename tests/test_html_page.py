"""Pages: everything that is put in is text; nothing is fetched, nothing runs."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from efficientdet import html_page as html

HOSTILE = "<script>alert(1)</script>\"'&\x1b[31m\u202e"
VOID = {"meta", "link", "input", "br", "img"}


def jpeg(width: int = 40, height: int = 30) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (90, 120, 60)).save(file, "JPEG")
    return file.getvalue()


class Reader(HTMLParser):
    """Notes the elements, and fails where one is closed that is not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.text += data


def every_part(text: str) -> str:
    """A page with all there is, and a text in each place that takes one."""
    box = html.MarkedBox((2, 3, 20, 25), title=text)
    figure = html.Figure(jpeg(), (0, 0, 40, 30), [box], text, text, (("kind", text), ("kind", "other")))
    body = html.join(
        [
            text,
            html.paragraph(text, html.badge(text)),
            html.tiles({text: text}),
            html.table([{text: text, "bar": html.bar(0.5, text)}], (text,), caption=text),
            html.code(text),
            html.folded(text, text),
            html.gallery([figure, figure], text),
        ]
    )
    return html.page(text, [html.Section("a", text, body, text, "error"), html.Section("b", text, body)], text)


def test_a_long_line_is_drawn_whole() -> None:
    points = [(i / 999, (i % 7) / 7) for i in range(1000)]
    drawn = Reader(html.chart([html.Line("a", points), html.Line("b", points[:2], marks=True)], "x", "y", "zigzag"))
    lines = [(attributes["points"] or "").split() for tag, attributes in drawn.elements if tag == "polyline"]
    assert [len(line) for line in lines] == [1000, 2]
    assert lines[0][0] == "44.0,230.0" and lines[0][-1].startswith("364.0,")
    assert [tag for tag, _ in drawn.elements].count("circle") == 2


@settings(deadline=None)
@given(st.text(min_size=1, max_size=80).filter(lambda text: text != "bar"))
def test_what_is_put_in_is_text(text: str) -> None:
    plain, odd = Reader(every_part("word")), Reader(every_part(text))
    assert [tag for tag, _ in odd.elements] == [tag for tag, _ in plain.elements]
    assert [sorted(attributes) for _, attributes in odd.elements] == [sorted(a) for _, a in plain.elements]


def test_hostile_text_stays_text() -> None:
    page = every_part(HOSTILE)
    assert "<script" not in page and "\x1b" not in page and "\u202e" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert HOSTILE[:25] in Reader(page).text


def test_a_page_asks_for_nothing_and_runs_nothing() -> None:
    reader = Reader(every_part("word"))
    for tag, attributes in reader.elements:
        assert tag not in ("script", "iframe", "object", "embed", "img")
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("href", "src", "xlink:href", "action", "style"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert "url(" not in every_part("word") and "@import" not in every_part("word")
    policy = next(a["content"] for tag, a in reader.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")


def test_headings_contents_and_images_are_accessible() -> None:
    reader = Reader(every_part("word"))
    tags = [tag for tag, _ in reader.elements]
    assert tags.count("h1") == 1 and tags.count("main") == 1
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    links = [a["href"] for tag, a in reader.elements if tag == "a"]
    assert {f"#{one}" for one in ids} >= set(links) and "#a" in links
    images = [a for tag, a in reader.elements if tag == "svg" and a.get("aria-hidden") != "true"]
    assert images and all(one["role"] == "img" and one["aria-label"] == "word" for one in images)
    assert dict(reader.elements[0][1])["lang"] == "en"


def test_a_box_beyond_the_image_is_shown_and_bounded() -> None:
    def view(*box: float) -> list[float]:
        drawn = html.figure(html.Figure(jpeg(), (0, 0, 40, 30), [html.MarkedBox(box)], "c", "a"))
        found = re.search(r'viewBox="([^"]+)"', drawn)
        assert found is not None
        return [float(number) for number in found.group(1).split()]

    assert view(5, 5, 10, 10) == [0, 0, 40, 30]
    assert view(30, 10, 60, 20) == [0, 0, 62, 30]
    assert view(-1e9, -5, 1e9, 20) == [-40, -7, 120, 37]
    wide = html.figure(html.Figure(jpeg(), (0, 0, 40, 30), [], "c", "a"))
    assert 'viewBox="0 0 40 30"' in wide


def test_a_gallery_is_filtered_by_its_kinds() -> None:
    cat, big, odd = ("class", "cat"), ("size", "big"), ("class", "ü x")
    figures = [html.Figure(jpeg(), (0, 0, 40, 30), [], "c", "a", kinds) for kinds in ((cat,), (cat, big), (odd,))]
    figures.append(html.Figure(jpeg(), (0, 0, 40, 30), [], "c", "a", (cat, ("size", "small"))))
    reader = Reader(html.gallery(figures, "My images"))
    values = [a["value"] for tag, a in reader.elements if tag == "option"]
    kinds = [(a["data-kinds"] or "").split() for tag, a in reader.elements if tag == "figure"]
    assert len(values) == 6 and len(set(values)) == 5  # two selects, each with an empty value for all
    assert kinds == [[values[1]], [values[1], values[4]], [values[2]], [values[1], values[5]]]
    assert "all (4)" in reader.text and "cat (3)" in reader.text and "big (1)" in reader.text
    assert "<select" not in html.gallery(figures[:1], "x")


def test_a_chart_has_axes_of_its_own() -> None:
    drawn = Reader(html.chart([html.Line("a", [(10, 2), (30, 4)])], "x", "y", "rises", (10, 30), (0, 4)))
    points = next((a["points"] or "").split() for tag, a in drawn.elements if tag == "polyline")
    assert points == ["44.0,120.0", "364.0,10.0"]
    assert "30" in drawn.text and "26" in drawn.text and "3.2" in drawn.text


def test_a_table_without_rows_is_none() -> None:
    assert html.table([]) == ""


@pytest.mark.parametrize("share", [-1.0, 0.0, 0.3, 2.0])
def test_a_bar_stays_in_its_cell(share: float) -> None:
    widths = [float(a["width"] or 0) for tag, a in Reader(html.bar(share, "x")).elements if tag == "rect"]
    assert widths[0] == 100 and widths[1] == pytest.approx(100 * min(max(share, 0), 1))
