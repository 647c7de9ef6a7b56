"""The bundled detector of people, small; its ONNX network is translated once for all tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from efficientdet.exporting import onnx_file
from efficientdet.images.convert import RgbImage
from efficientdet.images.find import sample_image
from efficientdet.images.read import read
from efficientdet.inference.detector import Detector, load
from efficientdet.inference.engines.onnx_graph import free_shapes, onnx_network


@pytest.fixture(scope="session")
def people() -> Detector:
    """The bundled detector, for small images."""
    return load("people", device="cpu", image_size=128, score_threshold=0.05)


@pytest.fixture(scope="session")
def portrait() -> RgbImage:
    """A real image of a person, not square."""
    return read(sample_image())


@pytest.fixture(scope="session")
def wide(portrait: RgbImage) -> RgbImage:
    """Another one, wider than high."""
    image = Image.fromarray(portrait)
    return read(image.crop((0, 60, image.width, 400)))


@pytest.fixture(scope="session")
def translations() -> dict[Any, Any]:
    """Networks as ONNX, by network and size."""
    return {}


@pytest.fixture(scope="module", autouse=True)
def network_translated_once(translations: dict[Any, Any]) -> Iterator[None]:
    """Most of an export's time goes into translating: do it once for each network and size, and once for each end."""
    made = translations
    front_and_back = onnx_file._front_and_back

    def translate_ends(metadata: Any) -> Any:
        from onnx import ModelProto

        key = dataclasses.replace(metadata, precision="fp32").to_json()
        if key not in made:
            made[key] = front_and_back(metadata)
        copy = ModelProto()
        copy.CopyFrom(made[key])
        return copy

    def translate(model: Any, size: tuple[int, int], dynamic_batch: bool, dynamic_size: bool) -> Any:
        from onnx import ModelProto

        key = (id(model), size, dynamic_batch)
        if key not in made:
            made[key] = (model, onnx_network(model, size, dynamic_batch=dynamic_batch))  # it keeps the model's id
        copy = ModelProto()
        copy.CopyFrom(made[key][1])
        free_shapes(copy, dynamic_size)
        return copy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_file, "onnx_network", translate)
        patch.setattr(onnx_file, "_front_and_back", translate_ends)
        yield
