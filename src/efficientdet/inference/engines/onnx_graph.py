"""The network as an ONNX graph: images in, raw outputs out."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from efficientdet.atomic_write import replacing
from efficientdet.errors import require
from efficientdet.inference.engines.fold import fold
from efficientdet.inference.engines.metadata import RAW_OUTPUTS
from efficientdet.network.efficientdet import EfficientDet

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

OPSET = 18


class FlatNetwork(nn.Module):
    """A network folded for inference, in float32 on the CPU, whose outputs stand side by side.

    Args:
        model: the network; not changed.
        by_level: give first class logits, then box deltas, by level; otherwise two outputs that hold all levels.
    """

    def __init__(self, model: EfficientDet, by_level: bool = False) -> None:
        super().__init__()
        self.model = fold(model).cpu().float()
        self.by_level = by_level

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) normalized images to (B, A, K) class logits and (B, A, 4) box deltas."""
        class_logits, box_deltas = self.model(images)
        if self.by_level:
            return (*class_logits, *box_deltas)
        return torch.cat(class_logits, 1), torch.cat(box_deltas, 1)


def onnx_network(
    model: EfficientDet, image_size: tuple[int, int], *, dynamic_batch: bool = True, dynamic_size: bool = False,
    by_level: bool = False,
) -> ModelProto:  # fmt: skip
    """Translate a network, folded for inference, to ONNX.

    Args:
        model: the network; not changed.
        image_size: (height, width) of the input.
        dynamic_batch: whether the graph takes any number of images, or one.
        dynamic_size: whether it takes any height and width that are multiples of the coarsest stride, as `image_size`
            must be then.
        by_level: whether each level is an output of its own, which saves a copy: `class_logits_3`, ...

    Returns:
        A graph (opset 18) with the input `images` (B, 3, H, W) float32, RGB, normalized as the spec says, and the
        outputs `class_logits` (B, A, K) and `box_deltas` (B, A, 4), anchors in the order of `EfficientDet.anchors`.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
    """
    require("onnx", "export")
    require("onnxscript", "export")
    levels = range(model.spec.levels[0], model.spec.levels[1] + 1)
    names = [f"{name}_{level}" for name in RAW_OUTPUTS for level in levels] if by_level else list(RAW_OUTPUTS)
    # With an example of one image the batch would be taken for the constant 1.
    example = torch.zeros(2 if dynamic_batch else 1, 3, *image_size)
    with quiet("torch.onnx"):
        program = torch.onnx.export(
            FlatNetwork(model, by_level).eval(), (example,), input_names=["images"], output_names=names,
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}} if dynamic_batch else None,
            opset_version=OPSET, dynamo=True, verbose=False,
        )  # fmt: skip
    assert program is not None
    graph: ModelProto = program.model_proto
    merge_pads(graph)
    separate_biases(graph)
    free_shapes(graph, dynamic_size)
    return graph


def free_shapes(graph: ModelProto, free_size: bool) -> None:
    """Take out what the example's size left in a graph that is true for other sizes too; changes the graph.

    Where both sides are multiples of the coarsest stride, every map is exactly half the one before: paddings and
    factors of resizing are the same whatever the size, and only the shapes of inputs and outputs hold it.
    """
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    for node in graph.graph.node:
        shape = constants.get(node.input[1]) if node.op_type == "Reshape" else None
        if shape is not None and list(shape.dims) == [3]:  # an output's: batch, anchors, K or 4
            outputs = numpy_helper.to_array(shape)[2]
            shape.CopyFrom(numpy_helper.from_array(np.array([0, -1, outputs], dtype=np.int64), shape.name))
            del node.attribute[:]  # `allowzero`: now 0 stands for the batch
    if not free_size:
        return
    del graph.graph.value_info[:]
    for value, names in [(graph.graph.input[0], {2: "height", 3: "width"})] + [
        (output, {1: f"anchors_{number}"}) for number, output in enumerate(graph.graph.output)
    ]:
        for axis, name in names.items():
            value.type.tensor_type.shape.dim[axis].dim_param = name


@contextlib.contextmanager
def quiet(library: str) -> Iterator[None]:
    """Keep the progress, reports and warnings of a library, by the name of its logger, away from the user."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def write_onnx_network(model: EfficientDet, path: str | Path, image_size: tuple[int, int], **choices: bool) -> None:
    """Write `onnx_network` to a file, whole or not at all."""
    import onnx

    graph = onnx_network(model, image_size, **choices)
    with replacing(path) as temporary:
        onnx.save(graph, str(temporary))


def merge_pads(graph: ModelProto) -> None:
    """Let poolings do the padding right before them by themselves; changes the graph.

    ONNX pads each side by itself, as TensorFlow's SAME needs, while torch pads both sides alike and so needs an
    operation, and a copy of the map, of its own. Convolutions are merged with their paddings by the exporter already.
    """
    from onnx import helper, numpy_helper

    nodes = graph.graph.node
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    readers: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for pad in [node for node in nodes if node.op_type == "Pad"]:
        users = readers.get(pad.output[0], [])
        amounts, value = (constants.get(name) for name in pad.input[1:3])
        is_pool = [user.op_type for user in users] == ["MaxPool"]
        if not is_pool or amounts is None or value is None or not np.isneginf(value):
            continue
        (pool,) = users
        kept = [attribute for attribute in pool.attribute if attribute.name not in ("pads", "auto_pad")]
        had = [list(attribute.ints) for attribute in pool.attribute if attribute.name == "pads"] or [[0, 0, 0, 0]]
        sides = np.asarray(had[0]) + amounts[[2, 3, 6, 7]]  # top, left, bottom, right
        del pool.attribute[:]
        pool.attribute.extend([*kept, helper.make_attribute("pads", sides.tolist())])
        pool.input[0] = pad.input[0]
        nodes.remove(pad)
    read = {name for node in nodes for name in node.input}
    kept_constants = [tensor for tensor in graph.graph.initializer if tensor.name in read]
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(kept_constants)


def separate_biases(graph: ModelProto) -> None:
    """Give each convolution a bias of its own; changes the graph.

    The heads' last convolutions share theirs between the levels, and OpenVINO adds a bias that it finds twice in an
    operation of its own, which writes the whole map of the class logits again.
    """
    found, seen = {tensor.name: tensor for tensor in graph.graph.initializer}, set[str]()
    for node in graph.graph.node:
        if node.op_type == "Conv" and len(node.input) > 2:
            shared = node.input[2]
            if shared in seen:
                own = graph.graph.initializer.add()
                own.CopyFrom(found[shared])
                own.name = node.input[2] = f"{shared}@{len(seen)}"
            seen.add(node.input[2])
