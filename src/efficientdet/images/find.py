"""The images that files, folders and patterns on the command line name."""

from __future__ import annotations

import glob
import importlib.util
import io
import itertools
import sys
from pathlib import Path
from typing import BinaryIO

from efficientdet.errors import ImageError, MissingExtraError

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm",
)  # fmt: skip
STANDARD_INPUT = "-"
EMPTY_INPUT = "standard input is empty (pipe an image in, such as: efficientdet predict - < photo.jpg)"


def find_images(sources: list[str]) -> list[Path | str]:
    """List the images of files, folders, glob patterns and `-` (standard input): each once, in order.

    A file is taken whatever its suffix; of a folder and its subfolders, the files with an image's suffix.

    Raises:
        ImageError: a source matches nothing; names it.
    """
    found: dict[Path | str, None] = {}
    for source in sources:
        if source == STANDARD_INPUT:
            found[source] = None
            continue
        path = Path(source)
        if path.is_dir():
            matches = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        elif path.exists():
            matches = [path]
        else:
            matches = sorted(Path(name) for name in glob.glob(source, recursive=True) if Path(name).is_file())
        if not matches:
            what = "no image in this folder" if path.is_dir() else "no such file, and no file matches it as a pattern"
            raise ImageError(f"{source}: {what}")
        found.update(dict.fromkeys(matches))
    return list(found)


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
            "the sample image comes with matplotlib; run: pip install 'efficientdet[demo]', or name one of yours"
        )
    return portrait


def standard_input() -> BinaryIO:
    """Standard input as a file for `images.read`; if it is empty, that function's error says what to do."""
    content = io.BytesIO(sys.stdin.buffer.read())
    content.name = "standard input" if content.getbuffer().nbytes else EMPTY_INPUT
    return content


def output_names(images: list[Path | str]) -> list[str]:
    """A file name for each image's annotated copy: its stem, numbered where two would collide.

    Names that differ in case only collide too, since some file systems ignore case.
    """
    taken: set[str] = set()
    names = []
    for image in images:
        stem = "stdin" if image == STANDARD_INPUT else Path(image).stem
        numbered = (f"{stem}{'' if number == 1 else f'-{number}'}.jpg" for number in itertools.count(1))
        name = next(name for name in numbered if name.lower() not in taken)
        taken.add(name.lower())
        names.append(name)
    return names
