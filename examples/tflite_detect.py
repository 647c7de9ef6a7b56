"""Detect objects with a raw LiteRT (TensorFlow Lite) file: python tflite_detect.py people.tflite photo.jpg."""

import json
import sys
import zipfile

from ai_edge_litert.interpreter import Interpreter
from raw_outputs import find_objects, prepare

network = Interpreter(sys.argv[1]).get_signature_runner()
with zipfile.ZipFile(sys.argv[1]) as archive:
    metadata = json.loads(archive.read("efficientdet.json"))

images, image_size = prepare(sys.argv[2], metadata)
(name,) = network.get_input_details()
logits, deltas = (output[0] for _, output in sorted(network(**{name: images}).items()))
for detection in find_objects(logits, deltas, metadata, image_size):
    print(json.dumps(detection))
