"""Findings: what a check of a dataset has found, where, and what to do about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from efficientdet.data.records import ImageRecord

Severity: TypeAlias = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
Box: TypeAlias = tuple[float, float, float, float]


class Rule(NamedTuple):
    """What all findings of a code have in common.

    Attributes:
        severity: `error`: training is refused, or learns something wrong. `warning`: it loses accuracy, or its measure
            misleads. `note`: worth a look.
        title: what is wrong, in a few words.
        advice: what to do about it, and why.
    """

    severity: Severity
    title: str
    advice: str


# By severity, in the order of a report: title and advice by code.
_ERRORS = {
    "annotation-unreadable": (
        "Annotations that cannot be read",
        "Correct the entry that is named: training refuses the file until then. Fixing leaves such entries out.",
    ),
    "image-missing": (
        "Images that are missing",
        "Put the file there, or train with --skip-missing, which leaves the image and its boxes out.",
    ),
    "image-unreadable": (
        "Images that cannot be decoded",
        "Copy or convert the file again, or remove the image: training stops when it reaches it.",
    ),
    "image-size": (
        "Images of another size than the annotations say",
        "Were the boxes made for another version of the image? Use that version, or correct the size and the boxes.",
    ),
    "exif-rotation": (
        "Boxes made for the image before its EXIF rotation",
        "The boxes fit only if the EXIF orientation is ignored, as some labeling tools do. Fixing turns the "
        "boxes; or remove the orientation from the file.",
    ),
    "split-overlap": (
        "The same image in two splits",
        "Keep it in one of them: a detector that was trained on an image is measured too well on it. Fixing "
        "keeps it for training, unless a file of annotations names images only.",
    ),
    "class-shift": (
        "Class ids that look off by one",
        "Compare the ids in the annotations with the list of classes, on an image that you know. Ids may "
        "start from 0 or 1 here, but must mean the same in both; background needs no class.",
    ),
    "class-mismatch": (
        "Splits that disagree on the classes",
        "Write the same categories, with the same ids, into the annotations of each split.",
    ),
    "class-untrained": (
        "Classes that have boxes, but none to train on",
        "Move some of their images to the training split, or remove the class: it cannot be learned.",
    ),
    "no-boxes": (
        "A training split without a box",
        "Check the annotations; training refuses it.",
    ),
    "box-outside": (
        "Boxes outside their image",
        "Correct or remove them: they are left out of training. Many of them mean another image, size or format.",
    ),
    "box-empty": (
        "Boxes without an area",
        "Remove them: they are left out of training. Negative sides often mean corners in another order.",
    ),
}
_WARNINGS = {
    "box-cut": (
        "Boxes that reach far beyond their image",
        "Check them: only the part within the image is trained on. Fixing clips them.",
    ),
    "box-repeated": (
        "Objects with two boxes of one class",
        "Remove one of each pair: evaluation counts the second as missed. Fixing keeps the first.",
    ),
    "box-two-classes": (
        "Objects with boxes of two classes",
        "Decide for one class, unless an object is meant to have two: the detector is taught both and reaches neither.",
    ),
    "box-tiny": (
        "Boxes of a few pixels",
        "Often a slip of the mouse: look at them, and remove those that are.",
    ),
    "split-similar": (
        "Nearly the same image in two splits",
        "Frames of one video or copies of one photograph belong into one split: the measure on them flatters.",
    ),
    "image-repeated": (
        "The same image twice in a split",
        "Keep one, with the boxes of both: it counts double, and with other boxes it teaches a contradiction.",
    ),
    "class-background": (
        "A class for the background",
        "Remove it: no box is background here, and an unused class costs accuracy elsewhere.",
    ),
    "class-first-unused": (
        "A first class without a box, where all others have some",
        "Look at an image that you know: are the ids in the annotations one too high? Some exports list a "
        "group of the classes first, which is harmless.",
    ),
    "class-unused": (
        "Classes without any box",
        "Remove them from the list, unless boxes are to come: they cannot be learned.",
    ),
    "class-unmeasured": (
        "Classes without a box to measure on",
        "Move some of their images to the validation split: nothing tells how well they are found.",
    ),
    "class-rare": (
        "Classes with very few boxes to train on",
        "Label more of them, or merge them into another class: a few dozen boxes are the least.",
    ),
    "split-missing": (
        "No validation split",
        "Set a tenth to a fifth of the images aside: without them no AP is measured, and no best checkpoint chosen.",
    ),
    "anchor-recall": (
        "Boxes that no anchor fits",
        "Train with one of the suggested settings: a box whose best anchor has an IoU below 0.5 is assigned a "
        "single anchor, and learned badly.",
    ),
    "box-vanishing": (
        "Boxes under a pixel at this image size",
        "Train at a larger image size, or cut the images into tiles: nothing of these objects is left.",
    ),
    "label-missing": (
        "Objects that may lack a box",
        "Look at each: where there is an object, add its box. Unlabeled objects are trained on as background.",
    ),
    "label-class": (
        "Boxes that may have the wrong class",
        "Look at each, and correct the class where it is wrong.",
    ),
    "label-box": (
        "Boxes that may be drawn badly",
        "Look at each, and draw it tight around the object where it is not.",
    ),
    "label-doubtful": (
        "Boxes in which the model sees no object",
        "Look at each: remove it where there is no such object. Hard objects that are there should stay.",
    ),
}
_NOTES = {
    "image-similar": (
        "Nearly the same image twice in a split",
        "They add little; keep them in one split in any case.",
    ),
    "exif-orientation": (
        "Images that are turned by EXIF",
        "Boxes are taken to be for the upright image. If your labeling tool ignores EXIF, they are not: look at one.",
    ),
    "box-whole-image": (
        "Boxes as large as their image",
        "Check that an object, and not the whole image, was meant.",
    ),
    "box-small": (
        "Boxes smaller than the smallest anchor",
        "They are found less well. A larger image size, a smaller anchor scale, or tiles help.",
    ),
    "class-imbalance": (
        "Classes of very different frequency",
        "Expect a lower AP for the rare ones; label more of them if you can.",
    ),
    "images-empty": (
        "Images without a box",
        "They are trained on as background. Check that they were labeled, and just hold no object.",
    ),
}
RULES = {
    code: Rule(severity, *texts)
    for severity, rules in zip(SEVERITIES, (_ERRORS, _WARNINGS, _NOTES), strict=True)
    for code, texts in rules.items()
}


@dataclass(frozen=True)
class Finding:
    """One thing that a check has found.

    Attributes:
        code: a key of `RULES`, which has its severity and advice.
        what: what was found, in a sentence.
        split: of the dataset; None where it is about several.
        file: the image, or the file of annotations.
        image_id: the dataset's id of the image.
        annotation_ids: the dataset's ids of the boxes.
        boxes_xyxy: the boxes, pixels of the image, as annotated.
        other_file: the second image, of a pair.
        weight: how much it matters among those of its code; larger comes first.
        count: how many boxes or images it stands for.
    """

    code: str
    what: str
    split: str | None = None
    file: str | None = None
    image_id: int | str | None = None
    annotation_ids: tuple[int | str, ...] = ()
    boxes_xyxy: tuple[Box, ...] = ()
    other_file: str | None = None
    weight: float = 0.0
    count: int = 1

    @classmethod
    def on(
        cls, record: ImageRecord, split: str, code: str, what: str, boxes: Sequence[int] = (),
        more_boxes: Iterable[Any] = (), **more: Any,
    ) -> Finding:  # fmt: skip
        """A finding on an image, or on some of its boxes, by their index, and others to show with them."""
        every: list[Any] = [tuple(map(float, box)) for box in (*record.boxes_xyxy[list(boxes)], *more_boxes)]
        ids = tuple(record.annotation_ids[index] for index in boxes)
        return cls(code, what, split, str(record.path), record.image_id, ids, tuple(every), **more)

    @property
    def rule(self) -> Rule:
        """What all findings of its code have in common."""
        return RULES[self.code]

    @property
    def severity(self) -> Severity:
        """`error`, `warning` or `note`."""
        return self.rule.severity

    @property
    def short_place(self) -> str:
        """Where: split, name of the file, image id and annotation ids, as far as there are any."""
        ids = [f"image id {self.image_id}"] * (self.image_id is not None)
        if self.annotation_ids:
            ids.append(f"annotation id {', '.join(map(str, self.annotation_ids))}")
        name = Path(self.file).name if self.file else None
        return ", ".join([part for part in (self.split, name) if part] + ids)

    def to_json(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return {**asdict(self), "severity": self.severity, "what_to_do": self.rule.advice}


def grouped(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """Findings by code, in the order of `RULES`; those of a code by weight."""
    by_code: dict[str, list[Finding]] = {}
    for finding in findings:
        by_code.setdefault(finding.code, []).append(finding)
    return {code: sorted(by_code[code], key=lambda one: -one.weight) for code in RULES if code in by_code}


def without_consequences(findings: Iterable[Finding]) -> list[Finding]:
    """Findings without those that follow from another: once, of an image whose boxes are for it before its rotation."""
    turned: dict[tuple[str | None, int | str | None], Finding] = {}
    every = list(findings)
    for finding in every:
        if finding.code == "exif-rotation":
            turned.setdefault((finding.split, finding.image_id), finding)
    follow = ("exif-rotation", "exif-orientation", "box-outside", "box-empty", "box-cut")
    return [
        finding
        for finding in every
        if finding.code not in follow or turned.get((finding.split, finding.image_id), finding) is finding
    ]


def by_severity(findings: Sequence[Finding]) -> dict[Severity, int]:
    """How many findings there are of each severity."""
    counted = Counter(finding.severity for finding in findings)
    return {severity: counted[severity] for severity in SEVERITIES}
