"""Detect objects with an end-to-end OpenVINO file: python openvino_detect.py people.xml photo.jpg."""

import json
import sys

import numpy as np
import openvino
from PIL import Image, ImageOps

core = openvino.Core()
model = core.read_model(sys.argv[1])
metadata = json.loads(model.get_rt_info("efficientdet").astype(str))
height, width = metadata["image_size"]
# Without the hint OpenVINO computes in bfloat16 where the processor has it: faster, a little less exact.
compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

image = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB")
scale = min(height / image.height, width / image.width)
small = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BILINEAR)
canvas = np.zeros((1, height, width, 3), np.uint8)
canvas[0, : small.height, : small.width] = small

found = compiled({"images": canvas, "image_sizes": np.array([[image.height, image.width]])})
boxes, scores, labels = found["boxes_xyxy"][0], found["scores"][0], found["labels"][0]
for i in range(found["counts"][0]):
    line = {"class": metadata["class_names"][labels[i]], "score": float(scores[i]), "box_xyxy": boxes[i].tolist()}
    print(json.dumps(line))
