"""The images that files, folders and patterns on the command line name."""

from __future__ import annotations

import functools
import glob
import importlib.util
import io
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from efficientdet.errors import ImageError, MissingExtraError
from efficientdet.text import LONGEST_PATH, printable

STANDARD_INPUT = "-"
EMPTY_INPUT = "standard input is empty (pipe an image in, such as: efficientdet predict - < photo.jpg)"
# Pillow only identifies these; HEIF it does not know, but `images.read` says what to do about it.
_NOT_DECODED = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
_WITHOUT_DECODER = (".heic", ".heif")
# Longest name of a file, in bytes, on the usual file systems.
LONGEST_NAME = 255


class Problem(NamedTuple):
    """A place that could not be searched, and why: an unreadable folder, a link that leads nowhere."""

    place: str
    reason: str

    def __str__(self) -> str:
        """Both in one line."""
        return f"{self.place}: {self.reason}"


class FoundImages(NamedTuple):
    """What was found.

    Attributes:
        images: paths, or `-`, each once, in order.
        problems: places whose images, if there are any, are not among them.
    """

    images: list[Path | str]
    problems: list[Problem]


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Suffixes, in lower case with the dot, of the image formats that are read."""
    from PIL import Image

    formats = Image.registered_extensions()
    known = {suffix for suffix, name in formats.items() if name in Image.OPEN and name not in _NOT_DECODED}
    return frozenset(known | set(_WITHOUT_DECODER))


def find_images(sources: list[str]) -> FoundImages:
    """List the images of files, folders, glob patterns and `-` (standard input): each once, in order.

    A file is taken whatever its suffix; of a folder and its subfolders, the files with an image's suffix.

    Raises:
        ImageError: a source matches nothing; names it.
    """
    found: dict[Path | str, None] = {}
    problems: list[Problem] = []
    for source in sources:
        if source == STANDARD_INPUT:
            found[source] = None
            continue
        path = Path(source)
        matches, before = [], len(problems)
        try:
            if path.is_dir():
                matches = sorted(_images_below(path, problems))
            elif path.exists():
                matches = [path]
            else:
                matches = sorted(Path(name) for name in glob.glob(source, recursive=True) if Path(name).is_file())
        except (OSError, ValueError) as error:  # a name that is too long, or holds a null
            raise ImageError(f"{_shown(source)}: {getattr(error, 'strerror', None) or error}") from error
        if not matches and len(problems) == before:
            what = "no image in this folder" if path.is_dir() else "no such file, and no file matches it as a pattern"
            raise ImageError(f"{_shown(source)}: {what}")
        found.update(dict.fromkeys(matches))
    return FoundImages(list(found), problems)


def _shown(source: str) -> str:
    return printable(source, LONGEST_PATH)


def _images_below(folder: Path, problems: list[Problem]) -> Iterator[Path]:
    """Files with an image's suffix in a folder and its subfolders, links followed, each folder once."""
    seen: set[tuple[int, int]] = set()

    def cannot(error: OSError) -> None:
        problems.append(Problem(str(error.filename), f"{error.strerror}: its images are left out"))

    for name, subfolders, files in os.walk(folder, onerror=cannot, followlinks=True):
        status = os.stat(name)
        if (status.st_dev, status.st_ino) in seen:
            problems.append(Problem(name, "a link to a folder that was searched already, or such a folder; left out"))
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        for file in files:
            if os.path.splitext(file)[1].lower() not in image_suffixes():
                continue
            path = os.path.join(name, file)
            if os.path.isfile(path):
                yield Path(path)
            else:
                problems.append(Problem(path, "a link that leads nowhere" if os.path.islink(path) else "no file"))


def sample_image() -> Path:
    """The portrait of Grace Hopper among matplotlib's sample data, found without importing matplotlib.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    spec = importlib.util.find_spec("matplotlib")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    portrait = folder / "mpl-data" / "sample_data" / "grace_hopper.jpg" if folder else None
    if portrait is None or not portrait.is_file():
        raise MissingExtraError(
            "the sample image comes with matplotlib; run: pip install 'efficientdet[demo]', or name an image of yours"
        )
    return portrait


def standard_input() -> BinaryIO:
    """Standard input as a file for `images.read`; if it is empty, that function's error says what to do."""
    content = io.BytesIO(sys.stdin.buffer.read() if sys.stdin is not None else b"")
    content.name = "standard input" if content.getbuffer().nbytes else EMPTY_INPUT
    return content


def output_names(images: Sequence[Path | str], suffix: str = ".jpg") -> list[str]:
    """A file name for each image's annotated copy: its stem, numbered where two would collide.

    Names that differ in case only collide too, since some file systems ignore case. A stem that would be too long for a
    file name is cut.
    """
    taken: set[str] = set()
    names = []
    for image in images:
        stem = "stdin" if image == STANDARD_INPUT else Path(image).stem
        numbered = (
            _with_ending(stem, f"{'' if number == 1 else f'-{number}'}{suffix}") for number in itertools.count(1)
        )
        name = next(name for name in numbered if name.lower() not in taken)
        taken.add(name.lower())
        names.append(name)
    return names


def _with_ending(stem: str, ending: str) -> str:
    room = LONGEST_NAME - len(os.fsencode(ending))
    whole = os.fsencode(stem)
    if len(whole) <= room:
        return stem + ending
    return whole[:room].decode(sys.getfilesystemencoding(), "ignore") + ending
