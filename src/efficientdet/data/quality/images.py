"""Images that cannot be decoded, are turned by EXIF, or are there twice: every image is decoded, once."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from efficientdet.data.quality.annotations import TRAIN
from efficientdet.data.quality.findings import Box, Finding
from efficientdet.data.records import ImageRecord, Records
from efficientdet.errors import ImageError, require
from efficientdet.images.convert import RgbImage
from efficientdet.images.read import exif_orientation, read

# Images whose 64-bit perceptual hashes differ in at most this many bits are compared by their pixels.
CANDIDATE_BITS = 8
# Images whose hashes are compared with all others at a time.
ROWS_AT_A_TIME = 64
# Small gray copies that correlate by more are of nearly the same image, if they differ by less than this too.
THUMBNAIL = 24
SIMILAR_CORRELATION = 0.985
SIDEWAYS = (5, 6, 7, 8)


class Look(NamedTuple):
    """What is remembered of a decoded image.

    Attributes:
        digest: hash of its pixels; the same for the same image, whatever the file.
        bits: (64,) bool, its perceptual hash.
        thumbnail: (24, 24) float32, gray, with mean 0 and length 1; 0 for an image of one color.
        orientation: of its EXIF data, 1 to 8.
        size: (height, width) in pixels, upright.
    """

    digest: bytes
    bits: NDArray[np.bool_]
    thumbnail: NDArray[np.float32]
    orientation: int
    size: tuple[int, int]


class _Place(NamedTuple):
    split: str
    record: ImageRecord


def check_images(
    splits: Mapping[str, Records], progress: Callable[[int, int], None] | None = None
) -> Iterator[Finding]:
    """Findings on the images of a dataset; `progress` is called with the number of images decoded and of all.

    Raises:
        MissingExtraError: imagehash is not installed; gives the pip command.
    """
    hashing = require("imagehash", "data")
    places = [_Place(split, record) for split, records in splits.items() for record in records.images]
    changed: dict[tuple[str, Path], list[Box]] = defaultdict(list)
    for split, records in splits.items():
        for change in records.changed:
            changed[split, change.path].append(change.xyxy)
    looks: list[tuple[_Place, Look]] = []
    with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 1)) as pool:
        found = pool.map(lambda place: _look(place.record.path, hashing), places)
        for done, (place, look) in enumerate(zip(places, found, strict=True), start=1):
            if progress is not None:
                progress(done, len(places))
            record, split = place.record, place.split
            if isinstance(look, ImageError):
                yield Finding.on(record, split, "image-unreadable", str(look))
                continue
            if look.size != record.image_size:  # readers measure a sample of very large datasets alone
                what = f"{look.size[1]}x{look.size[0]} pixels, and {record.width}x{record.height} in the annotations"
                yield Finding.on(record, split, "image-size", what)
            yield from _turned(place, look, changed[split, record.path])
            looks.append((place, look))
    yield from _repeated(looks)


def _look(path: Path, hashing: object) -> Look | ImageError:
    try:
        pixels = read(path)
        orientation = exif_orientation(path)
    except ImageError as error:
        return error.with_traceback(None)
    image = Image.fromarray(pixels)
    bits = hashing.phash(image).hash.reshape(-1)  # type: ignore[attr-defined]
    return Look(_digest(pixels), bits, _thumbnail(image), orientation, pixels.shape[:2])


def _digest(pixels: RgbImage) -> bytes:
    digest = hashlib.blake2b(str(pixels.shape).encode(), digest_size=16)
    digest.update(pixels.data)
    return digest.digest()


def _thumbnail(image: Image.Image) -> NDArray[np.float32]:
    gray = np.asarray(image.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), dtype=np.float32)
    centered = gray - gray.mean()
    length = np.linalg.norm(centered)
    result: NDArray[np.float32] = centered / length if length > THUMBNAIL else np.zeros_like(centered)
    return result


def _turned(place: _Place, look: Look, changed: list[Box]) -> Iterator[Finding]:
    """Findings on an image with an EXIF orientation: do its boxes fit only if that is ignored?"""
    record = place.record
    if look.orientation == 1:
        return
    width, height = record.height, record.width  # before the rotation
    beyond = [box for box in changed if max(box[2] - record.width, box[3] - record.height) > 1]
    every = [*changed, *record.boxes_xyxy.tolist()]
    fits = all(box[2] <= width + 1 and box[3] <= height + 1 for box in every)
    if look.orientation in SIDEWAYS and beyond and fits:
        what = (
            f"{len(beyond)} boxes reach beyond the upright image of {record.width}x{record.height} pixels, and all fit "
            f"the {width}x{height} of the file before EXIF orientation {look.orientation} is applied"
        )
        yield Finding.on(record, place.split, "exif-rotation", what, count=len(beyond))
    elif len(record.boxes_xyxy):
        yield Finding.on(record, place.split, "exif-orientation", f"EXIF orientation {look.orientation}")


def _repeated(looks: list[tuple[_Place, Look]]) -> Iterator[Finding]:
    by_digest: dict[bytes, list[int]] = defaultdict(list)
    for index, (_, look) in enumerate(looks):
        by_digest[look.digest].append(index)
    for same in by_digest.values():
        yield from _in_groups(looks, same, "image-repeated", "split-overlap", "the same pixels as")
    firsts = sorted(same[0] for same in by_digest.values())
    for similar in _groups(firsts, similar_pairs([looks[index][1] for index in firsts])):
        yield from _in_groups(looks, similar, "image-similar", "split-similar", "nearly the same image as")


def _in_groups(
    looks: list[tuple[_Place, Look]], group: list[int], within: str, across: str, relation: str
) -> Iterator[Finding]:
    """A finding for each image of a group but its first, which is one to train on if there is any."""
    places = sorted((looks[index][0] for index in group), key=lambda place: place.split != TRAIN)
    seen = {places[0].split: places[0]}
    for place in places[1:]:
        other = seen.get(place.split)
        code, other = (within, other) if other is not None else (across, places[0])
        seen.setdefault(place.split, place)
        what = f"{relation} {other.record.path.name} (image id {other.record.image_id}, {other.split})"
        yield Finding.on(place.record, place.split, code, what, other_file=str(other.record.path))


def similar_pairs(looks: Sequence[Look]) -> Iterator[tuple[int, int]]:
    """Pairs of images that are nearly the same: alike in their perceptual hashes and in their small copies."""
    if not looks:
        return
    # The product of two hashes of -1 and 1 is 64, less 2 for each bit in which they differ.
    signs = np.where(np.stack([look.bits for look in looks]), 1, -1).astype(np.float32)
    thumbnails = np.stack([look.thumbnail.reshape(-1) for look in looks])
    for start in range(0, len(looks), ROWS_AT_A_TIME):
        products = signs[start : start + ROWS_AT_A_TIME] @ signs[start:].T
        rows, columns = np.nonzero(np.triu(products >= signs.shape[1] - 2 * CANDIDATE_BITS, 1))
        alike = (thumbnails[start + rows] * thumbnails[start + columns]).sum(1) >= SIMILAR_CORRELATION
        yield from zip((start + rows[alike]).tolist(), (start + columns[alike]).tolist(), strict=True)


def _groups(names: Sequence[int], pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Images that pairs connect, by their names, each group in order."""
    sparse, csgraph = require("scipy.sparse", "data"), require("scipy.sparse.csgraph", "data")
    first, second = np.array(list(pairs), dtype=np.int64).reshape(-1, 2).T
    graph = sparse.coo_array((np.ones(len(first)), (first, second)), shape=(len(names), len(names)))
    groups: dict[int, list[int]] = defaultdict(list)
    for name, group in zip(names, csgraph.connected_components(graph, directed=False)[1].tolist(), strict=True):
        groups[group].append(name)
    return [group for group in groups.values() if len(group) > 1]
