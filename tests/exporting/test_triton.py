"""A model's folder for Triton: compared with Triton's own schema, and with the ONNX file in it."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from efficientdet.exporting.export import export
from efficientdet.images.find import sample_image
from efficientdet.inference.detector import Detector

TYPES = {"tensor(uint8)": "TYPE_UINT8", "tensor(int64)": "TYPE_INT64", "tensor(float)": "TYPE_FP32"}


@pytest.fixture(scope="module")
def schema() -> Any:
    """`model_config.proto` of Triton, as its client has it."""
    pytest.importorskip("google.protobuf")
    package = importlib.util.find_spec("tritonclient")
    if package is None or package.submodule_search_locations is None:
        pytest.skip("tritonclient is missing (dependency group dev)")
    # The one file: the package around it needs gRPC.
    file = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Protobuf gencode version")  # made by an older protobuf
        spec.loader.exec_module(module)
    return module


def read_config(folder: Path, schema: Any) -> Any:
    from google.protobuf import text_format

    return text_format.Parse((folder / "config.pbtxt").read_text(), schema.ModelConfig())


@pytest.mark.parametrize(
    "settings", [{}, pytest.param({"end_to_end": True, "dynamic_size": True}, marks=pytest.mark.slow)]
)
def test_the_folder_is_what_triton_expects(
    people: Detector, tmp_path: Path, schema: Any, settings: dict[str, Any]
) -> None:
    folder = tmp_path / "models" / "people"
    report = export(people, folder, to="triton", **settings)
    assert not report.failures
    check_folder(folder, schema, "labels" if settings else "class_logits")


def check_folder(folder: Path, schema: Any, labelled: str) -> None:
    """The files, by Triton's schema and beside the network; `labelled` is the output whose numbers are classes."""
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"config.pbtxt", "labels.txt", "1/model.onnx"}
    assert (folder / "labels.txt").read_text() == "person\n"
    config = read_config(folder, schema)
    assert (config.name, config.backend, config.max_batch_size) == ("", "onnxruntime", 8)
    assert config.HasField("dynamic_batching")
    check_tensors(config, folder / "1" / "model.onnx", schema)
    assert [output.name for output in config.output if output.label_filename == "labels.txt"] == [labelled]


def check_tensors(config: Any, file: Path, schema: Any) -> None:
    """Names, types and sizes are those that ONNX Runtime, which Triton runs the file in, sees and gives."""
    session = pytest.importorskip("onnxruntime").InferenceSession(str(file))
    for listed, own in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert [one.name for one in listed] == [one.name for one in own]
        for one, tensor in zip(listed, own, strict=True):
            assert schema.DataType.Name(one.data_type) == TYPES[tensor.type]
            dims = [] if one.HasField("reshape") else list(one.dims)
            assert dims == [side if isinstance(side, int) else -1 for side in tensor.shape[1:]]
            assert one.HasField("reshape") == (len(tensor.shape) == 1) and one.dims
    feeds = {}
    for one in config.input:
        dims = [side if side > 0 else 128 for side in one.dims]
        kind = {"TYPE_UINT8": np.uint8, "TYPE_INT64": np.int64, "TYPE_FP32": np.float32}
        feeds[one.name] = np.full((config.max_batch_size, *dims), 128, kind[schema.DataType.Name(one.data_type)])
    for one, output in zip(config.output, session.run(None, feeds), strict=True):
        expected = [] if one.HasField("reshape") else list(one.dims)
        assert len(output) == config.max_batch_size and len(output.shape) == 1 + len(expected)
        assert all(want in (-1, side) for want, side in zip(expected, output.shape[1:], strict=True))


class PlayedServer:
    """ONNX Runtime behind the names of Triton's client; a number for each image is a list of one, as by `reshape`."""

    def __init__(self, session: Any) -> None:
        self.session = session

    def infer(self, model: str, inputs: list[PlayedInput]) -> PlayedServer:
        assert model == "people"
        for one in inputs:
            assert one.kind == {np.dtype(np.uint8): "UINT8", np.dtype(np.int64): "INT64"}[one.array.dtype]
            assert tuple(one.shape) == one.array.shape
        found = self.session.run(None, {one.name: one.array for one in inputs})
        names = [output.name for output in self.session.get_outputs()]
        self.outputs = {
            name: array[:, None] if array.ndim == 1 else array for name, array in zip(names, found, strict=True)
        }
        return self

    def as_numpy(self, name: str) -> Any:
        return self.outputs[name]


class PlayedInput:
    def __init__(self, name: str, shape: list[int], kind: str) -> None:
        self.name, self.shape, self.kind = name, shape, kind

    def set_data_from_numpy(self, array: Any) -> None:
        self.array = array


def test_the_client_of_the_page_gets_the_boxes_of_predict(
    people: Detector,
    tmp_path: Path,
    schema: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    export(people, tmp_path / "people", to="triton", end_to_end=True)
    check_folder(tmp_path / "people", schema, "labels")
    session = pytest.importorskip("onnxruntime").InferenceSession(str(tmp_path / "people" / "1" / "model.onnx"))
    client = ModuleType("tritonclient.http")
    client.InferInput = PlayedInput  # type: ignore[attr-defined]
    client.InferenceServerClient = lambda address: PlayedServer(session)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tritonclient", ModuleType("tritonclient"))
    monkeypatch.setitem(sys.modules, "tritonclient.http", client)
    monkeypatch.setattr(sys.modules["tritonclient"], "http", client, raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copy(sample_image(), "photo.jpg")
    page = (Path(__file__).resolve().parents[2] / "docs" / "triton.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(block.replace("SIZE = 640", "SIZE = 128"), names)
    found, answer, count = people.predict("photo.jpg"), names["answer"], names["count"]
    assert count == len(found) > 0 and capsys.readouterr().out
    assert np.allclose(answer.as_numpy("boxes_xyxy")[0, :count], found.boxes_xyxy, atol=0.05)
    assert np.allclose(answer.as_numpy("scores")[0, :count], found.scores, atol=1e-3)
