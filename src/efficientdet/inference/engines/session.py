"""What every runtime gives: a session, which runs a file on arrays; and engines of end-to-end files. Without torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from efficientdet.errors import SettingError
from efficientdet.images.convert import RgbImage
from efficientdet.inference.settings import PostprocessSettings
from efficientdet.settings import to_dict

# Runs a file: an array for each input to an array for each output; int16 holds the bits of bfloat16, which numpy has
# not. Any thread may call it; a thread's next call may overwrite what the last one gave it.
Session = Callable[..., list[NDArray[Any]]]
# Settings that say how often a file is run, not what is in it.
OUTSIDE = ("tiles", "overlap")
# In a shape: any number of images.
ANY_BATCH = -1


# boxes_xyxy (D, 4) float32 in original pixels, scores (D,) float32, best first, and labels (D,) int64 of an image.
Found = tuple[NDArray[Any], ...]


@dataclass(frozen=True)
class EndToEndEngine:
    """An end-to-end file ready to run: from letterboxed bytes to boxes, without torch.

    Attributes:
        backend: what runs it.
        precision: of the arithmetic.
        settings: of its post-processing, which are inside the file.
        open_session: opens a session for a number of threads that may run it at once, and share the cores.
        key: stands for the file, where what was measured of it is remembered.
        device: where it runs.
    """

    backend: str
    precision: str
    settings: PostprocessSettings
    open_session: Callable[[int], Session]
    key: str = ""
    device: str = "cpu"

    @property
    def shared(self) -> Callable[[int], Session]:
        """As `Engine.shared`."""
        return self.open_session

    def detect(
        self, canvas: RgbImage, image_size: tuple[int, int], settings: PostprocessSettings, streams: int = 1
    ) -> Found:
        """Find objects in an image. Any thread may call it.

        Args:
            canvas: (H, W, 3) uint8 RGB, letterboxed.
            image_size: (height, width) of the original.
            settings: which `check` allows.
            streams: how many calls share the cores.
        """
        boxes, scores, labels, counts = self.open_session(streams)(canvas[None], np.array([image_size]))
        thresholds = np.array(settings.score_threshold, np.float32)  # the scores' type, as for the network
        over = scores[0] >= (thresholds[labels[0]] if thresholds.ndim else thresholds)
        kept = np.flatnonzero(over[: counts[0]])[: settings.max_detections]
        return tuple(np.array(part[0, kept]) for part in (boxes, scores, labels))

    def check(self, settings: PostprocessSettings) -> None:
        """Refuse settings that the file cannot have.

        Raises:
            SettingError: they are not the file's own, with a higher score threshold or fewer detections at most.
        """
        is_higher = np.all(np.array(settings.score_threshold) >= np.array(self.settings.score_threshold))
        own = dataclasses.replace(
            self.settings,
            score_threshold=settings.score_threshold if is_higher else self.settings.score_threshold,
            max_detections=min(settings.max_detections, self.settings.max_detections),
        )
        for name, value in to_dict(settings).items():
            if value != getattr(own, name) and name not in OUTSIDE:
                raise SettingError(
                    f"{name} is {value}, and {getattr(self.settings, name)} inside the end-to-end file, where only a "
                    "higher score_threshold and a lower max_detections can be asked for; export it anew"
                )

    def __str__(self) -> str:
        """Such as `onnxruntime fp32 on cpu, end-to-end`."""
        return f"{self.backend} {self.precision} on {self.device}, end-to-end"
