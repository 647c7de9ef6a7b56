"""LiteRT (TensorFlow Lite) files (.tflite): writing, and running here. Raw outputs only.

The metadata are an associated file in TensorFlow Lite's way: the .tflite is a zip archive too.
"""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efficientdet.errors import WeightsError
from efficientdet.exporting.comparison_images import Batch
from efficientdet.exporting.metadata import KEY, file_facts, read_facts
from efficientdet.exporting.optional_library import require_apart
from efficientdet.exporting.settings import ExportSettings
from efficientdet.inference.detector import Detector
from efficientdet.inference.engines.fold import fold
from efficientdet.inference.engines.onnx_graph import FlatOutputs

# Where the metadata lie in the archive.
FACTS_FILE = f"{KEY}.json"


def _require(module: str, package: str) -> Any:
    return require_apart(module, f"{package} (in an environment of its own, for what it brings along)")


def write_tflite(detector: Detector, path: Path, settings: ExportSettings) -> None:
    """Write a detector as a LiteRT model that takes one picture.

    Raises:
        MissingExtraError: litert-torch is not installed.
    """
    converter = _require("litert_torch", "litert-torch")
    network = FlatOutputs(fold(detector.model).cpu().float(), by_level=False).eval()
    network = network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converter.convert(network, (torch.zeros(1, 3, *detector.image_size),)).export(str(path))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(FACTS_FILE, json.dumps(file_facts(detector, settings)))


class TfliteFile:
    """A LiteRT model in its Python runtime.

    Attributes:
        facts: its metadata.
    """

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            MissingExtraError: ai-edge-litert is not installed.
            WeightsError: it is no such file, or holds no metadata of ours.
        """
        runtime = _require("ai_edge_litert.interpreter", "ai-edge-litert")
        try:
            with zipfile.ZipFile(path) as archive:
                text = archive.read(FACTS_FILE).decode()
        except (zipfile.BadZipFile, KeyError):
            text = None
        self.facts = read_facts(text, path)
        try:
            self.interpreter = runtime.Interpreter(model_path=str(path))
        except (ValueError, RuntimeError) as error:
            raise WeightsError(f"{path}: not a LiteRT model ({error})") from error
        self.interpreter.allocate_tensors()

    def raw(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, A, K) class logits and (B, A, 4) box deltas."""
        self.interpreter.set_tensor(self.interpreter.get_input_details()[0]["index"], batch.images.numpy())
        self.interpreter.invoke()
        found = self.interpreter.get_signature_runner().get_output_details()
        logits, deltas = (self.interpreter.get_tensor(found[name]["index"]) for name in sorted(found))
        return torch.from_numpy(logits), torch.from_numpy(deltas)

    def detect(self, batch: Batch) -> list[Tensor]:
        """Never called: there are no end-to-end files of this format."""
        raise NotImplementedError

    def convolutions(self, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Nothing: the layers carry other names there."""
        return iter(())
