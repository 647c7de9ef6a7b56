"""Before and after a raw network, in numpy: for every file exported without --end-to-end, whatever runs it."""

import numpy as np
from PIL import Image, ImageOps


def prepare(path, metadata):
    """An image file as the network takes it, (1, 3, H, W) float32; and the (height, width) of the image."""
    height, width = metadata["image_size"]
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    scale = min(height / image.height, width / image.width)
    small = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BILINEAR)
    pixels = np.zeros((height, width, 3), np.float32)
    mean, std = (np.array(metadata["preprocessing"][name], np.float32) for name in ("mean", "std"))
    pixels[: small.height, : small.width] = (np.array(small) - mean) / std
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))[None], (image.height, image.width)


def make_anchors(metadata):
    """(A, 4) center x, center y, width, height, by level, row, column, octave, aspect."""
    (height, width), facts = metadata["image_size"], metadata["anchors"]
    octaves = [2 ** (octave / facts["octaves"]) for octave in range(facts["octaves"])]
    shapes = facts["scale"] * np.array([[octave * w, octave * h] for octave in octaves for w, h in facts["aspects"]])
    levels = []
    for level in range(facts["levels"][0], facts["levels"][1] + 1):
        rows, columns = -(-height // 2**level), -(-width // 2**level)
        y, x = np.meshgrid(np.arange(rows) + 0.5, np.arange(columns) + 0.5, indexing="ij")
        centers = np.repeat(np.stack([x, y], -1).reshape(-1, 1, 2), len(shapes), 1)
        boxes = np.concatenate([centers, np.broadcast_to(shapes, centers.shape)], -1).reshape(-1, 4)
        levels.append(boxes * np.array([width / columns, height / rows] * 2))
    return np.concatenate(levels)


def find_objects(logits, deltas, metadata, image_size):
    """(A, K) class logits and (A, 4) box deltas of one image to its detections, best first: dicts ready for JSON."""
    settings, (height, width) = metadata["postprocess"], image_size
    scale = min(metadata["image_size"][0] / height, metadata["image_size"][1] / width)
    center, size = np.split(make_anchors(metadata), 2, 1)
    center, half = center + deltas[:, :2] * size, size * np.exp(np.minimum(deltas[:, 2:], np.log(1000 / 16))) / 2
    corners = np.clip(np.concatenate([center - half, center + half], 1) / scale, 0, [width, height] * 2)
    scores = 1 / (1 + np.exp(-logits))
    thresholds = np.broadcast_to(settings["score_threshold"], scores.shape[1])  # one for all classes, or one for each
    anchors, labels = np.nonzero(scores >= thresholds.min())
    order = np.argsort(-scores[anchors, labels])[: settings["max_candidates"]]
    order = order[scores[anchors[order], labels[order]] >= thresholds[labels[order]]]
    found = []
    while len(order) and len(found) < settings["max_detections"]:
        best, rest = order[0], order[1:]
        anchor, label = anchors[best], labels[best]
        box, others = corners[anchor], corners[anchors[rest]]
        line = {"class": metadata["class_names"][label], "score": float(scores[anchor, label])}
        found.append({**line, "box_xyxy": box.tolist()})
        sides = np.minimum(others[:, 2:], box[2:]) - np.maximum(others[:, :2], box[:2])
        shared = np.prod(np.maximum(sides, 0), 1)
        union = np.prod(others[:, 2:] - others[:, :2], 1) + np.prod(box[2:] - box[:2]) - shared
        order = rest[(labels[rest] != label) | (shared <= settings["iou_threshold"] * union)]
    return found
