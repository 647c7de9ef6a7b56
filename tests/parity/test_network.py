"""Every network computes the reference's function: the same names, counts and outputs from the same weights."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from efficientdet.family import find_spec
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.weights.create import create_model
from efficientdet.weights.foreign import load_foreign, to_foreign

FOLDER = Path(__file__).parent / "golden"
KEYS: dict[str, Any] = json.loads(gzip.decompress((FOLDER / "effdet_state_dict_keys.json.gz").read_bytes()))
# What the reference calls the symmetric variant; all its other names are understood as they are.
OURS = {"efficientdet_d0": "d0-symmetric"}
FIXTURES = sorted(path.stem for path in FOLDER.glob("*efficientdet_*.json"))
# The two largest, which share every name and shape: d4 stands for the deep ones in the quick tests.
SLOW = ("tf_efficientdet_d6", "tf_efficientdet_d7")
# Largest difference from the golden, in units of a tensor's largest absolute value.
TOLERANCES = {"float32": 2e-5, "float64": 1e-10}
LARGEST_FLOAT64 = 256 * 256


def _runs() -> list[Any]:
    cases = []
    for model in FIXTURES:
        for number, run in enumerate(json.loads((FOLDER / f"{model}.json").read_bytes())["runs"]):
            image = run["image"]
            for dtype in TOLERANCES:
                if dtype == "float64" and image["height"] * image["width"] > LARGEST_FLOAT64:
                    continue
                marks = [pytest.mark.slow] if model in SLOW else []
                name = f"{model}-{image['height']}x{image['width']}-{dtype}"
                cases.append(pytest.param(model, number, dtype, id=name, marks=marks))
    return cases


@pytest.fixture(scope="module")
def build(filler: ModuleType, golden: Callable[[str], Any]) -> Callable[[str], EfficientDet]:
    """A network with the made-up weights; only the last one is kept, since the tests come model by model."""
    last: dict[str, EfficientDet] = {}

    def build(model: str) -> EfficientDet:
        if model not in last:
            last.clear()
            gains = golden(f"{model}.json")["gains"]
            network = create_model(OURS.get(model, model))
            # Names and shapes come from the reference's list, not from the network under test.
            shapes = {name: shape for name, shape in KEYS[model]["keys"].items() if "anchors" not in name}
            load_foreign(network, {n: torch.from_numpy(filler.fill(n, s, gains)) for n, s in shapes.items()})
            last[model] = network.eval()
        return last[model]

    return build


def _as_golden(network: EfficientDet, images: Tensor) -> dict[str, Tensor]:
    """Every stage's outputs under the golden names, NCHW, box channels (ty, tx, th, tw)."""
    features = network.backbone(images)
    pyramid = network.feature_network(features)
    tensors = {f"backbone_p{3 + i}": x for i, x in enumerate(features)}
    levels = range(network.spec.levels[0], network.spec.levels[1] + 1)
    tensors |= {f"pyramid_p{level}": x for level, x in zip(levels, pyramid, strict=True)}
    outputs = {
        "class": network.class_head(pyramid),
        "box": [deltas[..., [1, 0, 3, 2]] for deltas in network.box_head(pyramid)],
    }
    for name, rows in outputs.items():
        for level, x, like in zip(levels, rows, pyramid, strict=True):
            nhwc = x.reshape(x.shape[0], like.shape[2], like.shape[3], -1)
            tensors[f"{name}_p{level}"] = nhwc.permute(0, 3, 1, 2)
    return tensors


@pytest.mark.parametrize(("model", "number", "dtype"), _runs())
def test_outputs(
    model: str, number: int, dtype: str, build: Callable[[str], EfficientDet],
    filler: ModuleType, golden: Callable[[str], Any],
) -> None:  # fmt: skip
    run = golden(f"{model}.json")["runs"][number]
    network = build(model).to(getattr(torch, dtype))
    images = torch.from_numpy(filler.image(**run["image"])).to(getattr(torch, dtype))
    try:
        with torch.inference_mode():
            found = _as_golden(network, images)
    finally:
        network.float()  # float32 weights cast up and back are unchanged
    assert set(found) == {entry["name"] for entry in run["tensors"]}
    worst: dict[str, float] = {}
    for entry in run["tensors"]:
        tensor = found[entry["name"]]
        assert list(tensor.shape) == entry["shape"], entry["name"]
        values = tensor.double().contiguous().flatten().numpy()
        samples = np.array(entry["samples"])
        differences = [np.abs(values[filler.sample_indices(values.size, len(samples))] - samples).max()]
        differences += [abs(values.mean() - entry["mean"]), abs(values.std() - entry["std"])]
        differences += [abs(np.abs(values).max() - entry["absmax"])]
        worst[entry["name"]] = float(max(differences)) / entry["absmax"]
    assert max(worst.values()) <= TOLERANCES[dtype], worst


@pytest.mark.parametrize("model", KEYS)
def test_names_shapes_and_parameters(model: str) -> None:
    with torch.device("meta"):
        network = create_model(OURS.get(model, model))
    expected = {name: tuple(shape) for name, shape in KEYS[model]["keys"].items() if not name.startswith("anchors.")}
    assert {name: tuple(x.shape) for name, x in to_foreign(network).items()} == expected
    assert sum(x.numel() for x in network.parameters()) == KEYS[model]["params"]


@pytest.mark.parametrize("model", FIXTURES)
def test_multiply_adds_and_parameters_by_part(model: str, golden: Callable[[str], Any]) -> None:
    counts = golden(f"{model}.json")["counts"]
    with torch.device("meta"):
        network = create_model(OURS.get(model, model)).eval()
        images = torch.zeros(1, 3, *golden(f"{model}.json")["config"]["native_size"])
    with FlopCounterMode(display=False) as counter:
        network(images)
    by_module = counter.get_flop_counts()
    parts = {
        "backbone": "backbone", "fpn": "feature_network", "class_net": "class_head", "box_net": "box_head",
    }  # fmt: skip
    multiply_adds = {theirs: sum(by_module[f"EfficientDet.{ours}"].values()) // 2 for theirs, ours in parts.items()}
    assert multiply_adds == counts["conv_macs_by_part"]
    assert counter.get_total_flops() // 2 == counts["conv_macs_native"]
    parameters = {
        theirs: sum(x.numel() for x in network.get_submodule(ours).parameters()) for theirs, ours in parts.items()
    }
    assert parameters == counts["parameters_by_part"]
    assert sum(x.numel() for x in network.buffers()) == counts["buffer_elements"]


@pytest.mark.parametrize("model", FIXTURES)
def test_the_table_says_what_the_golden_says(model: str, golden: Callable[[str], Any]) -> None:
    facts, spec = golden(f"{model}.json")["config"], find_spec(OURS.get(model, model))
    assert [spec.image_size] * 2 == facts["native_size"]
    assert list(spec.levels) == facts["levels"]
    assert (spec.width, spec.depth, spec.head_depth) == (
        facts["fpn_channels"], facts["fpn_cells"], facts["head_repeats"],
    )  # fmt: skip
    assert spec.fusion == {"fastattn": "fast", "sum": "none"}[facts["fusion"]]
    assert (spec.activation, spec.padding) == (facts["activation"], facts["padding"])
    assert (spec.redundant_bias, spec.anchor_scale) == (facts["redundant_bias"], facts["anchor_scale"])
    assert [list(pair) for pair in spec.aspects] == facts["aspect_ratios"]
