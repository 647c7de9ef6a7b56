"""Reads Pascal VOC XML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError, TreeBuilder

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

from efficientdet.data.builder import RawBox, RawImage, build
from efficientdet.data.fields import (
    Entry,
    check_class_names,
    check_file_name,
    coordinate,
    flag,
    is_file,
    is_folder,
    listed_class_names,
    number_from_text,
    read_text,
    shown,
)
from efficientdet.data.records import Records
from efficientdet.errors import DataError
from efficientdet.text import printable

CORNERS = ("xmin", "ymin", "xmax", "ymax")
# The format takes equal corners for a box of one pixel; in practice they are a slip of the mouse.
SMALLEST_SIDE = 1.0


def read_voc(
    source: str | Path | Sequence[str | Path],
    class_names: Sequence[str] | None = None,
    image_folder: str | Path | None = None,
    split: str | None = None,
    skip_missing: bool = False,
) -> Records:
    """Read Pascal VOC annotations and check them against their images (headers only).

    VOC's coordinates are 1-based and inclusive; the records have (xmin - 1, ymin - 1, xmax, ymax). Boxes whose corners
    coincide in x or y are dropped as degenerate. Objects marked difficult are ignored regions, as are those with
    `<ignore>1</ignore>`, which need no name: without one they hold for every class.

    Args:
        source: a folder (with `Annotations/`, or with the XML files themselves), one XML file, or a list of them.
        class_names: names by label; by default those of `classes.txt` in the folder, else the names found in all its
            XML files, sorted, so that each split has the same.
        image_folder: folder of the images; by default the first of `JPEGImages`, `images` (beside the XML files, or one
            or two folders above) that holds any of them, else the folder of the XML files.
        split: read only the files listed in `ImageSets/Main/<split>.txt` of the folder.
        skip_missing: leave out images whose file is missing, and count them.

    Returns:
        Records in order of the file names; image ids count from 1, category ids equal the labels.

    Raises:
        DataError: a file is at fault; names file, object and field.
    """
    root, files = _files(source)
    chosen = files if split is None else list(_listed(root, files[0].parent, split))
    names = listed_class_names(root) if class_names is None else class_names
    read: dict[Path, RawImage] = {}
    for file in chosen if names else files:
        with Entry(file=file):
            read[file] = _read(file)
    found = sorted({str(box.label) for image in read.values() for box in image.boxes if box.label})
    names = check_class_names(names or found, f"{root}: class names")
    images = [read[file] for file in chosen if file in read]
    _refuse_shared_images(images)
    folders = [Path(image_folder)] if image_folder is not None else _folders(files[0].parent)
    return build(root, folders, images, names, skip_missing=skip_missing, smallest_side=SMALLEST_SIDE, field="filename")


def _files(source: str | Path | Sequence[str | Path]) -> tuple[Path, list[Path]]:
    if not isinstance(source, str | Path):
        files = sorted(map(Path, source))
        if not files:
            raise DataError("the list of VOC files is empty; give at least one XML file")
        return files[0].parent, files
    root = Path(source)
    if is_file(root):
        return root, [root]
    if not is_folder(root):
        raise DataError(f"{printable(root)}: there is no such folder or file; check the path")
    folder = root / "Annotations" if is_folder(root / "Annotations") else root
    files = sorted(folder.glob("*.xml"))
    if not files:
        raise DataError(f"{folder}: there is no XML file; give a folder with VOC annotations")
    return root, files


def _listed(root: Path, folder: Path, split: str) -> Iterator[Path]:
    listing = root / "ImageSets" / "Main" / f"{split}.txt"
    for number, line in enumerate(read_text(listing).splitlines(), start=1):
        if not line.strip():
            continue
        name = line.split()[0]
        check_file_name(name, f"{listing}: line {number}")
        file = folder / f"{name}.xml"
        if not is_file(file):
            raise DataError(f"{listing}: line {number}: {printable(file)} is missing; add it or remove the line")
        yield file


def _folders(folder: Path) -> list[Path]:
    near = (folder, folder.parent, folder.parent.parent)
    return [place / name for place in near for name in ("JPEGImages", "images")] + [folder]


def _refuse_shared_images(images: Sequence[RawImage]) -> None:
    seen: dict[str, str] = {}
    for image in images:
        if image.file_name in seen:
            raise DataError(
                f"{image.place}, field 'filename': {printable(image.file_name)} is annotated in "
                f"{seen[image.file_name]} too; keep one of the two"
            )
        seen[image.file_name] = image.place


def _read(path: Path) -> RawImage:
    root = _parse(path)
    place = str(path)
    if root.tag != "annotation":
        raise DataError(f"{place}: the top element is <{printable(root.tag)}>; VOC files start with <annotation>")
    file_name = (root.findtext("filename") or "").strip()
    if not file_name:
        raise DataError(f"{place}, field 'filename': missing or empty; write the image's file name")
    objects = []
    for number, element in enumerate(root.findall("object"), start=1):
        with Entry(file=path):
            objects.append(_object(element, f"{place}: object {number}"))
    return RawImage(file_name, place, objects, _stated_size(root, place))


def _parse(path: Path) -> Element:
    """The XML tree of a file. Document types, and with them entities, are refused."""
    parser = DefusedXMLParser(target=TreeBuilder(), forbid_dtd=True)
    try:
        parser.feed(read_text(path))
        root: Element = parser.close()
    except DefusedXmlException as error:
        raise DataError(
            f"{path}: line {parser.parser.CurrentLineNumber}: document types and entities (<!DOCTYPE, <!ENTITY) are "
            "refused, since they can open other files or grow without end; remove the declaration"
        ) from error
    except ParseError as error:
        line, column = error.position
        fault = str(error).partition(":")[0]
        raise DataError(
            f"{path}: not valid XML at line {line}, column {column + 1}: {fault}; is the file cut off? Write it again"
        ) from error
    return root


def _stated_size(root: Element, place: str) -> tuple[int, int] | None:
    sides = []
    for name in ("height", "width"):
        text = (root.findtext(f"size/{name}") or "0").strip()
        number = number_from_text(text)
        if number is None or not 0 <= number < 2**31 or number != int(number):
            raise DataError(f"{place}, field 'size/{name}': {shown(text)} is not a size in pixels; write the image's")
        sides.append(int(number))
    # Tools that never open the image leave the size out or write 0; then only the size of the file counts.
    return (sides[0], sides[1]) if all(sides) else None


def _object(element: Element, place: str) -> RawBox:
    def text(field: str) -> str:
        return (element.findtext(field) or "").strip()

    is_ignored = flag(text("ignore"), place, "ignore")
    if not text("name") and not is_ignored:
        raise DataError(f"{place}, field 'name': missing or empty; write the class")
    x1, y1, x2, y2 = (coordinate(text(f"bndbox/{corner}"), place, f"bndbox/{corner}") for corner in CORNERS)
    is_difficult = flag(text("difficult"), place, "difficult")
    xyxy, name = (x1 - 1, y1 - 1, x2, y2), text("name") or None
    return RawBox(xyxy, name, is_ignored=is_difficult or is_ignored, place=f"{place}, field 'name'")
