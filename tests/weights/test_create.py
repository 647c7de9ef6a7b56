"""create_model: from names, specs and changes, with random weights or a checkpoint's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import efficientdet as ed
from efficientdet.errors import SettingError, UnknownNameError, WeightsError
from efficientdet.family import ASPECTS_EXACT, MODELS
from efficientdet.images.letterbox import letterbox
from efficientdet.images.read import read
from efficientdet.inference.benchmark import sample_jpeg
from efficientdet.inference.detector import Detector
from efficientdet.network.efficientdet import CLASS_LAYER, EfficientDet
from efficientdet.weights.checkpoint import save_checkpoint
from efficientdet.weights.create import PAIRS_ABOVE, create_model, random_model
from efficientdet.weights.info import CheckpointInfo, default_preprocessing

SPEC = dataclasses.replace(MODELS["lite0"], width=16, depth=1, head_depth=1, image_size=64, aspects=ASPECTS_EXACT)


@pytest.fixture(scope="module")
def source() -> EfficientDet:
    torch.manual_seed(1)
    return create_model(SPEC, 2)


@pytest.fixture(scope="module")
def checkpoint(source: EfficientDet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "two.safetensors"
    info = CheckpointInfo(SPEC, ("cat", "dog"), (1, 2), default_preprocessing(SPEC))
    save_checkpoint(path, source.state_dict(), info)
    return path


def small(**changes: Any) -> EfficientDet:
    """A network like the checkpoint's, but for the anchors' aspects."""
    return ed.create_model("lite0", **({"width": 16, "depth": 1, "head_depth": 1, "image_size": 64} | changes))


def test_without_weights_they_are_random_and_for_coco() -> None:
    model = small()
    assert model.num_classes == 90 and model.training
    assert dataclasses.replace(model.spec, aspects=ASPECTS_EXACT) == SPEC
    assert small(num_classes=3).num_classes == 3


def test_changes_are_fields_of_the_spec() -> None:
    model = small(num_classes=1, feature_network="Nas_FPN", fusion="softmax", separable=False, depth=2)
    assert (model.spec.feature_network, model.spec.fusion) == ("nas-fpn", "softmax")
    assert (model.spec.separable, model.spec.depth, model.spec.name) == (False, 2, "lite0")
    with pytest.raises(SettingError, match="unknown fields of a model .'wdth'"):
        small(wdth=8)


def test_weights_come_with_their_classes_and_aspects(source: EfficientDet, checkpoint: Path) -> None:
    for model in (small(weights=checkpoint), small(weights=str(checkpoint), num_classes=2)):
        assert model.num_classes == 2 and model.training
        assert model.spec == SPEC
        assert all(torch.equal(model.state_dict()[name], x) for name, x in source.state_dict().items())


def test_anchors_that_are_asked_for_go_before_those_of_the_weights(checkpoint: Path) -> None:
    model = small(weights=checkpoint, anchor_scale=2.0)
    assert model.spec == dataclasses.replace(SPEC, anchor_scale=2.0)


def test_other_classes_need_asking(source: EfficientDet, checkpoint: Path) -> None:
    with pytest.raises(WeightsError, match=r"has 2 classes, not 3; with replace_head=True the last layer"):
        small(weights=checkpoint, num_classes=3)
    torch.manual_seed(5)
    fresh = small(num_classes=3).state_dict()
    torch.manual_seed(5)
    model = small(weights=checkpoint, num_classes=3, replace_head=True)
    for name, tensor in model.state_dict().items():
        expected = fresh[name] if name.startswith(CLASS_LAYER) else source.state_dict()[name]
        assert torch.equal(tensor, expected), name


def test_replace_head_keeps_a_layer_that_fits(source: EfficientDet, checkpoint: Path) -> None:
    model = small(weights=checkpoint, replace_head=True)
    assert all(torch.equal(model.state_dict()[name], x) for name, x in source.state_dict().items())


def test_another_architecture_is_refused_with_every_tensor(checkpoint: Path) -> None:
    with pytest.raises(WeightsError, match=r"two\.safetensors: \d+ tensors do not fit lite0:") as caught:
        small(weights=checkpoint, fusion="fast")
    assert "missing: feature_network.cells.0.td6.fuse.weights (2,)" in str(caught.value)


def test_bundled_weights_by_name() -> None:
    info = ed.load("people").info
    model = ed.create_model(info.spec, weights="people")
    assert model.num_classes == len(info.class_names)
    assert torch.equal(model.backbone.conv_stem.weight, ed.load("people").model.backbone.conv_stem.weight)


@pytest.mark.parametrize("weights", [None, "people"])
@pytest.mark.parametrize("classes", [0, -1])
def test_too_few_classes(classes: int, weights: str | None) -> None:
    with pytest.raises(SettingError, match=f"num_classes is {classes}"):
        ed.create_model("d0", classes, weights=weights)


def test_random_weights_score_like_trained_ones_and_are_always_the_same() -> None:
    image = sample_jpeg()
    model, info = random_model("lite0", 256, image)
    pixels = torch.from_numpy(letterbox(read(image), (256, 256), info.preprocessing)[0])[None]
    with torch.no_grad():
        scores = torch.cat(model(pixels)[0], 1).sigmoid()
    for threshold, count in PAIRS_ABOVE.items():
        assert int((scores > threshold).sum()) == pytest.approx(count, rel=0.05)
    again = random_model("lite0", 256, image)[0].state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())
    assert len(Detector(model, info, backend="eager", score_threshold=0.05).predict(image)) > 5


def test_torchs_random_numbers_go_on_as_before() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    random_model("lite0", 64, np.zeros((8, 8, 3), np.uint8))
    assert torch.equal(torch.rand(2), expected)


def test_the_image_size_is_the_models_own_by_default() -> None:
    assert random_model("lite0", None, sample_jpeg())[1].spec.image_size == 320
    with pytest.raises(UnknownNameError, match="d99"):
        random_model("d99", None, sample_jpeg())
