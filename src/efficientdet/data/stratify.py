"""Images chosen so that every class has its share (iterative stratification, Sechidis et al. 2011)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from efficientdet.data.records import Records


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
