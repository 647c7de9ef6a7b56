"""The COCO numbers: against published ones, against pycocotools, and where the input is unusual."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientdet.detections import Detections
from efficientdet.errors import DataError
from efficientdet.evaluation.coco_ap import Metrics, coco_metrics

# In the order of COCO's summary.
TWELVE = "ap ap50 ap75 ap_small ap_medium ap_large ar1 ar10 ar100 ar_small ar_medium ar_large".split()


def twelve(metrics: Metrics) -> list[float]:
    return [getattr(metrics, name) for name in TWELVE]


def by_pycocotools(ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> Any:
    """The reference's evaluation object, accumulated and summarized."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy({"info": {}, **ground_truth})
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def annotation(number: int, image_id: Any, category_id: Any, bbox: list[float], **more: Any) -> dict[str, Any]:
    fields = {"id": number, "image_id": image_id, "category_id": category_id, "bbox": bbox}
    return fields | {"area": bbox[2] * bbox[3], "iscrowd": 0} | more


def result(image_id: Any, category_id: Any, bbox: list[float], score: float) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}


def two_cats_and_a_dog() -> dict[str, Any]:
    """Two images, a small, a large and a medium box, and a class without boxes."""
    return {
        "images": [{"id": 1, "width": 200, "height": 200}, {"id": 2, "width": 200, "height": 200}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 9, "name": "emu"}],
        "annotations": [
            annotation(1, 1, 3, [10.0, 10.0, 20.0, 20.0]),
            annotation(2, 2, 3, [50.0, 60.0, 120.0, 100.0]),
            annotation(3, 2, 7, [0.0, 0.0, 60.0, 60.0]),
        ],
    }


def perfect(ground_truth: dict[str, Any]) -> list[dict[str, Any]]:
    return [result(a["image_id"], a["category_id"], a["bbox"], 0.9) for a in ground_truth["annotations"]]


@pytest.fixture(params=["cocoapi", "low_ap"])
def fixture_case(request: pytest.FixtureRequest, shared_data: Path) -> tuple[Any, Any, list[float]]:
    folder = shared_data / "eval_fixtures"
    truth = json.loads((folder / f"{request.param}_gt.json").read_text())
    results = json.loads((folder / f"{request.param}_results.json").read_text())
    return truth, results, json.loads((folder / "expected.json").read_text())[request.param]


def test_published_numbers(fixture_case: Any, capfd: pytest.CaptureFixture[str]) -> None:
    truth, results, expected = fixture_case
    before = copy.deepcopy((truth, results))
    metrics = coco_metrics(truth, results)
    assert twelve(metrics) == pytest.approx(expected, abs=1e-3)
    assert metrics.images == len(truth["images"])
    assert metrics.boxes == sum(not a["iscrowd"] for a in truth["annotations"])
    assert capfd.readouterr() == ("", "")
    assert (truth, results) == before


def test_pycocotools_agrees_on_the_fixtures(fixture_case: Any) -> None:
    truth, results, _ = fixture_case
    metrics = coco_metrics(truth, results)
    reference = by_pycocotools(truth, results)
    assert twelve(metrics) == pytest.approx(list(reference.stats), abs=1e-6)
    names = {category["id"]: category["name"] for category in truth["categories"]}
    for index, category_id in enumerate(reference.params.catIds):
        precision = reference.eval["precision"][:, :, index, 0, -1]
        for ours, theirs in (
            (metrics.per_class[names[category_id]], precision),
            (metrics.per_class_ap50[names[category_id]], precision[0]),
        ):
            if (theirs == -1).all():
                assert ours is None
            else:
                assert ours == pytest.approx(theirs.mean(), abs=1e-6)


# Corners on a coarse grid, so that overlaps, exact hits and equal boxes are common.
corner = st.integers(0, 12).map(lambda step: step * 10.0)
side = st.integers(1, 12).map(lambda step: step * 10.0)
boxes = st.tuples(corner, corner, side, side).map(list)


@st.composite
def small_cases(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Up to three images and classes, crowds among the boxes, equal scores among the results."""
    image_ids = draw(st.lists(st.integers(0, 50), min_size=1, max_size=3, unique=True))
    category_ids = draw(st.lists(st.integers(0, 50), min_size=1, max_size=3, unique=True))
    places = st.tuples(st.sampled_from(image_ids), st.sampled_from(category_ids), boxes)
    truth = {
        "images": [{"id": i, "width": 240, "height": 240} for i in image_ids],
        "categories": [{"id": c, "name": f"class {c}"} for c in category_ids],
        "annotations": [
            annotation(number, *place, iscrowd=crowd)
            for number, (place, crowd) in enumerate(
                draw(st.lists(st.tuples(places, st.sampled_from([0, 0, 0, 1])), max_size=8)), start=1
            )
        ],
    }
    scores = st.integers(0, 10).map(lambda tenths: tenths / 10)
    found = draw(st.lists(st.tuples(places, scores), min_size=1, max_size=12))
    return truth, [result(*place, score) for place, score in found]


@settings(max_examples=100, deadline=None)
@given(small_cases())
def test_pycocotools_agrees_on_small_cases(case: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    truth, results = case
    reference = by_pycocotools(truth, results)
    metrics = coco_metrics(truth, results)
    assert twelve(metrics) == pytest.approx(list(reference.stats), abs=1e-6)
    for index, category_id in enumerate(reference.params.catIds):
        values = reference.eval["precision"][:, :, index, 0, -1]
        expected = None if (values == -1).all() else pytest.approx(values.mean(), abs=1e-6)
        assert metrics.per_class[f"class {category_id}"] == expected


def test_perfect_predictions() -> None:
    truth = two_cats_and_a_dog()
    metrics = coco_metrics(truth, perfect(truth))
    assert (metrics.ap, metrics.ap50, metrics.ap75, metrics.ar100) == pytest.approx((1, 1, 1, 1))
    assert metrics.per_class == pytest.approx({"cat": 1.0, "dog": 1.0, "emu": None})
    assert metrics.per_class_ap50 == pytest.approx({"cat": 1.0, "dog": 1.0, "emu": None})
    assert (metrics.images, metrics.boxes) == (2, 3)


def test_a_box_moved_by_a_quarter_counts_at_low_thresholds_only() -> None:
    truth = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [annotation(1, 1, 1, [0.0, 0.0, 100.0, 100.0])],
    }
    metrics = coco_metrics(truth, [result(1, 1, [25.0, 0.0, 100.0, 100.0], 0.9)])  # IoU 0.6
    assert (metrics.ap50, metrics.ap75) == (pytest.approx(1), 0)
    assert metrics.ap == pytest.approx(0.3)  # thresholds 0.50, 0.55 and 0.60 of ten


def test_results_of_detections() -> None:
    truth = two_cats_and_a_dog()
    results = []
    for image_id in (1, 2):
        mine = [a for a in truth["annotations"] if a["image_id"] == image_id]
        corners = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in mine)]
        detections = Detections(
            boxes_xyxy=np.array(corners, dtype=np.float32),
            scores=np.full(len(mine), 0.8, dtype=np.float32),
            labels=np.array([(3, 7, 9).index(a["category_id"]) for a in mine], dtype=np.int64),
            class_names=("cat", "dog", "emu"),
            image_size=(200, 200),
            category_ids=(3, 7, 9),
        )
        results += detections.to_coco(image_id)
    assert coco_metrics(truth, results).ap == pytest.approx(1)


def test_no_results() -> None:
    metrics = coco_metrics(two_cats_and_a_dog(), [])
    assert twelve(metrics) == [0.0] * 12
    assert metrics.per_class == {"cat": 0.0, "dog": 0.0, "emu": None}


@pytest.mark.parametrize("emptied", ["annotations", "categories", "images"])
def test_no_ground_truth(emptied: str) -> None:
    truth = two_cats_and_a_dog() | {"annotations": []} | {emptied: []}
    results = [result(1, 3, [0.0, 0.0, 10.0, 10.0], 0.5)] if emptied == "annotations" else []
    metrics = coco_metrics(truth, results)
    assert twelve(metrics) == [-1.0] * 12
    assert set(metrics.per_class.values()) <= {None}
    assert metrics.boxes == 0


def test_crowds_are_neither_missed_nor_counted() -> None:
    truth = two_cats_and_a_dog()
    truth["annotations"].append(annotation(4, 1, 3, [100.0, 100.0, 90.0, 90.0], iscrowd=1))
    inside_the_crowd = result(1, 3, [110.0, 110.0, 20.0, 20.0], 0.99)
    metrics = coco_metrics(truth, [*perfect(truth)[:3], inside_the_crowd])
    assert metrics.ap == pytest.approx(1)
    assert metrics.boxes == 3


def test_area_and_iscrowd_may_be_missing() -> None:
    truth = two_cats_and_a_dog()
    expected = coco_metrics(truth, perfect(truth)[:2])
    for box in truth["annotations"]:
        del box["area"], box["iscrowd"]
    assert coco_metrics(truth, perfect(truth)[:2]) == expected
    assert expected.ap_small == pytest.approx(1)


def test_annotation_id_zero_is_matched() -> None:
    truth = two_cats_and_a_dog()
    for number, box in enumerate(truth["annotations"]):
        box["id"] = number
    assert coco_metrics(truth, perfect(truth)).ap == pytest.approx(1)


def test_repeated_annotation_ids_lose_no_box() -> None:
    truth = two_cats_and_a_dog()
    for box in truth["annotations"]:
        box["id"] = 5
    assert coco_metrics(truth, perfect(truth)[:1]).ar100 == pytest.approx(0.25)  # cat 1 of 2, dog 0 of 1


def test_ids_of_any_kind() -> None:
    truth = two_cats_and_a_dog()
    expected = coco_metrics(truth, perfect(truth)[1:])
    names = {1: "one.jpg", 2: "two.jpg"}
    for image in truth["images"]:
        image["id"] = names[image["id"]]
    for box in truth["annotations"]:
        box["image_id"] = names[box["image_id"]]
    assert coco_metrics(truth, perfect(truth)[1:]) == expected


def test_classes_that_share_a_name_are_told_apart() -> None:
    truth = two_cats_and_a_dog()
    truth["categories"][1]["name"] = "cat"
    metrics = coco_metrics(truth, perfect(truth)[:2])
    assert metrics.per_class == pytest.approx({"cat (3)": 1.0, "cat (7)": 0.0, "emu": None})


@pytest.mark.parametrize(("field", "listed"), [("image_id", "images"), ("category_id", "categories")])
@pytest.mark.parametrize("kind", ["annotation", "result"])
def test_strangers_are_named(kind: str, field: str, listed: str) -> None:
    truth = two_cats_and_a_dog()
    results = perfect(truth)
    (truth["annotations"] if kind == "annotation" else results)[1][field] = 77
    with pytest.raises(DataError, match=f"^{kind} 2: {field} 77 is not among the ground truth's {listed}$"):
        coco_metrics(truth, results)


def test_json_on_disk(tmp_path: Path) -> None:
    truth = two_cats_and_a_dog()
    metrics = coco_metrics(truth, perfect(truth))
    path = tmp_path / "metrics.json"
    path.write_text("an older one")
    metrics.to_json(path)
    assert Metrics(**json.loads(path.read_text(encoding="utf-8"))) == metrics
    assert list(tmp_path.iterdir()) == [path]


def test_rows() -> None:
    truth = two_cats_and_a_dog()
    truth["categories"][1]["name"] = "\x1b[2J"  # would clear the screen
    rows = coco_metrics(truth, perfect(truth)[:1]).rows()
    assert [tuple(row.values()) for row in rows] == [
        ("all", "0.252", "0.252"), ("cat", "0.505", "0.505"), ("\\x1b[2J", "0.000", "0.000"), ("emu", "n.a.", "n.a."),
    ]  # fmt: skip
