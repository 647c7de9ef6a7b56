"""What a benchmark runs on: the models that names mean, pictures, and the peer's environment."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from efficientdet.errors import SettingError, WeightsError
from efficientdet.family import MODELS, ModelSpec
from efficientdet.images.find import find_images
from efficientdet.images.letterbox import Preprocessing
from efficientdet.inference.detector import Detector, load
from efficientdet.research.benchmark.random_weights import write_random

# A python that has effdet; and where `make bench` puts one.
PEER_VARIABLE = "EFFICIENTDET_PEER_PYTHON"
PEER_FOLDER = Path(".bench") / "effdet"
PICTURE_SIZE = (640, 480)


@dataclass(frozen=True)
class Model:
    """A model to be measured.

    Attributes:
        name: what the user called it.
        path: what `load` takes.
        spec: its network.
        num_classes: of its class head.
        is_random: whether its weights are random ones, made for the measurement.
        image_size: (height, width) of its input.
        preprocessing: mean, deviation and resizing.
    """

    name: str
    path: str
    spec: ModelSpec
    num_classes: int
    is_random: bool
    image_size: tuple[int, int]
    preprocessing: Preprocessing


def open_model(name: str, image_size: int | None, picture: str, folder: Path) -> Model:
    """Find a model; one of the family gets random weights.

    Args:
        name: of the family (`d0`), bundled, or a checkpoint or exported file.
        image_size: side of the input; None for the model's.
        picture: random weights take their statistics from it.
        folder: for the files of random weights.

    Raises:
        UnknownNameError: there is no such model.
        WeightsError: the file cannot be read.
    """
    path, is_random = name, name in MODELS
    if is_random:
        side = image_size or MODELS[name].image_size
        path = str(folder / f"{name}-{side}.safetensors")
        write_random(name, side, picture, path)
    detector = load(path, device="cpu", image_size=image_size)
    spec, classes = detector.info.spec, len(detector.class_names)
    return Model(name, path, spec, classes, is_random, detector.image_size, detector.info.preprocessing)


def peer_weights(model: Model, folder: Path) -> Path:
    """Write a model's weights under effdet's names.

    Raises:
        WeightsError: effdet has no such network.
    """
    import torch

    from efficientdet.weights.foreign import to_foreign

    if model.spec.name not in MODELS or len(set(model.image_size)) > 1 or Path(model.path).suffix in (".onnx", ".xml"):
        raise WeightsError(f"{model.name}: effdet takes square checkpoints of the family alone")
    detector: Detector = load(model.path, device="cpu", backend="eager")
    path = folder / f"{model.name.replace(os.sep, '-')}.effdet.pt"
    torch.save(to_foreign(detector.model, "effdet"), path)
    return path


def default_picture(path: str | Path) -> None:
    """Write a 640x480 JPEG: matplotlib's sample portrait, or where matplotlib is missing, waves with noise."""
    import numpy as np
    from PIL import Image

    try:
        from matplotlib.cbook import get_sample_data

        sample = get_sample_data("grace_hopper.jpg", asfileobj=False)
        image = Image.open(str(sample)).convert("RGB").resize(PICTURE_SIZE)
    except ImportError:
        rows, columns = np.mgrid[0 : PICTURE_SIZE[1], 0 : PICTURE_SIZE[0]]
        waves = [127 + 90 * np.sin(rows / a) * np.cos(columns / b) for a, b in ((37, 53), (11, 71), (90, 17))]
        noise = np.random.default_rng(0).normal(0, 8, (*rows.shape, 3))
        image = Image.fromarray(np.clip(np.stack(waves, 2) + noise, 0, 255).astype(np.uint8))
    image.save(path, quality=90)


def choose_pictures(given: str | Path | None, folder: Path) -> list[str]:
    """Paths of the pictures: those of a folder or file, or the default one, written into `folder`.

    Raises:
        ImageError: there is no picture.
    """
    if given is None:
        path = folder / "picture.jpg"
        default_picture(path)
        return [str(path)]
    return [str(picture) for picture in find_images([str(given)]).images]


def peer_python(given: str | Path | None) -> str:
    """The python that has effdet: the given one, the variable's, or that of `.bench/effdet` under this folder.

    Raises:
        SettingError: it is not there; says how to make one.
    """
    inside = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    named = given or os.environ.get(PEER_VARIABLE)
    found: Callable[[str], str | None] = shutil.which
    python = found(str(named or PEER_FOLDER / inside))
    if python is None:
        raise SettingError(
            f"peer effdet: there is no python at '{named or PEER_FOLDER / inside}'. It needs an environment of its "
            f"own: python -m venv {PEER_FOLDER}; {PEER_FOLDER / inside} -m pip install effdet==0.4.1; or name one with "
            f"--peer-python or ${PEER_VARIABLE}"
        )
    return str(Path(python).absolute())
