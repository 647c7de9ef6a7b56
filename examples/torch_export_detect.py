"""Detect objects with an end-to-end torch.export file: python torch_export_detect.py people.pt2 photo.jpg."""

import json
import sys

import numpy as np
import torch
from PIL import Image, ImageOps

extra = {"efficientdet.json": ""}
module = torch.export.load(sys.argv[1], extra_files=extra).module()
metadata = json.loads(extra["efficientdet.json"])
height, width = metadata["image_size"]

image = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB")
scale = min(height / image.height, width / image.width)
small = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BILINEAR)
canvas = torch.zeros(1, height, width, 3, dtype=torch.uint8)
canvas[0, : small.height, : small.width] = torch.from_numpy(np.array(small))

with torch.no_grad():
    boxes, scores, labels, counts = module(canvas, torch.tensor([[image.height, image.width]]))
for i in range(int(counts[0])):
    line = {"class": metadata["class_names"][labels[0, i]], "score": float(scores[0, i])}
    print(json.dumps({**line, "box_xyxy": boxes[0, i].tolist()}))
