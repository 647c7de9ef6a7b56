"""A trained detector as the teacher of another: of a smaller one, or of one that learns more classes.

The student's class logits and box deltas are drawn to the teacher's, anchor by anchor: prediction mimicking with the
quality focal loss, as in CrossKD (Wang et al. 2024, section 3), but with the student's own heads, since those of the
family differ in width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from efficientdet.errors import SettingError
from efficientdet.images.letterbox import Preprocessing
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.training.config import TrainConfig
from efficientdet.training.synchronize import summed
from efficientdet.weights.checkpoint import load_checkpoint
from efficientdet.weights.info import CheckpointInfo
from efficientdet.weights.names import find_weights

# Where the teacher finds nothing above this score, its boxes are not learned.
LEAST_SCORE = 0.1
# Weight and turning point of the box loss, as in the losses of section 5.1.
BOX_WEIGHT, HUBER_DELTA = 50.0, 0.1
# What two detectors must share for their anchors to be the same.
ANCHORS = ("levels", "anchor_scale", "aspects", "octaves")


class Teacher:
    """A frozen detector, and the loss of a student against its outputs.

    It is no part of the student's module, so it is neither trained nor saved.

    Args:
        network: the detector; moved to the images' device at the first step.
        preprocessing: its images'.
        student_preprocessing: of the images that it is given.
        classes: the teacher's classes to learn from, as its labels.
        student_classes: the same classes as labels of the student.
        dataset_classes: labels of the student that the dataset has; None for all. The others are what the dataset's
            images may show without a box, so they must not count as background.
    """

    def __init__(
        self, network: EfficientDet, preprocessing: Preprocessing, student_preprocessing: Preprocessing,
        classes: Sequence[int], student_classes: Sequence[int], dataset_classes: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        self.network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.classes = torch.tensor(classes)
        self.student_classes = torch.tensor(student_classes)
        self.dataset_classes = None if dataset_classes is None else torch.tensor(dataset_classes)
        theirs, ours = preprocessing, student_preprocessing
        # The same pixels in the teacher's normalization: x * factor + shift.
        std, their_std, mean, their_mean = (
            torch.tensor(values).reshape(1, 3, 1, 1) for values in (ours.std, theirs.std, ours.mean, theirs.mean)
        )
        self.factor, self.shift = std / their_std, (mean - their_mean) / their_std
        self.is_same = theirs.mean == ours.mean and theirs.std == ours.std

    def of_dataset(self, class_logits: list[Tensor], labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits and labels of the classes that the dataset has, numbered from 0.

        Args:
            class_logits: list over levels of (B, A_l, K), the student's.
            labels: B tensors (N_i,) int64, labels of the student.
        """
        if self.dataset_classes is None:
            return class_logits, labels
        classes = self.dataset_classes.to(class_logits[0].device)
        numbers = torch.full((class_logits[0].shape[2],), -1, device=classes.device)
        numbers[classes] = torch.arange(len(classes), device=classes.device)
        return [logits.index_select(2, classes) for logits in class_logits], [numbers[label] for label in labels]

    @torch.no_grad()
    def predict(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The teacher's class logits and box deltas.

        Args:
            images: (B, 3, H, W) float, normalized for the student.
        """
        if self.factor.device != images.device:
            self.network.to(images.device)
            self.factor, self.shift = self.factor.to(images.device), self.shift.to(images.device)
        own = images if self.is_same else images * self.factor + self.shift
        return self.network(own.float())  # type: ignore[no-any-return]

    def loss(self, images: Tensor, class_logits: list[Tensor], box_deltas: list[Tensor], has_box: Tensor) -> Tensor:
        """Distance of the student's outputs from the teacher's, in float32.

        A sum over anchors, divided by the sum of the teacher's scores over the anchors of all devices, plus one.

        Args:
            images: (B, 3, H, W) float, normalized for the student.
            class_logits: list over levels of (B, A_l, K), the student's.
            box_deltas: list over levels of (B, A_l, 4), the student's.
            has_box: (B, A) bool: anchors to which the dataset assigns a box, which the teacher leaves alone where it
                teaches classes that the dataset lacks.

        Returns:
            A scalar.
        """
        levels = [logits.shape[1] for logits in class_logits]
        total, scores = images.new_zeros(()), images.new_zeros(())
        with torch.autocast(images.device.type, enabled=False):
            outputs = zip(class_logits, box_deltas, *self.predict(images), torch.split(has_box, levels, 1), strict=True)
            for logits, deltas, teacher_logits, teacher_deltas, taken in outputs:
                wanted = teacher_logits.float().index_select(2, self.classes.to(logits.device)).sigmoid()
                given = logits.float().index_select(2, self.student_classes.to(logits.device))
                score = wanted.amax(2)
                score = score * (score >= LEAST_SCORE)
                if self.dataset_classes is not None:
                    score = score * ~taken
                total = total + quality_focal(given, wanted).sum()
                huber = functional.huber_loss(
                    deltas.float(), teacher_deltas.float(), reduction="none", delta=HUBER_DELTA
                )
                total = total + BOX_WEIGHT / 4.0 * (huber.sum(2) * score).sum()
                scores += score.sum()
        return total / (summed(scores) + 1.0)


def quality_focal(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy against soft targets, times the distance from them (Li et al. 2020, eq. 3, beta 1).

    Args:
        logits: (...) float.
        targets: (...) float, probabilities.

    Returns:
        (...) losses, not summed.
    """
    entropy = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (logits.sigmoid() - targets).abs() * entropy


def make_teacher(
    config: TrainConfig, student: EfficientDet, info: CheckpointInfo, labeled: Sequence[str]
) -> Teacher | None:
    """The teacher that the settings name: a larger detector, or the old one of a detector that learns more classes.

    Args:
        config: the settings.
        student: the network to be trained.
        info: the student's classes, kept ones included, and preprocessing.
        labeled: the classes that the dataset has.

    Returns:
        A larger detector teaches all classes, the old one those that the dataset lacks; None for no teacher.

    Raises:
        SettingError: its anchors or classes are not the student's; says how they differ.
        WeightsError: the weights cannot be had.
    """
    weights = config.weights if config.keep_classes else config.teacher
    if weights is None:
        return None
    name = f"{'weights' if config.keep_classes else 'teacher'} {weights}"
    network, own = load_checkpoint(find_weights(weights))
    pairs = {field: (getattr(network.spec, field), getattr(student.spec, field)) for field in ANCHORS}
    differing = [f"{field} {theirs} instead of {ours}" for field, (theirs, ours) in pairs.items() if theirs != ours]
    if differing:
        raise SettingError(
            f"{name}: its anchors are not the student's ({'; '.join(differing)}), so their outputs cannot be compared"
        )
    if config.keep_classes:
        taught = [one for one in own.class_names if one not in labeled]
        dataset_classes = [info.class_names.index(one) for one in labeled]
    elif set(own.class_names) == set(info.class_names):
        taught, dataset_classes = list(own.class_names), None
    else:
        raise SettingError(
            f"{name}: its classes are {list(own.class_names)}, the dataset's are {list(info.class_names)}; train the "
            "teacher on this dataset first"
        )
    theirs, ours = ([one.class_names.index(each) for each in taught] for one in (own, info))
    return Teacher(network, own.preprocessing, info.preprocessing, theirs, ours, dataset_classes)
