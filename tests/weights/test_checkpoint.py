"""Checkpoints: what is saved comes back, and whatever else lies at the path is refused by name."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import efficientdet
from efficientdet.errors import WeightsError
from efficientdet.family import MODELS
from efficientdet.images.letterbox import IMAGENET, LITE, Preprocessing
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.settings import to_dict
from efficientdet.weights import checkpoint as checkpoint_module
from efficientdet.weights.checkpoint import is_intact, load_checkpoint, read_info, save_checkpoint
from efficientdet.weights.info import FORMAT, METADATA_KEY, CheckpointInfo, default_preprocessing
from efficientdet.weights.names import BUNDLED_FOLDER

SPEC = dataclasses.replace(MODELS["lite0"], width=16, depth=1, head_depth=1, image_size=64)
INFO = CheckpointInfo(
    SPEC, ("person", "straße"), (1, 90), LITE,
    {"nms": "soft"}, {"ap": 0.5, "data": "people"}, {"epochs": 3, "scale_jitter": None}, {"license": "CC0"},
)  # fmt: skip
FIELDS = json.loads(INFO.to_json())


def lively(model: EfficientDet) -> EfficientDet:
    """Statistics that are not those of a fresh network, as training leaves them."""
    torch.manual_seed(5)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(1e-6, 3.0)
        elif name.endswith("running_mean"):
            tensor.normal_()
        elif name.endswith("num_batches_tracked"):
            tensor.fill_(41)
    return model


@pytest.fixture(scope="module")
def model() -> EfficientDet:
    torch.manual_seed(0)
    return lively(EfficientDet(SPEC, 2)).eval()


@pytest.fixture(scope="module")
def saved(model: EfficientDet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    save_checkpoint(path, model.state_dict(), INFO)
    return path


def state_of(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def with_metadata(path: Path, text: str) -> Path:
    """A small file that says `text` of itself."""
    save_file({"x": torch.zeros(1)}, path, {METADATA_KEY: text})
    return path


# ---- round trip
def test_everything_comes_back(model: EfficientDet, saved: Path) -> None:
    loaded, info = load_checkpoint(saved)
    assert info == INFO
    assert read_info(str(saved)) == INFO
    state = loaded.state_dict()
    assert list(state) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor), name
    assert not any(module.training for module in loaded.modules())
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for ours, theirs in zip(loaded(images), model(images), strict=True):
            for one, two in zip(ours, theirs, strict=True):
                torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)  # kernels lie at other addresses


def test_a_loaded_network_can_go_on_learning(saved: Path) -> None:
    loaded, _ = load_checkpoint(saved)
    before = saved.read_bytes()
    class_logits, _ = loaded.train()(torch.randn(2, 3, 64, 64))
    sum(level.sum() for level in class_logits).backward()
    torch.optim.SGD(loaded.parameters(), 0.1).step()
    assert saved.read_bytes() == before


def test_half_keeps_kernels_in_16_bits_and_norms_in_32(model: EfficientDet, tmp_path: Path, saved: Path) -> None:
    path = tmp_path / "half.safetensors"
    save_checkpoint(path, model.state_dict(), INFO, half=True)
    assert path.stat().st_size < 0.56 * saved.stat().st_size
    for name, tensor in state_of(path).items():
        original = model.state_dict()[name]
        kernel = name.endswith(".weight") and original.ndim == 4
        assert tensor.dtype == (torch.float16 if kernel else original.dtype), name
    loaded, info = load_checkpoint(path)
    assert info == INFO
    for name, tensor in model.state_dict().items():
        got = loaded.state_dict()[name]
        assert got.dtype == tensor.dtype
        torch.testing.assert_close(got, tensor, rtol=1e-3, atol=1e-7)
        if tensor.ndim < 2:
            assert torch.equal(got, tensor)


def test_channels_last_and_gpu_copies_are_saved_as_plain_tensors(model: EfficientDet, tmp_path: Path) -> None:
    turned = EfficientDet(SPEC, 2).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    turned.load_state_dict(model.state_dict())
    save_checkpoint(tmp_path / "a.safetensors", turned.state_dict(), INFO)
    for name, tensor in state_of(tmp_path / "a.safetensors").items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_the_metadata_is_complete_and_readable_by_anyone(saved: Path) -> None:
    with safe_open(saved, "pt") as file:
        fields = json.loads(file.metadata()[METADATA_KEY])
    assert fields["format"] == FORMAT
    assert fields["version"] == efficientdet.__version__
    assert fields["class_names"] == ["person", "straße"] and fields["category_ids"] == [1, 90]
    assert set(fields["spec"]) == {field.name for field in dataclasses.fields(SPEC)}
    assert fields["spec"]["anchor_scale"] == 3.0 and len(fields["spec"]["aspects"]) == 3
    assert Preprocessing(**fields["preprocessing"]) == LITE
    assert fields["postprocess"] == {"nms": "soft"}
    assert fields["metrics"] == {"ap": 0.5, "data": "people"}
    assert fields["training"] == {"epochs": 3, "scale_jitter": None}
    assert fields["about"] == {"license": "CC0"}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_spec_of_the_family_survives(name: str, tmp_path: Path) -> None:
    preprocessing = default_preprocessing(MODELS[name])
    assert preprocessing == (LITE if name.startswith("lite") else IMAGENET)
    info = CheckpointInfo(MODELS[name], ("a",), (0,), preprocessing)
    assert CheckpointInfo.from_json(info.to_json(), tmp_path) == info


# ---- writing
@pytest.mark.parametrize("fault", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("place", ["save_file", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    fault: BaseException, place: str, model: EfficientDet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model.state_dict(), INFO)
    before = path.read_bytes()

    def half_written(tensors: Any, file: Path, metadata: Any = None) -> None:
        if place == "save_file":
            Path(file).write_bytes(b"half")
        raise fault

    if place == "save_file":
        monkeypatch.setattr(checkpoint_module, "save_file", half_written)
    else:
        monkeypatch.setattr("efficientdet.atomic_write.os.replace", half_written)
    expected: type[BaseException] = WeightsError if isinstance(fault, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        save_checkpoint(path, model.state_dict(), dataclasses.replace(INFO, metrics={}))
    if expected is WeightsError:
        assert str(path) in str(caught.value) and "disk full" in str(caught.value)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_made_and_an_existing_file_is_replaced(model: EfficientDet, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "model.safetensors"
    save_checkpoint(str(path), model.state_dict(), INFO)
    save_checkpoint(path, model.state_dict(), dataclasses.replace(INFO, metrics={"ap": 0.7}))
    assert read_info(path).metrics == {"ap": 0.7}
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["below a file", "a folder is there"])
def test_a_place_that_cannot_be_written_is_named(kind: str, model: EfficientDet, tmp_path: Path) -> None:
    path = tmp_path / "x" / "model.safetensors"
    if kind == "below a file":
        (tmp_path / "x").write_text("in the way")
    else:
        (path / "not empty").mkdir(parents=True)
    with pytest.raises(WeightsError, match=r"model\.safetensors: cannot be written"):
        save_checkpoint(path, model.state_dict(), INFO)


# ---- reading what is not ours
class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


def _missing(path: Path, _: Path) -> None:
    pass


def _folder(path: Path, _: Path) -> None:
    path.mkdir()


def _empty(path: Path, _: Path) -> None:
    path.touch()


def _text(path: Path, _: Path) -> None:
    path.write_text("no weights, but a letter to the editor, which is longer than eight bytes")


def _zip(path: Path, _: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data.txt", "x" * 100)


def _truncated(path: Path, saved: Path) -> None:
    path.write_bytes(saved.read_bytes()[:-1000])


def _header_only(path: Path, saved: Path) -> None:
    path.write_bytes(saved.read_bytes()[:200])


def _torch_pickle(path: Path, _: Path) -> None:
    torch.save({"model": Trap(path.parent / "sprung")}, path)


def _bare_pickle(path: Path, _: Path) -> None:
    path.write_bytes(pickle.dumps(Trap(path.parent / "sprung")))


def _foreign(path: Path, _: Path) -> None:
    save_file({"x": torch.zeros(1)}, path)


def _foreign_metadata(path: Path, _: Path) -> None:
    save_file({"x": torch.zeros(1)}, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (_missing, "no such weights file"),
        (_folder, "no such weights file"),
        (_empty, "damaged"),
        (_text, "damaged"),
        (_zip, "damaged"),
        (_truncated, "damaged"),
        (_header_only, "damaged"),
        (_torch_pickle, "efficientdet convert"),
        (_bare_pickle, "efficientdet convert"),
        (_foreign, "not a checkpoint of this package"),
        (_foreign_metadata, "not a checkpoint of this package"),
    ],
)
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_what_is_no_checkpoint_is_named(
    write: Callable[[Path, Path], None], says: str, suffix: str, saved: Path, tmp_path: Path
) -> None:
    path = tmp_path / f"other.{suffix}"
    write(path, saved)
    for read in (load_checkpoint, read_info):
        with pytest.raises(WeightsError) as caught:
            read(path)
        assert str(path) in str(caught.value) and says in str(caught.value)
    assert not (tmp_path / "sprung").exists()  # nothing was unpickled


def test_the_trap_of_the_test_above_does_spring(tmp_path: Path) -> None:
    _bare_pickle(tmp_path / "x", tmp_path)
    pickle.loads((tmp_path / "x").read_bytes())
    assert (tmp_path / "sprung").exists()


def test_a_newer_format_asks_for_an_upgrade(tmp_path: Path) -> None:
    path = with_metadata(tmp_path / "new.safetensors", json.dumps({"format": "efficientdet-2", "novelty": 1}))
    with pytest.raises(WeightsError, match=r"new\.safetensors: format 'efficientdet-2'.*upgrade"):
        load_checkpoint(path)


@pytest.mark.parametrize("field", ["format", "spec", "class_names", "category_ids", "preprocessing", "postprocess"])
def test_a_missing_field_is_named(field: str, tmp_path: Path) -> None:
    fields = {key: value for key, value in FIELDS.items() if key != field}
    path = with_metadata(tmp_path / "old.safetensors", json.dumps(fields))
    with pytest.raises(WeightsError, match=rf"old\.safetensors: damaged metadata.*{field}"):
        read_info(path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", "[" * 100_000, json.dumps({"format": None}), json.dumps([FIELDS])]
    + [
        json.dumps({**FIELDS, **change})
        for change in (
            {"spec": None},
            {"spec": []},
            {"spec": {**FIELDS["spec"], "wings": 2}},
            {"spec": {"name": "d0"}},
            {"class_names": []},
            {"class_names": 5},
            {"class_names": ["person"]},
            {"category_ids": ["one", "two"]},
            {"category_ids": [1]},
            {"preprocessing": {}},
            {"preprocessing": 4},
            {"preprocessing": {**to_dict(LITE), "std": [0, 1, 1]}},
            {"preprocessing": {**to_dict(LITE), "gamma": 2}},
            {"metrics": 0.5},
        )
    ],
)
def test_damaged_metadata_is_an_error_of_the_file(text: str, tmp_path: Path) -> None:
    path = with_metadata(tmp_path / "bad.safetensors", text)
    with pytest.raises(WeightsError, match=r"bad\.safetensors: "):
        read_info(path)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    "change",
    [
        {"depth": 10**6}, {"levels": [3, 4000]}, {"width": 10**9}, {"image_size": 10**9}, {"octaves": 10**6},
        {"head_depth": 10**6}, {"aspects": [[1.0, 1.0]] * 10_000}, {"nodes": [["td6", 6, ["in6"], "sum"]] * 10_000},
        {"anchor_scale": float("inf")}, {"anchor_scale": float("nan")}, {"aspects": [[10**400, 1]]},
        {"width": "wide"}, {"width": -8}, {"width": 0}, {"width": 16.5}, {"depth": None}, {"backbone": "b99"},
        {"backbone": 5}, {"feature_network": "web"}, {"fusion": "cold"}, {"activation": ""}, {"levels": [3]},
        {"levels": ["a", "b"]}, {"octaves": 0}, {"backbone_epsilon": "small"}, {"aspects": []},
    ],
)  # fmt: skip
def test_a_spec_that_makes_no_network_is_an_error_of_the_file(change: dict[str, Any], tmp_path: Path) -> None:
    fields = {**FIELDS, "spec": {**FIELDS["spec"], **change}}
    path = with_metadata(tmp_path / "bad.safetensors", json.dumps(fields))
    with pytest.raises(WeightsError, match=r"bad\.safetensors: "):
        load_checkpoint(path)


def test_every_tensor_that_does_not_fit_is_listed(model: EfficientDet, tmp_path: Path) -> None:
    state = dict(model.state_dict())
    del state["backbone.bn1.bias"]
    state["backbone.bn9.bias"] = torch.zeros(3)
    state["backbone.conv_stem.weight"] = torch.zeros(32, 3, 5, 5)
    state["backbone.bn1.weight"] = torch.zeros(32, dtype=torch.int32)
    path = tmp_path / "odd.safetensors"
    save_checkpoint(path, state, INFO)
    with pytest.raises(WeightsError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert f"{path}: 4 tensors do not fit lite0" in message
    assert "missing: backbone.bn1.bias (32,)" in message
    assert "unexpected: backbone.bn9.bias (3,)" in message
    assert "shape: backbone.conv_stem.weight is (32, 3, 5, 5), the model has (32, 3, 3, 3)" in message
    assert "type: backbone.bn1.weight is torch.int32, the model has torch.float32" in message


# ---- damage that the format does not notice
def test_any_change_of_the_contents_is_noticed(saved: Path, tmp_path: Path) -> None:
    whole, path = saved.read_bytes(), tmp_path / "bad.safetensors"
    data = 8 + int.from_bytes(whole[:8], "little")
    names = whole.index(b"person")
    zeroed = whole[:data] + bytes(len(whole) - data)
    flipped = [
        whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in (names, data, data + 5000, len(whole) - 1)
    ]
    for content in (zeroed, *flipped):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"bad\.safetensors: damaged: its contents do not match its checksum"):
            load_checkpoint(path)
        assert not is_intact(path)
    path.write_bytes(whole)
    assert is_intact(path)


def test_the_same_contents_make_the_same_file(saved: Path, model: EfficientDet, tmp_path: Path) -> None:
    for _ in range(5):
        save_checkpoint(tmp_path / "again.safetensors", model.state_dict(), INFO)
        assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()


def test_a_file_without_checksum_is_refused(model: EfficientDet, tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    save_file(model.state_dict(), path, {METADATA_KEY: INFO.to_json()})
    with pytest.raises(WeightsError, match=r"old\.safetensors: damaged: its contents do not match its checksum"):
        load_checkpoint(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("half", [False, True])
def test_weights_that_are_no_numbers_are_refused(value: float, half: bool, model: EfficientDet, tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["backbone.conv_stem.weight"][3, 1, 0, 0] = value
    path = tmp_path / "diverged.safetensors"
    save_checkpoint(path, state, INFO, half)
    with pytest.raises(
        WeightsError, match=r"diverged\.safetensors: 1 tensors have NaN or infinite .*conv_stem.*earlier checkpoint"
    ):
        load_checkpoint(path)


@pytest.mark.parametrize("name", ["people", "cells"])
def test_the_bundled_checkpoints_are_intact(name: str) -> None:
    assert is_intact(BUNDLED_FOLDER / f"{name}.safetensors")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_others_may_read_a_checkpoint_as_the_umask_says(model: EfficientDet, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        save_checkpoint(tmp_path / "a.safetensors", model.state_dict(), INFO)
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o644


def test_a_name_that_is_too_long_is_an_error_of_ours() -> None:
    for read in (load_checkpoint, read_info):
        with pytest.raises(WeightsError, match="no such weights file"):
            read("x" * 300)


def test_as_many_classes_as_names(model: EfficientDet, tmp_path: Path) -> None:
    info = dataclasses.replace(INFO, class_names=("a", "b", "c"), category_ids=(1, 2, 3))
    save_checkpoint(tmp_path / "three.safetensors", model.state_dict(), info)
    with pytest.raises(WeightsError, match=r"class_head\.predict\.pointwise\.bias is \(18,\), the model has \(27,\)"):
        load_checkpoint(tmp_path / "three.safetensors")
