"""Reads YOLO label files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from efficientdet.data.builder import RawBox, RawImage, build
from efficientdet.data.fields import (
    Entry,
    check_class_names,
    is_file,
    is_folder,
    lines_of,
    number_from_text,
    read_text,
    shown,
)
from efficientdet.data.records import EVERY_CLASS, Records
from efficientdet.errors import DataError, ImageError, MissingSplitError
from efficientdet.images.find import find_images
from efficientdet.text import printable
from efficientdet.yaml_text import parse_yaml

IMAGES_WITHOUT_LABEL_FILE = "images without label file"
FIELDS = ("class", "x center", "y center", "width", "height")
CONFIG_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
SPLIT_NAMES = {"val": ("val", "valid", "validation"), "valid": ("valid", "val", "validation")}
# Rounding may turn an edge into 1.0005; a larger number is no fraction.
ROUNDING = 0.001


def read_yolo(
    root: str | Path,
    split: str = "train",
    class_names: Sequence[str] | None = None,
    skip_missing: bool = False,
) -> Records:
    """Read one split of a YOLO dataset and measure its images (headers only).

    Images are sought in the folder that `data.yaml` gives for the split, in `images/<split>` or in `<split>/images`;
    label files in the same folder with `labels` for `images`. `val` is also found as `valid` and `validation`. An image
    without a label file, or with an empty one, is a negative. Ignored regions stand in files of the same form in the
    same folder with `ignored` for `images`; class -1 there means every class.

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
    folder, config_path = Path(root), _first(Path(root) / name for name in CONFIG_NAMES)
    if is_file(folder):
        folder, config_path = folder.parent, folder
    config = _read_config(config_path) if config_path else {}
    names = _class_names(folder, config_path, config) if class_names is None else class_names
    names = check_class_names(names, f"{config_path or folder}, field 'names'")
    image_folder = _image_folder(_base_folder(folder, config_path, config), split, config_path, config)
    label_folder = _label_folder(image_folder, folder)
    ignored_folder = _beside(image_folder, folder, "ignored")
    labels = {path.relative_to(label_folder).with_suffix("") for path in _label_files(label_folder)}
    paths = [path.relative_to(image_folder) for path in _images(image_folder, skip_missing)]
    unused = [stem.with_name(f"{stem.name}.jpg") for stem in sorted(labels - {path.with_suffix("") for path in paths})]
    images, without_labels = [], 0
    for image_id, path in enumerate([*paths, *unused], start=1):
        with Entry(image_id, file=image_folder / path):
            file = (label_folder / path).with_suffix(".txt")
            ignored = ignored_folder and (ignored_folder / path).with_suffix(".txt")
            boxes = read_labels(file, len(names), f"{image_id}/") if is_file(file) else []
            without_labels += not is_file(file)
            if ignored and is_file(ignored):
                boxes += read_labels(ignored, len(names), f"{image_id}/ignored/", is_ignored=True)
            images.append(RawImage(path.as_posix(), str(file), boxes, image_id=image_id))
    records = build(folder, [image_folder], images, names, skip_missing=skip_missing, in_fractions=True, field=None)
    records.counts[IMAGES_WITHOUT_LABEL_FILE] = without_labels
    return records


def read_labels(path: Path, class_count: int, before: str = "", is_ignored: bool = False) -> list[RawBox]:
    """Read one label file, which has a line `class x_center y_center width height` for each box.

    Args:
        path: the text file; an empty one stands for an image without objects.
        class_count: number of classes; class numbers start from 0.
        before: beginning of the boxes' ids, which the number of the line follows.
        is_ignored: whether it is a file of ignored regions, in which -1 stands for every class.

    Returns:
        The boxes, in fractions of the image, neither clipped nor dropped.

    Raises:
        DataError: a line is at fault; names file, line and field.
    """
    boxes = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip():
            with Entry(file=path):
                label, (x, y, width, height) = _parse(line.split(), f"{path}: line {number}", class_count, is_ignored)
                xyxy = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
                boxes.append(RawBox(xyxy, label, f"{before}{number}", is_ignored))
    return boxes


def _parse(
    texts: list[str], place: str, class_count: int, every_class: bool = False
) -> tuple[int, tuple[float, float, float, float]]:
    if len(texts) != len(FIELDS):
        hint = "write those"
        if len(texts) == 6:
            hint = "is the sixth a score, in a file of predictions? Leave it out"
        elif len(texts) > 6:
            hint = "is it a polygon, for segmentation? Convert polygons to boxes"
        raise DataError(f"{place}: {len(texts)} fields, but five are expected ({', '.join(FIELDS)}); {hint}")
    label = EVERY_CLASS if every_class and texts[0] == "-1" else _class_number(texts[0], place, class_count)
    x, y, width, height = (
        _fraction(text, f"{place}, field {index} ({FIELDS[index - 1]})", is_side=index > 3)
        for index, text in enumerate(texts[1:], start=2)
    )
    return label, (x, y, width, height)


def _class_number(text: str, place: str, class_count: int) -> int:
    place = f"{place}, field 1 (class)"
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise DataError(f"{place}: {shown(text)} is not a class number; write an integer from 0 to {class_count - 1}")
    if int(text) >= class_count:
        raise DataError(f"{place}: class {int(text)} of {class_count}; write 0 to {class_count - 1}, or name the class")
    return int(text)


def _fraction(text: str, place: str, is_side: bool) -> float:
    number = number_from_text(text)
    if number is None:
        raise DataError(f"{place}: {shown(text)} is not a finite number; write a fraction of the image, 0 to 1")
    if number > 1 + ROUNDING:
        raise DataError(
            f"{place}: {printable(text)} is over 1; are these pixels? Divide by the image's width or height"
        )
    # A side below 0 makes a degenerate box, which is dropped and counted as in every other format.
    if number < -ROUNDING and not is_side:
        raise DataError(f"{place}: {printable(text)} is below 0; write a fraction of the image, 0 to 1")
    return number


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config, _ = parse_yaml(read_text(path))
    except ValueError as error:
        raise DataError(f"{path}: not valid YAML: {error}; correct the file") from error
    if not isinstance(config, dict):
        raise DataError(f"{path}: keys such as 'names' are expected at the top; write 'names: [...]'")
    return config


def _class_names(folder: Path, config_path: Path | None, config: dict[str, Any]) -> list[Any]:
    if config_path is None:
        listing = _first(folder / name for name in ("classes.txt", "labels/classes.txt", "obj.names"))
        if listing is None:
            raise DataError(f"{folder}: neither data.yaml nor classes.txt is there; add one, or give class names")
        return lines_of(listing)
    names = config.get("names")
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise DataError(
                f"{config_path}, field 'names': the numbers are {printable(', '.join(map(str, names)))}; "
                f"number the classes 0 to {len(names) - 1}"
            )
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list):
        raise DataError(f"{config_path}, field 'names': missing, or no list; write 'names: [first, second]'")
    count = config.get("nc", len(names))
    if count != len(names):
        raise DataError(
            f"{config_path}, field 'nc': {shown(count)}, but there are {len(names)} names; correct one of them"
        )
    return names


def _base_folder(root: Path, config_path: Path | None, config: dict[str, Any]) -> Path:
    """The folder that the entries of data.yaml are relative to: its own, or the one below that its `path` names."""
    entry, place = config.get("path"), f"{config_path}, field 'path'"
    if entry is None:
        return root
    if not isinstance(entry, str):
        raise DataError(f"{place}: {shown(entry)} is not a folder; write one, or leave the field out")
    path = root / entry
    if path == root or Path(entry).name == root.resolve().name:  # as it was called elsewhere
        return root
    if path.is_relative_to(root) and ".." not in path.relative_to(root).parts and is_folder(path):
        return path
    raise DataError(
        f"{place}: {shown(entry)} is neither {root} nor a folder below it; correct it, or leave it out: the other "
        "entries are then relative to the folder of this file"
    )


def _image_folder(root: Path, split: str, config_path: Path | None, config: dict[str, Any]) -> Path:
    """The folder that data.yaml names for the split, which must be there; else one of the usual ones."""
    names = SPLIT_NAMES.get(split, (split,))
    for name in names:
        if config.get(name) is not None:
            return _named_folder(root, config[name], f"{config_path}, field '{name}'")
    candidates = [folder for name in names for folder in (root / "images" / name, root / name / "images")]
    for folder in candidates:
        if is_folder(folder):
            return folder
    tried = ", ".join(printable(folder.relative_to(root).as_posix()) for folder in candidates)
    raise MissingSplitError(f"{root}: no images of the split '{printable(split)}'; looked for the folders {tried}")


def _named_folder(root: Path, entry: Any, place: str) -> Path:
    """A folder below the root; nothing outside the dataset is read."""
    if not isinstance(entry, str):
        raise DataError(f"{place}: {shown(entry)} is not a folder; write one folder, relative to {root}")
    path = Path(entry)
    # Exports write '../train/images' for a folder below the root, so steps upwards are left out.
    inside = path if path.is_absolute() else root.joinpath(*(part for part in path.parts if part != ".."))
    if not inside.is_relative_to(root) or ".." in inside.relative_to(root).parts or inside == root:
        raise DataError(f"{place}: {shown(entry)} is not below {root}; write a folder relative to it")
    if not is_folder(inside):
        raise DataError(f"{place}: there is no folder {printable(inside)}; put the images there or correct the entry")
    return inside


def _label_folder(image_folder: Path, root: Path) -> Path:
    folder = _beside(image_folder, root, "labels")
    if folder is None:
        return image_folder
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder for the labels of {image_folder}; put them there")
    return folder


def _beside(image_folder: Path, root: Path, name: str) -> Path | None:
    """The image folder with another name for its last `images`; None if it has none."""
    parts = list(image_folder.relative_to(root).parts)
    if "images" not in parts:
        return None
    parts[len(parts) - 1 - parts[::-1].index("images")] = name
    return root.joinpath(*parts)


def _images(folder: Path, skip_missing: bool) -> list[Path]:
    """The images of a folder and its subfolders, in order."""
    try:
        found = find_images([str(folder)])
    except ImageError as error:
        raise DataError(f"{error}; put the images of the split there") from error
    if found.problems and not skip_missing:
        raise DataError(f"{found.problems[0]}; mend it, or leave such images out with skip_missing (--skip-missing)")
    return [Path(path) for path in found.images]


def _label_files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*.txt") if path.name != "classes.txt")


def _first(paths: Iterator[Path]) -> Path | None:
    return next((path for path in paths if is_file(path)), None)
