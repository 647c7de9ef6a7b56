"""What every reader reads and checks: text, numbers, flags, class names, and the images that a file names."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from PIL import Image

from efficientdet.errors import DataError, ImageError
from efficientdet.images import read as images
from efficientdet.text import LONGEST_CLASS_NAME, printable

# How many file names are looked for in a folder to tell whether it is the image folder.
NAMES_TO_LOOK_FOR = 20
# Names by label, one a line.
CLASSES_FILE = "classes.txt"
# File names that lead nowhere but into the folder; others are looked at closely.
PLAIN_NAME = re.compile(r"(?:[\w-][\w. -]*/)*[\w-][\w. -]*")


class Fault(NamedTuple):
    """An entry that was left out, since it is wrong.

    Attributes:
        error: what is wrong with it.
        image_id: the dataset's id of the image; None if it is about none.
        annotation_ids: the dataset's ids of the boxes.
        file: the image, or the file of annotations.
    """

    error: DataError
    image_id: int | str | None = None
    annotation_ids: tuple[int | str, ...] = ()
    file: str | None = None


_faults: ContextVar[list[Fault] | None] = ContextVar("faults", default=None)


@contextmanager
def collected_faults() -> Iterator[list[Fault]]:
    """Readers leave out entries that are wrong, and note them in the list, instead of ending with an error."""
    faults: list[Fault] = []
    token = _faults.set(faults)
    try:
        yield faults
    finally:
        _faults.reset(token)


class Entry:
    """An entry of annotations: an error in it ends the reading, unless faults are collected.

    Args:
        image_id: the dataset's id of its image, if it has one.
        annotation_id: the dataset's id of its box, if it is one.
        file: the image, or the file of annotations.

    Attributes:
        fault: the error that was collected; None if the entry is sound.
    """

    def __init__(
        self, image_id: int | str | None = None, annotation_id: int | str | None = None, file: Path | None = None
    ) -> None:
        self.fault: DataError | None = None
        self._place = (image_id, () if annotation_id is None else (annotation_id,), None if file is None else str(file))

    def __enter__(self) -> Entry:
        """Begin."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        """Collect the error, if errors are collected."""
        faults = _faults.get()
        if faults is None or not isinstance(error, DataError):
            return False
        self.fault = error
        faults.append(Fault(error, *self._place))
        return True


def turned_upright(
    box_xyxy: tuple[float, float, float, float], image_size: tuple[int, int], orientation: int
) -> tuple[float, float, float, float]:
    """A box, in pixels of an image before its EXIF orientation (1 to 8) is applied, in the upright image."""
    height, width = image_size
    x1, y1, x2, y2 = box_xyxy
    if orientation >= 5:  # rows and columns change places
        x1, y1, x2, y2 = y1, x1, y2, x2
    if orientation in (2, 3, 6, 7):
        x1, x2 = width - x2, width - x1
    if orientation in (3, 4, 7, 8):
        y1, y2 = height - y2, height - y1
    return x1, y1, x2, y2


def shown(value: Any, write: Callable[[Any], str] = repr) -> str:
    """A value from a file, as it stands in a message: short, on one line."""
    if isinstance(value, int) and -(10**18) < value < 10**18:  # nearly always, and once for every entry of a COCO file
        return str(value)
    try:
        return printable(write(value), 60)
    except RecursionError:
        return f"a deeply nested {type(value).__name__}"


def is_file(path: Path) -> bool:
    """Whether there is such a file; False for names that no file can have, such as those over 255 bytes."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; False for names that no folder can have."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def measure(path: Path, place: str) -> tuple[int, int]:
    """(height, width) of an image in pixels, after EXIF orientation, from its header.

    Raises:
        DataError: the file is not a readable image.
    """
    try:
        return images.image_size(path)
    except ImageError as error:
        raise DataError(f"{place}: {error}", "image-unreadable") from error


def check_size(path: Path, stated: tuple[int, int], measured: tuple[int, int], place: str) -> None:
    """Refuse annotations made for an image of another (height, width).

    Raises:
        DataError: the two differ; says so if the EXIF orientation explains it.
    """
    if stated == measured:
        return
    message = (
        f"{place}, fields 'width' and 'height': the annotations say {stated[1]}x{stated[0]}, "
        f"but {path.name} is {measured[1]}x{measured[0]}"
    )
    if stated == measured[::-1]:
        with Image.open(path) as image:
            raw_size = image.size
        if raw_size == (stated[1], stated[0]):
            raise DataError(
                f"{message} once its EXIF orientation is applied; the boxes appear to be for the unrotated "
                "image: remove the EXIF orientation from the image, or rotate the boxes with it",
                "exif-rotation",
            )
        message += " (width and height swapped?)"
    raise DataError(
        f"{message}; were the boxes made for another version of the image? Correct one of the two", "image-size"
    )


def check_file_name(file_name: str, place: str, field_name: str = "file_name") -> None:
    """Refuse a file name that is absolute or leaves the image folder.

    Raises:
        DataError: names the place and the file name.
    """
    posix, windows = PurePosixPath(file_name), PureWindowsPath(file_name)
    climbs = ".." in posix.parts or ".." in windows.parts
    if climbs or posix.is_absolute() or windows.drive or windows.root or "\0" in file_name:
        raise DataError(
            f"{place}, field '{field_name}': {shown(file_name)} leaves the image folder; "
            "write names relative to the image folder, without '..'"
        )


def find_image_folder(candidates: Iterable[Path], file_names: Sequence[str]) -> Path:
    """First folder that holds any of the first file names; else the first that exists; else the first."""
    folders = list(candidates)
    for folder in folders:
        if any(is_file(folder / name) for name in file_names[:NAMES_TO_LOOK_FOR]):
            return folder
    return next((folder for folder in folders if is_folder(folder)), folders[0])


def check_class_names(names: Sequence[Any], place: str) -> tuple[str, ...]:
    """Class names as a tuple of distinct, non-empty strings.

    Raises:
        DataError: there are none, or one is empty, too long, not a text, or there twice; gives its index.
    """
    if not names:
        raise DataError(f"{place}: there are no class names; give at least one")
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{place}: class name {index} is {shown(name)}; write a text, in quotes")
        if len(name) > LONGEST_CLASS_NAME:
            raise DataError(
                f"{place}: class name {index} has {len(name):,} characters; write at most {LONGEST_CLASS_NAME:,}"
            )
        if name in seen:
            raise DataError(f"{place}: class name {shown(name)} is there twice, at {seen[name]} and {index}; keep one")
        seen[name] = index
    return tuple(seen)


def number_from_text(text: str) -> float | None:
    """The finite number that a text stands for, else None."""
    try:
        number = float(text)
    except ValueError:
        return None
    # Python would read "1_0" as 10.
    return number if math.isfinite(number) and "_" not in text else None


def coordinate(text: str, place: str, field_name: str) -> float:
    """The finite number of a field, in pixels.

    Raises:
        DataError: it is none; names place and field.
    """
    number = number_from_text(text)
    if number is None:
        fault = f"{shown(text)} is not a finite number" if text else "missing or empty"
        raise DataError(f"{place}, field '{field_name}': {fault}; write a pixel coordinate")
    return number


def flag(text: str, place: str, field_name: str) -> bool:
    """Whether a field is set to 1; empty is 0.

    Raises:
        DataError: it is neither 0 nor 1; names place and field.
    """
    if text not in ("", "0", "1"):
        raise DataError(f"{place}, field '{field_name}': {shown(text)} is neither 0 nor 1; write one of them")
    return text == "1"


def listed_class_names(folder: Path) -> list[str] | None:
    """The lines of `classes.txt` in a folder; None if there is no such file.

    It gives the order of the classes, and those without boxes, to formats that have no place for them.
    """
    return lines_of(folder / CLASSES_FILE) if is_file(folder / CLASSES_FILE) else None


def lines_of(path: Path) -> list[str]:
    """The lines of a text file that are not empty, without spaces around them."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def read_text(path: Path) -> str:
    """The text of an annotation file (UTF-8, with or without byte order mark).

    Raises:
        DataError: the file is missing, a folder, unreadable or not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; check the path") from None
    except IsADirectoryError:
        raise DataError(f"{path}: this is a folder; give the annotation file itself") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text at byte {error.start}; save the file as UTF-8") from error
    except (OSError, ValueError) as error:
        fault = printable(error)
        raise DataError(f"{printable(path)}: cannot be read ({fault}); check its name and permissions") from error
