from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from efficientdet.errors import SettingError, UnknownNameError
from efficientdet.exporting.export import make_metadata
from efficientdet.exporting.settings import (
    FORMATS,
    NOT_WRITTEN,
    ExportOptions,
    ExportSettings,
    QuantizeOptions,
    QuantizeSettings,
    check_abilities,
    find_format,
)
from efficientdet.inference.detector import Detector, load
from efficientdet.settings import changed, names_of


@pytest.mark.parametrize("name", FORMATS)
def test_the_suffix_tells_the_format(name: str) -> None:
    path = Path("x").with_suffix(FORMATS[name].suffix)
    assert find_format(name, path) == name
    if FORMATS[name].suffix:
        assert find_format(None, path) == name


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
    with pytest.raises(SettingError, match="no format has the suffix ''"):
        find_format(None, Path("x"))
    with pytest.raises(SettingError, match=r"x\.onnx: what is exported to openvino must be called \*\.xml"):
        find_format("openvino", Path("x.onnx"))
    with pytest.raises(SettingError, match=r"x\.onnx: what is exported to triton must be a folder"):
        find_format("triton", Path("x.onnx"))


@pytest.mark.parametrize(
    ("to", "settings", "message"),
    [
        ("executorch", ExportSettings(end_to_end=True), "executorch files here cannot have decoding .*onnx, openvino"),
        ("tflite", ExportSettings(dynamic_batch=True), "tflite files here cannot have any number"),
        ("torch-export", ExportSettings(dynamic_size=True), "torch-export files here cannot have images of any size"),
    ],
)
def test_what_a_format_cannot_be_is_refused(people: Detector, to: str, settings: ExportSettings, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        check_abilities(settings, to, people)


def test_a_dynamic_size_starts_from_one_of_its_own() -> None:
    for size, words in ((160, "160x160.*multiples of 128 only; choose --image-size 256"), ((100, 256), "128x256")):
        with pytest.raises(SettingError, match=words):
            check_abilities(ExportSettings(dynamic_size=True), "onnx", load("people", device="cpu", image_size=size))


def test_any_size_means_any_batch_too() -> None:
    metadata = make_metadata(load("people", device="cpu"), changed(ExportSettings(), {"dynamic": True}))
    assert metadata.dynamic_size and metadata.dynamic_batch


def test_nms_that_no_graph_has_is_refused() -> None:
    soft = load("people", device="cpu", nms="soft")
    with pytest.raises(SettingError, match="not 'soft' over 'pairs'"):
        check_abilities(ExportSettings(end_to_end=True), "onnx", soft)
    check_abilities(ExportSettings(), "onnx", soft)  # raw outputs suit every NMS


@pytest.mark.parametrize(
    ("options", "settings"), [(ExportOptions, ExportSettings), (QuantizeOptions, QuantizeSettings)]
)
def test_keywords_for_type_checkers_are_the_fields(options: type, settings: type) -> None:
    assert set(get_type_hints(options)) == set(names_of(settings))


def test_the_settings_need_neither_torch_nor_numpy() -> None:
    program = "import sys, efficientdet.exporting.settings; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
