"""Detect objects with an end-to-end ONNX file: python onnxruntime_detect.py people.onnx photo.jpg."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
metadata = json.loads(session.get_modelmeta().custom_metadata_map["efficientdet"])
height, width = metadata["image_size"]

image = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB")
scale = min(height / image.height, width / image.width)
small = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BILINEAR)
canvas = np.zeros((1, height, width, 3), np.uint8)
canvas[0, : small.height, : small.width] = small

boxes, scores, labels, counts = session.run(
    ["boxes_xyxy", "scores", "labels", "counts"],
    {"images": canvas, "image_sizes": np.array([[image.height, image.width]])},
)
for box, score, label in zip(boxes[0, : counts[0]], scores[0], labels[0], strict=False):
    print(json.dumps({"class": metadata["class_names"][label], "score": float(score), "box_xyxy": box.tolist()}))
