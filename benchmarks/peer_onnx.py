"""Race the network in any detector's ONNX file against one of this package, on the same images.

    python benchmarks/peer_onnx.py rtdetr.onnx --weights d0

Both get the same threads and take turns. The peer runs in ONNX Runtime and in OpenVINO, whichever read its file; the
faster counts. Network time alone: images are resized and their bytes scaled to 0..1 before the clock starts. What the
file does after the network, such as NMS, counts, for it cannot be left out.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from efficientdet.errors import EfficientDetError, WeightsError
from efficientdet.family import MODELS
from efficientdet.images.find import find_images
from efficientdet.images.letterbox import letterbox_bytes
from efficientdet.images.read import read
from efficientdet.inference.benchmark import Spread, sample_jpeg, thread_number
from efficientdet.inference.detector import Detector, load
from efficientdet.inference.engines.runtimes import as_session, open_onnx, open_openvino, openvino_session
from efficientdet.inference.hardware import Hardware
from efficientdet.inference.timing import time_in_turns
from efficientdet.weights.create import random_model

RUNTIMES = ("onnxruntime", "openvino")


class Peer:
    """A file's inputs, as ONNX Runtime tells them.

    Args:
        path: the file.
        side: of the image where the file takes any.

    Raises:
        WeightsError: it is no ONNX file, or has no input that is an image, or one that this cannot fill.
    """

    def __init__(self, path: Path, side: int) -> None:
        self.path, self.session = path, open_onnx(path)
        self.inputs = self.session.get_inputs()
        images = [value for value in self.inputs if len(value.shape) == 4 and 3 in (value.shape[1], value.shape[3])]
        if len(images) != 1:
            shapes = ", ".join(f"{value.name} {value.shape}" for value in self.inputs)
            raise WeightsError(f"{path}: one input must be an image, (B, 3, H, W) or (B, H, W, 3); it has {shapes}")
        self.image = images[0]
        self.is_nchw = self.image.shape[1] == 3
        sides = self.image.shape[2:] if self.is_nchw else self.image.shape[1:3]
        height, width = (length if isinstance(length, int) else side for length in sides)
        self.size = height, width

    def arrays(self, image: NDArray[np.uint8]) -> list[NDArray[Any]]:
        """An array for each input: the (H, W, 3) image letterboxed; its size, or a scale of 1, where the file asks."""
        found = []
        for value in self.inputs:
            name = value.type[len("tensor(") : -1]
            kind = np.dtype({"float": "float32", "double": "float64"}.get(name, name))
            if value is self.image:
                pixels = letterbox_bytes(image, self.size, image.shape[:2])[None]
                pixels = pixels if kind == np.uint8 else (pixels / 255).astype(kind)
                found.append(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2) if self.is_nchw else pixels))
            elif len(value.shape) == 2 and value.shape[1] == 2:
                found.append(np.array([[1, 1] if "scale" in value.name else self.size], kind))
            else:
                raise WeightsError(f"{self.path}: what to give its input {value.name} {value.shape} is not known")
        return found

    def runs(self, images: Sequence[NDArray[np.uint8]]) -> dict[str, Callable[[], None]]:
        """One run over all images in each runtime that reads the file; the reasons of the others are printed."""
        inputs, found = [self.arrays(image) for image in images], {}
        shapes = {value.name: array.shape for value, array in zip(self.inputs, inputs[0], strict=True)}
        for runtime in RUNTIMES:
            try:
                if runtime == "openvino":
                    model = open_openvino(self.path)
                    model.reshape({name: list(shape) for name, shape in shapes.items()})
                    session = openvino_session(model, None, "fp32")
                else:
                    session = as_session(self.session)
                session(*inputs[0])
            except (EfficientDetError, RuntimeError) as error:
                print(f"{self.path}: {runtime} cannot run it: {str(error).strip().splitlines()[-1]}")
                continue
            found[f"{self.path.name}, {runtime}"] = functools.partial(_run_all, session, inputs)
        return found


def _run_all(session: Callable[..., Any], inputs: Sequence[Sequence[NDArray[Any]]]) -> None:
    for arrays in inputs:
        session(*arrays)


def race(path: Path, detector: Detector, name: str, images: Sequence[NDArray[np.uint8]], rounds: int) -> dict[str, Any]:
    """Milliseconds an image of each side, and the peer's best over this package's, round by round.

    Raises:
        WeightsError: the file cannot be run.
    """
    peer = Peer(path, max(detector.image_size))
    pixels = [torch.from_numpy(detector._prepare(image).pixels)[None] for image in images]
    theirs = peer.runs(images)
    if not theirs:
        raise WeightsError(f"{path}: no runtime can run it")
    ours = f"{name}, {detector.engine}"
    works = {ours: lambda: [detector.engine.run(one) for one in pixels], **theirs}  # type: ignore[union-attr]
    times = {side: [ms / len(images) for ms in spent] for side, spent in time_in_turns(works, "cpu", rounds).items()}
    best = min(theirs, key=lambda side: median(times[side]))
    ratios = [one / other for one, other in zip(times[best], times[ours], strict=True)]
    sizes = {side: peer.size if side in theirs else detector.image_size for side in works}
    return {"times": times, "sizes": sizes, "best": best, "ours": ours, "ratios": ratios}


def main(given: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the peer's ONNX file")
    parser.add_argument(
        "--weights", default="d0", help="this package's side: weights, or d0, lite0, ... for random ones"
    )
    parser.add_argument("--images", help="an image, a folder or a glob; by default a sample of 640x480 pixels")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, help="of each side; by default torch's choice")
    options = parser.parse_args(given)
    images = [read(one) for one in (find_images([options.images]).images if options.images else [sample_jpeg()])]
    with thread_number(options.threads):
        if options.weights in MODELS:
            detector = Detector(*random_model(options.weights, None, images[0]), device="cpu")
        else:
            detector = load(options.weights, device="cpu")
        found = race(options.file, detector, options.weights, images, options.rounds)
        print(f"on {Hardware.read()}; {torch.get_num_threads()} threads on each side, batch 1")
    for side, spent in found["times"].items():
        print(f"{side}, {'x'.join(map(str, found['sizes'][side]))}: {Spread.of(spent).text(1)} ms")
    print(
        f"{found['best']} : {found['ours']}: {Spread.of(found['ratios']).text(2)}, above 1 where this package is faster"
    )


if __name__ == "__main__":
    main()
