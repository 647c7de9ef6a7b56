"""export: a detector -> a file for another runtime, proven equal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from efficientdet.atomic_write import replacing
from efficientdet.data.read_split import read_split
from efficientdet.data.records import Records
from efficientdet.errors import require
from efficientdet.exporting.comparison_images import comparison_images
from efficientdet.exporting.formats import module_of
from efficientdet.exporting.parity import ParityError, ParityReport, check_file
from efficientdet.exporting.settings import ExportSettings, check_abilities, find_format
from efficientdet.inference.detector import Detector, load
from efficientdet.inference.engines.metadata import FileMetadata
from efficientdet.settings import changed

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from efficientdet.exporting.settings import ExportOptions


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
        path: the file to write.
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
        data = data if isinstance(data, Records) else read_split(data, split)
    with replacing(path) as file:
        module_of(to).write(detector, file, make_metadata(detector, chosen))
        report = check_file(detector, file, to, images=found, data=data)
        if report.failures:
            raise ParityError(report)
    return report


def make_metadata(detector: Detector, settings: ExportSettings) -> FileMetadata:
    """The metadata of a detector's file."""
    return FileMetadata(
        detector.info,
        detector.image_size,
        detector.postprocess,
        settings.end_to_end,
        settings.dynamic_batch,
        settings.dynamic_size,
        "fp16" if settings.half else "fp32",
    )
