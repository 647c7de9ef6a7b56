"""The kernels of a GPU give what post-processing on a CPU gives; without a GPU in Triton's interpreter."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from efficientdet.inference.postprocess import BatchDetections, postprocess
from efficientdet.inference.settings import PostprocessSettings

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton", reason="Triton comes with PyTorch for NVIDIA GPUs alone")
module = pytest.importorskip("efficientdet.inference.postprocess_gpu")

SETTINGS = [
    PostprocessSettings(),
    PostprocessSettings(nms="soft", score_threshold=0.05, max_detections=300),
    PostprocessSettings(nms="wbf", score_threshold=0.6),
    PostprocessSettings(nms="matrix"),
    PostprocessSettings(max_candidates=64, max_detections=20, score_threshold=0.01),
    PostprocessSettings(iou_threshold=0.1, score_threshold=0.9),
    PostprocessSettings(score_threshold=(0.4, 0.9, 0.6)),
    PostprocessSettings(score_threshold=1.0),
]


def raw_outputs(kind: torch.dtype, seed: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Of three images and two levels, with many overlaps, equal logits, and some that are not finite."""
    random = torch.Generator().manual_seed(seed)
    logits = [torch.randn(3, count, 3, generator=random) * 2 - 1 for count in (300, 80)]
    logits = [((level * 8).round() / 8).to(kind) for level in logits]
    logits[0][0, 3, 0], logits[1][1, 2, 0] = float("nan"), float("inf")
    deltas = [torch.randn(3, count, 4, generator=random) * 0.3 for count in (300, 80)]
    deltas[0][2, 7] = float("nan")
    centers, sides = torch.rand(380, 2, generator=random) * 200, torch.rand(380, 2, generator=random) * 60 + 4
    return logits, deltas, torch.cat([centers - sides / 2, centers + sides / 2], 1)


def on_both(kind: torch.dtype, seed: int, how: PostprocessSettings) -> tuple[BatchDetections, BatchDetections]:
    logits, deltas, anchors = raw_outputs(kind, seed)
    scales, sizes = torch.tensor([1.0, 0.5, 2.0]), torch.tensor([[200.0, 180.0], [300.0, 400.0], [100.0, 90.0]])
    expected = postprocess([x.float() for x in logits], deltas, anchors, how, scales=scales, image_sizes=sizes)
    levels = [[x.to(DEVICE) for x in part] for part in (logits, deltas)]
    found = module.postprocess_gpu(*levels, anchors.to(DEVICE), how, scales.to(DEVICE), sizes.to(DEVICE))
    return expected, BatchDetections(*(part.cpu() for part in found))


@pytest.mark.parametrize("how", SETTINGS, ids=range(len(SETTINGS)))
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_same_as_on_a_cpu(kind: torch.dtype, how: PostprocessSettings) -> None:
    expected, found = on_both(kind, SETTINGS.index(how), how)
    assert found.counts.tolist() == expected.counts.tolist()
    for image, count in enumerate(expected.counts.tolist()):
        for name in ("anchor_indices", "labels"):
            assert getattr(found, name)[image, :count].tolist() == getattr(expected, name)[image, :count].tolist()
        torch.testing.assert_close(found.scores[image, :count], expected.scores[image, :count])
        torch.testing.assert_close(
            found.boxes_xyxy[image, :count], expected.boxes_xyxy[image, :count], rtol=1e-5, atol=1e-3
        )


def test_too_many_pairs_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_CANDIDATES", 64)
    _, found = on_both(torch.float32, 0, PostprocessSettings(max_candidates=64))
    assert (found.counts == -1).all()


def test_what_does_not_fit_is_known() -> None:
    assert module.fits_gpu(PostprocessSettings())
    for how in ({"candidates": "argmax"}, {"max_candidates": 10_000}, {"score_threshold": 0.0}):
        assert not module.fits_gpu(PostprocessSettings(**how))
