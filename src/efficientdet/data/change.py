"""Datasets changed as a whole: converted, divided, merged, made smaller. Each result is a new folder.

Images are chosen so that every class has its share (iterative stratification, Sechidis et al. 2011).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from efficientdet.data.read_split import SPLITS, find_split, read_splits
from efficientdet.data.records import EVERY_CLASS, ImageRecord, Records
from efficientdet.data.settings import Format, SplitSettings, SubsetSettings, WriteSettings
from efficientdet.data.write import LOST_BY_READING, DatasetReport, same_classes, write_dataset
from efficientdet.errors import DataError, SettingError, find_name
from efficientdet.settings import divided

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from efficientdet.data.settings import ConvertOptions, SplitOptions, SubsetOptions, WriteOptions

BOXES_OF_OTHER_CLASSES = "boxes of other classes"
IMAGES_NOT_CHOSEN = "images not chosen"
IMAGES_OF_OTHER_CLASSES = "images without the classes"


def convert(source: str | Path, out: str | Path, to: Format, **settings: Unpack[ConvertOptions]) -> DatasetReport:
    """Write a dataset in another format, with its images.

    Args:
        source: the dataset, as `read_split` takes it; all of `train`, `val` and `test` that it has.
        out: folder to write; it appears when it is whole.
        to: coco, voc, yolo, csv or parquet.
        **settings: fields of `WriteSettings`.

    Returns:
        What was written, and what was lost.

    Raises:
        DataError: the dataset is at fault; names file, place and field.
        SettingError: `out` exists, or a setting is unknown or out of range.
        MissingExtraError: the format needs a library that is not installed.
    """
    writing = WriteSettings(to=to, **settings)
    found = read(source, writing)
    return write_dataset(found.splits, out, to, writing, lost=found.lost)


def split(source: str | Path, out: str | Path, **settings: Unpack[SplitOptions]) -> DatasetReport:
    """Divide a dataset into `train`, `val` and `test`: every class in each by its share, the same for the same seed.

    Splits that it has are put together before.

    Args:
        source: as for `convert`.
        out: folder to write.
        **settings: fields of `SplitSettings` and `WriteSettings`.

    Returns:
        What was written.

    Raises:
        DataError, SettingError, MissingExtraError: see `convert`; also if a class or a group is in one image alone.
    """
    own, writing = _settings(settings, SplitSettings)
    found = read(source, writing)
    records = pool(list(found.splits.values()))
    shares = {"train": 1 - own.val - own.test, "val": own.val, "test": own.test}
    shares = {name: share for name, share in shares.items() if share}
    groups = _groups(records.images, own.group_by)
    parts = divide(records, groups, list(shares.values()), own.seed)
    splits = {
        name: records.of_images(records.images[index] for index in np.flatnonzero(parts == number).tolist())
        for number, name in enumerate(shares)
    }
    empty = [name for name, part in splits.items() if not len(part)]
    if empty:
        raise DataError(
            f"{source}: {len(set(groups))} images or groups are too few for {', '.join(shares)}; nothing is left for "
            f"{', '.join(empty)}"
        )
    notes = [f"put together before: {', '.join(found.splits)}"] if len(found.splits) > 1 else []
    notes += [
        f"class '{name}' is not in {', '.join(missing)}"
        for label, name in enumerate(records.class_names)
        if (missing := [s for s, part in splits.items() if not any((one.labels == label).any() for one in part.images)])
    ]
    return write_dataset(splits, out, found.format, writing, lost=found.lost, notes=notes)


def merge(sources: Sequence[str | Path], out: str | Path, **settings: Unpack[WriteOptions]) -> DatasetReport:
    """Put datasets together, split by split; classes are the same if their names are.

    Args:
        sources: two datasets or more, each as for `convert`.
        out: folder to write.
        **settings: fields of `WriteSettings`; `to` is by default the first dataset's format.

    Returns:
        What was written; notes say which category ids changed.

    Raises:
        DataError, SettingError, MissingExtraError: see `convert`; also if names of classes differ in upper and lower
            case or spaces alone.
    """
    if len(sources) < 2:
        raise SettingError("merge takes two datasets or more")
    writing = WriteSettings(**settings)
    found = [read(source, writing) for source in sources]
    every = [one.splits for one in found]
    names = _merged_names({
        str(source): next(iter(splits.values())) for source, splits in zip(sources, every, strict=True)
    })  # fmt: skip
    ids, notes = _merged_ids(every, names)
    splits = {
        name: pool([_relabeled(splits[name], names, ids) for splits in every if name in splits])
        for name in (*SPLITS, *{name: None for splits in every for name in splits if name not in SPLITS})
        if any(name in splits for splits in every)
    }  # fmt: skip
    lost = sum((one.lost for one in found), Counter[str]())
    return write_dataset(splits, out, found[0].format, writing, lost=lost, notes=notes)


def subset(source: str | Path, out: str | Path, **settings: Unpack[SubsetOptions]) -> DatasetReport:
    """Keep a part of a dataset: some classes, a number of images or a share of them, every class by its share.

    Args:
        source: as for `convert`.
        out: folder to write.
        **settings: fields of `SubsetSettings` and `WriteSettings`.

    Returns:
        What was written, and how many images and boxes were left out.

    Raises:
        DataError, SettingError, MissingExtraError: see `convert`; also if a class is not known.
    """
    own, writing = _settings(settings, SubsetSettings)
    if not own.classes and own.images is None and own.fraction is None:
        raise SettingError("nothing says which part to keep; give classes, images or fraction")
    found = read(source, writing)
    splits, lost = {}, found.lost
    for name, records in found.splits.items():
        images_before = len(records)
        if own.classes:
            records = _of_classes(records, own, lost)
        wanted = own.images if own.images is not None else round((own.fraction or 1) * images_before)
        if len(records) and wanted < len(records):
            lost[IMAGES_NOT_CHOSEN] += len(records) - max(1, wanted)
            chosen = choose(records, max(1, wanted), own.seed)
            records = records.of_images(records.images[index] for index in chosen)
        if len(records):
            splits[name] = records
    if not splits:
        wanted_classes = ", ".join(own.classes)
        raise DataError(f"{source}: no image has a box of {wanted_classes}; keep_negatives would keep the others")
    return write_dataset(splits, out, found.format, writing, lost=lost)


class Found(NamedTuple):
    """A dataset that was read: its splits, the format to write, and what reading lost."""

    splits: dict[str, Records]
    format: Format
    lost: Counter[str]


def read(source: str | Path, settings: WriteSettings) -> Found:
    """Every split of a dataset, as the settings say."""
    splits = read_splits(source, settings.skip_missing, box_format=settings.box_format)
    lost = {name: sum(records.counts.get(name, 0) for records in splits.values()) for name in LOST_BY_READING}
    found = settings.to or find_split(source, next(iter(splits))).format
    return Found(splits, found, Counter(lost))


def pool(parts: Sequence[Records]) -> Records:
    """Records of the same classes, put together; where an id is there twice, all become numbers from 1."""
    first, images = parts[0], [image for part in parts for image in part.images]
    if len({image.image_id for image in images}) < len(images):
        images = [replace(image, image_id=number) for number, image in enumerate(images, start=1)]
    same_classes(parts)
    return first.of_images(images)


def _settings(given: Mapping[str, Any], cls: type) -> tuple[Any, WriteSettings]:
    own, writing = divided(given, cls, WriteSettings)
    return cls(**own), WriteSettings(**writing)


def _groups(images: Sequence[ImageRecord], pattern: str | None) -> list[str]:
    """The group of each image: what the pattern finds in its name, else the name itself."""
    if pattern is None:
        return [str(index) for index in range(len(images))]
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise SettingError(f"group_by '{pattern}' is no regular expression: {error}") from error
    groups = []
    for image in images:
        found = expression.search(image.file_name)
        if found is None:
            raise SettingError(f"group_by '{pattern}' finds nothing in the image name '{image.file_name}'")
        groups.append(found.group(min(1, expression.groups)) or "")
    return groups


def _merged_names(datasets: Mapping[str, Records]) -> tuple[str, ...]:
    names: dict[str, str] = {}
    by_plain: dict[str, tuple[str, str]] = {}
    for source, records in datasets.items():
        for name in records.class_names:
            other, where = by_plain.setdefault(" ".join(name.lower().split()), (name, source))
            if other != name:
                raise DataError(
                    f"classes '{other}' of {where} and '{name}' of {source} differ in case or spaces alone; give them "
                    "one name in both, or names that differ"
                )
            names[name] = source
    return tuple(names)


def _merged_ids(found: Sequence[Mapping[str, Records]], names: tuple[str, ...]) -> tuple[tuple[int, ...], list[str]]:
    """Category ids by label: the datasets' own if they agree, else from 1; and a note for each that changes."""
    own: dict[str, set[int]] = {name: set() for name in names}
    for splits in found:
        records = next(iter(splits.values()))
        for name, category_id in zip(records.class_names, records.category_ids, strict=True):
            own[name].add(category_id)
    firsts = [min(ids) for ids in own.values()]
    if all(len(ids) == 1 for ids in own.values()) and len(set(firsts)) == len(names):
        return tuple(firsts), []
    notes = [
        f"category id of '{name}': {' and '.join(map(str, sorted(ids)))} before, now {number}"
        for number, (name, ids) in enumerate(own.items(), start=1)
        if ids != {number}
    ]
    return tuple(range(1, len(names) + 1)), notes


def _relabeled(records: Records, names: tuple[str, ...], ids: tuple[int, ...]) -> Records:
    """The records with labels of other class names, by name; boxes of classes that are not among them are left out."""
    labels = {name: label for label, name in enumerate(names)}
    to_new = np.array([labels.get(name, -2) for name in records.class_names] + [EVERY_CLASS])
    images = [replace(image, labels=to_new[image.labels]) for image in records.images]  # EVERY_CLASS is -1, the last
    return Records([image.only(image.labels != -2) for image in images], names, ids, records.source)


def _of_classes(records: Records, own: SubsetSettings, lost: Counter[str]) -> Records:
    wanted = {find_name("class", name, records.class_names) for name in own.classes}
    kept = [label for label, name in enumerate(records.class_names) if name in wanted]
    names = tuple(records.class_names[label] for label in kept)
    part = _relabeled(records, names, tuple(records.category_ids[label] for label in kept))
    lost[BOXES_OF_OTHER_CLASSES] += len(records.table.labels) - len(part.table.labels)
    if own.keep_negatives:
        return part
    lost[IMAGES_OF_OTHER_CLASSES] += part.table.negatives
    return part.of_images(image for image in part.images if not image.is_negative)


def divide(
    records: Records, groups: Sequence[str], shares: Sequence[float], seed: int, of_each_in_first: int = 0
) -> NDArray[np.int64]:
    """Divide images into parts, groups of images whole, so that each class is in each part by its share.

    The rarest class goes first: each group with it goes where most of the class is still wanted, then where most
    images are, then by chance.

    Args:
        records: N images.
        groups: N names; images of one name stay together.
        shares: of each part; they add up to 1.
        seed: of the chance; the same one gives the same parts.
        of_each_in_first: images of each class that the first part gets, even if its share is less.

    Returns:
        (N,) int64, number of the part of each image.
    """
    _, group_of_image = np.unique(np.array(groups, dtype=object).astype(str), return_inverse=True)
    has_class = _has_class(records)  # (N, K + 1)
    in_group = np.zeros((group_of_image.max() + 1, has_class.shape[1]))
    np.add.at(in_group, group_of_image, has_class)
    images_in_group = np.bincount(group_of_image).astype(float)
    wanted = np.outer(shares, in_group.sum(0))  # (parts, classes): images with each class still to be given
    wanted[0] = np.maximum(wanted[0], of_each_in_first)
    wanted_images = np.asarray(shares, dtype=float) * len(records)
    part_of_group = _assign(in_group, images_in_group, wanted, wanted_images, np.random.default_rng(seed))
    return part_of_group[group_of_image]


def choose(records: Records, count: int, seed: int) -> list[int]:
    """Indices, in order, of some images, in which each class is by its share."""
    share = count / len(records)
    names = [str(index) for index in range(len(records))]
    parts = divide(records, names, [share, 1 - share], seed, of_each_in_first=1)
    random = np.random.default_rng((seed, 1))
    chosen, others = (random.permutation(np.flatnonzero(parts == part)) for part in (0, 1))
    # Rounding by class may give an image too many or too few.
    return sorted([*chosen[:count].tolist(), *others[: max(0, count - len(chosen))].tolist()])


def _has_class(records: Records) -> NDArray[np.float64]:
    """(N, K + 1): whether each image has a box of each class, and in the last column whether it has none."""
    table, result = records.table, np.zeros((len(records), len(records.class_names) + 1))
    result[table.image_of_box[~table.is_ignored], table.labels[~table.is_ignored]] = 1
    result[:, -1] = result.sum(1) == 0
    return result


def _assign(
    in_group: NDArray[np.float64], images: NDArray[np.float64], wanted: NDArray[np.float64],
    wanted_images: NDArray[np.float64], random: np.random.Generator,
) -> NDArray[np.int64]:  # fmt: skip
    part_of_group = np.full(len(in_group), -1)
    order = random.permutation(len(in_group))
    while (part_of_group < 0).any():
        left = order[part_of_group[order] < 0]
        totals = in_group[left].sum(0)
        if not totals.any():
            break
        rarest = int(np.where(totals > 0, totals, np.inf).argmin())
        of_class = left[in_group[left, rarest] > 0]
        # Large groups first: they fit in fewer places.
        for group in of_class[np.argsort(-in_group[of_class, rarest], kind="stable")]:
            best = np.lexsort((random.random(len(wanted)), -wanted_images, -wanted[:, rarest]))[0]
            part_of_group[group] = best
            wanted[best] -= in_group[group]
            wanted_images[best] -= images[group]
    return part_of_group
