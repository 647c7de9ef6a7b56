"""Every feature network with every fusion, for d0 and lite0, through a checkpoint and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from efficientdet.network.fusion import FUSIONS
from efficientdet.network.topology import TOPOLOGIES
from efficientdet.weights.checkpoint import load_checkpoint, save_checkpoint
from efficientdet.weights.create import create_model
from efficientdet.weights.info import CheckpointInfo, default_preprocessing


@pytest.mark.parametrize("spec", ["lite0", "d0"])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_round_trip(name: str, fusion: str, spec: str, tmp_path: Path) -> None:
    model = create_model(spec, 2, feature_network=name, fusion=fusion)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("fuse.weights"):
                parameter.add_(torch.randn_like(parameter))
    info = CheckpointInfo(model.spec, ("cat", "dog"), (3, 7), default_preprocessing(model.spec))
    save_checkpoint(tmp_path / "x.safetensors", model.state_dict(), info)
    again, told = load_checkpoint(tmp_path / "x.safetensors")
    assert told == info
    assert again.spec == model.spec and (again.spec.feature_network, again.spec.fusion) == (name, fusion)
    before, after = model.state_dict(), again.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
