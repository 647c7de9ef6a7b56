"""Datasets on disk to records and batches, one reader a format; and datasets changed as a whole.

    ed.data.convert("voc/", "coco/", "coco")

The names below are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from efficientdet.data.change import convert, merge, split, subset
    from efficientdet.data.tiling import tile

_HOMES = {
    "convert": "efficientdet.data.change",
    "merge": "efficientdet.data.change",
    "split": "efficientdet.data.change",
    "subset": "efficientdet.data.change",
    "tile": "efficientdet.data.tiling",
}

__all__ = ["convert", "merge", "split", "subset", "tile"]


def __getattr__(name: str) -> Any:
    """Import a function when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
