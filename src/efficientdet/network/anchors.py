"""Anchors of any input size (section 4.1; google/automl tf2/anchors.py)."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from efficientdet.family import ModelSpec, level_sizes


def level_anchors(spec: ModelSpec, size: tuple[int, int], strides: tuple[float, float]) -> Tensor:
    """Anchors of one level: (h * w * octaves * aspects, 4) float64.

    Args:
        spec: says scale, octaves and aspects.
        size: (h, w) of the level's map.
        strides: pixels of the network's input per cell, downward and across.
    """
    stride_y, stride_x = strides
    sides = torch.tensor(
        [
            (
                spec.anchor_scale * stride_x * 2 ** (octave / spec.octaves) * wide,
                spec.anchor_scale * stride_y * 2 ** (octave / spec.octaves) * high,
            )
            for octave in range(spec.octaves)
            for wide, high in spec.aspects
        ],
        dtype=torch.float64,
    )  # (octaves * aspects, 2)
    y = (torch.arange(size[0], dtype=torch.float64) + 0.5) * stride_y
    x = (torch.arange(size[1], dtype=torch.float64) + 0.5) * stride_x
    centers = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).flip(-1)  # (h, w, 2), (x, y)
    centers = centers[:, :, None]  # (h, w, 1, 2)
    corners = torch.cat([centers - sides / 2, centers + sides / 2], -1)  # (h, w, octaves * aspects, 4)
    return corners.reshape(-1, 4)


@functools.lru_cache(maxsize=32)
def make_anchors(spec: ModelSpec, image_size: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """Anchors of every level (section 4.1).

    They are made once for each spec, size and device, and shared: do not write into the result. A stride is the image
    size over the feature map's size, so it is a fraction if the image size is not a multiple of 2**level.

    Args:
        spec: gives levels, scale, octaves and aspects.
        image_size: (height, width) of the network's input in pixels.
        device: the device of the result.

    Returns:
        (A, 4) float32 boxes_xyxy in pixels of the network's input, ordered level (finest first), row, column, octave,
        aspect; computed in float64, then rounded.
    """
    sizes = level_sizes(image_size, spec.levels)
    # A plain tensor even when it is first made in inference mode: training shares it.
    with torch.inference_mode(False):
        anchors = torch.cat(
            [level_anchors(spec, size, (image_size[0] / size[0], image_size[1] / size[1])) for size in sizes]
        )
        return anchors.float().to(device)
