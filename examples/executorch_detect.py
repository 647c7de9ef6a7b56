"""Detect objects with a raw ExecuTorch file: python executorch_detect.py people.pte photo.jpg.

The file gives raw outputs, so this program decodes and suppresses by itself: the same in numpy goes for every raw file.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from executorch.runtime import Runtime
from PIL import Image, ImageOps

program = Runtime.get().load_program(Path(sys.argv[1]))
facts = json.loads(program.load_method("efficientdet").execute([])[0])
height, width = facts["image_size"]

image = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB")
scale = min(height / image.height, width / image.width)
small = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BILINEAR)
pixels = np.zeros((height, width, 3), np.float32)
mean, std = (np.array(facts["preprocessing"][name], np.float32) for name in ("mean", "std"))
pixels[: small.height, : small.width] = (np.array(small) - mean) / std
images = torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()
logits, deltas = (output[0].numpy() for output in program.load_method("forward").execute([images]))

anchors = facts["anchors"]  # as (center x, center y, width, height), by level, row, column, octave, aspect
boxes = []
for level in range(anchors["levels"][0], anchors["levels"][1] + 1):
    rows, columns = -(-height // 2**level), -(-width // 2**level)
    y, x = np.meshgrid(np.arange(rows) + 0.5, np.arange(columns) + 0.5, indexing="ij")
    for octave in range(anchors["octaves"]):
        for wide, high in anchors["aspects"]:
            side = anchors["scale"] * 2 ** (octave / anchors["octaves"])
            cell = np.stack([x, y, np.full_like(x, side * wide), np.full_like(x, side * high)], -1)
            boxes.append(cell * np.array([width / columns, height / rows] * 2))
per_cell = anchors["octaves"] * len(anchors["aspects"])
levels = [np.stack(boxes[i : i + per_cell], 2).reshape(-1, 4) for i in range(0, len(boxes), per_cell)]
center, size = np.split(np.concatenate(levels), 2, 1)
center, half = center + deltas[:, :2] * size, size * np.exp(np.minimum(deltas[:, 2:], np.log(1000 / 16))) / 2
corners = np.concatenate([center - half, center + half], 1) / scale
corners = np.clip(corners, 0, [image.width, image.height] * 2)

scores = 1 / (1 + np.exp(-logits))
settings = facts["postprocess"]
kept: list[tuple[int, int]] = []
for flat in np.argsort(-scores, axis=None):
    anchor, label = divmod(int(flat), scores.shape[1])
    if scores[anchor, label] < settings["score_threshold"] or len(kept) == settings["max_detections"]:
        break
    for other, other_label in kept:
        low = np.maximum(corners[anchor, :2], corners[other, :2])
        high = np.minimum(corners[anchor, 2:], corners[other, 2:])
        shared = np.prod(np.maximum(high - low, 0))
        areas = [np.prod(corners[i, 2:] - corners[i, :2]) for i in (anchor, other)]
        if label == other_label and shared > settings["iou_threshold"] * (sum(areas) - shared):
            break
    else:
        kept.append((anchor, label))
        line = {"class": facts["class_names"][label], "score": float(scores[anchor, label])}
        print(json.dumps({**line, "box_xyxy": corners[anchor].tolist()}))
