"""Every form in which effdet and zylo117 have written weights, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import functools
import gzip
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from efficientdet.errors import UnknownNameError, WeightsError
from efficientdet.family import find_spec
from efficientdet.network.efficientdet import EfficientDet
from efficientdet.weights.foreign import load_foreign, to_foreign

State = dict[str, Tensor]


@functools.cache
def _built(name: str, num_classes: int, **changes: Any) -> EfficientDet:
    small = {"width": 16, "depth": 2, "head_depth": 2, "backbone": "lite0" if "lite" in name else "b0"}
    return EfficientDet(dataclasses.replace(find_spec(name), **(small | changes)), num_classes).eval()


def make_model(name: str = "d0", seed: int | None = None, num_classes: int = 3, **changes: Any) -> EfficientDet:
    """A small relative of a released model; with a seed, every tensor random, fusion weights and statistics too."""
    model = copy.deepcopy(_built(name, num_classes, **changes))
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        for key, tensor in model.state_dict().items():
            if key.endswith("num_batches_tracked"):
                tensor.fill_(seed + 5)
            elif key.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.ndim == 4:
                tensor.normal_(generator=generator).div_(tensor[0].numel() ** 0.5)
            else:
                tensor.uniform_(-0.5, 1.0, generator=generator)
    return model


def outputs(model: EfficientDet) -> list[Tensor]:
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        class_logits, box_deltas = model.eval()(images)
    return [*class_logits, *box_deltas]


def same_outputs(first: EfficientDet, second: EfficientDet) -> bool:
    return all(map(torch.equal, outputs(first), outputs(second)))


def assert_equal_states(first: EfficientDet, second: EfficientDet, but: str = "$^") -> None:
    for (name, ours), theirs in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        if not re.search(but, name):
            assert torch.equal(ours, theirs), name


# ---- round trips
@pytest.mark.parametrize("name", ["d0", "lite0", "d7x", "d0-symmetric"])
@pytest.mark.parametrize("target", ["effdet", "zylo", "tensorflow"])
def test_a_round_trip_is_bit_identical(name: str, target: str) -> None:
    if target == "zylo" and name == "lite0":
        pytest.skip("zylo117 has no Lite models")
    source, model = make_model(name, seed=1), make_model(name)
    dropped = load_foreign(model, to_foreign(source, target), source=target)
    assert_equal_states(source, model, but="num_batches_tracked" if target == "tensorflow" else "$^")
    assert same_outputs(source, model)
    # zylo117 keeps fusion weights even where it sums (D7x): they are named, nothing else is dropped.
    expected = 8 * model.spec.depth if target == "zylo" and model.spec.fusion == "none" else 0
    assert len(dropped) == expected


@pytest.mark.parametrize("topology", ["fpn", "panet", "simplified-panet", "fully-connected", "nas-fpn"])
def test_other_topologies_travel_by_effdet_names(topology: str) -> None:
    source, model = make_model(seed=2, feature_network=topology), make_model(feature_network=topology)
    assert load_foreign(model, to_foreign(source)) == []
    assert same_outputs(source, model)


def test_to_foreign_gives_copies() -> None:
    model = make_model(seed=1)
    state = to_foreign(model, "effdet")
    before = model.backbone.conv_stem.weight.clone()
    state["backbone.conv_stem.weight"].zero_()
    assert torch.equal(model.backbone.conv_stem.weight, before)


@pytest.mark.parametrize("everything", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_name_and_shape_is_effdets(shared_parity: Path, everything: bool) -> None:
    keys = shared_parity.parent / "reference" / "effdet_state_dict_keys.json.gz"
    if not keys.is_file():
        pytest.skip(f"{keys} is missing")
    with gzip.open(keys) as file:
        reference = json.load(file)
    assert len(reference) >= 16
    for name in reference if everything else ("tf_efficientdet_d0", "tf_efficientdet_lite0", "efficientdet_d0"):
        with torch.device("meta"):
            model = EfficientDet(find_spec({"efficientdet_d0": "d0-symmetric"}.get(name, name)), 90)
        assert reference[name]["keys"] == {key: list(tensor.shape) for key, tensor in to_foreign(model).items()}, name


def test_the_box_order_is_turned_round() -> None:
    model = make_model(seed=3)
    ours = model.box_head.predict.pointwise.bias.reshape(9, 4)  # (dx, dy, dw, dh)
    theirs = to_foreign(model)["box_net.predict.conv_pw.bias"].reshape(9, 4)  # (dy, dx, dh, dw)
    for our_column, their_column in ((0, 1), (1, 0), (2, 3), (3, 2)):
        assert torch.equal(ours[:, our_column], theirs[:, their_column])


# ---- effdet's forms
def nested(state: State) -> dict[str, Any]:
    raw = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    return {"epoch": 7, "arch": "d0", "state_dict": raw, "state_dict_ema": state, "optimizer": {"state": {}}}


def level_first(state: State, inner: str = "") -> State:
    return {re.sub(r"bn_rep\.(\d+)\.(\d+)\.bn", rf"bn_rep.\2.\1{inner}", name): t for name, t in state.items()}


FORMS = {
    "model prefix": lambda state: {f"model.{name}": tensor for name, tensor in state.items()},
    "module prefix": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "both prefixes": lambda state: {f"module.model.{name}": tensor for name, tensor in state.items()},
    "compiled": lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
    "averages beside raw weights": nested,
    "averages under ema": lambda state: {"ema": {"module": state}, "model": {"x": torch.zeros(1)}},
    "plain state_dict": lambda state: {"state_dict": state, "epoch": 1},
    "lightning": lambda state: {"state_dict": {f"model.{name}": tensor for name, tensor in state.items()}, "loops": {}},
    "anchors": lambda state: state | {"anchors.boxes": torch.zeros(49104, 4)},
    "a bench": lambda state: {f"model.{k}": v for k, v in state.items()} | {"anchors.boxes": torch.ones(5, 4)},
    "level first": level_first,
    "level first, with containers": lambda state: level_first(state, ".bn"),
    "repeat first, without containers": lambda state: {
        re.sub(r"(bn_rep\.\d+\.\d+)\.bn", r"\1", name): tensor for name, tensor in state.items()
    },
    "numpy": lambda state: {name: tensor.numpy() for name, tensor in state.items()},
    "half": lambda state: {k: v.half() if v.is_floating_point() else v for k, v in state.items()},
    "without counters": lambda state: {k: v for k, v in state.items() if "num_batches_tracked" not in k},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_effdet_loads(form: str) -> None:
    source, model = make_model(seed=4), make_model()
    if form == "half":
        source.load_state_dict(source.half().state_dict())
        source.float()
    assert load_foreign(model, FORMS[form](to_foreign(source)), source="effdet") == []
    assert_equal_states(source, model, but="num_batches_tracked" if "counters" in form else "$^")


def test_batch_norms_level_first_where_the_counts_agree() -> None:
    source, model = make_model(seed=5, head_depth=5), make_model(head_depth=5)
    state = to_foreign(source)
    load_foreign(model, level_first(state))
    assert_equal_states(source, model)
    load_foreign(model, to_foreign(make_model(seed=6, head_depth=5)))
    load_foreign(model, state)
    assert_equal_states(source, model)


# ---- redundant biases
def redundant(state: State) -> list[str]:
    """Biases right before batch norms, by effdet's names."""
    return [
        name
        for name in state
        if re.fullmatch(r"fpn\..*(conv_pw|conv\.conv)\.bias|(class|box)_net\.conv_rep\.\d+\.conv_pw\.bias", name)
    ]


@pytest.mark.parametrize("target", ["effdet", "zylo", "tensorflow"])
def test_missing_biases_are_zero(target: str) -> None:
    lean, model = make_model(seed=7, redundant_bias=False), make_model(seed=8)
    assert load_foreign(model, to_foreign(lean, target), source=target) == []
    assert same_outputs(lean, model)
    assert model.class_head.convs[0].pointwise.bias.abs().max() == 0


@pytest.mark.parametrize("target", ["effdet", "zylo", "tensorflow"])
def test_more_biases_than_the_network_has_become_part_of_the_means(target: str) -> None:
    rich, model = make_model(seed=9), make_model(redundant_bias=False)
    assert load_foreign(model, to_foreign(rich, target), source=target) == []
    for ours, theirs in zip(outputs(model), outputs(rich), strict=True):
        assert (ours - theirs).abs().max() <= 2e-5 * theirs.abs().max()
    bias = rich.class_head.convs[1].pointwise.bias
    for level in range(5):
        mean = rich.class_head.bns[1][level].running_mean
        assert torch.equal(model.class_head.bns[1][level].running_mean, mean - bias)


def test_biases_are_all_there_or_none() -> None:
    state = to_foreign(make_model(seed=9))
    names = redundant(state)
    assert len(names) == 2 * 8 + 1 + 5 + 2 * 2
    lost = names[5]
    del state[lost]
    for redundant_bias in (True, False):
        with pytest.raises(WeightsError, match=f"1 tensors .*\n  missing: {re.escape(lost)}"):
            load_foreign(make_model(redundant_bias=redundant_bias), state)


def test_a_folded_bias_of_the_wrong_shape_is_refused() -> None:
    state = to_foreign(make_model(seed=9))
    state["fpn.resample.3.conv.conv.bias"] = torch.zeros(5)
    with pytest.raises(WeightsError, match=r"shape: fpn.resample.3.conv.conv.bias is \(5,\), the model has \(16,\)"):
        load_foreign(make_model(redundant_bias=False), state)


# ---- strictness
def test_every_mismatch_is_listed_and_nothing_changes() -> None:
    state, model = to_foreign(make_model(seed=1)), make_model(seed=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    del state["backbone.bn1.weight"]
    state["fpn.cell.0.fnode.4.combine.edge_weights"] = torch.ones(2)
    state["backbone.blocks.0.0.conv_dw.weight"] = torch.ones(32, 1, 5, 5)
    state["class_net.extra"] = torch.ones(7)
    with pytest.raises(WeightsError) as caught:
        load_foreign(model, {f"model.{name}": tensor for name, tensor in state.items()})
    message = str(caught.value)
    assert message.startswith("4 tensors do not fit d0 with 3 classes:")
    assert "missing: backbone.bn1.weight (32,)" in message
    assert "shape: model.fpn.cell.0.fnode.4.combine.edge_weights is (2,), the model has (3,)" in message
    assert "shape: model.backbone.blocks.0.0.conv_dw.weight is (32, 1, 5, 5), the model has (32, 1, 3, 3)" in message
    assert "unexpected: model.class_net.extra (7,)" in message
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("target", ["effdet", "zylo"])
def test_two_tensors_of_one_name_are_refused(target: str) -> None:
    state = to_foreign(make_model(seed=1), target)
    first = next(iter(state))
    with pytest.raises(WeightsError, match=f"1 tensors .*\n  unexpected: module.{re.escape(first)}"):
        load_foreign(make_model(), state | {f"module.{first}": state[first]}, source=target)


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(WeightsError, match="do not fit lite0"):
        load_foreign(make_model("lite0"), to_foreign(make_model(seed=1)))


@pytest.mark.parametrize("target", ["effdet", "zylo", "tensorflow"])
def test_another_number_of_classes_is_refused(target: str) -> None:
    model, state = make_model(seed=2), to_foreign(make_model(seed=1, num_classes=90), target)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(
        WeightsError, match=r"2 tensors do not fit d0 with 3 classes(.|\n)*810(.|\n)*as many as the weights"
    ):
        load_foreign(model, state, source=target)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_where_more_differs_the_classes_are_not_blamed() -> None:
    state = to_foreign(make_model(seed=1, num_classes=90))
    state["box_net.predict.conv_pw.bias"] = torch.zeros(24)
    with pytest.raises(WeightsError, match="3 tensors(.|\n)*shape: box_net.predict.conv_pw.bias") as caught:
        load_foreign(make_model(), state)
    assert "number of classes" not in str(caught.value)


@pytest.mark.parametrize(
    "state", [{}, {"epoch": 3}, {"state_dict": {"epoch": 3}}, {"a.weight": torch.zeros(1), "args": "x"}]
)
def test_what_holds_no_weights_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match="expected a dictionary of tensors"):
        load_foreign(make_model(), state)


# ---- telling them apart
@pytest.mark.parametrize("target", ["effdet", "zylo", "tensorflow"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_auto_tells_the_source(target: str, prefix: str) -> None:
    if prefix and target == "tensorflow":
        prefix = ""
    source, model = make_model(seed=1), make_model()
    load_foreign(model, {prefix + name: tensor for name, tensor in to_foreign(source, target).items()}, source="auto")
    assert same_outputs(source, model)


def test_auto_says_what_it_saw() -> None:
    with pytest.raises(WeightsError, match="first names are head.fc, head.b"):
        load_foreign(make_model(), {"head.fc": torch.zeros(1), "head.b": torch.zeros(1)}, source="auto")


def test_unknown_sources_are_named() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'effdet'"):
        load_foreign(make_model(), {"a": torch.zeros(1)}, source="efdet")
    with pytest.raises(UnknownNameError, match="unknown target of weights 'keras'"):
        to_foreign(make_model(), "keras")


# ---- zylo117
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def norm(name: str) -> set[str]:
    return {f"{name}.{leaf}" for leaf in NORM}


def separable(name: str) -> set[str]:
    return {
        f"{name}.depthwise_conv.conv.weight", f"{name}.pointwise_conv.conv.weight", f"{name}.pointwise_conv.conv.bias",
    }  # fmt: skip


def zylo_cell(first: bool, p8: bool) -> set[str]:
    """Names within one of its BiFPN cells, from its constructor."""
    up, down = ([3, 4, 5, 6, 7], [4, 5, 6, 7, 8]) if p8 else ([3, 4, 5, 6], [4, 5, 6, 7])
    names = {"p6_w1", "p5_w1", "p4_w1", "p3_w1", "p4_w2", "p5_w2", "p6_w2", "p7_w2"}
    for conv in [f"conv{i}_up" for i in up] + [f"conv{i}_down" for i in down]:
        names |= separable(conv) | norm(f"{conv}.bn")
    laterals = ["p5_down_channel", "p4_down_channel", "p3_down_channel", "p5_to_p6", "p4_down_channel_2"]
    for lateral in [*laterals, "p5_down_channel_2"] if first else []:
        names |= {f"{lateral}.0.conv.weight", f"{lateral}.0.conv.bias"} | norm(f"{lateral}.1")
    return names


def zylo_names(cells: int, repeats: int, levels: int) -> set[str]:
    """Names of zylo117's EfficientDet-D0-like network, from its constructors; MBConv blocks of B0."""
    names = {"backbone_net.model._conv_stem.conv.weight"} | norm("backbone_net.model._bn0")
    for block in range(16):
        prefix = f"backbone_net.model._blocks.{block}"
        convs = ["_depthwise_conv", "_project_conv"] + (["_expand_conv"] if block else [])
        norms = ["_bn1", "_bn2"] + (["_bn0"] if block else [])
        names |= {f"{prefix}.{conv}.conv.weight" for conv in convs}
        squeezes = itertools.product(("_se_reduce", "_se_expand"), ("weight", "bias"))
        names |= {f"{prefix}.{squeeze}.conv.{leaf}" for squeeze, leaf in squeezes}
        names |= set().union(*(norm(f"{prefix}.{name}") for name in norms))
    for cell in range(cells):
        names |= {f"bifpn.{cell}.{name}" for name in zylo_cell(cell == 0, levels == 6)}
    for head in ("regressor", "classifier"):
        names |= separable(f"{head}.header")
        for repeat in range(repeats):
            names |= separable(f"{head}.conv_list.{repeat}")
            for level in range(levels):
                names |= norm(f"{head}.bn_list.{level}.{repeat}")
    return names


@pytest.mark.parametrize(("name", "levels"), [("d0", 5), ("d7x", 6), ("d7", 5)])
def test_every_name_is_zylos(name: str, levels: int) -> None:
    assert set(to_foreign(make_model(name), "zylo")) == zylo_names(cells=2, repeats=2, levels=levels)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("feature_network.cells.1.td6.fuse.weights", "bifpn.1.p6_w1"),
        ("feature_network.cells.1.out3.fuse.weights", "bifpn.1.p3_w1"),
        ("feature_network.cells.1.out5.fuse.weights", "bifpn.1.p5_w2"),
        ("feature_network.cells.1.out7.fuse.weights", "bifpn.1.p7_w2"),
        ("feature_network.cells.0.td4.laterals.in4.conv.weight", "bifpn.0.p4_down_channel.0.conv.weight"),
        ("feature_network.cells.0.out4.laterals.in4.conv.weight", "bifpn.0.p4_down_channel_2.0.conv.weight"),
        ("feature_network.cells.0.out5.laterals.in5.bn.bias", "bifpn.0.p5_down_channel_2.1.bias"),
        ("feature_network.cells.0.out3.laterals.in3.bn.weight", "bifpn.0.p3_down_channel.1.weight"),
        ("feature_network.extra.conv.weight", "bifpn.0.p5_to_p6.0.conv.weight"),
        ("feature_network.cells.0.td5.conv.pointwise.bias", "bifpn.0.conv5_up.pointwise_conv.conv.bias"),
        ("feature_network.cells.0.out3.conv.depthwise.weight", "bifpn.0.conv3_up.depthwise_conv.conv.weight"),
        ("feature_network.cells.0.out6.bn.running_mean", "bifpn.0.conv6_down.bn.running_mean"),
        ("class_head.bns.1.4.running_var", "classifier.bn_list.4.1.running_var"),
        ("box_head.convs.1.pointwise.weight", "regressor.conv_list.1.pointwise_conv.conv.weight"),
        ("backbone.blocks.0.0.bn1.weight", "backbone_net.model._blocks.0._bn1.weight"),
        ("backbone.blocks.0.0.conv_pw.weight", "backbone_net.model._blocks.0._project_conv.conv.weight"),
        ("backbone.blocks.2.1.conv_pw.weight", "backbone_net.model._blocks.4._expand_conv.conv.weight"),
        ("backbone.blocks.6.0.bn3.weight", "backbone_net.model._blocks.15._bn2.weight"),
    ],
)
def test_our_tensor_is_this_one_of_zylos(ours: str, theirs: str) -> None:
    model = make_model(seed=1)
    assert torch.equal(model.state_dict()[ours], to_foreign(model, "zylo")[theirs])


def test_zylo_names_are_of_bifpn_only() -> None:
    with pytest.raises(WeightsError, match="has a 'panet' from level 3"):
        to_foreign(make_model(feature_network="panet"), "zylo")


def test_zylos_idle_fusion_weights_are_named_as_dropped() -> None:
    state = to_foreign(make_model("d7", seed=1), "zylo")
    assert state["bifpn.1.p6_w2"].tolist() == [1, 1, 1]
    state["bifpn.1.p6_w2"] = torch.tensor(np.array([0.1, 0.2, 0.3]))
    assert "bifpn.1.p6_w2 (3,)" in load_foreign(make_model("d7"), state, source="zylo")
