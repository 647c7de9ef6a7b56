from __future__ import annotations

from pathlib import Path

import pytest

from efficientdet.errors import SettingError, UnknownNameError
from efficientdet.exporting.settings import FORMATS, NOT_WRITTEN, ExportSettings, check_settings, find_format
from efficientdet.inference.detector import Detector, load


@pytest.mark.parametrize("name", FORMATS)
def test_the_suffix_tells_the_format(name: str) -> None:
    path = Path("x").with_suffix(FORMATS[name].suffix)
    assert find_format(None, path) == find_format(name, path) == name


@pytest.mark.parametrize("name", NOT_WRITTEN)
@pytest.mark.parametrize("by_suffix", [True, False])
def test_what_is_not_written_says_what_to_do_instead(name: str, by_suffix: bool) -> None:
    path = Path("x").with_suffix(NOT_WRITTEN[name][0])
    with pytest.raises(SettingError, match=f"{name} is not written here: .*xport to (onnx|torch-export)"):
        find_format(None if by_suffix else name, path)


def test_faulty_names_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'openvino'"):
        find_format("openvin", Path("x.xml"))
    with pytest.raises(SettingError, match="no format has the suffix '.pth'"):
        find_format(None, Path("x.pth"))
    with pytest.raises(SettingError, match=r"x\.onnx: a file of format openvino must be called \*\.xml"):
        find_format("openvino", Path("x.onnx"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ExportSettings("executorch", end_to_end=True), "executorch files here cannot have decoding .*onnx, openvino"),
        (ExportSettings("tflite", dynamic_batch=True), "tflite files here cannot have any number"),
        (ExportSettings("torch-export", dynamic_size=True), "torch-export files here cannot have pictures of any size"),
    ],
)
def test_what_a_format_cannot_be_is_refused(people: Detector, settings: ExportSettings, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        check_settings(settings, people)


def test_a_dynamic_size_starts_from_one_of_its_own() -> None:
    with pytest.raises(SettingError, match=r"\(160, 160\): with dynamic size every side is a multiple of 128"):
        check_settings(ExportSettings("onnx", dynamic_size=True), load("people", device="cpu", image_size=160))


def test_suppression_that_no_graph_has_is_refused() -> None:
    soft = load("people", device="cpu", nms="soft")
    with pytest.raises(SettingError, match="not 'soft' over 'pairs'"):
        check_settings(ExportSettings("onnx", end_to_end=True), soft)
    check_settings(ExportSettings("onnx"), soft)  # raw outputs are any suppression's
