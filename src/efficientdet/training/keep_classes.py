"""More classes for a trained detector: the dataset's, besides those that it knows and the dataset lacks."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import numpy as np
import torch

from efficientdet.data.records import EVERY_CLASS, Records
from efficientdet.errors import SettingError
from efficientdet.network.efficientdet import CLASS_LAYER, EfficientDet
from efficientdet.weights.info import CheckpointInfo


def with_old_classes(records: Records, old: CheckpointInfo) -> Records:
    """The records with labels of the extended detector: its old classes first, then the dataset's new ones.

    Args:
        records: a split; left as it is.
        old: of the trained detector.

    Raises:
        SettingError: the dataset has all old classes, so that there is nothing to keep.
    """
    if set(old.class_names) <= set(records.class_names):
        raise SettingError(
            f"keep_classes: {records.source} has all classes of the weights ({', '.join(old.class_names)}), so there "
            "is none to keep; leave keep_classes out"
        )
    names = [*old.class_names, *(name for name in records.class_names if name not in old.class_names)]
    ids = dict(zip(old.class_names, old.category_ids, strict=True))
    wanted = dict(zip(records.class_names, records.category_ids, strict=True))
    free = itertools.count(max(*old.category_ids, *records.category_ids) + 1)
    for name in names[len(ids) :]:
        ids[name] = wanted[name] if wanted[name] not in ids.values() else next(free)
    numbers = np.array([names.index(name) for name in records.class_names], dtype=np.int64)
    table = copy.copy(records.table)
    table.labels = np.where(table.labels == EVERY_CLASS, EVERY_CLASS, numbers[table.labels])
    category_ids = tuple(ids[name] for name in names)
    return dataclasses.replace(records, images=table, class_names=tuple(names), category_ids=category_ids)


def extend_class_layer(network: EfficientDet, old: EfficientDet) -> None:
    """Copy the old classes' part of the last layer of the class head; the old classes come first.

    Args:
        network: with more classes; changed in place.
        old: the trained network.
    """
    own, theirs = network.state_dict(), old.state_dict()
    with torch.no_grad():
        for name in (name for name in own if name.startswith(CLASS_LAYER)):
            # (anchors * K, ...): the classes of an anchor stand together.
            by_anchor = own[name].unflatten(0, (-1, network.num_classes))
            by_anchor[:, : old.num_classes] = theirs[name].unflatten(0, (-1, old.num_classes))
