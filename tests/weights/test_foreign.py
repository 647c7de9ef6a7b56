"""effdet's weights: there and back bit for bit, wrapped in any way, and refused as a whole where they do not fit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from efficientdet.errors import UnknownNameError, WeightsError
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.weights.create import create_model
from efficientdet.weights.foreign import load_foreign, to_foreign


def _random(name: str, seed: int, num_classes: int = 3) -> EfficientDet:
    """A network whose every tensor is random, statistics and counters included."""
    torch.manual_seed(seed)
    network = create_model(name, num_classes)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 1.0)
        else:
            tensor.fill_(seed + 5)
    return network


def _same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def network() -> EfficientDet:
    return _random("lite0", 0)


@pytest.fixture(scope="module")
def state(network: EfficientDet) -> dict[str, Tensor]:
    return to_foreign(network)


@pytest.mark.parametrize("name", ["d0", "lite0", "d0-symmetric", pytest.param("d7x", marks=pytest.mark.slow)])
def test_round_trip_is_bit_identical(name: str) -> None:
    original, copy = _random(name, 0), _random(name, 1)
    theirs = to_foreign(original)
    assert len(theirs) == len(original.state_dict())
    load_foreign(copy, theirs)
    assert _same(copy.state_dict(), original.state_dict())
    assert _same(to_foreign(copy), theirs)


def test_what_is_no_state_dict_is_an_error_of_ours(network: EfficientDet, state: dict[str, Tensor]) -> None:
    circle: dict[str, object] = {}
    circle["state_dict"] = circle
    for odd in (circle, {}, {1: torch.ones(1)}, {("a",): torch.ones(1)}, {**state, 1: torch.ones(1)}, {"model": 3}):
        for source in ("effdet", "auto"):
            with pytest.raises(WeightsError, match="expected a dictionary of tensors"):
                load_foreign(network, odd, source)


def test_what_is_given_out_is_a_copy(network: EfficientDet) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for tensor in to_foreign(network).values():
        tensor.zero_()
    assert _same(network.state_dict(), before)


def test_boxes_turn_from_yx_to_xy_and_nothing_else_does() -> None:
    network = _random("lite0", 0)
    theirs = to_foreign(network)
    weight = theirs["box_net.predict.conv_pw.weight"].reshape(9, 4, -1)
    ours = network.box_head.predict.pointwise.weight.detach().reshape(9, 4, -1)
    assert torch.equal(weight, ours[:, [1, 0, 3, 2]])
    bias = theirs["box_net.predict.conv_pw.bias"].reshape(9, 4)
    assert torch.equal(bias, network.box_head.predict.pointwise.bias.detach().reshape(9, 4)[:, [1, 0, 3, 2]])
    swapped = {"box_net.predict.conv_pw.weight", "box_net.predict.conv_pw.bias"}
    for name, tensor in zip(theirs, network.state_dict().values(), strict=True):
        assert name in swapped or torch.equal(theirs[name], tensor), name


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "module.model."])
def test_prefixes_and_stored_anchors(prefix: str, network: EfficientDet, state: dict[str, Tensor]) -> None:
    wrapped = {prefix + name: tensor for name, tensor in state.items()} | {"anchors.boxes": torch.zeros(7, 4)}
    copy = _random("lite0", 1)
    load_foreign(copy, wrapped)
    assert _same(copy.state_dict(), network.state_dict())


def test_counters_may_be_missing(network: EfficientDet, state: dict[str, Tensor]) -> None:
    copy = _random("lite0", 1)
    load_foreign(copy, {name: x for name, x in state.items() if not name.endswith("num_batches_tracked")})
    ours, theirs = copy.state_dict(), network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if not name.endswith("num_batches_tracked"))


def test_every_mismatch_is_listed_and_nothing_changes(state: dict[str, Tensor]) -> None:
    faulty = dict(state)
    del faulty["backbone.conv_stem.weight"]
    del faulty["fpn.cell.1.fnode.3.after_combine.conv.bn.weight"]
    faulty["backbone.bn1.weight"] = torch.zeros(33)
    faulty["class_net.predict.conv_pw.bias"] = torch.zeros(810)
    faulty["classifier.weight"] = torch.zeros(1000, 5)
    network = _random("lite0", 1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_foreign(network, faulty)
    message = str(caught.value)
    assert "5 tensors do not fit lite0 with 3 classes" in message
    for part in (
        "missing: backbone.conv_stem.weight (32, 3, 3, 3)",
        "missing: fpn.cell.1.fnode.3.after_combine.conv.bn.weight (64,)",
        "shape: backbone.bn1.weight is (33,), the model has (32,)",
        "shape: class_net.predict.conv_pw.bias is (810,), the model has (27,)",
        "unexpected: classifier.weight (1000, 5)",
    ):
        assert part in message
    assert _same(network.state_dict(), before)


def test_the_weights_of_another_model_do_not_fit(state: dict[str, Tensor]) -> None:
    network = _random("d0-symmetric", 1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(WeightsError, match="missing: .*edge_weights"):
        load_foreign(network, state)
    assert _same(network.state_dict(), before)


def test_unknown_sources(network: EfficientDet, state: dict[str, Tensor]) -> None:
    with pytest.raises(UnknownNameError, match="unknown source of weights 'efdet'; did you mean 'effdet'"):
        load_foreign(network, state, source="efdet")
    with pytest.raises(UnknownNameError, match="unknown target of weights 'efdet'"):
        to_foreign(network, target="efdet")
