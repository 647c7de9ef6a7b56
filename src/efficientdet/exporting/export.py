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
from efficientdet.exporting import openvino_file, triton
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
from efficientdet.images.letterbox import letterbox
from efficientdet.images.read import read
from efficientdet.inference.detector import Detector, load
from efficientdet.inference.engines.metadata import FileMetadata
from efficientdet.inference.engines.onnx_graph import quiet, write_onnx_network
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
        out: the `.xml` to write, its `.bin` beside it. `load` opens it.
        **settings: fields of `QuantizeSettings`, such as `calibration_images=100`.

    Returns:
        The comparison with the float32 network, AP and each level's outputs; AP is within a point.

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
    compared = data if isinstance(data, Records) else read_split(data, chosen.check_split)
    images = [read(record.path) for record in spread(compared.images, MOST_IMAGES)]
    return write_proven(
        detector, path, "openvino", lambda file: write_int8(detector, calibration, file, chosen.preset, facts),
        images, compared, ". Try more --calibration-images, or --preset mixed",
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


def network_input(detector: Detector, record: ImageRecord) -> NDArray[np.float32]:
    """(1, 3, H, W) float32: an image as the network takes it, normalized and padded."""
    return letterbox(read(record.path), detector.image_size, detector.info.preprocessing)[0][None]


def write_int8(
    detector: Detector, calibration: list[ImageRecord], path: Path, preset: str, facts: dict[str, Any]
) -> None:
    """Quantize by NNCF, and write the `.xml` with its `.bin`: any batch, and any size where the detector's allows it.

    The images of `calibration` give the ranges; `preset` is NNCF's; `facts` go into the metadata.

    Raises:
        MissingExtraError: nncf, openvino, onnx or onnxscript is not installed.
    """
    with quiet("nncf"):
        nncf = require("nncf", "export")
    openvino = require("openvino", "export")
    is_regular = detector.info.spec.has_whole_cells(detector.image_size)
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
