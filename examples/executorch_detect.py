"""Detect objects with a raw ExecuTorch file: python executorch_detect.py people.pte photo.jpg."""

import json
import sys
from pathlib import Path

import torch
from executorch.runtime import Runtime
from raw_outputs import find_objects, prepare

program = Runtime.get().load_program(Path(sys.argv[1]))
metadata = json.loads(program.load_method("efficientdet").execute([])[0])

images, image_size = prepare(sys.argv[2], metadata)
logits, deltas = (output[0].numpy() for output in program.load_method("forward").execute([torch.from_numpy(images)]))
for detection in find_objects(logits, deltas, metadata, image_size):
    print(json.dumps(detection))
