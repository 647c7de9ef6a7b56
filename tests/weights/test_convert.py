"""Foreign weights become checkpoints of ours, by themselves where the shapes tell which network they are of."""

from __future__ import annotations

import argparse
import base64
import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from efficientdet.errors import MissingExtraError, WeightsError
from efficientdet.family import MODELS
from efficientdet.weights import convert
from efficientdet.weights.checkpoint import is_checkpoint, load_checkpoint, save_checkpoint
from efficientdet.weights.convert import convert_file, load_pickle_safely, read_state
from efficientdet.weights.create import create_model
from efficientdet.weights.foreign import to_foreign
from efficientdet.weights.registry import COCO_CLASS_NAMES


@pytest.fixture
def small_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four members, which are built in a second; one test compares with all."""
    monkeypatch.setattr(convert, "MODELS", {name: MODELS[name] for name in ("d0", "d1", "lite0", "lite1")})


@pytest.mark.parametrize("target", ["effdet", "zylo"])
def test_a_file_is_recognized_by_its_shapes(tmp_path: Path, target: str, request: pytest.FixtureRequest) -> None:
    if target == "zylo":
        request.getfixturevalue("small_family")
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


def test_a_network_that_is_not_of_the_family_names_the_closest(tmp_path: Path, small_family: None) -> None:
    state = to_foreign(create_model("lite0", 2))
    del state["backbone.conv_stem.weight"]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match="closest is lite0, from which 1 tensors differ"):
        convert_file(tmp_path / "weights.pth")


def test_what_fits_two_models_must_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "MODELS", {"d0": MODELS["d0"], "lite0": MODELS["lite0"], "twin": MODELS["lite0"]})
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


STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.num_batches_tracked": torch.tensor(3)}


class Evil:
    """Runs a command when it is unpickled in the ordinary way."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_load(tmp_path: Path, zipped: bool) -> None:
    nested = {"state_dict": STATE, "epoch": 3, "metric": 0.5, "args": argparse.Namespace(lr=0.1, model="d0")}
    torch.save(nested, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    loaded = load_pickle_safely(tmp_path / "a.pth")
    assert loaded["args"].lr == 0.1
    assert torch.equal(loaded["state_dict"]["a.weight"], STATE["a.weight"])


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_a_program_is_refused(tmp_path: Path, zipped: bool) -> None:
    marker, path = tmp_path / "ran", tmp_path / "evil.pth"
    torch.save({**STATE, "x": Evil(marker)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"evil\.pth: refused, because it holds more than tensors .*system"):
        load_pickle_safely(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the trap is armed: unpickled without care it does run
    assert marker.exists()


def test_a_file_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1 << 20)}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain:
        with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
            for name in plain.namelist():
                bomb.writestr(name, plain.read(name))
    assert (tmp_path / "bomb.pth").stat().st_size < 20_000
    with pytest.raises(WeightsError, match=r"bomb\.pth: .*unpacks to 4,\d{3},\d{3} bytes"):
        load_pickle_safely(tmp_path / "bomb.pth")


def test_a_bare_pickle_that_runs_a_program_is_refused(tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps(Evil(marker)))
    with pytest.raises(WeightsError, match=r"evil\.pth"):
        load_pickle_safely(path)
    assert not marker.exists()


def test_a_whole_pickled_network_is_refused_with_advice(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=r"torch\.nn\.modules\.linear\.Linear.*save the tensors alone"):
        load_pickle_safely(tmp_path / "model.pth")


@pytest.mark.parametrize("content", [b"", b"\x80", b"<html>404</html>", b"PK\x03\x04 cut", bytes(1000)])
def test_rubbish_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=r"a\.pth: "):
        load_pickle_safely(tmp_path / "a.pth")


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "a.pth")
    whole = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match=r"a\.pth: not a file of torch\.save, or a damaged one"):
        load_pickle_safely(tmp_path / "a.pth")


def test_a_zip_of_something_else_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(WeightsError, match=r"a\.pth: not a file of torch\.save"):
        load_pickle_safely(tmp_path / "a.pth")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for read in (load_pickle_safely, read_state):
        with pytest.raises(WeightsError, match=r"none\.pth: no such weights file"):
            read(tmp_path / "none.pth")


# ---- any kind
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".PTH"])
def test_pickles_by_any_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    torch.save(STATE, path)
    assert torch.equal(read_state(path)["a.weight"], STATE["a.weight"])


def test_safetensors(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors")
    assert torch.equal(read_state(tmp_path / "a.safetensors")["a.weight"], STATE["a.weight"])
    (tmp_path / "b.safetensors").write_bytes(b"rubbish")
    with pytest.raises(WeightsError, match=r"b\.safetensors: not a safetensors file"):
        read_state(tmp_path / "b.safetensors")


# ---- h5
def test_h5_as_keras_writes_it(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["layer_names"] = ["class_net"]
        file["class_net/class_net/class-0/bias:0"] = np.arange(3, dtype=np.float32)
        file["fpn_cells/fpn_cells/cell_0/fnode0/WSM:0"] = np.float32(0.5)
        file["fpn_cells/name"] = "no weight"
    values = read_state(tmp_path / "a.h5")
    assert set(values) == {"class_net/class_net/class-0/bias:0", "fpn_cells/fpn_cells/cell_0/fnode0/WSM:0"}
    assert values["class_net/class_net/class-0/bias:0"].tolist() == [0, 1, 2]
    assert values["fpn_cells/fpn_cells/cell_0/fnode0/WSM:0"].shape == ()


def test_h5_without_h5py_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.h5").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"h5py is not installed; run: pip install 'efficientdet\[convert\]'"):
        read_state(tmp_path / "a.h5")


def test_a_damaged_h5_is_named(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "whole.h5", "w") as file:
        for name in "abc":
            file[f"group/{name}"] = np.arange(1000, dtype=np.float32)
    whole = (tmp_path / "whole.h5").read_bytes()
    contents = [b"\x89HDF\r\n\x1a\nrubbish", whole[:100], whole[: len(whole) // 2]]
    contents += [whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :] for at in range(8, 700)]
    for content in contents:
        (tmp_path / "a.h5").write_bytes(content)
        try:
            read_state(tmp_path / "a.h5")  # some bytes mean nothing
        except WeightsError as error:
            assert "a.h5: " in str(error)


@pytest.mark.parametrize("kind", ["external link", "soft link", "external storage", "virtual dataset"])
def test_an_h5_file_makes_us_read_no_other_file(kind: str, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    (tmp_path / "secret").write_bytes(b"secret12")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = np.zeros(2, np.float32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        if kind == "external link":
            file["bias:0"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/secret")
        elif kind == "soft link":
            file["bias:0"] = h5py.SoftLink("/nowhere")
        elif kind == "external storage":
            file.create_dataset("bias:0", (2,), "f4", external=[(str(tmp_path / "secret"), 0, 8)])
        else:
            layout = h5py.VirtualLayout((2,), "f4")
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "secret", (2,))
            file.create_virtual_dataset("bias:0", layout)
    with pytest.raises(WeightsError, match=r"a\.h5: refused, because .*'bias:0'"):
        read_state(tmp_path / "a.h5")


def test_an_h5_file_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:  # a few kilobytes on the disk
        file.create_dataset("bias:0", (10**13,), "f4", chunks=(1 << 20,), compression="gzip")
    with pytest.raises(WeightsError, match=r"a\.h5: refused, because its variables have more than 2,147,483,648 bytes"):
        read_state(tmp_path / "a.h5")


# ---- TensorFlow's checkpoints
# Written by TensorFlow 2.15's tf.compat.v1.train.Saver: six variables of different types.
INDEX = (
    "AAAGCAEaAggBABITYm94X25ldC9ib3gtMC9iaWFzCAESCBICCAISAggDKBg1wNs9FxIZFS9FeHBvbmVudGlhbE1vdmluZ0F2ZXJhZ2UIARII"
    "EgIIAhICCAMgGCgYNWDd2tQADQ1mcG5fY2VsbHMvV1NNCAESACAwKAQ1Xi/hpwALDWdsb2JhbF9zdGVwCAkSACA0KAg15E/pzgAEEWhhbGYI"
    "DhIEEgIIAiA8KAQ15eGb2AAEDXRleHQIBxIAIEAoCjXs4MApAAAAAAEAAAAAic2V7AAAAAABAAAAAMDyobAAAQN1AM4BAAAAAAEAAAAA/BXw"
    "O9MBCOABDwAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABX+4CLJHVH2w=="
)
DATA = "AAAAAAAAgD8AAABAAABAQAAAgEAAAKBAAAAAAAAAAEAAAIBAAADAQAAAAEEAACBBAADAPwCsI/wGAAAAgD8gwAXZxpxDaGVsbG8="


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "model.ckpt-7.index").write_bytes(base64.b64decode(INDEX))
    (tmp_path / "model.ckpt-7.data-00000-of-00001").write_bytes(base64.b64decode(DATA))
    return tmp_path / "model.ckpt-7"


@pytest.fixture
def tensorflow() -> Any:
    return pytest.importorskip("tensorflow", reason="needs TensorFlow: pip install 'efficientdet[convert]'")


@pytest.mark.parametrize("name", ["model.ckpt-7", "model.ckpt-7.index", ""])
def test_prefix_index_and_folder_mean_the_same(tensorflow: Any, checkpoint: Path, name: str) -> None:
    values = read_state(checkpoint.parent / name)
    assert set(values) == {
        "box_net/box-0/bias", "box_net/box-0/bias/ExponentialMovingAverage", "fpn_cells/WSM", "global_step", "half",
    }  # fmt: skip
    assert values["box_net/box-0/bias"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert values["box_net/box-0/bias/ExponentialMovingAverage"].tolist() == [[0, 2, 4], [6, 8, 10]]
    assert values["fpn_cells/WSM"].shape == ()
    assert values["fpn_cells/WSM"] == 1.5
    assert values["global_step"] == 30_000_000_000
    assert values["half"].dtype == np.float32  # bfloat16
    assert values["half"].tolist() == [1.0, -2.5]


def test_a_checkpoint_of_objects(tensorflow: Any, tmp_path: Path) -> None:
    model = tensorflow.Module()
    model.backbone = tensorflow.Module()
    model.backbone.kernel = tensorflow.Variable(np.arange(9, dtype=np.float32).reshape(3, 3))
    prefix = tensorflow.train.Checkpoint(model=model).save(tmp_path / "ckpt")
    values = read_state(prefix)
    assert values["model/backbone/kernel/.ATTRIBUTES/VARIABLE_VALUE"].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_a_damaged_checkpoint_is_named(tensorflow: Any, checkpoint: Path) -> None:
    index, data = (checkpoint.with_name(checkpoint.name + end) for end in (".index", ".data-00000-of-00001"))
    for file, at in ((index, 20), (data, 3)):
        whole = file.read_bytes()
        for content in (whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :], whole[:-40], b""):
            file.write_bytes(content)
            with pytest.raises(WeightsError, match=r"model\.ckpt-7\.index: a damaged TensorFlow checkpoint"):
                read_state(checkpoint)
        file.write_bytes(whole)
    data.unlink()
    with pytest.raises(WeightsError, match=r"damaged TensorFlow checkpoint .*data-00000-of-00001"):
        read_state(checkpoint)


def test_a_folder_of_several_checkpoints_is_ambiguous(checkpoint: Path) -> None:
    checkpoint.with_name("model.ckpt-8.index").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"holds 2 TensorFlow checkpoints \(model.ckpt-7, model.ckpt-8\)"):
        read_state(checkpoint.parent)
    with pytest.raises(WeightsError, match=r"other\.index: no such file"):
        read_state(checkpoint.with_name("other.index"))


def test_without_tensorflow_the_error_says_what_to_install(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    for path in (checkpoint, checkpoint.parent):
        with pytest.raises(MissingExtraError, match=r"tensorflow is not installed.*efficientdet\[convert\]"):
            read_state(path)


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"a\.onnx: weights of an unknown kind; known are \.safetensors, \.pth"):
        read_state(tmp_path / "a.onnx")


def test_what_is_no_dictionary_is_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"a\.pth: holds a Tensor, not a dictionary of tensors"):
        read_state(tmp_path / "a.pth")
