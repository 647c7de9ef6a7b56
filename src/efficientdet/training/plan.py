"""Settings for a budget of minutes, from the dataset and the speed of the machine. Imports neither torch nor numpy."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from efficientdet.errors import SettingError
from efficientdet.training.config import JITTER, LONG_RUN_EPOCHS, TrainConfig, as_options

# Image sizes to choose from.
SIZES = (224, 256, 320, 384, 448, 512, 576, 640, 768, 896, 1024, 1152, 1280, 1536)
# Boxes of this side in pixels, and this many images seen, give half of what larger boxes and more images can (`worth`).
HALF_SIDE, HALF_IMAGES = 36.0, 800.0
# An image that is enlarged beyond its own pixels shows its boxes as if by this power of the enlargement.
ENLARGED = 0.5
# More passes than these are not worth their time.
MOST_EPOCHS = 300
# Evaluations take this share of the budget, except that the last one may take `LAST_EVALUATION`.
EVALUATIONS, LAST_EVALUATION = 0.1, 0.2
FEWEST_EVALUATED = 16
# A run of fewer passes jitters less.
JITTER_EPOCHS, WEAK_JITTER = 10, (0.8, 1.25)
# Many passes over few images are no long run: fewer images seen than these have the jitter of short runs.
LONG_RUN_IMAGES = 1_000_000
# Seconds that an epoch takes beside its steps and its evaluation: saving, above all.
EPOCH_SECONDS = 0.5
# All but long runs freeze the lowest stages of a pretrained backbone, where much of a step's time goes.
FROZEN_STAGES = 2
# Fewer steps than these take smaller batches.
FEW_STEPS, SMALL_BATCH = 300, 4
# A run of fewer steps gets a higher learning rate, in inverse proportion to them, up to the second number.
MANY_STEPS, HIGHEST_RATE = 600, 0.016
# Time that is kept for loading Python's libraries before the clock starts, and for saving and ending.
SLACK_SECONDS, SLACK_SHARE = 8.0, 0.01
# Replaced in tests, which have a clock of their own.
clock = time.monotonic


class Budget(NamedTuple):
    """A budget as it is used up.

    Attributes:
        seconds: of the whole run.
        started: moment of `clock` at which it began, or was resumed.
        most_epochs: that the run may have.
        evaluation_seconds: what an evaluation is expected to take.
    """

    seconds: float
    started: float
    most_epochs: int = MOST_EPOCHS
    evaluation_seconds: float = 0.0

    @classmethod
    def beginning_now(cls) -> Budget:
        """A budget whose seconds are not known yet."""
        return cls(0.0, clock())

    def used(self) -> float:
        """Seconds since it began, or was resumed."""
        return clock() - self.started

    def left(self) -> float:
        """Seconds that are left for training and evaluation."""
        slack = min(SLACK_SECONDS + SLACK_SHARE * self.seconds, self.seconds / 4)
        return self.seconds - slack - self.used()


class DatasetFacts(NamedTuple):
    """What of a dataset decides the settings.

    Attributes:
        images: to train on.
        val_images: to evaluate on.
        longest_side: median of the images' longest sides, in pixels.
        box_sides: square roots of the areas of some boxes, of all sizes alike, as shares of their image's longest side.
    """

    images: int
    val_images: int
    longest_side: float
    box_sides: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Speed:
    """Measured speed of training and evaluation.

    Attributes:
        train: seconds for an image of a training step, by image size.
        evaluate: seconds for an image of an evaluation, by image size.
        too_large: the smallest image size that does not fit the memory; None if all that were tried do.
    """

    train: dict[int, float]
    evaluate: dict[int, float]
    too_large: int | None = None

    def training_seconds(self, size: int) -> float:
        """Seconds for an image of a training step."""
        return _by_area(self.train, size)

    def evaluation_seconds(self, size: int) -> float:
        """Seconds for an image of an evaluation."""
        return _by_area(self.evaluate, size) if self.evaluate else 0.0


def _by_area(measured: dict[int, float], size: int) -> float:
    """A line in the area of the image through the smallest and the largest size measured."""
    low, high = min(measured), max(measured)
    slope = (measured[high] - measured[low]) / (high**2 - low**2) if high > low else 0.0
    if slope <= 0:  # one size alone, or sizes whose difference is noise
        return measured[high] * size**2 / high**2
    return max(measured[low] / 4, measured[low] + slope * (size**2 - low**2))


class Length(NamedTuple):
    """How long a run at some image size is.

    Attributes:
        passes: over the training split, in fractions too.
        evaluate_every: passes between evaluations.
        evaluate_images: images that an evaluation takes; None for all.
    """

    passes: float
    evaluate_every: int
    evaluate_images: int | None


class Plan(NamedTuple):
    """Settings for a budget.

    Attributes:
        settings: what was chosen, by name.
        evaluation_seconds: what an evaluation takes.
        lines: what was chosen, and why.
    """

    settings: dict[str, Any]
    evaluation_seconds: float
    lines: tuple[str, ...]


def plan(facts: DatasetFacts, speed: Speed, seconds: float, config: TrainConfig, typed: Collection[str]) -> Plan:
    """Choose the settings that make the most of a budget; what was typed stays.

    Args:
        facts: of the dataset.
        speed: of the machine.
        seconds: that are left for training and evaluation.
        config: the settings, of which those that `typed` does not name may be changed.
        typed: names of settings.

    Raises:
        SettingError: not one step fits the budget.
    """
    batch = min(int(config.batch_size), facts.images)
    sizes = [config.image_size] if config.image_size else list(sizes_for(facts, speed))
    lengths = {size: length_at(size, facts, speed, seconds, config, typed) for size in sizes}
    most = config.epochs if "epochs" in typed else MOST_EPOCHS
    size = max(sizes, key=lambda one: worth(one, min(most, lengths[one].passes), facts))
    length = lengths[size]
    if length.passes * facts.images < batch:
        raise SettingError(
            f"minutes is {config.minutes}: too few for one step of {batch} images at {size} px and an evaluation here, "
            "which would take about "
            f"{(batch * speed.training_seconds(size) + _evaluation(facts, speed, size, length)) / 60 + 0.5:.1f}; give "
            "more, or choose a smaller model or image_size"
        )
    chosen: dict[str, Any] = {"image_size": size}
    images = length.passes * facts.images
    chosen |= for_steps(images / batch, batch, config, typed)
    if may_freeze(config, typed) and images < LONG_RUN_IMAGES:
        chosen["frozen_stages"] = FROZEN_STAGES
        if config.assignment is None and config.box_loss == "giou":
            chosen["assignment"] = "task-aligned"
    if length.passes < JITTER_EPOCHS:
        chosen["scale_jitter"] = WEAK_JITTER
    elif length.passes >= LONG_RUN_EPOCHS and images < LONG_RUN_IMAGES:
        chosen["scale_jitter"] = JITTER
    chosen["epochs"] = max(1, min(MOST_EPOCHS, int(length.passes)))
    chosen["evaluate_every"] = min(length.evaluate_every, chosen["epochs"])
    if length.evaluate_images is not None:
        chosen["evaluate_images"] = length.evaluate_images
    chosen = {name: value for name, value in chosen.items() if name not in typed}
    if "warmup_epochs" not in typed and (epochs := chosen.get("epochs", config.epochs)) < 10:
        chosen["warmup_epochs"] = epochs / 10
    lines = explain(facts, speed, config, chosen, lengths, size)
    return Plan(chosen, _evaluation(facts, speed, size, length), lines)


def for_steps(steps: float, batch: int, config: TrainConfig, typed: Collection[str]) -> dict[str, Any]:
    """Batch size and learning rate of a run with few steps. On a CPU smaller batches give more steps at little cost."""
    chosen: dict[str, Any] = {}
    if steps < FEW_STEPS and batch > SMALL_BATCH and config.device != "cuda" and "batch_size" not in typed:
        chosen["batch_size"] = SMALL_BATCH
    default = dataclasses.replace(config, **chosen).peak_learning_rate()
    rate = min(HIGHEST_RATE, default * MANY_STEPS / max(1.0, steps))
    if config.optimizer == "adamw" and rate > default:
        chosen["learning_rate"] = float(f"{rate:.2g}")  # as it is printed
    return chosen


def may_freeze(config: TrainConfig, typed: Collection[str]) -> bool:
    """Whether stages of the backbone can be frozen: they are pretrained and known, and nothing else was asked for."""
    is_pretrained = bool(config.weights or config.backbone_weights)
    return is_pretrained and "frozen_stages" not in typed and not (config.backbone or "").startswith("timm:")


def sizes_for(facts: DatasetFacts, speed: Speed) -> Iterable[int]:
    """Image sizes up to a little above the images' own pixels; those that the memory holds."""
    for index, size in enumerate(SIZES):
        is_useful = index == 0 or SIZES[index - 1] < facts.longest_side
        if is_useful and (speed.too_large is None or size < speed.too_large or index == 0):
            yield size


def worth(size: int, passes: float, facts: DatasetFacts) -> float:
    """What an image size and a number of passes promise, between 0 and 1; meant to compare sizes alone.

    Detail grows with the area of the boxes in the network's input, and training with the images seen, both with
    diminishing returns. Their halves are set by hand to four runs of lite0 on `cells` and `microcontrollers`, at 224 to
    512 pixels: a rough guide, not a fit.
    """
    shown = size if size <= facts.longest_side else facts.longest_side * (size / facts.longest_side) ** ENLARGED
    areas = [(share * shown) ** 2 for share in facts.box_sides] or [float(size) ** 2]
    detail = sum(area / (area + HALF_SIDE**2) for area in areas) / len(areas)
    images = passes * facts.images
    return detail * images / (images + HALF_IMAGES)


def length_at(
    size: int, facts: DatasetFacts, speed: Speed, seconds: float, config: TrainConfig, typed: Collection[str]
) -> Length:
    """How many passes fit the budget at an image size, and how often they are evaluated."""
    per_pass = facts.images * speed.training_seconds(size) + EPOCH_SECONDS
    per_image = speed.evaluation_seconds(size)
    evaluate_images = None
    if "evaluate_images" not in typed and facts.val_images * per_image > LAST_EVALUATION * seconds:
        evaluate_images = max(FEWEST_EVALUATED, int(LAST_EVALUATION * seconds / per_image))
    one = min(facts.val_images, evaluate_images or config.evaluate_images or facts.val_images) * per_image
    if "evaluate_every" in typed:
        every = config.evaluate_every
        return Length(max(0.0, seconds - one) / (per_pass + one / every), every, evaluate_images)
    count = max(1, int(EVALUATIONS * seconds / one)) if one else MOST_EPOCHS
    passes = max(0.0, seconds - count * one) / per_pass
    if count > passes:  # one after each pass is enough
        passes = max(0.0, seconds - one) / (per_pass + one)
    return Length(passes, max(1, -(-int(min(passes, MOST_EPOCHS)) // count)), evaluate_images)


def _evaluation(facts: DatasetFacts, speed: Speed, size: int, length: Length) -> float:
    return min(facts.val_images, length.evaluate_images or facts.val_images) * speed.evaluation_seconds(size)


def explain(
    facts: DatasetFacts,
    speed: Speed,
    config: TrainConfig,
    chosen: dict[str, Any],
    lengths: dict[int, Length],
    size: int,
) -> tuple[str, ...]:
    """What was chosen and why, in five lines."""
    final = dataclasses.replace(config, **chosen)

    def shown(text: str, name: str) -> str:
        return text if name in chosen else f"{text} (as given)"

    batch, passes = int(final.batch_size), lengths[size].passes
    steps = ", ".join(f"{batch * seconds:.2g} s at {one} px" for one, seconds in sorted(speed.train.items()))
    evaluation = _evaluation(facts, speed, size, lengths[size])
    sides = sorted(facts.box_sides)
    box = f"half of the boxes are under {sides[len(sides) // 2] * size:.0f} px there" if sides else "there are no boxes"
    near = [one for one in lengths if one != size and 0.6 < one / size < 1.7]
    others = [f"{lengths[one].passes:.3g} at {one}" for one in near]
    against = f"; {passes:.3g} passes fit, and {', '.join(others)}" if others else ""
    some = f" on {final.evaluate_images} of {facts.val_images} images" if final.evaluate_images else ""
    low, high = final.scale_range()
    return (
        f"budget: {config.minutes:g} minutes for {facts.images} images; a step of {batch} takes {steps}, an evaluation "
        f"{evaluation:.2g} s",
        f"image size {shown(str(size), 'image_size')}: {box}{against}",
        f"{shown(f'{final.epochs} epochs', 'epochs')} in batches of {batch}, evaluated every {final.evaluate_every}"
        + some,
        f"{final.frozen_stages or 'no'} stages of the backbone frozen, learning rate {final.peak_learning_rate():.2g}, "
        f"scale jitter {low:g}-{high:g}, assignment {final.assigns_by()}: as suits {passes:.3g} passes",
        f"the same without a budget: {shlex.join(as_options(chosen))}",
    )
