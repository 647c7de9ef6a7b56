"""How a large image is cut into overlapping tiles: for datasets and for predictions alike. Standard library only."""

from __future__ import annotations


def starts(length: int, size: int, overlap: float) -> list[int]:
    """Where the tiles of a side begin: as evenly as whole pixels allow, overlapping by at least the share asked for."""
    if length <= size:
        return [0]
    step = max(1, int(size * (1 - overlap)))
    count = -(-(length - size) // step) + 1
    return [round(index * (length - size) / (count - 1)) for index in range(count)]


def cut(image_size: tuple[int, int], size: int, overlap: float) -> list[tuple[int, int, int, int]]:
    """The tiles of an image, row by row.

    Args:
        image_size: (height, width) of the image, in pixels.
        size: side of a tile, in pixels.
        overlap: share of a tile that the next one repeats, at least.

    Returns:
        Left, top, right, bottom of each; all are of the full size, but for an image that is smaller.
    """
    height, width = image_size
    return [
        (left, top, min(left + size, width), min(top + size, height))
        for top in starts(height, size, overlap)
        for left in starts(width, size, overlap)
    ]
