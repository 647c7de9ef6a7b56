"""Fine-tuning under rounding: what is rounded to what, and that an ordinary network comes out."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from efficientdet.data.dataset import DetectionDataset, read_split
from efficientdet.errors import DataError, SettingError
from efficientdet.images import LITE
from efficientdet.inference.detector import Detector, load
from efficientdet.inference.folding import folded_parameters
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.training.quantised import InputRange, finetune_quantised, round_weights, rounded
from efficientdet.weights.checkpoint import CheckpointInfo


@pytest.fixture
def detector(shapes: ModuleType) -> Detector:
    torch.manual_seed(0)
    info = CheckpointInfo(shapes.TINY, ("disc", "square"), (3, 7), LITE, about={"licence": "none"})
    return Detector(EfficientDet(shapes.TINY, 2), info, device="cpu", backend="eager")


@pytest.fixture
def dataset(data: Path) -> DetectionDataset:
    return DetectionDataset(read_split(data, "train"), (64, 64), LITE, cache=False)


def grid_of(values: Tensor, scale: float) -> Tensor:
    return (values / scale - (values / scale).round()).abs()


def test_weights_lie_on_a_grid_of_each_channel() -> None:
    weight = torch.randn(5, 3, 3, 3) * torch.tensor([0.01, 0.1, 1.0, 10.0, 0.0])[:, None, None, None]
    found = round_weights(weight)
    for channel, own in zip(found, weight, strict=True):
        scale = float(own.abs().max()) / 127
        if scale == 0:
            assert not channel.any()
            continue
        assert grid_of(channel, scale).max() < 1e-3
        assert (channel - own).abs().max() <= scale * 0.5001
        assert (channel / scale).abs().max() == pytest.approx(127, abs=1e-3)


def test_rounding_before_and_after_folding_is_the_same() -> None:
    conv, norm = nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert tensor is not None
            tensor.uniform_(0.2, 2)
        norm.weight[2] *= -1
        folded = round_weights(folded_parameters(conv, norm)[0])
        assert norm.running_var is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        torch.testing.assert_close(round_weights(conv.weight) * scale[:, None, None, None], folded)


def test_inputs_are_rounded_within_what_was_seen() -> None:
    inputs = InputRange()
    inputs.add(torch.tensor([0.0, 4.0]))
    inputs.add(torch.tensor([0.0, 6.0]))
    x = torch.tensor([0.0, 1.234, 5.0, 9.0], requires_grad=True)
    found = inputs.round(x)
    assert grid_of(found, 5 / 255).max() < 1e-3
    torch.testing.assert_close(found, torch.tensor([0.0, 1.234, 5.0, 5.0]), atol=5 / 510, rtol=0)
    found.sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([1.0, 1.0, 1.0, 0.0]))  # none where it was cut
    inputs.add(torch.tensor([-2.0, 0.0]))
    assert inputs.limit == pytest.approx(4.0)
    torch.testing.assert_close(inputs.round(torch.tensor([-9.0])), torch.tensor([-4.0]))


def test_a_network_is_rounded_for_a_while(detector: Detector, dataset: DetectionDataset) -> None:
    image = dataset[0].image[None]
    with torch.no_grad():
        before = torch.cat(detector.model(image)[0], 1)
        with rounded(detector.model, dataset):
            during = torch.cat(detector.model(image)[0], 1)
        after = torch.cat(detector.model(image)[0], 1)
    assert torch.equal(before, after)
    assert not torch.equal(before, during)
    assert (before - during).abs().mean() < 0.3 * before.std()


def test_fine_tuning_gives_an_ordinary_network(detector: Detector, data: Path, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in detector.model.state_dict().items()}
    seen: list[tuple[int, int]] = []
    path = tmp_path / "tuned.safetensors"
    tuned = finetune_quantised(
        detector, data, epochs=2, batch_size=3, out=path, progress=lambda step, total, loss: seen.append((step, total))
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert all(torch.equal(before[name], tensor) for name, tensor in detector.model.state_dict().items())
    state = tuned.model.state_dict()
    assert state.keys() == before.keys()
    assert not torch.equal(state["class_head.predict.pointwise.weight"], before["class_head.predict.pointwise.weight"])
    statistics = [name for name in state if "running" in name]
    assert statistics and all(torch.equal(state[name], before[name]) for name in statistics)
    assert tuned.info.about == {"licence": "none", "note": "fine-tuned under the rounding of int8"}
    image = np.full((64, 64, 3), 90, np.uint8)
    again = load(path, device="cpu", backend="eager", score_threshold=0.0).predict(image)
    np.testing.assert_allclose(again.scores, tuned.predict(image, score_threshold=0.0).scores, atol=1e-6)


def test_it_learns(detector: Detector, data: Path) -> None:
    losses: list[float] = []
    finetune_quantised(
        detector, data, epochs=20, batch_size=6, learning_rate=3e-3, most_steps=12,
        progress=lambda step, total, loss: losses.append(loss),
    )  # fmt: skip
    assert len(losses) == 12
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])


def test_other_classes_and_no_steps_are_refused(detector: Detector, shapes: ModuleType, tmp_path: Path) -> None:
    other = shapes.write_shapes(tmp_path / "other", classes=("cat", "dog"))
    with pytest.raises(DataError, match="not the detector's"):
        finetune_quantised(detector, other)
    with pytest.raises(SettingError, match="most_steps is 0"):
        finetune_quantised(detector, other, most_steps=0)
