"""The reference's matching, losses and gradients on five made-up pictures."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from efficientdet.boxes import pairwise_iou
from efficientdet.family import MODELS, level_sizes
from efficientdet.network.anchors import make_anchors
from efficientdet.training.assignment import BACKGROUND, Matches, match_anchors
from efficientdet.training.losses import LossSettings, detection_loss

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "training.json").read_bytes())
IMAGE_SIZE = (GOLDEN["settings"]["height"], GOLDEN["settings"]["width"])
CLASSES = GOLDEN["settings"]["num_classes"]
SIZES = level_sizes(IMAGE_SIZE, MODELS["d0"].levels)
ANCHORS_OF_LEVELS = [9 * height * width for height, width in SIZES]

images = pytest.mark.parametrize("image", GOLDEN["images"], ids=lambda image: f"{len(image['classes'])}-boxes")


def _annotations(image: dict[str, Any]) -> tuple[Tensor, Tensor]:
    boxes = torch.tensor(image["boxes_xyxy"], dtype=torch.float32).reshape(-1, 4)
    return boxes, torch.tensor(image["classes"], dtype=torch.int64)


def _match(image: dict[str, Any]) -> Matches:
    return match_anchors(make_anchors(MODELS["d0"], IMAGE_SIZE), *_annotations(image))


@images
def test_matches(image: dict[str, Any]) -> None:
    match = _match(image)
    positive = (match.labels != BACKGROUND).nonzero()[:, 0]
    assert positive.tolist() == image["positive_anchors"]
    assert match.labels[positive].tolist() == image["positive_classes"]
    assert (match.labels[match.labels < 0] == -1).all()
    ours_yx = match.deltas[positive][:, [1, 0, 3, 2]].numpy()
    theirs = np.array(image["positive_box_targets"]).reshape(-1, 4)
    assert np.allclose(ours_yx, theirs, rtol=1e-6, atol=1e-6)
    # Elements that are exactly 0 are left out of the box loss, so the zeros must be exact on both sides.
    assert int((match.deltas[positive] == 0).sum()) == image["zero_box_targets_of_positives"]
    assert (match.deltas[match.labels == BACKGROUND] == 0).all()


@images
def test_matches_per_level(image: dict[str, Any]) -> None:
    match = _match(image)
    labels, deltas = match.labels.split(ANCHORS_OF_LEVELS), match.deltas.split(ANCHORS_OF_LEVELS)
    assert [int((x >= 0).sum()) for x in labels] == image["positives_per_level"]
    assert [int(x.sum()) for x in labels] == image["class_target_sum_per_level"]
    sums = [x.double().abs().sum().item() for x in deltas]
    assert sums == pytest.approx(image["box_target_abs_sum_per_level"], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("number", [i for i, x in enumerate(GOLDEN["images"]) if x["classes"]])
def test_every_box_claims_its_best_anchor(number: int) -> None:
    image = GOLDEN["images"][number]
    boxes, labels = _annotations(image)
    anchors = make_anchors(MODELS["d0"], IMAGE_SIZE)
    found = match_anchors(anchors, boxes, labels)
    iou = pairwise_iou(boxes.double(), anchors.double())
    assert iou.amax(1).tolist() == pytest.approx(image["best_iou_per_box"], rel=1e-6)
    for box, anchor in enumerate(image["best_anchor_per_box"]):
        tied = image["forced_ties"].get(str(box))
        if tied:  # the lowest of the tied ones is positive for this box, and none of the others
            positive = [a for a in tied if int(found.labels[a]) == int(labels[box])]
            assert positive == [min(tied)]
        elif image["best_iou_per_box"][box] < 0.5 or not image["shares_a_forced_anchor"]:
            assert found.labels[anchor] == labels[box]


def test_the_first_box_wins_a_shared_anchor() -> None:
    image = next(x for x in GOLDEN["images"] if x.get("shares_a_forced_anchor"))
    shared = image["best_anchor_per_box"]
    assert shared[0] == shared[1] == shared[2]
    assert _match(image).labels[shared[0]] == image["classes"][0]


@pytest.fixture(scope="module")
def heads(filler: ModuleType) -> tuple[list[Tensor], list[Tensor]]:
    """Raw outputs of the batch in float64, NCHW leaves that collect gradients."""
    seed, batch = GOLDEN["settings"]["head_seed"], len(GOLDEN["images"])
    classes, boxes = filler.head_outputs(seed, batch, SIZES, CLASSES)

    def leaves(arrays: list[Any]) -> list[Tensor]:
        return [torch.from_numpy(x).double().requires_grad_() for x in arrays]

    return leaves(classes), leaves(boxes)


def _loss(heads: tuple[list[Tensor], list[Tensor]], settings: LossSettings | None = None) -> Any:
    classes, boxes = heads
    batch = len(GOLDEN["images"])
    logits = [x.permute(0, 2, 3, 1).reshape(batch, -1, CLASSES) for x in classes]
    deltas = [x.permute(0, 2, 3, 1).reshape(batch, -1, 4)[..., [1, 0, 3, 2]] for x in boxes]
    targets = [_annotations(image) for image in GOLDEN["images"]]
    anchors = make_anchors(MODELS["d0"], IMAGE_SIZE)
    return detection_loss(logits, deltas, anchors, [t[0] for t in targets], [t[1] for t in targets], settings)


@pytest.fixture(scope="module")
def focal(heads: tuple[list[Tensor], list[Tensor]]) -> tuple[Any, tuple[Tensor, ...]]:
    """The losses of the reference's settings, and the gradients of their total; computed once."""
    losses = _loss(heads)
    return losses, torch.autograd.grad(losses.total, [*heads[0], *heads[1]])


@pytest.mark.parametrize("name", ["focal", "focal_legacy"])
def test_losses(name: str, focal: tuple[Any, tuple[Tensor, ...]]) -> None:
    expected = GOLDEN["losses"][name]["float64_total_class_box"]
    assert [x.item() for x in focal[0]] == pytest.approx(expected, rel=1e-6)


def test_losses_with_label_smoothing(heads: tuple[list[Tensor], list[Tensor]]) -> None:
    with torch.no_grad():
        losses = _loss(heads, LossSettings(label_smoothing=0.1))
    expected = GOLDEN["losses"]["focal_label_smoothing_0.1"]["float64_total_class_box"]
    assert [x.item() for x in losses] == pytest.approx(expected, rel=1e-6)


def test_losses_in_float32(heads: tuple[list[Tensor], list[Tensor]]) -> None:
    with torch.no_grad():
        losses = _loss(([x.float() for x in heads[0]], [x.float() for x in heads[1]]))
    assert all(x.dtype == torch.float32 for x in losses)
    expected = GOLDEN["losses"]["focal"]["float64_total_class_box"]
    assert [x.item() for x in losses] == pytest.approx(expected, rel=2e-6)


def test_gradients(focal: tuple[Any, tuple[Tensor, ...]], filler: ModuleType) -> None:
    golden = GOLDEN["losses"]["focal"]["gradients_of_total"]
    for gradient, expected in zip(focal[1], [*golden["class_outputs"], *golden["box_outputs"]], strict=True):
        assert list(gradient.shape) == expected["shape"]
        values = gradient.flatten().numpy()
        assert np.abs(values).sum() == pytest.approx(expected["abs_sum"], rel=1e-6)
        assert values.sum() == pytest.approx(expected["sum"], abs=1e-6 * expected["abs_sum"])
        samples = values[filler.sample_indices(values.size, len(expected["samples"]))]
        # The golden samples come from a float32 run: the smallest have lost digits in 1 - p.
        assert np.allclose(samples, expected["samples"], rtol=1e-5, atol=1e-9)
