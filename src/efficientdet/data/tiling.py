"""Images cut into overlapping tiles, so that small objects of large images are not shrunk away."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from efficientdet.data.builder import RawBox, RawImage, cleaned, columns_of
from efficientdet.data.change import read
from efficientdet.data.dataset import decode
from efficientdet.data.records import ImageRecord, Records
from efficientdet.data.settings import TileSettings, WriteSettings
from efficientdet.data.write import DatasetReport, write_dataset
from efficientdet.errors import DataError
from efficientdet.images.tiles import starts
from efficientdet.settings import divided

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from efficientdet.data.settings import TileOptions

BOXES_CUT = "boxes cut by a tile's edge"
PARTS_IGNORED = "parts of boxes too small to train on, now ignored regions"
# Where each tile comes from, beside the annotations.
TILES_FILE = "tiles.json"
JPEG_QUALITY = 95


def tile(source: str | Path, out: str | Path, **settings: Unpack[TileOptions]) -> DatasetReport:
    """Cut the images of a dataset into tiles.

    The part of a box in a tile is a box if it is at least `smallest_share` of the whole, else an ignored region. An
    image that fits into a tile stays whole. Tiles are named `NAME_yTOP_xLEFT`; `tiles.json` gives for each the image
    that it was cut from and its place there. A network that is trained on them predicts in such tiles by default.

    Args:
        source: the dataset, as `read_split` takes it; all of `train`, `val` and `test` that it has.
        out: folder to write; it appears when it is whole.
        **settings: fields of `TileSettings` and `WriteSettings`.

    Returns:
        What was written, and how many boxes were cut.

    Raises:
        DataError: the dataset is at fault; names file, place and field.
        ImageError: an image cannot be read.
        SettingError: `out` exists, or a setting is unknown or out of range.
        MissingExtraError: the format needs a library that is not installed.
    """
    own, writing = divided(settings, TileSettings, WriteSettings)
    cut, write = TileSettings(**own), WriteSettings(**writing)
    found = read(source, write)
    places: dict[str, dict[str, Any]] = {}
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside the output, for a temporary folder of the system may be small, and in memory.
    with tempfile.TemporaryDirectory(prefix=".", suffix=".part", dir=out.parent) as folder:
        splits = {
            name: _cut_split(records, Path(folder) / name, cut, places, found.lost)
            for name, records in found.splits.items()
        }  # fmt: skip
        more_files = {TILES_FILE: json.dumps(places, indent=1)}
        return write_dataset(splits, out, found.format, write, lost=found.lost, more_files=more_files)


def tile_side(folder: str | Path) -> int | None:
    """Side in pixels of the tiles that a dataset was cut into by `tile`; None where it was not.

    Raises:
        DataError: its `tiles.json` is damaged.
    """
    path = Path(folder) / TILES_FILE
    if not path.is_file():
        return None
    try:
        places = json.loads(path.read_text(encoding="utf-8")).values()
        return int(max(max(one["width"], one["height"]) for one in places))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged ({error}); cut the dataset again: efficientdet data tile") from error


def _cut_split(
    records: Records, folder: Path, cut: TileSettings, places: dict[str, dict[str, Any]], lost: Counter[str]
) -> Records:
    tiles = []
    for image in records.images:
        pixels = decode(image)
        for top, left in itertools.product(*(starts(side, cut.size, cut.overlap) for side in image.image_size)):
            part = pixels[top : top + cut.size, left : left + cut.size]
            size = (part.shape[0], part.shape[1])
            name = _name(image, top, left, size)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(part).save(folder / name, quality=JPEG_QUALITY)
            places[f"{folder.name}/{name}"] = {
                "image": image.file_name, "image_id": image.image_id, "x": left, "y": top,
                "width": size[1], "height": size[0],
            }  # fmt: skip
            tiles.append(RawImage(name, name, _parts(image, top, left, size, cut, lost), size, len(places)))
    return cleaned(records.source, folder, columns_of(tiles), records.class_names, records.category_ids)


def _name(image: ImageRecord, top: int, left: int, size: tuple[int, int]) -> str:
    own = PurePosixPath(image.file_name)
    suffix = own.suffix if own.suffix.lower() in (".jpg", ".jpeg") else ".png"
    place = "" if size == image.image_size else f"_y{top}_x{left}"
    return str(own.with_name(f"{own.stem}{place}{suffix}"))


def _parts(
    image: ImageRecord, top: int, left: int, size: tuple[int, int], cut: TileSettings, lost: Counter[str]
) -> list[RawBox]:
    """The boxes within a tile, in its pixels."""
    boxes = image.boxes_xyxy.astype(np.float64) - [left, top, left, top]
    inside = np.clip(boxes, 0, [size[1], size[0], size[1], size[0]])
    shown = (inside[:, 2:] - inside[:, :2]).clip(min=0).prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1)
    parts = []
    for index in np.flatnonzero(shown > 0).tolist():
        is_cut, is_ignored = shown[index] < 1 - 1e-6, bool(image.is_ignored[index])
        too_small = bool(shown[index] < cut.smallest_share) and not is_ignored
        lost[BOXES_CUT] += is_cut and not is_ignored and not too_small
        lost[PARTS_IGNORED] += too_small
        area = float(image.areas[index] * shown[index])
        x1, y1, x2, y2 = inside[index].tolist()
        parts.append(RawBox((x1, y1, x2, y2), int(image.labels[index]), index + 1, is_ignored or too_small, area))
    return parts
