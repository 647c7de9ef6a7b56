"""benchmark --layers: how long each layer of a network takes in OpenVINO and ONNX Runtime, beside its own floor.

The runtimes' profilers tell what ran: convolutions with the activations and additions that were fused into them, and
the reorderings between them. The exporter notes for each operation the module that it comes from; a layer that a
runtime adds by itself counts to the module before it.
"""

from __future__ import annotations

import ast
import itertools
import json
import math
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Unpack

from efficientdet.errors import SettingError, require
from efficientdet.family import MODELS
from efficientdet.inference.benchmark import sample_jpeg, thread_number
from efficientdet.inference.detector import Detector, load
from efficientdet.inference.engines.engine import find_graph
from efficientdet.inference.engines.runtimes import compile_openvino, onnxruntime_options, open_onnx, open_openvino
from efficientdet.inference.hardware import Hardware
from efficientdet.inference.settings import BenchmarkSettings, DetectorOptions
from efficientdet.inference.timing import TYPES, MachineSpeed
from efficientdet.weights.create import random_model

# What the exporter notes of a node: the modules that it lies in, outermost first, and the operation.
SCOPES = "pkg.torch.onnx.name_scopes"
# The parts whose times are summed; other modules count by their first two names, heads by their first.
PART = re.compile(r"backbone\.blocks\.\d+|feature_network\.cells\.\d+|(?:class|box)_head|\w+(?:\.\w+)?")
# By what the layers' times are summed.
GROUPS = ("part", "kind", "map")
SHOWN_LAYERS = 20


@dataclass(frozen=True)
class Layer:
    """A layer as a runtime ran it.

    Attributes:
        module: the network's module that it computes, such as `backbone.blocks.1.0.conv_dw`.
        part: the larger part that the module belongs to.
        kind: pointwise, depthwise 3x3, ...; of what is no convolution, the runtime's own name.
        map: height x width of its output.
        channels: of its output.
        multiply_adds: of a convolution.
        ms: the shortest of all runs.
        arithmetic_ms: its multiply-adds at the speed of a large matrix product.
        memory_ms: its inputs, weights and outputs at the speed of a large copy; layers whose maps stay in the caches
            are faster.
    """

    module: str
    part: str
    kind: str
    map: str
    channels: int
    multiply_adds: int
    ms: float
    arithmetic_ms: float
    memory_ms: float

    @property
    def floor_ms(self) -> float:
        """The longer of the two."""
        return max(self.arithmetic_ms, self.memory_ms)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return {**asdict(self), "over_floor": self.ms / self.floor_ms if self.floor_ms else None}


@dataclass(frozen=True)
class LayerTimes:
    """The layers of a network in one backend and precision.

    Attributes:
        model: the name that the user gave.
        engine: what ran it, such as `openvino fp32`.
        input_size: (height, width).
        hardware: the machine.
        layers: in the order in which they run.
    """

    model: str
    engine: str
    input_size: tuple[int, int]
    hardware: Hardware
    layers: list[Layer]

    def sums(self, group: str) -> list[dict[str, Any]]:
        """A row for each value of one of `GROUPS`, the slowest first, and one for all."""
        values = sorted({getattr(layer, group) for layer in self.layers})
        found = {value: [layer for layer in self.layers if getattr(layer, group) == value] for value in values}
        rows = sorted(((name, *_sum(layers)) for name, layers in found.items()), key=lambda row: -row[2])
        columns = (group, "layers", "ms", "arithmetic_ms", "memory_ms", "over_floor")
        return [dict(zip(columns, row, strict=True)) for row in [*rows, ("all", *_sum(self.layers))]]

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        sums = {group: self.sums(group) for group in GROUPS}
        layers = [layer.to_dict() for layer in self.layers]
        return {**asdict(self), "hardware": self.hardware.to_dict(), "layers": layers, "sums": sums}


def _sum(layers: Sequence[Layer]) -> tuple[int, float, float, float, float | None]:
    total, floor = sum(layer.ms for layer in layers), sum(layer.floor_ms for layer in layers)
    arithmetic, memory = (sum(getattr(layer, name) for layer in layers) for name in ("arithmetic_ms", "memory_ms"))
    return len(layers), total, arithmetic, memory, total / floor if floor else None


class _Ran(NamedTuple):
    """What a profiler says of a layer; `names` are of nodes of the graph, or of their outputs, and of others.

    A convolution has its weight's shape, and that of a depthwise one which was fused behind it, and the map that each
    computes.
    """

    names: list[str]
    kind: str
    shape: tuple[int, ...]
    weights: list[tuple[int, ...]]
    maps: list[tuple[int, ...]]
    numbers: int
    ms: float


def time_layers(
    models: Sequence[str], settings: BenchmarkSettings, **options: Unpack[DetectorOptions]
) -> list[LayerTimes]:
    """Time the layers of networks at batch 1, at their input size.

    Args:
        models: what `benchmark` takes, but for exported files.
        settings: backends, precisions, rounds and iterations; the shortest of all runs counts.
        **options: settings of the detectors.

    Returns:
        One for each model, backend and precision.

    Raises:
        SettingError: a backend tells no times of its layers, or a model is an exported file.
        MissingExtraError: a backend's library is not installed.
        UnknownNameError, WeightsError: as `load`.
    """
    found = []
    with thread_number(settings.threads):
        for name in models:
            made = random_model(name, None, sample_jpeg()) if name in MODELS else None
            for backend, precision in itertools.product(settings.backends, settings.precisions):
                chosen: Any = {**options, "backend": backend, "precision": precision}
                detector = Detector(*made, **chosen) if made else load(name, **chosen)
                found.append(_time_detector(name, detector, settings))
    return found


def _time_detector(name: str, detector: Detector, settings: BenchmarkSettings) -> LayerTimes:
    engine, size = detector.engine, detector.image_size
    if engine.backend not in PROFILED:
        raise SettingError(f"{engine.backend} tells no times of its layers; these do: {', '.join(PROFILED)}")
    path = find_graph(detector.model, size)
    pixels = np.random.default_rng(0).standard_normal((1, 3, *size), np.float32)
    machine = MachineSpeed(detector.device, [engine.precision])
    graph = require("onnx", "export").load(str(path)).graph
    ran = list(PROFILED[engine.backend](path, pixels, engine.precision, _turns(machine, settings), graph))
    speed = machine.best()
    layers = list(_described(ran, _modules(graph), engine.precision, speed))
    return LayerTimes(name, f"{engine.backend} {engine.precision}", size, Hardware.read(), layers)


def _turns(machine: MachineSpeed, settings: BenchmarkSettings) -> Iterator[int]:
    """One item for each run; the machine's own speed is measured between rounds."""
    for _ in range(settings.rounds):
        machine.measure()
        yield from range(settings.iterations)


def _openvino(path: Path, pixels: NDArray[Any], precision: str, turns: Iterable[int], _: Any) -> Iterator[_Ran]:
    compiled = compile_openvino(open_openvino(path), pixels.shape, precision, PERF_COUNT=True)
    request, best, kinds = compiled.create_infer_request(), dict[str, float](), dict[str, str]()
    for _ in turns:
        request.infer({0: pixels})
        for row in request.profiling_info:
            ms = row.real_time.total_seconds() * 1000
            best[row.node_name] = min(ms, best.get(row.node_name, ms))
            kinds[row.node_name] = row.node_type
    for node in compiled.get_runtime_model().get_ordered_ops():
        name = node.get_friendly_name()
        if not best.get(name):
            continue
        names = node.get_rt_info()["originalLayersNames"].astype(str).split(",")
        inputs, shape = [tuple(value.get_shape()) for value in node.inputs()], tuple(node.output(0).get_shape())
        # Further inputs are biases, a map to add, and the weight of a fused depthwise convolution, alone of five axes.
        weights = [inputs[1], *(one for one in inputs[2:] if len(one) == 5)] if "Convolution" in kinds[name] else []
        numbers = sum(map(math.prod, [*inputs, shape]))
        names = [one.removesuffix("/WithoutBiases") for one in names]
        maps = [inputs[0][2:], shape[2:]][-len(weights) :] if weights else []
        yield _Ran(names, kinds[name], shape, weights, maps, numbers, best[name])


def _onnxruntime(path: Path, pixels: NDArray[Any], _: str, turns: Iterable[int], graph: Any) -> Iterator[_Ran]:
    convolutions = _convolutions(graph)
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime_options(1, pixels.shape)
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "layers")
        session = open_onnx(path, options)
        for _turn in turns:
            session.run(None, {"images": pixels})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    best: dict[str, dict[str, Any]] = {}
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            best[name] = min(event, best.get(name, event), key=lambda one: one["dur"])
    for name, event in best.items():
        facts = event["args"]
        inputs, outputs = (
            [tuple(shape) for value in facts[f"{side}_type_shape"] for shape in value.values()]
            for side in ("input", "output")
        )
        output = name.removesuffix("_nchwc")
        numbers = sum(map(math.prod, inputs + outputs))
        names, weights = [output, name.partition("/")[0]], []
        if facts["op_name"] in ("Conv", "FusedConv") and output in convolutions:
            names[0], weight = convolutions[output]
            weights = [weight]
        maps = [outputs[0][2:]] * len(weights)
        yield _Ran(names, facts["op_name"], outputs[0], weights, maps, numbers, event["dur"] / 1000)


def _convolutions(graph: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The convolution and its weight's shape behind each output, also of what may be fused into it."""
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for node in graph.node:
        if node.op_type == "Conv":
            found[node.output[0]] = node.output[0], weights[node.input[1]]
        elif node.input and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


PROFILED = {"openvino": _openvino, "onnxruntime": _onnxruntime}


def _modules(graph: Any) -> dict[str, str]:
    """The module that each node of a graph belongs to, by the names of the node and of its output."""
    found: dict[str, str] = {}
    for node in graph.node:
        for note in node.metadata_props:
            if note.key == SCOPES:
                module = ast.literal_eval(note.value)[-2].removeprefix("model.")
                found |= {node.name: module, node.output[0]: module}
    return found


def _described(
    ran: Iterable[_Ran], modules: Mapping[str, str], precision: str, speed: Mapping[str, float]
) -> Iterator[Layer]:
    module, size = "input", "-"
    for one in ran:
        module = next((modules[name] for name in one.names if name in modules), module)
        part = PART.match(module)
        if len(one.shape) == 4 and "Reorder" not in one.kind:  # whose shapes may be in another order
            size = f"{one.shape[2]}x{one.shape[3]}"
        pairs = zip(one.weights, one.maps, strict=True)
        multiply_adds = sum(math.prod(weight) * math.prod(cells) for weight, cells in pairs)
        yield Layer(
            module=module,
            part=part[0] if part else module,
            kind=_kind(one),
            map=size,
            channels=one.weights[0][0] if one.weights else one.shape[1],
            multiply_adds=multiply_adds,
            ms=one.ms,
            arithmetic_ms=min(speed[precision], speed["fp32"]) * multiply_adds / 1e9,
            memory_ms=speed["copy"] * one.numbers * TYPES[precision].itemsize / 1e9,
        )


def _kind(ran: _Ran) -> str:
    kinds = []
    for weight in ran.weights:
        kernel = "x".join(map(str, weight[-2:]))
        if weight[0] > 1 and math.prod(weight[1:-2]) == 1:
            kinds.append(f"depthwise {kernel}")
        else:
            kinds.append("pointwise" if kernel == "1x1" else f"convolution {kernel}")
    return " + ".join(kinds) or ran.kind
