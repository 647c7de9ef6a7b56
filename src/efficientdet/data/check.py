"""Checks that every reader makes: text, numbers, class names, and the images that a file names."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from PIL import Image

from efficientdet.errors import DataError, ImageError
from efficientdet.images import read as images
from efficientdet.text import LONGEST_CLASS_NAME, printable

# How many file names are looked for in a folder to tell whether it is the image folder.
NAMES_TO_LOOK_FOR = 20
# File names that lead nowhere but into the folder; others are looked at closely.
PLAIN_NAME = re.compile(r"(?:[\w-][\w. -]*/)*[\w-][\w. -]*")


def shown(value: Any, write: Callable[[Any], str] = repr) -> str:
    """A value from a file, as it stands in a message: short, on one line."""
    if isinstance(value, int):  # nearly always, and once for every entry of a COCO file
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
    """Size of an image, from its header.

    Args:
        path: the image.
        place: where the annotations name it, for the message.

    Returns:
        (height, width) in pixels, after EXIF orientation.

    Raises:
        DataError: the file is not a readable image.
    """
    try:
        return images.image_size(path)
    except ImageError as error:
        raise DataError(f"{place}: {error}") from error


def check_size(path: Path, stated: tuple[int, int], measured: tuple[int, int], place: str) -> None:
    """Refuse annotations made for an image of another size.

    Args:
        path: the image.
        stated: (height, width) according to the annotations.
        measured: (height, width) of the file, after EXIF orientation.
        place: annotation file and entry, for the message.

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
                "image: remove the EXIF orientation from the image, or rotate the boxes with it"
            )
        message += " (width and height swapped?)"
    raise DataError(f"{message}; were the boxes made for another version of the image? Correct one of the two")


def check_file_name(file_name: str, place: str, field_name: str = "file_name") -> None:
    """Refuse a file name that is absolute or leaves the image folder.

    Args:
        file_name: the name according to the annotations.
        place: annotation file and entry, for the message.
        field_name: the field's name in the format.

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
