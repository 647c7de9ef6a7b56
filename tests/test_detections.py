"""The result type: what it refuses, how it is cut, and what it becomes."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from efficientdet.detections import Detections
from efficientdet.errors import MissingExtraError, UnknownNameError

NAMES = ("cat", "dog", "bird")


def made(**changes: Any) -> Detections:
    fields: dict[str, Any] = {
        "boxes_xyxy": [[1, 2, 11, 22], [3, 4, 5, 6], [0.5, 0.5, 40, 30]],
        "scores": [0.9, 0.5, 0.25],
        "labels": [2, 0, 2],
        "class_names": NAMES,
        "image_size": (30, 40),
    }
    return Detections(**{**fields, **changes})


# ---- validation
def test_fields_are_cast() -> None:
    detections = made(class_names=list(NAMES), image_size=[30, 40], category_ids=np.array([7, 9, 40]))
    assert detections.boxes_xyxy.dtype == detections.scores.dtype == np.float32
    assert detections.labels.dtype == np.int64
    assert detections.class_names == NAMES
    assert detections.image_size == (30, 40)
    assert detections.category_ids == (7, 9, 40)
    assert len(detections) == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"boxes_xyxy": [[1, 2, 3]] * 3}, r"boxes_xyxy must be \(N, 4\), got shape \(3, 3\)"),
        ({"boxes_xyxy": [[1, 2, 3, float("nan")]] * 3}, "boxes_xyxy .* not finite"),
        ({"scores": [0.1]}, r"scores must be \(3,\)"),
        ({"scores": [0.1, 0.2, 1.5]}, "scores must lie within"),
        ({"scores": [0.1, 0.2, float("nan")]}, "scores must lie within"),
        ({"labels": [[0], [1], [2]]}, r"labels must be \(3,\)"),
        ({"labels": [0, 1, 3]}, "labels must be below 3"),
        ({"labels": [0, -1, 1]}, "labels must be below 3"),
        ({"labels": [0.0, 1.0, 1.5]}, "labels must be integers"),
        ({"image_size": (0, 40)}, "image_size"),
        ({"category_ids": (1, 2)}, "category_ids has 2 entries for 3"),
        ({"image": np.zeros((40, 30, 3), np.uint8)}, r"image must be .* \(40, 30, 3\)"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        made(**changes)


def test_nothing_found_works_everywhere() -> None:
    nothing = Detections([], [], [], NAMES, (30, 40), category_ids=(5, 6, 7))  # type: ignore[arg-type]
    assert len(nothing) == 0
    assert nothing.boxes_xyxy.shape == (0, 4)
    assert nothing.to_coco(1) == []
    assert nothing.to_json()["detections"] == []
    assert len(nothing.filter(0.5, ["cat"])[:3]) == 0
    assert nothing.draw(np.zeros((30, 40, 3), np.uint8)).size == (40, 30)
    assert repr(nothing) == "Detections(0; 40x30 pixels)"
    assert len(made(boxes_xyxy=[], scores=[], labels=[])) == 0


# ---- cutting
@settings(deadline=None)
@given(data=st.data(), count=st.integers(0, 12))
def test_every_index_gives_what_numpy_gives(data: st.DataObject, count: int) -> None:
    detections = made(
        boxes_xyxy=np.arange(count * 4).reshape(count, 4),
        scores=np.linspace(0, 1, count),
        labels=np.arange(count) % 3,
        source="a.jpg",
    )
    masks = st.lists(st.booleans(), min_size=count, max_size=count).map(lambda mask: np.array(mask, np.bool_))
    ways = [st.slices(count), masks, st.just([])]
    if count:
        positions = st.integers(-count, count - 1)
        ways += [positions, st.lists(positions, max_size=9)]
    index = data.draw(st.one_of(ways))
    got = detections[index]
    rows = np.arange(count)[np.zeros(0, int) if isinstance(index, list) and not index else index]
    np.testing.assert_array_equal(got.boxes_xyxy, detections.boxes_xyxy[rows].reshape(-1, 4))
    np.testing.assert_array_equal(got.scores, np.atleast_1d(detections.scores[rows]))
    np.testing.assert_array_equal(got.labels, np.atleast_1d(detections.labels[rows]))
    assert (got.class_names, got.image_size, got.source) == (NAMES, (30, 40), "a.jpg")


@pytest.mark.parametrize("index", [3, -4, [0, 3], np.array([True, False]), "cat", 1.0, [[0, 1]], None])
def test_a_wrong_index_is_refused(index: Any) -> None:
    with pytest.raises(IndexError):
        made()[index]


def test_iteration_gives_one_detection_at_a_time() -> None:
    assert [one.scores.tolist() for one in made()] == [[pytest.approx(0.9)], [0.5], [0.25]]


def test_filter() -> None:
    detections = made()
    assert detections.filter(min_score=0.5).scores.tolist() == [pytest.approx(0.9), 0.5]
    assert len(detections.filter(min_score=0.9)) == 1  # both are the float32 nearest to 0.9
    assert detections.filter(classes=["bird"]).labels.tolist() == [2, 2]
    assert detections.filter(classes="cat").labels.tolist() == [0]
    assert detections.filter(classes=[0, "bird"], min_score=0.4).labels.tolist() == [2, 0]
    assert len(detections.filter()) == 3
    assert len(detections.filter(classes=[])) == 0


@pytest.mark.parametrize(("name", "words"), [("brid", "did you mean 'bird'"), (3, "unknown class '3'")])
def test_filter_by_an_unknown_class(name: Any, words: str) -> None:
    with pytest.raises(UnknownNameError, match=words):
        made().filter(classes=[name])


def test_cutting_leaves_the_whole_unchanged() -> None:
    detections = made()
    part = detections[:2]
    with pytest.raises(AttributeError):
        part.scores = np.zeros(2)  # type: ignore[misc]
    assert len(detections) == 3


# ---- becoming something else
def test_to_coco() -> None:
    rows = made(category_ids=(7, 9, 40)).to_coco(139)
    assert rows[0] == {
        "image_id": 139,
        "category_id": 40,
        "bbox": [1.0, 2.0, 10.0, 20.0],
        "score": pytest.approx(0.9),
    }
    assert [row["category_id"] for row in rows] == [40, 7, 40]
    assert [row["category_id"] for row in made().to_coco("x")] == [2, 0, 2]
    assert json.loads(json.dumps(rows)) == rows


def test_to_json() -> None:
    value = made(source="a.jpg").to_json()
    assert json.loads(json.dumps(value)) == value
    assert value["source"] == "a.jpg"
    assert value["image_size"] == [30, 40]
    assert value["detections"][2] == {
        "box_xyxy": [0.5, 0.5, 40.0, 30.0],
        "score": 0.25,
        "label": 2,
        "class_name": "bird",
    }


def test_repr_reads_like_a_sentence() -> None:
    assert repr(made(source="a.jpg")) == "Detections(3: 1 cat, 2 bird; 40x30 pixels in 'a.jpg')"


def test_repr_is_safe_to_print() -> None:
    text = repr(made(class_names=("\x1b[2J" + "x" * 20_000, "dog", "bird"), source="a\n.jpg"))
    assert text.isprintable() and len(text) < 1000


def test_draw_uses_the_picture_that_was_kept() -> None:
    pixels = np.full((30, 40, 3), 9, np.uint8)
    drawn = made(image=pixels).draw()
    assert isinstance(drawn, Image.Image)
    assert drawn.size == (40, 30)
    assert (np.asarray(drawn) != 9).any()
    assert (pixels == 9).all()
    with pytest.raises(ValueError, match="keep no image"):
        made().draw()


def test_to_supervision() -> None:
    library = pytest.importorskip("supervision")
    converted = made().to_supervision()
    assert isinstance(converted, library.Detections)
    np.testing.assert_array_equal(converted.xyxy, made().boxes_xyxy)
    assert converted.class_id.tolist() == [2, 0, 2]
    assert converted.data["class_name"].tolist() == ["bird", "cat", "bird"]
    assert len(made()[:0].to_supervision()) == 0


def test_to_supervision_without_the_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingExtraError, match="pip install supervision$"):
        made().to_supervision()
