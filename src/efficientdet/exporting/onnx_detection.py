"""Before and behind a raw ONNX network: normalizing, decoding, suppression, so that one file goes from bytes to boxes.

The nodes say what `images.prepare` and `inference.postprocess` do, with ONNX's NonMaxSuppression in the middle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from efficientdet.boxes import MAX_LOG_RATIO
from efficientdet.family import ModelSpec
from efficientdet.images.letterbox import Preprocessing
from efficientdet.inference.settings import PostprocessSettings

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

# The raw network's input, once it is no longer the file's.
NORMALIZED = "normalized_images"


class Nodes:
    """Nodes in the making: each call adds one and gives the name of its output."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[NodeProto] = []
        self.constants: list[Any] = []

    def __call__(self, kind: str, *inputs: str | NDArray[Any], name: str | None = None, **attributes: Any) -> str:
        """Add a node with one output that is read; arrays among the inputs become constants."""
        return self.many(kind, 1, *inputs, names=None if name is None else [name], **attributes)[0]

    def many(
        self, kind: str, outputs: int, *inputs: str | NDArray[Any], names: list[str] | None = None, **attributes: Any
    ) -> list[str]:
        """Add a node with several outputs."""
        from onnx import helper

        own = f"{self.prefix}_{len(self.nodes)}_{kind}"
        given = names or [f"{own}_{number}" for number in range(outputs)]
        read = [value if isinstance(value, str) else self._constant(value) for value in inputs]
        self.nodes.append(helper.make_node(kind, read, given, name=own, **attributes))
        return given

    def _constant(self, value: NDArray[Any]) -> str:
        from onnx import numpy_helper

        name = f"{self.prefix}_constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name))
        return name


def add_detection(
    graph: ModelProto,
    spec: ModelSpec,
    preprocessing: Preprocessing,
    settings: PostprocessSettings,
    anchors_xyxy: NDArray[np.float32] | None,
) -> None:
    """Turn a raw network into one from bytes to boxes; changes the graph.

    Args:
        graph: as `onnx_network` gives it.
        spec: of the network.
        preprocessing: mean and std.
        settings: thresholds and counts; hard NMS over (anchor, class) pairs.
        anchors_xyxy: (A, 4) for a fixed size; None to compute them from the input's size, all of whose sides are then
            multiples of the coarsest stride.
    """
    from onnx import TensorProto, helper

    own = graph.graph
    for node in own.node:
        for place, name in enumerate(node.input):
            if name == "images":
                node.input[place] = NORMALIZED
    batch, _, height, width = (
        dim.dim_param or dim.dim_value for dim in own.input[0].type.tensor_type.shape.dim
    )  # fmt: skip
    front, back = Nodes("front"), Nodes("back")
    canvas = normalize_input(front, preprocessing)
    anchors = anchors_xyxy if anchors_xyxy is not None else make_anchor_nodes(back, spec, canvas)
    detect(back, anchors, canvas, settings)
    nodes = [*front.nodes, *own.node, *back.nodes]
    del own.node[:], own.input[:], own.output[:]
    own.node.extend(nodes)
    own.initializer.extend([*front.constants, *back.constants])
    own.input.extend([
        helper.make_tensor_value_info("images", TensorProto.UINT8, [batch, height, width, 3]),
        helper.make_tensor_value_info("image_sizes", TensorProto.INT64, [batch, 2]),
    ])  # fmt: skip
    own.output.extend([
        helper.make_tensor_value_info("boxes_xyxy", TensorProto.FLOAT, [batch, "detections", 4]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, "detections"]),
        helper.make_tensor_value_info("labels", TensorProto.INT64, [batch, "detections"]),
        helper.make_tensor_value_info("counts", TensorProto.INT64, [batch]),
    ])  # fmt: skip
    del own.value_info[:]  # of the shapes before; runtimes infer them


def _ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def _number(value: float) -> NDArray[np.float32]:
    return np.array(value, np.float32)


def normalize_input(n: Nodes, preprocessing: Preprocessing) -> str:
    """(B, H, W, 3) bytes to the normalized input, 0 outside the picture; gives the canvas' (height, width), (2,)."""
    canvas = n("Slice", n("Shape", "images"), _ints(1), _ints(3))  # (2,): H, W
    # min(H / h, W / w) in whole numbers: each side is min(own, side * other canvas // other side), at least 1.
    swapped = n("Gather", "image_sizes", _ints(1, 0), axis=1)
    fitting = n("Div", n("Mul", "image_sizes", n("Gather", canvas, _ints(1, 0), axis=0)), swapped)
    extents = n("Max", n("Min", fitting, canvas), _ints(1))  # (B, 2): the picture's height and width on the canvas
    inside = []
    for axis in (0, 1):
        side = n("Squeeze", n("Gather", canvas, _ints(axis), axis=0))
        places = n("Range", np.array(0, np.int64), side, np.array(1, np.int64))
        inside.append(n("Less", places, n("Gather", extents, _ints(axis), axis=1)))  # (B, H) and (B, W)
    rows, columns = n("Unsqueeze", inside[0], _ints(2, 3)), n("Unsqueeze", inside[1], _ints(1, 3))
    mean, std = np.asarray(preprocessing.mean, np.float32), np.asarray(preprocessing.std, np.float32)
    pixels = n("Div", n("Sub", n("Cast", "images", to=1), mean), std)
    n("Transpose", n("Where", n("And", rows, columns), pixels, _number(0)), name=NORMALIZED, perm=[0, 3, 1, 2])
    return canvas


def make_anchor_nodes(n: Nodes, spec: ModelSpec, canvas: str) -> str:
    """(A, 4) anchors from the size of the input, whose sides are multiples of the coarsest stride."""
    levels = []
    for stride in spec.strides:
        centers = []
        for axis in (1, 0):
            side = n("Squeeze", n("Div", n("Gather", canvas, _ints(axis), axis=0), _ints(stride)))
            cells = n("Range", np.array(0, np.int64), side, np.array(1, np.int64))
            centers.append(n("Mul", n("Add", n("Cast", cells, to=1), _number(0.5)), _number(stride)))
        x = n("Unsqueeze", centers[0], _ints(0, 2, 3))  # (1, w, 1, 1)
        y = n("Unsqueeze", centers[1], _ints(1, 2, 3))  # (h, 1, 1, 1)
        x = n("Mul", x, np.array([1, 0, 1, 0], np.float32))
        y = n("Mul", y, np.array([0, 1, 0, 1], np.float32))
        corners = n("Add", n("Add", x, y), _corner_offsets(spec, stride))  # (h, w, octaves * aspects, 4)
        levels.append(n("Reshape", corners, _ints(-1, 4)))
    return n("Concat", *levels, axis=0)


def _corner_offsets(spec: ModelSpec, stride: int) -> NDArray[np.float32]:
    """(octaves * aspects, 4): from the center of a cell to the corners of its anchors."""
    sides = [
        (wide * spec.anchor_scale * stride * 2 ** (octave / spec.octaves),
         high * spec.anchor_scale * stride * 2 ** (octave / spec.octaves))
        for octave in range(spec.octaves)
        for wide, high in spec.aspects
    ]  # fmt: skip
    half = np.array(sides) / 2
    return np.concatenate([-half, half], 1).astype(np.float32)


def detect(n: Nodes, anchors: str | NDArray[np.float32], canvas: str, settings: PostprocessSettings) -> None:
    """`class_logits` and `box_deltas` to `boxes_xyxy`, `scores`, `labels` and `counts`."""
    logits, labels, chosen = select(n, settings.max_candidates)
    scores = n("Sigmoid", logits)
    threshold = _number(settings.score_threshold)
    scores = n("Where", n("GreaterOrEqual", scores, threshold), scores, _number(0))
    sizes = n("Cast", "image_sizes", to=1)  # (B, 2)
    scale = n("ReduceMin", n("Div", n("Cast", canvas, to=1), sizes), _ints(1), keepdims=1)  # (B, 1)
    deltas = n("GatherND", "box_deltas", n("Unsqueeze", chosen, _ints(2)), batch_dims=1)
    boxes = decode(n, deltas, n("Gather", anchors, chosen, axis=0))  # (B, N, 4)
    boxes = clip(n, boxes, n("Mul", sizes, scale))
    kept = suppress(n, boxes, scores, labels, settings)  # (B, N): the scores of what suppression leaves
    most = n("Min", n("Slice", n("Shape", kept), _ints(1), _ints(2)), _ints(settings.max_detections))
    best, order = n.many("TopK", 2, kept, most, names=["scores", "order"], axis=1)
    real = n("Greater", best, _number(0))
    n("ReduceSum", n("Cast", real, to=7), _ints(1), name="counts", keepdims=0)
    n("Mul", n("GatherElements", labels, order, axis=1), n("Cast", real, to=7), name="labels")
    boxes = n("GatherND", boxes, n("Unsqueeze", order, _ints(2)), batch_dims=1)
    boxes = clip(n, n("Div", boxes, n("Unsqueeze", scale, _ints(2))), sizes)
    n("Where", n("Unsqueeze", real, _ints(2)), boxes, _number(0), name="boxes_xyxy")


def select(n: Nodes, max_candidates: int) -> tuple[str, str, str]:
    """The best (anchor, class) pairs: logits, labels and anchors' places, (B, N) each, best first."""
    shape = n("Shape", "class_logits")
    classes = n("Slice", shape, _ints(2), _ints(3))
    # The best pairs lie in the anchors whose best class is best.
    best = n("ReduceMax", "class_logits", _ints(2), keepdims=0)  # (B, A)
    _, anchors = n.many("TopK", 2, best, n("Min", n("Slice", shape, _ints(1), _ints(2)), _ints(max_candidates)), axis=1)
    pairs = n("GatherND", "class_logits", n("Unsqueeze", anchors, _ints(2)), batch_dims=1)
    flat = n("Reshape", pairs, _ints(0, -1))
    count = n("Min", n("Slice", n("Shape", flat), _ints(1), _ints(2)), _ints(max_candidates))
    logits, places = n.many("TopK", 2, flat, count, axis=1)
    return logits, n("Mod", places, classes), n("GatherElements", anchors, n("Div", places, classes), axis=1)


def decode(n: Nodes, deltas: str, anchors: str) -> str:
    """As `boxes.decode_deltas`: (B, N, 4) both."""
    first, second = _ints(0), _ints(2)
    corner = n("Slice", anchors, first, second, second)
    sides = n("Sub", n("Slice", anchors, second, _ints(4), second), corner)
    centers = n("Add", corner, n("Mul", sides, _number(0.5)))
    centers = n("Add", n("Mul", n("Slice", deltas, first, second, second), sides), centers)
    ratios = n("Min", n("Slice", deltas, second, _ints(4), second), _number(MAX_LOG_RATIO))
    half = n("Mul", n("Mul", n("Exp", ratios), _number(0.5)), sides)
    return n("Concat", n("Sub", centers, half), n("Add", centers, half), axis=2)


def clip(n: Nodes, boxes: str, sizes: str) -> str:
    """Corners of (B, N, 4) boxes within the (B, 2) heights and widths."""
    limits = n("Unsqueeze", n("Gather", sizes, _ints(1, 0, 1, 0), axis=1), _ints(1))  # (B, 1, 4)
    return n("Min", n("Max", boxes, _number(0)), limits)


def suppress(n: Nodes, boxes: str, scores: str, labels: str, settings: PostprocessSettings) -> str:
    """(B, N) scores, 0 where hard NMS within the class drops the box."""
    # NonMaxSuppression wants a score for each box and class: 0 for all classes but the box's own.
    classes = n("Slice", n("Shape", "class_logits"), _ints(2), _ints(3))
    own = n("OneHot", labels, classes, np.array([0, 1], np.float32), axis=1)  # (B, K, N)
    by_class = n("Mul", own, n("Unsqueeze", scores, _ints(1)))
    chosen = n(
        "NonMaxSuppression", boxes, by_class, np.array(settings.max_detections, np.int64),
        np.array(settings.iou_threshold, np.float32), np.array(0, np.float32),
    )  # fmt: skip
    places = n("Gather", chosen, _ints(0, 2), axis=1)  # (S, 2): picture and box
    ones = n("Expand", _number(1), n("Slice", n("Shape", places), _ints(0), _ints(1)))
    nothing = n("Mul", scores, _number(0))
    return n("Mul", scores, n("ScatterND", nothing, places, ones))
