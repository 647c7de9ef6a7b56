"""ONNX files: writing, and opening in ONNX Runtime."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim

from efficientdet.errors import require
from efficientdet.exporting.end_to_end import EndToEnd
from efficientdet.exporting.formats import OpenedFile, layer_name
from efficientdet.family import level_sizes
from efficientdet.inference.detector import Detector
from efficientdet.inference.engines.engine import as_tensors
from efficientdet.inference.engines.exported import open_file as open_exported
from efficientdet.inference.engines.metadata import DETECTION_OUTPUTS, RAW_OUTPUTS, FileMetadata, add_checksum
from efficientdet.inference.engines.onnx_graph import OPSET, onnx_network, quiet
from efficientdet.inference.engines.runtimes import as_session, open_onnx
from efficientdet.inference.engines.session import Session
from efficientdet.inference.settings import PostprocessSettings
from efficientdet.weights.info import METADATA_KEY

if TYPE_CHECKING:
    from onnx import ModelProto

# Sizes that a file of dynamic size is traced for, in multiples of the coarsest stride.
MOST_STRIDES = 64
# Before the names of what an end-to-end file does before and after the network.
AROUND = "detection/"


def write(detector: Detector, path: Path, metadata: FileMetadata) -> None:
    """Write `make_onnx` to a file, with its checksum."""
    require("onnx", "export").save(make_onnx(detector, metadata), str(path))
    add_checksum(path)


def make_onnx(detector: Detector, metadata: FileMetadata) -> ModelProto:
    """A detector as an ONNX model (opset 18) that is what its metadata say.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
    """
    onnx = require("onnx", "export")
    graph = onnx_network(
        detector.model,
        metadata.image_size,
        dynamic_batch=metadata.dynamic_batch,
        dynamic_size=metadata.dynamic_size,
    )
    _name_convolutions(graph)
    if metadata.precision == "fp16":
        halve_weights(graph)
    if metadata.end_to_end:
        graph = _between(_front_and_back(metadata), graph)
    for node in graph.graph.node:
        node.ClearField("metadata_props")  # what the exporter notes of each: paths of this machine, 0.8 MB for lite0
    onnx.helper.set_model_props(graph, {METADATA_KEY: metadata.to_json()})
    onnx.checker.check_model(graph)
    return graph


def _name_convolutions(graph: ModelProto) -> None:
    """Call each convolution as the network does (`backbone.conv_stem`), with `@1`, ... from its second call on."""
    calls: Counter[str] = Counter()
    for node in graph.graph.node:
        if node.op_type == "Conv":
            name = layer_name(node.input[1])
            node.name = f"{name}@{calls[name]}" if calls[name] else name
            calls[name] += 1


def halve_weights(graph: ModelProto) -> None:
    """Store convolutions' weights as float16, with a cast behind each; changes the graph.

    Biases stay: they are few. Runtimes fold the casts when they load the file, so it runs as fast as before.
    """
    from onnx import TensorProto, helper, numpy_helper

    own = graph.graph
    weights = {node.input[1] for node in own.node if node.op_type == "Conv"}
    casts = []
    for tensor in own.initializer:
        if tensor.name in weights and tensor.data_type == TensorProto.FLOAT:
            name, values = tensor.name, numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
            casts.append(helper.make_node("Cast", [f"{name}.half"], [name], f"{name}.cast", to=TensorProto.FLOAT))
    nodes = [*casts, *own.node]
    del own.node[:]
    own.node.extend(nodes)


class _Gap(nn.Module):
    """Stands in an exported graph for the network, as one node that `_between` replaces."""

    def __init__(self, metadata: FileMetadata) -> None:
        super().__init__()
        self.classes, self.spec = len(metadata.checkpoint.class_names), metadata.checkpoint.spec

    def forward(self, images: Tensor) -> Sequence[Tensor]:
        """(B, 3, H, W) to (B, A, K) and (B, A, 4)."""
        sizes = level_sizes((images.shape[2], images.shape[3]), self.spec.levels)
        anchors = sum(height * width for height, width in sizes) * self.spec.anchors_per_cell
        shapes = [(images.shape[0], anchors, outputs) for outputs in (self.classes, 4)]
        return torch.onnx.ops.symbolic_multi_out(
            f"{METADATA_KEY}::Gap", (images,), dtypes=(torch.float32, torch.float32), shapes=shapes, version=1
        )


@torch.library.custom_op(f"{METADATA_KEY}::suppress", mutates_args=())
def _suppress(boxes: Tensor, class_scores: Tensor, most: int, iou_threshold: float) -> Tensor:
    """(B, N, 4) and (B, K, N) scores of a box's own class to (B, N), 0 where NMS drops the box; for exporting alone."""
    raise NotImplementedError


@_suppress.register_fake
def _(boxes: Tensor, class_scores: Tensor, most: int, iou_threshold: float) -> Tensor:
    return class_scores.amax(1)


def _suppress_by_node(
    boxes: Tensor, scores: Tensor, labels: Tensor, settings: PostprocessSettings, classes: int
) -> Tensor:
    """Hard NMS by ONNX's own operation, which wants a score for each class: 0 for all but the box's own."""
    is_own = torch.arange(classes)[None, :, None] == labels[:, None]  # (B, K, N)
    kept: Tensor = _suppress(boxes, is_own * scores[:, None], settings.max_detections, settings.iou_threshold)
    return kept


def _onnx_suppress(boxes: Any, class_scores: Any, most: int, iou_threshold: float) -> Any:
    """`_suppress` in ONNX's operations."""
    from onnxscript import opset18 as op

    def ints(*values: int) -> Any:
        return op.Constant(value_ints=values)

    def number(value: float) -> Any:
        return op.Constant(value_float=value)

    limits: Any = (op.Constant(value_int=most), number(iou_threshold), number(0.0))
    chosen = op.NonMaxSuppression(boxes, class_scores, *limits)  # (S, 3): image, class, box
    places = op.Gather(chosen, ints(0, 2), axis=1)
    ones = op.Expand(number(1.0), op.Slice(op.Shape(places), ints(0), ints(1)))
    scores = op.ReduceMax(class_scores, ints(1), keepdims=0)
    return op.Mul(scores, op.ScatterND(op.Mul(scores, number(0.0)), places, ones))


def _front_and_back(metadata: FileMetadata) -> ModelProto:
    """What an end-to-end file does before and after the network, around a node that stands for it."""
    classes = len(metadata.checkpoint.class_names)
    suppress = functools.partial(_suppress_by_node, classes=classes)
    height, width = metadata.image_size
    axes: dict[int, Any] = {0: Dim("batch", min=1)} if metadata.dynamic_batch else {}
    image_axes, batch = dict(axes), 2 if metadata.dynamic_batch else 1
    if metadata.dynamic_size:
        stride = metadata.checkpoint.spec.strides[-1]
        image_axes |= {
            axis + 1: stride * Dim(name, min=1, max=MOST_STRIDES) for axis, name in enumerate(("rows", "columns"))
        }
        height, width = 2 * stride, 3 * stride  # two sides of different length are not taken for one
    example = torch.zeros(batch, height, width, 3, dtype=torch.uint8), torch.tensor([[height, width]] * batch)
    with quiet("torch.onnx"):
        program = torch.onnx.export(
            EndToEnd(_Gap(metadata), metadata, suppress).eval(), example, input_names=["images", "image_sizes"],
            output_names=list(DETECTION_OUTPUTS), dynamic_shapes={"images": image_axes, "image_sizes": axes},
            opset_version=OPSET, dynamo=True, verbose=False,
            custom_translation_table={torch.ops.efficientdet.suppress.default: _onnx_suppress},
        )  # fmt: skip
    assert program is not None
    return program.model_proto


def _between(around: ModelProto, network: ModelProto) -> ModelProto:
    """Put the network in the place of the node that stands for it."""
    from onnx import compose

    around = compose.add_prefix(around, AROUND, rename_inputs=False, rename_outputs=False)
    own, inner = around.graph, network.graph
    nodes = list(own.node)
    (place,) = (number for number, node in enumerate(nodes) if node.op_type == "Gap")
    gap = nodes[place]
    names = {"images": gap.input[0]}
    for node in inner.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    names = dict(zip(gap.output, RAW_OUTPUTS, strict=True))
    for node in nodes[place + 1 :]:
        node.input[:] = [names.get(name, name) for name in node.input]
    nodes[place : place + 1] = inner.node
    del own.node[:], own.value_info[:]
    own.node.extend(nodes)
    own.initializer.extend(inner.initializer)
    standard = [entry for entry in around.opset_import if not entry.domain]
    del around.opset_import[:]
    around.opset_import.extend(standard)
    return around


def open_file(path: Path) -> OpenedFile:
    """Open a file in ONNX Runtime.

    Raises:
        MissingExtraError: onnx or onnxruntime is not installed.
        WeightsError: it is damaged, or holds no metadata of ours.
    """
    metadata, open_session = open_exported(path, "onnxruntime")
    onnx = require("onnx", "export")

    @functools.cache
    def session_of(names: tuple[str, ...]) -> tuple[list[str], Session]:
        graph = onnx.load(str(path))
        convs = [node for node in graph.graph.node if node.op_type == "Conv"]
        found = [(layer_name(conv.input[1]), conv.output[0]) for conv in convs]
        found = [(name, output) for name, output in found if not names or name in names]
        own = {output.name for output in graph.graph.output}
        graph.graph.output.extend(onnx.ValueInfoProto(name=output) for _, output in found if output not in own)
        session = open_onnx(graph.SerializeToString())
        return [name for name, _ in found], as_session(session, [output for _, output in found])

    def convolutions(inputs: Sequence[NDArray[Any]], names: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
        layers, session = session_of(names)
        yield from zip(layers, as_tensors(session(*inputs)), strict=True)

    session = open_session(None, cached=False)
    return OpenedFile(metadata, lambda *inputs: as_tensors(session(*inputs)), convolutions)
