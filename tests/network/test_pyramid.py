"""Every feature network against a slow, literal numpy version of its formula, with every fusion."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from efficientdet.network.fusion import FUSIONS
from efficientdet.network.pyramid import FeatureNetwork
from efficientdet.network.topology import TOPOLOGIES, build_topology

Map = Any  # (C, h, w) float64 array
CHANNELS = (5, 8, 6)  # P4 already has the network's width: no lateral there
WIDTH = 8
EPSILON = 1e-3  # of every batch norm


# ---- numpy pieces -------------------------------------------------------------------------------------------------


def max_pool(x: Map, size: tuple[int, int]) -> Map:
    """Stride (h - 1) // target + 1, kernel one larger, padded as TensorFlow's SAME with minus infinity."""
    out = np.full((x.shape[0], *size), -np.inf)
    windows = []
    for axis in (0, 1):
        have, want = x.shape[1 + axis], size[axis]
        stride = (have - 1) // want + 1
        kernel = stride + 1 if stride > 1 else 1
        before = max((want - 1) * stride + kernel - have, 0) // 2
        windows.append([range(i * stride - before, i * stride - before + kernel) for i in range(want)])
    for row, ys in enumerate(windows[0]):
        for column, xs in enumerate(windows[1]):
            for i in ys:
                for j in xs:
                    if 0 <= i < x.shape[1] and 0 <= j < x.shape[2]:
                        out[:, row, column] = np.maximum(out[:, row, column], x[:, i, j])
    return out


def nearest(x: Map, size: tuple[int, int]) -> Map:
    out = np.empty((x.shape[0], *size))
    for row in range(size[0]):
        for column in range(size[1]):
            out[:, row, column] = x[:, row * x.shape[1] // size[0], column * x.shape[2] // size[1]]
    return out


def resample(x: Map, size: tuple[int, int]) -> Map:
    smaller = (min(size[0], x.shape[1]), min(size[1], x.shape[2]))
    return nearest(max_pool(x, smaller), size)


def normalize(bn: nn.BatchNorm2d, x: Map) -> Map:
    mean, variance, scale, shift = (
        v.detach().numpy()[:, None, None] for v in (bn.running_mean, bn.running_var, bn.weight, bn.bias)
    )
    return (x - mean) / np.sqrt(variance + EPSILON) * scale + shift


def pointwise(conv: nn.Conv2d, x: Map) -> Map:
    weight = conv.weight.detach().numpy()[:, :, 0, 0]
    out = np.einsum("oc,chw->ohw", weight, x)
    return out if conv.bias is None else out + conv.bias.detach().numpy()[:, None, None]


def depthwise(conv: nn.Conv2d, x: Map) -> Map:
    weight = conv.weight.detach().numpy()[:, 0]
    out = np.zeros_like(x)
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            for row in range(x.shape[1]):
                for column in range(x.shape[2]):
                    if 0 <= row + i < x.shape[1] and 0 <= column + j < x.shape[2]:
                        out[:, row, column] += weight[:, 1 + i, 1 + j] * x[:, row + i, column + j]
    return out


def activate(name: str, x: Map) -> Map:
    return x / (1 + np.exp(-x)) if name == "swish" else np.clip(x, 0, 6)


def weigh(kind: str, weights: Any, maps: list[Map]) -> Map:
    if kind == "none":
        return sum(maps)
    if kind == "softmax":
        exponentials = np.exp(weights)
        factors = exponentials / sum(exponentials)
    elif kind == "fast":
        positive = np.maximum(weights, 0)
        factors = positive / (1e-4 + sum(positive))
    else:
        factors = weights
    return sum(w * x for w, x in zip(factors, maps, strict=True))


def gp(x: Map, y: Map) -> Map:
    return y + 1 / (1 + np.exp(-x.mean((1, 2), keepdims=True))) * x


# ---- the networks, as their formulas stand ------------------------------------------------------------------------
# `node(name, level, sources)` resamples the sources (name and map) to the level, fuses, activates, convolves.

Named = tuple[str, Map]
NodeCall = Callable[..., Named]
Inputs = dict[int, Named]


def fpn(ins: Inputs, node: NodeCall) -> dict[int, Named]:
    out = {7: node("out7", 7, [ins[7]])}
    for i in (6, 5, 4, 3):
        out[i] = node(f"out{i}", i, [ins[i], out[i + 1]])
    return out


def panet(ins: Inputs, node: NodeCall) -> dict[int, Named]:
    td = {7: node("td7", 7, [ins[7]])}
    for i in (6, 5, 4, 3):
        td[i] = node(f"td{i}", i, [ins[i], td[i + 1]])
    out = {3: node("out3", 3, [td[3]])}
    for i in (4, 5, 6, 7):
        out[i] = node(f"out{i}", i, [td[i], out[i - 1]])
    return out


def simplified_panet(ins: Inputs, node: NodeCall) -> dict[int, Named]:
    td6 = node("td6", 6, [ins[6], ins[7]])
    td5 = node("td5", 5, [ins[5], td6])
    td4 = node("td4", 4, [ins[4], td5])
    out3 = node("out3", 3, [ins[3], td4])
    out4 = node("out4", 4, [td4, out3])
    out5 = node("out5", 5, [td5, out4])
    out6 = node("out6", 6, [td6, out5])
    return {3: out3, 4: out4, 5: out5, 6: out6, 7: node("out7", 7, [ins[7], out6])}


def bifpn(ins: Inputs, node: NodeCall) -> dict[int, Named]:
    td6 = node("td6", 6, [ins[6], ins[7]])
    td5 = node("td5", 5, [ins[5], td6])
    td4 = node("td4", 4, [ins[4], td5])
    out3 = node("out3", 3, [ins[3], td4])
    out4 = node("out4", 4, [ins[4], td4, out3])
    out5 = node("out5", 5, [ins[5], td5, out4])
    out6 = node("out6", 6, [ins[6], td6, out5])
    return {3: out3, 4: out4, 5: out5, 6: out6, 7: node("out7", 7, [ins[7], out6])}


def fully_connected(ins: Inputs, node: NodeCall) -> dict[int, Named]:
    return {i: node(f"out{i}", i, [ins[j] for j in (3, 4, 5, 6, 7)]) for i in (3, 4, 5, 6, 7)}


def nas_fpn(ins: Inputs, node: NodeCall) -> dict[int, Named]:
    a = node("a", 4, [], pooled=(ins[6], ins[4]))
    b = node("b", 4, [a, ins[4]])
    out3 = node("out3", 3, [b, ins[3]])
    out4 = node("out4", 4, [out3, b])
    out5 = node("out5", 5, [ins[5]], pooled=(out4, out3))
    out7 = node("out7", 7, [ins[7]], pooled=(out5, b))
    out6 = node("out6", 6, [], pooled=(out7, out5))
    return {3: out3, 4: out4, 5: out5, 6: out6, 7: out7}


LITERAL: dict[str, Callable[[Inputs, NodeCall], dict[int, Named]]] = {
    "fpn": fpn,
    "panet": panet,
    "simplified-panet": simplified_panet,
    "bifpn": bifpn,
    "fully-connected": fully_connected,
    "nas-fpn": nas_fpn,
}


def literal(network: FeatureNetwork, name: str, fusion: str, act: str, features: list[Map]) -> list[Map]:
    """The whole feature network in numpy; of the module it takes the weights only."""
    maps = dict(zip((3, 4, 5), features, strict=True))
    lateral = network.extra
    maps[6] = normalize(lateral.bn, pointwise(lateral.conv, maps[5]))  # type: ignore[arg-type]
    for i in (6, 7):
        x = maps[6]
        maps[i] = max_pool(x, (math.ceil(x.shape[1] / 2), math.ceil(x.shape[2] / 2)))
    sizes = {i: x.shape[1:] for i, x in maps.items()}
    for cell in network.cells:

        def node(
            name: str, level: int, sources: list[Named], pooled: tuple[Named, ...] = (), cell: Any = cell
        ) -> Named:
            module = cell[name]
            ready = []
            for source, x in [*sources, *pooled]:
                if x.shape[0] != WIDTH:
                    x = normalize(module.laterals[source].bn, pointwise(module.laterals[source].conv, x))
                ready.append(resample(x, sizes[level]))
            if pooled:
                ready[-2:] = [gp(ready[-2], ready[-1])]
            if len(ready) > 1 or not pooled:
                weights = None if fusion == "none" else module.fuse.weights.detach().numpy()
                fused = weigh(fusion, weights, ready)
            else:
                fused = ready[0]
            x = depthwise(module.conv.depthwise, activate(act, fused))
            return name, normalize(module.bn, pointwise(module.conv.pointwise, x))

        outputs = LITERAL[name]({i: (f"in{i}", x) for i, x in maps.items()}, node)
        maps = {i: x for i, (_, x) in outputs.items()}
    return [maps[i] for i in (3, 4, 5, 6, 7)]


def _build(name: str, fusion: str, act: str = "swish", padding: str = "same", depth: int = 2) -> FeatureNetwork:
    """A small network whose every parameter and statistic is random, fusion weights of both signs included."""
    torch.manual_seed(1)
    topology = build_topology(name, (3, 7))
    network = FeatureNetwork(CHANNELS, topology, WIDTH, depth, fusion, act, padding, True).double().eval()
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor) * 0.3)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr, operator]
    return network


def _features(height: int, width: int, batch: int = 1) -> list[torch.Tensor]:
    torch.manual_seed(2)
    return [
        torch.randn(batch, c, -(-height // step), -(-width // step), dtype=torch.float64)
        for c, step in zip(CHANNELS, (1, 2, 4), strict=True)
    ]


@pytest.mark.parametrize("act", ["swish", "relu6"])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_equals_the_literal_version(name: str, fusion: str, act: str) -> None:
    network, features = _build(name, fusion, act), _features(13, 6)
    with torch.no_grad():
        found = network(features)
    expected = literal(network, name, fusion, act, [x[0].numpy() for x in features])
    for level, (x, y) in enumerate(zip(found, expected, strict=True), 3):
        assert x.shape[1:] == y.shape, level
        assert np.allclose(x[0].numpy(), y, rtol=1e-9, atol=1e-9), level


def test_every_network_has_a_literal_version() -> None:
    assert set(LITERAL) == set(TOPOLOGIES)


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (8, 32), (17, 33), (3, 3), (12, 5)])
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_any_size(name: str, size: tuple[int, int], padding: str) -> None:
    network = _build(name, "fast", padding=padding, depth=1)
    with torch.no_grad():
        pyramid = network(_features(*size))
    for i, x in enumerate(pyramid):
        assert x.shape == (1, WIDTH, math.ceil(size[0] / 2**i), math.ceil(size[1] / 2**i))
        assert x.isfinite().all()


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_the_inputs_are_left_alone(name: str) -> None:
    network, features = _build(name, "none"), _features(9, 9)
    before = [x.clone() for x in features]
    with torch.no_grad():
        network(features)
    assert all(torch.equal(x, y) for x, y in zip(features, before, strict=True))


@pytest.mark.parametrize("levels", [(3, 5), (3, 6), (3, 8)])
def test_other_levels(levels: tuple[int, int]) -> None:
    network = FeatureNetwork(CHANNELS, build_topology("bifpn", levels), WIDTH, 2, "fast", "swish", "same", True)
    pyramid = network.eval()([x.float() for x in _features(64, 64)])
    assert [x.shape[2] for x in pyramid] == [64 >> i for i in range(levels[1] - levels[0] + 1)]


def test_laterals_only_where_channels_differ_and_in_the_first_cell() -> None:
    network = _build("bifpn", "fast")
    laterals = [name for name, _ in network.named_parameters() if ".laterals." in name and name.endswith("conv.weight")]
    # P5 feeds two nodes, each with a lateral of its own; P3 one; P4 has the width already.
    assert sorted(laterals) == [
        "cells.0.out3.laterals.in3.conv.weight",
        "cells.0.out5.laterals.in5.conv.weight",
        "cells.0.td5.laterals.in5.conv.weight",
    ]


def test_no_bias_before_batch_norm_where_it_is_not_wanted() -> None:
    network = FeatureNetwork(CHANNELS, build_topology("bifpn", (3, 7)), WIDTH, 1, "fast", "swish", "same", False)
    assert all(module.bias is None for module in network.modules() if isinstance(module, nn.Conv2d))
