"""Post-processing against the textbook's loop over boxes, and at the edges."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from efficientdet.errors import SettingError, UnknownNameError
from efficientdet.inference import nms as module
from efficientdet.inference.nms import suppress
from efficientdet.inference.postprocess import BatchDetections, postprocess
from efficientdet.inference.settings import PostprocessSettings
from efficientdet.settings import kinds, to_dict

NMS_KINDS = kinds(PostprocessSettings)["nms"].choices
TOLERANCE = 1e-5  # of a score


# ---- the textbook -------------------------------------------------------------------------------------------------


def iou_with(box: Any, others: Any) -> Any:
    """IoU of one box with many, float64."""
    sides = np.maximum(np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]), 0)
    shared = sides[:, 0] * sides[:, 1]
    areas = (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])
    union = (box[2] - box[0]) * (box[3] - box[1]) + areas - shared
    return np.where(union > 0, shared / np.maximum(union, 1e-300), 0.0)


def check_greedy(boxes: Any, scores: Any, labels: Any, rows: list[tuple[int, float]], how: PostprocessSettings) -> None:
    """Follow the textbook's loop, taking at each step what `rows` took, which must be a best one then.

    Where scores are equal the textbook leaves the choice open, and so does this: any of the equal ones will do.

    Args:
        boxes: (N, 4) candidates.
        scores: (N,) before suppression.
        labels: (N,).
        rows: (candidate, final score) of what was kept, best first.
        how: kind, thresholds and the limit.
    """
    boxes, left = boxes.astype(np.float64), scores.astype(np.float64).copy()
    for candidate, final in rows:
        best = left.max()
        assert left[candidate] >= best - TOLERANCE, f"{candidate} ({left[candidate]}) was taken before {best}"
        assert final == pytest.approx(left[candidate], abs=TOLERANCE)
        assert final >= how.score_threshold
        overlap = iou_with(boxes[candidate], boxes)
        if how.nms == "hard":
            decay = np.where(overlap > how.iou_threshold, 0.0, 1.0)
        else:
            decay = np.exp(-(overlap**2) / how.sigma)
        left = left * np.where(labels == labels[candidate], decay, 1.0)
        left[candidate] = 0.0
    assert len(rows) <= how.max_detections
    if len(rows) < how.max_detections:  # nothing worth keeping was left
        assert left.max(initial=0.0) <= max(how.score_threshold, 1e-30) + TOLERANCE


def check_postprocess(
    logits: Tensor, boxes: Tensor, found: BatchDetections, picture: int, how: PostprocessSettings
) -> None:
    """One picture's detections follow the textbook's loop over all (anchor, class) pairs."""
    anchors, classes = logits.shape
    candidate_boxes = boxes.repeat_interleave(classes, 0).numpy()
    labels = np.tile(np.arange(classes), anchors)
    scores = logits.double().sigmoid().flatten().numpy()
    allowed = np.argsort(-scores, kind="stable")[: how.max_candidates]
    used: set[int] = set()
    rows = []
    for i in range(int(found.counts[picture])):
        box, label = found.boxes_xyxy[picture, i].numpy(), int(found.labels[picture, i])
        same = np.abs(candidate_boxes - box).max(1) <= 1e-3
        matching = [c for c in allowed if same[c] and labels[c] == label and c not in used]
        assert matching, f"row {i} is no candidate, or was detected twice"
        used.add(matching[0])  # of equal boxes the best comes first
        rows.append((matching[0], float(found.scores[picture, i])))
    keep = np.zeros(len(scores), bool)
    keep[allowed] = True
    check_greedy(candidate_boxes, np.where(keep, scores, 0.0), labels, rows, how)


def random_heads(
    seed: int, anchors: int, classes: int, spread: int, batch: int = 1, steps: int | None = None, side: int = 2
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, A, K), deltas of zero, and integer boxes as anchors, some of them negative.

    They overlap the more, the smaller the spread (of their corners) and the larger the smallest half side.
    """
    rng = np.random.default_rng(seed)
    corners = rng.integers(-10, spread - 9, (anchors, 2))
    # Even sides: half of them and the center are then exact in float32, and so are all areas.
    boxes = np.concatenate([corners, corners + 2 * rng.integers(side, 20, (anchors, 2))], 1)
    logits = rng.normal(0, 2, (batch, anchors, classes))
    if steps is not None:  # few values, many ties
        logits = np.round(logits * steps) / steps
    return (
        torch.from_numpy(logits).float(),
        torch.zeros(batch, anchors, 4),
        torch.from_numpy(boxes).float(),
    )


def run(heads: tuple[Tensor, Tensor, Tensor], how: PostprocessSettings, **picture: Tensor) -> BatchDetections:
    logits, deltas, anchors = heads
    middle = logits.shape[1] // 3  # two levels, so that lists are joined in order
    levels = [logits[:, :middle], logits[:, middle:]], [deltas[:, :middle], deltas[:, middle:]]
    return postprocess(*levels, anchors, how, **picture)


# ---- against the textbook -----------------------------------------------------------------------------------------

kinds = st.sampled_from(["hard", "soft"])


@settings(deadline=None)
@given(kinds, st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 4), st.sampled_from([10, 30, 200]), st.data())
def test_suppress_is_the_textbooks_loop(
    kind: str, seed: int, count: int, classes: int, spread: int, data: st.DataObject
) -> None:
    how = PostprocessSettings(
        score_threshold=0.0, nms=kind, max_detections=1000,
        iou_threshold=data.draw(st.sampled_from([0.3, 0.5, 0.7])), sigma=data.draw(st.sampled_from([0.1, 0.5, 2.0])),
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    boxes = random_heads(seed, count, 1, spread)[2]
    # Sixteenths: many equal scores, and zeros, which mark empty places.
    scores = torch.from_numpy(np.sort(rng.integers(0, 17, count) / 16)[::-1].copy()).float()
    labels = torch.from_numpy(rng.integers(0, classes, count))
    final = suppress(boxes[None], scores[None], labels[None], how)[0]
    assert final.shape == scores.shape and (final <= scores).all() and (final >= 0).all()
    order = sorted((i for i in range(count) if final[i] > 0), key=lambda i: (-float(final[i]), i))
    check_greedy(boxes.numpy(), scores.numpy(), labels.numpy(), [(i, float(final[i])) for i in order], how)
    if kind == "hard":  # without decay the order is settled: equal scores go by place
        kept: list[int] = []
        for i in range(count):
            rivals = [k for k in kept if labels[k] == labels[i]]
            overlap = iou_with(boxes[i].double().numpy(), boxes[rivals].double().numpy())
            if scores[i] > 0 and not (overlap > how.iou_threshold).any():
                kept.append(i)
        assert (final > 0).nonzero()[:, 0].tolist() == kept


@settings(deadline=None)
@given(
    kinds, st.integers(0, 10**6), st.integers(3, 60), st.integers(1, 5), st.sampled_from([10, 40, 200]),
    st.sampled_from([None, 1, 4]), st.sampled_from([1, 3, 10, 500]), st.sampled_from([0.0, 0.001, 0.3, 0.9]),
)  # fmt: skip
def test_postprocess_is_the_textbooks_loop(
    kind: str, seed: int, anchors: int, classes: int, spread: int,
    steps: int | None, limit: int, threshold: float,
) -> None:  # fmt: skip
    heads = random_heads(seed, anchors, classes, spread, steps=steps)
    how = PostprocessSettings(score_threshold=threshold, nms=kind, max_detections=limit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", 4)  # several blocks already for a few candidates
        found = run(heads, how)
    check_postprocess(heads[0][0], heads[2], found, 0, how)


@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("spread", [20, 60, 400])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_several_blocks(kind: str, spread: int, steps: int | None) -> None:
    """700 clustered candidates: the first block leaves too few, so suppression goes on beyond it."""
    heads = random_heads(spread, 700, 1, spread, steps=steps, side=12)
    how = PostprocessSettings(score_threshold=0.0, nms=kind, max_detections=100)
    check_postprocess(heads[0][0], heads[2], run(heads, how), 0, how)


@pytest.mark.parametrize(("kind", "is_in_blocks"), [("soft", True), ("hard", False)])
def test_clusters_do_need_more_than_one_block(monkeypatch: pytest.MonkeyPatch, kind: str, is_in_blocks: bool) -> None:
    """Hard NMS goes on in the textbook's loop."""
    blocks = []

    def counting(boxes: Tensor, *rest: Any) -> Tensor:
        blocks.append(boxes.shape[1])
        return suppress(boxes, *rest)

    monkeypatch.setattr(module, "suppress", counting)
    run(random_heads(20, 700, 1, 20, side=12), PostprocessSettings(score_threshold=0.0, nms=kind))
    assert (len(blocks) > 1) == is_in_blocks and max(blocks) <= module.BLOCK


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_a_batch_is_its_pictures_one_by_one(kind: str) -> None:
    """Pictures that need different numbers of blocks and give different numbers of detections, one of them none."""
    logits, deltas, anchors = random_heads(3, 400, 2, 30, batch=4, side=12)
    logits[1] -= 5
    logits[2] = -20
    how = PostprocessSettings(score_threshold=0.05, nms=kind, max_detections=30)
    sizes = torch.tensor([[30.0, 40.0], [200.0, 100.0], [60.0, 60.0], [25.0, 90.0]])
    scales = torch.tensor([1.0, 0.5, 2.0, 0.25])
    together = run((logits, deltas, anchors), how, scales=scales, image_sizes=sizes)
    assert together.counts[2] == 0 and len(set(together.counts.tolist())) > 2
    for i in range(4):
        one = slice(i, i + 1)
        alone = run((logits[one], deltas[one], anchors), how, scales=scales[one], image_sizes=sizes[one])
        count = int(alone.counts[0])
        assert int(together.counts[i]) == count
        for name in ("boxes_xyxy", "scores", "labels"):
            rows = getattr(together, name)[i]
            assert torch.equal(rows[:count], getattr(alone, name)[0, :count]), name
            assert (rows[count:] == 0).all(), name


# ---- candidates ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 7, 50])
def test_suppression_sees_no_more_than_max_candidates(limit: int) -> None:
    heads = random_heads(5, 100, 3, 60)
    how = PostprocessSettings(score_threshold=0.0, max_candidates=limit)
    found = run(heads, how)
    check_postprocess(heads[0][0], heads[2], found, 0, how)
    assert 0 < int(found.counts[0]) <= limit


# ---- classes, boxes, pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_classes_never_affect_each_other(kind: str) -> None:
    """Every class gives what it gives alone, though all lie on the same boxes, some with negative coordinates."""
    logits, deltas, anchors = random_heads(9, 80, 6, 25)
    how = PostprocessSettings(score_threshold=0.01, nms=kind, max_detections=1000)
    together = run((logits, deltas, anchors), how)
    for label in range(6):
        alone = run((logits[..., label : label + 1].contiguous(), deltas, anchors), how)
        mine = together.labels[0, : int(together.counts[0])] == label
        assert torch.equal(together.boxes_xyxy[0, : len(mine)][mine], alone.boxes_xyxy[0, : int(alone.counts[0])])
        assert torch.allclose(together.scores[0, : len(mine)][mine], alone.scores[0, : int(alone.counts[0])], atol=1e-6)


def test_one_anchor_may_have_several_classes() -> None:
    logits = torch.tensor([[[2.0, 1.0, -9.0]]])
    found = postprocess([logits], [torch.zeros(1, 1, 4)], torch.tensor([[0.0, 0, 8, 8]]), PostprocessSettings(0.1))
    assert found.labels[0].tolist() == [0, 1] and found.counts.tolist() == [2]
    assert found.scores[0].tolist() == pytest.approx([torch.tensor(x).sigmoid().item() for x in (2.0, 1.0)])


def test_boxes_are_clipped_before_suppression_and_mapped_back() -> None:
    """Two boxes that differ only outside of the picture are one box within it."""
    anchors = torch.tensor([[10.0, 10.0, 40.0, 40.0], [10.0, 10.0, 40.0, 400.0], [-60.0, 0.0, 20.0, 8.0]])
    heads = torch.tensor([[[3.0], [2.0], [1.0]]]), torch.zeros(1, 3, 4), anchors
    how = PostprocessSettings(0.1)
    whole = run(heads, how)
    assert whole.boxes_xyxy[0].tolist() == anchors.tolist()  # neither clipped nor scaled
    # The original picture is 20 x 30 (height, width); the network saw it twice as large.
    found = run(heads, how, scales=torch.tensor([2.0]), image_sizes=torch.tensor([[20.0, 30.0]]))
    count = int(found.counts[0])
    assert found.boxes_xyxy[0, :count].tolist() == [[5.0, 5.0, 20.0, 20.0], [0.0, 0.0, 10.0, 4.0]]


def test_iou_of_exactly_the_threshold_survives() -> None:
    anchors = torch.tensor([[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 4.0]])  # IoU 1/2
    heads = torch.tensor([[[3.0], [2.0], ]]), torch.zeros(1, 2, 4), anchors  # fmt: skip
    assert run(heads, PostprocessSettings(0.1, iou_threshold=0.5)).counts.tolist() == [2]
    assert run(heads, PostprocessSettings(0.1, iou_threshold=0.49)).counts.tolist() == [1]


def test_results_have_their_documented_types() -> None:
    found = run(random_heads(1, 20, 2, 50, batch=3), PostprocessSettings(max_detections=7))
    assert found.boxes_xyxy.dtype == found.scores.dtype == torch.float32
    assert found.labels.dtype == found.counts.dtype == torch.int64
    assert found.boxes_xyxy.shape == (3, 7, 4) and found.scores.shape == found.labels.shape == (3, 7)
    assert (found.scores.diff(dim=1) <= 0).all()


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_nothing_found(kind: str, threshold: float) -> None:
    logits, deltas, anchors = random_heads(1, 20, 2, 50, batch=2)
    found = run((logits - 50, deltas, anchors), PostprocessSettings(threshold, nms=kind))
    assert found.counts.tolist() == [0, 0]
    assert found.boxes_xyxy.shape[2] == 4 and found.scores.sum() == 0 and found.labels.sum() == 0


# ---- what is not finite, and precision ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NMS_KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("part", ["logits", "deltas"])
@pytest.mark.parametrize("threshold", [0.0, 0.001])
def test_outputs_that_are_not_finite_give_no_detection(kind: str, value: float, part: str, threshold: float) -> None:
    logits, deltas, anchors = random_heads(4, 30, 2, 300)
    how = PostprocessSettings(threshold, nms=kind, max_detections=25)
    bad = [0, 11, 29]
    good = [i for i in range(30) if i not in bad]
    expected = run((logits[:, good], deltas[:, good], anchors[good]), how)
    (logits if part == "logits" else deltas)[:, bad] = value
    found = run((logits, deltas, anchors), how)
    for name in ("boxes_xyxy", "scores", "labels", "counts"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


@pytest.mark.parametrize("size", [None, torch.tensor([[100.0, 100.0]])])
def test_all_not_finite_or_huge(size: Tensor | None) -> None:
    logits, deltas, anchors = random_heads(4, 30, 2, 300)
    picture = {} if size is None else {"image_sizes": size}
    for broken in (torch.full_like(deltas, float("nan")), torch.full_like(deltas, 3e38)):
        found = run((logits, broken, anchors), PostprocessSettings(), **picture)
        assert found.boxes_xyxy.isfinite().all() and found.scores.isfinite().all()
    nothing = run((torch.full_like(logits, float("nan")), deltas, anchors), PostprocessSettings(0.0), **picture)
    assert nothing.counts.tolist() == [0] and (nothing.boxes_xyxy == 0).all()


@pytest.mark.parametrize("kind", NMS_KINDS)
def test_autocast_changes_nothing(kind: str) -> None:
    heads = random_heads(8, 600, 1, 60)
    how = PostprocessSettings(nms=kind)
    expected = run(heads, how)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(heads, how)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def test_half_precision_outputs() -> None:
    logits, deltas, anchors = random_heads(8, 50, 1, 200, steps=8)  # eighths are exact in bfloat16
    found = run((logits.bfloat16(), deltas.bfloat16(), anchors), PostprocessSettings(max_detections=5))
    assert found.boxes_xyxy.dtype == found.scores.dtype == torch.float32
    expected = run((logits, deltas, anchors), PostprocessSettings(max_detections=5))
    assert torch.equal(found.scores, expected.scores)


def test_the_outputs_are_left_alone() -> None:
    logits, deltas, anchors = random_heads(8, 50, 2, 200)
    logits[0, 3], deltas[0, 4] = float("nan"), float("nan")
    before = [logits.clone(), deltas.clone(), anchors.clone()]
    run((logits, deltas, anchors), PostprocessSettings(), image_sizes=torch.tensor([[50.0, 50.0]]))
    for x, y in zip((logits, deltas, anchors), before, strict=True):
        assert torch.equal(x.nan_to_num(7), y.nan_to_num(7))


# ---- thresholds by class ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hard", "soft", "matrix"])
@pytest.mark.parametrize("thresholds", [(0.2, 0.6, 0.9), (0.9, 0.2, 0.6)])
def test_each_class_has_its_threshold(kind: str, thresholds: tuple[float, ...]) -> None:
    """What is left are the detections with all scores that reach the threshold of their class."""
    heads = random_heads(3, 80, 3, 200, batch=2)
    every = run(heads, PostprocessSettings(0.01, nms=kind, max_detections=1000))
    found = run(heads, PostprocessSettings(thresholds, nms=kind, max_detections=1000))
    for i in range(2):
        kept = every.scores[i] >= torch.tensor(thresholds)[every.labels[i]]
        kept &= torch.arange(len(kept)) < every.counts[i]
        assert 0 < int(found.counts[i]) == int(kept.sum()) < int(every.counts[i])
        assert torch.allclose(found.scores[i, : found.counts[i]], every.scores[i][kept])
        assert torch.equal(found.labels[i, : found.counts[i]], every.labels[i][kept])


def test_a_class_under_its_threshold_takes_no_place_of_another() -> None:
    heads = random_heads(4, 80, 2, 400)
    found = run(heads, PostprocessSettings((1.0, 0.1), max_detections=10))
    assert found.counts.tolist() == [10] and set(found.labels[0].tolist()) == {1}


def test_thresholds_for_another_number_of_classes() -> None:
    with pytest.raises(SettingError, match="score_threshold has 2 values, the detector 3 classes"):
        run(random_heads(3, 8, 3, 200), PostprocessSettings((0.1, 0.2)))


# ---- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"score_threshold": -0.1}, "score_threshold is -0.1"),
        ({"score_threshold": 1.5}, "score_threshold is 1.5"),
        ({"score_threshold": float("nan")}, "score_threshold is nan"),
        ({"iou_threshold": 2}, "iou_threshold is 2"),
        ({"max_detections": 0}, "max_detections is 0"),
        ({"max_candidates": -1}, "max_candidates is -1"),
        ({"sigma": 0.0}, "sigma is 0.0"),
        ({"sigma": float("nan")}, "sigma is nan"),
    ],
)
def test_settings_out_of_range(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        PostprocessSettings(**fields)


def test_unknown_kind() -> None:
    with pytest.raises(UnknownNameError, match="unknown nms 'sofd'; did you mean 'soft'"):
        PostprocessSettings(nms="sofd")


def test_settings_survive_a_dictionary() -> None:
    for how in (PostprocessSettings(0.2, nms="soft", sigma=0.3), PostprocessSettings((0.2, 0.5))):
        assert PostprocessSettings(**json.loads(json.dumps(to_dict(how)))) == how
