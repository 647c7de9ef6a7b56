"""The family's section: our counts, and the published figures beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from efficientdet.family import MODELS, PUBLISHED
from efficientdet.network.count import count
from efficientdet.research.report import family
from efficientdet.research.report.family import ap_figure, family_parts, peer_rows

pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def small_models_count_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting d3 to d7x takes a minute; their published costs are within 2% of the counted ones."""
    small = {"d0", "d1", "lite0", "lite1"}
    monkeypatch.setattr(
        family,
        "count",
        lambda spec: count(spec) if spec.name in small else tuple(map(int, PUBLISHED[spec.name])),
    )
    monkeypatch.setattr(family, "family_rows", lambda: [{"name": "d0"}])


def labels(figure: Figure) -> list[Annotation]:
    return [text for text in figure.axes[0].texts if isinstance(text, Annotation)]


def assert_readable(figure: Figure) -> None:
    """No label covers another or a marker, or leaves the figure."""
    figure.canvas.draw()
    axes = figure.axes[0]
    boxes = [label.get_window_extent() for label in labels(figure)]
    assert all(box.count_overlaps(boxes) == 1 for box in boxes)  # itself
    assert all(axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 for box in boxes)
    markers = [point for line in axes.lines for point in axes.transData.transform(line.get_xydata())]
    assert not any(box.contains(x, y) for box in boxes for x, y in markers)


def test_peers_are_over_our_count() -> None:
    rows = {row["peer"]: row for row in peer_rows()}
    assert len(rows) == 11
    yolo, retinanet = rows["YOLOv3"], rows["RetinaNet R50 @640"]
    assert yolo["GMAC over ours (printed)"] == f"{71e9 / count(MODELS['d0'])[1]:.0f}x (28x)" == "28x (28x)"
    assert yolo["params over ours (printed)"] is None and yolo["time"] is None
    assert (retinanet["params over ours (printed)"], retinanet["time"]) == ("5.1x (6.7x)", "25 : 16 ms Titan V")


def test_the_figure_has_every_model_and_every_peer_whose_cost_is_published() -> None:
    figure = ap_figure()
    texts = {label.get_text() for label in labels(figure)}
    assert set(MODELS) | {"YOLOv3", "R50 @640", "X101-FPN", "@1280, 384 ch", "+ AA @1536"} <= texts
    assert len(texts) == len(MODELS) + 10  # of eleven peers
    assert_readable(figure)


def test_the_section_has_its_tables_and_its_figure(tmp_path: Path) -> None:
    parts = family_parts(tmp_path)
    assert parts["family"].startswith("| name |") and "| YOLOv3 |" in parts["peers"]
    assert {path.name for path in tmp_path.iterdir()} == {"ap_over_multiply_adds.png"}
