"""Detections: what every prediction returns, and what drawing, evaluation and the server take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from efficientdet.errors import require, unknown_name
from efficientdet.text import printable

if TYPE_CHECKING:
    import supervision
    from PIL import Image


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """The objects found in one image; there may be none.

    Indexing keeps everything else: `detections[0]`, `detections[:10]`, `detections[detections.scores > 0.5]`
    and `detections[[2, 0]]` are Detections too.

    Attributes:
        boxes_xyxy: (N, 4) float32, left, top, right, bottom in pixels of the original image.
        scores: (N,) float32, 0..1.
        labels: (N,) int64, 0-based: indices into `class_names`.
        class_names: one name for each label.
        image_size: (height, width) of the original image.
        category_ids: the dataset's own category id of each label; None where it has none.
        image: (H, W, 3) uint8 RGB, the image itself, for `draw`; None where it was not kept.
        source: path or name of the image or video; None where unknown.
        track_ids: (N,) int64, ids from 1 that stay with an object through a video, 0 where it has none yet; None
            without tracking.
        frame: number of the frame of the video, from 0; None for an image.
        time: seconds of the frame since the beginning of the video; None for an image.

    Raises:
        ValueError: a field has the wrong shape or holds an impossible value; names it.
    """

    boxes_xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    category_ids: tuple[int, ...] | None = None
    image: NDArray[np.uint8] | None = None
    source: str | None = None
    track_ids: NDArray[np.int64] | None = None
    frame: int | None = None
    time: float | None = None

    def __post_init__(self) -> None:
        """Cast every field to its type and refuse what does not fit together."""
        boxes = np.asarray(self.boxes_xyxy, dtype=np.float32)
        boxes = boxes.reshape(0, 4) if boxes.shape == (0,) else boxes
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"boxes_xyxy must be (N, 4), got shape {boxes.shape}")
        if not np.isfinite(boxes).all():
            raise ValueError("boxes_xyxy holds a number that is not finite")
        height, width = (int(side) for side in self.image_size)
        if height < 1 or width < 1:
            raise ValueError(f"image_size must be (height, width) of at least 1 pixel, got {self.image_size}")
        self._set("boxes_xyxy", boxes)
        self._set("image_size", (height, width))
        self._set("class_names", tuple(str(name) for name in self.class_names))
        self._set("scores", self._checked_scores(len(boxes)))
        self._set("labels", self._checked_labels(len(boxes)))
        self._check_category_ids()
        if self.track_ids is not None:
            self._set("track_ids", np.asarray(self.track_ids, dtype=np.int64))
            if self.track_ids.shape != (len(boxes),):
                raise ValueError(f"track_ids must be ({len(boxes)},) like boxes_xyxy, got shape {self.track_ids.shape}")
        if self.image is not None and self.image.shape != (height, width, 3):
            raise ValueError(f"image must be (H, W, 3) of image_size {self.image_size}, got shape {self.image.shape}")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # frozen for others, not for its own validation

    def _checked_scores(self, count: int) -> NDArray[np.float32]:
        scores = np.asarray(self.scores, dtype=np.float32)
        if scores.shape != (count,):
            raise ValueError(f"scores must be ({count},) like boxes_xyxy, got shape {scores.shape}")
        if not ((scores >= 0) & (scores <= 1)).all():  # NaN fails as well
            raise ValueError(f"scores must lie within 0..1, got {scores.min()}..{scores.max()}")
        return scores

    def _checked_labels(self, count: int) -> NDArray[np.int64]:
        given = np.asarray(self.labels)
        if given.shape != (count,):
            raise ValueError(f"labels must be ({count},) like boxes_xyxy, got shape {given.shape}")
        if count and given.dtype.kind not in "iu":
            raise ValueError(f"labels must be integers, got {given.dtype}")
        labels = given.astype(np.int64)
        classes = len(self.class_names)
        if count and not (0 <= labels.min() and labels.max() < classes):
            raise ValueError(
                f"labels must be below {classes}, the number of class_names, and not negative, "
                f"got {labels.min()}..{labels.max()}"
            )
        return labels

    def _check_category_ids(self) -> None:
        if self.category_ids is None:
            return
        self._set("category_ids", tuple(int(number) for number in self.category_ids))
        if len(self.category_ids) != len(self.class_names):
            raise ValueError(
                f"category_ids has {len(self.category_ids)} entries for {len(self.class_names)} class_names"
            )

    def __len__(self) -> int:
        """How many objects were found."""
        return len(self.boxes_xyxy)

    def __getitem__(self, index: int | slice | ArrayLike) -> Detections:
        """Select detections by an integer, a slice, a boolean mask (N,) or integer indices.

        Raises:
            IndexError: the index is out of range, or a mask has another length.
        """
        if isinstance(index, slice):
            chosen: Any = index
        else:
            chosen = np.atleast_1d(np.asarray(index))
            chosen = chosen.astype(np.int64) if chosen.size == 0 and chosen.dtype != np.bool_ else chosen
            if chosen.ndim != 1 or chosen.dtype.kind not in "iub":
                raise IndexError("detections are indexed by an integer, a slice, a mask or integer indices")
        return replace(
            self,
            boxes_xyxy=self.boxes_xyxy[chosen],
            scores=self.scores[chosen],
            labels=self.labels[chosen],
            track_ids=None if self.track_ids is None else self.track_ids[chosen],
        )

    def __repr__(self) -> str:
        """The count, the classes with their counts, the image's size and its source."""
        counts = np.bincount(self.labels, minlength=len(self.class_names))
        found = ", ".join(f"{counts[label]} {printable(self.class_names[label])}" for label in np.flatnonzero(counts))
        place = f" in '{printable(self.source)}'" if self.source else ""
        height, width = self.image_size
        return f"Detections({len(self)}{': ' if found else ''}{found}; {width}x{height} pixels{place})"

    def filter(self, min_score: float | None = None, classes: Iterable[str | int] | None = None) -> Detections:
        """The detections with at least a score, or of some classes.

        Args:
            min_score: keep scores of at least this; None keeps all.
            classes: names or labels to keep; None keeps all.

        Raises:
            UnknownNameError: a class is not among `class_names`; gives the nearest.
        """
        keep = np.ones(len(self), dtype=np.bool_)
        if min_score is not None:
            keep &= self.scores >= np.float32(min_score)
        if classes is not None:
            wanted = [classes] if isinstance(classes, (str, int)) else list(classes)
            keep &= np.isin(self.labels, [self._label_of(name) for name in wanted])
        return self[keep]

    def _label_of(self, name: str | int) -> int:
        if isinstance(name, str):
            if name not in self.class_names:
                raise unknown_name("class", name, self.class_names)
            return self.class_names.index(name)
        if not 0 <= name < len(self.class_names):
            raise unknown_name("class", str(name), (str(label) for label in range(len(self.class_names))))
        return int(name)

    def draw(self, image: NDArray[np.uint8] | None = None) -> Image.Image:
        """The image with boxes and labels on it.

        Args:
            image: (H, W, 3) uint8 RGB to draw on; by default the image that these detections keep, else their
                source file, read again.

        Raises:
            ValueError: there is no image to draw on, or it is not of `image_size`.
            ImageError: the file cannot be read any more.
        """
        from efficientdet.images.draw import draw_boxes
        from efficientdet.images.read import read

        canvas = self.image if image is None else image
        if canvas is None and self.source is not None:
            canvas = read(self.source)
        if canvas is None:
            raise ValueError("these detections keep no image; pass one: detections.draw(image)")
        if canvas.shape != (*self.image_size, 3):
            raise ValueError(f"image must be (H, W, 3) of image_size {self.image_size}, got {canvas.shape}")
        return draw_boxes(canvas, self.boxes_xyxy, self.scores, self.labels, self.class_names, self.track_ids)

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """The entries of a COCO results file.

        Args:
            image_id: the image's id in the dataset.

        Returns:
            One dict for each detection: image_id, category_id (the label where there are no `category_ids`), bbox
            [left, top, width, height] in pixels, score.
        """
        ids = self.category_ids or tuple(range(len(self.class_names)))
        corners = self.boxes_xyxy.astype(np.float64)
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        rows = zip(boxes.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True)
        return [
            {"image_id": image_id, "category_id": ids[label], "bbox": box, "score": score} for box, score, label in rows
        ]

    def to_json(self) -> dict[str, Any]:
        """Everything but the pixels as plain types: source, image_size, detections; frame and time of a video.

        A tracked detection has a `track_id`, None until its track is certain.
        """
        rows = zip(self.boxes_xyxy.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True)
        found = [
            {"box_xyxy": box, "score": score, "label": label, "class_name": self.class_names[label]}
            for box, score, label in rows
        ]
        if self.track_ids is not None:
            found = [
                one | {"track_id": track or None} for one, track in zip(found, self.track_ids.tolist(), strict=True)
            ]
        place = {} if self.frame is None else {"frame": self.frame, "time": self.time}
        return {"source": self.source, **place, "image_size": list(self.image_size), "detections": found}

    def to_supervision(self) -> supervision.Detections:
        """Convert to `supervision.Detections`, class names in `data["class_name"]`, tracks in `tracker_id`.

        Raises:
            MissingExtraError: supervision is not installed; gives the pip command.
        """
        library = require("supervision", None)
        names = np.array([self.class_names[label] for label in self.labels], dtype=np.str_)
        converted: supervision.Detections = library.Detections(
            xyxy=self.boxes_xyxy.copy(),
            confidence=self.scores.copy(),
            class_id=self.labels.copy(),
            tracker_id=None if self.track_ids is None else self.track_ids.copy(),
            data={"class_name": names},
        )
        return converted
