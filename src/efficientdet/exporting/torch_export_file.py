"""torch.export files (.pt2): writing, and opening in torch."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from efficientdet.errors import WeightsError, as_error
from efficientdet.exporting.end_to_end import EndToEnd
from efficientdet.exporting.formats import OpenedFile, layer_name
from efficientdet.inference.detector import Detector
from efficientdet.inference.engines.metadata import FileMetadata
from efficientdet.inference.engines.onnx_graph import FlatNetwork, quiet
from efficientdet.weights.info import METADATA_KEY

# Where the metadata lie in the archive.
METADATA_FILE = f"{METADATA_KEY}.json"


class HalfWeights(nn.Module):
    """A network whose convolutions' weights are stored as float16, in place, and used as float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.weight = nn.Parameter(module.weight.half(), requires_grad=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What the network gives."""
        weights = {name: tensor.float() for name, tensor in self.network.named_parameters()}
        outputs: tuple[Tensor, Tensor] = torch.func.functional_call(self.network, weights, (images,))
        return outputs


def make_program(
    detector: Detector, metadata: FileMetadata, layout: torch.memory_format = torch.channels_last
) -> ExportedProgram:
    """A detector as an exported program: a graph of torch's operations with its weights, in this memory layout."""
    height, width = metadata.image_size
    network: nn.Module = FlatNetwork(detector.model).to(memory_format=layout)  # type: ignore[call-overload]
    if metadata.precision == "fp16":
        network = HalfWeights(network)
    # With an example of one image the batch would be taken for the constant 1.
    batch = 2 if metadata.dynamic_batch else 1
    axes = {0: Dim("batch", min=1)} if metadata.dynamic_batch else {}
    if not metadata.end_to_end:
        return _export(network, (torch.zeros(batch, 3, height, width),), (axes,))
    canvases = torch.zeros(batch, height, width, 3, dtype=torch.uint8)
    return _export(EndToEnd(network, metadata), (canvases, torch.tensor([[height, width]] * batch)), (axes, axes))


def _export(module: nn.Module, example: tuple[Tensor, ...], axes: tuple[dict[int, Any], ...]) -> ExportedProgram:
    with quiet("torch.export"), torch.no_grad():
        return torch.export.export(module.eval(), example, dynamic_shapes=axes)


def write(detector: Detector, path: Path, metadata: FileMetadata) -> None:
    """Write `make_program` to a file, the metadata as an extra file in it."""
    program = make_program(detector, metadata)
    with quiet("torch.export"):
        torch.export.save(program, path, extra_files={METADATA_FILE: metadata.to_json()})


def open_file(path: Path) -> OpenedFile:
    """Open a file in torch on the CPU.

    Raises:
        WeightsError: it is no such file, is damaged, or holds no metadata of ours.
    """
    if not zipfile.is_zipfile(path):
        raise WeightsError(f"{path}: not a torch.export file, or a damaged one")
    extra = {METADATA_FILE: ""}
    with as_error(WeightsError, f"{path}: a damaged torch.export file"), quiet("torch.export"):
        program = torch.export.load(path, extra_files=extra)
    module = program.module()

    def run(*arrays: NDArray[Any]) -> list[Tensor]:
        with torch.no_grad():
            return list(module(*map(torch.from_numpy, arrays)))

    def convolutions(inputs: Sequence[NDArray[Any]], names: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
        recorder = _Recorder(module, names)
        with torch.no_grad():
            recorder.run(*map(torch.from_numpy, inputs))
        yield from recorder.outputs

    return OpenedFile(FileMetadata.from_json(extra[METADATA_FILE], path), run, convolutions)


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps what its convolutions give."""

    def __init__(self, module: Any, names: tuple[str, ...]) -> None:
        super().__init__(module)
        self.names = names
        self.outputs: list[tuple[str, Tensor]] = []

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        result = super().run_node(n)
        if n.target is torch.ops.aten.conv2d.default:
            weight = n.args[1]
            while isinstance(weight, fx.Node) and weight.op != "get_attr":  # half weights are cast first
                weight = weight.args[0]
            assert isinstance(weight, fx.Node)
            name = layer_name(str(weight.target))
            if not self.names or name in self.names:
                self.outputs.append((name, result.clone()))  # a copy: the activation behind works in place
        return result
