"""Google's names and layout, against variables and outputs of Google's own network.

`google_keras.json.gz` holds names, shapes and outputs of the Keras EfficientDet of google/automl (the copy in
tflite-model-maker 0.4.2), run on TensorFlow 2.15 with the weights that `fill` makes from the names.
"""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from efficientdet.errors import WeightsError
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.weights.create import create_model
from efficientdet.weights.foreign import load_foreign, to_foreign

MODELS = {"d0": "efficientdet-d0", "lite0": "efficientdet-lite0"}
Variables = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def google() -> dict[str, Any]:
    with gzip.open(Path(__file__).with_name("google_keras.json.gz")) as file:
        models: dict[str, Any] = json.load(file)["models"]
    return models


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """A variable's value from its name, as when the outputs were made."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if "kernel" in name:
        fan_in = np.prod(shape[:2] if "depthwise" in name else shape[:3])
        return np.asarray(random.standard_normal(shape) / np.sqrt(fan_in), np.float32)
    ranges = {"moving_variance": (0.5, 1.5), "gamma": (0.8, 1.2), "WSM": (-0.2, 1.5)}
    low, high = next((bounds for part, bounds in ranges.items() if part in name), (-0.1, 0.1))
    return np.asarray(random.uniform(low, high, shape), np.float32)


def variables(record: dict[str, Any]) -> Variables:
    return {name: fill(name, tuple(shape)) for name, shape in record["names"].items()}


@pytest.mark.parametrize("name", MODELS)
def test_every_name_and_shape_is_googles(google: dict[str, Any], name: str) -> None:
    with torch.device("meta"):
        model = EfficientDet(create_model(name).spec, 90)
    ours = {key: list(tensor.shape) for key, tensor in to_foreign(model, "tensorflow").items()}
    assert ours == google[MODELS[name]]["names"]


def test_d7x_numbers_its_maps_from_six() -> None:
    with torch.device("meta"):
        model = create_model("d7x")
    names = to_foreign(model, "tensorflow")
    for expected in (
        "resample_p6/conv2d/kernel",
        "fpn_cells/cell_0/fnode2/resample_0_2_8/bn/gamma",
        "fpn_cells/cell_7/fnode9/op_after_combine15/conv/pointwise_kernel",
        "class_net/class-4-bn-8/moving_variance",
        "efficientnet-b7/blocks_54/conv2d_1/kernel",
    ):
        assert expected in names
    assert not any("WSM" in name or "resample_p7" in name for name in names)


@pytest.mark.parametrize("name", MODELS)
def test_googles_weights_give_googles_outputs(google: dict[str, Any], name: str) -> None:
    record = google[MODELS[name]]
    model = create_model(name).eval()
    assert load_foreign(model, variables(record), source="tensorflow") == []
    height, width = record["size"]
    images = np.random.RandomState(0).standard_normal((1, height, width, 3)).astype(np.float32)
    with torch.no_grad():
        class_logits, box_deltas = model(torch.from_numpy(images).permute(0, 3, 1, 2))
    turned = [deltas[..., [1, 0, 3, 2]] for deltas in box_deltas]
    for kind, levels in (("class", class_logits), ("box", turned)):
        for level, output in enumerate(levels):
            golden = record["outputs"][f"{kind}{level}"]
            flat = output.reshape(golden["shape"]).double().flatten()
            samples = flat[np.random.RandomState(7).randint(0, flat.numel(), 12)]
            bound = 2e-5 * golden["absmax"]
            assert (samples - torch.tensor(golden["samples"], dtype=torch.float64)).abs().max() <= bound
            assert abs(flat.mean() - golden["mean"]) <= bound
            assert abs(flat.abs().max() - golden["absmax"]) <= bound


# ---- the forms of the names
@pytest.fixture(scope="module")
def google_lite0(google: dict[str, Any]) -> Variables:
    return variables(google["efficientdet-lite0"])


@pytest.fixture(scope="module")
def google_d0(google: dict[str, Any]) -> Variables:
    return variables(google["efficientdet-d0"])


def loaded(state: Variables, name: str = "d0") -> dict[str, Tensor]:
    model = create_model(name)
    assert load_foreign(model, state, source="tensorflow") == []
    return model.state_dict()


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_averages_are_preferred_to_raw_weights(google_d0: Variables) -> None:
    raw = {name: np.full_like(value, 7) for name, value in google_d0.items()}
    averages = {f"{name}/ExponentialMovingAverage": value for name, value in google_d0.items()}
    trainer = {
        "global_step": np.array(5),
        "learning_rate": np.array(0.1),
        "box_net/box-0/bias/Momentum": np.zeros(64, np.float32),
        "efficientnet-b0/head/conv2d/kernel": np.zeros((1, 1, 320, 1280), np.float32),
    }
    assert_same(loaded(raw | averages | trainer), loaded(google_d0))


def test_a_weight_without_average_is_taken_raw(google_d0: Variables) -> None:
    still = {name: value for name, value in google_d0.items() if "moving" in name}
    averages = {f"{name}/ExponentialMovingAverage": google_d0[name] for name in google_d0.keys() - still.keys()}
    assert_same(loaded(still | averages), loaded(google_d0))


def test_names_of_h5_files(google_lite0: Variables) -> None:
    h5 = {f"{name.partition('/')[0]}/{name}:0": value for name, value in google_lite0.items()}
    assert_same(loaded(h5, "lite0"), loaded(google_lite0, "lite0"))


@pytest.mark.parametrize("theirs", ["batch_normalization", "sync_batch_normalization"])
def test_batch_norms_of_other_machines(google_lite0: Variables, theirs: str) -> None:
    renamed = {name.replace("tpu_batch_normalization", theirs): value for name, value in google_lite0.items()}
    # A second network in one process: Keras numbers what has no name of its own.
    for layer in (f"stem/{theirs}/", "stem/conv2d/", "stem/"):
        renamed = {name.replace(layer, f"{layer[:-1]}_81/"): value for name, value in renamed.items()}
    assert_same(loaded(renamed, "lite0"), loaded(google_lite0, "lite0"))


# Names that tf.train.Checkpoint gave to variables of the same network, beside their names by scope.
BY_ATTRIBUTE = {
    "backbone/_stem/_conv_stem/kernel": "efficientnet-b0/stem/conv2d/kernel",
    "backbone/_stem/_bn/gamma": "efficientnet-b0/stem/tpu_batch_normalization/gamma",
    "backbone/_blocks/0/_project_conv/kernel": "efficientnet-b0/blocks_0/conv2d/kernel",
    "backbone/_blocks/0/_bn2/beta": "efficientnet-b0/blocks_0/tpu_batch_normalization_1/beta",
    "backbone/_blocks/5/_expand_conv/kernel": "efficientnet-b0/blocks_5/conv2d/kernel",
    "backbone/_blocks/5/_bn0/gamma": "efficientnet-b0/blocks_5/tpu_batch_normalization/gamma",
    "backbone/_blocks/5/_depthwise_conv/depthwise_kernel": "efficientnet-b0/blocks_5/depthwise_conv2d/depthwise_kernel",
    "backbone/_blocks/5/_se/_se_reduce/bias": "efficientnet-b0/blocks_5/se/conv2d/bias",
    "backbone/_blocks/5/_se/_se_expand/kernel": "efficientnet-b0/blocks_5/se/conv2d_1/kernel",
    "resample_layers/0/conv2d/bias": "resample_p6/conv2d/bias",
    "resample_layers/0/bn/moving_mean": "resample_p6/bn/moving_mean",
    "fpn_cells/cells/0/fnodes/4/WSM": "fpn_cells/cell_0/fnode4/WSM",
    "fpn_cells/cells/0/fnodes/4/WSM_2": "fpn_cells/cell_0/fnode4/WSM_2",
    "fpn_cells/cells/0/fnodes/1/resample_layers/0/conv2d/kernel": (
        "fpn_cells/cell_0/fnode1/resample_0_2_6/conv2d/kernel"
    ),
    "fpn_cells/cells/2/fnodes/7/op_after_combine/conv_op/depthwise_kernel": (
        "fpn_cells/cell_2/fnode7/op_after_combine12/conv/depthwise_kernel"
    ),
    "fpn_cells/cells/2/fnodes/7/op_after_combine/bn/beta": "fpn_cells/cell_2/fnode7/op_after_combine12/bn/beta",
    "class_net/conv_ops/1/pointwise_kernel": "class_net/class-1/pointwise_kernel",
    "class_net/bns/1/4/gamma": "class_net/class-1-bn-7/gamma",
    "class_net/classes/bias": "class_net/class-predict/bias",
    "box_net/boxes/depthwise_kernel": "box_net/box-predict/depthwise_kernel",
}
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


@pytest.mark.parametrize("prefix", ["", "model/"])
def test_names_of_tensorflow_2_checkpoints(google_d0: Variables, prefix: str) -> None:
    # The network's own names would hide a mistake, so those above are mixed in by hand.
    from efficientdet.weights.remap.tensorflow import _scopes_by_attribute

    by_attribute = _scopes_by_attribute(create_model("d0"))
    assert {name: by_attribute[name] for name in BY_ATTRIBUTE} == BY_ATTRIBUTE
    assert sorted(by_attribute.values()) == sorted(google_d0)
    state = {f"{prefix}{name}{VALUE}": google_d0[scope] for name, scope in by_attribute.items()}
    slot = "/.OPTIMIZER_SLOT/optimizer"
    trained = {
        f"save_counter{VALUE}": np.array(1),
        f"{prefix}backbone/_stem/_bn/gamma{slot}/_optimizer/momentum{VALUE}": np.zeros(32, np.float32),
        f"{prefix}class_net/classes/bias{slot}/average{VALUE}": np.full(810, 3.0, np.float32),
        f"optimizer/_optimizer/iter{VALUE}": np.array(1),
    }
    state_dict = loaded({**state, **trained})
    assert state_dict["class_head.predict.pointwise.bias"].unique().tolist() == [3.0]
    assert_same({k: v for k, v in state_dict.items() if k != "class_head.predict.pointwise.bias"}, loaded(google_d0))


def test_mismatches_are_listed_by_the_files_names(google_d0: Variables) -> None:
    state = dict(google_d0)
    del state["fpn_cells/cell_1/fnode4/WSM_2"]
    state["class_net/class-predict/depthwise_kernel"] = np.zeros((3, 3, 1, 64), np.float32)
    state["seg_head/conv/kernel"] = np.zeros((1, 1, 2, 2), np.float32)
    with pytest.raises(WeightsError) as caught:
        load_foreign(create_model("d0"), state, source="tensorflow")
    message = str(caught.value)
    assert message.startswith("3 tensors do not fit d0 with 90 classes:")
    assert "missing: fpn_cells/cell_1/fnode4/WSM_2 ()" in message
    assert "shape: class_net/class-predict/depthwise_kernel is (3, 3, 1, 64), the model has (3, 3, 64, 1)" in message
    assert "unexpected: seg_head/conv/kernel (1, 1, 2, 2)" in message
