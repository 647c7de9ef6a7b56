"""Records: what every reader returns. `builder.py` makes them; here is what they hold, and how processes share them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import context
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from efficientdet.errors import DataError
from efficientdet.text import printable

BOXES_CLIPPED = "boxes clipped"
BOXES_OUTSIDE = "boxes dropped: outside"
BOXES_DEGENERATE = "boxes dropped: degenerate"
BOXES_OF_SKIPPED = "boxes skipped: image file missing"
IMAGES_SKIPPED = "images skipped: file missing"
IGNORED_REGIONS = "ignored regions"
IMAGES_WITHOUT_BOXES = "images without boxes"
IMAGES_OF_IGNORED = "images with ignored regions only, not trained on"
# Counted by the training, which knows the size of its input.
BOXES_TOO_SMALL = "boxes too small for this image size"
COUNTED = (
    BOXES_CLIPPED,
    BOXES_OUTSIDE,
    BOXES_DEGENERATE,
    BOXES_OF_SKIPPED,
    IMAGES_SKIPPED,
    IGNORED_REGIONS,
    IMAGES_WITHOUT_BOXES,
    IMAGES_OF_IGNORED,
)

# Label of an ignored region that belongs to no class.
EVERY_CLASS = -1


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """One image and its boxes, clipped to the image; the records that it is taken from do not change with it.

    Attributes:
        image_id: the dataset's id of the image.
        path: file of the image.
        width: pixels, after EXIF orientation.
        height: pixels, after EXIF orientation.
        boxes_xyxy: (N, 4) float32, pixels of the image, 0-based, right and bottom edges exclusive.
        labels: (N,) int64, 0-based, contiguous over the classes of the dataset; -1 for an ignored region of no class.
        is_ignored: (N,) bool: ignored regions (a crowd, a difficult object, a mask), in which nothing is learned and
            evaluation counts neither hits nor errors.
        areas: (N,) float32, square pixels: the annotation's, else the box's.
        annotation_ids: N ids, as in the file.
        file_name: the image's name as the dataset has it, relative to its image folder; "" for that of `path`.
    """

    image_id: int | str
    path: Path
    width: int
    height: int
    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]
    is_ignored: NDArray[np.bool_]
    areas: NDArray[np.float32]
    annotation_ids: list[int | str]
    file_name: str = ""

    def __post_init__(self) -> None:
        """Name the image after its file."""
        object.__setattr__(self, "file_name", self.file_name or self.path.name)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.height, self.width

    def only(self, kept: NDArray[np.bool_]) -> ImageRecord:
        """The image with some of its boxes, (N,) bool."""
        return replace(
            self, boxes_xyxy=self.boxes_xyxy[kept], labels=self.labels[kept], is_ignored=self.is_ignored[kept],
            areas=self.areas[kept], annotation_ids=list(itertools.compress(self.annotation_ids, kept.tolist())),
        )  # fmt: skip

    @property
    def is_negative(self) -> bool:
        """Whether the image has no object; one whose objects are all ignored, such as a crowd, is not a negative."""
        return not (self.labels != EVERY_CLASS).any()


# Ids of a dataset, which are whole numbers or texts.
AnyIds: TypeAlias = "Sequence[int | str] | NDArray[np.int64]"


class SharedArrays:
    """An object whose arrays a process that it is sent to shares: they travel in shared memory, as torch's tensors do.

    Otherwise each loader process that is spawned would get a copy. One that is forked shares arrays as they are.
    """

    def __getstate__(self) -> dict[str, Any]:
        """The attributes; arrays as tensors in shared memory where a process is being started."""
        state = {name: value for name, value in self.__dict__.items() if name != "_tensors"}
        if context.get_spawning_popen() is None:
            return state
        import torch

        tensors = self.__dict__.setdefault("_tensors", {})
        for name, value in state.items():
            if isinstance(value, np.ndarray):
                if name not in tensors:
                    tensors[name] = torch.from_numpy(value.copy()).share_memory_()  # type: ignore[no-untyped-call]
                    setattr(self, name, tensors[name].numpy())
                state[name] = tensors[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the attributes, and tensors as arrays over the same memory."""
        for name, value in state.items():
            is_tensor = hasattr(value, "share_memory_")
            if is_tensor:
                self.__dict__.setdefault("_tensors", {})[name] = value
            self.__dict__[name] = value.numpy() if is_tensor else value


class Column(SharedArrays, Sequence[int | str]):
    """Whole numbers and texts in arrays: processes share them, and none is touched until it is read."""

    def __init__(self, values: AnyIds) -> None:
        self.numbers: NDArray[np.int64] | None = None
        if isinstance(values, np.ndarray):
            self.numbers = values
        elif all(type(one) is int and -(2**63) <= one < 2**63 for one in values):
            self.numbers = np.array(values, dtype=np.int64)
        else:
            texts = list(map(str, values))
            joined = "".join(texts)
            encoded = joined.encode("utf-8", "surrogatepass")
            if len(encoded) > len(joined):
                lengths = [len(text.encode("utf-8", "surrogatepass")) for text in texts]
            else:
                lengths = list(map(len, texts))
            self.is_number = np.array([not isinstance(one, str) for one in values], dtype=np.bool_)
            self.ends = np.cumsum(lengths, dtype=np.int64)
            self.bytes = np.frombuffer(encoded, dtype=np.uint8)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.ends if self.numbers is None else self.numbers)

    @overload
    def __getitem__(self, index: int) -> int | str: ...
    @overload
    def __getitem__(self, index: slice) -> list[int | str]: ...
    def __getitem__(self, index: int | slice) -> int | str | list[int | str]:
        """The value at an index from 0, or a list of several."""
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        if self.numbers is not None:
            return int(self.numbers[index])
        start = self.ends[index - 1] if index else 0
        text = self.bytes[start : self.ends[index]].tobytes().decode("utf-8", "surrogatepass")
        return int(text) if self.is_number[index] else text


class Columns(NamedTuple):
    """N images and their M boxes in columns.

    Attributes:
        file_names: of the images.
        image_ids: the dataset's.
        sizes: (N, 2) int64, (height, width) in pixels; 0 where the annotations state none.
        box_counts: (N,) int64, boxes of each image.
        boxes_xyxy: (M, 4), pixels, image after image; float64 as the file has them, float32 once they are clipped.
        labels: (M,) int64.
        is_ignored: (M,) bool.
        areas: (M,), square pixels; in a file's, 0 or less stands for the box's.
        annotation_ids: the dataset's.
        place: where the annotations name an image, by its index, for messages.
    """

    file_names: Sequence[str]
    image_ids: AnyIds
    sizes: NDArray[np.int64]
    box_counts: NDArray[np.int64]
    boxes_xyxy: NDArray[Any]
    labels: NDArray[np.int64]
    is_ignored: NDArray[np.bool_]
    areas: NDArray[Any]
    annotation_ids: AnyIds
    place: Callable[[int], str] = str

    @property
    def image_of_box(self) -> NDArray[np.int64]:
        """(M,) int64, index of the image of each box."""
        return np.repeat(np.arange(len(self.sizes)), self.box_counts)


class ImageTable(SharedArrays, Sequence[ImageRecord]):
    """Images as columns of numbers, made into an `ImageRecord` when one is asked for.

    A dataset of COCO's size takes 40 MB, which loader processes share: those that are forked because nothing writes
    to it, those that are spawned because it is passed in shared memory.

    Args:
        folder: of the images; absolute file names may lie elsewhere.
        columns: of N images and M boxes, which are clipped.
        paths: of the images, where they are not in one folder.

    Attributes:
        starts: (N + 1,) int64: the boxes of image n are those from starts[n] to starts[n + 1].
    """

    def __init__(self, folder: Path, columns: Columns, paths: Sequence[str] | None = None) -> None:
        self.folder = folder
        names, image_ids, self.sizes, counts, boxes, self.labels, self.is_ignored, areas, annotation_ids, _ = columns
        self.file_names, self.image_ids, self.annotation_ids = map(Column, (names, image_ids, annotation_ids))
        self.paths = None if paths is None else Column(paths)
        self.starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self.boxes_xyxy: NDArray[np.float32] = boxes
        self.areas: NDArray[np.float32] = areas

    @classmethod
    def of(cls, images: Sequence[ImageRecord]) -> ImageTable:
        """The columns of some images."""
        columns = Columns(
            [image.file_name for image in images], [image.image_id for image in images],
            np.array([image.image_size for image in images], dtype=np.int64).reshape(-1, 2),
            np.array([len(image.labels) for image in images], dtype=np.int64),
            np.concatenate([np.zeros((0, 4), np.float32), *(image.boxes_xyxy for image in images)]),
            np.concatenate([np.zeros(0, np.int64), *(image.labels for image in images)]),
            np.concatenate([np.zeros(0, np.bool_), *(image.is_ignored for image in images)]),
            np.concatenate([np.zeros(0, np.float32), *(image.areas for image in images)]),
            [one for image in images for one in image.annotation_ids],
        )  # fmt: skip
        return cls(Path(), columns, [str(image.path) for image in images])

    @property
    def image_of_box(self) -> NDArray[np.int64]:
        """(M,) int64, index of the image of each box."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    @property
    def negatives(self) -> int:
        """How many images have no object; see `ImageRecord.is_negative`."""
        return len(self) - int(np.count_nonzero(np.bincount(self.image_of_box[self.labels != EVERY_CLASS])))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.sizes)

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[ImageRecord]: ...
    def __getitem__(self, index: int | slice) -> ImageRecord | list[ImageRecord]:
        """One image, or a list of several."""
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        index = int(index) % len(self)
        start, end = self.starts[index : index + 2].tolist()
        height, width = self.sizes[index].tolist()
        name = str(self.file_names[index])
        path = self.folder / name if self.paths is None else Path(str(self.paths[index]))
        return ImageRecord(
            self.image_ids[index], path, width, height, self.boxes_xyxy[start:end], self.labels[start:end],
            self.is_ignored[start:end], self.areas[start:end], self.annotation_ids[start:end],
            "" if Path(name).is_absolute() else name,
        )  # fmt: skip


class ChangedBox(NamedTuple):
    """A box that a reader clipped or dropped.

    Attributes:
        what: BOXES_CLIPPED, BOXES_OUTSIDE or BOXES_DEGENERATE.
        image_id: the dataset's id of its image.
        path: file of the image.
        image_size: (height, width) of the image in pixels.
        annotation_id: the dataset's id of the box.
        xyxy: as annotated, in pixels.
        label: 0-based.
        is_ignored: whether it is an ignored region.
    """

    what: str
    image_id: int | str
    path: Path
    image_size: tuple[int, int]
    annotation_id: int | str
    xyxy: tuple[float, float, float, float]
    label: int
    is_ignored: bool


@dataclass(eq=False)
class Records:
    """A dataset, or one split of it: images with boxes, classes, and what the reader changed.

    Attributes:
        images: one record an image, in the order of the file; given as a list or a table, kept as a table.
        class_names: names by label.
        category_ids: the dataset's ids by label.
        source: the file or folder that was read.
        counts: numbers of boxes and images that were clipped, dropped or skipped; every key is present.
        changed: the boxes that were clipped or dropped.
    """

    images: Sequence[ImageRecord]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    source: Path
    counts: dict[str, int] = field(default_factory=dict)
    changed: list[ChangedBox] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Put the images into columns."""
        if not isinstance(self.images, ImageTable):
            self.images = ImageTable.of(self.images)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    @property
    def table(self) -> ImageTable:
        """The images, whose boxes can be looked at together."""
        assert isinstance(self.images, ImageTable)
        return self.images

    def of_images(self, images: Iterable[ImageRecord]) -> Records:
        """Other images with the same classes and source; nothing is counted."""
        return Records(list(images), self.class_names, self.category_ids, self.source)

    @property
    def training_boxes(self) -> int:
        """Number of boxes to train on: all but the ignored regions."""
        return int(np.count_nonzero(~self.table.is_ignored))

    def boxes_by_class(self) -> NDArray[np.int64]:
        """(K,) number of boxes of each class, ignored regions aside."""
        return np.bincount(self.table.labels[~self.table.is_ignored], minlength=len(self.class_names)).astype(np.int64)

    def labels_of(self, class_names: Sequence[str]) -> NDArray[np.int64]:
        """(n,) the label here of each class of a detector, by name; -1 for a class that the dataset does not have.

        Raises:
            DataError: the detector does not know a class of the dataset.
        """
        unknown = [name for name in self.class_names if name not in class_names]
        if unknown:
            raise DataError(
                f"{self.source}: the detector does not know its classes {printable(unknown)}; it knows "
                f"{printable(list(class_names))}. Use weights that were trained on these classes"
            )
        labels = {name: label for label, name in enumerate(self.class_names)}
        return np.array([labels.get(name, -1) for name in class_names], dtype=np.int64)

    def to_coco(self) -> dict[str, Any]:
        """The annotations as a COCO dict of plain Python types.

        Returns:
            `images`, `annotations` (bbox xywh in pixels; ignored regions as crowds, those of no class once for each)
            and `categories`, with the dataset's image and category ids. Annotations are numbered from 1: the COCO
            evaluators take id 0 for "no match" and count such an annotation as missed.
        """
        annotations: list[dict[str, Any]] = []
        for record in self.images:
            x1, y1, x2, y2 = record.boxes_xyxy.astype(np.float64).T
            boxes_xywh = np.stack([x1, y1, x2 - x1, y2 - y1], axis=1).tolist()
            columns = [one.tolist() for one in (record.labels, record.areas, record.is_ignored)]
            annotations += [
                {"image_id": record.image_id, "category_id": category_id, "bbox": bbox, "area": area,
                 "iscrowd": int(is_ignored)}
                for bbox, label, area, is_ignored in zip(boxes_xywh, *columns, strict=True)
                for category_id in (self.category_ids if label == EVERY_CLASS else (self.category_ids[label],))
            ]  # fmt: skip
        return {
            "info": {"description": str(self.source)},
            "images": [
                {"id": r.image_id, "file_name": r.file_name, "width": r.width, "height": r.height} for r in self.images
            ],
            "annotations": [{"id": number, **one} for number, one in enumerate(annotations, start=1)],
            "categories": [
                {"id": category_id, "name": name}
                for category_id, name in zip(self.category_ids, self.class_names, strict=True)
            ],
        }
