"""The gate: an exported file against the float32 network that it was made from, on real pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from efficientdet.data.dataset import read_split
from efficientdet.data.records import Records
from efficientdet.errors import EfficientDetError, SettingError, WeightsError
from efficientdet.evaluation.evaluate import evaluate
from efficientdet.exporting.comparison_images import Batch, comparison_pictures, groups, make_batch
from efficientdet.exporting.first_difference import first_departure
from efficientdet.exporting.formats import ExportedFile, open_file
from efficientdet.images.convert import RgbImage
from efficientdet.images.letterbox import Preprocessing
from efficientdet.inference.detector import Detector
from efficientdet.inference.engines.engine import Engine, Outputs
from efficientdet.inference.postprocess import BatchDetections, postprocess
from efficientdet.inference.settings import PostprocessSettings


class Bounds(NamedTuple):
    """How far a file may be from the network.

    Attributes:
        outputs: max |difference| of a raw output over max(1, max |output|); None where AP alone counts.
        ap: AP points (of 100) that may be lost or won.
    """

    outputs: float | None
    ap: float


BOUNDS = {"fp32": Bounds(1e-4, 0.1), "fp16": Bounds(1e-2, 0.5), "int8": Bounds(None, 1.0)}
# Decoding and suppression in the file, against ours on the file's own raw outputs.
BOX_BOUND = 0.05  # pixels
SCORE_BOUND = 1e-5


@dataclass(frozen=True)
class Difference:
    """How far one output is from what it should be.

    Attributes:
        output: its name.
        maximum: max |difference|; infinite where numbers are missing.
        mean: mean |difference|.
        bound: on the maximum, in the same units; None for none.
    """

    output: str
    maximum: float
    mean: float
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
        pictures: how many were compared.
        differences: of each output.
        ap: of the file, in points; None without a data set.
        reference_ap: of the network.
        ap_bound: on their difference.
        departs_at: the first layer that differs, where a bound is broken.
    """

    file: str
    precision: str
    pictures: int
    differences: tuple[Difference, ...]
    ap: float | None
    reference_ap: float | None
    ap_bound: float
    departs_at: str | None = None

    @property
    def ap_difference(self) -> float | None:
        """AP of the file less that of the network, in points."""
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
    """A file is too far from its network: the message says by how much and where it begins.

    Attributes:
        report: the whole comparison.
    """

    def __init__(self, report: ParityReport) -> None:
        super().__init__(f"{report.file}: {'; '.join(report.failures)}; the first to depart: {report.departs_at}")
        self.report = report


def check_file(
    detector: Detector,
    path: str | Path,
    to: str,
    *,
    pictures: str | Path | list[RgbImage] | None = None,
    data: str | Path | Records | None = None,
    split: str = "val",
) -> ParityReport:
    """Compare an exported file with the network that it was made from.

    Args:
        detector: the network; its image size is the file's.
        path: the file.
        to: its format.
        pictures: folder of pictures (at most 16 are taken), or pictures; None for the sample picture.
        data: a data set on which both are evaluated; None to compare outputs alone.
        split: of the data set.

    Returns:
        The report, whether or not the bounds hold.

    Raises:
        WeightsError: the file cannot be read, or is of another network.
        SettingError: the file is of int8, which AP alone judges, and no data set is given.
        ImageError, DataError, MissingExtraError: pictures, data set or evaluator are not to be had.
    """
    path = Path(path)
    file = open_file(path, to)
    _check_facts(file, detector, path)
    bounds = BOUNDS[file.facts["precision"]]
    if bounds.outputs is None and data is None:
        raise SettingError(f"{path}: a file of {file.facts['precision']} is judged by AP alone; give a data set")
    images = pictures if isinstance(pictures, list) else comparison_pictures(pictures)
    differences, worst = _compare(file, detector, images, bounds)
    ap = reference_ap = None
    if data is not None:
        records = data if isinstance(data, Records) else read_split(data, split)
        ap = _ap(lambda images: file.raw(_as_batch(images, detector.info.preprocessing)), detector, records)
        reference_ap = _ap(lambda images: _reference(detector, images), detector, records)
    report = ParityReport(
        path.name, file.facts["precision"], len(images), tuple(differences), ap, reference_ap, bounds.ap
    )
    if not report.failures:
        return report
    tolerance = bounds.outputs or BOUNDS["fp16"].outputs
    raw_is_kept = all(difference.is_kept for difference in differences[:2])
    if raw_is_kept and not all(difference.is_kept for difference in differences):
        where = "decoding and suppression (the network's own outputs agree)"
    else:
        assert tolerance is not None
        where = first_departure(file, detector.model, worst, tolerance)
    return ParityReport(**{**vars(report), "departs_at": where})


def _check_facts(file: ExportedFile, detector: Detector, path: Path) -> None:
    facts = file.facts
    for what, own, wanted in (
        ("classes", list(facts["class_names"]), list(detector.class_names)),
        ("image size", list(facts["image_size"]), list(detector.image_size)),
    ):
        if own != wanted:
            raise WeightsError(f"{path}: its {what} {own} are not the detector's {wanted}")
    if facts["precision"] not in BOUNDS:
        raise WeightsError(f"{path}: precision '{facts['precision']}' has no bounds; known: {', '.join(BOUNDS)}")


def _reference(detector: Detector, images: Tensor) -> tuple[Tensor, Tensor]:
    """Raw outputs of the network itself, in float32."""
    with torch.no_grad():
        class_logits, box_deltas = detector.model(images.to(next(detector.model.parameters()).device))
    return torch.cat(class_logits, 1).cpu(), torch.cat(box_deltas, 1).cpu()


def _ap(raw: Callable[[Tensor], tuple[Tensor, Tensor]], detector: Detector, records: Records) -> float:
    """AP in points of the detector with its raw outputs taken from elsewhere, a picture at a time."""

    def run(images: Tensor) -> Outputs:
        logits, deltas = zip(*(raw(image[None]) for image in images), strict=True)
        return [torch.cat(logits)], [torch.cat(deltas)]

    own = Detector(None, detector.info, engine=Engine("file", "fp32", run), image_size=detector.image_size)
    return 100 * evaluate(own, records).ap


def _as_batch(images: Tensor, preprocessing: Preprocessing) -> Batch:
    """Normalized images as the inputs of either kind of file: bytes again for an end-to-end one, padding included."""
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (preprocessing.mean, preprocessing.std))
    canvases = (images * std + mean).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    sizes = torch.tensor([images.shape[2:]] * len(images))
    return Batch(images, canvases, sizes, torch.ones(len(images)))


def _postprocess(
    raw: tuple[Tensor, Tensor], batch: Batch, detector: Detector, settings: PostprocessSettings
) -> BatchDetections:
    height, width = batch.images.shape[2:]
    anchors = detector.model.anchors((height, width)).cpu()
    return postprocess([raw[0]], [raw[1]], anchors, settings, scales=batch.scales, image_sizes=batch.image_sizes)


class _Tally:
    """Differences of one output, added up over batches."""

    def __init__(self) -> None:
        self.maximum = self.largest = self.total = 0.0
        self.count = 0

    def add(self, values: Tensor, wanted: Tensor) -> float:
        """Add a batch, and give its own maximum; infinite where shapes differ or a number is not finite."""
        if values.shape != wanted.shape:
            self.maximum = math.inf
            return math.inf
        if wanted.numel() == 0:
            return 0.0
        difference = (values.double() - wanted.double()).abs().nan_to_num(nan=math.inf)
        worst = float(difference.max())
        self.maximum = max(self.maximum, worst)
        self.largest = max(self.largest, float(wanted.abs().max()))
        self.total += float(difference.sum())
        self.count += difference.numel()
        return worst

    def difference(self, output: str, bound: float | None) -> Difference:
        """The sum of it."""
        return Difference(output, self.maximum, self.total / max(self.count, 1), bound)


def _compare(
    file: ExportedFile, detector: Detector, images: Sequence[RgbImage], bounds: Bounds
) -> tuple[list[Difference], Batch]:
    """Differences of the outputs, raw ones first, and the batch on which they are worst."""
    facts = file.facts
    tallies = {name: _Tally() for name in ("class_logits", "box_deltas", "boxes_xyxy", "scores")}
    worst, worst_batch = -1.0, None
    for batch in _batches(facts, detector, images):
        raw, wanted = file.raw(batch), _reference(detector, batch.images)
        here = max(tallies[name].add(*pair) for name, pair in zip(tallies, zip(raw, wanted, strict=True), strict=False))
        if here > worst:
            worst, worst_batch = here, batch
        if facts["end_to_end"]:
            settings = PostprocessSettings(**facts["postprocess"])
            boxes, scores = _detections(file.detect(batch), _postprocess(raw, batch, detector, settings))
            tallies["boxes_xyxy"].add(*boxes)
            tallies["scores"].add(*scores)
    assert worst_batch is not None
    relative = bounds.outputs
    differences = [
        tallies[name].difference(name, None if relative is None else relative * max(1.0, tallies[name].largest))
        for name in ("class_logits", "box_deltas")
    ]
    if facts["end_to_end"]:
        differences.append(tallies["boxes_xyxy"].difference("boxes_xyxy", BOX_BOUND))
        differences.append(tallies["scores"].difference("scores", SCORE_BOUND))
    return differences, worst_batch


def _batches(facts: dict[str, Any], detector: Detector, images: Sequence[RgbImage]) -> list[Batch]:
    """The pictures as the file takes them; one more batch, of another size, where it takes any."""
    height, width = detector.image_size
    at_once = 2 if facts["dynamic_batch"] else 1
    plan = [(group, (height, width)) for group in groups(images, at_once)]
    if facts["dynamic_size"]:
        plan.append((images[:1], (height, width + max(facts["anchors"]["strides"]))))
    return [make_batch(group, size, detector.info.preprocessing, facts["end_to_end"]) for group, size in plan]


def _detections(found: list[Tensor], wanted: BatchDetections) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Boxes and scores of the file and of ours, side by side; of different shapes where counts or labels differ."""
    boxes, scores, labels, counts = found
    places = min(scores.shape[1], wanted.scores.shape[1])
    if not torch.equal(counts, wanted.counts) or not torch.equal(labels[:, :places], wanted.labels[:, :places]):
        return (boxes[:, :0], boxes), (scores[:, :0], scores)
    return (boxes[:, :places], wanted.boxes_xyxy[:, :places]), (scores[:, :places], wanted.scores[:, :places])
