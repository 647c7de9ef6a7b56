"""Figures of an explanation: every number that was found is written there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from efficientdet.images.convert import RgbImage
from efficientdet.inference.detector import Detector
from efficientdet.network.pyramid import FeatureNetwork
from efficientdet.research.explanation import Explanation, explain_detection
from efficientdet.research.explanation_figures import draw_cells, draw_explanation, draw_fusion
from efficientdet.research.learned_weights import fusion_rows

pytest.importorskip("matplotlib")

MakeNetwork = Callable[..., FeatureNetwork]


@pytest.fixture(scope="module")
def explanation(detector: Detector, image: RgbImage) -> Explanation:
    return explain_detection(detector, image)


def test_the_heat_map_shows_every_number(make_network: MakeNetwork) -> None:
    rows = fusion_rows(make_network("bifpn", "fast"))
    figure = draw_fusion(rows, "title", "fast")
    words = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert sorted(words) == sorted(word for row in rows for word in (f"{row['share']:.2f}", row["input"]))
    assert [axes.get_title() for axes in figure.axes] == ["cell 0", "cell 1"]


def test_the_caption_explains_what_is_drawn(make_network: MakeNetwork) -> None:
    rows = fusion_rows(make_network("nas-fpn", "unbounded"))
    rows[-1]["weight"] = -1.0
    caption = draw_fusion(rows, "title", "unbounded").get_supxlabel()
    assert "fusion 'unbounded'" in caption and "negative" in caption
    assert "pooled by global attention" in caption and "a plain sum" in caption


def test_class_names_are_shown_as_they_are(explanation: Explanation, tmp_path: Path) -> None:
    name = "$\\frac{ and\x1b a name that is much longer than its place $"
    named = dataclasses.replace(explanation, class_name=name, classes=((name, 0.5), ("other", 0.2)))
    figure = draw_explanation(named)
    figure.savefig(tmp_path / "figure.png")  # where matplotlib would read a formula
    assert figure.axes[1].get_yticklabels()[0].get_text().replace("\\$", "$") == "$\\frac{ and\\x1b…its place $"


def test_cells_have_the_share_of_every_edge(explanation: Explanation) -> None:
    drawings = draw_cells(explanation)
    assert len(drawings) == 2
    for edge in explanation.edges:
        assert f">{edge.share:.2f}</text>" in drawings[edge.cell]


def test_the_detection_is_shown_with_its_anchor_classes_levels_and_path(explanation: Explanation) -> None:
    figure = draw_explanation(explanation)
    photo, classes, levels, path = figure.axes
    labels = [patch.get_label() for patch in photo.patches]
    assert labels[1] == f"predicted box: {explanation.class_name}" and len(labels) == 3
    assert photo.patches[1].get_bbox().extents.tolist() == pytest.approx(explanation.box_xyxy)  # type: ignore[attr-defined]
    assert [text.get_text().strip() for text in classes.texts] == [f"{p:.2f}" for _, p in explanation.classes]
    assert [label.get_text() for label in levels.get_yticklabels()] == ["P3", "P4", "P5", "P6", "P7"]
    assert [bar.get_width() for bar in path.patches] == [edge.share for edge in explanation.path]  # type: ignore[attr-defined]
