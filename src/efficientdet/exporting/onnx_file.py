"""ONNX files: writing, and running in ONNX Runtime."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from efficientdet.errors import require
from efficientdet.exporting.comparison_images import Batch
from efficientdet.exporting.metadata import KEY, file_facts, layer_name, read_facts
from efficientdet.exporting.onnx_detection import add_detection
from efficientdet.exporting.settings import ExportSettings
from efficientdet.inference.detector import Detector
from efficientdet.inference.engines.onnx_graph import OUTPUTS, onnx_network

if TYPE_CHECKING:
    from onnx import ModelProto


def make_onnx(detector: Detector, settings: ExportSettings) -> ModelProto:
    """A detector as an ONNX model, metadata included.

    Args:
        detector: the network, its facts, and the thresholds of an end-to-end file.
        settings: what the file shall be.

    Returns:
        The model, opset 18.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
    """
    onnx = require("onnx", "export")
    size, spec = detector.image_size, detector.model.spec
    graph = onnx_network(detector.model, size, dynamic_batch=settings.dynamic_batch, dynamic_size=settings.dynamic_size)
    name_convolutions(graph)
    if settings.half:
        halve_weights(graph)
    if settings.end_to_end:
        anchors = None if settings.dynamic_size else detector.model.anchors(size).cpu().numpy()
        add_detection(graph, spec, detector.info.preprocessing, detector.postprocess, anchors)
    onnx.helper.set_model_props(graph, {KEY: json.dumps(file_facts(detector, settings))})
    onnx.checker.check_model(graph)
    return graph


def write_onnx(detector: Detector, path: Path, settings: ExportSettings) -> None:
    """Write `make_onnx` to a file."""
    onnx = require("onnx", "export")
    onnx.save(make_onnx(detector, settings), str(path))


def name_convolutions(graph: ModelProto) -> None:
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


class OnnxFile:
    """An exported ONNX file in ONNX Runtime on the CPU.

    Attributes:
        facts: its metadata.
    """

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            MissingExtraError: onnx or onnxruntime is not installed.
            WeightsError: it holds no metadata of ours.
        """
        onnx = require("onnx", "export")
        self.runtime = require("onnxruntime", "export")
        self.graph: ModelProto = onnx.load(str(path))
        texts = {entry.key: entry.value for entry in self.graph.metadata_props}
        self.facts = read_facts(texts.get(KEY), path)
        own = [output.name for output in self.graph.graph.output]
        self.outputs = [*own, *(name for name in OUTPUTS if name not in own)]
        self.session = self._session(self.outputs)

    def raw(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, A, K) class logits and (B, A, 4) box deltas, also of an end-to-end file."""
        found = self._run(self.session, list(OUTPUTS), batch)
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])

    def detect(self, batch: Batch) -> list[Tensor]:
        """boxes_xyxy, scores, labels and counts of an end-to-end file."""
        found = self._run(self.session, ["boxes_xyxy", "scores", "labels", "counts"], batch)
        return [torch.from_numpy(values) for values in found]

    def convolutions(self, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Layer's name and output of each convolution, in the order in which they run."""
        convs = [node for node in self.graph.graph.node if node.op_type == "Conv"]
        session = self._session([*self.outputs, *(conv.output[0] for conv in convs)])
        found = self._run(session, [conv.output[0] for conv in convs], batch)
        for conv, values in zip(convs, found, strict=True):
            yield layer_name(conv.input[1]), torch.from_numpy(values)

    def _session(self, outputs: list[str]) -> Any:
        """A session that gives these values, be they outputs of the file or not."""
        from onnx import ModelProto, ValueInfoProto

        graph = ModelProto()
        graph.CopyFrom(self.graph)
        own = {output.name for output in graph.graph.output}
        graph.graph.output.extend(ValueInfoProto(name=name) for name in outputs if name not in own)
        return self.runtime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])

    def _run(self, session: Any, outputs: list[str], batch: Batch) -> list[NDArray[Any]]:
        whole = {"images": batch.canvases.numpy(), "image_sizes": batch.image_sizes.numpy()}
        feed = whole if self.facts["end_to_end"] else {"images": batch.images.numpy()}
        found: list[NDArray[Any]] = session.run(outputs, feed)
        return found
