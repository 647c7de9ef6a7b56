"""quantize: a trained detector -> an int8 file for OpenVINO, ranges from calibration images, AP held to a bound."""

from __future__ import annotations

import functools
import gc
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from efficientdet.atomic_write import replacing
from efficientdet.data.read_split import read_split
from efficientdet.data.records import ImageRecord, Records
from efficientdet.errors import SettingError, require
from efficientdet.exporting import openvino_file
from efficientdet.exporting.comparison_images import MOST_IMAGES, spread
from efficientdet.exporting.parity import ParityError, ParityReport, check_file
from efficientdet.exporting.settings import QuantizeSettings
from efficientdet.images.letterbox import letterbox
from efficientdet.images.read import read
from efficientdet.inference.detector import Detector, load
from efficientdet.inference.engines.metadata import FileMetadata
from efficientdet.inference.engines.onnx_graph import quiet, write_onnx_network
from efficientdet.settings import changed

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from efficientdet.exporting.settings import QuantizeOptions


@dataclass(frozen=True)
class QuantizationReport:
    """What quantizing gave.

    Attributes:
        file: the file that was written, or would have been.
        calibration: how the ranges were found.
        size_bytes: of the file, weights included.
        parity: the comparison with the float32 network, AP and each level's outputs; None where it was not asked for.
    """

    file: str
    calibration: dict[str, Any]
    size_bytes: int
    parity: ParityReport | None

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return {**vars(self), "parity": None if self.parity is None else self.parity.to_dict()}


def quantize(
    detector: Detector | str | Path, data: str | Path | Records, out: str | Path, **settings: Unpack[QuantizeOptions]
) -> QuantizationReport:
    """Quantize a trained detector to int8, and evaluate the file before it takes its place.

    Args:
        detector: a detector, or what `load` takes.
        data: the dataset that the calibration images, and those of the check, are from; records are used for both.
        out: the `.xml` to write, its `.bin` beside it. `load` opens it.
        **settings: fields of `QuantizeSettings`, such as `calibration_images=100`.

    Returns:
        The report; AP is within a point.

    Raises:
        ParityError: AP changed by over a point; nothing is written.
        SettingError: a setting is unknown or out of range, or the file's name does not end in `.xml`.
        DataError, ImageError: the dataset is at fault.
        MissingExtraError: a library is not installed; says how to install it.
    """
    path, chosen = Path(out), changed(QuantizeSettings(), settings)
    if path.suffix != ".xml":
        raise SettingError(f"{path}: int8 files are for OpenVINO, so it must be called *.xml")
    detector = detector if isinstance(detector, Detector) else load(detector)
    records = data if isinstance(data, Records) else read_split(data, chosen.split)
    calibration = spread(records.images, chosen.calibration_images)
    facts = {"data": records.source.name, "split": chosen.split, "images": len(calibration), "preset": chosen.preset}
    with replacing(path) as file:
        write_quantized(detector, calibration, file, chosen.preset, facts)
        size = sum(part.stat().st_size for part in file.parent.iterdir())
        parity: ParityReport | None = None
        if chosen.check:
            compared = data if isinstance(data, Records) else read_split(data, chosen.check_split)
            images = [read(record.path) for record in spread(compared.images, MOST_IMAGES)]
            parity = check_file(detector, file, "openvino", images=images, data=compared)
            if parity.failures:
                raise ParityError(parity, ". Try more --calibration-images, or --preset mixed")
    return QuantizationReport(path.name, facts, size, parity)


def network_input(detector: Detector, record: ImageRecord) -> NDArray[np.float32]:
    """(1, 3, H, W) float32: an image as the network takes it, normalized and padded."""
    return letterbox(read(record.path), detector.image_size, detector.info.preprocessing)[0][None]


def write_quantized(
    detector: Detector, calibration: list[ImageRecord], path: Path, preset: str, facts: dict[str, Any]
) -> None:
    """Quantize by NNCF, and write the `.xml` with its `.bin`: any batch, and any size where the detector's allows it.

    Args:
        detector: the network.
        calibration: images that give the ranges.
        path: the file.
        preset: of NNCF: `performance` or `mixed`.
        facts: on the calibration, for the metadata.

    Raises:
        MissingExtraError: nncf, openvino, onnx or onnxscript is not installed.
    """
    with quiet("nncf"):
        nncf = require("nncf", "export")
    openvino = require("openvino", "export")
    is_regular = not any(side % detector.info.spec.strides[-1] for side in detector.image_size)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "network.onnx"
        write_onnx_network(detector.model, source, detector.image_size, dynamic_batch=True, dynamic_size=is_regular)
        # Converted, not just read: this makes one operation of x * sigmoid(x). Two would be quantized one by one, and
        # run in float32 in between.
        model = openvino.convert_model(str(source))
    dataset = nncf.Dataset(calibration, functools.partial(network_input, detector))
    with quiet("nncf"):
        quantized = nncf.quantize(model, dataset, preset=nncf.QuantizationPreset(preset), subset_size=len(calibration))
    gc.collect()  # NNCF's cores must end in the thread that they began in: see `openvino_core`
    metadata = FileMetadata(
        detector.info, detector.image_size, detector.postprocess, dynamic_batch=True, dynamic_size=is_regular,
        precision="int8", calibration=facts,
    )  # fmt: skip
    openvino_file.save(quantized, path, metadata)
