"""torch.export files (.pt2): writing, and running in torch."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from efficientdet.errors import WeightsError
from efficientdet.exporting.comparison_images import Batch
from efficientdet.exporting.graph import EndToEnd, HalfWeights
from efficientdet.exporting.metadata import KEY, file_facts, layer_name, read_facts
from efficientdet.exporting.settings import ExportSettings
from efficientdet.inference.detector import Detector
from efficientdet.inference.engines.fold import fold
from efficientdet.inference.engines.onnx_graph import FlatOutputs

# Where the metadata lie in the archive.
FACTS_FILE = f"{KEY}.json"
CONVOLUTION = torch.ops.aten.conv2d.default


def make_program(
    detector: Detector, settings: ExportSettings, layout: torch.memory_format = torch.channels_last
) -> ExportedProgram:
    """A detector as an exported program: a graph of torch's operations with its weights, laid out so in memory."""
    height, width = detector.image_size
    network: nn.Module = FlatOutputs(fold(detector.model).cpu().float(), by_level=False)
    network = network.to(memory_format=layout)  # type: ignore[call-overload]
    if settings.half:
        network = HalfWeights(network)
    # With an example of one picture the batch would be taken for the constant 1.
    batch = 2 if settings.dynamic_batch else 1
    axes = {0: Dim("batch", min=1)} if settings.dynamic_batch else {}
    if not settings.end_to_end:
        return _export(network, (torch.zeros(batch, 3, height, width),), (axes,))
    anchors = detector.model.anchors(detector.image_size).cpu()
    whole = EndToEnd(network, anchors, detector.info.preprocessing, detector.postprocess)
    canvases = torch.zeros(batch, height, width, 3, dtype=torch.uint8)
    return _export(whole, (canvases, torch.tensor([[height, width]] * batch)), (axes, axes))


def _export(module: nn.Module, example: tuple[Tensor, ...], axes: tuple[dict[int, Any], ...]) -> ExportedProgram:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch's own code
        return torch.export.export(module.eval(), example, dynamic_shapes=axes)


def write_torch_export(detector: Detector, path: Path, settings: ExportSettings) -> None:
    """Write `make_program` to a file, the metadata as an extra file in it."""
    program = make_program(detector, settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, path, extra_files={FACTS_FILE: json.dumps(file_facts(detector, settings))})


class TorchExportFile:
    """An exported program in torch on the CPU.

    Attributes:
        facts: its metadata.
    """

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            WeightsError: it is no such file, or holds no metadata of ours.
        """
        if not zipfile.is_zipfile(path):
            raise WeightsError(f"{path}: not a torch.export file, or a damaged one")
        extra = {FACTS_FILE: ""}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                program = torch.export.load(path, extra_files=extra)
            except (RuntimeError, ValueError, KeyError, OSError) as error:
                raise WeightsError(f"{path}: a damaged torch.export file ({error})") from error
        self.facts = read_facts(extra[FACTS_FILE], path)
        self.module = program.module()

    def raw(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, A, K) class logits and (B, A, 4) box deltas, also of an end-to-end file."""
        if not self.facts["end_to_end"]:
            class_logits, box_deltas = self._run(batch)
            return class_logits, box_deltas
        # Inside the graph they are what the last convolutions give.
        heads: dict[str, list[Tensor]] = {"class_head": [], "box_head": []}
        for name, values in self.convolutions(batch):
            head, _, rest = name.partition(".")
            if rest == "predict.pointwise":
                heads[head].append(values.permute(0, 2, 3, 1).flatten(1, 2))
        anchors = self.facts["anchors"]
        per_cell = anchors["octaves"] * len(anchors["aspects"])
        logits, deltas = (
            torch.cat([x.reshape(x.shape[0], -1, x.shape[2] // per_cell) for x in levels], 1)
            for levels in heads.values()
        )
        return logits, deltas

    def detect(self, batch: Batch) -> list[Tensor]:
        """boxes_xyxy, scores, labels and counts of an end-to-end file."""
        return list(self._run(batch))

    def convolutions(self, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Layer's name and output of each convolution, in the order in which they run."""
        recorder = _Recorder(self.module)
        with torch.no_grad():
            recorder.run(*self._inputs(batch))
        yield from recorder.outputs

    def _inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        return (batch.canvases, batch.image_sizes) if self.facts["end_to_end"] else (batch.images,)

    def _run(self, batch: Batch) -> tuple[Tensor, ...]:
        with torch.no_grad():
            outputs: tuple[Tensor, ...] = self.module(*self._inputs(batch))
        return outputs


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps what its convolutions give."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.outputs: list[tuple[str, Tensor]] = []

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        result = super().run_node(n)
        if n.target is CONVOLUTION:
            weight = n.args[1]
            while isinstance(weight, fx.Node) and weight.op != "get_attr":  # half weights are cast first
                weight = weight.args[0]
            assert isinstance(weight, fx.Node)
            # A copy, since the activation behind works in place.
            self.outputs.append((layer_name(str(weight.target)), result.clone()))
        return result
