"""Foreign weights become checkpoints of ours, by themselves where the shapes tell which network they are of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from efficientdet.errors import WeightsError
from efficientdet.family import MODELS
from efficientdet.weights.checkpoint import is_checkpoint, load_checkpoint, save_checkpoint
from efficientdet.weights.convert import convert_file
from efficientdet.weights.create import create_model
from efficientdet.weights.foreign import to_foreign
from efficientdet.weights.registry import COCO_CLASS_NAMES


@pytest.mark.parametrize("target", ["effdet", "zylo"])
def test_a_file_is_recognized_by_its_shapes(tmp_path: Path, target: str) -> None:
    model = create_model("d0", 3).eval()
    torch.save(to_foreign(model, target), tmp_path / "weights.pth")
    converted, info = convert_file(tmp_path / "weights.pth")
    assert info.spec == model.spec
    assert info.class_names == ("class-0", "class-1", "class-2")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for ours, theirs in zip(converted(images), model(images), strict=True):
            for a, b in zip(ours, theirs, strict=True):
                assert torch.equal(a, b)


def test_ninety_classes_are_those_of_coco(tmp_path: Path) -> None:
    torch.save(to_foreign(create_model("lite0")), tmp_path / "weights.pth")
    _, info = convert_file(tmp_path / "weights.pth", "lite0")
    assert info.class_names == COCO_CLASS_NAMES
    assert info.category_ids[:3] == (1, 2, 3)


def test_class_names_can_be_given_and_must_be_as_many(tmp_path: Path) -> None:
    torch.save(to_foreign(create_model("lite0", 2)), tmp_path / "weights.pth")
    _, info = convert_file(tmp_path / "weights.pth", "lite0", class_names=["cat", "dog"])
    assert info.class_names == ("cat", "dog")
    with pytest.raises(WeightsError, match="has 2 classes, but 1 class names"):
        convert_file(tmp_path / "weights.pth", "lite0", class_names=["cat"])


def test_a_network_that_is_not_of_the_family_names_the_closest(tmp_path: Path) -> None:
    state = to_foreign(create_model("lite0", 2))
    del state["backbone.conv_stem.weight"]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match="closest is lite0, from which 1 tensors differ"):
        convert_file(tmp_path / "weights.pth")


def test_what_fits_two_models_must_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "twin", MODELS["lite0"])
    torch.save(to_foreign(create_model("lite0", 2)), tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match="fits lite0, lite0 alike; say which"):
        convert_file(tmp_path / "weights.pth")


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    state = to_foreign(create_model("lite0", 2))
    state["backbone.conv_stem.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"weights\.pth: 1 tensors have NaN or infinite values"):
        convert_file(tmp_path / "weights.pth", "lite0")


def test_a_converted_file_is_ours_and_complete(tmp_path: Path) -> None:
    torch.save(to_foreign(create_model("lite0", 2)), tmp_path / "weights.pth")
    model, info = convert_file(tmp_path / "weights.pth", "lite0")
    out = tmp_path / "out.safetensors"
    save_checkpoint(out, model.state_dict(), info)
    assert is_checkpoint(out)
    assert not is_checkpoint(tmp_path / "weights.pth")
    again, again_info = load_checkpoint(out)
    assert again_info == info
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
