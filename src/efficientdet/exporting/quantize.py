"""quantize: a trained detector -> an int8 file for OpenVINO, ranges from calibration images, AP held to a bound."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from efficientdet.atomic_write import replacing
from efficientdet.data.read_split import read_split
from efficientdet.data.records import ImageRecord, Records
from efficientdet.errors import EfficientDetError, SettingError, require
from efficientdet.exporting import openvino_file
from efficientdet.exporting.comparison_images import make_batch
from efficientdet.exporting.first_difference import by_level
from efficientdet.exporting.parity import ParityReport, check_file
from efficientdet.exporting.settings import QuantizeSettings
from efficientdet.images.letterbox import letterbox
from efficientdet.images.read import read
from efficientdet.inference.detector import Detector, load
from efficientdet.inference.engines.metadata import FileMetadata
from efficientdet.inference.engines.onnx_graph import write_onnx_network
from efficientdet.settings import changed

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from efficientdet.exporting.settings import QuantizeOptions

# Images on which the outputs are compared level by level.
COMPARED = 8


@dataclass(frozen=True)
class LevelDifference:
    """How far one output of one pyramid level is from that of the float32 network.

    Attributes:
        output: such as `class_logits of P3`.
        mean: mean |difference|.
        maximum: max |difference|.
        spread: standard deviation of the output itself, the scale for both.
    """

    output: str
    mean: float
    maximum: float
    spread: float


@dataclass(frozen=True)
class QuantizationReport:
    """What quantizing gave.

    Attributes:
        file: the file that was written, or would have been.
        calibration: how the ranges were found.
        size_bytes: of the file, weights included.
        parity: the comparison with the float32 network, AP included; None where it was not asked for.
        levels: differences of the outputs by level, finest first.
    """

    file: str
    calibration: dict[str, Any]
    size_bytes: int
    parity: ParityReport | None
    levels: tuple[LevelDifference, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        parity = None if self.parity is None else self.parity.to_dict()
        return {**vars(self), "parity": parity, "levels": [vars(level) for level in self.levels]}


class QuantizationError(EfficientDetError):
    """The quantized network lost too much AP: the message says how much, and which level differs most.

    Attributes:
        report: the whole comparison.
    """

    def __init__(self, report: QuantizationReport) -> None:
        assert report.parity is not None
        worst = max(report.levels, key=lambda level: level.mean / (level.spread or 1.0))
        super().__init__(
            f"{report.file}: {'; '.join(report.parity.failures)}; not written. The output that differs most for its "
            f"spread: {worst.output} (mean {worst.mean:.3g}, spread {worst.spread:.3g}). "
            "Try more --calibration-images, or --preset mixed"
        )
        self.report = report


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
        QuantizationError: AP changed by over a point; nothing is written.
        SettingError: a setting is unknown or out of range, or the file's name does not end in `.xml`.
        DataError, ImageError: the dataset is at fault.
        MissingExtraError: a library is not installed; says how to install it.
    """
    path, chosen = Path(out), changed(QuantizeSettings(), settings)
    if path.suffix != ".xml":
        raise SettingError(f"{path}: int8 files are for OpenVINO, so it must be called *.xml")
    detector = detector if isinstance(detector, Detector) else load(detector)
    records = data if isinstance(data, Records) else read_split(data, chosen.split)
    calibration = Calibration(detector, _spread(records, chosen.calibration_images))
    facts = {"data": records.source.name, "split": chosen.split, "images": len(calibration), "preset": chosen.preset}
    with replacing(path) as file:
        write_quantized(detector, calibration, file, chosen.preset, facts)
        size = sum(part.stat().st_size for part in file.parent.iterdir())
        report = QuantizationReport(path.name, facts, size, None, ())
        if chosen.check:
            compared = data if isinstance(data, Records) else read_split(data, chosen.check_split)
            levels = level_differences(detector, file, _spread(compared, COMPARED))
            folder = compared.images[0].path.parent
            parity = check_file(detector, file, "openvino", images=folder, data=compared)
            report = QuantizationReport(path.name, facts, size, parity, levels)
            if parity.failures:
                raise QuantizationError(report)
    return report


class Calibration:
    """Calibration images as the network takes them, read anew each time.

    Args:
        detector: gives size and preprocessing.
        records: the images.
    """

    def __init__(self, detector: Detector, records: list[ImageRecord]) -> None:
        self.records = records
        self.size = detector.image_size
        self.preprocessing = detector.info.preprocessing

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.records)

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        """(1, 3, H, W) float32, normalized and padded."""
        return letterbox(read(self.records[index].path), self.size, self.preprocessing)[0][None]


def _spread(records: Records, most: int) -> list[ImageRecord]:
    """At most this many of the images, evenly spread."""
    count = min(most, len(records))
    return [records.images[i * len(records) // count] for i in range(count)]


def write_quantized(
    detector: Detector, calibration: Calibration, path: Path, preset: str, facts: dict[str, Any]
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
    with quiet():
        nncf = require("nncf", "export")
    openvino = require("openvino", "export")
    is_regular = not any(side % detector.info.spec.strides[-1] for side in detector.image_size)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "network.onnx"
        write_onnx_network(detector.model, source, detector.image_size, dynamic_batch=True, dynamic_size=is_regular)
        # Converted, not just read: this makes one operation of x * sigmoid(x). Two would be quantized one by one, and
        # run in float32 in between.
        model = openvino.convert_model(str(source))
    with quiet():
        quantized = nncf.quantize(
            model, nncf.Dataset(calibration), preset=nncf.QuantizationPreset(preset), subset_size=len(calibration)
        )
    gc.collect()  # NNCF's cores must end in the thread that they began in: see `openvino_core`
    metadata = FileMetadata(
        detector.info, detector.image_size, detector.postprocess, dynamic_batch=True, dynamic_size=is_regular,
        precision="int8", calibration=facts,
    )  # fmt: skip
    openvino_file.save(quantized, path, metadata)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep NNCF's progress bars and its report of every layer away from the user."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def level_differences(detector: Detector, path: Path, records: list[ImageRecord]) -> tuple[LevelDifference, ...]:
    """How far a quantized file's outputs are from the network's, level by level.

    Args:
        detector: the network.
        path: the file.
        records: images to compare on.

    Returns:
        One for each output and level, class logits first, finest level first.
    """
    batch = make_batch([read(record.path) for record in records], detector.image_size, detector.info.preprocessing)
    differences = []
    for output, values, wanted in by_level(openvino_file.open_file(path), detector.model, batch):
        off = (values - wanted).abs()
        differences.append(LevelDifference(output, float(off.mean()), float(off.max()), float(wanted.std())))
    return tuple(differences)
