"""Metadata of exported files: read back as written, refused with the field where damaged, and with them a checksum."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from efficientdet.errors import WeightsError
from efficientdet.family import MODELS
from efficientdet.images.letterbox import LITE
from efficientdet.inference.engines.metadata import CHECKSUM, FileMetadata, add_checksum, verify_checksum
from efficientdet.inference.settings import PostprocessSettings
from efficientdet.weights.info import CheckpointInfo

METADATA = FileMetadata(
    CheckpointInfo(MODELS["lite0"], ("cat", "dog"), (7, 3), LITE),
    (320, 256),
    PostprocessSettings(iou_threshold=0.4),
    dynamic_batch=True,
    precision="int8",
    calibration={"images": 8},
)


def test_what_was_written_is_read() -> None:
    assert FileMetadata.from_json(METADATA.to_json(), Path("x.onnx")) == METADATA


def test_a_program_without_this_package_finds_what_it_needs() -> None:
    facts = json.loads(METADATA.to_json())
    assert facts["class_names"] == ["cat", "dog"] and facts["category_ids"] == [7, 3]
    assert facts["image_size"] == [320, 256] and facts["preprocessing"]["mean"] == [127.0, 127.0, 127.0]
    assert facts["anchors"]["count"] == 9 * sum(-(-320 // 2**p) * -(-256 // 2**p) for p in range(3, 8))
    assert "class_logits" in facts["outputs"] and "boxes_xyxy" not in facts["outputs"]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("image_size", None, "damaged metadata .*NoneType"),
        ("image_size", [1], "damaged metadata"),
        ("postprocess", {"iou_threshold": 7}, "iou_threshold is 7"),
        ("postprocess", {"iou": 7}, "damaged metadata .*'iou'"),
        ("checkpoint", {}, "damaged metadata"),
        ("checksum", "file-sha257:" + "0" * 64, "damaged metadata .*checksum"),
        ("checksum", 7, "damaged metadata"),
    ],
)
def test_a_damaged_field_is_named(field: str, value: Any, words: str) -> None:
    facts = {**json.loads(METADATA.to_json()), field: value}
    with pytest.raises(WeightsError, match=rf"x\.onnx: .*{words}"):
        FileMetadata.from_json(json.dumps(facts), Path("x.onnx"))


@pytest.mark.parametrize("text", [None, "", "{", "[]", "[" * 100_000, "3"])
def test_no_metadata_and_no_json_are_refused(text: str | None) -> None:
    with pytest.raises(WeightsError, match=r"x\.onnx: (has no metadata|damaged metadata)"):
        FileMetadata.from_json(text, Path("x.onnx"))


def test_names_from_outside_are_shown_and_not_obeyed() -> None:
    """An escape sequence in a field cannot clear the screen of whoever reads the error, nor a long name fill it."""
    facts = {**json.loads(METADATA.to_json()), "postprocess": {"\x1b[2J" + "x" * 100_000: 1}}
    with pytest.raises(WeightsError) as caught:
        FileMetadata.from_json(json.dumps(facts), Path("x.onnx"))
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 25_000


def write(path: Path) -> Path:
    path.write_bytes(b"before" + METADATA.to_json().encode() + b"behind")
    path.with_suffix(".bin").write_bytes(b"weights")
    add_checksum(path)
    return path


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_every_byte_is_covered_by_the_checksum(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"x{suffix}")
    verify_checksum(path)
    content = path.read_bytes()
    mark = content.index(CHECKSUM)
    for place in (*range(0, len(content), 97), mark + len(CHECKSUM), len(content) - 1):
        if mark <= place < mark + len(CHECKSUM):
            continue
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(WeightsError, match="does not match its checksum"):
            verify_checksum(path)


def test_the_weights_beside_an_xml_are_covered(tmp_path: Path) -> None:
    path = write(tmp_path / "x.xml")
    path.with_suffix(".bin").write_bytes(b"weighty")
    with pytest.raises(WeightsError, match="does not match its checksum"):
        verify_checksum(path)


def test_another_exporters_file_has_no_checksum(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(b"something else")
    verify_checksum(path)  # that it is not ours is said by who reads its metadata
