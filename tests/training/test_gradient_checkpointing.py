"""Gradient checkpointing changes nothing but what is kept."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from efficientdet.network.efficientdet import EfficientDet
from efficientdet.training.gradient_checkpointing import checkpoint_gradients
from efficientdet.weights.create import create_model


def _step(model: EfficientDet, images: Tensor) -> tuple[list[Tensor], int]:
    """Gradients, and how many elements the forward pass kept for the backward pass."""
    kept = Counter[int]()

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().size()
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        class_logits, box_deltas = model(images)
        total = torch.stack([x.square().sum() for x in (*class_logits, *box_deltas)]).sum()
    return list(torch.autograd.grad(total, list(model.parameters()))), sum(kept.values())


@pytest.mark.parametrize("backbone", ["lite0", "resnet18"])
def test_the_same_gradients_and_statistics(backbone: str) -> None:
    torch.manual_seed(0)
    drop_path = 0.5 if backbone == "lite0" else 0.0
    model = create_model("lite0", 2, backbone=backbone, drop_path=drop_path).train()
    model.backbone.stages()[0][1].eval()  # a frozen batch norm among the others
    other = copy.deepcopy(model)
    checkpoint_gradients(other)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    (expected, all_kept), (found, kept) = _step(model, images), _step(other, images)
    for name, mine, theirs in zip(dict(model.named_parameters()), found, expected, strict=True):
        assert torch.equal(mine, theirs), name
    state = model.state_dict()
    assert list(state) == list(other.state_dict())
    for name, value in other.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert all(int(value) <= 1 for name, value in state.items() if name.endswith("num_batches_tracked"))
    assert kept < 0.6 * all_kept


def test_a_copy_recomputes_with_its_own_weights() -> None:
    """The averaged weights are a deep copy of the module that trains."""
    model = create_model("lite0", 2).train()
    checkpoint_gradients(model)
    averaged = copy.deepcopy(model)
    for parameter in averaged.parameters():
        nn.init.zeros_(parameter)
    images = torch.randn(1, 3, 64, 64)
    assert all((x == 0).all() for x in averaged.eval()(images)[1])
    assert any((x != 0).any() for x in model.eval()(images)[1])
