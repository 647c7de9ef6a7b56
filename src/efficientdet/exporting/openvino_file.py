"""OpenVINO files (an .xml and a .bin beside it): writing, and opening on the CPU."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from efficientdet.errors import require
from efficientdet.exporting import onnx_file
from efficientdet.exporting.formats import OpenedFile
from efficientdet.inference.detector import Detector
from efficientdet.inference.engines.engine import as_tensors
from efficientdet.inference.engines.exported import open_file as open_exported
from efficientdet.inference.engines.metadata import FileMetadata, add_checksum
from efficientdet.inference.engines.runtimes import open_openvino, openvino_session
from efficientdet.inference.engines.session import Session
from efficientdet.weights.info import METADATA_KEY


def write(detector: Detector, path: Path, metadata: FileMetadata) -> None:
    """Write a detector as an OpenVINO model, by way of ONNX.

    Raises:
        MissingExtraError: openvino, onnx or onnxscript is not installed.
    """
    require("openvino", "export")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.onnx"
        onnx_file.write(detector, source, metadata)
        # Read, not converted, which would turn float16 weights into float32 again.
        save(open_openvino(source), path, metadata)


def save(model: Any, path: Path, metadata: FileMetadata) -> None:
    """Write OpenVINO's own model with its metadata, checksum included."""
    model.set_rt_info(metadata.to_json(), METADATA_KEY)
    # OpenVINO's own compression would round the anchors too.
    require("openvino", "export").save_model(model, str(path), compress_to_fp16=False)
    add_checksum(path)


def _with_bias(conv: Any) -> Any:
    """The output behind a convolution's bias, which is an addition of its own here."""
    for target in conv.output(0).get_target_inputs():
        node = target.get_node()
        if node.get_type_name() == "Add" and node.input_value(1).get_node().get_type_name() in ("Constant", "Reshape"):
            return node.output(0)
    return conv.output(0)


def open_file(path: Path) -> OpenedFile:
    """Open a file, to compute in float32.

    Raises:
        MissingExtraError: openvino is not installed.
        WeightsError: it is damaged, or holds no metadata of ours.
    """
    metadata, open_session = open_exported(path, "openvino")

    @functools.cache
    def session_of(names: tuple[str, ...]) -> tuple[list[str], int, Session]:
        model = open_openvino(path)
        found = []
        for conv in model.get_ordered_ops():
            if conv.get_type_name() not in ("Convolution", "GroupConvolution"):
                continue
            name = conv.get_friendly_name().removesuffix("/WithoutBiases").partition("@")[0]
            if not names or name in names:
                found.append((name, _with_bias(conv)))
        first = len(model.outputs)
        model.add_outputs([output for _, output in found])
        return [name for name, _ in found], first, openvino_session(model, None, "fp32")

    def convolutions(inputs: Sequence[NDArray[Any]], names: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
        layers, first, session = session_of(names)
        for name, output in zip(layers, as_tensors(session(*inputs)[first:]), strict=True):
            yield name, output.clone()

    session = open_session(None, cached=False)
    # Copies, since the next call's outputs take the place of the last one's.
    return OpenedFile(
        metadata, lambda *inputs: [output.clone() for output in as_tensors(session(*inputs))], convolutions
    )
