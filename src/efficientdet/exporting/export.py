"""export: a detector -> a file for another runtime, proven equal."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from efficientdet.data.dataset import read_split
from efficientdet.data.records import Records
from efficientdet.errors import require
from efficientdet.exporting.comparison_images import comparison_pictures
from efficientdet.exporting.formats import write_file
from efficientdet.exporting.parity import ParityError, ParityReport, check_file
from efficientdet.exporting.settings import ExportSettings, check_settings, find_format
from efficientdet.inference.detector import Detector, load


def export(
    detector: Detector | str | Path,
    path: str | Path,
    to: str | None = None,
    *,
    end_to_end: bool = False,
    dynamic_batch: bool = False,
    dynamic_size: bool = False,
    half: bool = False,
    pictures: str | Path | None = None,
    data: str | Path | Records | None = None,
    split: str = "val",
) -> ParityReport:
    """Write a detector for another runtime, and compare the file with the network before it takes its place.

    Args:
        detector: a detector (its image size and, end-to-end, its thresholds go into the file), or what `load` takes.
        path: the file to write.
        to: `onnx`, `openvino`, `torch-export`, `executorch` or `tflite`; None to tell by the suffix (.onnx, .xml, .pt2,
            .pte, .tflite).
        end_to_end: from letterboxed bytes to boxes, instead of from normalized pixels to raw outputs.
        dynamic_batch: any number of pictures at once, instead of one.
        dynamic_size: any height and width that is a multiple of the coarsest stride.
        half: store convolutions' weights as float16.
        pictures: folder of pictures to compare on; None for the sample picture.
        data: data set on which both are evaluated too.
        split: of the data set.

    Returns:
        The comparison, all of whose bounds hold.

    Raises:
        SettingError: the format cannot do what is asked for, or is not written here; says what to do instead.
        MissingExtraError: a library is not installed; says how to install it.
        ImageError, DataError: pictures or data set are not to be had.
        ParityError: the file is too far from the network; nothing is written.
    """
    path = Path(path)
    settings = ExportSettings(find_format(to, path), end_to_end, dynamic_batch, dynamic_size, half)
    detector = detector if isinstance(detector, Detector) else load(detector)
    check_settings(settings, detector)
    # Before the minutes that writing takes: what the comparison needs.
    images = comparison_pictures(pictures)
    if data is not None:
        require("faster_coco_eval", "train")
        data = data if isinstance(data, Records) else read_split(data, split)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        draft = Path(folder) / path.name
        write_file(detector, draft, settings)
        report = check_file(detector, draft, settings.to, pictures=images, data=data, split=split)
        if report.failures:
            raise ParityError(report)
        for part in sorted(Path(folder).iterdir(), key=lambda part: part == draft):  # an .xml comes after its .bin
            os.replace(part, path.parent / part.name)
    return report
