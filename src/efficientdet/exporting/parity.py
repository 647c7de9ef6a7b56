"""The gate: an exported file against the float32 network that it was made from, on real images."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from efficientdet.data.read_split import read_split
from efficientdet.data.records import Records
from efficientdet.errors import EfficientDetError, SettingError, WeightsError
from efficientdet.evaluation.evaluate import evaluate
from efficientdet.exporting.formats import (
    Batch,
    OpenedFile,
    comparison_images,
    first_difference,
    make_batch,
    open_file,
    to_canvases,
)
from efficientdet.images.convert import RgbImage
from efficientdet.inference.detector import Detector
from efficientdet.inference.engines.engine import Engine, Outputs
from efficientdet.inference.engines.metadata import RAW_OUTPUTS
from efficientdet.inference.postprocess import postprocess
from efficientdet.settings import to_dict


class Bounds(NamedTuple):
    """How far a file may be from the network.

    Attributes:
        outputs: max |difference| of a raw output over max(1, max |output|); None where AP alone counts.
        ap: AP points (of 100) that may be lost or won.
    """

    outputs: float | None
    ap: float


BOUNDS = {"fp32": Bounds(1e-4, 0.1), "fp16": Bounds(1e-2, 0.5), "int8": Bounds(None, 1.0)}
# Decoding and NMS in the file, against ours on the file's own raw outputs.
DETECTION_BOUNDS = {"boxes_xyxy": 0.05, "scores": 1e-5}  # pixels; probability


@dataclass(frozen=True)
class Difference:
    """How far one output is from what it should be.

    Attributes:
        output: its name; of a raw output with the pyramid level, such as `class_logits of P3`.
        maximum: max |difference|; infinite where numbers are missing.
        mean: mean |difference|.
        spread: standard deviation of what it should be, the scale for both.
        bound: on the maximum, in the same units; None for none.
    """

    output: str
    maximum: float
    mean: float
    spread: float
    bound: float | None

    @property
    def is_kept(self) -> bool:
        """Whether the bound holds."""
        return self.bound is None or self.maximum <= self.bound


@dataclass(frozen=True)
class ParityReport:
    """What the comparison gave.

    Attributes:
        file: the file's name.
        precision: `fp32`, `fp16` or `int8`: which bounds count.
        images: how many were compared.
        differences: of each output.
        ap: of the file, in points; None without a dataset.
        reference_ap: of the network.
        ap_bound: on their difference.
        first_difference: where a bound is broken, the first layer that differs; of int8, which rounds every layer, the
            output that differs most.
    """

    file: str
    precision: str
    images: int
    differences: tuple[Difference, ...]
    ap: float | None
    reference_ap: float | None
    ap_bound: float
    first_difference: str | None = None

    @property
    def ap_difference(self) -> float | None:
        """AP of the file minus that of the network, in points."""
        return None if self.ap is None or self.reference_ap is None else self.ap - self.reference_ap

    @property
    def failures(self) -> list[str]:
        """The bounds that are broken, in words."""
        broken = [
            f"{d.output} differs by {d.maximum:.3g}, over the bound of {d.bound:.3g}"
            for d in self.differences
            if not d.is_kept
        ]
        if self.ap_difference is not None and not abs(self.ap_difference) <= self.ap_bound:
            broken.append(f"AP differs by {self.ap_difference:+.2f} points, over the bound of {self.ap_bound}")
        return broken

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return {**asdict(self), "ap_difference": self.ap_difference, "failures": self.failures}


class ParityError(EfficientDetError):
    """A file is too far from its network and is not written: the message says by how much and where it begins.

    Attributes:
        report: the whole comparison.
    """

    def __init__(self, report: ParityReport, advice: str = "") -> None:
        failures = "; ".join(report.failures)
        super().__init__(f"{report.file}: {failures}; the first layer that differs: {report.first_difference}{advice}")
        self.report = report


def check_file(
    detector: Detector,
    path: str | Path,
    to: str,
    *,
    images: str | Path | list[RgbImage] | None = None,
    data: str | Path | Records | None = None,
    split: str = "val",
) -> ParityReport:
    """Compare an exported file with the network that it was made from.

    Args:
        detector: the network; its image size is the file's.
        path: the file.
        to: its format.
        images: folder of images (at most 16 are taken), or images; None for the sample image.
        data: dataset on which both are evaluated; None to compare outputs alone.
        split: of the dataset.

    Returns:
        The report, whether or not the bounds hold.

    Raises:
        WeightsError: the file cannot be read, or is of another network.
        SettingError: the file is of int8, which AP alone judges, and no dataset is given.
        ImageError, DataError, MissingExtraError: images, dataset or evaluator are not to be had.
    """
    path = Path(path)
    file = open_file(path, to)
    _check_metadata(file, detector, path)
    bounds = BOUNDS[file.metadata.precision]
    if bounds.outputs is None and data is None:
        raise SettingError(f"{path}: a file of {file.metadata.precision} is judged by AP alone; give a dataset")
    found = images if isinstance(images, list) else comparison_images(images)
    differences, worst = _compare(file, detector, found, bounds)
    ap = reference_ap = None
    if data is not None:
        records = data if isinstance(data, Records) else read_split(data, split)
        ap, reference_ap = _ap(file, detector, records)
    report = ParityReport(
        path.name, file.metadata.precision, len(found), tuple(differences), ap, reference_ap, bounds.ap
    )
    if not report.failures:
        return report
    return dataclasses.replace(report, first_difference=_where(file, detector, differences, worst, bounds))


def _where(
    file: OpenedFile, detector: Detector, differences: Sequence[Difference], worst: Batch, bounds: Bounds
) -> str:
    """What to look at first, in words; `worst` are the images on which the outputs differ most."""
    if bounds.outputs is None:
        most = max(differences, key=lambda difference: difference.mean / (difference.spread or 1.0))
        return f"none alone; most for its spread does {most.output} (mean {most.mean:.3g}, spread {most.spread:.3g})"
    broken = [difference.output for difference in differences if not difference.is_kept]
    if broken and DETECTION_BOUNDS.keys() >= set(broken):
        return "decoding and NMS (the network's own outputs agree)"
    layer = first_difference(file, detector.model, worst, bounds.outputs)
    return layer or (broken[0] if broken else "no single layer: small differences of many add up")


def _check_metadata(file: OpenedFile, detector: Detector, path: Path) -> None:
    metadata = file.metadata
    for what, own, wanted in (
        ("classes", list(metadata.checkpoint.class_names), list(detector.class_names)),
        ("image size", list(metadata.image_size), list(detector.image_size)),
    ):
        if own != wanted:
            raise WeightsError(f"{path}: its {what} {own} are not the detector's {wanted}")
    if metadata.precision not in BOUNDS:
        raise WeightsError(f"{path}: precision '{metadata.precision}' has no bounds; known: {', '.join(BOUNDS)}")


def _by_level(
    raw: tuple[Tensor, Tensor], detector: Detector, batch: Batch
) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """Name of each raw output of each level, finest first, with the file's values and the float32 network's."""
    with torch.no_grad():
        expected = detector.model(batch.images.to(detector.device))
    for output, values, levels in zip(RAW_OUTPUTS, raw, expected, strict=True):
        ends = list(itertools.accumulate(level.shape[1] for level in levels[:-1]))
        for number, pair in enumerate(zip(values.tensor_split(ends, 1), levels, strict=True)):
            yield f"{output} of P{detector.info.spec.levels[0] + number}", (pair[0], pair[1].cpu())


def _ap(file: OpenedFile, detector: Detector, records: Records) -> tuple[float, float]:
    """AP in points of a file, an image at a time, and of the network in float32: both with the detector's settings."""
    preprocessing = detector.info.preprocessing

    def run(images: Tensor) -> Outputs:
        found = []
        for image in images[:, None]:
            # For an end-to-end file the padding is part of the image.
            sizes = torch.tensor([image.shape[2:]])
            found.append(file.raw(Batch(image, to_canvases(image, preprocessing), sizes, torch.ones(1))))
        logits, deltas = zip(*found, strict=True)
        return [torch.cat(logits)], [torch.cat(deltas)]

    engines = Engine("file", "fp32", run), Engine("eager", "fp32", detector.model, detector.device)
    info = dataclasses.replace(detector.info, postprocess=to_dict(detector.postprocess))
    both = [Detector(None, info, engine=engine, image_size=detector.image_size) for engine in engines]
    ap, reference_ap = (100 * evaluate(one, records).ap for one in both)
    return ap, reference_ap


class _Tally:
    """Differences of one output, added up over batches."""

    def __init__(self) -> None:
        self.maximum = self.largest = self.total = self.sum = self.square_sum = 0.0
        self.count = 0

    def add(self, values: Tensor, wanted: Tensor) -> float:
        """Add a batch, and give its own maximum; infinite where shapes differ or a number is not finite."""
        if values.shape != wanted.shape:
            self.maximum = math.inf
            return math.inf
        if wanted.numel() == 0:
            return 0.0
        wanted = wanted.double()
        difference = (values.double() - wanted).abs().nan_to_num(nan=math.inf)
        worst = float(difference.max())
        self.maximum = max(self.maximum, worst)
        self.largest = max(self.largest, float(wanted.abs().max()))
        self.total += float(difference.sum())
        self.sum += float(wanted.sum())
        self.square_sum += float(wanted.square().sum())
        self.count += difference.numel()
        return worst

    def difference(self, output: str, relative_bound: float | None) -> Difference:
        """The sum of it."""
        count = max(self.count, 1)
        spread = max(self.square_sum / count - (self.sum / count) ** 2, 0.0) ** 0.5
        bound = None if relative_bound is None else relative_bound * max(1.0, self.largest)
        return Difference(output, self.maximum, self.total / count, spread, DETECTION_BOUNDS.get(output, bound))


def _compare(
    file: OpenedFile, detector: Detector, images: Sequence[RgbImage], bounds: Bounds
) -> tuple[list[Difference], Batch]:
    """Differences of the outputs, raw ones first, and the batch on which those are worst."""
    tallies: dict[str, _Tally] = defaultdict(_Tally)
    worst: dict[float, Batch] = {}
    for batch in _batches(file, detector, images):
        raw = file.raw(batch)
        worst.setdefault(max(tallies[name].add(*pair) for name, pair in _by_level(raw, detector, batch)), batch)
        if file.metadata.end_to_end:
            for name, pair in zip(DETECTION_BOUNDS, _detections(file, detector, batch, raw), strict=True):
                tallies[name].add(*pair)
    return [tally.difference(name, bounds.outputs) for name, tally in tallies.items()], worst[max(worst)]


def _batches(file: OpenedFile, detector: Detector, images: Sequence[RgbImage]) -> Iterator[Batch]:
    """The images as the file takes them; one more batch, of another size, where it takes any."""
    preprocessing, (height, width) = detector.info.preprocessing, detector.image_size
    at_once = 2 if file.metadata.dynamic_batch else 1
    for start in range(0, len(images), at_once):
        yield make_batch(images[start : start + at_once], (height, width), preprocessing)
    if file.metadata.dynamic_size:
        yield make_batch(images[:1], (height, width + detector.info.spec.strides[-1]), preprocessing)


def _detections(
    file: OpenedFile, detector: Detector, batch: Batch, raw: tuple[Tensor, Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Boxes, then scores, of an end-to-end file and of ours; of different shapes where counts or labels differ.

    Each of the file's boxes stands beside our nearest of its label. Of equal scores, as int8 has many, either may come
    first and suppress the other, so ours are those of either order of the anchors.
    """
    height, width = batch.images.shape[2:]
    anchors = detector.model.anchors((height, width)).cpu()
    wanted, backward = (
        postprocess(
            [logits], [deltas], places, file.metadata.postprocess, scales=batch.scales, image_sizes=batch.image_sizes
        )
        for logits, deltas, places in ((*raw, anchors), (*(x.flip(1) for x in raw), anchors.flip(0)))
    )
    boxes, scores, labels, counts = file.detect(batch)
    places = min(scores.shape[1], wanted.scores.shape[1])
    boxes, labels = boxes[:, :places], labels[:, :places]
    ours = torch.cat([wanted.boxes_xyxy, backward.boxes_xyxy], 1)
    own_labels = torch.cat([wanted.labels, backward.labels], 1)
    is_same = torch.equal(counts, wanted.counts) or torch.equal(counts, backward.counts)
    expected = boxes
    if places:
        apart = (boxes[:, :, None] - ours[:, None]).abs().amax(3)  # (B, the file's, ours)
        nearest = apart.masked_fill(labels[:, :, None] != own_labels[:, None], math.inf).min(2)
        is_same &= bool((nearest.values < math.inf).all())
        expected = ours.gather(1, nearest.indices[..., None].expand(-1, -1, 4))
    for found, own in ((boxes, expected), (scores[:, :places], wanted.scores[:, :places])):
        yield (found, own) if is_same else (found[:, :0], found)
