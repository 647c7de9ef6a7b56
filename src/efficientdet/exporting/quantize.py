"""quantize: a trained detector -> a file of 8-bit integers, its ranges taken from pictures, its AP held to a bound."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from efficientdet.data.dataset import read_split
from efficientdet.data.records import ImageRecord, Records
from efficientdet.errors import EfficientDetError, SettingError, unknown_name
from efficientdet.exporting.comparison_images import make_batch
from efficientdet.exporting.formats import open_file
from efficientdet.exporting.metadata import file_facts
from efficientdet.exporting.parity import ParityReport, check_file
from efficientdet.exporting.settings import FORMATS, ExportSettings
from efficientdet.images.letterbox import letterbox
from efficientdet.images.read import read
from efficientdet.inference.detector import Detector, load

# What quantizes, and the format of the file that it gives.
TARGETS = {"openvino": "openvino"}
# Pictures on which the outputs are compared level by level.
COMPARED = 8


@dataclass(frozen=True)
class LevelDifference:
    """How far one output of one pyramid level is from that of the float32 network.

    Attributes:
        output: such as `class_logits of P3`.
        mean: mean |difference|.
        maximum: max |difference|.
        spread: standard deviation of the output itself, to measure them by.
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
        to: what it is for.
        calibration: how the ranges were found.
        size_bytes: of the file, weights included.
        parity: the comparison with the float32 network, AP included; None where nothing was to be checked.
        levels: differences of the outputs by level, finest first.
    """

    file: str
    to: str
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
            "Try more images, or --preset mixed"
        )
        self.report = report


def quantize(
    detector: Detector | str | Path,
    data: str | Path | Records,
    out: str | Path,
    *,
    to: str = "openvino",
    pictures: int = 300,
    split: str = "train",
    preset: str = "performance",
    check: str | None = "val",
    reference: Detector | None = None,
) -> QuantizationReport:
    """Quantize a trained detector after training, and evaluate the file before it takes its place.

    Args:
        detector: a detector, or what `load` takes.
        data: the data set whose pictures show what ranges the network's numbers have; records are the split itself.
        out: the file to write: `.xml` for OpenVINO, `.onnx` for ONNX Runtime. `load` opens it.
        to: `openvino` or `onnxruntime`: each quantizes in the way that it runs best.
        pictures: how many of the split are looked at, evenly spread.
        split: which split they are from.
        preset: OpenVINO's: `performance` (ranges symmetric around 0), or `mixed` (activations asymmetric: closer and
            slower).
        check: the split on which AP before and after is compared; None to write the file unchecked.
        reference: the detector to compare with, where `detector` is that one fine-tuned; None for `detector`.

    Returns:
        The report; AP is within a point.

    Raises:
        QuantizationError: AP changed by over a point; nothing is written.
        SettingError: a setting is out of range, or the file's name does not suit.
        DataError, ImageError: the data set is at fault.
        MissingExtraError: a library is not installed; says how to install it.
    """
    path = Path(out)
    _check_choice(path, to, pictures)
    detector = detector if isinstance(detector, Detector) else load(detector)
    records = data if isinstance(data, Records) else read_split(data, split)
    chosen = _spread(records, pictures)
    calibration = {
        "data": records.source.name,
        "split": split, "pictures": len(chosen), "preset": preset if to == "openvino" else "per channel",
    }  # fmt: skip
    facts = {**file_facts(detector, settings_for(detector, to)), "precision": "int8", "calibration": calibration}
    from efficientdet.exporting.quantize_openvino import write_quantized

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        draft = Path(folder) / path.name
        write_quantized(detector, Calibration(detector, chosen), draft, facts, preset)
        report = _report(reference or detector, draft, to, calibration, data, check)
        if report.parity is not None and report.parity.failures:
            raise QuantizationError(report)
        for part in sorted(Path(folder).iterdir(), key=lambda part: part == draft):  # an .xml comes after its .bin
            os.replace(part, path.parent / part.name)
    return report


class Calibration:
    """Pictures as the network takes them, made anew each time they are gone through.

    Args:
        detector: gives size and preprocessing.
        records: the pictures.
    """

    def __init__(self, detector: Detector, records: list[ImageRecord]) -> None:
        self.records = records
        self.size = detector.image_size
        self.preprocessing = detector.info.preprocessing

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.records)

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        """(1, 3, H, W) float32, normalized and padded."""
        return letterbox(read(self.records[index].path), self.size, self.preprocessing)[0][None]


def settings_for(detector: Detector, to: str) -> ExportSettings:
    """Any batch, and any size where the detector's own is a multiple of the coarsest stride."""
    is_regular = not any(side % detector.model.spec.strides[-1] for side in detector.image_size)
    return ExportSettings(TARGETS[to], dynamic_batch=True, dynamic_size=is_regular)


def _check_choice(path: Path, to: str, pictures: int) -> None:
    if to not in TARGETS:
        raise unknown_name("target", to, TARGETS)
    suffix = FORMATS[TARGETS[to]].suffix
    if path.suffix != suffix:
        raise SettingError(f"{path}: a file for {to} must be called *{suffix}")
    if pictures < 1:
        raise SettingError(f"pictures is {pictures}; quantizing needs at least one to see the ranges")


def _spread(records: Records, most: int) -> list[ImageRecord]:
    """At most so many of the pictures, evenly spread."""
    count = min(most, len(records))
    return [records.images[i * len(records) // count] for i in range(count)]


def _report(
    detector: Detector, path: Path, to: str, calibration: dict[str, Any], data: str | Path | Records, check: str | None
) -> QuantizationReport:
    size = sum(part.stat().st_size for part in path.parent.iterdir())
    if check is None:
        return QuantizationReport(path.name, to, calibration, size, None, ())
    records = data if isinstance(data, Records) else read_split(data, check)
    levels = level_differences(detector, path, to, _spread(records, COMPARED))
    folder = records.images[0].path.parent
    parity = check_file(detector, path, TARGETS[to], pictures=folder, data=records)
    return QuantizationReport(path.name, to, calibration, size, parity, levels)


def level_differences(
    detector: Detector, path: Path, to: str, records: list[ImageRecord]
) -> tuple[LevelDifference, ...]:
    """How far a quantized file's outputs are from the network's, level by level.

    Args:
        detector: the network.
        path: the file.
        to: what it is for.
        records: pictures to compare on.

    Returns:
        One for each output and level, class logits first, finest level first.
    """
    file = open_file(path, TARGETS[to])
    pictures = [read(record.path) for record in records]
    batch = make_batch(pictures, detector.image_size, detector.info.preprocessing, whole=False)
    with torch.no_grad():
        expected = detector.model(batch.images.to(detector.device))
    found = [file.raw(batch._replace(images=image[None])) for image in batch.images]
    differences = []
    for output, parts, levels in zip(("class_logits", "box_deltas"), zip(*found, strict=True), expected, strict=True):
        values = torch.split(torch.cat(parts), [level.shape[1] for level in levels], 1)
        for number, (value, level) in enumerate(zip(values, levels, strict=True), detector.model.spec.levels[0]):
            off = (value - level.cpu()).abs()
            differences.append(
                LevelDifference(f"{output} of P{number}", float(off.mean()), float(off.max()), float(level.std()))
            )
    return tuple(differences)
