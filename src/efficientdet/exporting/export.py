"""export and quantize: a detector -> a file for another runtime, proven before it takes its place."""

from __future__ import annotations

import functools
import gc
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Unpack

from efficientdet.atomic_write import replacing
from efficientdet.data.read_split import read_split
from efficientdet.data.records import ImageRecord, Records
from efficientdet.errors import SettingError, require
from efficientdet.exporting import onnx_file, openvino_file, triton
from efficientdet.exporting.formats import MOST_IMAGES, comparison_images, module_of, spread
from efficientdet.exporting.parity import ParityError, ParityReport, check_file
from efficientdet.exporting.settings import (
    ExportOptions,
    ExportSettings,
    QuantizeOptions,
    QuantizeSettings,
    check_abilities,
    find_format,
)
from efficientdet.images.convert import RgbImage
from efficientdet.images.letterbox import letterbox, letterbox_bytes
from efficientdet.images.read import read
from efficientdet.inference.detector import Detector, load
from efficientdet.inference.engines.metadata import DETECTION_OUTPUTS, FileMetadata
from efficientdet.inference.engines.onnx_graph import quiet
from efficientdet.settings import changed


def export(
    detector: Detector | str | Path,
    path: str | Path,
    *,
    images: str | Path | None = None,
    data: str | Path | Records | None = None,
    split: str = "val",
    **settings: Unpack[ExportOptions],
) -> ParityReport:
    """Write a detector for another runtime, and compare the file with the network before it takes its place.

    Args:
        detector: a detector, or what `load` takes. Its image size goes into the file, and, end-to-end, its settings of
            the post-processing.
        path: the file to write; for Triton, the model's folder in its repository.
        images: folder of images to compare on; None for the sample image.
        data: dataset on which the AP of both is compared too.
        split: of the dataset.
        **settings: fields of `ExportSettings`, such as `end_to_end=True`.

    Returns:
        The comparison, all of whose bounds hold.

    Raises:
        SettingError: the format cannot do what is asked for, or is not written here; says what to do instead.
        MissingExtraError: a library is not installed; says how to install it.
        ImageError, DataError: images or dataset cannot be read.
        ParityError: the file is too far from the network; nothing is written.
    """
    path, chosen = Path(path), changed(ExportSettings(), settings)
    to = find_format(chosen.to, path)
    detector = detector if isinstance(detector, Detector) else load(detector)
    check_abilities(chosen, to, detector)
    # What the comparison needs, before the minutes that writing takes.
    found = comparison_images(images)
    if data is not None:
        require("faster_coco_eval", "train")
    records = read_split(data, split) if isinstance(data, (str, Path)) else data
    is_folder = to == "triton"
    metadata = make_metadata(detector, changed(chosen, {"dynamic_batch": True} if is_folder else {}))
    target = path / triton.MODEL_FILE if is_folder else path
    report = write_proven(
        detector, target, to, lambda file: module_of(to).write(detector, file, metadata), found, records
    )
    if is_folder:
        triton.write_config(path, metadata)
    return report


def quantize(
    detector: Detector | str | Path, data: str | Path | Records, out: str | Path, **settings: Unpack[QuantizeOptions]
) -> ParityReport:
    """Quantize a trained detector to int8, and evaluate the file before it takes its place.

    Args:
        detector: a detector, or what `load` takes.
        data: the dataset that the calibration images, and those of the check, are from; records are used for both.
        out: the `.xml` to write, its `.bin` beside it. `load` opens it. End-to-end, the detector's settings of the
            post-processing are in it.
        **settings: fields of `QuantizeSettings`, such as `calibration_images=100`.

    Returns:
        The comparison with the float32 network, AP and each level's outputs; AP is within a point.

    Raises:
        ParityError: AP changed by over a point; nothing is written.
        SettingError: a setting is unknown or out of range, the file's name does not end in `.xml`, or the detector's
            post-processing cannot be in a file.
        DataError, ImageError: the dataset is at fault.
        MissingExtraError: a library is not installed; says how to install it.
    """
    path, chosen = Path(out), changed(QuantizeSettings(), settings)
    if path.suffix != ".xml":
        raise SettingError(f"{path}: int8 files are for OpenVINO, so it must be called *.xml")
    detector = detector if isinstance(detector, Detector) else load(detector)
    check_abilities(ExportSettings(end_to_end=chosen.end_to_end), "openvino", detector)
    records = data if isinstance(data, Records) else read_split(data, chosen.split)
    calibration = spread(records.images, chosen.calibration_images)
    facts = {"data": records.source.name, "split": chosen.split, "images": len(calibration), "preset": chosen.preset}
    compared = data if isinstance(data, Records) else read_split(data, chosen.check_split)
    images = [read(record.path) for record in spread(compared.images, MOST_IMAGES)]
    return write_proven(
        detector, path, "openvino", lambda file: write_int8(detector, calibration, file, chosen, facts), images,
        compared, ". Try more --calibration-images",
    )  # fmt: skip


def write_proven(
    detector: Detector, path: Path, to: str, write: Callable[[Path], None], images: list[RgbImage],
    data: Records | None, advice: str = "",
) -> ParityReport:  # fmt: skip
    """Write a file by `write`, and compare it as `check_file` does before it takes its place.

    Raises:
        ParityError: the file is too far from the network; nothing is written. The message ends with `advice`.
    """
    with replacing(path) as file:
        write(file)
        report = check_file(detector, file, to, images=images, data=data)
        if report.failures:
            raise ParityError(report, advice)
    return report


def make_metadata(detector: Detector, settings: ExportSettings) -> FileMetadata:
    """The metadata of a detector's file."""
    return FileMetadata(
        detector.info,
        detector.image_size,
        detector.postprocess,
        settings.end_to_end,
        settings.dynamic_batch or settings.dynamic_size,
        settings.dynamic_size,
        "fp16" if settings.half else "fp32",
    )


def calibration_input(detector: Detector, end_to_end: bool, record: ImageRecord) -> list[NDArray[Any]]:
    """An image as a file takes it: (1, 3, H, W) float32, normalized; end-to-end (1, H, W, 3) uint8, and its size."""
    image, size = read(record.path), detector.image_size
    if end_to_end:
        return [letterbox_bytes(image, size)[None], np.array([image.shape[:2]])]
    return [letterbox(image, size, detector.info.preprocessing)[0][None]]


def write_int8(
    detector: Detector, calibration: list[ImageRecord], path: Path, settings: QuantizeSettings, facts: dict[str, Any]
) -> None:
    """Quantize by NNCF, and write the `.xml` with its `.bin`.

    A raw network takes any batch, and any size where the detector's allows it; an end-to-end file, whose network alone
    is quantized, one image of the detector's size. The images of `calibration` give the ranges; `facts` go into the
    metadata.

    Raises:
        MissingExtraError: nncf, openvino, onnx or onnxscript is not installed.
    """
    with quiet("nncf"):
        nncf = require("nncf", "export")
    openvino = require("openvino", "export")
    is_raw = not settings.end_to_end
    metadata = FileMetadata(
        detector.info, detector.image_size, detector.postprocess, settings.end_to_end, is_raw,
        is_raw and detector.info.spec.has_whole_cells(detector.image_size), "int8", facts,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "network.onnx"
        onnx_file.write(detector, source, metadata)
        # Converted, not just read: this makes one operation of x * sigmoid(x). Two would be quantized one by one, and
        # run in float32 in between.
        model = openvino.convert_model(str(source))
    dataset = nncf.Dataset(calibration, functools.partial(calibration_input, detector, settings.end_to_end))
    around = nncf.IgnoredScope([*DETECTION_OUTPUTS], [f"{onnx_file.AROUND}.*"], validate=False)
    with quiet("nncf"):
        quantized = nncf.quantize(
            model, dataset, preset=nncf.QuantizationPreset(settings.preset), subset_size=len(calibration),
            ignored_scope=around,
            # Biases corrected layer by layer: 0.3 AP points on `cells` for a third more time.
            fast_bias_correction=False,
            # Weights of seven bits: AVX2 adds products in 16 bits, which overflow with eight (-4 AP points on `cells`).
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
        )  # fmt: skip
    gc.collect()  # NNCF's cores must end in the thread that they began in: see `openvino_core`
    openvino_file.save(quantized, path, metadata)
