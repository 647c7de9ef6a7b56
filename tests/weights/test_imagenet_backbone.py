"""Folded weights under batch norms: the same function as the bare convolutions, with statistics that are true."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from efficientdet.errors import WeightsError
from efficientdet.images.letterbox import LITE, letterbox
from efficientdet.images.read import read
from efficientdet.network.efficientnet import EfficientNet
from efficientdet.weights import imagenet_backbone
from efficientdet.weights.imagenet_backbone import load_folded_backbone

Arrays = dict[str, NDArray[np.float32]]

# EfficientNet-Lite0, written out: (repeats, stride of the first, whether it expands).
LITE0 = ((1, 1, False), (2, 2, True), (2, 2, True), (3, 2, True), (3, 1, True), (4, 2, True), (1, 1, True))


def random_arrays(seed: int = 0) -> Arrays:
    """Every convolution of Lite0 with random weights that keep the signal's size, and biases."""
    random = np.random.default_rng(seed)
    arrays: Arrays = {}
    for name, module in EfficientNet("lite0").named_modules():
        if isinstance(module, nn.Conv2d):
            shape = tuple(module.weight.shape)
            arrays[f"{name}.weight"] = random.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype(np.float32)
            arrays[f"{name}.bias"] = random.normal(0.3, 0.5, shape[0]).astype(np.float32)
    return arrays


def write(path: Path, arrays: Arrays) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def convolve(x: Tensor, arrays: Arrays, name: str, stride: int = 1, groups: int = 1) -> Tensor:
    """y = w * x + b, padded as TensorFlow's SAME pads."""
    weight, bias = (torch.from_numpy(arrays[f"{name}.{leaf}"].astype(np.float32)) for leaf in ("weight", "bias"))
    pads = []
    for size, kernel in zip((x.shape[3], x.shape[2]), (weight.shape[3], weight.shape[2]), strict=True):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return functional.conv2d(functional.pad(x, pads), weight, bias, stride, groups=groups)


def folded_features(x: Tensor, arrays: Arrays) -> list[Tensor]:
    """P3, P4, P5 by the bare convolutions, one after the other."""
    x = functional.relu6(convolve(x, arrays, "conv_stem", stride=2))
    features = []
    for stage, (repeats, first_stride, expands) in enumerate(LITE0):
        for index in range(repeats):
            stride = first_stride if index == 0 else 1
            name, shortcut = f"blocks.{stage}.{index}", x
            if expands:
                x = functional.relu6(convolve(x, arrays, f"{name}.conv_pw"))
            x = functional.relu6(convolve(x, arrays, f"{name}.conv_dw", stride, groups=x.shape[1]))
            x = convolve(x, arrays, f"{name}.{'conv_pwl' if expands else 'conv_pw'}")
            if stride == 1 and x.shape == shortcut.shape:
                x = x + shortcut
        if stage in (2, 4, 6):
            features.append(x)
    return features


def assert_same_function(backbone: EfficientNet, arrays: Arrays, images: Tensor, tolerance: float) -> None:
    with torch.no_grad():
        expected, found = folded_features(images, arrays), backbone.eval()(images)
    for ours, theirs in zip(found, expected, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < tolerance


@pytest.mark.parametrize("size", [(64, 64), (50, 71)])
def test_in_evaluation_mode_it_is_the_chain_of_folded_convolutions(size: tuple[int, int], tmp_path: Path) -> None:
    arrays = random_arrays()
    backbone = EfficientNet("lite0")
    torch.manual_seed(0)
    batches = [torch.randn(2, 3, 64, 64), torch.randn(1, 3, 64, 96)]
    load_folded_backbone(backbone, write(tmp_path / "w.npz", arrays), batches)
    for images in (batches[0], torch.randn(2, 3, *size)):  # also on pictures that gave no statistics
        assert_same_function(backbone, arrays, images, 1e-4)


def inputs_of_norms(backbone: EfficientNet, batches: list[Tensor]) -> dict[str, list[Tensor]]:
    inputs: dict[str, list[Tensor]] = {}
    handles = []
    for name, norm in backbone.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            inputs[name] = []
            handles.append(norm.register_forward_pre_hook(lambda _, x, name=name: inputs[name].append(x[0].double())))
    with torch.no_grad():
        for batch in batches:
            backbone.eval()(batch)
    for handle in handles:
        handle.remove()
    return inputs


def test_the_statistics_are_those_of_all_pictures_together(tmp_path: Path) -> None:
    backbone = EfficientNet("lite0")
    torch.manual_seed(1)
    batches = [torch.randn(3, 3, 64, 64), 2 + torch.randn(1, 3, 32, 64)]  # of unequal number, size and brightness
    load_folded_backbone(backbone, write(tmp_path / "w.npz", random_arrays(2)), iter(batches))
    found = inputs_of_norms(backbone, batches)
    assert len(found) == 48
    for name, seen in found.items():
        norm = backbone.get_submodule(name)
        values = torch.cat([x.transpose(0, 1).flatten(1) for x in seen], 1)  # (C, everything)
        variance, mean = torch.var_mean(values, 1, correction=0)
        scale = float(variance.max().sqrt())
        torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-4, atol=1e-4 * scale)
        torch.testing.assert_close(norm.running_var.double(), variance, rtol=1e-3, atol=1e-6 * scale)


def test_in_training_mode_with_the_same_batch_the_function_stays_too(tmp_path: Path) -> None:
    """What true statistics are for: batch norms that see that batch change nothing."""
    arrays = random_arrays()
    backbone = EfficientNet("lite0")
    torch.manual_seed(0)
    batch = torch.randn(4, 3, 64, 64)
    load_folded_backbone(backbone, write(tmp_path / "w.npz", arrays), [batch])
    with torch.no_grad():
        found, expected = backbone.train()(batch), folded_features(batch, arrays)
    assert float((found[0] - expected[0]).norm() / expected[0].norm()) < 1e-3


def test_channels_without_variance_keep_their_value(tmp_path: Path) -> None:
    arrays = random_arrays()
    arrays["conv_stem.weight"][3:9] = 0  # these channels are their bias everywhere
    backbone = EfficientNet("lite0")
    load_folded_backbone(backbone, write(tmp_path / "w.npz", arrays), [torch.randn(1, 3, 64, 64)])
    assert all(bool(tensor.isfinite().all()) for tensor in backbone.state_dict().values())
    assert_same_function(backbone, arrays, torch.randn(1, 3, 64, 64), 1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_stays_and_no_gradient_is_left(training: bool, tmp_path: Path) -> None:
    backbone = EfficientNet("lite0").train(training)
    load_folded_backbone(backbone, write(tmp_path / "w.npz", random_arrays()), [torch.randn(1, 3, 32, 32)])
    assert backbone.training is training
    assert all(p.requires_grad and p.grad is None for p in backbone.parameters())
    assert not any(module._forward_pre_hooks for module in backbone.modules())


def test_the_real_file(shared_data: Path) -> None:
    path = shared_data / "weights" / "efficientnet_lite0_imagenet_folded.npz"
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    pictures = sorted((shared_data / "people" / "images").glob("*.jpg"))[:5]
    prepared = [torch.from_numpy(letterbox(read(picture), (128, 128), LITE)[0])[None] for picture in pictures]
    backbone = EfficientNet("lite0")
    load_folded_backbone(backbone, path, prepared[:4])
    assert_same_function(backbone, arrays, torch.cat(prepared), 1e-3)


# ---- what does not fit
def test_every_layer_that_does_not_fit_is_listed_and_nothing_is_changed(tmp_path: Path) -> None:
    arrays = random_arrays()
    del arrays["blocks.1.0.conv_dw.weight"], arrays["blocks.2.1.conv_pwl.bias"]
    arrays["conv_stem.weight"] = np.zeros((32, 3, 5, 5), np.float32)
    arrays["blocks.6.0.conv_pw.bias"] = np.zeros(1, np.float32)
    arrays["classifier.weight"] = np.zeros((10, 10), np.float32)
    path = write(tmp_path / "w.npz", arrays)
    backbone = EfficientNet("lite0")
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_folded_backbone(backbone, path, [torch.zeros(1, 3, 32, 32)])
    lines = str(caught.value).split("\n  ")
    assert lines[0].startswith(str(path))
    assert sorted(line.split(": ")[0] + ": " + line.split(": ")[1].split()[0] for line in lines[1:]) == [
        "missing: blocks.1.0.conv_dw.weight",
        "missing: blocks.2.1.conv_pwl.bias",
        "shape: blocks.6.0.conv_pw.bias",
        "shape: conv_stem.weight",
        "unexpected: classifier.weight",
    ]
    assert "conv_stem.weight is (32, 3, 5, 5), the model has (32, 3, 3, 3)" in str(caught.value)
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    arrays = random_arrays()
    arrays["conv_stem.weight"][0] = np.inf
    with pytest.raises(WeightsError, match=r"inf\.npz: 1 tensors have NaN or infinite .*conv_stem\.weight"):
        load_folded_backbone(EfficientNet("lite0"), write(tmp_path / "inf.npz", arrays), [torch.zeros(1, 3, 64, 64)])


def test_the_classifiers_convolution_is_left_aside(tmp_path: Path) -> None:
    head = {"conv_head.weight": np.zeros((4, 4, 1, 1), np.float32), "conv_head.bias": np.zeros(4, np.float32)}
    path = write(tmp_path / "w.npz", random_arrays() | head)
    load_folded_backbone(EfficientNet("lite0"), path, [torch.zeros(1, 3, 32, 32)])


def test_another_backbone_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"blocks\.1\.2\.conv_pw"):
        load_folded_backbone(EfficientNet("lite2"), write(tmp_path / "w.npz", random_arrays()), [])


def test_without_pictures_the_error_says_where_none_are(tmp_path: Path) -> None:
    path = write(tmp_path / "w.npz", random_arrays())
    with pytest.raises(WeightsError, match=r"no images in train\.json to take the statistics from"):
        load_folded_backbone(EfficientNet("lite0"), path, [], "train.json")


def _missing(path: Path) -> None:
    pass


def _empty(path: Path) -> None:
    path.touch()


def _text(path: Path) -> None:
    path.write_text("not arrays")


def _truncated(path: Path) -> None:
    write(path, random_arrays())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flipped_bytes(path: Path) -> None:
    np.savez_compressed(path, **random_arrays())  # type: ignore[arg-type]
    content = bytearray(path.read_bytes())
    content[1000:1400] = bytes(400)
    path.write_bytes(content)


def _single_array(path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    path.write_bytes(buffer.getvalue())


def _objects(path: Path) -> None:
    np.savez(path, **{"conv_stem.weight": np.array([{"a": 1}], dtype=object)})  # type: ignore[arg-type]


def _words(path: Path) -> None:
    np.savez(path, **{"conv_stem.weight": np.array(["a", "b"])})  # type: ignore[arg-type]


def _pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"conv_stem.weight": 1}))


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data.txt", "no arrays")


@pytest.mark.parametrize(
    "damage",
    [_missing, _empty, _text, _truncated, _flipped_bytes, _single_array, _objects, _words, _pickle, _zip],
)
def test_what_is_no_file_of_arrays_is_named(damage: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    damage(path)
    with pytest.raises(WeightsError, match=r"bad\.npz: (no such weights file|not a \.npz file, or a damaged one)"):
        load_folded_backbone(EfficientNet("lite0"), path, [torch.zeros(1, 3, 32, 32)])


def test_a_file_that_unpacks_to_more_than_any_backbone_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros(1_000_000))
    monkeypatch.setattr(imagenet_backbone, "_LARGEST", 1_000_000)
    with pytest.raises(WeightsError, match=r"bomb\.npz: .*it unpacks to 8,000,\d+ bytes, more than 1,000,000"):
        load_folded_backbone(EfficientNet("lite0"), tmp_path / "bomb.npz", [])
