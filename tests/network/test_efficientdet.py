"""The whole network: any input size, any feature network and fusion, one kind of output."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from efficientdet.errors import SettingError, UnknownNameError
from efficientdet.family import MODELS, ModelSpec, compound_scaling, level_sizes
from efficientdet.network.efficientdet import EfficientDet, SpecOptions, make_spec
from efficientdet.network.fusion import FUSIONS
from efficientdet.network.topology import TOPOLOGIES
from efficientdet.weights.create import create_model


def small(name: str = "d0", **changes: object) -> ModelSpec:
    """A model of the family made narrow and shallow behind its backbone."""
    narrow = {"width": 16, "depth": 1, "head_depth": 1} | changes
    return dataclasses.replace(MODELS[name], **narrow)  # type: ignore[arg-type]


def build(spec: ModelSpec, num_classes: int = 3) -> EfficientDet:
    torch.manual_seed(0)
    return create_model(spec, num_classes)


SIZES = [(64, 256), (130, 257), (1, 1), (8, 300), (128, 128), (33, 31)]


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize(("name", "levels"), [("d0", (3, 7)), ("lite0", (3, 7)), ("lite0", (3, 8))])
def test_any_size_agrees_with_the_anchors(name: str, levels: tuple[int, int], padding: str) -> None:
    """One network takes every size in turn: nothing is baked in."""
    network = build(small(name, levels=levels, padding=padding)).eval()
    with torch.inference_mode():
        for size in SIZES:
            logits, deltas = network(torch.randn(2, 3, *size))
            counts = [9 * height * width for height, width in level_sizes(size, levels)]
            assert [tuple(x.shape) for x in logits] == [(2, count, 3) for count in counts]
            assert [tuple(x.shape) for x in deltas] == [(2, count, 4) for count in counts]
            assert network.anchors(size).shape == (sum(counts), 4)
            assert all(x.isfinite().all() for x in [*logits, *deltas])


def test_earlier_sizes_leave_no_trace() -> None:
    network = build(small("lite0")).eval()
    images = torch.randn(1, 3, 96, 160)
    with torch.inference_mode():
        first = network(images)
        network(torch.randn(3, 3, 50, 70))
        again = network(images)
    assert all(torch.equal(x, y) for x, y in zip([*first[0], *first[1]], [*again[0], *again[1]], strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_the_same_two_things_in_training_and_evaluation(training: bool) -> None:
    network = build(small("lite0")).train(training)
    outputs = network(torch.randn(2, 3, 128, 64))
    assert isinstance(outputs, tuple) and len(outputs) == 2
    for part, last in zip(outputs, (3, 4), strict=True):
        assert isinstance(part, list) and len(part) == 5
        assert all(x.shape[0] == 2 and x.shape[2] == last for x in part)


def test_a_new_network_is_in_training_mode_on_the_cpu() -> None:
    network = build(small("lite0"))
    assert network.training
    assert {x.device.type for x in network.state_dict().values()} == {"cpu"}


def test_channels_last_gives_the_same() -> None:
    network = build(small("d0")).eval()
    images = torch.randn(2, 3, 96, 128)
    with torch.inference_mode():
        expected = network(images)
        network.to(memory_format=torch.channels_last)
        found = network(images.contiguous(memory_format=torch.channels_last))
    for x, y in zip([*expected[0], *expected[1]], [*found[0], *found[1]], strict=True):
        assert torch.allclose(x, y, rtol=1e-4, atol=1e-5)


def test_a_picture_of_a_batch_is_what_it_is_alone() -> None:
    network = build(small("d0")).eval()
    images = torch.randn(3, 3, 64, 96)
    with torch.inference_mode():
        together, alone = network(images), network(images[1:2])
    for x, y in zip([*together[0], *together[1]], [*alone[0], *alone[1]], strict=True):
        assert torch.allclose(x[1:2], y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["d0", "lite0"])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("feature_network", TOPOLOGIES)
def test_every_network_and_fusion_learns(feature_network: str, fusion: str, name: str) -> None:
    network = create_model(small(name, depth=2), 2, feature_network=feature_network, fusion=fusion)
    assert (network.spec.feature_network, network.spec.fusion) == (feature_network, fusion)
    logits, deltas = network(torch.randn(2, 3, 64, 64))
    loss = sum((x.square().mean() for x in [*logits, *deltas]), torch.zeros(()))
    loss.backward()  # type: ignore[no-untyped-call]
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("num_classes", [1, 2, 200])
def test_number_of_classes(num_classes: int) -> None:
    with torch.device("meta"):
        network = create_model(small("lite0"), num_classes)
        logits, deltas = network(torch.zeros(2, 3, 64, 64))
    assert logits[0].shape[2] == num_classes and deltas[0].shape[2] == 4


def test_every_field_of_the_spec_can_be_changed_by_keyword() -> None:
    fields = {field.name for field in dataclasses.fields(ModelSpec)}
    assert SpecOptions.__annotations__.keys() == fields - {"name", "nodes"}


@pytest.mark.parametrize("name", ["simplified-panet", "Simplified_PANet"])
def test_feature_networks_are_found_by_any_spelling(name: str) -> None:
    assert make_spec("d0", feature_network=name).feature_network == "simplified-panet"


def test_scaled_specs_build() -> None:
    with torch.device("meta"):
        network = create_model(compound_scaling(2.5), 1)
        network(torch.zeros(2, 3, 128, 128))
    assert network.spec.name == "phi2.5"


def test_drop_path_acts_in_training_only() -> None:
    torch.manual_seed(0)
    network = create_model(small("lite0"), 1, drop_path=0.9)
    images = torch.randn(4, 3, 64, 64)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    with torch.no_grad():
        assert not torch.equal(network(images)[0][0], network(images)[0][0])
        network.eval()
        assert torch.equal(network(images)[0][0], network(images)[0][0])


def test_gradients_reach_the_input_in_bfloat16_autocast() -> None:
    network = build(small("lite0"))
    images = torch.randn(2, 3, 64, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        logits, _ = network(images)
    sum(x.float().sum() for x in logits).backward()  # type: ignore[union-attr]
    assert images.grad is not None and images.grad.isfinite().all()


@pytest.mark.parametrize("classes", [0, -3])
def test_too_few_classes(classes: int) -> None:
    with pytest.raises(SettingError, match=f"num_classes is {classes}"):
        create_model("d0", classes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name_or_spec": "lite9"}, "unknown model 'lite9'; did you mean"),
        ({"feature_network": "pannet"}, "unknown feature network 'pannet'; did you mean 'panet'"),
        ({"fusion": "soft"}, "unknown fusion 'soft'"),
        ({"name_or_spec": dataclasses.replace(MODELS["d0"], backbone="b9")}, "unknown backbone 'b9'"),
        ({"name_or_spec": dataclasses.replace(MODELS["d0"], activation="relu")}, "unknown activation 'relu'"),
    ],
)
def test_unknown_names(arguments: dict[str, object], message: str) -> None:
    with torch.device("meta"), pytest.raises(UnknownNameError, match=message):
        create_model(**arguments)  # type: ignore[arg-type]
