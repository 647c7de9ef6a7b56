"""The table of models: what the code counts is what was published."""

from __future__ import annotations

import pytest
import torch

from efficientdet.family import MODELS, PUBLISHED, PUBLISHED_AP
from efficientdet.network import count as models
from efficientdet.network.count import count, family_rows
from efficientdet.network.efficientdet import EfficientDet

SMALL = ("d0", "lite0", "lite1")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SMALL else pytest.mark.slow) for name in MODELS]
)
def test_parameters_and_multiply_adds_are_the_published(name: str) -> None:
    parameters, multiply_adds = count(MODELS[name])
    assert parameters == PUBLISHED[name][0]
    # Published with batch norms, activations and fusions, which are not counted here: a little less, never more.
    assert 0.96 < multiply_adds / PUBLISHED[name][1] < 1.005


def test_fewer_classes_are_counted_as_such() -> None:
    spec = MODELS["lite0"]
    assert count(spec, 2)[0] == sum(p.numel() for p in EfficientDet(spec, 2).parameters())
    assert count(spec, 2)[1] < count(spec, 90)[1]


def test_multiply_adds_are_those_of_the_convolutions() -> None:
    """Counted once more from the maps that each convolution gives."""
    spec = MODELS["lite0"]
    total = 0

    def add(conv: torch.nn.Conv2d, _: object, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel() * conv.weight[0].numel()

    with torch.device("meta"), torch.no_grad():
        model = EfficientDet(spec, 90).eval()
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(add)  # type: ignore[arg-type]
        model(torch.empty(1, 3, spec.image_size, spec.image_size))
    assert count(spec)[1] == total


def test_a_row_for_each_model(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: MODELS[name] for name in SMALL}
    monkeypatch.setattr(models, "MODELS", few)
    rows = family_rows()
    assert [row["name"] for row in rows] == list(SMALL)
    for row in rows:
        spec = MODELS[row["name"]]
        assert (row["backbone"], row["input"], row["width"], row["depth"], row["head"]) == (
            spec.backbone, spec.image_size, spec.width, spec.depth, spec.head_depth,
        )  # fmt: skip
        assert row["params M"] == row["published M"] == round(PUBLISHED[row["name"]][0] / 1e6, 2)
        assert row["published AP"] == PUBLISHED_AP[row["name"]]
