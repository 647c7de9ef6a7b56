"""The folder of a model in the repository of NVIDIA's Triton Inference Server: `config.pbtxt`, labels, an ONNX file.

The format is that of `model_config.proto` in https://github.com/triton-inference-server/common.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from efficientdet.atomic_write import write_text
from efficientdet.errors import require
from efficientdet.inference.detector import BATCH_SIZE
from efficientdet.inference.engines.metadata import FileMetadata

if TYPE_CHECKING:
    from onnx import ValueInfoProto

MODEL_FILE, LABELS_FILE, CONFIG_FILE = "1/model.onnx", "labels.txt", "config.pbtxt"  # 1 is the model's version
# By the name of ONNX.
TYPES = {"UINT8": "TYPE_UINT8", "INT64": "TYPE_INT64", "FLOAT": "TYPE_FP32"}
# Outputs whose numbers are classes.
CLASSES = ("labels", "class_logits")


def write_config(folder: Path, metadata: FileMetadata) -> None:
    """Write `config.pbtxt` and `labels.txt` beside the ONNX file, which takes any number of images.

    Requests that arrive within a millisecond go through the network together. The folder's name is the model's.
    """
    graph = require("onnx", "export").load(str(folder / MODEL_FILE), load_external_data=False).graph
    names = (" ".join(name.splitlines()) for name in metadata.checkpoint.class_names)
    write_text(folder / LABELS_FILE, "".join(f"{name}\n" for name in names))
    parts = [
        'backend: "onnxruntime"',
        f"max_batch_size: {BATCH_SIZE}",
        *(f"input {_tensor(tensor)}" for tensor in graph.input),
        *(f"output {_tensor(tensor)}" for tensor in graph.output),
        "dynamic_batching { max_queue_delay_microseconds: 1000 }",
    ]
    write_text(folder / CONFIG_FILE, "\n".join(parts) + "\n")


def _tensor(tensor: ValueInfoProto) -> str:
    """An input or output, without the dimension of the batch; -1 is any size."""
    from onnx import TensorProto

    own = tensor.type.tensor_type
    dims = [one.dim_value or -1 for one in own.shape.dim][1:]
    # Triton knows no tensor without dimensions: a number for each image is a list of one.
    shape = f"dims: {dims}" if dims else "dims: [1] reshape { shape: [] }"
    labels = f' label_filename: "{LABELS_FILE}"' if tensor.name in CLASSES else ""
    return f'{{ name: "{tensor.name}" data_type: {TYPES[TensorProto.DataType.Name(own.elem_type)]} {shape}{labels} }}'
