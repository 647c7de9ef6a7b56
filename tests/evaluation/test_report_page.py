"""The gallery: what is shown of an evaluation, of which kind and class, and the command that explains it."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import Any

from efficientdet.evaluation.report import summarize
from efficientdet.evaluation.report_page import Gallery, explain_command

Make = Callable[..., Any]


def captions(made: Any, explain: Any = None) -> list[str]:
    """The captions of the gallery's figures, with what is folded below them."""
    metrics, records = made
    page = Gallery(metrics.matches, records, explain).section(summarize(metrics))
    found = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    return [html.unescape(re.sub(r"<[^>]+>", " ", one)) for one in found]


def test_every_kind_is_shown(evaluation: Make) -> None:
    found = captions(evaluation())
    assert "classification: dog 0.85, annotated as cat; image id 4" in found
    assert "background: dog 0.95; image id 5" in found
    assert "missed: cat; image id 5" in found
    labels = [one for one in found if "for the model" in one or "no box where" in one]
    assert any("'cat'" in one and "'dog' with a score of 0.85" in one and "id 4" in one for one in labels)
    assert any("no box where the model sees 'dog' with a score of 0.95" in one and "id 5" in one for one in labels)
    worst = [one for one in found if one.startswith("worst image")]
    assert worst[0].startswith("worst image: 1 wrong detections, 1 missed objects")
    assert len(worst) == 2  # the others have no mistake


def test_the_command_names_the_detection_as_the_detector_counts(evaluation: Make) -> None:
    more = [((10.0, 60.0, 40.0, 90.0), 1, 0.93)]
    made = evaluation(more=more)
    found = captions(made, explain_command("my weights.safetensors", ["--image-size", "64"]))
    (second,) = [one for one in found if one.startswith("background: dog 0.93")]
    path = made.records.images[0].path
    expected = (
        f"efficientdet explain 'my weights.safetensors' {path} --detection 1 --image-size 64 --score-threshold 0.001"
    )
    assert expected in second
    (missed,) = [one for one in found if one.startswith("missed")]
    assert "explain" not in missed


def test_below_the_threshold_no_detection_is_a_mistake(evaluation: Make) -> None:
    metrics, records = evaluation()
    report = summarize(metrics)
    report["confusion"]["score_thresholds"] = [1.0, 1.0]
    page = Gallery(metrics.matches, records).section(report)
    assert "background: dog" not in page and "0 wrong detections, 1 missed objects" in page


def test_figures_of_a_kind_are_few(evaluation: Make) -> None:
    more = [((float(x), 60.0, x + 30.0, 90.0), 1, 0.93) for x in range(0, 80, 4)]
    found = captions(evaluation(more=more))
    assert 1 <= sum(one.startswith("background") for one in found) <= 8
