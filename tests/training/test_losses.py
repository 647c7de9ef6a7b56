"""Losses beyond the goldens: formulas, precision, extremes, and images without boxes."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from efficientdet.boxes import decode_deltas, generalized_iou
from efficientdet.family import MODELS, level_sizes
from efficientdet.network.anchors import make_anchors
from efficientdet.training import losses as losses_module
from efficientdet.training.assignment import IGNORED, Matches, match_anchors, match_batch, match_task_aligned
from efficientdet.training.losses import (
    Losses,
    LossSettings,
    detection_loss,
    focal_loss,
    matched_loss,
    quality_focal_loss,
)

SIZE = (64, 96)
ANCHORS = make_anchors(MODELS["d0"], SIZE)
COUNTS = [9 * height * width for height, width in level_sizes(SIZE, (3, 7))]
CLASSES = 3
BOXES = [
    torch.tensor([[4.0, 4.0, 40.0, 44.0], [50.0, 10.0, 90.0, 60.0]]),
    torch.tensor([[10.0, 20.0, 30.0, 36.0]]),
]
LABELS = [torch.tensor([0, 2]), torch.tensor([1])]
NOTHING = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)


def _outputs(
    batch: int = 2, scale: float = 1.0, dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def make(last: int, shift: float) -> list[Tensor]:
        return [
            (torch.randn(batch, n, last, generator=generator) * scale + shift).to(dtype).requires_grad_()
            for n in COUNTS
        ]

    return make(CLASSES, -3.0), make(4, 0.0)


def _loss(
    outputs: tuple[list[Tensor], list[Tensor]], boxes: list[Tensor] | None = None,
    labels: list[Tensor] | None = None, settings: LossSettings | None = None,
) -> Losses:  # fmt: skip
    return detection_loss(*outputs, ANCHORS, boxes or BOXES, labels or LABELS, settings)


def literal(outputs: tuple[list[Tensor], list[Tensor]], settings: LossSettings) -> tuple[float, float, float]:
    """The losses from their formulas, element by element in numpy."""
    logits = torch.cat(outputs[0], 1).detach().double().numpy()
    deltas = torch.cat(outputs[1], 1).detach().double().numpy()
    classes = boxes = 0.0
    positives = 0
    for i in range(len(BOXES)):
        match = match_anchors(ANCHORS, BOXES[i], LABELS[i])
        positives += int((match.labels >= 0).sum())
        y = np.zeros(logits[i].shape)
        for anchor in (match.labels >= 0).nonzero()[:, 0].tolist():
            y[anchor, int(match.labels[anchor])] = 1.0
        p = 1 / (1 + np.exp(-logits[i]))
        p_t = y * p + (1 - y) * (1 - p)
        alpha_t = y * settings.alpha + (1 - y) * (1 - settings.alpha)
        smooth = y * (1 - settings.label_smoothing) + 0.5 * settings.label_smoothing
        entropy = -smooth * np.log(p) - (1 - smooth) * np.log(1 - p)
        classes += float((alpha_t * (1 - p_t) ** settings.gamma * entropy).sum())
        target = match.deltas.double().numpy()
        error = np.abs(deltas[i] - target)
        huber = np.where(error <= settings.delta, error**2 / 2, settings.delta * (error - settings.delta / 2))
        counted = target != 0 if settings.skips_zero_targets else (match.labels >= 0).numpy()[:, None]
        boxes += float((huber * counted).sum())
    classes, boxes = classes / (positives + 1), boxes / (4 * (positives + 1))
    return classes + settings.box_weight * boxes, classes, boxes


@pytest.mark.parametrize(
    "settings",
    [
        LossSettings(),
        LossSettings(alpha=0.4, gamma=2.0, label_smoothing=0.2, delta=1.0, box_weight=7.0),
        LossSettings(gamma=0.0, skips_zero_targets=False),
    ],
)
def test_formulas(settings: LossSettings) -> None:
    outputs = _outputs(dtype=torch.float64)
    found = _loss(outputs, settings=settings)
    assert [x.item() for x in found] == pytest.approx(literal(outputs, settings), rel=1e-6)
    assert all(x.dtype == torch.float64 for x in found)


def test_boxes_without_zero_targets_lose_the_same_either_way() -> None:
    """An anchor that is the box has four zero targets; leaving them out matters there and nowhere else."""
    outputs = _outputs(1)
    every = LossSettings(skips_zero_targets=False)
    odd = [torch.tensor([[3.3, 5.1, 41.7, 39.9]])], [torch.tensor([1])]
    assert _loss(outputs, *odd).boxes.item() == pytest.approx(_loss(outputs, *odd, every).boxes.item(), rel=1e-6)
    exact = [ANCHORS[1000:1001].clone()], [torch.tensor([1])]
    assert _loss(outputs, *exact).boxes < _loss(outputs, *exact, every).boxes


def test_the_total_is_the_weighted_sum() -> None:
    found = _loss(_outputs(), settings=LossSettings(box_weight=3.0))
    assert found.total.item() == pytest.approx(found.classes.item() + 3 * found.boxes.item())


def test_perfect_outputs_lose_next_to_nothing() -> None:
    matches = [match_anchors(ANCHORS, b, c) for b, c in zip(BOXES, LABELS, strict=True)]
    targets = torch.stack([m.labels for m in matches])
    logits = torch.full((2, len(ANCHORS), CLASSES), -40.0)
    logits.scatter_(2, targets.clamp(min=0)[..., None], torch.where(targets >= 0, 40.0, -40.0)[..., None])
    deltas = torch.stack([m.deltas for m in matches])
    found = _loss((list(torch.split(logits, COUNTS, 1)), list(torch.split(deltas, COUNTS, 1))))
    assert found.total.item() == pytest.approx(0.0, abs=1e-6)
    assert _loss(_outputs()).total > 1


def test_a_batch_of_negatives() -> None:
    outputs = _outputs()
    found = _loss(outputs, [NOTHING[0]] * 2, [NOTHING[1]] * 2)
    assert found.boxes.item() == 0.0
    logits = torch.cat(outputs[0], 1).double().sigmoid()
    expected = (0.75 * logits**1.5 * -(1 - logits).log()).sum()  # divided by 0 + 1
    assert found.classes.item() == pytest.approx(expected.item(), rel=1e-4)
    gradients = torch.autograd.grad(found.total, [*outputs[0], *outputs[1]])
    assert all(g.isfinite().all() for g in gradients)
    assert all((g > 0).all() for g in gradients[:5]) and all((g == 0).all() for g in gradients[5:])


def test_an_image_without_boxes_in_a_batch() -> None:
    """The losses of two images add up before the division by the batch's positives."""
    together = _loss(_outputs(), [BOXES[0], NOTHING[0]], [LABELS[0], NOTHING[1]])
    positives = int((match_anchors(ANCHORS, BOXES[0], LABELS[0]).labels >= 0).sum())
    logits, deltas = _outputs()
    one = _loss(([x[:1] for x in logits], [x[:1] for x in deltas]), BOXES[:1], LABELS[:1])
    other = _loss(([x[1:] for x in logits], [x[1:] for x in deltas]), [NOTHING[0]], [NOTHING[1]])
    expected = one.classes.item() + other.classes.item() / (positives + 1)
    assert together.classes.item() == pytest.approx(expected, rel=1e-5)
    assert together.boxes.item() == pytest.approx(one.boxes.item(), rel=1e-5)


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
@pytest.mark.parametrize("settings", [LossSettings(), LossSettings(label_smoothing=0.1)])
def test_huge_outputs_give_no_nan(scale: float, settings: LossSettings) -> None:
    outputs = _outputs(scale=scale)
    found = _loss(outputs, settings=settings)
    assert all(x.isfinite() for x in found)
    gradients = torch.autograd.grad(found.total, [*outputs[0], *outputs[1]])
    assert all(g.isfinite().all() for g in gradients)


@given(st.floats(-60, 60), st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0, 1.5, 2.0]))
def test_focal_loss_of_one_logit(logit: float, target: float, gamma: float) -> None:
    found, _ = focal_loss(torch.tensor([logit]).double(), bool(target), 0.25, gamma, 0.0)
    sign = 1 if target else -1
    # log1p(exp(-z)) is the cross-entropy, 1 - p_t the sigmoid of the other side
    entropy, miss = math.log1p(math.exp(-sign * logit)), 1 / (1 + math.exp(sign * logit))
    expected = (0.25 if target else 0.75) * miss**gamma * entropy
    assert found.item() == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("is_object", [True, False])
@pytest.mark.parametrize(("gamma", "smoothing"), [(0.0, 0.0), (1.5, 0.0), (2.0, 0.2)])
def test_the_slope_of_the_focal_loss(is_object: bool, gamma: float, smoothing: float) -> None:
    logits, step = torch.linspace(-30, 30, 241).double(), 1e-6
    ahead, behind = (focal_loss(logits + s, is_object, 0.3, gamma, smoothing)[0] for s in (step, -step))
    slope = focal_loss(logits, is_object, 0.3, gamma, smoothing)[1]
    torch.testing.assert_close(slope, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8)


def test_the_gradient_is_that_of_the_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against autograd through every element's own target; the pieces are small and do not divide the levels."""
    monkeypatch.setattr(losses_module, "CPU_CHUNK", 97)
    settings = LossSettings(label_smoothing=0.1)
    outputs = _outputs(dtype=torch.float64)
    found = torch.autograd.grad(_loss(outputs, settings=settings).classes * 3, outputs[0])
    matches = [match_anchors(ANCHORS, b, c).labels for b, c in zip(BOXES, LABELS, strict=True)]
    targets = torch.nn.functional.one_hot(torch.stack(matches) + 1, CLASSES + 1)[..., 1:].double()
    logits = torch.cat(outputs[0], 1)
    p = logits.sigmoid()
    miss = targets * (1 - p) + (1 - targets) * p
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets * 0.9 + 0.05, reduction="none")
    alpha = targets * 0.25 + (1 - targets) * 0.75
    total = 3 * (alpha * miss**1.5 * entropy).sum() / (targets.sum() + 1)
    torch.testing.assert_close(found, torch.autograd.grad(total, outputs[0]))


def test_the_gradient_is_given_once() -> None:
    outputs = _outputs()
    total = _loss(outputs).classes
    torch.autograd.grad(total, outputs[0], retain_graph=True)
    with pytest.raises(RuntimeError, match="no gradient left after one backward pass"):
        torch.autograd.grad(total, outputs[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_outputs_are_summed_in_float32(dtype: torch.dtype) -> None:
    outputs = _outputs(dtype=dtype)
    raised = tuple([x.detach().float().requires_grad_() for x in part] for part in outputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = _loss(outputs)
    expected = _loss(raised)  # type: ignore[arg-type]
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == torch.float32
        assert x.item() == y.item()
    found.total.backward()  # type: ignore[no-untyped-call]
    assert all(x.grad is not None and x.grad.dtype == dtype for x in outputs[0])


def test_autocast_changes_nothing() -> None:
    outputs = _outputs()
    with torch.autocast("cpu", torch.bfloat16):
        inside = _loss(outputs)
    assert [x.item() for x in inside] == [x.item() for x in _loss(outputs)]


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        _loss(_outputs(), BOXES, LABELS[:1])


# ---- ignored regions
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_anchors_in_ignored_regions_have_no_class_loss_and_no_gradient(dtype: torch.dtype) -> None:
    regions = [torch.tensor([[0.0, 0.0, 48.0, 64.0]]), torch.zeros(0, 4)]
    outputs = _outputs(dtype=dtype)
    plain, found = _loss(outputs), detection_loss(*outputs, ANCHORS, BOXES, LABELS, ignored_xyxy=regions)
    targets = match_batch(ANCHORS, BOXES, LABELS, regions)
    left_out = targets.labels == IGNORED
    assert left_out[0].any() and not left_out[1].any()
    logits = torch.cat(outputs[0], 1)
    in_regions = focal_loss(logits.detach().double()[left_out], False, 0.25, 1.5, 0.0)[0].sum() / targets.normalizer()
    assert found.classes.item() == pytest.approx(plain.classes.item() - in_regions.item(), rel=1e-3)
    assert found.boxes.item() == plain.boxes.item()
    gradients = torch.cat(torch.autograd.grad(found.total, outputs[0], retain_graph=True), 1)
    expected = torch.cat(torch.autograd.grad(plain.total, outputs[0]), 1)
    assert (gradients[left_out] == 0).all() and (expected[left_out] != 0).all()
    assert torch.equal(gradients[~left_out], expected[~left_out])


# The GIoU box loss


def _giou_losses(outputs: tuple[list[Tensor], list[Tensor]], settings: LossSettings | None = None) -> Losses:
    return matched_loss(*outputs, match_batch(ANCHORS, BOXES, LABELS), settings, ANCHORS)


def test_giou_is_taken_of_the_predicted_boxes() -> None:
    outputs = _outputs(dtype=torch.float64)
    found = _giou_losses(outputs, LossSettings(giou_weight=3.0))
    expected, positives = 0.0, 0
    for i, (boxes, labels) in enumerate(zip(BOXES, LABELS, strict=True)):
        match = match_anchors(ANCHORS, boxes, labels)
        for anchor in (match.labels >= 0).nonzero()[:, 0].tolist():
            predicted = decode_deltas(torch.cat(outputs[1], 1)[i, anchor], ANCHORS[anchor].double())
            # The box of an anchor is the one that its target decodes to.
            target = decode_deltas(match.deltas[anchor].double(), ANCHORS[anchor].double())
            assert (boxes - target).abs().sum(1).min() < 1e-3
            expected += 1 - generalized_iou(predicted, target).item()
            positives += 1
    assert found.boxes.item() == pytest.approx(expected / (positives + 1), rel=1e-6)
    assert found.classes.item() == _loss(outputs).classes.item()
    assert found.total.item() == pytest.approx(found.classes.item() + 3 * found.boxes.item())


def test_giou_of_perfect_boxes_is_nothing_and_of_negatives_too() -> None:
    logits, deltas = _outputs()
    targets = match_batch(ANCHORS, BOXES, LABELS)
    perfect = list(torch.split(targets.deltas, COUNTS, 1))
    assert matched_loss(logits, perfect, targets, None, ANCHORS).boxes.item() == pytest.approx(0.0, abs=1e-5)
    nothing = match_batch(ANCHORS, [NOTHING[0]] * 2, [NOTHING[1]] * 2)
    found = matched_loss(logits, deltas, nothing, None, ANCHORS)
    assert found.boxes.item() == 0
    gradients = torch.autograd.grad(found.total, deltas)
    assert all((g == 0).all() for g in gradients)


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
def test_giou_of_huge_outputs_gives_no_nan(scale: float) -> None:
    outputs = _outputs(scale=scale)
    found = _giou_losses(outputs)
    assert all(x.isfinite() for x in found)
    assert all(g.isfinite().all() for g in torch.autograd.grad(found.total, [*outputs[0], *outputs[1]]))


def test_giou_pulls_a_box_towards_its_own() -> None:
    """A step against the gradient lowers the loss."""
    logits, deltas = _outputs()
    before = _giou_losses((logits, deltas)).boxes
    gradients = torch.autograd.grad(before, deltas)
    moved = [x.detach() - 0.1 * g for x, g in zip(deltas, gradients, strict=True)]
    assert _giou_losses((logits, moved)).boxes < before


# Task alignment


def _aligned(
    outputs: tuple[list[Tensor], list[Tensor]], boxes: list[Tensor] = BOXES, labels: list[Tensor] = LABELS
) -> Matches:
    images = zip(zip(*outputs[0], strict=True), zip(*outputs[1], strict=True), strict=True)
    matchers = [partial(match_task_aligned, class_logits=x, box_deltas=d, per_place=9) for x, d in images]
    return match_batch(ANCHORS, boxes, labels, [torch.tensor([[60.0, 0.0, 96.0, 40.0]])] * 2, matchers)


@given(st.floats(-60, 60), st.floats(0, 1))
def test_quality_focal_loss_of_one_logit(logit: float, target: float) -> None:
    x = torch.tensor(logit, dtype=torch.float64, requires_grad=True)
    t = torch.tensor(target, dtype=torch.float64)
    expected = (x.sigmoid() - t) ** 2 * torch.nn.functional.binary_cross_entropy_with_logits(x, t)
    found, slope = quality_focal_loss(x.detach(), t)
    torch.testing.assert_close(found, expected.detach())
    torch.testing.assert_close(slope, torch.autograd.grad(expected, x)[0])


def test_the_losses_of_task_alignment_and_their_gradients_are_those_of_the_formulas() -> None:
    outputs = _outputs(dtype=torch.float64)
    targets = _aligned(outputs)
    has_box, left_out = targets.labels >= 0, targets.labels == IGNORED
    assert targets.alignment is not None and has_box.any(1).all() and left_out.any()
    found = matched_loss(*outputs, targets, LossSettings(giou_weight=3.0), ANCHORS)
    logits, wanted = torch.cat(outputs[0], 1), torch.zeros(2, len(ANCHORS), CLASSES, dtype=torch.float64)
    wanted[has_box] = (
        torch.nn.functional.one_hot(targets.labels[has_box], CLASSES) * targets.alignment[has_box][:, None]
    )
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    classes = ((logits.sigmoid() - wanted) ** 2 * entropy)[~left_out].sum()
    anchors = ANCHORS.double().expand(2, -1, -1)[has_box]
    predicted = decode_deltas(torch.cat(outputs[1], 1)[has_box], anchors)
    annotated = decode_deltas(targets.deltas[has_box].double(), anchors)
    boxes = (targets.alignment[has_box] * (1 - generalized_iou(predicted, annotated))).sum()
    expected = [part / (targets.alignment.sum() + 1) for part in (classes + 3 * boxes, classes, boxes)]
    assert [x.item() for x in found] == pytest.approx([x.item() for x in expected], rel=1e-6)
    gradients = torch.autograd.grad(found.total, [*outputs[0], *outputs[1]], retain_graph=True)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected[0], [*outputs[0], *outputs[1]]))


def test_task_alignment_of_a_batch_of_negatives() -> None:
    outputs = _outputs()
    targets = _aligned(outputs, [NOTHING[0]] * 2, [NOTHING[1]] * 2)
    found = matched_loss(*outputs, targets, None, ANCHORS)
    scores = torch.cat(outputs[0], 1).double().sigmoid()[targets.labels != IGNORED]
    assert found.boxes.item() == 0 and targets.normalizer() == 1
    assert found.classes.item() == pytest.approx((scores**2 * -(1 - scores).log()).sum().item(), rel=1e-4)
    gradients = torch.autograd.grad(found.total, [*outputs[0], *outputs[1]])
    assert all(g.isfinite().all() for g in gradients) and all((g == 0).all() for g in gradients[5:])


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
def test_task_alignment_of_huge_outputs_gives_no_nan(scale: float) -> None:
    outputs = _outputs(scale=scale)
    found = matched_loss(*outputs, _aligned(outputs), None, ANCHORS)
    assert all(x.isfinite() for x in found)
    assert all(g.isfinite().all() for g in torch.autograd.grad(found.total, [*outputs[0], *outputs[1]]))
