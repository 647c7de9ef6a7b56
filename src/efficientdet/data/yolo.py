"""Reads YOLO label files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from efficientdet.data.check import check_class_names, measure, number_from_text, read_text
from efficientdet.data.records import RawBox, Records, RecordsBuilder
from efficientdet.errors import DataError, MissingSplitError, require

IMAGES_WITHOUT_LABEL_FILE = "images without label file"
FIELDS = ("class", "x center", "y center", "width", "height")
SUFFIXES = frozenset(".avif .bmp .gif .jp2 .jpeg .jpg .png .tif .tiff .webp".split())
CONFIG_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
SPLIT_NAMES = {"val": ("val", "valid", "validation"), "valid": ("valid", "val", "validation")}
# Rounding may turn an edge into 1.0005; a larger number is no fraction.
ROUNDING = 0.001


class YoloBox(NamedTuple):
    """One line of a label file; xywh is (x center, y center, width, height) in fractions of the image."""

    label: int
    xywh: tuple[float, float, float, float]
    line: int


def read_yolo(
    root: str | Path,
    split: str = "train",
    class_names: Sequence[str] | None = None,
    skip_missing: bool = False,
) -> Records:
    """Read one split of a YOLO dataset and measure its images (headers only).

    Images are sought in the folder that `data.yaml` gives for the split, in `images/<split>` or in `<split>/images`;
    label files in the same folder with `labels` for `images`. `val` is also found as `valid` and `validation`. An image
    without a label file, or with an empty one, is a negative.

    Args:
        root: folder of the dataset, or its data.yaml.
        split: `train`, `val`, `test` or another name that the folder uses.
        class_names: names by class number; by default those of `data.yaml`, else of `classes.txt`.
        skip_missing: leave out label files whose image is missing, and count them.

    Returns:
        Records in order of the file names; image ids count from 1, category ids equal the class numbers.

    Raises:
        DataError: a file is at fault; names file, line and field.
        MissingExtraError: there is a data.yaml but PyYAML is not installed.
    """
    folder = Path(root)
    config_path = folder if folder.is_file() else _first(folder / name for name in CONFIG_NAMES)
    folder = folder.parent if folder.is_file() else folder
    config = _read_config(config_path) if config_path else {}
    names = _class_names(folder, config_path, config) if class_names is None else class_names
    names = check_class_names(names, f"{config_path or folder}, field 'names'")
    image_folder = _image_folder(folder, split, config)
    label_folder = _label_folder(image_folder, folder)
    builder = RecordsBuilder(folder, image_folder, skip_missing)
    builder.counts[IMAGES_WITHOUT_LABEL_FILE] = 0
    unused = set(_label_files(label_folder))
    for image_id, path in enumerate(_images(image_folder), start=1):
        labels = label_folder / path.relative_to(image_folder).with_suffix(".txt")
        unused.discard(labels)
        _add(builder, image_id, path, labels, len(names))
    for labels in sorted(unused):
        stem = labels.relative_to(label_folder).with_suffix("").as_posix()
        builder.locate(f"{stem}.jpg", str(labels), len(read_labels(labels, len(names))))
    return builder.finish(names, range(len(names)))


def _add(builder: RecordsBuilder, image_id: int, path: Path, labels: Path, class_count: int) -> None:
    has_labels = labels.is_file()
    builder.counts[IMAGES_WITHOUT_LABEL_FILE] += not has_labels
    lines = read_labels(labels, class_count) if has_labels else []
    image_size = measure(path, str(labels))
    boxes = [RawBox(_xyxy(box.xywh, image_size), box.label, f"{image_id}/{box.line}") for box in lines]
    builder.add(image_id, path, image_size, boxes)


def read_labels(path: Path, class_count: int) -> list[YoloBox]:
    """Read one label file, which has a line `class x_center y_center width height` for each box.

    Args:
        path: the text file; an empty one stands for an image without objects.
        class_count: number of classes; class numbers start from 0.

    Returns:
        The boxes, in fractions of the image, neither clipped nor dropped.

    Raises:
        DataError: a line is at fault; names file, line and field.
    """
    lines = enumerate(read_text(path).splitlines(), start=1)
    return [
        YoloBox(*_parse(line.split(), f"{path}: line {number}", class_count), number)
        for number, line in lines
        if line.strip()
    ]


def _parse(texts: list[str], place: str, class_count: int) -> tuple[int, tuple[float, float, float, float]]:
    if len(texts) != len(FIELDS):
        hint = "write those"
        if len(texts) == 6:
            hint = "is the sixth a score, in a file of predictions? Leave it out"
        elif len(texts) > 6:
            hint = "is it a polygon, for segmentation? Convert polygons to boxes"
        raise DataError(f"{place}: {len(texts)} fields, but five are expected ({', '.join(FIELDS)}); {hint}")
    label = _class_number(texts[0], place, class_count)
    x, y, width, height = (
        _fraction(text, f"{place}, field {index} ({FIELDS[index - 1]})", is_side=index > 3)
        for index, text in enumerate(texts[1:], start=2)
    )
    return label, (x, y, width, height)


def _class_number(text: str, place: str, class_count: int) -> int:
    place = f"{place}, field 1 (class)"
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise DataError(f"{place}: {text!r} is not a class number; write an integer from 0 to {class_count - 1}")
    if int(text) >= class_count:
        raise DataError(f"{place}: class {int(text)} of {class_count}; write 0 to {class_count - 1}, or name the class")
    return int(text)


def _fraction(text: str, place: str, is_side: bool) -> float:
    number = number_from_text(text)
    if number is None:
        raise DataError(f"{place}: {text!r} is not a finite number; write a fraction of the image, 0 to 1")
    if number > 1 + ROUNDING:
        raise DataError(f"{place}: {text} is over 1; are these pixels? Divide by the image's width or height")
    # A side below 0 makes a degenerate box, which is dropped and counted as in every other format.
    if number < -ROUNDING and not is_side:
        raise DataError(f"{place}: {text} is below 0; write a fraction of the image, 0 to 1")
    return number


def _xyxy(xywh: tuple[float, float, float, float], image_size: tuple[int, int]) -> tuple[float, float, float, float]:
    x, y, width, height = xywh
    rows, columns = image_size
    return (
        (x - width / 2) * columns,
        (y - height / 2) * rows,
        (x + width / 2) * columns,
        (y + height / 2) * rows,
    )


def _read_config(path: Path) -> dict[str, Any]:
    text = read_text(path)
    yaml = require("yaml", "train")
    try:
        config = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        detail = " ".join(str(error).split())
        raise DataError(f"{path}: not valid YAML: {detail}; correct the file") from error
    if not isinstance(config, dict):
        raise DataError(f"{path}: keys such as 'names' are expected at the top; write 'names: [...]'")
    return config


def _class_names(folder: Path, config_path: Path | None, config: dict[str, Any]) -> list[Any]:
    if config_path is None:
        listing = _first(folder / name for name in ("classes.txt", "labels/classes.txt", "obj.names"))
        if listing is None:
            raise DataError(f"{folder}: neither data.yaml nor classes.txt is there; add one, or give class names")
        return [line.strip() for line in read_text(listing).splitlines() if line.strip()]
    names = config.get("names")
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise DataError(
                f"{config_path}, field 'names': the numbers are {', '.join(map(str, names))}; "
                f"number the classes 0 to {len(names) - 1}"
            )
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list):
        raise DataError(f"{config_path}, field 'names': missing, or no list; write 'names: [first, second]'")
    count = config.get("nc", len(names))
    if count != len(names):
        raise DataError(f"{config_path}, field 'nc': {count}, but there are {len(names)} names; correct one of them")
    return names


def _image_folder(root: Path, split: str, config: dict[str, Any]) -> Path:
    candidates = []
    for name in SPLIT_NAMES.get(split, (split,)):
        entry = config.get(name)
        # Exports write '../train/images' for a folder below the root, so steps upwards are left out: nothing
        # outside the dataset is read.
        if isinstance(entry, str) and not Path(entry).is_absolute():
            inside = [part for part in Path(entry).parts if part != ".."]
            candidates.append(root.joinpath(*inside))
        candidates += [root / "images" / name, root / name / "images"]
    for folder in candidates:
        if folder.is_dir() and folder != root:
            return folder
    tried = ", ".join(dict.fromkeys(folder.relative_to(root).as_posix() for folder in candidates))
    raise MissingSplitError(f"{root}: no images of the split '{split}'; looked for the folders {tried}")


def _label_folder(image_folder: Path, root: Path) -> Path:
    parts = list(image_folder.relative_to(root).parts)
    if "images" not in parts:
        return image_folder
    last = len(parts) - 1 - parts[::-1].index("images")
    parts[last] = "labels"
    folder = root.joinpath(*parts)
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder for the labels of {image_folder}; put them there")
    return folder


def _images(folder: Path) -> Iterator[Path]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise DataError(f"{folder}: there is no image in it; put the images of the split there")
    yield from paths


def _label_files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*.txt") if path.name != "classes.txt")


def _first(paths: Iterator[Path]) -> Path | None:
    return next((path for path in paths if path.is_file()), None)
